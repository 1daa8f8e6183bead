"""Keypoints and heatmaps (He et al. 2017, Section 5, Mask R-CNN for human pose estimation), in TensorFlow.

N boxes  K keypoints  m cells a side of a heatmap
"""

from __future__ import annotations

import tensorflow as tf

__all__ = ["decode_heatmaps", "keypoint_targets"]

CUBIC = -0.75  # the coefficient of bicubic interpolation, PyTorch's
MAPS_AT_ONCE = 4  # each takes up to H * W * K floats for a box as large as the image
SCORES = ("probability", "logit")
# Bicubic interpolation overshoots, logits of some hundreds by so much that a score's divisor vanishes.
SMALLEST = 1e-37


def decode_heatmaps(logits: tf.Tensor, boxes: tf.Tensor, score: str = "probability") -> tf.Tensor:
    """The most likely place of each keypoint: float32 [N, K, 3] of x, y (pixels) and score.

    The heatmap is enlarged to the box's size in whole pixels by bicubic interpolation, and its largest value taken; of
    equal ones the first, row by row.

    Args:
        logits: float [N, m, m, K]; K must be known when the graph is built.
        boxes: float [N, 4], x1, y1, x2, y2, pixels. One narrower than a pixel is taken as a pixel wide.
        score: "probability": exp(largest value) over the sum of exp over the m * m cells, Detectron2's, which may exceed 1
            (the largest value lies between the cells) and is finite here; "logit": the largest value itself,
            torchvision's.

    Works in graph mode with any N, 0 included; not under XLA (the enlarged map has the box's size). Memory is that of a
    few boxes' enlarged maps.

    Raises:
        ValueError: for other shapes or another score.
    """
    if score not in SCORES:
        raise ValueError(
            f"decode_heatmaps: score must be one of {', '.join(map(repr, SCORES))}, got {score!r}"
        )
    logits, boxes = tf.cast(logits, tf.float32), tf.cast(boxes, tf.float32)
    if logits.shape.rank != 4 or logits.shape[-1] is None:
        raise ValueError(f"decode_heatmaps: logits must be [N, m, m, K] with K known, got {logits.shape}")
    _check_boxes("decode_heatmaps", boxes)
    extent = boxes[:, 2:] - boxes[:, :2]
    # a box that is not finite must not ask for a map of any size
    extent = tf.maximum(tf.where(tf.math.is_finite(extent), extent, 1.0), 1.0)
    pixels = tf.math.ceil(extent)

    def largest(arguments):
        heatmap, (width, height) = arguments[0], tf.unstack(tf.cast(arguments[1], tf.int32))
        rows = bicubic(height, tf.shape(heatmap)[0])
        columns = bicubic(width, tf.shape(heatmap)[1])
        enlarged = tf.linalg.matmul(tf.einsum("hy,yxk->khx", rows, heatmap), columns, transpose_b=True)
        y = tf.argmax(tf.reduce_max(enlarged, axis=2), axis=1)  # faster than argmax over the whole map
        line = tf.gather(enlarged, y, batch_dims=1)
        cell = tf.cast(tf.stack([tf.argmax(line, axis=1), y], axis=1), tf.float32)
        return tf.concat([cell, tf.reduce_max(line, axis=1, keepdims=True)], axis=1)

    found = tf.map_fn(
        largest,
        (logits, pixels),
        fn_output_signature=tf.TensorSpec([logits.shape[-1], 3], tf.float32),
        parallel_iterations=1 if tf.executing_eagerly() else MAPS_AT_ONCE,
    )
    cell, peak = found[..., :2], found[..., 2]
    xy = boxes[:, None, :2] + (cell + 0.5) * (extent / pixels)[:, None]
    if score == "probability":
        total = tf.reduce_sum(tf.exp(logits - peak[:, None, None]), axis=[1, 2])
        peak = 1 / tf.maximum(total, SMALLEST)
    return tf.concat([xy, peak[..., None]], axis=-1)


def keypoint_targets(keypoints: tf.Tensor, boxes: tf.Tensor, m: int) -> tuple[tf.Tensor, tf.Tensor]:
    """The heatmap cell of each keypoint: (index int32 [N, K], y * m + x; valid bool [N, K]).

    keypoints: float [N, K, 3] of x, y (pixels) and visibility; boxes: float [N, 4]; m: cells a side. Valid are
    keypoints with a visibility above 0 inside their box; one on its right or lower edge counts to the last cell. The
    index of the others is 0. Works under XLA. ValueError for other shapes.
    """
    keypoints, boxes = tf.cast(keypoints, tf.float32), tf.cast(boxes, tf.float32)
    if keypoints.shape.rank != 3 or keypoints.shape[-1] not in (3, None):
        raise ValueError(f"keypoint_targets: keypoints must be [N, K, 3], got {keypoints.shape}")
    _check_boxes("keypoint_targets", boxes)
    low, high = boxes[:, None, :2], boxes[:, None, 2:]
    extent = high - low
    scale = tf.math.divide_no_nan(float(m), extent)
    xy = keypoints[..., :2]
    cell = tf.where(xy == high, m - 1.0, tf.floor((xy - low) * scale))
    within = (cell >= 0) & (cell < m) & (extent > 0)
    valid = tf.reduce_all(within, axis=-1) & (keypoints[..., 2] > 0)
    cell = tf.cast(tf.where(valid[..., None], cell, 0.0), tf.int32)
    return cell[..., 1] * m + cell[..., 0], valid


def bicubic(pixels: tf.Tensor, cells: tf.Tensor) -> tf.Tensor:
    """Bicubic interpolation of `cells` values at `pixels` places, float32 [pixels, cells]; cells beyond the border take
    its value."""
    scale = tf.cast(cells, tf.float32) / tf.cast(pixels, tf.float32)
    position = (tf.range(tf.cast(pixels, tf.float32)) + 0.5) * scale - 0.5
    left = tf.floor(position)
    share = position - left
    weights = tf.zeros([pixels, cells])
    for tap in (-1, 0, 1, 2):
        distance = tf.abs(share - tap)
        if tap in (0, 1):
            weight = ((CUBIC + 2) * distance - (CUBIC + 3)) * distance**2 + 1
        else:
            weight = CUBIC * (((distance - 5) * distance + 8) * distance - 4)
        cell = tf.clip_by_value(tf.cast(left, tf.int32) + tap, 0, cells - 1)
        weights += weight[:, None] * tf.one_hot(cell, cells)
    return weights


def _check_boxes(name: str, boxes: tf.Tensor) -> None:
    if boxes.shape.rank != 2 or boxes.shape[-1] not in (4, None):
        raise ValueError(f"{name}: boxes must be [N, 4], got {boxes.shape}")
