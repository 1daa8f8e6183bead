"""One annotated image to one item of a batch: decoded, resized, augmented, its objects with it.

The names and the form of an item's entries are those of a batch, which `models.rcnn_training` documents.
"""

from __future__ import annotations

import contextlib
import io
import struct
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from keras_seg.data import run_lengths
from keras_seg.data.annotated_image import AnnotatedImage
from keras_seg.data.detection_geometry import DetectionAugmentation, Geometry, draw_geometry, vary_colours
from keras_seg.data.images import frames_of, read_image, to_float

__all__ = ["ItemOptions", "make_item", "mirrored_keypoints", "open_picture"]

EIGHT_BIT = ("L", "RGB", "P", "1", "LA", "RGBA", "RGBX", "CMYK", "YCbCr")
ORIENTATION = 0x0112  # EXIF's tag
UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    struct.error,
    Image.DecompressionBombError,
)  # what Pillow raises
SIDES = (("left", "right"), ("Left", "Right"), ("LEFT", "RIGHT"))


@dataclass(frozen=True)
class ItemOptions:
    """What `make_item` needs beside the image; the fields are arguments of `data.coco`.

    keypoint_mirror: int [K], of each keypoint the one on the other side; () without keypoints.
    """

    short_side: int | tuple[int, int] | None
    max_side: int
    augment: DetectionAugmentation
    multiple: int
    min_box_side: float
    bitmaps: bool
    polygons: bool
    keypoint_mirror: Sequence[int]
    value_range: tuple[float, float] | None


