"""Anchors: the boxes that a region proposal network starts from (Ren et al. 2015, Section 3.1.1)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf


def cell_anchors(sizes: Sequence[float], ratios: Sequence[float], rounded: bool = False) -> np.ndarray:
    """The anchors around the origin, float32 [len(sizes) * len(ratios), 4].

    sizes: square roots of the areas, in pixels. ratios: height over width. rounded: to whole pixels, as torchvision
    does. Detectron2's order: for each size, all ratios; torchvision's is the same for one size a level.

    Raises:
        ValueError: a size or a ratio that is not positive.
    """
    if not all(value > 0 for value in (*sizes, *ratios)):
        raise ValueError(f"cell_anchors: sizes and ratios must be positive, got {[*sizes]} and {[*ratios]}")
    anchors = []
    for size in sizes:
        for ratio in ratios:
            if rounded:
                # torchvision computes in float32: size * sqrt(ratio)
                height = np.float32(np.sqrt(np.float32(ratio))) * np.float32(size)
                width = np.float32(1 / np.sqrt(np.float32(ratio))) * np.float32(size)
            else:
                width = np.sqrt(size**2 / ratio)
                height = ratio * width
            anchors.append([-width / 2, -height / 2, width / 2, height / 2])
    result = np.array(anchors, np.float32)
    return np.round(result) if rounded else result


def grid_anchors(
    cell: np.ndarray,
    height: tf.Tensor | int,
    width: tf.Tensor | int,
    stride: int | tuple[tf.Tensor | int, tf.Tensor | int],
    offset: float = 0.0,
) -> tf.Tensor:
    """The cell's anchors at every place of a feature map [height, width]: float32 [height * width * A, 4], by y, x, anchor.

    stride: pixels of the image a step, or (down, across). offset: of the first cell, in strides. Under XLA height and
    width must be static.
    """
    down, across = (
        tf.cast(step, tf.float32) for step in (stride if isinstance(stride, tuple) else (stride, stride))
    )
    y = (tf.range(height, dtype=tf.float32) + offset) * down
    x = (tf.range(width, dtype=tf.float32) + offset) * across
    y, x = tf.meshgrid(y, x, indexing="ij")
    shifts = tf.stack([x, y, x, y], -1)
    return tf.reshape(shifts[:, :, None] + cell, [-1, 4])
