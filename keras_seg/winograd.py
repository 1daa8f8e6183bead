"""Wide 3x3 convolutions with half the multiplications: Winograd's minimal filtering along the rows, F(4, 3)."""

from __future__ import annotations

from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf
from keras import layers

# Four output rows from six input rows by 6 instead of 12 products (Lavin and Gray 2016, Section 4.3).
G = np.array(
    [[1 / 4, 0, 0], [-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6], [1 / 24, 1 / 12, 1 / 6],
     [1 / 24, -1 / 12, 1 / 6], [0, 0, 1]], np.float32,
)  # fmt: skip
# Kernels are kept in pieces of 64 output channels, which oneDNN reads in order; below 256 channels the additions cost
# more than the products that are saved.
PIECE, WIDE = 64, 256


class Winograd(layers.Layer):
    """Computes what a 3x3 convolution does. `refresh` takes over the convolution's weights as they are then."""

    def __init__(self, convolution: layers.Conv2D) -> None:
        super().__init__(name=convolution.name, dtype=convolution.dtype_policy)
        self.convolution = convolution
        self.pieces = convolution.filters // PIECE
        incoming = convolution.kernel.shape[2]
        self.transformed = tf.Variable(tf.zeros([6 * self.pieces, 1, 3, incoming, PIECE]), trainable=False)

    def refresh(self) -> None:
        kernel = tf.convert_to_tensor(self.convolution.kernel)
        pieces = tf.reshape(tf.tensordot(G, kernel, 1), [6, 1, 3, kernel.shape[2], self.pieces, PIECE])
        self.transformed.assign(tf.reshape(tf.transpose(pieces, [0, 4, 1, 2, 3, 5]), self.transformed.shape))

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """x: [B, H, W, C]. Returns [B, h, w, filters]."""
        layer, border = self.convolution, 1 if self.convolution.padding == "same" else 0
        height, channels = tf.shape(x)[1] + 2 * border - 2, x.shape[-1]
        tiles = -(-height // 4)  # of four output rows
        below = 4 * tiles - height + border
        x = tf.pad(x, [[0, 0], [border, below], [border, border], [0, 0]])
        shape = tf.shape(x)

        def rows(first: int) -> tuple[tf.Tensor, ...]:
            four = tf.reshape(x[:, first : first + 4 * tiles], [shape[0], tiles, 4, shape[2], channels])
            return tuple(four[:, :, i] for i in range(4))

        d0, d1, d2, d3 = rows(0)
        d4, d5 = rows(2)[2:]
        a, b, c, d = d4 - 4 * d2, d3 - 4 * d1, d4 - d2, 2 * (d3 - d1)
        inputs = 4 * d0 - 5 * d2 + d4, a + b, a - b, c + d, c - d, 4 * d1 - 5 * d3 + d5
        kernels = self.transformed.read_value()
        m0, m1, m2, m3, m4, m5 = (
            tf.concat(
                [tf.nn.conv2d(v, kernels[k * self.pieces + p], 1, "VALID") for p in range(self.pieces)], -1
            )
            for k, v in enumerate(inputs)
        )
        s, t, u, v = m1 + m2, m1 - m2, m3 + m4, m3 - m4
        y = tf.stack([m0 + s + u, t + 2 * v, s + 4 * u, t + 8 * v + m5], axis=2)
        y = tf.reshape(y, [shape[0], 4 * tiles, shape[2] - 2, layer.filters])[:, :height]
        if layer.use_bias:
            y = tf.nn.bias_add(y, layer.bias)
        return layer.activation(y)


def with_winograd(model: keras.Model) -> tuple[keras.Model, Callable[[], None]]:
    """(the same functional model for inference, what brings it up to date with the weights; call it before use)."""
    functional = keras.Model(model.input, model.output)
    if tf.config.list_physical_devices("GPU"):
        return functional, lambda: None
    fast = keras.models.clone_model(
        functional, clone_function=lambda layer: Winograd(layer) if _wide(layer) else layer
    )
    replaced = [layer for layer in fast.layers if isinstance(layer, Winograd)]

    def refresh() -> None:
        for layer in replaced:
            layer.refresh()

    refresh()
    return fast, refresh


def _wide(layer: layers.Layer) -> bool:
    return (
        type(layer) is layers.Conv2D
        and layer.kernel_size == (3, 3)
        and layer.filters >= WIDE
        and layer.filters % PIECE == 0
        and layer.groups == 1
        and layer.data_format == "channels_last"
        and layer.strides == (1, 1)
        and layer.dilation_rate == (1, 1)
        and layer.compute_dtype == "float32"
    )
