"""The keypoint head (He et al. 2017, Section 5)."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
from keras import layers


@keras.saving.register_keras_serializable("keras_seg")
class Enlarge(layers.Layer):
    """Bilinear enlargement by a whole factor, pixel centres at one half (PyTorch's align_corners=False)."""

    def __init__(self, factor: int = 2, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.factor = factor

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """x: [N, H, W, C]. Returns [N, factor * H, factor * W, C]."""
        return tf.image.resize(x, tf.shape(x)[1:3] * self.factor)

    def compute_output_shape(self, shape: tuple) -> tuple:
        sides = tuple(None if side is None else side * self.factor for side in shape[1:3])
        return (shape[0], *sides, shape[3])

    def get_config(self) -> dict:
        return {**super().get_config(), "factor": self.factor}


def keypoint_head(
    input_channels: int,
    keypoints: int,
    *,
    side: int = 14,
    channels: int = 512,
    convs: int = 8,
    name: str = "keypoint_head",
) -> keras.Model:
    """Regions [N, side, side, C] to heatmap logits [N, 4 * side, 4 * side, K], float32: eight 3x3 convolutions, a 4x4
    transposed one of stride 2, and bilinear enlargement."""
    he = keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal")
    region = x = keras.Input((side, side, input_channels), name="region")
    for index in range(1, convs + 1):
        x = layers.Conv2D(
            channels, 3, padding="same", activation="relu", kernel_initializer=he, name=f"conv_fcn{index}"
        )(x)  # fmt: skip
    # Keras's "same" crops one pixel a side here, as PyTorch's padding of 1 does
    x = layers.Conv2DTranspose(
        keypoints, 4, strides=2, padding="same", kernel_initializer=he, dtype="float32", name="score_lowres"
    )(x)  # fmt: skip
    return keras.Model(region, Enlarge(2, dtype="float32", name="enlarge")(x), name=name)
