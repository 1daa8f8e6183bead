"""Box heads: pooled regions to class logits and box deltas (Girshick 2015; Lin et al. 2017, Section 4.2)."""

from __future__ import annotations

import keras
from keras import layers

from keras_seg.backbones.resnet import normalization

KINDS = ("fc", "conv_fc")


def box_head(
    input_channels: int,
    *,
    kind: str = "fc",
    side: int = 7,
    channels: int = 1024,
    norm_eps: float = 1e-5,
    name: str = "box_head",
) -> keras.Model:
    """Regions [N, side, side, C] to features [N, channels].

    kind: "fc", two dense layers (Lin et al. 2017); "conv_fc", four 3x3 convolutions of as many channels as the regions
    have, with batch normalisation, and one dense layer (Wu and He 2018; torchvision's v2). ValueError for another.
    """
    region = x = keras.Input((side, side, input_channels), name="region")
    if kind == "conv_fc":
        for index in range(1, 5):
            x = layers.Conv2D(
                input_channels, 3, padding="same", use_bias=False, kernel_initializer=_he(), name=f"conv{index}"
            )(x)  # fmt: skip
            x = normalization("batch", norm_eps, input_channels, f"conv{index}_norm")(x)
            x = layers.ReLU(name=f"conv{index}_relu")(x)
    elif kind != "fc":
        raise ValueError(f"box_head must be one of {', '.join(map(repr, KINDS))}, got {kind!r}")
    x = layers.Flatten(name="flatten")(x)
    for index in (1, 2) if kind == "fc" else (1,):
        x = layers.Dense(channels, activation="relu", name=f"fc{index}")(x)
    return keras.Model(region, x, name=name)


def box_predictor(
    input_features: int, classes: int, *, class_agnostic: bool = False, name: str = "box_predictor"
) -> keras.Model:
    """Features [N, F] to class logits [N, K + 1], background last, and deltas [N, 4 * K], class by class, or [N, 4]
    (class-agnostic); float32."""
    feature = keras.Input((input_features,), name="feature")
    logits = layers.Dense(
        classes + 1,
        kernel_initializer=keras.initializers.RandomNormal(stddev=0.01),
        dtype="float32",
        name="cls_score",
    )(feature)
    deltas = layers.Dense(
        4 if class_agnostic else 4 * classes,
        kernel_initializer=keras.initializers.RandomNormal(stddev=0.001),
        dtype="float32",
        name="bbox_pred",
    )(feature)
    return keras.Model(feature, [logits, deltas], name=name)


def _he() -> keras.initializers.Initializer:
    return keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal")
