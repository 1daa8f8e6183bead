"""What one request may ask of an exported model: looked at in the graph, before anything is made for it.

A few bytes can name any number of images of any size: a tensor's message gives one number for all, a file's header claims what
it likes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import tensorflow as tf

if TYPE_CHECKING:
    from keras_seg.models.mask_rcnn import MaskRCNN
    from keras_seg.models.unet import UNet

# By default: pixels of an image, and of all images of a request, that a network sees.
MOST_SEEN, MOST_SEEN_TOGETHER = 2**24, 2**26
MOST_IMAGES = 64
# Bytes of an answer's maps of the images' size; a message of Protocol Buffers holds 2 GiB.
MOST_ANSWERED = 2**30


class Limits(NamedTuple):
    """The most pixels of an image, images of a request, and pixels of all images of a request."""

    pixels: int
    images: int
    request_pixels: int


def limits_of(
    model: UNet | MaskRCNN,
    masks: str,
    most_pixels: int | None = None,
    most_images: int | None = None,
    most_request_pixels: int | None = None,
) -> Limits:
    """The limits that are given, and for None those by default; see `export.saved_model`.

    ValueError: one that is no positive integer, or an image's that is more than a request's.
    """
    given = {
        "most_pixels": most_pixels, "most_images": most_images, "most_request_pixels": most_request_pixels
    }  # fmt: skip
    for name, value in given.items():
        if value is not None and not (isinstance(value, int) and value >= 1):
            raise ValueError(f"saved_model: {name} must be a positive integer, got {value!r}")
    area = (getattr(model, "scale", None) or 1.0) ** 2
    together = most_request_pixels
    if together is None:
        answered = _bytes_of_a_pixel(model, masks)
        together = min(int(MOST_SEEN_TOGETHER / area), int(MOST_ANSWERED / answered) if answered else 2**62)
        together = max(together, most_pixels or 1)
    pixels = most_pixels or min(int(MOST_SEEN / area), together)
    if pixels > together:
        raise ValueError(
            f"saved_model: most_pixels={pixels} of an image are more than most_request_pixels={together} of all images of a "
            "request"
        )
    return Limits(pixels, most_images or MOST_IMAGES, together)


def _bytes_of_a_pixel(model: UNet | MaskRCNN, masks: str) -> float:
    """Of an answer, in what is as large as the images."""
    if hasattr(model, "legal_sizes"):
        return 4 * model.classes
    return {"pasted": model.detections, "bits": model.detections / 8}.get(masks, 0)


def checked(images: tf.Tensor, limits: Limits) -> tf.Tensor:
    """Images [B, H, W, C] as they are. InvalidArgumentError: none, empty ones, or more than the limits allow."""
    shape = tf.shape(images, tf.int64)
    count, height, width = tf.unstack(shape[:3])
    checks = [
        _require(tf.reduce_all(shape > 0), "images: there are none, or they are empty; the shape is", shape),
        _require(
            height * width <= limits.pixels,
            f"images: more than {limits.pixels} pixels an image; the shape is",
            shape,
        ),
        _few(count, limits, "images"),
        _together(count * height * width, limits, "images"),
    ]
    with tf.control_dependencies(checks):
        return tf.identity(images)


def checked_sizes(sizes: tf.Tensor, limits: Limits, *, padded: bool) -> tf.Tensor:
    """Heights and widths of files, int32 [B, 2], as they are. InvalidArgumentError: more than the limits allow.

    padded: whether the answer's maps are all as large as the largest, so that each file counts as that.
    """
    wide = tf.cast(sizes, tf.int64)
    if padded:
        count = tf.size(sizes, tf.int64) // 2
        pixels, what = count * tf.reduce_prod(tf.reduce_max(wide, 0)), ", each as the largest"
    else:
        pixels, what = tf.reduce_sum(tf.reduce_prod(wide, 1)), ""
    with tf.control_dependencies([_together(pixels, limits, f"image_bytes{what}")]):
        return tf.identity(sizes)


def counted(image_bytes: tf.Tensor, limits: Limits) -> tf.Tensor:
    """Files, string [B], as they are. InvalidArgumentError: none, or more than the limits allow."""
    count = tf.size(image_bytes, tf.int64)
    checks = [_require(count > 0, "image_bytes: there are none"), _few(count, limits, "image_bytes")]
    with tf.control_dependencies(checks):
        return tf.identity(image_bytes)


def _few(count: tf.Tensor, limits: Limits, what: str) -> tf.Operation:
    message = f"{what}: more than {limits.images} in a request; send them in several. There are"
    return _require(count <= limits.images, message, count)


def _together(pixels: tf.Tensor, limits: Limits, what: str) -> tf.Operation:
    message = (
        f"{what}: more than {limits.request_pixels} pixels in a request; send them in several. There are"
    )
    return _require(pixels <= limits.request_pixels, message, pixels)


def _require(condition: tf.Tensor, message: str, *values: tf.Tensor) -> tf.Operation:
    return tf.debugging.Assert(condition, [message, *values], summarize=8)
