"""Objects as outlines, and as regions of interest in a zip that ImageJ and Fiji open."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from keras_seg.weights.files import replacing

__all__ = ["Region", "outlines", "require_roifile", "write_rois"]

# Of ImageJ's paths: what the numbers after these are (ij.gui.ShapeRoi)
MOVE, LINE, CLOSE = 0.0, 1.0, 4.0
STEPS = ((1, 0), (0, 1), (-1, 0), (0, -1))  # x, y: right, down, left, up


class Region(NamedTuple):
    """An object of an image: its number in the label image, its class, its score 0-1, and bool [h, w] in the window
    of these rows and columns."""

    number: int
    class_name: str
    score: float
    rows: slice
    columns: slice
    inside: np.ndarray


def outlines(mask: np.ndarray) -> list[np.ndarray]:
    """The closed lines between inside and outside, along the edges of pixels: each int [n, 2], x and y of its
    corners.

    mask: bool [H, W]. Pixel (x, y) covers x to x + 1 and y to y + 1, so the area within the lines is the number of
    pixels. Lines go clockwise around an object and counter-clockwise around a hole; pixels that touch at a corner
    alone are apart. ValueError for another shape or type.
    """
    mask = np.asarray(mask)
    if mask.ndim != 2 or mask.dtype != bool:
        raise ValueError(f"outlines: takes one mask, bool [H, W], got {mask.dtype} {list(mask.shape)}")
    ahead = _edges(np.pad(mask, 1))
    lines = []
    while ahead:
        # the first corner in reading order: no two pixels touch there at a corner alone
        start = place = next(iter(ahead))
        heading = (ahead[start][0] - 1) % 4
        corners: list[tuple[int, int]] = []
        while place != start or not corners:
            directions = ahead[place]
            # to the right if it can, so that pixels which touch at a corner alone come apart
            direction = next(d for d in _turns(heading) if d in directions)
            if direction != heading:
                corners.append(place)
            directions.remove(direction)
            if not directions:
                del ahead[place]
            heading = direction
            place = place[0] + STEPS[heading][0], place[1] + STEPS[heading][1]
        lines.append(np.array(corners, np.int64))
    return lines


def write_rois(path: str | Path, slices: Sequence[Iterable[Region]]) -> None:
    """Writes the objects of an image, or of each slice of a stack, to a .zip of ImageJ regions of interest.

    Names are "0012-nucleus", number and class, with the slice before them in a stack, "0003-0012-nucleus", whose
    regions have its position (from 1) as well; the property "score" is kept. A region of several parts, or with
    holes, is one composite region. The area of each in ImageJ is its number of pixels. The file is written whole or
    not at all.

    Raises ModuleNotFoundError without the package roifile, OSError where the file cannot be written.
    """
    roifile = require_roifile()
    rois = []
    for position, regions in enumerate(slices):
        for region in regions:
            name = f"{region.number:04d}-{_plain(region.class_name)}"
            name = f"{position + 1:04d}-{name}" if len(slices) > 1 else name
            lines = [line + [region.columns.start, region.rows.start] for line in outlines(region.inside)]
            if not lines:
                continue
            roi = roifile.ImagejRoi.frompoints(np.concatenate(lines), name=name)
            roi.roitype = roifile.ROI_TYPE.TRACED
            roi.props = f"score: {region.score:.4f}\n"
            roi.position = position + 1 if len(slices) > 1 else 0
            # coordinates are corners of pixels here, whose greatest is the region's end
            roi.right, roi.bottom = roi.right - 1, roi.bottom - 1
            if len(lines) > 1:
                _make_composite(roi, lines)
            rois.append(roi)
    with replacing(path) as temporary:
        roifile.roiwrite(temporary, rois, mode="w")


def require_roifile() -> ModuleType:
    """The package roifile; ModuleNotFoundError that says how to install it."""
    try:
        import roifile
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "regions of interest for ImageJ need the package roifile: pip install 'keras_seg[imagej]'"
        ) from error
    return roifile


def _edges(padded: np.ndarray) -> dict[tuple[int, int], list[int]]:
    """{(x, y) of a pixel's corner: the directions of the edges that begin there}, with the inside to their right;
    corners in reading order. padded: a mask with one pixel of outside around it."""
    inside = padded[1:-1, 1:-1]
    neighbours = (padded[:-2, 1:-1], padded[1:-1, 2:], padded[2:, 1:-1], padded[1:-1, :-2])
    starts = (
        (0, 0),
        (1, 0),
        (1, 1),
        (0, 1),
    )  # x, y of a pixel's corner where its upper, right, ... edge begins
    found = []
    for direction, (neighbour, (dx, dy)) in enumerate(zip(neighbours, starts, strict=True)):
        y, x = np.nonzero(inside & ~neighbour)
        found.append(np.stack([y + dy, x + dx, np.full(len(x), direction)], axis=1))
    edges = np.concatenate(found)
    ahead: dict[tuple[int, int], list[int]] = {}
    for y, x, direction in edges[np.lexsort(edges.T[::-1])].tolist():
        ahead.setdefault((x, y), []).append(direction)
    return ahead


def _turns(heading: int) -> tuple[int, int, int]:
    """Right, straight on, left."""
    return (heading + 1) % 4, heading, (heading - 1) % 4


def _make_composite(roi: Any, lines: list[np.ndarray]) -> None:
    roifile = require_roifile()
    path: list[float] = []
    for line in lines:
        for step, (x, y) in zip([MOVE, *[LINE] * (len(line) - 1)], line.tolist(), strict=True):
            path += [step, x, y]
        path.append(CLOSE)
    roi.roitype = roifile.ROI_TYPE.RECT
    roi.integer_coordinates, roi.n_coordinates = None, 0
    roi.multi_coordinates = np.array(path, np.float32)
    roi.shape_roi_size = len(path)


def _plain(name: str) -> str:
    """A class's name as part of a file's name inside a zip."""
    return "".join(letter if letter.isalnum() or letter in " ._" else "_" for letter in name) or "object"
