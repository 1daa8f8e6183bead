"""Detectron2's files: every parameter finds its one place, in the right layout."""

from __future__ import annotations

import importlib.util
import json
import pickle
import zipfile

import numpy as np
import pytest

from keras_seg.weights import detectron2

CONFIGURATIONS = [
    "faster_rcnn_R_50_FPN_1x",
    "keypoint_rcnn_R_50_FPN_1x",
    "mask_rcnn_R_101_FPN_3x",
    "mask_rcnn_R_50_C4_1x",
    "mask_rcnn_R_50_DC5_1x",
    "mask_rcnn_R_50_FPN_1x",
]


def write(path, model):
    path.write_bytes(pickle.dumps({"model": model, "__author__": "test"}))
    return path


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_every_parameter_has_a_name_of_its_own(shared, configuration):
    params = json.loads((shared / "golden/detectron2" / configuration / "params.json").read_text())["params"]
    names = [detectron2.rename(name) for name in params if not detectron2.IGNORED.fullmatch(name)]
    assert None not in names and len(set(names)) == len(names) > 200
    assert {name.split("/")[0] for name in names} >= {"backbone", "rpn", "box_predictor"}


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("backbone.bottom_up.stem.conv1.norm.running_var", "backbone/stem_conv1_norm/moving_variance"),
        ("backbone.res4.22.conv3.weight", "backbone/res4_22_conv3/kernel"),
        ("backbone.bottom_up.res2.0.shortcut.norm.weight", "backbone/res2_0_shortcut_norm/gamma"),
        ("roi_heads.res5.1.conv2.norm.bias", "res5/res5_1_conv2_norm/beta"),
        ("roi_heads.mask_head.deconv.bias", "mask_head/deconv/bias"),
        ("roi_heads.mask_head.deconv.running_mean", None),
        ("sem_seg_head.p2.0.weight", None),
    ],
)
def test_names(theirs, ours):
    assert detectron2.rename(theirs) == ours


def test_layouts(tmp_path):
    random = np.random.default_rng(0)
    shapes = {
        "backbone.stem.conv1.weight": (8, 3, 7, 7),
        "backbone.stem.conv1.norm.running_mean": (8,),
        "roi_heads.box_head.fc1.weight": (5, 2 * 49),
        "roi_heads.box_head.fc2.weight": (4, 5),
        "roi_heads.mask_head.deconv.weight": (6, 3, 2, 2),
    }
    model = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    ours = detectron2.read(write(tmp_path / "model.pkl", {**model, "pixel_mean": np.zeros(3)}))
    assert len(ours) == len(model)
    stem = model["backbone.stem.conv1.weight"]
    assert ours["backbone/stem_conv1/kernel"][1, 2, 0, 4] == stem[4, 2, 1, 2]  # red: their last, our first
    # one region of 2 channels, flattened in each library's way, gives the same features
    region = random.normal(size=(2, 7, 7)).astype(np.float32)
    np.testing.assert_allclose(
        region.transpose(1, 2, 0).ravel() @ ours["box_head/fc1/kernel"],
        model["roi_heads.box_head.fc1.weight"] @ region.ravel(),
        rtol=1e-5,
    )
    np.testing.assert_array_equal(ours["box_head/fc2/kernel"], model["roi_heads.box_head.fc2.weight"].T)
    assert ours["mask_head/deconv/kernel"].shape == (2, 2, 3, 6)
    np.testing.assert_array_equal(
        ours["backbone/stem_conv1_norm/moving_mean"], model["backbone.stem.conv1.norm.running_mean"]
    )


def test_a_trainers_checkpoint_is_read_as_what_torch_saved(tmp_path, monkeypatch):
    path = tmp_path / "model_final.pth"
    zipfile.ZipFile(path, "w").close()
    kernel = np.arange(8 * 3 * 49, dtype=np.float32).reshape(8, 3, 7, 7)
    monkeypatch.setattr(detectron2, "load_torch", lambda path: {"backbone.stem.conv1.weight": kernel})
    ours = detectron2.read(path)
    np.testing.assert_array_equal(ours["backbone/stem_conv1/kernel"], kernel[:, ::-1].transpose(2, 3, 1, 0))


def test_the_rules_weights_arrive(shared, tmp_path):
    spec = importlib.util.spec_from_file_location("golden_weights", shared / "golden/weights.py")
    rule = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(rule)
    shapes, scale = rule.load_params(shared / "golden/detectron2/keypoint_rcnn_R_50_FPN_1x/params.json")
    few = {name: shape for name, shape in shapes.items() if "keypoint" in name or "fpn_lateral" in name}
    rule.write_detectron2_pickle(tmp_path / "model.pkl", few, scale)
    ours = detectron2.read(tmp_path / "model.pkl")
    assert len(ours) == len(few)
    assert ours["keypoint_head/score_lowres/kernel"].shape == (4, 4, 17, 512)
    assert ours["fpn/fpn_lateral5/kernel"].shape == (1, 1, 2048, 256)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"weights": {}}, "no Detectron2 model: expected"),
        ([1, 2], "no Detectron2 model: expected"),
        ({"model": {"backbone.stem.conv1.weight": "text"}}, "no Detectron2 model: expected"),
        (
            {"model": {"sem_seg_head.p2.0.weight": np.zeros((2, 3), np.float32)}},
            r"no weights of a Detectron2 Mask R-CNN known here: it also holds sem_seg_head.p2.0.weight \[2, 3\]",
        ),
    ],
)
def test_foreign_contents_are_named(tmp_path, content, message):
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=r"model.pkl: " + message):
        detectron2.read(path)
