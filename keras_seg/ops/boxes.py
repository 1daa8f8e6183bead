"""Boxes [x1, y1, x2, y2] in continuous pixels (pixel i covers [i, i + 1)), and how they are coded as deltas.

All work under XLA.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import tensorflow as tf

# Deltas of width and height beyond this would overflow; a box grows at most 1000/16-fold (Detectron2, torchvision).
MAX_LOG_SCALE = math.log(1000 / 16)


def area(boxes: tf.Tensor) -> tf.Tensor:
    """boxes [..., 4] -> [...], square pixels; 0 for an inverted box."""
    x1, y1, x2, y2 = tf.unstack(boxes, axis=-1)
    return tf.maximum(x2 - x1, 0) * tf.maximum(y2 - y1, 0)


def pairwise_iou(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """Intersection over union of all pairs: [N, 4] and [M, 4] -> [N, M]; 0 where two boxes have no area in common."""
    low = tf.maximum(a[:, None, :2], b[None, :, :2])
    high = tf.minimum(a[:, None, 2:], b[None, :, 2:])
    common = tf.reduce_prod(tf.maximum(high - low, 0), -1)
    union = area(a)[:, None] + area(b)[None, :] - common
    return tf.where(common > 0, common / tf.where(common > 0, union, 1), 0)


def clip(boxes: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """boxes [..., 4] within an image; size: [2] or [..., 2], height and width, broadcast against the boxes."""
    height, width = tf.unstack(tf.cast(size, boxes.dtype), axis=-1)
    return tf.clip_by_value(boxes, 0, tf.stack([width, height, width, height], -1))


def encode(anchors: tf.Tensor, boxes: tf.Tensor, weights: Sequence[float] = (1, 1, 1, 1)) -> tf.Tensor:
    """The deltas dx, dy, dw, dh [..., 4] that take anchors [..., 4] to boxes [..., 4] (Girshick et al. 2014, Appendix C).

    weights: factors of the four deltas. Both must have positive sides.
    """
    x, y, width, height = _centres(anchors)
    bx, by, bw, bh = _centres(boxes)
    deltas = (bx - x) / width, (by - y) / height, tf.math.log(bw / width), tf.math.log(bh / height)
    return tf.stack([delta * weight for delta, weight in zip(deltas, weights, strict=True)], -1)


def decode(
    deltas: tf.Tensor,
    anchors: tf.Tensor,
    weights: Sequence[float] = (1, 1, 1, 1),
    clamp: float = MAX_LOG_SCALE,
) -> tf.Tensor:
    """Undoes `encode`: deltas [..., 4] and anchors [..., 4] (broadcast) -> boxes [..., 4].

    clamp: largest dw and dh, after the division by their weights.
    """
    x, y, width, height = _centres(anchors)
    dx, dy, dw, dh = (
        delta / weight for delta, weight in zip(tf.unstack(deltas, axis=-1), weights, strict=True)
    )
    bx, by = dx * width + x, dy * height + y
    bw, bh = tf.exp(tf.minimum(dw, clamp)) * width, tf.exp(tf.minimum(dh, clamp)) * height
    return tf.stack([bx - bw / 2, by - bh / 2, bx + bw / 2, by + bh / 2], -1)


def _centres(boxes: tf.Tensor) -> tuple[tf.Tensor, ...]:
    """Centre x, centre y, width, height, each [...]."""
    x1, y1, x2, y2 = tf.unstack(boxes, axis=-1)
    width, height = x2 - x1, y2 - y1
    return x1 + width / 2, y1 + height / 2, width, height
