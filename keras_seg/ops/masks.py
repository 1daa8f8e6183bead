"""Masks outside the network, in NumPy: pasting into the image, COCO run lengths, targets of the mask head.

N masks or boxes  m cells a side of a mask  H, W pixels of the image

A mask [m, m] of probabilities is a bilinear surface over its box, zero beyond the outermost cells. Along a line of
pixels it is therefore linear between the centres of two cells, and where it crosses the threshold can be solved for:
m + 1 numbers a line tell the runs of pixels inside, and no map of the box's pixels is made before it is boolean.

Two conventions place the surface. "detectron2": the cells divide the box exactly, pixels are sampled at their centres.
"torchvision": the mask gets a border of one zero cell, the box is enlarged to match, its corners are cut to whole
pixels, the last one included. They differ by up to a pixel.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from keras_seg.ops.rle import encode_edges

__all__ = [
    "bitmask_targets",
    "bitmask_targets_soft",
    "encode_rle",
    "paste",
    "paste_soft",
    "polygon_targets",
    "windows",
]

CONVENTIONS = ("detectron2", "torchvision")
# A value that equals the threshold is inside; this keeps it there in spite of rounding.
TIE = 1e-9
# A box narrower than this many pixels is taken as so wide when polygons are scaled to it (Detectron2, structures/masks).
NARROWEST_BOX = np.float32(0.1)


def paste(
    masks: np.ndarray,
    boxes: np.ndarray,
    size: Sequence[int],
    threshold: float = 0.5,
    convention: str = "detectron2",
) -> np.ndarray:
    """Masks of boxes as masks of the image: bool [N, H, W], true where the probability is at least `threshold`.

    Args:
        masks: float [N, m, m], probabilities; rows are y. What is not finite counts as 0.
        boxes: float [N, 4], x1, y1, x2, y2 in pixels. A box of no extent, inverted or not finite has no pixel (with
            "torchvision" a box of no extent is one pixel wide); what lies outside the image is cut off.
        size: (H, W) of the image in pixels.
        threshold: above 0, at most 1.
        convention: "detectron2" or "torchvision".

    Raises:
        ValueError: for other shapes or options.
    """
    pasted = np.zeros((len(masks), *_image_size(size)), bool)
    for target, (rows, columns, inside) in zip(
        pasted, windows(masks, boxes, size, threshold, convention), strict=True
    ):
        target[rows, columns] = inside
    return pasted


def windows(
    masks: np.ndarray,
    boxes: np.ndarray,
    size: Sequence[int],
    threshold: float = 0.5,
    convention: str = "detectron2",
) -> Iterator[tuple[slice, slice, np.ndarray]]:
    """`paste` one mask at a time, as (rows, columns, bool [h, w]): the part of the image around its box."""
    masks, boxes, size = _check(masks, boxes, size, convention)
    _check_threshold(threshold)
    return _windows(masks, boxes, size, threshold, convention)


def paste_soft(
    masks: np.ndarray, boxes: np.ndarray, size: Sequence[int], convention: str = "detectron2"
) -> np.ndarray:
    """The probabilities themselves, float32 [N, H, W], zero beyond one pixel around the box; arguments as `paste`."""
    masks, boxes, size = _check(masks, boxes, size, convention)
    pasted = np.zeros((len(masks), *size), np.float32)
    for target, mask, box in zip(pasted, masks, boxes, strict=True):
        y, x = _axes(box, mask.shape[0], size, convention)
        down, across = (_weights(axis, len(mask)).astype(np.float32) for axis in (y, x))
        target[y.window, x.window] = down @ mask @ across.T
    return pasted


def encode_rle(
    masks: np.ndarray,
    boxes: np.ndarray,
    size: Sequence[int],
    threshold: float = 0.5,
    convention: str = "detectron2",
) -> list[dict[str, Any]]:
    """The COCO run lengths of `paste`'s masks: N times {"size": [H, W], "counts": str}; arguments as `paste`.

    Memory and time go with the width of a box times m, not with its area.
    """
    masks, boxes, size = _check(masks, boxes, size, convention)
    _check_threshold(threshold)
    encoded = []
    for mask, box in zip(masks, boxes, strict=True):
        y, x = _axes(box, len(mask), size, convention)
        column, start, stop = _runs(mask.T, across=x, along=y, threshold=threshold)
        encoded.append(encode_edges(_edges(column * size[0] + start, column * size[0] + stop), size))
    return encoded


def polygon_targets(polygons: Sequence[Sequence[Any]], boxes: np.ndarray, m: int) -> np.ndarray:
    """What the mask head should predict for boxes on objects given as polygons: bool [N, m, m].

    polygons: for each of N boxes its object's polygons, each x1, y1, x2, y2, ... in pixels; their union counts, and
    no polygon is an empty mask. boxes: float [N, 4]. The polygons are shifted and scaled to the box and drawn there by
    pycocotools, as Detectron2 does. ValueError: shapes, or a polygon of fewer than 3 points or not finite.
    """
    from pycocotools import mask as coco

    boxes = _check_boxes(boxes)
    if len(polygons) != len(boxes):
        raise ValueError(f"polygons of {len(polygons)} objects for {len(boxes)} boxes: give one object a box")
    targets = np.zeros((len(boxes), _cells(m), m), bool)
    for target, instance, box in zip(targets, polygons, boxes, strict=True):
        scale = np.float32(m) / np.maximum(box[2:] - box[:2], NARROWEST_BOX)
        drawn = [((_points(polygon) - box[:2]) * scale).ravel() for polygon in instance]
        if drawn:
            target[:] = coco.decode(coco.merge(coco.frPyObjects(drawn, m, m)))
    return targets


def bitmask_targets(
    masks: np.ndarray, boxes: np.ndarray, m: int, indices: np.ndarray | None = None
) -> np.ndarray:
    """What the mask head should predict for boxes on objects given as masks of the image: bool [N, m, m].

    True where at least half of a cell is inside, by RoIAlign with as many samples as the cell has pixels, as in
    Detectron2. Arguments as in `bitmask_targets_soft`.
    """
    return bitmask_targets_soft(masks, boxes, m, indices) >= 0.5


def bitmask_targets_soft(
    masks: np.ndarray,
    boxes: np.ndarray,
    m: int,
    indices: np.ndarray | None = None,
    convention: str = "detectron2",
) -> np.ndarray:
    """The share of each cell that is inside the mask, float32 [N, m, m]; torchvision's training targets.

    masks: bool [N, H, W], or [G, H, W] with `indices` int [N], the mask of each box. boxes: float [N, 4], pixels.
    convention: "detectron2" (half-pixel correct) or "torchvision" (shifted by half a pixel, boxes at least one pixel
    wide). ValueError for other shapes or options.
    """
    masks, boxes = np.asarray(masks), _check_boxes(boxes)
    _check_convention(convention)
    if masks.ndim != 3 or masks.dtype != bool:
        raise ValueError(f"masks: takes bool [N, H, W], got {masks.dtype} {list(masks.shape)}")
    indices = np.arange(len(masks)) if indices is None else np.asarray(indices)
    if len(indices) != len(boxes):
        raise ValueError(f"{len(indices)} masks for {len(boxes)} boxes: give one a box, or indices")
    targets = np.zeros((len(boxes), _cells(m), m), np.float32)
    for target, index, box in zip(targets, indices, boxes, strict=True):
        height, width = masks.shape[1:]
        rows, y = _cell_averages(box[1], box[3], m, height, convention)
        columns, x = _cell_averages(box[0], box[2], m, width, convention)
        target[:] = y @ masks[index, rows, columns].astype(np.float32) @ x.T
    return targets


# -- pasting ---------------------------------------------------------------------------------------------------


class _Axis(NamedTuple):
    """One direction of a pasted mask: cell k has its centre at first + k * spacing (pixels, continuous), and the
    pixels start ... stop - 1 may be inside."""

    first: float
    spacing: float
    start: int
    stop: int

    @property
    def window(self) -> slice:
        return slice(self.start, self.stop)


def _axes(box: np.ndarray, cells: int, size: tuple[int, int], convention: str) -> tuple[_Axis, _Axis]:
    """The directions (y, x) of a mask of cells * cells in the box float32 [4]."""
    y = _axis(box[1], box[3], cells, size[0], convention)
    return y, _axis(box[0], box[2], cells, size[1], convention)


def _axis(low: Any, high: Any, cells: int, length: int, convention: str) -> _Axis:
    nothing = _Axis(0.0, 1.0, 0, 0)
    if not (np.isfinite(low) and np.isfinite(high)) or high < low:
        return nothing
    if convention == "detectron2":
        if high == low:
            return nothing
        low, high = float(low), float(high)
        spacing = (high - low) / cells
        first = low + spacing / 2
        # Half a cell beyond the box the surface is still above zero; Detectron2 looks no further than a pixel, which
        # matters for thresholds below 0.5 only.
        start, stop = math.floor(low) - 1, math.ceil(high) + 1
    else:
        middle, half = (low + high) / 2, (high - low) / 2 * np.float32((cells + 2) / cells)
        start, stop = int(middle - half), int(middle + half) + 1
        spacing = (stop - start) / (cells + 2)
        first = start + 1.5 * spacing
    start = min(max(start, 0), length)
    return _Axis(first, spacing, start, max(start, min(stop, length)))


def _weights(axis: _Axis, cells: int) -> np.ndarray:
    """Linear interpolation between cells, float64 [pixels of the window, cells]."""
    position = (np.arange(axis.start, axis.stop) + 0.5 - axis.first) / axis.spacing
    return np.maximum(0, 1 - np.abs(position[:, None] - np.arange(cells)))


def _windows(
    masks: np.ndarray, boxes: np.ndarray, size: tuple[int, int], threshold: float, convention: str
) -> Iterator[tuple[slice, slice, np.ndarray]]:
    for mask, box in zip(masks, boxes, strict=True):
        y, x = _axes(box, len(mask), size, convention)
        height, width = y.stop - y.start, x.stop - x.start
        row, start, stop = _runs(mask, across=y, along=x, threshold=threshold)
        first = (row - y.start) * width - x.start
        lengths = np.diff(_edges(first + start, first + stop), prepend=0, append=height * width)
        inside = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)
        yield y.window, x.window, inside.reshape(height, width)


def _runs(cells: np.ndarray, across: _Axis, along: _Axis, threshold: float) -> tuple[np.ndarray, ...]:
    """Where the surface of cells [across, along] is at least `threshold`: (line, start, stop), int64 [R] each.

    Lines are pixels across, starts and stops pixels along, in rising order; a run may be cut where it touches the next.
    """
    threshold = threshold - TIE
    knots = np.zeros((across.stop - across.start, cells.shape[1] + 2))  # a zero cell at either end
    knots[:, 1:-1] = _weights(across, len(cells)) @ cells
    inside = knots >= threshold
    positions = along.first + along.spacing * np.arange(-1, cells.shape[1] + 1)
    # pixels bounds[k] ... bounds[k + 1] - 1 have their centres between knot k and the next
    bounds = np.clip(np.ceil(positions - 0.5), along.start, along.stop).astype(np.int64)
    line, k = np.nonzero(inside[:, :-1] | inside[:, 1:])
    before, after, low, high = inside[line, k], inside[line, k + 1], knots[line, k], knots[line, k + 1]
    share = np.divide(threshold - low, high - low, out=np.zeros(len(k)), where=before != after)
    crossing = np.ceil(positions[k] + along.spacing * share - 0.5)
    crossing = np.clip(crossing, bounds[k], bounds[k + 1]).astype(np.int64)
    start, stop = np.where(before, bounds[k], crossing), np.where(after, bounds[k + 1], crossing)
    some = start < stop
    return line[some] + across.start, start[some], stop[some]


def _edges(starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
    """Starts and stops of runs [R], interleaved; runs that touch become one."""
    apart = np.append(stops[:-1] != starts[1:], True)[: len(stops)]
    return np.stack([starts[np.roll(apart, 1)], stops[apart]], axis=1).ravel()


# -- targets ---------------------------------------------------------------------------------------------------


def _points(polygon: Any) -> np.ndarray:
    """float64 [points, 2]."""
    values = np.asarray(polygon, np.float64).reshape(-1)
    if len(values) < 6 or len(values) % 2 or not np.isfinite(values).all():
        raise ValueError(
            f"polygon: takes x, y of at least 3 points, all finite, got {len(values)} values: {values[:8].tolist()}"
        )
    return values.reshape(-1, 2)


def _cell_averages(
    low: np.float32, high: np.float32, cells: int, length: int, convention: str
) -> tuple[slice, np.ndarray]:
    """RoIAlign along one direction: (pixels, float32 [cells, pixels]), with ceil(extent / cells) samples a cell.

    Samples more than a pixel outside the image count as zero; others outside take the border's value. In float32 as
    the reference, where samples fall on the threshold.
    """
    offset = np.float32(0.5 if convention == "detectron2" else 0.0)
    low, extent = low - offset, (high - offset) - (low - offset)
    if convention == "torchvision":
        extent = np.maximum(extent, np.float32(1))
    if not (np.isfinite(low) and extent > 0):
        return slice(0, 0), np.zeros((cells, 0), np.float32)
    size = extent / np.float32(cells)
    samples = math.ceil(size)
    within = (np.arange(samples, dtype=np.float32) + np.float32(0.5)) * size / np.float32(samples)
    position = low + np.arange(cells, dtype=np.float32)[:, None] * size + within
    cell = np.broadcast_to(np.arange(cells)[:, None], position.shape)
    known = (position >= -1) & (position <= length)
    position, cell = np.clip(position[known], 0, length - 1), cell[known]
    if not len(position):
        return slice(0, 0), np.zeros((cells, 0), np.float32)
    left = np.floor(position).astype(np.int64)
    right = np.minimum(left + 1, length - 1)
    share = position - left.astype(np.float32)
    start, stop = int(left.min()), int(right.max()) + 1
    weights = np.zeros((cells, stop - start), np.float32)
    np.add.at(weights, (cell, left - start), 1 - share)
    np.add.at(weights, (cell, right - start), share)
    return slice(start, stop), weights / np.float32(samples)


# -- arguments -------------------------------------------------------------------------------------------------


def _check(
    masks: Any, boxes: Any, size: Any, convention: Any
) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    masks, boxes = np.asarray(masks, np.float32), _check_boxes(boxes)
    _check_convention(convention)
    if masks.ndim != 3 or masks.shape[1] != masks.shape[2] or not masks.shape[1]:
        raise ValueError(f"masks: takes probabilities [N, m, m], got shape {list(masks.shape)}")
    if len(masks) != len(boxes):
        raise ValueError(f"{len(masks)} masks for {len(boxes)} boxes: give one a box")
    return np.nan_to_num(masks, nan=0.0, posinf=0.0, neginf=0.0), boxes, _image_size(size)


def _check_boxes(boxes: np.ndarray) -> np.ndarray:
    boxes = np.asarray(boxes, np.float32)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"boxes: takes [N, 4], x1, y1, x2, y2 in pixels, got shape {list(boxes.shape)}")
    return boxes


def _check_convention(convention: str) -> None:
    if convention not in CONVENTIONS:
        raise ValueError(f"convention must be one of {', '.join(map(repr, CONVENTIONS))}, got {convention!r}")


def _check_threshold(threshold: float) -> None:
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold must be above 0 and at most 1, got {threshold!r}")


def _image_size(size: Sequence[int]) -> tuple[int, int]:
    try:
        height, width = (int(side) for side in size)
    except (TypeError, ValueError) as error:
        raise ValueError(f"size: takes (height, width) in pixels, got {size!r}") from error
    if height < 0 or width < 0:
        raise ValueError(f"size: takes (height, width) in pixels, got {size!r}")
    return height, width


def _cells(m: int) -> int:
    if m < 1:
        raise ValueError(f"m: the cells a side of a target must be at least 1, got {m!r}")
    return m
