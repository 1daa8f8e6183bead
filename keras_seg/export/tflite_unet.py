"""A U-Net for one image at a time, mirrored borders and all, with built-in TensorFlow Lite operators."""

from __future__ import annotations

from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from keras_seg import overlap_tile
from keras_seg.export.tflite_networks import Treatment, network
from keras_seg.models.unet import UNet


def check_size(height: int | None, width: int | None) -> None:
    """ValueError: sides that are not positive, or one given and the other not."""
    if (height is None) != (width is None):
        raise ValueError(f"tflite: height and width go together, got {height!r} and {width!r}")
    for name, side in (("height", height), ("width", width)):
        if side is not None and (not isinstance(side, int) or side < 1):
            raise ValueError(f"tflite: {name} must be a positive integer, got {side!r}")


def legal_sides(model: UNet) -> tuple[int, int, int]:
    """Of images for a model whose input is resizable: sides are the first number or so many times the second more, and not
    below the third: mirroring needs pixels."""
    multiple, border = 2**model.depth, overlap_tile.border_of(model)
    legal = [size - 2 * border for size in model.legal_sizes(4 * border + multiple) if size is not None]
    remainder = legal[0] % multiple
    least = border + 1 + (remainder - border - 1) % multiple
    return remainder, multiple, least


def segmenter(
    model: UNet, height: int | None, width: int | None, treatment: Treatment | None = None
) -> Callable[[tf.Tensor], dict[str, tf.Tensor]]:
    """A function from images uint8 [1, H, W, C] to {"probabilities": float32 [1, H, W, K]}, to be traced.

    The image is continued by mirroring and computed at once: the numbers of `segment(model, image, rotations=1)`. Fixed
    sides may be any; with None they are free within `legal_sides`.
    """
    exact = overlap_tile.without_surplus(model)
    functional, surplus = network(exact, treatment, model.name), _surplus(model, exact)
    border = overlap_tile.border_of(model)

    def segment(images: tf.Tensor) -> dict[str, tf.Tensor]:
        if height is None or width is None:
            x = tf.cast(images, tf.float32)
            y = functional(tf.pad(x, [[0, 0], [border, border], [border, border], [0, 0]], "REFLECT"))
            return {"probabilities": y[:, surplus:-surplus, surplus:-surplus] if surplus else y}
        for axis, side in ((1, height), (2, width)):
            # mirrored by so much more at its end that the size is legal
            places = np.arange(-border, _with_border(model, side) - border)
            images = tf.gather(images, overlap_tile.mirrored(places, side).astype(np.int32), axis=axis)
        y = functional(tf.cast(images, tf.float32))
        return {"probabilities": y[:, surplus : surplus + height, surplus : surplus + width]}

    return segment


def _with_border(model: UNet, side: int) -> int:
    """The least legal input side for so many pixels of output."""
    return model.legal_sizes(side + 2 * overlap_tile.border_of(model))[1]


def _surplus(model: UNet, functional: keras.Model) -> int:
    """Pixels that the functional model's output exceeds the image by on each side."""
    side = _with_border(model, 1)
    given = functional(tf.zeros([1, side, side, model.input_channels])).shape[1]
    return (given - (side - 2 * overlap_tile.border_of(model))) // 2
