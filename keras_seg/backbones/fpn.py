"""Feature pyramid network (Lin et al. 2017)."""

from __future__ import annotations

from collections.abc import Sequence

import keras
from keras import layers

from keras_seg.backbones.resnet import normalization as normalization_layer

TOPS = ("pool", "conv")


def fpn(
    input_channels: Sequence[int],
    channels: int = 256,
    *,
    normalization: str | None = None,
    norm_eps: float = 1e-5,
    top: str = "pool",
    name: str = "fpn",
) -> keras.Model:
    """Maps of strides 4, 8, 16, 32 to as many of the same strides with `channels` each, and one more of stride 64.

    input_channels: of the given maps, from the largest. normalization: of all convolutions, which then have no bias;
    None: none, as in the paper. top: of stride 64, see below.

    Each map passes a 1x1 convolution, is added to the next smaller one's doubled (nearest neighbour), and passes a
    3x3 convolution. The last is every second pixel of the smallest (Lin et al. 2017, Section 4.1, footnote 1), or with
    top "conv" passes two 3x3 convolutions of its own after the smallest's 1x1, of which the second strides (Model
    Garden). A map's sides must be twice the next one's: images are padded to multiples of 32.

    Returns: a functional model from a list of maps [B, H_l, W_l, C_l] to the list p2 … p6.

    Raises:
        ValueError: an unknown normalisation or top.
    """
    if top not in TOPS:
        raise ValueError(f"fpn_top must be one of {', '.join(map(repr, TOPS))}, got {top!r}")

    def convolution(
        x: keras.KerasTensor, kind: str, level: int, kernel: int, stride: int = 1
    ) -> keras.KerasTensor:
        layer = f"fpn_{kind}{level}"
        x = layers.Conv2D(
            channels, kernel, strides=stride, padding="same", use_bias=normalization is None,
            kernel_initializer=keras.initializers.VarianceScaling(1.0, "fan_in", "uniform"), name=layer,
        )(x)  # fmt: skip
        if normalization is None:
            return x
        return normalization_layer(normalization, norm_eps, channels, f"{layer}_norm")(x)

    inputs = [
        keras.Input((None, None, count), name=f"res{level}") for level, count in enumerate(input_channels, 2)
    ]
    outputs: list[keras.KerasTensor] = []
    above, last = None, len(inputs) + 2
    for level in range(last - 1, 1, -1):
        lateral = convolution(inputs[level - 2], "lateral", level, 1)
        if above is not None:
            doubled = layers.UpSampling2D(name=f"fpn_up{level}")(above)
            lateral = layers.Add(name=f"fpn_add{level}")([lateral, doubled])
        above = lateral
        outputs.insert(0, convolution(lateral, "output", level, 3))
        if level == last - 1 and top == "conv":
            coarsest = convolution(convolution(lateral, "output", last, 3), "top", last, 3, stride=2)
    outputs.append(coarsest if top == "conv" else layers.MaxPooling2D(1, 2, name=f"fpn_p{last}")(outputs[-1]))
    return keras.Model(inputs, outputs, name=name)
