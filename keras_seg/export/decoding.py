"""JPEG and PNG files to pixels, as TensorFlow operations: as `keras_seg.segment` reads files."""

from __future__ import annotations

import tensorflow as tf

from keras_seg.export import limits as limits_
from keras_seg.export.limits import Limits
from keras_seg.export.orientation import orientation, upright, upright_size
from keras_seg.overlap_tile import LUMA

PNG = b"\x89PNG\r\n\x1a\n"
PNG_HEADER = 33  # bytes: the signature and the first chunk, which says how large the image is
GREY_16 = 16, 0  # bits of a channel and colour type


def checked(image_bytes: tf.Tensor, limits: Limits, *, padded: bool = False) -> tuple[tf.Tensor, tf.Tensor]:
    """JPEG or PNG files, string [B], as they are, and the heights and widths of their images, int32 [B, 2], as `decode` gives
    them. Only headers are read.

    InvalidArgumentError: no files, another format, a JPEG with four colours, an image of no pixels, or more than the limits
    allow; padded: see `limits.checked_sizes`.
    """
    files = limits_.counted(image_bytes, limits)
    size = tf.TensorSpec([2], tf.int32)
    sizes = tf.map_fn(
        lambda contents: _size(contents, limits.pixels),
        files,
        parallel_iterations=1,
        fn_output_signature=size,
    )
    sizes = limits_.checked_sizes(sizes, limits, padded=padded)
    with tf.control_dependencies([sizes]):
        return tf.identity(files), sizes


def decode(contents: tf.Tensor) -> tf.Tensor:
    """A JPEG or PNG file of `checked`, a scalar string, to float32 [H, W, 1] or [H, W, 3], 0-255.

    The EXIF orientation of a JPEG is applied, alpha is dropped, grey of 16 bits scaled to 255 / 65535.
    InvalidArgumentError: a damaged file.
    """
    return tf.cond(tf.io.is_jpeg(contents), lambda: _from_jpeg(contents), lambda: _from_png(contents))


def as_rgb(image: tf.Tensor) -> tf.Tensor:
    """What `decode` gives as float32 [H, W, 3]; grey is repeated."""
    return tf.ensure_shape(tf.tile(image, [1, 1, 3 // tf.shape(image)[2]]), [None, None, 3])


def as_grey(image: tf.Tensor) -> tf.Tensor:
    """What `decode` gives as float32 [H, W, 1]; colours by their luma."""
    grey = tf.cond(tf.shape(image)[2] == 3, lambda: tf.tensordot(image, LUMA, [[2], [0]]), lambda: image)
    return tf.ensure_shape(grey, [None, None, 1])


def _from_jpeg(contents: tf.Tensor) -> tf.Tensor:
    # as Pillow decodes
    image = tf.io.decode_jpeg(contents, fancy_upscaling=True, dct_method="INTEGER_ACCURATE")
    return upright(tf.cast(image, tf.float32), orientation(contents))


def _from_png(contents: tf.Tensor) -> tf.Tensor:
    kind = tf.io.decode_raw(tf.strings.substr(contents, 24, 2), tf.uint8)
    image = tf.cond(
        tf.reduce_all(kind == GREY_16),
        lambda: tf.cast(tf.io.decode_png(contents, dtype=tf.uint16), tf.float32) * (255 / 65535),
        lambda: tf.cast(tf.io.decode_png(contents), tf.float32),
    )
    return image[..., : tf.where(tf.shape(image)[2] < 3, 1, 3)]


def _size(contents: tf.Tensor, most_pixels: int) -> tf.Tensor:
    """Height and width that a file's header gives, int32 [2]."""
    start = tf.strings.substr(contents, 0, 8)
    is_jpeg = tf.io.is_jpeg(contents)
    neither = "the bytes are neither a JPEG nor a PNG file; the first of them are"
    known = tf.debugging.Assert(is_jpeg | (start == PNG), [neither, tf.io.decode_raw(start, tf.uint8)], 8)
    with tf.control_dependencies([known]):
        size = tf.cond(is_jpeg, lambda: _size_of_jpeg(contents), lambda: _size_of_png(contents))
    height, width = tf.unstack(tf.cast(size, tf.int64), 2)
    small = (height > 0) & (width > 0) & (height * width <= most_pixels)
    message = f"an image of more than {most_pixels} pixels, or of none: height and width are"
    with tf.control_dependencies([tf.debugging.Assert(small, [message, size])]):
        return tf.identity(size)


def _size_of_jpeg(contents: tf.Tensor) -> tf.Tensor:
    shape = tf.image.extract_jpeg_shape(contents)
    message = "a JPEG of four colours (CMYK), which is not read here: convert it to RGB"
    with tf.control_dependencies([tf.debugging.Assert(shape[2] != 4, [message])]):
        return upright_size(shape[:2], orientation(contents))


def _size_of_png(contents: tf.Tensor) -> tf.Tensor:
    length = tf.strings.length(contents)
    message = "a PNG file that ends in its header; its bytes are"
    with tf.control_dependencies([tf.debugging.Assert(length >= PNG_HEADER, [message, length])]):
        size = tf.strings.substr(contents, 16, 8)
    return tf.ensure_shape(tf.reverse(tf.io.decode_raw(size, tf.int32, little_endian=False), [0]), [2])
