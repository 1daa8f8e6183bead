"""A small detector's recipe and its weights as a Detectron2 file, for tests of loading."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import numpy as np
import yaml

from keras_seg import models
from keras_seg.weights.assign import variables

URL = "https://example.org/models/model_final_abc123.pkl"
TINY = {
    "backbone": "resnet18", "width": 4, "fpn_channels": 8, "box_head_channels": 16, "mask_channels": 8,
    "proposals": 20, "detections": 5, "score_threshold": 0.0, "short_side": 64, "max_side": 96,
}  # fmt: skip
PLACES = {
    "backbone": "backbone.bottom_up",
    "fpn": "backbone",
    "rpn": "proposal_generator.rpn_head",
    "box_head": "roi_heads.box_head",
    "box_predictor": "roi_heads.box_predictor",
    "mask_head": "roi_heads.mask_head",
}
LEAVES = {
    "kernel": "weight", "bias": "bias", "gamma": "norm.weight", "beta": "norm.bias", "moving_mean": "norm.running_mean",
    "moving_variance": "norm.running_var",
}  # fmt: skip


def detectron2_name(name: str) -> str:
    """Detectron2's name of a variable "part/layer/variable"."""
    part, layer, variable = name.split("/")
    layer = layer.removesuffix("_norm")
    layer = re.sub(r"^(res\d)_(\d)_", r"\1.\2.", layer).replace("stem_conv1", "stem.conv1")
    return f"{PLACES[part]}.{layer}.{LEAVES[variable]}"


def write_detectron2(path: Path, classes: int = 3) -> None:
    """Random weights of the small detector in Detectron2's layout."""
    random = np.random.default_rng(0)
    model = {}
    for name, variable in variables(models.mask_rcnn(classes, **TINY).parts).items():
        # near 1 what scales, so that maps neither vanish nor overflow
        scale = name.endswith(("gamma", "moving_variance"))
        array = random.uniform(0.9 if scale else -0.1, 1.1 if scale else 0.1, variable.shape).astype(
            np.float32
        )
        if array.ndim == 4:
            array = array.transpose(3, 2, 0, 1)
        model[detectron2_name(name)] = array.T if array.ndim == 2 else array
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps({"model": model, "__author__": "test"}))


def write_recipe(path: Path, **published) -> Path:
    """A recipe of the small detector whose weights are published at `URL`."""
    fields = {
        "schema": 1,
        "name": path.stem,
        "summary": "A small detector.",
        "model": {"builder": "mask_rcnn", "class_names": ["a", "b", "c"], **TINY},
        "published": {
            "url": URL, "format": "detectron2", "licence": "CC0", "trained_on": "noise", "box_ap": 1.0, **published,
        },
    }  # fmt: skip
    path.write_text(yaml.safe_dump(fields))
    return path
