"""How an image and its objects are brought to the network's size: one geometry for pixels, boxes, masks and keypoints.

An image is resized, a window of the result is kept, and that is turned or mirrored. The three are drawn once for an
image and then applied to everything, so that image and objects cannot part.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageStat

from keras_seg.data.resize import shortest_edge_size

__all__ = ["NO_AUGMENTATION", "DetectionAugmentation", "Geometry", "draw_geometry", "vary_colours"]

LEFT_RIGHT = Image.Transpose.FLIP_LEFT_RIGHT
TOP_BOTTOM = Image.Transpose.FLIP_TOP_BOTTOM
TRANSPOSE = Image.Transpose.TRANSPOSE


@dataclass(frozen=True)
class DetectionAugmentation:
    """What is varied from image to image. The default, mirroring, is all that the paper does beside the range of sizes
    for keypoints (He et al. 2017, Section 3.1).

    flip: probability of mirroring left to right; left and right keypoints change places.
    turns: turn by a random one of four right angles, and mirror with probability 1/2: for images without an up, as
        of a microscope. `flip` then has no effect.
    zoom: (low, high), a factor on the resized image's sides, drawn log-uniformly.
    large_scale_jitter: (low, high), as (0.1, 2.0): the image is resized to fit into a square of `crop` pixels times a
        factor drawn uniformly, instead of to `short_side`; then cropped (Ghiasi et al. 2021, "Simple Copy-Paste",
        Section 3).
    crop: the largest side of the network's image: of a larger one a random window is taken, after resizing.
    brightness, contrast, saturation: a factor between 1 - x and 1 + x each; contrast is around the mean grey value.
    gamma: the image is raised to a power between 1 / (1 + gamma) and 1 + gamma, on a 0-1 scale.
    """

    flip: float = 0.5
    turns: bool = False
    zoom: tuple[float, float] = (1.0, 1.0)
    large_scale_jitter: tuple[float, float] | None = None
    crop: int | None = None
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    gamma: float = 0.0

    def __post_init__(self) -> None:
        ranges = {"zoom": self.zoom, "large_scale_jitter": self.large_scale_jitter or (1.0, 1.0)}
        for name, (low, high) in ranges.items():
            if not 0 < low <= high:
                raise ValueError(f"{name}: must be (low, high) with 0 < low <= high, got {(low, high)}")
        if self.crop is not None and self.crop < 1:
            raise ValueError(f"crop: must be positive, got {self.crop}")
        if self.large_scale_jitter and self.crop is None:
            raise ValueError("large_scale_jitter: needs crop, the side of the square that it refers to")
        for name in ("flip", "brightness", "contrast", "saturation"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: must lie within 0-1, got {getattr(self, name)}")
        if self.gamma < 0:
            raise ValueError(f"gamma: must be 0 or more, got {self.gamma}")

    @property
    def varies_colours(self) -> bool:
        return any((self.brightness, self.contrast, self.saturation, self.gamma))


NO_AUGMENTATION = DetectionAugmentation(flip=0.0)


class Geometry(NamedTuple):
    """original, resized: (height, width), pixels. window: y, x, height, width of the part of the resized image that is
    kept. Then, in this order: transpose, swap x and y; mirror_x, left to right; mirror_y, top to bottom."""

    original: tuple[int, int]
    resized: tuple[int, int]
    window: tuple[int, int, int, int]
    transpose: bool = False
    mirror_x: bool = False
    mirror_y: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the result."""
        height, width = self.window[2:]
        return (width, height) if self.transpose else (height, width)

    @property
    def reverses(self) -> bool:
        """Whether left becomes right, however turned."""
        return self.transpose ^ self.mirror_x ^ self.mirror_y

    @property
    def cuts(self) -> bool:
        return self.window != (0, 0, *self.resized)

    def of_picture(self, picture: Image.Image) -> Image.Image:
        """An 8-bit picture through the geometry, on Detectron2's pixels (`data.resize`)."""
        y, x, height, width = self.window
        if self.resized == self.original:
            picture = picture.crop((x, y, x + width, y + height)) if self.cuts else picture
        else:
            sy, sx = self.original[0] / self.resized[0], self.original[1] / self.resized[1]
            box = (
                x * sx,
                y * sy,
                min((x + width) * sx, self.original[1]),
                min((y + height) * sy, self.original[0]),
            )
            picture = picture.resize((width, height), Image.Resampling.BILINEAR, box if self.cuts else None)
        for done, method in (
            (self.transpose, TRANSPOSE),
            (self.mirror_x, LEFT_RIGHT),
            (self.mirror_y, TOP_BOTTOM),
        ):
            picture = picture.transpose(method) if done else picture
        return picture

    def of_points(self, points: np.ndarray) -> np.ndarray:
        """float64 [..., 2], x, y in continuous pixels, through the geometry; what is not in the window lies outside."""
        scale = np.array([self.resized[1] / self.original[1], self.resized[0] / self.original[0]])
        moved = points * scale - np.array(self.window[1::-1])
        if self.transpose:
            moved = moved[..., ::-1]
        height, width = self.size
        if self.mirror_x:
            moved = np.stack([width - moved[..., 0], moved[..., 1]], axis=-1)
        if self.mirror_y:
            moved = np.stack([moved[..., 0], height - moved[..., 1]], axis=-1)
        return moved

    def of_boxes(self, boxes: np.ndarray) -> np.ndarray:
        """float64 [G, 4], x1, y1, x2, y2, through the geometry; not clipped."""
        corners = self.of_points(boxes.reshape(-1, 2, 2))
        return np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)

    def sources(self) -> tuple[np.ndarray, np.ndarray]:
        """The row and the column of the original that each row and column of the window takes its mask from."""
        y, x, height, width = self.window
        rows = _nearest(self.original[0], self.resized[0])[y : y + height]
        return rows, _nearest(self.original[1], self.resized[1])[x : x + width]

    def of_window(
        self, place: tuple[int, int], bitmap: np.ndarray, sources: tuple[np.ndarray, np.ndarray]
    ) -> tuple[tuple[int, int], np.ndarray]:
        """A mask [h, w] at (y, x) of the original, zero around, as (y, x) of its tightest window and its pixels there.

        sources: those of `sources()`. Each pixel takes the nearest one, as Detectron2 resizes bitmaps. Empty: (0, 0)
        and [0, 0].
        """
        spans = []
        for start, length, source in zip(place, bitmap.shape, sources, strict=True):
            low, high = np.searchsorted(source, (start, start + length)).tolist()
            spans.append((low, source[low:high] - start))
        (y, rows), (x, columns) = spans
        bitmap = bitmap[rows[:, None], columns]
        if (shrinks := self.resized[0] < self.original[0] or self.resized[1] < self.original[1]) or self.cuts:
            across, down = (np.asarray(bitmap.any(axis=axis)) for axis in (0, 1))
            if not across.any():
                return (0, 0), bitmap[:0, :0]
            if shrinks or not (down[0] and down[-1] and across[0] and across[-1]):
                top, left = int(down.argmax()), int(across.argmax())
                bottom, right = len(down) - int(down[::-1].argmax()), len(across) - int(across[::-1].argmax())
                bitmap, y, x = bitmap[top:bottom, left:right], y + top, x + left
        if self.transpose:
            bitmap, y, x = bitmap.T, x, y
        if self.mirror_x:
            bitmap, x = bitmap[:, ::-1], self.size[1] - x - bitmap.shape[1]
        if self.mirror_y:
            bitmap, y = bitmap[::-1], self.size[0] - y - bitmap.shape[0]
        return (y, x), bitmap


