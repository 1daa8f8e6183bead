"""The region proposal network's head (Ren et al. 2015, Section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence

import keras
from keras import layers


def rpn_head(
    input_channels: int,
    anchors: int,
    *,
    channels: int | None = None,
    convs: int = 1,
    levels: Sequence[int] | None = None,
    name: str = "rpn",
) -> keras.Model:
    """A map [B, H, W, C] to objectness logits [B, H, W, A] and deltas [B, H, W, 4 * A], anchor by anchor; float32.

    anchors: A, at each place of the map. channels: of the 3x3 convolutions, None for as many as the map has. convs:
    how many of them. One head serves all levels of a pyramid, unless `levels` are given: each then has 3x3 convolutions
    of its own (Model Garden normalises level by level), and the model goes from their maps to lists of logits and deltas.
    """
    small = keras.initializers.RandomNormal(stddev=0.01)

    def hidden(x: keras.KerasTensor, suffix: str = "") -> keras.KerasTensor:
        for index in range(convs):
            layer = f"conv{suffix}" if convs == 1 else f"conv{index}{suffix}"
            x = layers.Conv2D(
                channels or input_channels, 3, padding="same", activation="relu", kernel_initializer=small, name=layer
            )(x)  # fmt: skip
        return x

    logits = layers.Conv2D(anchors, 1, kernel_initializer=small, dtype="float32", name="objectness_logits")
    deltas = layers.Conv2D(4 * anchors, 1, kernel_initializer=small, dtype="float32", name="anchor_deltas")
    if levels is None:
        feature = keras.Input((None, None, input_channels), name="feature")
        x = hidden(feature)
        return keras.Model(feature, [logits(x), deltas(x)], name=name)
    features = [keras.Input((None, None, input_channels), name=f"p{level}") for level in levels]
    maps = [hidden(feature, f"_p{level}") for feature, level in zip(features, levels, strict=True)]
    return keras.Model(features, [[logits(x) for x in maps], [deltas(x) for x in maps]], name=name)
