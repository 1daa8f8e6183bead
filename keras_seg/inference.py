"""A copy of a functional model that computes the same faster, for inference on a processor. It shares the weights.

A convolution, the normalisation after it and a ReLU become one operation, and 3x3 convolutions of many channels are
computed by `winograd`. Results differ in the order of sums alone, by about 1e-6 of a map's scale.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
from keras import layers

from keras_seg import winograd
from keras_seg.backbones.resnet import FrozenBatchNormalization

NORMALIZATIONS = (layers.BatchNormalization, FrozenBatchNormalization)


class Fused(layers.Layer):
    """A convolution, the normalisation after it with its fixed statistics, and a ReLU.

    The weights are those of the given layers, read at each call: they may change.
    """

    def __init__(
        self, convolution: layers.Conv2D, normalization: layers.Layer | None = None, relu: bool = False
    ) -> None:
        super().__init__(name=f"{(normalization or convolution).name}{'_relu' if relu else ''}_fused")
        self.convolution, self.normalization = convolution, normalization
        self.activation = tf.nn.relu if relu else convolution.activation

    @property
    def by_winograd(self) -> bool:
        layer = self.convolution
        plain = layer.kernel_size == (3, 3) and layer.groups == 1
        plain = plain and layer.strides == (1, 1) and layer.dilation_rate == (1, 1)
        return plain and winograd.pays(layer.kernel.shape[2], layer.filters)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """x: [B, H, W, C]. Returns [B, h, w, filters]."""
        layer, (kernel, bias) = self.convolution, self._weights()
        if self.by_winograd:
            return winograd.convolve(x, kernel, bias, padding=layer.padding, activation=self.activation)
        options = {"padding": layer.padding, "dilation_rate": layer.dilation_rate}
        y = keras.ops.conv(x, kernel, layer.strides, data_format="channels_last", **options)
        return self.activation(y if bias is None else tf.nn.bias_add(y, bias))

    def compute_output_shape(self, shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return self.convolution.compute_output_shape(shape)

    def _weights(self) -> tuple[tf.Tensor, tf.Tensor | None]:
        """Kernel and bias with the normalisation's affine map in them."""
        norm, kernel = self.normalization, tf.convert_to_tensor(self.convolution.kernel)
        bias = tf.convert_to_tensor(self.convolution.bias) if self.convolution.use_bias else None
        if norm is None:
            return kernel, bias
        scale = tf.math.rsqrt(norm.moving_variance + norm.epsilon)
        scale = scale if norm.gamma is None else scale * norm.gamma
        shift = (0 if bias is None else bias) - norm.moving_mean
        return kernel * scale, shift * scale + (0 if norm.beta is None else norm.beta)


def for_inference(model: keras.Model) -> keras.Model:
    """The functional model's copy. On a GPU, whose libraries choose their own algorithms, nothing is replaced."""
    functional = keras.Model(model.input, model.output, name=model.name)
    if tf.config.list_physical_devices("GPU"):
        return functional
    made: dict[tuple[Any, ...], Fused] = {}
    # of what a convolution, or it and its normalisation, gave: itself (whose id is the key), the input, these layers
    open_ends: dict[int, tuple[Any, Any, tuple[layers.Layer, ...]]] = {}

    def call(layer: layers.Layer, *args: Any, **kwargs: Any) -> Any:
        """Calls a layer or, where it continues a convolution, one that does both from that one's input."""
        _, x, before = open_ends.get(id(args[0]), (None, args[0], ()))
        kind = _kind(layer)
        continues = (kind == "normalization" and len(before) == 1) or (kind == "relu" and before)
        if not continues:
            x, before = args[0], ()
        if not continues and kind != "convolution":
            return layer(*args, **kwargs)
        chain = before + ((layer,) if kind != "relu" else ())
        key = (chain, kind == "relu")
        if key not in made:
            made[key] = Fused(*chain, relu=key[1])
        y = made[key](x)
        # only a linear convolution can be continued
        if kind != "relu" and chain[0].activation is keras.activations.linear:
            open_ends[id(y)] = y, x, chain
        return y

    def copy(layer: layers.Layer) -> layers.Layer:
        return for_inference(layer) if isinstance(layer, keras.Model) else layer

    return keras.models.clone_model(functional, clone_function=copy, call_function=call)


def _kind(layer: layers.Layer) -> str | None:
    """What can be fused: "convolution", "normalization", "relu"; None for all else."""
    if layer.compute_dtype != "float32":
        return None
    if type(layer) is layers.Conv2D and layer.data_format == "channels_last":
        return "convolution"
    if type(layer) in NORMALIZATIONS and (type(layer) is FrozenBatchNormalization or layer.axis in (-1, 3)):
        return "normalization"
    if type(layer) is layers.ReLU and not (layer.max_value or layer.negative_slope or layer.threshold):
        return "relu"
    return None
