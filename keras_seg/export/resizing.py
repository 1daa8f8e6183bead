"""`keras_seg.data.resize` as TensorFlow operations, for graphs that run where keras_seg is not: the same numbers."""

from __future__ import annotations

import tensorflow as tf

# Pillow's coefficients are whole numbers of this many bits after the point (Resample.c, PRECISION_BITS).
BITS = 22


def resized_size(
    height: tf.Tensor,
    width: tf.Tensor,
    *,
    short_side: int,
    max_side: int,
    scale: float | None = None,
    convention: str = "detectron2",
) -> tuple[tf.Tensor, tf.Tensor]:
    """(height, width), int32 scalars, at which a detector sees an image of these: `keras_seg.detect.resized_size`."""
    sides = tf.cast(tf.stack([height, width]), tf.float64)  # Python's floats
    if scale is not None:
        new = tf.round(sides * scale)  # halves to even, as Python's
    elif convention == "torchvision":
        new = sides * tf.minimum(short_side / tf.reduce_min(sides), max_side / tf.reduce_max(sides))
    else:
        short = tf.constant(short_side, tf.float64)
        factor = short / tf.reduce_min(sides)
        new = tf.where(sides[0] < sides[1], [short, sides[1] * factor], [sides[0] * factor, short])
        longest = tf.reduce_max(new)
        new = tf.where(longest > max_side, new * (max_side / longest), new) + 0.5
    return tuple(tf.unstack(tf.maximum(tf.cast(new, tf.int32), 1)))


def resize(images: tf.Tensor, size: tuple[tf.Tensor, tf.Tensor], convention: str = "detectron2") -> tf.Tensor:
    """uint8 [B, H, W, 3] to float32 [B, h, w, 3], 0-255; size: (h, w), int32 scalars.

    "detectron2": Pillow's bilinear filter; "torchvision": bilinear between the four nearest pixels. See `data.resize`.
    """
    if convention == "detectron2":
        return _by_pillow(images, size)
    pixels = tf.cast(images, tf.float32)
    for axis, new in ((1, size[0]), (2, size[1])):
        low, high, share = _linear(tf.shape(images)[axis], new)
        share = tf.reshape(share, [-1, 1, 1] if axis == 1 else [-1, 1])
        pixels = tf.gather(pixels, low, axis=axis) * (1 - share) + tf.gather(pixels, high, axis=axis) * share
    return pixels


def _linear(old: tf.Tensor, new: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Of each of `new` pixels the two of `old` around its centre, int32, and the share of the second, float32."""
    scale = tf.cast(old, tf.float32) / tf.cast(new, tf.float32)
    centre = tf.maximum((tf.range(tf.cast(new, tf.float32)) + 0.5) * scale - 0.5, 0)
    low = tf.minimum(tf.cast(centre, tf.int32), old - 1)
    return low, tf.minimum(low + 1, old - 1), centre - tf.cast(low, tf.float32)


def _by_pillow(images: tf.Tensor, size: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
    """Axis by axis, each rounded to whole grey values: the width first, but for images that lose more than twice as much in
    height (Pillow 13; which of them is first changes a value by 1 at most)."""
    lost = tf.shape(images)[1:3] - size
    height_first = (lost[0] > 0) & (lost[0] > 2 * lost[1])
    # the axis that is resampled lies first, so that pixels are read in long pieces
    resized = tf.cond(
        height_first,
        lambda: tf.transpose(_two(tf.transpose(images, [1, 0, 2, 3]), size[0], size[1]), [1, 2, 0, 3]),
        lambda: tf.transpose(_two(tf.transpose(images, [2, 0, 1, 3]), size[1], size[0]), [1, 0, 2, 3]),
    )
    return tf.cast(resized, tf.float32)


def _two(pixels: tf.Tensor, first: tf.Tensor, second: tf.Tensor) -> tf.Tensor:
    """uint8 [n, B, m, 3], resampled on the first axis and then on the third: [second, B, first, 3]."""
    _, batch, other, channels = tf.unstack(tf.shape(pixels))
    pixels = tf.reshape(_resample(pixels, first), [first, batch, other, channels])
    pixels = tf.transpose(pixels, [2, 1, 0, 3])
    return tf.reshape(_resample(pixels, second), [second, batch, first, channels])


def _resample(pixels: tf.Tensor, new: tf.Tensor) -> tf.Tensor:
    """uint8 [n, …] to [new, M]."""
    old = tf.shape(pixels)[0]
    pixels = tf.reshape(pixels, [old, -1])
    first, weights = _coefficients(old, new)

    def add(tap: tf.Tensor, total: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        taken = tf.gather(pixels, tf.minimum(first + tap, old - 1))
        return tap + 1, total + tf.cast(taken, tf.int32) * weights[tap][:, None]

    half = tf.fill([new, tf.shape(pixels)[1]], 1 << (BITS - 1))
    _, total = tf.while_loop(
        lambda tap, _: tap < tf.shape(weights)[0],
        add,
        (0, half),
        (tf.TensorShape([]), tf.TensorShape([None, None])),
        parallel_iterations=1,
    )
    return tf.cast(tf.bitwise.right_shift(total, BITS), tf.uint8)


def _coefficients(old: tf.Tensor, new: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Of each of `new` pixels the first of `old` that counts, int32 [new], and the weights of it and the ones after it in
    units of 2 ** -BITS, int32 [taps, new]; Pillow's precompute_coeffs and normalize_coeffs_8bpc."""
    length = tf.cast(old, tf.float64)
    scale = length / tf.cast(new, tf.float64)
    support = tf.maximum(scale, 1)
    centre = (tf.range(tf.cast(new, tf.float64)) + 0.5) * scale
    # a cast cuts towards zero, as in C
    first = tf.maximum(tf.cast(centre - support + 0.5, tf.int32), 0)
    stop = tf.minimum(tf.cast(centre + support + 0.5, tf.int32), old)
    taps = tf.range(2 * tf.cast(tf.math.ceil(support), tf.int32) + 1)[:, None]
    distance = (tf.cast(taps + first, tf.float64) - centre + 0.5) * (1 / support)
    weights = tf.where(taps < stop - first, tf.maximum(1 - tf.abs(distance), 0), 0)
    weights /= tf.reduce_sum(weights, 0)
    return first, tf.cast(0.5 + weights * 2**BITS, tf.int32)