def make_item(
    annotated: AnnotatedImage,
    options: ItemOptions,
    random: np.random.Generator,
    proposals: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """The image and what of its objects is left, as NumPy arrays of the types and shapes of a batch without its B.

    proposals: float32 [P, 4], x1, y1, x2, y2 in pixels of the image; those of which nothing is left are left out.
    Objects of which less than `min_box_side` pixels are left, or no pixel of the mask, are left out. Raises OSError or
    ValueError if the image cannot be read or has another size than its annotations say.
    """
    picture = open_picture(annotated.file, annotated.name, options.value_range)
    height, width = annotated.size
    if (picture.height, picture.width) != (height, width):
        raise ValueError(
            f"{annotated.name}: the image has {picture.height}x{picture.width} pixels (height x width), its "
            f"annotations "
            f"say {height}x{width}"
        )
    geometry = draw_geometry(annotated.size, options.short_side, options.max_side, options.augment, random)
    rows, columns = (-(-side // options.multiple) * options.multiple for side in geometry.size)
    image = _pixels(picture, geometry, options.augment, random, (rows, columns))
    return {
        "image": image,
        "size": np.array(geometry.size, np.float32),
        "image_id": np.asarray(annotated.image_id, np.int64),
        **_objects(annotated, geometry, options),
        **({} if proposals is None else {"proposals": _moved(proposals, geometry)}),
    }


def open_picture(
    file: Path | bytes, name: str, value_range: tuple[float, float] | None = None
) -> Image.Image:
    """An image file as an 8-bit picture, "L" or "RGB", upright.

    Other types than 8 bit are brought to 0-255 (`images.to_float`) and rounded. Raises FileNotFoundError or ValueError
    beginning with `name`.
    """
    if isinstance(file, Path) and not file.exists():
        raise FileNotFoundError(f"{name}: no such file")
    # of what Pillow cannot read, the other reader says what is wrong
    with (
        contextlib.suppress(*UNREADABLE),
        Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as opened,
    ):
        plain = opened.mode in EIGHT_BIT and opened.format != "TIFF" and frames_of(opened) == 1
        if plain and value_range is None:
            opened.load()
            turned = opened.getexif().get(ORIENTATION, 1) != 1
            upright = ImageOps.exif_transpose(opened) if turned else opened
            if upright.mode not in ("L", "RGB"):
                upright = upright.convert("L" if upright.mode in ("1", "LA") else "RGB")
            return upright
    try:
        pixels = to_float(_read(file), value_range, may_be_constant=True)
    except (OSError, ValueError) as error:
        raise ValueError(f"{name}: {error}") from error
    pixels = np.rint(pixels).astype(np.uint8)
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def mirrored_keypoints(names: Sequence[str]) -> list[int]:
    """Of each keypoint the one that it becomes in a mirror: "left_eye" and "right_eye" change places.

    ValueError: a left one without a right one, or no name that tells sides.
    """
    mirror = []
    for place, name in enumerate(names):
        other = name
        for left, right in SIDES:
            if left in name or right in name:
                other = name.replace(left, right) if left in name else name.replace(right, left)
                break
        if other not in names:
            raise ValueError(f"keypoint {name!r} has no {other!r} on the other side: give keypoint_mirror")
        mirror.append(place if other == name else list(names).index(other))
    if len(names) > 1 and mirror == list(range(len(names))):
        raise ValueError(
            f"keypoints {', '.join(names[:5])}, …: no name says left or right, so mirroring does not know which change "
            "places: give keypoint_mirror, the place of each one's counterpart"
        )
    return mirror


def _moved(proposals: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Boxes [P, 4] through the geometry, clipped to the result, in their order; float32."""
    height, width = geometry.size
    boxes = np.clip(geometry.of_boxes(proposals.astype(np.float64)), 0, [width, height, width, height])
    boxes = boxes.astype(np.float32)
    return boxes[(boxes[:, 2:] > boxes[:, :2]).all(axis=1)]


def _pixels(
    picture: Image.Image,
    geometry: Geometry,
    augment: DetectionAugmentation,
    random: np.random.Generator,
    padded_size: tuple[int, int],
) -> np.ndarray:
    """uint8 [rows, columns, 3]: the picture through the geometry, its colours varied, and zeros around."""
    from keras_seg.ops.native import resize

    plain = not (geometry.cuts or geometry.transpose or geometry.mirror_y or augment.varies_colours)
    if (
        plain
        and picture.mode == "RGB"
        and resize.as_pillow(geometry.original, geometry.resized)
        and resize.available()
    ):
        return resize.resize(np.asarray(picture), geometry.resized, padded_size, mirror=geometry.mirror_x)
    picture = vary_colours(geometry.of_picture(picture), augment, random)
    # padded by Pillow, whose memory is at hand, where a new array of some MB costs more than what is written to it
    return np.asarray(picture.crop((0, 0, *padded_size[::-1])).convert("RGB"))


class _Bitmap(NamedTuple):
    place: tuple[int, int]
    pixels: np.ndarray


def _objects(annotated: AnnotatedImage, geometry: Geometry, options: ItemOptions) -> dict[str, np.ndarray]:
    height, width = geometry.size
    limit = np.array([width, height, width, height], np.float64)
    moved = geometry.of_boxes(annotated.boxes)
    boxes = np.clip(moved, 0, limit)
    points = geometry.of_points(annotated.polygon_points)
    bitmaps = _bitmaps(annotated, geometry) if options.bitmaps else {}
    if geometry.cuts:
        for k in np.flatnonzero((boxes != moved).any(axis=1) & ~annotated.crowd).tolist():
            visible = _visible(k, annotated, points, bitmaps.get(k), (height, width), options)
            if (
                visible is not None
            ):  # within the clipped box, which may be larger than what is left of the object
                boxes[k, :2] = np.maximum(boxes[k, :2], visible[:2])
                boxes[k, 2:] = np.minimum(boxes[k, 2:], visible[2:])
    sides = boxes[:, 2:] - boxes[:, :2]
    keep = (sides > 0).all(axis=1) & (sides >= options.min_box_side).all(axis=1)
    alone = [k for k, bitmap in bitmaps.items() if not bitmap.pixels.size]
    if alone:
        keep[np.setdiff1d(alone, annotated.polygon_objects)] = False
    kept = np.flatnonzero(keep)
    entries = {
        "boxes": boxes[kept].astype(np.float32),
        "classes": annotated.classes[kept],
        "crowd": annotated.crowd[kept],
    }
    if options.bitmaps:
        entries |= _pack([bitmaps.get(k) for k in kept.tolist()])
    if options.polygons:
        entries |= _pack_polygons(annotated, points, keep)
    if len(options.keypoint_mirror):
        entries["keypoints"] = _keypoints(annotated.keypoints[kept], geometry, options.keypoint_mirror)
    return entries


def _bitmaps(annotated: AnnotatedImage, geometry: Geometry) -> dict[int, _Bitmap]:
    """The masks, through the geometry, of the objects given by run lengths; crowds need none."""
    lengths = np.diff(annotated.run_splits)
    chosen = np.flatnonzero((lengths > 0) & ~annotated.crowd)
    if not len(chosen):
        return {}
    characters = annotated.run_lengths[np.repeat((lengths > 0) & ~annotated.crowd, lengths)]
    splits = np.concatenate([[0], np.cumsum(lengths[chosen])])
    windows = run_lengths.windows(characters, splits, annotated.size[0])
    sources = geometry.sources()
    bounds = windows.bounds.tolist()
    return {
        k: _Bitmap(*geometry.of_window((bounds[n][0], bounds[n][1]), windows.bitmap(n), sources))
        for n, k in enumerate(chosen.tolist())
    }


def _visible(
    k: int,
    annotated: AnnotatedImage,
    points: np.ndarray,
    bitmap: _Bitmap | None,
    size: tuple[int, int],
    options: ItemOptions,
) -> np.ndarray | None:
    """x1, y1, x2, y2 of what of object k's mask lies in the image; None if it has no mask, zeros if nothing does."""
    found = []
    has_mask = bitmap is not None
    if bitmap is not None and bitmap.pixels.size:
        (y, x), (height, width) = bitmap.place, bitmap.pixels.shape
        found.append([x, y, x + width, y + height])
    if options.polygons:
        first = np.concatenate([[0], np.cumsum(annotated.polygon_lengths)])
        for p in np.flatnonzero(annotated.polygon_objects == k).tolist():
            has_mask = True
            part = _clip_polygon(points[first[p] : first[p + 1]], size)
            if len(part):
                found.append([*part.min(axis=0), *part.max(axis=0)])
    if not has_mask:
        return None
    if not found:
        return np.zeros(4)
    boxes = np.array(found, np.float64)
    return np.concatenate([boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)])


def _clip_polygon(polygon: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The polygon [n, 2] within the image, by cutting at one border after the other (Sutherland and Hodgman 1974)."""
    for axis, limit, sign in ((0, 0, 1), (0, size[1], -1), (1, 0, 1), (1, size[0], -1)):
        if not len(polygon):
            break
        inside = sign * (polygon[:, axis] - limit)
        following, then = np.roll(polygon, -1, axis=0), np.roll(inside, -1)
        crosses = (inside > 0) != (then > 0)
        with np.errstate(invalid="ignore", divide="ignore"):
            share = inside / (inside - then)
        crossing = polygon + np.where(crosses, share, 0)[:, None] * (following - polygon)
        both = np.stack([polygon, crossing], axis=1)
        polygon = both[np.stack([inside > 0, crosses], axis=1)]
    return polygon


def _pack(bitmaps: Sequence[_Bitmap | None]) -> dict[str, np.ndarray]:
    windows = np.zeros((len(bitmaps), 5), np.int32)
    start = 0
    for row, bitmap in zip(windows, bitmaps, strict=True):
        if bitmap is not None and bitmap.pixels.size:
            row[:] = (start, *bitmap.place, *bitmap.pixels.shape)
            start += bitmap.pixels.size
    pixels = [b.pixels.ravel() for b in bitmaps if b is not None]
    return {
        "mask_pixels": np.concatenate(pixels) if pixels else np.zeros(0, np.uint8),
        "mask_windows": windows,
    }


def _pack_polygons(annotated: AnnotatedImage, points: np.ndarray, keep: np.ndarray) -> dict[str, np.ndarray]:
    """The polygons of the objects that are kept, bool [G], and no crowds; objects are numbered as kept."""
    polygons = (keep & ~annotated.crowd)[annotated.polygon_objects]
    lengths = annotated.polygon_lengths[polygons]
    number = np.cumsum(keep) - 1
    return {
        "polygon_points": points[np.repeat(polygons, annotated.polygon_lengths)],
        "polygon_lengths": lengths.astype(np.int32),
        "polygon_objects": number[annotated.polygon_objects[polygons]].astype(np.int32),
    }


def _keypoints(keypoints: np.ndarray, geometry: Geometry, mirror: Sequence[int]) -> np.ndarray:
    """float32 [G, K, 3]; those not annotated, or no longer in the image, are zero."""
    xy = geometry.of_points(keypoints[..., :2])
    seen = (
        (keypoints[..., 2] > 0) & (xy >= 0).all(axis=-1) & (xy <= np.array(geometry.size[::-1])).all(axis=-1)
    )
    moved = np.concatenate([xy, keypoints[..., 2:]], axis=-1) * seen[..., None]
    if geometry.reverses:
        moved = moved[:, list(mirror)]
    return moved.astype(np.float32)


def _read(file: Path | bytes) -> np.ndarray:
    if not isinstance(file, bytes):
        return read_image(file)
    with tempfile.NamedTemporaryFile() as copy:
        copy.write(file)
        copy.flush()
        try:
            return read_image(copy.name)
        except ValueError as error:
            raise ValueError(str(error).removeprefix(f"{copy.name}: ")) from error
