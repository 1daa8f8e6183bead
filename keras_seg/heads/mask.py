"""Mask heads (He et al. 2017, Figure 4 and Table 2e)."""

from __future__ import annotations

import keras
from keras import layers

from keras_seg.backbones.resnet import normalization

KINDS = ("conv", "conv_norm", "deconv", "mlp2", "mlp3")


def mask_head(
    input_channels: int,
    classes: int,
    *,
    kind: str = "conv",
    side: int = 14,
    channels: int = 256,
    norm_eps: float = 1e-5,
    name: str = "mask_head",
) -> keras.Model:
    """Regions [N, side, side, C] to mask logits [N, m, m, K], float32; m is 2 * side.

    kind: "conv", four 3x3 convolutions and a 2x2 transposed one; "conv_norm", the same with batch normalisation
    (torchvision's v2); "deconv", the transposed convolution alone (C4, after res5); "mlp2" and "mlp3", dense layers
    instead (Table 2e): 1024 and m * m * K, or 1024, 1024 and m * m * K. ValueError for another.

    classes: K; 1 for class-agnostic masks.
    """
    if kind not in KINDS:
        raise ValueError(f"mask_head must be one of {', '.join(map(repr, KINDS))}, got {kind!r}")
    region = x = keras.Input((side, side, input_channels), name="region")
    he = keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal")
    if kind.startswith("mlp"):
        x = layers.Flatten(name="flatten")(x)
        for index in range(1, int(kind[-1])):
            x = layers.Dense(1024, activation="relu", name=f"fc{index}")(x)
        x = layers.Dense(
            4 * side**2 * classes, kernel_initializer=_small(), dtype="float32", name="predictor"
        )(x)
        return keras.Model(region, layers.Reshape((2 * side, 2 * side, classes), name="masks")(x), name=name)
    for index in range(1, 5) if kind.startswith("conv") else ():
        layer, norm = f"mask_fcn{index}", kind == "conv_norm"
        x = layers.Conv2D(channels, 3, padding="same", use_bias=not norm, kernel_initializer=he, name=layer)(
            x
        )
        if norm:
            x = normalization("batch", norm_eps, channels, f"{layer}_norm")(x)
        x = layers.ReLU(name=f"{layer}_relu")(x)
    x = layers.Conv2DTranspose(
        channels, 2, strides=2, activation="relu", kernel_initializer=he, name="deconv"
    )(x)
    logits = layers.Conv2D(classes, 1, kernel_initializer=_small(), dtype="float32", name="predictor")(x)
    return keras.Model(region, logits, name=name)


def _small() -> keras.initializers.Initializer:
    return keras.initializers.RandomNormal(stddev=0.001)
