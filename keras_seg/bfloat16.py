"""A copy of a functional model for inference in bfloat16, for processors that multiply such numbers.

bfloat16 has float32's range and 8 significant bits. Maps and weights are stored in it; the sums within an operation are
float32. Normalisations are drawn into the kernels before these are rounded. What leaves the networks (logits, box deltas)
is computed from them in float32, and so is all that follows: boxes, suppression, soft-max.
"""

from __future__ import annotations

import warnings
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from keras_seg import inference, processor, winograd
from keras_seg.models.rcnn_layers import PoolRegions

# As Linux calls a processor's instructions on bfloat16: matrix units of Intel (AMX), vectors of Intel and AMD, of ARM.
MATRIX_UNITS, VECTOR_UNITS = frozenset({"amx_bf16"}), frozenset({"avx512_bf16", "bf16"})
# Layers without weights that work in any precision.
PLAIN = (
    layers.ReLU, layers.Add, layers.Concatenate, layers.Cropping2D, layers.ZeroPadding2D, layers.UpSampling2D,
    layers.MaxPooling2D, layers.AveragePooling2D, layers.GlobalAveragePooling2D, layers.Flatten, layers.Reshape,
    layers.Dropout,
)  # fmt: skip
WEIGHTED = (layers.Conv2D, layers.Conv2DTranspose, layers.Dense)
# Where only vectors multiply bfloat16, twice as fast as float32, Winograd's filtering in float32 is faster still for so
# many channels; with fewer, the changes to points cost too much, with more, transforming the kernel at each call.
WINOGRAD_CHANNELS, WINOGRAD_BLOCK = range(128, 257), 7
TINY = 1e-37  # as good as zero
WASTE = 1.2  # of it, if a map's sides are known and this much smaller than those of whole blocks