def draw_geometry(
    size: tuple[int, int],
    short_side: int | tuple[int, int] | None,
    max_side: int,
    options: DetectionAugmentation,
    random: np.random.Generator,
) -> Geometry:
    """A random geometry for an image of `size` (height, width).

    short_side: of the resized image, pixels; (low, high): drawn from the whole numbers between; None: not resized.
    max_side: the most that its longer side may have; without effect where short_side is None or with
    large_scale_jitter.
    """
    height, width = size
    if options.large_scale_jitter and options.crop:
        factor = random.uniform(*options.large_scale_jitter) * min(
            options.crop / height, options.crop / width
        )
        resized = _scaled(size, factor)
    elif short_side is None:
        resized = size
    else:
        if not isinstance(short_side, int):
            short_side = int(random.integers(short_side[0], short_side[1] + 1))
        resized = shortest_edge_size(height, width, short_side, max_side)
    if options.zoom != (1.0, 1.0):
        resized = _scaled(resized, np.exp(random.uniform(*np.log(options.zoom))))
    kept = [side if options.crop is None else min(side, options.crop) for side in resized]
    corner = [int(random.integers(0, side - part + 1)) for side, part in zip(resized, kept, strict=True)]
    if options.turns:
        turn = int(random.integers(8))
        flips = bool(turn & 1), bool(turn & 2), bool(turn & 4)
    else:
        flips = False, bool(random.random() < options.flip), False
    return Geometry(size, resized, (corner[0], corner[1], kept[0], kept[1]), *flips)


def vary_colours(
    picture: Image.Image, options: DetectionAugmentation, random: np.random.Generator
) -> Image.Image:
    """Saturation, gamma, brightness and contrast of a picture "L" or "RGB", kept within 0-255."""
    if options.saturation and picture.mode == "RGB":
        factor = random.uniform(1 - options.saturation, 1 + options.saturation)
        picture = Image.blend(picture.convert("L").convert("RGB"), picture, factor)
    if not (options.gamma or options.brightness or options.contrast):
        return picture
    limit = np.log1p(options.gamma)
    curve = 255 * (np.arange(256) / 255) ** np.exp(random.uniform(-limit, limit))
    curve = curve * random.uniform(1 - options.brightness, 1 + options.brightness)
    if options.contrast:
        factor = random.uniform(1 - options.contrast, 1 + options.contrast)
        mean = np.mean(ImageStat.Stat(picture.convert("L")).mean)
        curve = (curve - mean) * factor + mean
    table = np.rint(np.clip(curve, 0, 255)).astype(int).tolist()
    return picture.point(table * len(picture.getbands()))


def _scaled(size: tuple[int, int], factor: float) -> tuple[int, int]:
    return max(1, int(size[0] * factor + 0.5)), max(1, int(size[1] * factor + 0.5))


def _nearest(original: int, resized: int) -> np.ndarray:
    """The pixel of `original` nearest to each of `resized`, int64, rising; Pillow's, whose rounding adds up."""
    step = original / resized
    position = np.full(resized, step)
    position[0] = step * 0.5
    return np.minimum(np.cumsum(position).astype(np.int64), original - 1)
