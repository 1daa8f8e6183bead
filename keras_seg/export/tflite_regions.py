"""RoIAlign and suppression of one image's boxes, with built-in TensorFlow Lite operators alone.

N boxes, h x w bins of a box, C channels, L levels.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from keras_seg.ops import roi_pool
from keras_seg.ops import roi_sampling as sampling
from keras_seg.ops.roi_align import assign_levels

# Numbers of one pixel's row that the boxes of a chunk hold together: with windows of 30 x 30 pixels, 30 MB.
CHUNK = 2**13
REFUSED = -1e30  # the score of a place that holds no box: finite, since products with infinity are not


def pool_regions(
    features: Sequence[tf.Tensor],
    boxes: tf.Tensor,
    strides: Sequence[int],
    output_size: int,
    sampling_ratio: int,
    aligned: bool,
    warp: bool,
) -> tuple[tf.Tensor, tf.Tensor]:
    """`ops.roi_align.multilevel_roi_align` with pool="average", of one image.

    The mean of a bin's samples is a product of weights along y and along x with the window of pixels that the box's samples
    read. Boxes with windows of similar size go together, as many as CHUNK allows; a chunk's window is the largest of
    its boxes': the one shape that is known only when the graph runs.

    Args:
        features: [1, H_l, W_l, C] a level, all sizes known.
        boxes: float32 [N, 4], pixels of the input, N known.
        strides: of the levels; one alone takes all boxes.
        sampling_ratio, aligned: as there. warp: RoIWarp instead.

    Returns: [N, h, w, C] by rising size of the windows, and int32 [N], which box each is of.
    """
    number, channels = boxes.shape[0], features[0].shape[-1]
    if len(features) > 1:
        first = round(math.log2(strides[0]))
        levels = assign_levels(boxes, first, first + len(features) - 1) - first
        scale = tf.gather(tf.constant([1 / stride for stride in strides], tf.float32), levels)[:, None]
    else:
        levels, scale = tf.zeros([number], tf.int32), 1 / strides[0]
    places = sampling.regions(
        features, levels, tf.zeros([number], tf.int32), _place(boxes * scale, aligned, warp), (output_size,) * 2,
        sampling_ratio,
    )  # fmt: skip
    windows = [_window(axis) for axis in places[:2]]
    areas = (windows[0][1] * windows[1][1])[:, 0]
    order = tf.math.top_k(-areas, number).indices
    source = sampling.table(features)
    places = tf.nest.map_structure(lambda values: tf.gather(values, order), places)
    windows = tf.nest.map_structure(lambda values: tf.gather(values, order), windows)
    step = max(16, CHUNK // channels)
    chunks = []
    for start in range(0, number, step):
        rows = slice(start, min(start + step, number))
        here, (y, x) = tf.nest.map_structure(operator.itemgetter(rows), (places, windows))
        (lines, over_y), (columns, over_x) = (
            _taps(axis, window, output_size, sampling_ratio) for axis, window in ((here.y, y), (here.x, x))
        )
        chunk = _combine(source, here, lines, columns, over_y, over_x)
        chunks.append(tf.reshape(chunk, [rows.stop - start, output_size, output_size, channels]))
    return (tf.concat(chunks, 0) if len(chunks) > 1 else chunks[0]), order


def _place(boxes: tf.Tensor, aligned: bool, warp: bool) -> tuple[tf.Tensor, tf.Tensor]:
    """Where boxes [N, 4] in feature pixels start, and how far they go: float32 [N, 2] (y, x)."""
    if warp:
        first, extent = roi_pool.quantise(boxes)
        return first - 0.5, extent
    low, high = boxes[:, :2] - (0.5 if aligned else 0.0), boxes[:, 2:] - (0.5 if aligned else 0.0)
    extent = high - low if aligned else tf.maximum(high - low, 1.0)
    flip = [1, 0]
    return tf.gather(low, flip, axis=1), tf.gather(extent, flip, axis=1)


def _window(axis: sampling.Axis) -> tuple[tf.Tensor, tf.Tensor]:
    """The first pixel that a box's samples may read, and how many: float32 [N, 1]."""
    start, _, size, ratio, length = (values[:, None] for values in axis)
    half = size / tf.maximum(ratio, 1.0) / 2
    extent = axis.size[:, None]
    first, last = (
        tf.floor(tf.clip_by_value(position, 0.0, length - 1))
        for position in (start + half, start + extent - half)
    )
    return tf.minimum(first, last), tf.minimum(tf.abs(last - first) + 2, length)


