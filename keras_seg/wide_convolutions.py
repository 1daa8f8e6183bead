"""A faster way to run wide convolutions on a CPU: the kernel in pieces of a few output channels."""

from __future__ import annotations

import keras
import tensorflow as tf
from keras import layers

# Output channels of a piece, and the width from which cutting pays. oneDNN takes TensorFlow's kernels as they lie in
# memory, [kh, kw, in, out]; with many output channels its inner loop then jumps from row to row and takes up to
# twice as long. Pieces of 64 are read in order (docs/performance.md has the figures).
PIECE, WIDE = 64, 256


class InPieces(layers.Layer):
    """Computes what a convolution does, from its own variables, PIECE output channels at a time."""

    def __init__(self, convolution: layers.Conv2D) -> None:
        super().__init__(name=convolution.name, dtype=convolution.dtype_policy)
        self.convolution = convolution

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """x: [B, H, W, C]. Returns [B, h, w, filters]."""
        layer = self.convolution
        kernels = tf.split(tf.convert_to_tensor(layer.kernel), layer.filters // PIECE, axis=-1)
        maps = [tf.nn.conv2d(x, kernel, layer.strides, layer.padding.upper()) for kernel in kernels]
        if layer.use_bias:
            biases = tf.split(tf.convert_to_tensor(layer.bias), len(maps))
            maps = [tf.nn.bias_add(part, bias) for part, bias in zip(maps, biases, strict=True)]
        return layer.activation(tf.concat(maps, axis=-1))


def in_pieces(model: keras.Model) -> keras.Model:
    """The same functional model, for inference, on the same variables: later changes of the weights count.

    Results differ from the model's in the last digits of float32 at most. Where there is a GPU it is the model.
    """
    if tf.config.list_physical_devices("GPU"):
        return model
    functional = keras.Model(model.input, model.output)
    return keras.models.clone_model(functional, clone_function=lambda layer: InPieces(layer) if _wide(layer) else layer)


def _wide(layer: layers.Layer) -> bool:
    return (
        type(layer) is layers.Conv2D
        and layer.filters >= WIDE
        and layer.filters % PIECE == 0
        and layer.groups == 1
        and layer.data_format == "channels_last"
        and layer.padding in ("valid", "same")
        and max(layer.dilation_rate) == 1
    )
