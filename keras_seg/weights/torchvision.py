"""Weights of torchvision's detection models (`.pth`) under keras_seg's names and layouts.

torchvision's class 0 is the background; here it is the last, has no boxes and no mask.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import cast

import numpy as np

from keras_seg.weights.layouts import NORMALIZATION, dense_on_map, kernel, require_understood
from keras_seg.weights.pickles import load_torch

BOX_SIDE = 7  # of the maps that the first dense layer of a box head sees
IGNORED = re.compile(r".*\.num_batches_tracked")

# (torchvision's layer, keras_seg's). Levels and blocks count from 0 there; `{n+k}` adds k to the n-th group. Files of
# before torchvision 0.12 lack the inner ".0".
LAYERS = [
    (r"backbone\.body\.(?:conv1|bn1)", "backbone/stem_conv1"),
    (r"backbone\.body\.layer(\d)\.(\d+)\.(?:conv|bn)(\d)", "backbone/res{1+1}_{2+0}_conv{3+0}"),
    (r"backbone\.body\.layer(\d)\.(\d+)\.downsample\.[01]", "backbone/res{1+1}_{2+0}_shortcut"),
    (r"backbone\.fpn\.inner_blocks\.(\d)(?:\.[01])?", "fpn/fpn_lateral{1+2}"),
    (r"backbone\.fpn\.layer_blocks\.(\d)(?:\.[01])?", "fpn/fpn_output{1+2}"),
    (r"rpn\.head\.conv(?:\.(\d)\.0)?", "rpn/conv"),
    (r"rpn\.head\.cls_logits", "rpn/objectness_logits"),
    (r"rpn\.head\.bbox_pred", "rpn/anchor_deltas"),
    (r"roi_heads\.box_head\.fc6|roi_heads\.box_head\.5", "box_head/fc1"),
    (r"roi_heads\.box_head\.fc7", "box_head/fc2"),
    (r"roi_heads\.box_head\.(\d)\.[01]", "box_head/conv{1+1}"),
    (r"roi_heads\.box_predictor\.cls_score", "box_predictor/cls_score"),
    (r"roi_heads\.box_predictor\.bbox_pred", "box_predictor/bbox_pred"),
    (r"roi_heads\.mask_head\.(\d)\.[01]", "mask_head/mask_fcn{1+1}"),
    (r"roi_heads\.mask_head\.mask_fcn(\d)", "mask_head/mask_fcn{1+0}"),
    (r"roi_heads\.mask_predictor\.conv5_mask", "mask_head/deconv"),
    (r"roi_heads\.mask_predictor\.mask_fcn_logits", "mask_head/predictor"),
    (r"roi_heads\.keypoint_predictor\.kps_score_lowres", "keypoint_head/score_lowres"),
]
KEYPOINT_CONVOLUTION = re.compile(r"roi_heads\.keypoint_head\.(\d+)")  # every second module is a ReLU


def rename(name: str, normalized: bool = False, rpn_convs: int = 1) -> str | None:
    """keras_seg's name of a torchvision parameter or buffer; None if it has none.

    normalized: it belongs to a normalisation layer, which torchvision's names do not tell everywhere. rpn_convs: how
    many convolutions the file's RPN has; with several they are numbered.
    """
    module, _, leaf = name.rpartition(".")
    variable = (NORMALIZATION if normalized else {"weight": "kernel", "bias": "bias"}).get(leaf)
    layer = _layer(module, rpn_convs)
    return f"{layer}{'_norm' if normalized else ''}/{variable}" if layer and variable else None


def read(path: str | Path) -> dict[str, np.ndarray]:
    """The file's arrays under keras_seg's variable names, in Keras's layouts, background last.

    Raises FileNotFoundError; ValueError: damaged or hostile (see `pickles`), or parameters that keras_seg does not
    know, which are named.
    """
    path = Path(path)
    arrays = {name: array for name, array in load_torch(path).items() if not IGNORED.fullmatch(name)}
    normalized = {name.rpartition(".")[0] for name in arrays if name.endswith(".running_mean")}
    rpn_convs = max(1, sum(name.startswith("rpn.head.conv") and name.endswith("weight") for name in arrays))
    names = {name: rename(name, name.rpartition(".")[0] in normalized, rpn_convs) for name in arrays}
    require_understood(path, arrays, (name for name in arrays if names[name]), "torchvision")
    ours = {name: cast(str, names[name]) for name in arrays}
    return {ours[name]: _convert(ours[name], array) for name, array in arrays.items()}


def _layer(module: str, rpn_convs: int) -> str | None:
    if match := KEYPOINT_CONVOLUTION.fullmatch(module):
        return f"keypoint_head/conv_fcn{int(match[1]) // 2 + 1}"
    for pattern, ours in LAYERS:
        if match := re.fullmatch(pattern, module):
            if ours == "rpn/conv" and rpn_convs > 1:
                return f"rpn/conv{match[1]}"
            return re.sub(r"\{(\d)\+(\d)\}", functools.partial(_sum, match), ours)
    return None


def _sum(match: re.Match, part: re.Match) -> str:
    return str(int(match[int(part[1])]) + int(part[2]))


def _convert(name: str, array: np.ndarray) -> np.ndarray:
    if name.startswith("box_predictor/cls_score"):
        array = np.roll(array, -1, axis=0)
    elif name.startswith("box_predictor/bbox_pred"):
        array = array[4:]
    elif name.startswith("mask_head/predictor"):
        array = array[1:]
    elif name == "box_head/fc1/kernel":
        return dense_on_map(array, BOX_SIDE)
    return kernel(array) if name.endswith("/kernel") else array
