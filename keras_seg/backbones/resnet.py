"""ResNet (He et al. 2016) and ResNeXt (Xie et al. 2017) as feature extractors, layer by layer Detectron2's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf
from keras import layers

STAGES = ("res2", "res3", "res4", "res5")
STRIDES = dict(zip(STAGES, (4, 8, 16, 32), strict=True))
NORMALIZATIONS = ("frozen", "batch", "group")
PADDINGS = ("symmetric", "same", "same_pool")


@dataclass(frozen=True)
class Variant:
    """blocks: of each stage. groups and group_width: of the 3x3 convolutions. bottleneck: blocks of three
    convolutions (else two)."""

    blocks: tuple[int, int, int, int]
    groups: int = 1
    group_width: int = 64
    bottleneck: bool = True


VARIANTS = {
    "resnet18": Variant((2, 2, 2, 2), bottleneck=False),
    "resnet34": Variant((3, 4, 6, 3), bottleneck=False),
    "resnet50": Variant((3, 4, 6, 3)),
    "resnet101": Variant((3, 4, 23, 3)),
    "resnet152": Variant((3, 8, 36, 3)),
    "resnext101_32x8d": Variant((3, 4, 23, 3), 32, 8),
    "resnext101_64x4d": Variant((3, 4, 23, 3), 64, 4),
}


@keras.saving.register_keras_serializable("keras_seg")
class FrozenBatchNormalization(layers.Layer):
    """Batch normalisation with fixed statistics and a fixed affine map, as detectors fine-tune their backbones with."""

    def __init__(self, epsilon: float = 1e-5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.epsilon = epsilon

    def build(self, shape: tuple[int | None, ...]) -> None:
        for name, value in (("gamma", 1), ("beta", 0), ("moving_mean", 0), ("moving_variance", 1)):
            constant = keras.initializers.Constant(value)
            setattr(
                self,
                name,
                self.add_weight(shape=shape[-1:], initializer=constant, trainable=False, name=name),
            )

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """x: [..., C]. Returns the same shape."""
        scale = self.gamma * tf.math.rsqrt(self.moving_variance + self.epsilon)
        shift = self.beta - self.moving_mean * scale
        return x * tf.cast(scale, x.dtype) + tf.cast(shift, x.dtype)

    def get_config(self) -> dict:
        return {**super().get_config(), "epsilon": self.epsilon}


def normalization(kind: str, epsilon: float, channels: int, name: str) -> layers.Layer:
    """A normalisation layer: "frozen", "batch", or "group" (32 groups; Wu and He 2018). ValueError for another kind."""
    if kind == "frozen":
        return FrozenBatchNormalization(epsilon, name=name)
    if kind == "batch":
        return layers.BatchNormalization(epsilon=epsilon, momentum=0.9, name=name)
    if kind == "group":
        return layers.GroupNormalization(math.gcd(32, channels), epsilon=epsilon, name=name)
    raise ValueError(f"normalization must be one of {', '.join(map(repr, NORMALIZATIONS))}, got {kind!r}")


def resnet(
    variant: str = "resnet50",
    *,
    outputs: Sequence[str] = STAGES,
    normalization: str = "frozen",
    norm_eps: float = 1e-5,
    stride_in_1x1: bool = True,
    padding: str = "symmetric",
    res5_dilation: int = 1,
    width: int = 64,
    name: str = "backbone",
) -> keras.Model:
    """A backbone: images [B, H, W, 3], normalised, to one map for each of `outputs`.

    Args:
        variant: one of `VARIANTS`.
        outputs: stages whose maps are given, of "res2" (stride 4, 4 * width channels in bottleneck networks) to
            "res5" (stride 32); later stages are not built.
        normalization: "frozen", "batch" or "group".
        norm_eps: added to the variance.
        stride_in_1x1: a stage's first bottleneck strides in its first 1x1 convolution (the original network, and
            Detectron2's R50 and R101) instead of the 3x3 (torchvision, ResNeXt).
        padding: where a layer strides: "symmetric", as in PyTorch; "same", as TensorFlow calls its own, which has the
            odd pixel at the end (Model Garden); "same_pool": that for the pooling alone (Matterport).
        res5_dilation: 2 keeps res5 at stride 16 with dilated convolutions (DC5).
        width: channels of the stem and of the first stage's 3x3 convolutions; 64 in all published networks.
        name: of the model.

    Returns: a functional model; with one output a map, else a list of maps [B, H / s, W / s, C].

    Raises:
        ValueError: an unknown variant, stage, normalisation or padding.
    """
    _check(variant, outputs, res5_dilation, padding)
    parts = _Parts(VARIANTS[variant], normalization, norm_eps, stride_in_1x1, padding, width)
    image = keras.Input((None, None, 3), name="image")
    x = parts.convolution(image, "stem_conv1", width, 7, stride=2)
    if padding == "symmetric":
        x = layers.ZeroPadding2D(1, name="stem_pad")(x)  # zeros are no larger than what follows a ReLU
    x = layers.MaxPooling2D(3, 2, "valid" if padding == "symmetric" else "same", name="stem_pool")(x)
    maps = {}
    for stage in STAGES[: 1 + max(STAGES.index(output) for output in outputs)]:
        x = parts.stage(x, stage, res5_dilation if stage == "res5" else 1)
        maps[stage] = x
    found = [maps[output] for output in outputs]
    return keras.Model(image, found if len(found) > 1 else found[0], name=name)


def res5_head(
    variant: str = "resnet50",
    *,
    normalization: str = "frozen",
    norm_eps: float = 1e-5,
    stride_in_1x1: bool = True,
    padding: str = "symmetric",
    width: int = 64,
    name: str = "res5",
) -> keras.Model:
    """The last stage as a head on pooled regions (C4; He et al. 2017, Figure 4 left): [N, 14, 14, 16 * width] to
    [N, 7, 7, 32 * width]. Arguments as those of `resnet`."""
    _check(variant, ("res5",), 1, padding)
    parts = _Parts(VARIANTS[variant], normalization, norm_eps, stride_in_1x1, padding, width)
    expansion = 4 if VARIANTS[variant].bottleneck else 1
    region = keras.Input((None, None, 4 * width * expansion), name="region")
    return keras.Model(region, parts.stage(region, "res5"), name=name)


def channels(variant: str, stage: str, width: int = 64) -> int:
    """Channels of a stage's map."""
    return width * 2 ** STAGES.index(stage) * (4 if VARIANTS[variant].bottleneck else 1)


