"""A copy of a model whose weights are those of inference alone: each normalisation folded into its convolution."""

from __future__ import annotations

import keras
from keras import layers

from keras_seg import inference


class _Direct(inference.Fused):
    """Never by Winograd's filtering, which is for processors."""

    by_winograd = False


def folded(model: keras.Model, *, winograd: bool = True) -> keras.Model:
    """The functional model's copy, that computes what `inference.for_inference` does from fewer weights.

    A convolution and the normalisation after it with its fixed statistics have one kernel and one bias, which are copies:
    they do not follow the model's weights. All other layers are the model's own. winograd: 3x3 convolutions of many
    channels by Winograd's filtering, faster on a processor and slower on a GPU.
    """
    fused = inference.Fused if winograd else _Direct

    def fuse(
        convolution: layers.Conv2D, normalization: layers.Layer | None = None, relu: bool = False
    ) -> layers.Layer:
        if normalization is not None:
            convolution = _with_normalization(convolution, normalization)
        return fused(convolution, None, relu)

    def copy(layer: layers.Layer) -> layers.Layer:
        return folded(layer, winograd=winograd) if isinstance(layer, keras.Model) else layer

    functional = keras.Model(model.input, model.output, name=model.name)
    return inference.fused(functional, inference.kind, fuse, copy)


def _with_normalization(convolution: layers.Conv2D, normalization: layers.Layer) -> layers.Conv2D:
    kernel, bias = inference.fold(convolution, normalization)
    layer = layers.Conv2D.from_config(
        {**convolution.get_config(), "name": normalization.name, "use_bias": True}
    )
    layer.build((None, None, None, kernel.shape[2] * convolution.groups))
    layer.kernel.assign(kernel)
    layer.bias.assign(bias)
    return layer
