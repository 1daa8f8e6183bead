"""JPEG and PNG files to pixels, and checks of both, as TensorFlow operations."""

from __future__ import annotations

import tensorflow as tf

from keras_seg.overlap_tile import LUMA

PNG = b"\x89PNG\r\n\x1a\n"


def decode(contents: tf.Tensor, most_pixels: int) -> tf.Tensor:
    """A JPEG or PNG file, a scalar string, to uint8 [H, W, 1] or [H, W, 3]; alpha is dropped.

    InvalidArgumentError: another format, a damaged file, or more than `most_pixels`, which are not decoded.
    """
    size = _size(contents)
    fits = tf.reduce_prod(tf.cast(size, tf.int64)) <= most_pixels
    too_large = f"the image has more than {most_pixels} pixels; its height and width are"
    with tf.control_dependencies([tf.debugging.Assert(fits, [too_large, size])]):
        contents = tf.identity(contents)
    image = tf.cond(
        tf.io.is_jpeg(contents),
        # as Pillow decodes
        lambda: tf.io.decode_jpeg(contents, fancy_upscaling=True, dct_method="INTEGER_ACCURATE"),
        lambda: tf.io.decode_png(contents),
    )
    return image[..., : tf.where(tf.shape(image)[2] < 3, 1, 3)]


def checked(images: tf.Tensor, most_pixels: int) -> tf.Tensor:
    """Images [B, H, W, C] as they are. InvalidArgumentError: none, empty ones, or ones of more than `most_pixels`."""
    shape = tf.shape(images, tf.int64)
    checks = [
        tf.debugging.Assert(
            tf.reduce_all(shape > 0), ["images: there are none, or they are empty; the shape is", shape]
        ),
        tf.debugging.Assert(
            shape[1] * shape[2] <= most_pixels,
            [f"images: more than {most_pixels} pixels an image; the shape is", shape],
        ),
    ]
    with tf.control_dependencies(checks):
        return tf.identity(images)


def as_rgb(image: tf.Tensor) -> tf.Tensor:
    """What `decode` gives as uint8 [H, W, 3]; grey is repeated."""
    return tf.ensure_shape(tf.tile(image, [1, 1, 3 // tf.shape(image)[2]]), [None, None, 3])


def as_grey(image: tf.Tensor) -> tf.Tensor:
    """What `decode` gives as float32 [H, W, 1]; colours by their luma."""
    pixels = tf.cast(image, tf.float32)
    grey = tf.cond(tf.shape(image)[2] == 3, lambda: tf.tensordot(pixels, LUMA, [[2], [0]]), lambda: pixels)
    return tf.ensure_shape(grey, [None, None, 1])


def _size(contents: tf.Tensor) -> tf.Tensor:
    """Height and width that a file gives in its header: int32 [2]."""
    start = tf.strings.substr(contents, 0, 8)
    is_jpeg = tf.io.is_jpeg(contents)
    neither = "the bytes are neither a JPEG nor a PNG file; the first of them are"
    known = tf.debugging.Assert(is_jpeg | (start == PNG), [neither, tf.io.decode_raw(start, tf.uint8)])
    with tf.control_dependencies([known]):
        return tf.cond(
            is_jpeg, lambda: tf.image.extract_jpeg_shape(contents)[:2], lambda: _png_size(contents)
        )


def _png_size(contents: tf.Tensor) -> tf.Tensor:
    whole = tf.debugging.Assert(tf.strings.length(contents) >= 33, ["a truncated PNG file"])
    with tf.control_dependencies([whole]):
        header = tf.strings.substr(contents, 16, 8)  # width, height
    return tf.io.decode_raw(header, tf.int32, little_endian=False)[::-1]
