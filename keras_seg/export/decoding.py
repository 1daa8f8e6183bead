"""JPEG and PNG files to pixels, and checks of both, as TensorFlow operations: as `keras_seg.segment` reads files."""

from __future__ import annotations

import tensorflow as tf

from keras_seg.export.orientation import orientation, upright
from keras_seg.overlap_tile import LUMA

PNG = b"\x89PNG\r\n\x1a\n"
PNG_HEADER = 33  # bytes: the signature and the first chunk, which says how large the image is
GREY_16 = 16, 0  # bits of a channel and colour type


def decode(contents: tf.Tensor, most_pixels: int) -> tf.Tensor:
    """A JPEG or PNG file, a scalar string, to float32 [H, W, 1] or [H, W, 3], 0-255.

    The EXIF orientation of a JPEG is applied, alpha is dropped, grey of 16 bits scaled to 255 / 65535.

    InvalidArgumentError: another format, a damaged file, a JPEG with four colours, or more than `most_pixels`, which are not
    decoded.
    """
    start = tf.strings.substr(contents, 0, 8)
    is_jpeg = tf.io.is_jpeg(contents)
    neither = "the bytes are neither a JPEG nor a PNG file; the first of them are"
    known = tf.debugging.Assert(is_jpeg | (start == PNG), [neither, tf.io.decode_raw(start, tf.uint8)], 8)
    with tf.control_dependencies([known]):
        return tf.cond(
            is_jpeg, lambda: _from_jpeg(contents, most_pixels), lambda: _from_png(contents, most_pixels)
        )


def checked(images: tf.Tensor, most_pixels: int) -> tf.Tensor:
    """Images [B, H, W, C] as they are. InvalidArgumentError: none, empty ones, or ones of more than `most_pixels`."""
    shape = tf.shape(images, tf.int64)
    checks = [
        tf.debugging.Assert(
            tf.reduce_all(shape > 0), ["images: there are none, or they are empty; the shape is", shape], 4
        ),
        tf.debugging.Assert(
            shape[1] * shape[2] <= most_pixels,
            [f"images: more than {most_pixels} pixels an image; the shape is", shape],
            4,
        ),
    ]
    with tf.control_dependencies(checks):
        return tf.identity(images)


def as_rgb(image: tf.Tensor) -> tf.Tensor:
    """What `decode` gives as float32 [H, W, 3]; grey is repeated."""
    return tf.ensure_shape(tf.tile(image, [1, 1, 3 // tf.shape(image)[2]]), [None, None, 3])


def as_grey(image: tf.Tensor) -> tf.Tensor:
    """What `decode` gives as float32 [H, W, 1]; colours by their luma."""
    grey = tf.cond(tf.shape(image)[2] == 3, lambda: tf.tensordot(image, LUMA, [[2], [0]]), lambda: image)
    return tf.ensure_shape(grey, [None, None, 1])


def _from_jpeg(contents: tf.Tensor, most_pixels: int) -> tf.Tensor:
    shape = tf.image.extract_jpeg_shape(contents)
    colours = tf.debugging.Assert(
        shape[2] != 4, ["a JPEG of four colours (CMYK), which is not read here: convert it to RGB"]
    )
    with tf.control_dependencies([_small(shape[:2], most_pixels), colours]):
        contents = tf.identity(contents)
    # as Pillow decodes
    image = tf.io.decode_jpeg(contents, fancy_upscaling=True, dct_method="INTEGER_ACCURATE")
    return upright(tf.cast(image, tf.float32), orientation(contents))


def _from_png(contents: tf.Tensor, most_pixels: int) -> tf.Tensor:
    whole = tf.debugging.Assert(
        tf.strings.length(contents) >= PNG_HEADER,
        ["a PNG file that ends in its header; its bytes are", tf.strings.length(contents)],
    )
    with tf.control_dependencies([whole]):
        size = tf.io.decode_raw(tf.strings.substr(contents, 16, 8), tf.int32, little_endian=False)[::-1]
        kind = tf.io.decode_raw(tf.strings.substr(contents, 24, 2), tf.uint8)
    with tf.control_dependencies([_small(size, most_pixels)]):
        contents = tf.identity(contents)
    image = tf.cond(
        tf.reduce_all(kind == GREY_16),
        lambda: tf.cast(tf.io.decode_png(contents, dtype=tf.uint16), tf.float32) * (255 / 65535),
        lambda: tf.cast(tf.io.decode_png(contents), tf.float32),
    )
    return image[..., : tf.where(tf.shape(image)[2] < 3, 1, 3)]


def _small(size: tf.Tensor, most_pixels: int) -> tf.Operation:
    """size: int32 [2], as a file's header says."""
    height, width = tf.unstack(tf.cast(size, tf.int64), 2)
    small = (height > 0) & (width > 0) & (height * width <= most_pixels)
    return tf.debugging.Assert(
        small, [f"an image of more than {most_pixels} pixels: height and width are", size]
    )
