"""A copy of a functional model out of operations that TensorFlow Lite's converter and runtime do well.

Weights are constants, normalisations are folded into their convolutions, group normalisation has four axes and not five,
a transposed convolution that neither overlaps nor leaves gaps is a 1x1 one and a rearrangement. What becomes of the
numbers between layers is a `Treatment`'s to say.
"""

from __future__ import annotations

from typing import Any, Protocol

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from keras_seg import inference
from keras_seg.models.unet import TileCheck

LINEAR = (layers.Conv2D, layers.Conv2DTranspose, layers.Dense)


class Treatment(Protocol):
    """What is done to numbers on their way; places are named "part/layer"."""

    def weights(self, place: str, kernel: tf.Tensor) -> tf.Tensor:
        """kernel: [..., outputs], a constant."""

    def activations(self, place: str, values: tf.Tensor) -> tf.Tensor:
        """values: what a layer gave, [B, ..., C]."""


class Exact:
    """Leaves everything in float32."""

    def weights(self, place: str, kernel: tf.Tensor) -> tf.Tensor:
        return kernel

    def activations(self, place: str, values: tf.Tensor) -> tf.Tensor:
        return values


class Linear(layers.Layer):
    """A convolution or dense layer, the normalisation after it and a ReLU."""

    def __init__(
        self,
        place: str,
        layer: layers.Layer,
        normalization: layers.Layer | None,
        relu: bool,
        treatment: Treatment,
    ) -> None:
        super().__init__(name=f"{(normalization or layer).name}{'_relu' if relu else ''}")
        self.place, self.layer, self.treatment = place, layer, treatment
        self.activation = tf.nn.relu if relu else layer.activation
        kernel, bias = inference.fold(layer, normalization)
        self.kernel = kernel.numpy()
        outputs = self.kernel.shape[-2 if isinstance(layer, layers.Conv2DTranspose) else -1]
        self.bias = np.zeros(outputs, np.float32) if bias is None else bias.numpy()

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """x: [B, H, W, C] or [B, C]. Returns [B, h, w, outputs] or [B, outputs]."""
        y = self.activation(self._product(x))
        return self.treatment.activations(self.place, y)

    def _product(self, x: tf.Tensor) -> tf.Tensor:
        layer, bias = self.layer, self.bias
        kernel = lambda k: self.treatment.weights(self.place, tf.constant(k))
        if isinstance(layer, layers.Dense):
            # a convolution, since the converter refuses kernels of products that are rounded by output channel
            y = tf.nn.conv2d(x[:, None, None], kernel(self.kernel[None, None]), 1, "VALID")
            return tf.nn.bias_add(tf.reshape(y, [-1, layer.units]), bias)
        if isinstance(layer, layers.Conv2DTranspose):
            height, width, outputs, inputs = self.kernel.shape
            if layer.kernel_size != layer.strides or height != width:
                options = {"padding": layer.padding, "output_padding": layer.output_padding}
                y = keras.ops.conv_transpose(x, tf.constant(self.kernel), layer.strides, **options)
                return tf.nn.bias_add(y, bias)
            # each pixel becomes a block of its own, [block, block, outputs]
            flat = self.kernel.transpose(3, 0, 1, 2).reshape(1, 1, inputs, height * width * outputs)
            y = tf.nn.bias_add(tf.nn.conv2d(x, kernel(flat), 1, "VALID"), np.tile(bias, height * width))
            return tf.nn.depth_to_space(y, height)
        y = keras.ops.conv(
            x, kernel(self.kernel), layer.strides, layer.padding, "channels_last", layer.dilation_rate
        )
        return tf.nn.bias_add(y, bias)

    def compute_output_shape(self, shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return self.layer.compute_output_shape(shape)


class GroupNorm(layers.Layer):
    """`keras.layers.GroupNormalization` of channels, in four axes: the statistics of groups are means of channels'."""

    def __init__(self, layer: layers.GroupNormalization) -> None:
        super().__init__(name=layer.name)
        channels = (layer.gamma if layer.scale else layer.beta).shape[0]
        self.epsilon = layer.epsilon
        self.gamma = layer.gamma.numpy() if layer.scale else np.ones(channels, np.float32)
        self.beta = layer.beta.numpy() if layer.center else np.zeros(channels, np.float32)
        self.groups = layer.groups  # 1 to as many as channels, since it is built

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """x: [B, H, W, C]. Returns the same shape."""
        centred = x - self._means(x)
        scale = self.gamma * tf.math.rsqrt(self._means(centred * centred) + self.epsilon)
        return centred * scale + self.beta

    def _means(self, x: tf.Tensor) -> tf.Tensor:
        """Of each channel its group's mean, [B, 1, 1, C]. No product with a constant, which would be rounded to 8 bits."""
        channels = self.gamma.shape[0]
        means = tf.reshape(tf.reduce_mean(x, [1, 2]), [-1, self.groups, channels // self.groups])
        means = tf.reduce_mean(means, 2, keepdims=True) * np.ones(means.shape[2], np.float32)
        return tf.reshape(means, [-1, 1, 1, channels])

    def compute_output_shape(self, shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return shape


class Enlarged(layers.Layer):
    """`keras.layers.UpSampling2D` by the nearest neighbour."""

    def __init__(self, layer: layers.UpSampling2D) -> None:
        super().__init__(name=layer.name)
        self.factors = layer.size

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """x: [B, H, W, C]. Returns [B, fH, fW, C]."""
        sides = [tf.shape(x)[axis] if x.shape[axis] is None else x.shape[axis] for axis in (1, 2)]
        size = [side * factor for side, factor in zip(sides, self.factors, strict=True)]
        return tf.image.resize(x, size, tf.image.ResizeMethod.NEAREST_NEIGHBOR)

    def compute_output_shape(self, shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        sides = (None if s is None else s * f for s, f in zip(shape[1:3], self.factors, strict=True))
        return (shape[0], *sides, shape[3])


class Treated(layers.Layer):
    """A layer without weights, and the treatment of what it gives."""

    def __init__(self, place: str, layer: layers.Layer, treatment: Treatment) -> None:
        super().__init__(name=f"{layer.name}_treated")
        self.place, self.layer, self.treatment = place, layer, treatment

    def call(self, x: Any) -> tf.Tensor:
        return self.treatment.activations(self.place, self.layer(x))

    def compute_output_shape(self, shape: Any) -> tuple[int | None, ...]:
        return self.layer.compute_output_shape(shape)


def network(model: keras.Model, treatment: Treatment | None = None, part: str | None = None) -> keras.Model:
    """The functional model's copy. Inputs and outputs are the model's.

    treatment: of kernels, and of what convolutions, dense layers, sums and ReLUs give; None: `Exact`. part: what places begin
    with, None for the model's name.
    """
    functional = keras.Model(model.input, model.output, name=model.name)
    treatment, part = treatment or Exact(), part or model.name
    before_relu = _before_relu(functional)
    copies: dict[int, layers.Layer] = {}

    def copy(layer: layers.Layer) -> layers.Layer:
        if id(layer) not in copies:
            copies[id(layer)] = _copy(layer, f"{part}/{layer.name}", treatment, id(layer) in before_relu)
        return copies[id(layer)]

    def fuse(layer: layers.Layer, normalization: layers.Layer | None = None, relu: bool = False) -> Linear:
        return Linear(f"{part}/{layer.name}", layer, normalization, relu, treatment)

    return inference.fused(functional, _kind, fuse, copy)


def _copy(layer: layers.Layer, place: str, treatment: Treatment, before_relu: bool) -> layers.Layer:
    if isinstance(layer, keras.Model):
        return network(layer, treatment, place)
    if isinstance(layer, TileCheck | layers.Dropout):
        return layers.Identity(name=layer.name)
    if isinstance(layer, layers.GroupNormalization):
        return GroupNorm(layer)
    if isinstance(layer, layers.UpSampling2D) and layer.interpolation == "nearest":
        return Enlarged(layer)
    sums = isinstance(layer, layers.Add | layers.Concatenate) and not before_relu
    if sums or isinstance(layer, layers.ReLU | layers.Rescaling):
        return Treated(place, layer, treatment)
    return layer


def _kind(layer: layers.Layer) -> str | None:
    """As `inference.kind`."""
    if type(layer) in LINEAR and getattr(layer, "data_format", "channels_last") == "channels_last":
        return "convolution"
    return inference.kind(layer.layer if isinstance(layer, Treated) else layer)


def _before_relu(functional: keras.Model) -> set[int]:
    """The layers, by id, whose results ReLUs alone take: with them they are one operation."""
    nodes = [node for level in functional._nodes_by_depth.values() for node in level if not node.is_input]
    takers: dict[int, set[bool]] = {}
    for node in nodes:
        for tensor in node.input_tensors:
            takers.setdefault(id(tensor), set()).add(isinstance(node.operation, layers.ReLU))
    return {id(node.operation) for node in nodes if all(takers.get(id(t)) == {True} for t in node.outputs)}
