"""RoIPool: the maximum over whole pixels (Girshick 2015, Section 2.1), what RoIAlign is compared with."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from keras_seg.ops import roi_sampling as sampling


def roi_pool(
    features: tf.Tensor,
    boxes: tf.Tensor,
    box_indices: tf.Tensor,
    output_size: int | tuple[int, int],
    spatial_scale: float,
) -> tf.Tensor:
    """The greatest feature of each bin, torchvision's `roi_pool`.

    A box is rounded to pixels of the feature map, both ends included, and so are its bins, which may overlap.

    Args:
        features: [B, H, W, C], floating point.
        boxes: [N, 4] as (x1, y1, x2, y2), image pixels.
        box_indices: integers [N], each box's image in the batch.
        output_size: bins of a box: a number, or (height, width).
        spatial_scale: feature pixels an image pixel, 1/16 for a stride of 16.

    Returns: [N, h, w, C] of the features' dtype; 0 for bins without a pixel and for boxes with a NaN or an infinity.
    An inverted box counts as its first corner's pixel. The gradient goes to the features alone, to the first greatest
    pixel of each bin (row by row).

    Works in graph mode with dynamic sizes, not under XLA.

    Raises:
        ValueError: for wrong ranks, an unknown number of channels, a bad output size or scale.
    """
    size = sampling.check("roi_pool", [features], boxes, box_indices, output_size)
    scale = sampling.check_scale("roi_pool", spatial_scale)
    boxes, box_indices = sampling.as_boxes(boxes, box_indices)
    return tf.cast(pool_levels([features], None, boxes * scale, box_indices, size), features.dtype)


@sampling.as_graph
def pool_levels(
    features: Sequence[tf.Tensor],
    levels: tf.Tensor | None,
    boxes: tf.Tensor,
    box_indices: tf.Tensor,
    output_size: tuple[int, int],
) -> tf.Tensor:
    """boxes: [N, 4] in pixels of their own level's map."""
    places = sampling.regions(features, levels, box_indices, quantise(boxes), output_size)
    y, x = (_span(axis, bins) for axis, bins in zip(places[:2], output_size, strict=True))

    channels = features[0].shape[-1]

    def maximum(source: tf.Tensor, bins: sampling.Bins) -> tf.Tensor:
        rows, columns = (
            tf.cast(first, tf.int32)[:, None] + tf.range(count)
            for first, count in zip(bins.first, bins.counts, strict=True)
        )
        values = sampling.pixels(source, places.take(bins.roi), rows, columns)
        return sampling.first_maximum(tf.reshape(values, [sampling.sizes(values)[0], -1, channels]))

    return sampling.in_bins(sampling.table(features), y, x, maximum, cost=2 * channels)


def quantise(boxes: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """RoIPool's rounding of boxes [N, 4] in feature pixels: first pixel and number of pixels, float32 [N, 2] (y, x).

    Halves are rounded away from zero; the last pixel is included; there is at least one. A box without finite
    coordinates lies outside.
    """
    finite = tf.reduce_all(tf.abs(boxes) < sampling.FARTHEST, axis=1, keepdims=True)
    rounded = tf.sign(boxes) * tf.floor(tf.abs(boxes) + 0.5)
    start, end = rounded[:, 1::-1], rounded[:, :1:-1]
    start = tf.where(finite, start, sampling.OUTSIDE)
    return start, tf.where(finite, tf.maximum(end - start + 1, 1), 1)


def _span(axis: sampling.Axis, bins: int) -> sampling.Span:
    """Of every bin the pixels within the map."""
    numbers = tf.constant(sampling.bin_numbers(bins))
    length, size = axis.length[:, None], axis.bin[:, None]
    start, stop = (
        tf.clip_by_value(edge + axis.start[:, None], 0.0, length)
        for edge in (tf.floor(numbers * size), tf.math.ceil((numbers + 1) * size))
    )
    return sampling.Span(start, tf.ones_like(start), tf.cast(stop - start, tf.int32))
