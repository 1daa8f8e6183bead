"""Resizing images for detectors exactly as Detectron2 or torchvision does."""

from __future__ import annotations

import numpy as np
from PIL import Image


def shortest_edge_size(
    height: int, width: int, short_side: int, max_side: int, convention: str = "detectron2"
) -> tuple[int, int]:
    """(height, width) at which the shorter side is `short_side`, unless the longer one would exceed `max_side`.

    convention: "detectron2" rounds to the nearest pixel, "torchvision" down; here never to none, which Detectron2 does
    with images 2667 times as long as wide.
    """
    if convention == "torchvision":
        factor = min(short_side / min(height, width), max_side / max(height, width))
        return max(1, int(height * factor)), max(1, int(width * factor))
    scale = short_side / min(height, width)
    # the shorter side is not multiplied: where a half is rounded, its last bit counts
    sides: tuple[float, float]
    sides = (short_side, width * scale) if height < width else (height * scale, short_side)
    if max(sides) > max_side:
        shrink = max_side / max(sides)
        sides = sides[0] * shrink, sides[1] * shrink
    return max(1, int(sides[0] + 0.5)), max(1, int(sides[1] + 0.5))


def resize(image: np.ndarray, size: tuple[int, int], convention: str = "detectron2") -> np.ndarray:
    """image: uint8 [H, W, 3] to float32 [h, w, 3], 0-255; size: (h, w).

    "detectron2": Pillow's bilinear filter, which averages where it shrinks and rounds to whole grey values;
    "torchvision": bilinear between the four nearest pixels, in float32.
    """
    if convention == "detectron2":
        picture = Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR)
        return np.asarray(picture, np.float32)
    rows, columns = (_linear(old, new) for old, new in zip(image.shape[:2], size, strict=True))
    pixels = image.astype(np.float32)
    for axis, (low, high, share) in enumerate((rows, columns)):
        share = share[:, None, None] if axis == 0 else share[None, :, None]
        pixels = pixels.take(low, axis) * (1 - share) + pixels.take(high, axis) * share
    return pixels


def _linear(old: int, new: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each of `new` pixels the two of `old` around its centre, and the share of the second.

    In float32, as PyTorch computes it: its rounding moves pixels by up to 1e-4 of their standard deviation.
    """
    half, scale = np.float32(0.5), np.float32(old) / np.float32(new)
    centre = np.maximum((np.arange(new, dtype=np.float32) + half) * scale - half, 0)
    low = np.minimum(centre.astype(int), old - 1)
    return low, np.minimum(low + 1, old - 1), centre - low.astype(np.float32)
