"""Backbones, pyramids and proposal heads compute what Detectron2's do, with weights through the real importer.

Tolerance: 1e-4 of each tensor's standard deviation, as golden/README.md advises (2e-5 was seen between machines).
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import tensorflow as tf
from golden_models import rule
from PIL import Image

from keras_seg.backbones import fpn, resnet
from keras_seg.heads import rpn_head
from keras_seg.weights import detectron2
from keras_seg.weights.assign import assign, variables

MEAN = np.array([123.675, 116.28, 103.53], np.float32)  # RGB
TOLERANCE = 1e-4
CASES = {
    "mask_rcnn_R_50_FPN_1x": ("resnet50", "fpn"),
    "mask_rcnn_R_101_FPN_3x": ("resnet101", "fpn"),
    "mask_rcnn_R_50_C4_1x": ("resnet50", "c4"),
    "mask_rcnn_R_50_DC5_1x": ("resnet50", "dc5"),
}


def build(backbone: str, structure: str) -> dict:
    if structure == "fpn":
        return {
            "backbone": resnet(backbone),
            "fpn": fpn([256, 512, 1024, 2048]),
            "rpn": rpn_head(256, 3),
        }
    stage, dilation, channels = ("res4", 1, 1024) if structure == "c4" else ("res5", 2, 2048)
    return {
        "backbone": resnet(backbone, outputs=[stage], res5_dilation=dilation),
        "rpn": rpn_head(channels, 15),
    }


def load(parts: dict, shared, config: str, path) -> None:
    module = rule(shared)
    shapes, scale = module.load_params(shared / "golden/detectron2" / config / "params.json")
    wanted = {name: shape for name, shape in shapes.items() if not name.startswith("roi_heads")}
    module.write_detectron2_pickle(path, wanted, scale)
    assign(parts, detectron2.read(path), path)


def network_input(shared, image: str, size, multiple: int) -> tf.Tensor:
    """The normalised and padded image, float32 [1, H, W, 3], RGB."""
    height, width = size
    picture = Image.open(shared / "golden/images" / f"{image}.png").resize((width, height), Image.BILINEAR)
    pixels = np.asarray(picture, np.float32) - MEAN
    pad = [(0, -height % multiple), (0, -width % multiple), (0, 0)]
    return tf.constant(np.pad(pixels, pad)[None])


def compare(found: tf.Tensor, golden, key: str) -> None:
    found = np.transpose(found, (0, 3, 1, 2))
    assert list(found.shape) == golden[f"{key}.shape"].tolist(), key
    c, y, x = golden[f"{key}.stride"]
    deviation = golden[f"{key}.stats"][1]
    difference = np.abs(found[0, ::c, ::y, ::x] - golden[f"{key}.sample"]).max()
    assert difference <= TOLERANCE * deviation, (key, difference / deviation)


@pytest.mark.parametrize("config", CASES)
def test_features_are_detectron2s(shared, tmp_path, config):
    structure = CASES[config][1]
    parts = build(*CASES[config])
    load(parts, shared, config, tmp_path / "model.pkl")
    image = "coco_000000000785"
    golden = np.load(shared / "golden/detectron2" / config / f"{image}_320.npz")
    pixels = network_input(shared, image, golden["input_size"].tolist(), 32 if structure == "fpn" else 1)
    maps = parts["backbone"](pixels)
    if structure == "fpn":
        for stage, found in zip(("res2", "res3", "res4", "res5"), maps, strict=True):
            compare(found, golden, f"backbone.{stage}")
        maps = parts["fpn"](maps)
        for level, found in enumerate(maps, 2):
            compare(found, golden, f"fpn.p{level}")
    else:
        compare(maps, golden, f"backbone.{'res4' if structure == 'c4' else 'res5'}")
        maps = [maps]
    for level, found in enumerate(maps):
        logits, deltas = parts["rpn"](found)
        compare_head(logits, golden, f"rpn.level{level}.objectness_logits")
        compare_head(deltas, golden, f"rpn.level{level}.anchor_deltas")


def compare_head(found: tf.Tensor, golden, key: str) -> None:
    if f"{key}.sample" in golden.files:
        compare(found, golden, key)
        return
    expected = golden[key]
    difference = np.abs(np.transpose(found, (0, 3, 1, 2)) - expected).max()
    assert difference <= TOLERANCE * expected.std(), (key, difference / expected.std())


def test_weights_of_another_model_change_nothing(tmp_path, shared):
    parts = build("resnet50", "c4")
    before = [np.array(v) for v in parts["rpn"].weights]
    wrong = {"rpn/conv/kernel": np.zeros((3, 3, 9, 9), np.float32), "fpn/fpn_lateral2/bias": np.zeros(4)}
    with pytest.raises(ValueError, match="model.pkl: weights of another model: missing backbone/") as error:
        assign(parts, wrong, "model.pkl")
    assert "more" in str(error.value)
    small = {"rpn": rpn_head(9, 2)}
    arrays = {name: np.zeros(v.shape) for name, v in variables(small).items()}
    arrays["rpn/conv/kernel"] = np.zeros((1, 1, 9, 9))
    with pytest.raises(
        ValueError, match=r"rpn/conv/kernel is \[1, 1, 9, 9\] in the file and \[3, 3, 9, 9\] in"
    ):
        assign(small, arrays, "model.pkl")
    assert all(np.array_equal(a, b) for a, b in zip(before, parts["rpn"].weights, strict=True))
    assert json.dumps(sorted(arrays)) == json.dumps(
        ["rpn/anchor_deltas/bias", "rpn/anchor_deltas/kernel", "rpn/conv/bias", "rpn/conv/kernel",
         "rpn/objectness_logits/bias", "rpn/objectness_logits/kernel"]
    )  # fmt: skip
