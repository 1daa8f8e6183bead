"""`keras_seg.ops.masks.paste` as TensorFlow operations: masks of boxes to masks of images.

B images  N detections of each  m cells a side of a mask  H, W pixels
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from keras_seg.ops.masks import TIE

THRESHOLD = 0.5  # the least probability inside, that of `Instances`


class _Axis(NamedTuple):
    """Masks along one direction, [B, N] each; see `ops.masks._Axis`."""

    first: tf.Tensor  # centre of the first cell, pixels, float64
    spacing: tf.Tensor
    start: tf.Tensor  # the pixels that may be inside, int32
    stop: tf.Tensor


def paste(
    masks: tf.Tensor, boxes: tf.Tensor, count: tf.Tensor, sizes: tf.Tensor, convention: str
) -> tf.Tensor:
    """uint8 [B, N, H, W], 1 where the probability is at least 0.5; H, W: of the largest image.

    masks: float32 [B, N, m, m]; boxes: float32 [B, N, 4], pixels; count: int32 [B], those that are there; sizes: int32
    [B, 2], the images' heights and widths.
    """
    height, width = tf.unstack(tf.reduce_max(sizes, 0))

    def whole(window: tf.Tensor, top: tf.Tensor, left: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
        rows, columns = tf.unstack(tf.shape(window))
        return tf.pad(window, [[top, height - top - rows], [left, width - left - columns]])

    return _each(whole, masks, boxes, count, sizes, convention, [None, None])


def to_bits(
    masks: tf.Tensor, boxes: tf.Tensor, count: tf.Tensor, sizes: tf.Tensor, convention: str
) -> tf.Tensor:
    """`paste`'s masks, column by column as COCO's run lengths count, 8 pixels a byte, the first in its highest bit: uint8
    [B, N, L]. An image's own pixels are its first ceil(H * W / 8) bytes; L is that of the largest image."""
    length = tf.reduce_max(-(-tf.reduce_prod(sizes, 1) // 8))
    powers = tf.constant([[128], [64], [32], [16], [8], [4], [2], [1]], tf.int32)

    def packed(window: tf.Tensor, top: tf.Tensor, left: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
        rows, columns = tf.unstack(tf.shape(window))
        # the columns before and behind the window are no pixels of it
        strip = tf.transpose(tf.pad(window, [[top, size[0] - top - rows], [0, 0]]))
        before = left * size[0]
        bits = tf.pad(tf.reshape(strip, [-1]), [[before % 8, -(before % 8 + columns * size[0]) % 8]])
        values = tf.matmul(tf.cast(tf.reshape(bits, [-1, 8]), tf.int32), powers)[:, 0]
        values = tf.cast(values, tf.uint8)
        return tf.pad(values, [[before // 8, length - before // 8 - tf.size(values)]])

    return _each(packed, masks, boxes, count, sizes, convention, [None])


def _each(
    finish: Callable[..., tf.Tensor],
    masks: tf.Tensor,
    boxes: tf.Tensor,
    count: tf.Tensor,
    sizes: tf.Tensor,
    convention: str,
    shape: list[None],
) -> tf.Tensor:
    """finish(uint8 window [h, w], its top, its left, int32 [2] the image's size) of each mask, stacked: [B, N, …]."""
    batch, number, cells = tf.shape(masks)[0], masks.shape[1], masks.shape[2]
    there = tf.sequence_mask(count, number)
    y, x = (
        _axis(boxes[..., low], boxes[..., low + 2], there, cells, sizes[:, 1 - low, None], convention)
        for low in (1, 0)
    )

    def one(n: tf.Tensor, done: tf.TensorArray) -> tuple[tf.Tensor, tf.TensorArray]:
        place = [n // number, n % number]
        first, spacing, start, stop = (
            [tf.gather_nd(part, place) for part in parts] for parts in zip(y, x, strict=True)
        )
        down, across = (_weights(first[k], spacing[k], start[k], stop[k], cells) for k in (0, 1))
        surface = tf.matmul(
            tf.matmul(down, tf.cast(tf.gather_nd(masks, place), tf.float64)), across, transpose_b=True
        )
        window = tf.cast(surface >= THRESHOLD - TIE, tf.uint8)
        corner = (tf.gather_nd(axis.start, place) for axis in (y, x))
        return n + 1, done.write(n, finish(window, *corner, sizes[place[0]]))

    done = tf.TensorArray(tf.uint8, batch * number, element_shape=shape)
    _, done = tf.while_loop(lambda n, _: n < batch * number, one, (0, done), parallel_iterations=1)
    stacked = done.stack()
    return tf.reshape(stacked, tf.concat([[batch, number], tf.shape(stacked)[1:]], 0))


def _axis(
    low: tf.Tensor, high: tf.Tensor, there: tf.Tensor, cells: int, length: tf.Tensor, convention: str
) -> _Axis:
    """low, high: float32 [B, N], pixels; length: int32 [B, 1], the image's pixels."""
    if convention == "detectron2":
        there &= high > low
        low, high = tf.cast(low, tf.float64), tf.cast(high, tf.float64)
        spacing = (high - low) / cells
        first = low + spacing / 2
        start, stop = tf.cast(tf.floor(low), tf.int32) - 1, tf.cast(tf.math.ceil(high), tf.int32) + 1
    else:
        there &= high >= low
        middle, half = (low + high) / 2, (high - low) / 2 * ((cells + 2) / cells)
        # a cast cuts towards zero, as torchvision does
        start, stop = tf.cast(middle - half, tf.int32), tf.cast(middle + half, tf.int32) + 1
        spacing = tf.cast(stop - start, tf.float64) / (cells + 2)
        first = tf.cast(start, tf.float64) + 1.5 * spacing
    start = tf.where(there, tf.clip_by_value(start, 0, length), 0)
    stop = tf.where(there, tf.maximum(start, tf.minimum(stop, length)), 0)
    return _Axis(first, tf.where(there, spacing, 1), start, stop)


def _weights(
    first: tf.Tensor, spacing: tf.Tensor, start: tf.Tensor, stop: tf.Tensor, cells: int
) -> tf.Tensor:
    """Linear interpolation between cells, float64 [pixels of the window, cells]."""
    pixels = tf.cast(tf.range(start, stop), tf.float64)
    position = (pixels + 0.5 - first) / spacing
    return tf.nn.relu(1 - tf.abs(position[:, None] - tf.range(cells, dtype=tf.float64)))
