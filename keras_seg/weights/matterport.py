"""Weights of Matterport's Mask_RCNN (`mask_rcnn_coco.h5`) under keras_seg's names and layouts.

Converted exactly (up to float32's rounding): convolutions' biases and the epsilon of 1e-3 go into the backbone's
normalisations; those of the box and mask heads go into the dense and convolutional kernels before them; a 7x7
convolution becomes the dense layer that it is; the two classes of a proposal's softmax become one logit, their
difference; deltas (dy, dx, log dh, log dw) become dx, dy, dw, dh, and the proposals' are multiplied by their standard
deviations; the background, class 0, goes last or away. Anchors have ratios of width to height there: they are put in
the order in which `anchor_ratios`, height over width, is ascending, as in (0.5, 1, 2).

`ARGUMENTS` are those of `models.mask_rcnn` under which all its networks compute what Matterport's do. `DIFFERENCES`
says what the steps between the networks do otherwise; `read` logs it.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

import numpy as np

from keras_seg.weights import keras_resnet
from keras_seg.weights.layer_file import XY, LayerFile, ungrouped
from keras_seg.weights.legacy_h5 import read_layers

_log = logging.getLogger(__name__)

EPSILON = 1e-3  # Keras's default, which Matterport's normalisations add to the variance
RPN_DELTA_STD = np.array(
    [0.1, 0.1, 0.2, 0.2], np.float32
)  # RPN_BBOX_STD_DEV; BBOX_STD_DEV is box_weights' inverse

# of `models.mask_rcnn`; backbone and classes are the file's (mask_rcnn_coco.h5: "resnet101" and 80)
ARGUMENTS = {
    "structure": "fpn",
    "stride_in_1x1": True,
    "padding": "same_pool",
    "pixel_mean": (123.7, 116.8, 103.9),
    "rpn_channels": 512,
    "pre_nms_proposals": 6000,
    "score_threshold": 0.7,
    "box_nms": 0.3,
    "roi_sampling": 1,
    "short_side": 800,
    "max_side": 1024,
}
DIFFERENCES = (
    "RoIs are sampled at the centres of bins, by RoIAlign; there, from edge to edge, by crop_and_resize.",
    "A RoI's level of the pyramid is rounded down, as in the paper; there, to the nearest.",
    "Boxes are continuous; there, deltas apply to boxes one pixel narrower, and results are rounded to whole pixels.",
    "Each level of the pyramid has its own suppression and its own limit of proposals; there, all levels share one.",
    "Images are padded at the bottom and the right with the mean colour; there, on all sides to a square with black.",
    "Deltas enlarge a side at most 62.5-fold; there, without limit.",
)

# (Matterport's layer, that of the normalisation after it, keras_seg's); the ResNet's are in keras_resnet
LAYERS = [
    (r"fpn_c(\d)p\1", None, r"fpn/fpn_lateral\1"),
    (r"fpn_p(\d)", None, r"fpn/fpn_output\1"),
    (r"rpn_conv_shared", None, "rpn/conv"),
    (r"rpn_class_raw", None, "rpn/objectness_logits"),
    (r"rpn_bbox_pred", None, "rpn/anchor_deltas"),
    (r"mrcnn_class_conv(\d)", r"mrcnn_class_bn\1", r"box_head/fc\1"),
    (r"mrcnn_class_logits", None, "box_predictor/cls_score"),
    (r"mrcnn_bbox_fc", None, "box_predictor/bbox_pred"),
    (r"mrcnn_mask_conv(\d)", r"mrcnn_mask_bn\1", r"mask_head/mask_fcn\1"),
    (r"mrcnn_mask_deconv", None, "mask_head/deconv"),
    (r"mrcnn_mask", None, "mask_head/predictor"),
]


def read(path: str | Path, *, norm_eps: float = 1e-5) -> dict[str, np.ndarray]:
    """The file's arrays under keras_seg's variable names, for RGB images.

    norm_eps: of the model that gets them.

    Raises FileNotFoundError; ValueError: truncated, no HDF5 or of something else; layers or arrays that are missing or
    not understood, which are named.
    """
    path = Path(path)
    layers = read_layers(path)
    layers.pop("anchors", None)  # a constant, which later versions keep in a layer
    file = LayerFile(path, layers)
    backbone = keras_resnet.convert(file, epsilon=EPSILON, norm_eps=norm_eps)
    arrays = {f"backbone/{name}": array for name, array in backbone.items()}
    for layer in file.layers:
        for pattern, norm, ours in LAYERS:
            if match := re.fullmatch(pattern, layer):
                kernel, bias = _layer(file, layer, match.expand(norm) if norm else None)
                arrays |= {f"{match.expand(ours)}/kernel": kernel, f"{match.expand(ours)}/bias": bias}
    file.require_all_taken("Matterport Mask R-CNN")
    _log.warning("%s: what differs from Matterport's own inference: %s", path, " ".join(DIFFERENCES))
    return arrays


def _layer(file: LayerFile, layer: str, norm: str | None) -> tuple[np.ndarray, ...]:
    """keras_seg's kernel and bias."""
    if norm:
        kernel, bias = file.folded(layer, norm, EPSILON)
        # a convolution of the box head covers its map
        return (kernel.reshape(-1, len(bias)) if layer.startswith("mrcnn_class") else kernel), bias
    if layer == "rpn_class_raw":
        return tuple(array[..., ::-1, 1] - array[..., ::-1, 0] for array in file.grouped(layer, 2))
    if layer == "rpn_bbox_pred":
        deltas = (array * RPN_DELTA_STD for array in file.grouped(layer, 4))
        return tuple(ungrouped(array[..., ::-1, XY]) for array in deltas)
    if layer == "mrcnn_bbox_fc":
        return tuple(ungrouped(array[..., 1:, XY]) for array in file.grouped(layer, 4))
    if layer == "mrcnn_class_logits":
        return tuple(np.roll(array, -1, axis=-1) for array in file.linear(layer))
    if layer == "mrcnn_mask":
        return tuple(array[..., 1:] for array in file.linear(layer))
    return file.linear(layer)
