"""A U-Net for images of any size, as TensorFlow functions for a SavedModel: `overlap_tile` and `segment` in the graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import tensorflow as tf

from keras_seg import overlap_tile
from keras_seg.export import decoding, limits
from keras_seg.export.decoding import as_grey, as_rgb, decode
from keras_seg.export.folding import folded
from keras_seg.export.limits import Limits

if TYPE_CHECKING:
    from keras_seg.models.unet import UNet


def signatures(
    model: UNet, most: Limits, *, winograd: bool = True
) -> dict[str, tf.types.experimental.ConcreteFunction]:
    """The functions of `export.saved_model`'s signatures; "encoded_images" for grey and RGB models alone."""
    channels = model.input_channels
    probabilities = _whole_images(model, winograd)
    floats = tf.TensorSpec([None, None, None, channels], tf.float32, name="images")
    pixels = tf.TensorSpec([None, None, None, channels], tf.uint8, name="images")
    files = tf.TensorSpec([None], tf.string, name="image_bytes")

    @tf.function(input_signature=[pixels], autograph=False)
    def serving_default(images: tf.Tensor) -> dict[str, tf.Tensor]:
        images = limits.checked(images, most)
        return {"probabilities": probabilities(tf.cast(images, tf.float32))}

    @tf.function(input_signature=[floats], autograph=False)
    def float_images(images: tf.Tensor) -> dict[str, tf.Tensor]:
        images = limits.checked(images, most)
        within = tf.reduce_all((images >= 0) & (images <= 255))  # not so where there is a NaN
        message = "images: must be 0-255 and not NaN"
        with tf.control_dependencies([tf.debugging.Assert(within, [message])]):
            return {"probabilities": probabilities(tf.identity(images))}

    @tf.function(input_signature=[files], autograph=False)
    def encoded_images(image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        image_bytes, sizes = decoding.checked(image_bytes, most)
        message = (
            "image_bytes: images of one request must have one size; send others apart. Heights and widths are"
        )
        same = tf.debugging.Assert(tf.reduce_all(sizes == sizes[:1]), [message, sizes], 8)
        with tf.control_dependencies([same]):
            image_bytes = tf.identity(image_bytes)

        def one(contents: tf.Tensor) -> tf.Tensor:
            image = decode(contents)
            return as_grey(image) if channels == 1 else as_rgb(image)

        image = tf.TensorSpec([None, None, channels], tf.float32)
        return {
            "probabilities": probabilities(
                tf.map_fn(one, image_bytes, parallel_iterations=1, fn_output_signature=image)
            )
        }

    found = {"serving_default": serving_default, "float_images": float_images}
    if channels in (1, 3):
        found["encoded_images"] = encoded_images
    return {name: function.get_concrete_function() for name, function in found.items()}


def _whole_images(model: UNet, winograd: bool) -> Callable[[tf.Tensor], tf.Tensor]:
    """float32 [B, H, W, C], 0-255, to probabilities float32 [B, H, W, K], by the model's own tile and rotations."""
    network = folded(overlap_tile.without_surplus(model), winograd=winograd)
    tile, border = overlap_tile.legal_tile(model, model.tile), overlap_tile.border_of(model)
    multiple, classes = 2**model.depth, model.classes
    overlap = tile % multiple

    @tf.function(
        input_signature=[tf.TensorSpec([None, None, None, model.input_channels])],
        autograph=False,
        experimental_attributes={"_noinline": True},
    )
    def predict(tiles: tf.Tensor) -> tf.Tensor:
        return network(tiles, training=False)

    def mean(tiles: tf.Tensor) -> tf.Tensor:
        """Of the views that `rotations` asks for."""
        if model.rotations == 1:
            return predict(tiles)

        def add(k: tf.Tensor, total: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            return k + 1, total + _turn_back(predict(_turn(tiles, k)), k)

        # the first is the image as it is
        start, shapes = (1, predict(tiles)), (tf.TensorShape([]), tf.TensorShape([None, None, None, classes]))
        total = tf.while_loop(lambda k, _: k < model.rotations, add, start, shapes, parallel_iterations=1)[1]
        return total / model.rotations

    def spans(length: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """How many tiles cover an axis, and by how much each advances (`overlap_tile.spans`)."""
        needed = tf.maximum(length - overlap, 1)
        count = -(-needed // (tile - overlap))
        return count, multiple * -(-needed // (count * multiple))

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, model.input_channels])], autograph=False)
    def probabilities(images: tf.Tensor) -> tf.Tensor:
        batch, height, width = tf.unstack(tf.shape(images)[:3])
        (rows, down), (columns, across) = spans(height), spans(width)
        side = down + overlap, across + overlap

        def cut(n: tf.Tensor) -> tf.Tensor:
            """The n-th tile with its border: [1, h, w, C]."""
            place = n % (rows * columns)
            top, left = place // columns * down, place % columns * across
            lines = _mirrored(tf.range(top - border, top + side[0] + border), height)
            image = tf.gather(images[n // (rows * columns)], lines)
            return tf.gather(
                image, _mirrored(tf.range(left - border, left + side[1] + border), width), axis=1
            )[None]

        def one(n: tf.Tensor, done: tf.TensorArray) -> tuple[tf.Tensor, tf.TensorArray]:
            found = mean(cut(n))[0]
            surplus = (tf.shape(found)[0] - side[0]) // 2
            return n + 1, done.write(n, found[surplus : surplus + side[0], surplus : surplus + side[1]])

        count = batch * rows * columns
        done = tf.TensorArray(tf.float32, count, element_shape=[None, None, classes])
        _, done = tf.while_loop(lambda n, _: n < count, one, (0, done), parallel_iterations=1)
        tiles = tf.reshape(done.stack(), [batch, rows, columns, *side, classes])
        return _joined(tiles, overlap)[:, :height, :width]

    return probabilities


def _joined(tiles: tf.Tensor, overlap: int) -> tf.Tensor:
    """Tiles [B, rows, columns, h, w, K] that overlap by so many pixels, one after the other: [B, H, W, K]. Of an overlap
    the later tile counts."""
    if overlap:
        below, right = tiles[:, -1, :, -overlap:], tiles[:, :, -1, :, -overlap:]
        corner = tiles[:, -1, -1, -overlap:, -overlap:]
        tiles = tiles[:, :, :, :-overlap, :-overlap]
    batch, rows, columns, height, width, classes = tf.unstack(tf.shape(tiles))
    whole = tf.reshape(
        tf.transpose(tiles, [0, 1, 3, 2, 4, 5]), [batch, rows * height, columns * width, classes]
    )
    if not overlap:
        return whole
    right = tf.reshape(right[:, :, :-overlap], [batch, rows * height, overlap, classes])
    below = tf.reshape(
        tf.transpose(below[:, :, :, :-overlap], [0, 2, 1, 3, 4]), [batch, overlap, columns * width, classes]
    )
    return tf.concat([tf.concat([whole, right], 2), tf.concat([below, corner], 2)], 1)


def _mirrored(index: tf.Tensor, length: tf.Tensor) -> tf.Tensor:
    """Positions on an axis that is continued by mirroring, as often as it takes (`overlap_tile.mirrored`)."""
    period = tf.maximum(2 * (length - 1), 1)
    index = index % period
    return tf.minimum(index, period - index)


def _turn(tiles: tf.Tensor, k: tf.Tensor) -> tf.Tensor:
    """`overlap_tile.turn`, for a number that the graph computes."""
    tiles = tf.cond(k >= 4, lambda: tiles[:, :, ::-1], lambda: tiles)
    return tf.image.rot90(tiles, k % 4)


def _turn_back(tiles: tf.Tensor, k: tf.Tensor) -> tf.Tensor:
    """Undoes `_turn`."""
    tiles = tf.image.rot90(tiles, -k % 4)
    return tf.cond(k >= 4, lambda: tiles[:, :, ::-1], lambda: tiles)