def _check(variant: str, outputs: Sequence[str], res5_dilation: int, padding: str) -> None:
    if variant not in VARIANTS:
        raise ValueError(f"backbone must be one of {', '.join(VARIANTS)}, got {variant!r}")
    unknown = [output for output in outputs if output not in STAGES]
    if unknown or not outputs:
        raise ValueError(f"backbone outputs must be some of {', '.join(STAGES)}, got {list(outputs)}")
    if res5_dilation not in (1, 2):
        raise ValueError(f"res5_dilation must be 1 or 2, got {res5_dilation!r}")
    if padding not in PADDINGS:
        raise ValueError(f"padding must be one of {', '.join(map(repr, PADDINGS))}, got {padding!r}")


@dataclass(frozen=True)
class _Parts:
    """Builds the pieces of one network."""

    variant: Variant
    norm: str
    norm_eps: float
    stride_in_1x1: bool
    padding: str
    width: int

    def convolution(
        self,
        x: keras.KerasTensor,
        name: str,
        filters: int,
        kernel: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        relu: bool = True,
    ) -> keras.KerasTensor:
        """A convolution, its normalisation, and a ReLU."""
        border = dilation * (kernel // 2)
        padded = border > 0 and stride > 1 and self.padding != "same"  # else Keras's "same" is what is wanted
        if padded:
            x = layers.ZeroPadding2D(border, name=f"{name}_pad")(x)
        x = layers.Conv2D(
            filters, kernel, strides=stride, padding="valid" if padded else "same",
            dilation_rate=dilation, groups=groups, use_bias=False,
            kernel_initializer=keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal"), name=name,
        )(x)  # fmt: skip
        x = normalization(self.norm, self.norm_eps, filters, f"{name}_norm")(x)
        return layers.ReLU(name=f"{name}_relu")(x) if relu else x

    def stage(self, x: keras.KerasTensor, stage: str, dilation: int = 1) -> keras.KerasTensor:
        place = STAGES.index(stage)
        for block in range(self.variant.blocks[place]):
            stride = 2 if block == 0 and place > 0 and dilation == 1 else 1
            build = self._bottleneck if self.variant.bottleneck else self._basic
            x = build(x, f"{stage}_{block}", self.width * 2**place, stride, dilation)
        return x

    def _bottleneck(
        self, x: keras.KerasTensor, name: str, width: int, stride: int, dilation: int
    ) -> keras.KerasTensor:
        outgoing = 4 * width
        inner = width * self.variant.groups * self.variant.group_width // 64
        first, second = (stride, 1) if self.stride_in_1x1 else (1, stride)
        y = self.convolution(x, f"{name}_conv1", inner, 1, stride=first)
        y = self.convolution(
            y, f"{name}_conv2", inner, 3, stride=second, dilation=dilation, groups=self.variant.groups
        )
        y = self.convolution(y, f"{name}_conv3", outgoing, 1, relu=False)
        return self._add(x, y, name, outgoing, stride)

    def _basic(
        self, x: keras.KerasTensor, name: str, width: int, stride: int, dilation: int
    ) -> keras.KerasTensor:
        y = self.convolution(x, f"{name}_conv1", width, 3, stride=stride, dilation=dilation)
        y = self.convolution(y, f"{name}_conv2", width, 3, dilation=dilation, relu=False)
        return self._add(x, y, name, width, stride)

    def _add(
        self, x: keras.KerasTensor, y: keras.KerasTensor, name: str, outgoing: int, stride: int
    ) -> keras.KerasTensor:
        if x.shape[-1] != outgoing or stride > 1:
            x = self.convolution(x, f"{name}_shortcut", outgoing, 1, stride=stride, relu=False)
        return layers.ReLU(name=f"{name}_relu")(layers.Add(name=f"{name}_add")([x, y]))
