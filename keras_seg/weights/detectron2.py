"""Weights of Detectron2 (`model_final_*.pkl` of its model zoo, `model_final.pth` of its trainer) under keras_seg's names and
layouts.

Detectron2's images are BGR, its maps [C, H, W]; its classes are ordered as ours, background last.
"""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import cast

import numpy as np

from keras_seg.weights.layouts import NORMALIZATION, dense_on_map, kernel, require_understood
from keras_seg.weights.pickles import load_pickle, load_torch

BOX_SIDE, MLP_MASK_SIDE = (
    7,
    14,
)  # of the maps that the first dense layer of a box head, or of an MLP mask head, sees
# Made anew by the model from its arguments.
IGNORED = re.compile(r"pixel_mean|pixel_std|.*\.anchor_generator\.cell_anchors\.\d+|.*\.num_batches_tracked")

# (Detectron2's module, keras_seg's layer), the first that fits the whole module name
MODULES = [
    (r"backbone(?:\.bottom_up)?\.stem\.conv1", "backbone/stem_conv1"),
    (r"backbone(?:\.bottom_up)?\.(res\d)\.(\d+)\.(conv\d|shortcut)", r"backbone/\1_\2_\3"),
    (r"backbone\.(fpn_(?:lateral|output)\d)", r"fpn/\1"),
    (r"proposal_generator\.rpn_head\.(conv|objectness_logits|anchor_deltas)", r"rpn/\1"),
    (r"roi_heads\.(res5)\.(\d+)\.(conv\d|shortcut)", r"res5/\1_\2_\3"),
    (r"roi_heads\.box_head\.(fc\d)", r"box_head/\1"),
    (r"roi_heads\.box_predictor\.(cls_score|bbox_pred)", r"box_predictor/\1"),
    (r"roi_heads\.mask_head\.(mask_fcn\d|fc\d|deconv|predictor)", r"mask_head/\1"),
    (r"roi_heads\.keypoint_head\.(conv_fcn\d|score_lowres)", r"keypoint_head/\1"),
]


def rename(name: str) -> str | None:
    """keras_seg's name, "backbone/res2_0_conv1/kernel", of a Detectron2 parameter or buffer; None if it has none."""
    module, _, leaf = name.rpartition(".")
    norm = module.endswith(".norm")
    module = module.removesuffix(".norm")
    if norm:
        variable = NORMALIZATION.get(leaf)
    else:
        variable = {"weight": "kernel", "bias": "bias"}.get(leaf)
    for pattern, layer in MODULES:
        if variable and (match := re.fullmatch(pattern, module)):
            return f"{match.expand(layer)}{'_norm' if norm else ''}/{variable}"
    return None


def read(path: str | Path) -> dict[str, np.ndarray]:
    """The file's arrays under keras_seg's variable names, in Keras's layouts, for RGB images.

    Raises FileNotFoundError; ValueError: damaged or hostile (see `pickles`), or parameters that keras_seg does not
    know, which are named.
    """
    path = Path(path)
    content = {"model": load_torch(path)} if zipfile.is_zipfile(path) else load_pickle(path)
    model = content.get("model") if isinstance(content, dict) else None
    if not isinstance(model, dict) or not all(isinstance(array, np.ndarray) for array in model.values()):
        raise ValueError(f'{path}: no Detectron2 model: expected {{"model": {{name: array}}}}')
    arrays = {name: array for name, array in model.items() if not IGNORED.fullmatch(name)}
    names = {name: rename(name) for name in arrays}
    require_understood(path, arrays, (name for name in arrays if names[name]), "Detectron2")
    ours = {name: cast(str, names[name]) for name in arrays}
    return {ours[name]: _convert(ours[name], array) for name, array in arrays.items()}


def _convert(name: str, array: np.ndarray) -> np.ndarray:
    if name == "backbone/stem_conv1/kernel":
        array = array[:, ::-1]  # BGR to RGB
    if name == "box_head/fc1/kernel":
        return dense_on_map(array, BOX_SIDE)
    if name == "mask_head/fc1/kernel":
        return dense_on_map(array, MLP_MASK_SIDE)
    return kernel(array) if name.endswith("/kernel") else array
