"""A copy of a functional model that computes the same faster, for inference on a processor. It shares the weights.

A convolution, the normalisation after it and a ReLU become one operation, and 3x3 convolutions of many channels are
computed by `winograd`. Results differ in the order of sums alone, by about 1e-6 of a map's scale. With
precision="bfloat16" (`bfloat16.py`) maps and weights are rounded to 8 significant bits as well.
"""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from keras_seg import winograd
from keras_seg.backbones.resnet import FrozenBatchNormalization

PRECISIONS = ("float32", "bfloat16")
# Held while a model's call is made: threads that predict with the same model at once then share one, and Keras's layers do
# not bear being called symbolically from several threads.
LOCK = threading.RLock()
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
        return is_plain_3x3(layer) and winograd.pays(layer.kernel.shape[2], layer.filters)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """x: [B, H, W, C]. Returns [B, h, w, filters]."""
        layer, norm = self.convolution, self.normalization
        geometry = layer.strides, layer.padding, layer.dilation_rate
        how: tuple[Any, ...] = self.activation, self.by_winograd, *geometry
        if norm is None:
            return _convolve(x, *fold(layer, None), *how)
        return _fold_and_convolve(x, _kernel_and_bias(layer), _moments(norm), norm.epsilon, *how)

    def compute_output_shape(self, shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return self.convolution.compute_output_shape(shape)


class Compiled:
    """A model's call for inference in one precision, traced once whatever the sizes. It follows the model's weights.

    In bfloat16 they are constants of the traced function; a call after a change of the model's weights traces anew.
    """

    def __init__(self, model: keras.Model, precision: str = "float32") -> None:
        """The model stays free to be collected: its layers are kept, not itself. ValueError: an unknown precision."""
        check_precision(precision)
        if precision == "bfloat16":
            from keras_seg import bfloat16

            bfloat16.warn_if_slow()
        self.precision = precision
        self._network = for_inference(model, precision)
        self._weights = Watched(model.weights)
        self._signature = keras.tree.map_structure(lambda x: tf.TensorSpec(x.shape, x.dtype), model.input)
        self._call: Callable[[Any], Any] | None = None

    def __call__(self, inputs: Any) -> Any:
        """inputs: the model's, as tensors or arrays. Returns the model's outputs, as tensors."""
        with LOCK:
            stale = self.precision == "bfloat16" and self._weights.changed()
            if self._call is None or stale:
                network = self._network  # not `self`: the function would keep it, and it the function
                self._call = tf.function(
                    lambda x: network(x, training=False), input_signature=[self._signature], autograph=False
                )
            call = self._call
        return call(inputs)


_COMPILED: weakref.WeakKeyDictionary[keras.Model, dict[str, Compiled]] = weakref.WeakKeyDictionary()


def compiled(model: keras.Model, precision: str = "float32") -> Compiled:
    """What `keras_seg.segment` calls for a model: made once for each precision, on first use, and kept with the model."""
    with LOCK:
        calls = _COMPILED.setdefault(model, {})
        if precision not in calls:
            calls[precision] = Compiled(model, precision)
        return calls[precision]


class Watched:
    """Variables, and whether they have changed since one last asked: told by where their numbers lie in memory.

    The tensors read are kept, so that TensorFlow must put a changed value elsewhere, even where it updates in place.
    """

    def __init__(self, variables: Iterable[Any]) -> None:
        self._variables = list(variables)
        self._values: list[np.ndarray] = []

    def changed(self) -> bool:
        """At first they always have."""
        # the arrays are the variables' own memory, not copies
        values = [np.asarray(memoryview(variable.value.value())) for variable in self._variables]
        same = len(values) == len(self._values) and all(
            new.ctypes.data == old.ctypes.data or np.array_equal(new, old, equal_nan=True)
            for new, old in zip(values, self._values, strict=True)
        )
        self._values = values
        return not same


def for_inference(model: keras.Model, precision: str = "float32") -> keras.Model:
    """The functional model's copy. On a GPU, whose libraries choose their own algorithms, float32 is left as it is.

    precision: "float32"; or "bfloat16", whose copy reads the weights while it is traced (`Compiled` keeps to them).
    """
    if precision == "bfloat16":
        from keras_seg import bfloat16

        return bfloat16.for_inference(model)
    functional = keras.Model(model.input, model.output, name=model.name)
    if tf.config.list_physical_devices("GPU"):
        return functional

    def copy(layer: layers.Layer) -> layers.Layer:
        return for_inference(layer) if isinstance(layer, keras.Model) else layer

    return fused(functional, kind, Fused, copy)


def fused(
    functional: keras.Model,
    kind: Callable[[layers.Layer], str | None],
    fuse: Callable[..., layers.Layer],
    copy: Callable[[layers.Layer], layers.Layer],
    inputs: Any = None,
) -> keras.Model:
    """The functional model with chains of convolution, normalisation and ReLU made one layer each.

    kind: see `kind`. fuse: (convolution, normalisation or nothing, relu=) -> the one layer. copy: of every other one.
    inputs: symbolic ones for the result, None for such as the model's.
    """
    made: dict[tuple[Any, ...], layers.Layer] = {}
    # of what a convolution, or it and its normalisation, gave: itself (whose id is the key), the input, these layers
    open_ends: dict[int, tuple[Any, Any, tuple[layers.Layer, ...]]] = {}

    def call(layer: layers.Layer, *args: Any, **kwargs: Any) -> Any:
        """Calls a layer or, where it continues a convolution, one that does both from that one's input."""
        _, x, before = open_ends.get(id(args[0]), (None, args[0], ()))
        what = kind(layer)
        continues = (what == "normalization" and len(before) == 1) or (what == "relu" and before)
        if not continues:
            x, before = args[0], ()
        if not continues and what != "convolution":
            return layer(*args, **kwargs)
        chain = before + ((layer,) if what != "relu" else ())
        key = (chain, what == "relu")
        if key not in made:
            made[key] = fuse(*chain, relu=key[1])
        y = made[key](x)
        # only a linear convolution can be continued
        if what != "relu" and chain[0].activation is keras.activations.linear:
            open_ends[id(y)] = y, x, chain
        return y

    return keras.models.clone_model(functional, inputs, clone_function=copy, call_function=call)


def kind(layer: layers.Layer, precisions: Sequence[str] = ("float32",)) -> str | None:
    """What can be fused: "convolution", "normalization", "relu"; None for all else, and for other precisions."""
    if layer.compute_dtype not in precisions:
        return None
    if type(layer) is layers.Conv2D and layer.data_format == "channels_last":
        return "convolution"
    if type(layer) in NORMALIZATIONS and (type(layer) is FrozenBatchNormalization or layer.axis in (-1, 3)):
        return "normalization"
    if type(layer) is layers.ReLU and not (layer.max_value or layer.negative_slope or layer.threshold):
        return "relu"
    return None


def is_plain_3x3(layer: layers.Conv2D) -> bool:
    """Whether this is a convolution of the form that `winograd` computes."""
    steps = (*layer.strides, *layer.dilation_rate, layer.groups)
    return layer.kernel_size == (3, 3) and set(steps) == {1}


def fold(layer: layers.Layer, normalization: layers.Layer | None) -> tuple[tf.Tensor, tf.Tensor | None]:
    """Kernel and bias of a convolution, with the affine map in them that a normalisation with fixed statistics is."""
    if normalization is None:
        return _kernel_and_bias(layer)
    transposed = isinstance(layer, layers.Conv2DTranspose)  # kernel [kh, kw, filters, C]
    return _fold(_kernel_and_bias(layer), _moments(normalization), normalization.epsilon, transposed)


def _kernel_and_bias(layer: layers.Layer) -> tuple[tf.Tensor, tf.Tensor | None]:
    return tf.convert_to_tensor(layer.kernel), tf.convert_to_tensor(layer.bias) if layer.use_bias else None


def _moments(norm: layers.Layer) -> tuple[tf.Tensor | None, ...]:
    """Mean, variance, scale and shift of a normalisation."""
    parts = norm.moving_mean, norm.moving_variance, norm.gamma, norm.beta
    return tuple(None if part is None else tf.convert_to_tensor(part) for part in parts)


def _fold(
    weights: tuple[tf.Tensor, tf.Tensor | None],
    moments: tuple[Any, ...],
    epsilon: float,
    transposed: bool = False,
) -> tuple[tf.Tensor, tf.Tensor]:
    (kernel, bias), (mean, variance, gamma, beta) = weights, moments
    scale = tf.math.rsqrt(variance + epsilon)
    scale = scale if gamma is None else scale * gamma
    shift = (0 if bias is None else bias) - mean
    kernel *= scale[:, None] if transposed else scale
    return kernel, shift * scale + (0 if beta is None else beta)


# A function of its own, which TensorFlow begins when the map is there. It would else fold all of a model's kernels at the
# start and keep a second set of them: 366 MiB of a ResNeXt-101.
@functools.partial(tf.function, autograph=False, experimental_attributes={"_noinline": True})
def _fold_and_convolve(
    x: tf.Tensor,
    weights: tuple[tf.Tensor, tf.Tensor | None],
    moments: tuple[Any, ...],
    epsilon: float,
    *how: Any,
) -> tf.Tensor:
    """how: of `_convolve`. Returns [B, h, w, filters]."""
    return _convolve(x, *_fold(weights, moments, epsilon), *how)


def _convolve(
    x: tf.Tensor,
    kernel: tf.Tensor,
    bias: tf.Tensor | None,
    activation: Callable[[tf.Tensor], tf.Tensor],
    by_winograd: bool,
    strides: tuple[int, int],
    padding: str,
    dilation: tuple[int, int],
) -> tf.Tensor:
    if by_winograd:
        return winograd.convolve(x, kernel, bias, padding=padding, activation=activation)
    y = direct(x, kernel, strides, padding, dilation)
    return activation(y if bias is None else add_bias(y, bias, grouped=kernel.shape[2] != x.shape[-1]))


def add_bias(y: tf.Tensor, bias: tf.Tensor, *, grouped: bool) -> tf.Tensor:
    """The sum of a convolution's map and its bias. TensorFlow makes one operation of a convolution and `bias_add`, which for
    grouped ones oneDNN alone has: on a GPU, and on processors where TensorFlow leaves oneDNN off (without AVX-512 VNNI), it
    fails. It does so with a plain sum only where oneDNN is on."""
    return tf.add(y, bias) if grouped else tf.nn.bias_add(y, bias)


def direct(
    x: tf.Tensor, kernel: tf.Tensor, strides: tuple[int, int], padding: str, dilation: tuple[int, int]
) -> tf.Tensor:
    """A convolution by TensorFlow's own operation. Keras compiles grouped ones by XLA instead, whose inner loops take two to
    ten times as long on a processor, anew for each size of image."""
    return tf.nn.conv2d(x, kernel, strides, padding.upper(), dilations=dilation)


def check_precision(precision: str) -> None:
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(map(repr, PRECISIONS))}, got {precision!r}")