def _taps(
    axis: sampling.Axis, window: tuple[tf.Tensor, tf.Tensor], bins: int, ratio: int
) -> tuple[tf.Tensor, tf.Tensor]:
    """The pixels along an axis that a chunk's boxes read, int32 [n, T], and their weights in each bin, float32 [n, bins, T]."""
    start, _, size, samples, length = (values[:, None, None] for values in axis)
    first, count = window
    taps = first + tf.range(0.0, tf.reduce_max(count), 1.0)[None]
    most = float(ratio) if ratio else tf.maximum(tf.reduce_max(axis.ratio), 1.0)
    number = tf.range(0.0, most, 1.0)[None, None]
    divisor = tf.maximum(samples, 1.0)
    bin_start = start + sampling.bin_numbers(bins)[None, :, None] * size
    position = bin_start + (number + 0.5) * size / divisor  # [n, bins, R]
    counts = (number < samples) & (position >= -1.0) & (position <= length)
    clamped = tf.clip_by_value(position, 0.0, length - 1)
    pixel = tf.expand_dims(tf.expand_dims(taps, 1), 3)
    distance = tf.abs(tf.expand_dims(clamped, 2) - pixel)  # [n, bins, T, R]
    near = tf.maximum(1.0 - distance, 0.0) * tf.expand_dims(tf.cast(counts, tf.float32), 2)
    weights = tf.reduce_sum(near, -1) / divisor
    return tf.cast(tf.minimum(taps, axis.length[:, None] - 1), tf.int32), weights


def _combine(
    source: tf.Tensor,
    here: sampling.Regions,
    rows: tf.Tensor,
    columns: tf.Tensor,
    over_y: tf.Tensor,
    over_x: tf.Tensor,
) -> tf.Tensor:
    """source: [R, C]; rows, columns: int32 [n, Y], [n, X]; weights [n, h, Y], [n, w, X]. Returns [n, h, w, C]."""
    width = tf.cast(here.x.length, tf.int32)[:, None]
    lines = here.base[:, None] + rows * width
    values = tf.gather(source, tf.expand_dims(lines, 2) + tf.expand_dims(columns, 1))
    n, channels = here.base.shape[0], source.shape[-1]
    bins, y, x = over_y.shape[1], tf.shape(rows)[1], tf.shape(columns)[1]
    lines = tf.matmul(over_y, tf.reshape(values, [n, y, x * channels]))
    return tf.matmul(tf.expand_dims(over_x, 1), tf.reshape(lines, [n, bins, x, channels]))


def inverse(order: tf.Tensor) -> tf.Tensor:
    """The inverse of a permutation, int32 [N]."""
    number = order.shape[0]
    return tf.scatter_nd(order[:, None], tf.range(number), [number])


def suppress(boxes: tf.Tensor, scores: tf.Tensor, iou_threshold: float, most: int) -> tf.Tensor:
    """Which boxes survive non-maximum suppression within their group, bool [G, N].

    boxes: float32 [G, N, 4]; scores: float32 [G, N], of which those at REFUSED are left out; most: survivors of a group. A
    box goes if its overlap with a better one is above the threshold.
    """
    # the operator takes "as much as", too
    above = min(float(np.nextafter(np.float32(iou_threshold), np.float32(2))), 1.0)
    groups, number = scores.shape

    def survivors(boxes: tf.Tensor, scores: tf.Tensor) -> tf.Tensor:
        kept, count = tf.raw_ops.NonMaxSuppressionV4(
            boxes=boxes, scores=scores, max_output_size=min(most, number), iou_threshold=above,
            score_threshold=REFUSED / 2, pad_to_max_output_size=True,
        )  # fmt: skip
        there = tf.cast(tf.range(min(most, number)) < count, tf.int32)
        return tf.scatter_nd(kept[:, None], there, [number]) > 0

    return tf.stack([survivors(boxes[group], scores[group]) for group in range(groups)])
