"""The region proposal network's head (Ren et al. 2015, Section 3.1)."""

from __future__ import annotations

import keras
from keras import layers


def rpn_head(
    input_channels: int, anchors: int, *, channels: int | None = None, convs: int = 1, name: str = "rpn"
) -> keras.Model:
    """A map [B, H, W, C] to objectness logits [B, H, W, A] and deltas [B, H, W, 4 * A], anchor by anchor; float32.

    anchors: A, at each place of the map. channels: of the 3x3 convolutions, None for as many as the map has. convs:
    how many of them. One head serves all levels of a pyramid.
    """
    small = keras.initializers.RandomNormal(stddev=0.01)
    feature = x = keras.Input((None, None, input_channels), name="feature")
    for index in range(convs):
        layer = "conv" if convs == 1 else f"conv{index}"
        x = layers.Conv2D(
            channels or input_channels, 3, padding="same", activation="relu", kernel_initializer=small, name=layer
        )(x)  # fmt: skip
    logits = layers.Conv2D(anchors, 1, kernel_initializer=small, dtype="float32", name="objectness_logits")(x)
    deltas = layers.Conv2D(4 * anchors, 1, kernel_initializer=small, dtype="float32", name="anchor_deltas")(x)
    return keras.Model(feature, [logits, deltas], name=name)