class Frozen(layers.Layer):
    """A convolution or a dense layer, the normalisation after it and a ReLU, its weights constants of the given type.

    They are read when the layer is called: in a traced function they stay what they were.
    """

    def __init__(
        self,
        layer: layers.Layer,
        normalization: layers.Layer | None,
        relu: bool,
        dtype: str,
        by_winograd: bool,
    ) -> None:
        name = f"{(normalization or layer).name}{'_relu' if relu else ''}_frozen"
        super().__init__(name=name, dtype=dtype)
        self.layer, self.normalization = layer, normalization
        self.activation = tf.nn.relu if relu else layer.activation
        self.by_winograd = by_winograd and dtype == "bfloat16"

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """x: [B, H, W, C] or [B, C], of the layer's type. Returns the same type."""
        layer, winograd_pays = self.layer, self.by_winograd and not _wasteful(x, self.layer)
        # Now, also while a function is traced: it takes them as arguments. Constants in its graph would be no faster,
        # and optimising the graph would copy them a dozen times.
        with tf.init_scope():
            kernel, bias = self._weights(tf.float32 if winograd_pays else x.dtype)
        if winograd_pays:
            options = {"padding": layer.padding, "activation": self.activation}
            return winograd.convolve(x, kernel, bias, block=WINOGRAD_BLOCK, **options)
        grouped = getattr(layer, "groups", 1) > 1
        return self.activation(inference.add_bias(_product(layer, x, kernel), bias, grouped=grouped))

    def _weights(self, dtype: tf.DType) -> tuple[tf.Tensor, tf.Tensor]:
        kernel, bias = inference.fold(self.layer, self.normalization)
        # TensorFlow makes one operation of product, bias, addition and ReLU, but only with a bias, and not of zeros
        bias = tf.zeros(kernel.shape[self.channel_axis]) if bias is None else bias
        bias = bias if tf.reduce_any(bias != 0) else tf.fill(tf.shape(bias), TINY)
        return tf.cast(kernel, dtype), tf.cast(bias, dtype)

    @property
    def channel_axis(self) -> int:
        """Of the kernel, that of the channels that come out."""
        return -2 if isinstance(self.layer, layers.Conv2DTranspose) else -1

    def compute_output_shape(self, shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return self.layer.compute_output_shape(shape)


def for_inference(model: keras.Model) -> keras.Model:
    """The functional model's copy in bfloat16, to be called in a `tf.function`: its weights are read while it is traced.

    Inputs and outputs have the model's types.
    """
    functional = keras.Model(model.input, model.output, name=model.name)
    return _copy(functional, leaving=set(range(len(functional.outputs))), inputs=None)


def units() -> frozenset[str]:
    """The instructions on bfloat16 that this processor has, as Linux names them; empty where there is no telling."""
    return processor.flags() & (MATRIX_UNITS | VECTOR_UNITS)


def warn_if_slow() -> None:
    """UserWarning where neither processor nor GPU is known to compute in bfloat16."""
    if not units() and not tf.config.list_physical_devices("GPU"):
        warnings.warn(
            'precision="bfloat16": this processor is not known to multiply bfloat16 (of its flags none is '
            f'{", ".join(sorted(MATRIX_UNITS | VECTOR_UNITS))}); precision="float32" is faster here, and exact',
            stacklevel=3,
        )


def _copy(functional: keras.Model, leaving: set[int], inputs: Any) -> keras.Model:
    """leaving: places of the outputs that are wanted in float32. inputs: the copy's, None for the functional's own."""
    exact, outputs = _leaving(functional, leaving)
    direct = bool(units() & MATRIX_UNITS) or bool(tf.config.list_physical_devices("GPU"))
    copies: dict[int, Any] = {}

    def copy(layer: layers.Layer) -> layers.Layer:
        if id(layer) not in copies:
            copies[id(layer)] = layer
            if isinstance(layer, keras.Model):
                own = keras.tree.map_structure(
                    lambda x: keras.Input(batch_shape=x.shape, dtype="bfloat16", name=x.name), layer.input
                )
                copies[id(layer)] = _copy(layer, outputs[id(layer)], own)
            elif type(layer) in PLAIN:
                copies[id(layer)] = type(layer).from_config({**layer.get_config(), "dtype": "bfloat16"})
        return copies[id(layer)]

    def fuse(layer: layers.Layer, normalization: layers.Layer | None = None, relu: bool = False) -> Frozen:
        dtype = "float32" if id(layer) in exact else "bfloat16"
        by_winograd = not direct and type(layer) is layers.Conv2D and _suits_winograd(layer)
        return Frozen(layer, normalization, relu, dtype, by_winograd)

    return inference.fused(functional, _kind, fuse, copy, inputs)


def _kind(layer: layers.Layer) -> str | None:
    """As `inference.kind`."""
    if type(layer) in WEIGHTED and getattr(layer, "data_format", "channels_last") == "channels_last":
        return "convolution"
    return None if type(layer) is layers.Conv2D else inference.kind(layer, ("float32", "bfloat16"))


def _leaving(functional: keras.Model, places: set[int]) -> tuple[set[int], dict[int, set[int]]]:
    """Layers whose results are needed in float32, by id; and of the networks within, by id, the places of such outputs.

    These are what others take than layers that work in bfloat16, and the functional's own outputs at `places`. A layer
    with an activation of its own that is no ReLU is one too.
    """
    nodes = [node for level in functional._nodes_by_depth.values() for node in level if not node.is_input]
    takers: dict[int, list[Any]] = {}
    for node in nodes:
        for tensor in node.input_tensors:
            takers.setdefault(id(tensor), []).append(node.operation)
    ends = {id(functional.outputs[place]) for place in places}
    exact: set[int] = set()
    outputs: dict[int, set[int]] = {}
    for node in nodes:
        layer = node.operation
        left = {
            place
            for place, tensor in enumerate(node.outputs)
            if id(tensor) in ends or not all(_takes_bfloat16(taker) for taker in takers.get(id(tensor), ()))
        }
        if isinstance(layer, keras.Model):
            outputs.setdefault(id(layer), set()).update(left)
        activation = getattr(layer, "activation", None)
        if left or activation not in (None, keras.activations.linear, keras.activations.relu):
            exact.add(id(layer))
    return exact, outputs


def _takes_bfloat16(layer: layers.Layer) -> bool:
    kinds = (*PLAIN, *WEIGHTED, *inference.NORMALIZATIONS, layers.GroupNormalization, PoolRegions)
    return isinstance(layer, keras.Model) or type(layer) in kinds


def _suits_winograd(layer: layers.Conv2D) -> bool:
    channels = (layer.kernel.shape[2], layer.filters)
    return inference.is_plain_3x3(layer) and all(count in WINOGRAD_CHANNELS for count in channels)


def _wasteful(x: tf.Tensor, layer: layers.Conv2D) -> bool:
    """Whether much of Winograd's blocks would lie outside a map [B, H, W, C] of known sides."""
    sides = layer.compute_output_shape(x.shape)[1:3]
    if None in sides:
        return False
    computed = np.prod([-(-side // WINOGRAD_BLOCK) * WINOGRAD_BLOCK for side in sides])
    return bool(computed > WASTE * np.prod(sides))


def _product(layer: layers.Layer, x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    """The layer's linear part but for the bias."""
    if type(layer) is layers.Dense:
        return keras.ops.matmul(x, kernel)
    geometry = layer.strides, layer.padding
    if type(layer) is layers.Conv2D:
        return inference.direct(x, kernel, *geometry, layer.dilation_rate)
    output_padding, rate = layer.output_padding, layer.dilation_rate
    return keras.ops.conv_transpose(x, kernel, *geometry, output_padding, "channels_last", rate)
