"""Pillow's bilinear resizing of RGB images to the bit, several times as fast, mirrored and padded on the way."""

from __future__ import annotations

import ctypes
from typing import cast

import numpy as np

from keras_seg.ops.native import library

ALIGNMENT = 64  # of memory that TensorFlow takes over without copying


def available() -> bool:
    """Whether there is a compiled library; found or built on the first call."""
    try:
        library.get()
    except library.Unavailable:
        return False
    return True


def as_pillow(size: tuple[int, int], new_size: tuple[int, int]) -> bool:
    """Whether `resize` from size to new_size, both (height, width), gives what every release of Pillow gives.

    Not where the height loses more than twice what the width loses: releases differ in which of the two comes first.
    """
    lost, lost_across = size[0] - new_size[0], size[1] - new_size[1]
    return size != new_size and not (lost > 0 and lost > 2 * lost_across)


def resize(
    image: np.ndarray, new_size: tuple[int, int], padded_size: tuple[int, int], *, mirror: bool = False
) -> np.ndarray:
    """uint8 [H, W, 3] to [rows, columns, 3] of padded_size: the image at new_size (height, width), mirrored left to right if
    asked for, and zeros to its right and below.

    Raises ValueError for another type or shape, an empty size and one that does not fit; Unavailable; MemoryError.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"image: must be uint8 [H, W, 3], got {image.dtype} {list(image.shape)}")
    if min(*image.shape[:2], *new_size) < 1 or any(p < n for p, n in zip(padded_size, new_size, strict=True)):
        raise ValueError(
            f"sizes must be positive and fit into the padded one, got {image.shape[:2]}, {new_size}, {padded_size}"
        )
    image = np.ascontiguousarray(image)
    shape = (*padded_size, 3)
    memory = np.empty(int(np.prod(shape)) + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    padded = memory[start : start + memory.size - ALIGNMENT].reshape(shape)
    done = cast(ctypes.CDLL, library.get().functions).keras_seg_resize(
        image.ctypes.data, *image.shape[:2], *new_size, mirror, padded.ctypes.data, *padded_size
    )
    if not done:
        raise MemoryError(f"resizing an image of {image.shape[:2]} to {new_size}")
    return padded
