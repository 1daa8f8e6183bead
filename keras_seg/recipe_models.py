"""The `model:` blocks of recipes, which are the arguments of the builders, and where published weights lie."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from keras_seg.data.coco_names import NAME_LISTS
from keras_seg.schema import Block, did_you_mean

Share = Annotated[float, Field(ge=0, le=1)]


def _named_list(value: Any) -> Any:
    """ "coco" to the names of COCO's classes."""
    if not isinstance(value, str):
        return value
    if value not in NAME_LISTS:
        raise ValueError(
            f"must be a list of names, or one of {', '.join(NAME_LISTS)}{did_you_mean(value, [*NAME_LISTS])}"
        )
    return list(NAME_LISTS[value])


Names = Annotated[list[str] | None, BeforeValidator(_named_list)]


class _WithClasses(Block):
    """`class_names` alone gives `classes` too."""

    class_names: Names = None

    @model_validator(mode="before")
    @classmethod
    def _count_names(cls, fields: Any) -> Any:
        if not isinstance(fields, Mapping):
            return fields
        counted = dict(fields)
        for names, count in (("class_names", "classes"), ("keypoint_names", "keypoints")):
            value = fields.get(names)
            value = NAME_LISTS.get(value) if isinstance(value, str) else value
            if isinstance(value, list | tuple) and count in cls.model_fields and count not in fields:
                counted[count] = len(value)
        return counted

    @model_validator(mode="after")
    def _check_names(self) -> _WithClasses:
        for names, count in (("class_names", "classes"), ("keypoint_names", "keypoints")):
            given, number = getattr(self, names, None), getattr(self, count, None)
            if given is not None and len(given) != number:
                raise ValueError(f"{count} is {number}, but {names} has {len(given)}: {', '.join(given)}")
            if given is not None and len(set(given)) < len(given):
                raise ValueError(f"{names} has a name twice: {', '.join(given)}")
        return self

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments for the builder."""
        return self.model_dump(exclude={"builder"})


class UNetModel(_WithClasses):
    """Arguments of `keras_seg.models.unet`."""

    builder: Literal["unet"]
    input_channels: PositiveInt = 1
    classes: PositiveInt = 2
    depth: Annotated[int, Field(ge=1, le=8)] = 4
    base_channels: PositiveInt = 64
    padding: Literal["valid", "same"] = "valid"
    normalization: Literal["batch", "group"] | None = None
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5
    activation: Literal["softmax", "sigmoid"] = "softmax"
    tile: PositiveInt | None = None
    rotations: Annotated[int, Field(ge=1, le=8)] = 1

    @model_validator(mode="after")
    def _check_activation(self) -> UNetModel:
        if self.activation == "softmax" and self.classes < 2:
            raise ValueError('activation "softmax" needs at least 2 classes; for one, use "sigmoid"')
        return self


class MaskRCNNModel(_WithClasses):
    """Arguments of `keras_seg.models.mask_rcnn`, which explains them."""

    builder: Literal["mask_rcnn"]
    classes: PositiveInt = 80
    backbone: Literal[
        "resnet18",
        "resnet34",
        "resnet50",
        "resnet101",
        "resnet152",
        "resnext101_32x8d",
        "resnext101_64x4d",
    ] = "resnet50"
    structure: Literal["fpn", "c4", "dc5", "c5"] = "fpn"
    width: PositiveInt = 64
    fpn_channels: PositiveInt = 256
    fpn_normalization: Literal["frozen", "batch", "group"] | None = None
    fpn_top: Literal["pool", "conv"] = "pool"
    normalization: Literal["frozen", "batch", "group"] = "frozen"
    norm_eps: NonNegativeFloat = 1e-5
    stride_in_1x1: bool = True
    padding: Literal["symmetric", "same", "same_pool"] = "symmetric"
    pixel_mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    pixel_std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (1.0, 1.0, 1.0)
    anchor_sizes: tuple[PositiveFloat, ...] = (32, 64, 128, 256, 512)
    anchor_ratios: tuple[PositiveFloat, ...] = (0.5, 1.0, 2.0)
    anchors_rounded: bool = False
    anchor_offset: float = 0.0
    rpn_convs: PositiveInt = 1
    rpn_channels: PositiveInt | None = None
    rpn_shared: bool = True
    pre_nms_proposals: PositiveInt | None = None
    proposals: PositiveInt = 1000
    rpn_nms: Share = 0.7
    rpn_min_size: NonNegativeFloat = 0.0
    rpn_only: bool = False
    box_head: Literal["fc", "conv_fc"] = "fc"
    box_head_channels: PositiveInt = 1024
    class_agnostic_boxes: bool = False
    box_weights: tuple[PositiveFloat, PositiveFloat, PositiveFloat, PositiveFloat] = (10.0, 10.0, 5.0, 5.0)
    score_threshold: Share = 0.05
    box_nms: Share = 0.5
    detections: PositiveInt = 100
    box_min_size: NonNegativeFloat = 0.0
    masks: bool = True
    mask_head: Literal["conv", "conv_norm", "mlp2", "mlp3"] = "conv"
    mask_channels: PositiveInt = 256
    mask_loss: Literal["sigmoid", "softmax"] = "sigmoid"
    class_agnostic_masks: bool = False
    keypoints: NonNegativeInt = 0
    keypoint_names: Names = None
    keypoint_channels: PositiveInt = 512
    roi: Literal["align", "pool", "warp"] = "align"
    roi_sampling: NonNegativeInt = 0
    roi_aligned: bool = True
    roi_pooling: Literal["average", "max"] = "average"
    convention: Literal["detectron2", "torchvision"] = "detectron2"
    short_side: PositiveInt = 800
    max_side: PositiveInt = 1333
    scale: PositiveFloat | None = None


class Published(Block):
    """Weights that somebody else publishes: where, in which format, under which licence, and how good.

    sha256: the whole digest or its first digits, where these are published; else it is pinned at the first download.
    The average precisions are the publisher's, in percent, on COCO val2017.
    """

    url: Annotated[str, Field(pattern="^https://.+")]
    format: Literal["detectron2", "torchvision"]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{6,64}$")] | None = None
    licence: str
    trained_on: str
    box_ap: PositiveFloat | None = None
    mask_ap: PositiveFloat | None = None
    keypoint_ap: PositiveFloat | None = None
