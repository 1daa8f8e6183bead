"""torchvision's files: every parameter finds its one place; the background goes from first to last."""

from __future__ import annotations

import json

import numpy as np
import pytest

from keras_seg.weights import torchvision

MODELS = [
    "fasterrcnn_resnet50_fpn",
    "keypointrcnn_resnet50_fpn",
    "maskrcnn_resnet50_fpn",
    "maskrcnn_resnet50_fpn_v2",
]


@pytest.fixture
def read(monkeypatch):
    """`torchvision.read` of a dictionary instead of a file (test_pickles.py reads files)."""

    def read(arrays):
        monkeypatch.setattr(torchvision, "load_torch", lambda path: arrays)
        return torchvision.read("model.pth")

    return read


@pytest.mark.parametrize("model", MODELS)
def test_every_parameter_has_a_name_of_its_own(shared, read, model):
    params = json.loads((shared / "golden/torchvision" / model / "params.json").read_text())["params"]
    arrays = {
        name: np.broadcast_to(np.zeros((), np.float32), entry["shape"]) for name, entry in params.items()
    }
    ours = read(arrays)
    assert len(ours) == sum(not torchvision.IGNORED.fullmatch(name) for name in params)
    classes = 1 if "keypoint" in model else 90
    assert ours["box_predictor/cls_score/kernel"].shape == (1024, classes + 1)
    assert ours["box_predictor/bbox_pred/bias"].shape == (4 * classes,)
    assert ours["backbone/res4_5_conv3_norm/moving_mean"].shape == (1024,)
    if "v2" in model:
        assert ours["rpn/conv1/kernel"].shape == (3, 3, 256, 256)
        assert ours["box_head/conv4_norm/gamma"].shape == ours["fpn/fpn_lateral5_norm/beta"].shape == (256,)
    if "mask" in model:
        assert ours["mask_head/predictor/kernel"].shape == (1, 1, 256, 90)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("rpn.head.conv.weight", "rpn/conv/kernel"),
        ("backbone.fpn.inner_blocks.3.bias", "fpn/fpn_lateral5/bias"),
        ("backbone.fpn.layer_blocks.0.weight", "fpn/fpn_output2/kernel"),
        ("roi_heads.mask_head.mask_fcn3.bias", "mask_head/mask_fcn3/bias"),
        ("roi_heads.keypoint_head.14.weight", "keypoint_head/conv_fcn8/kernel"),
        ("backbone.fpn.extra_blocks.p6.weight", None),
        ("head.classification_head.conv.0.weight", None),
    ],
)
def test_names_old_and_new(theirs, ours):
    assert torchvision.rename(theirs) == ours


def test_the_background_goes_last(read):
    ours = read(
        {
            "roi_heads.box_predictor.cls_score.bias": np.array([9, 1, 2], np.float32),
            "roi_heads.box_predictor.bbox_pred.bias": np.arange(12, dtype=np.float32),
            "roi_heads.mask_predictor.mask_fcn_logits.bias": np.array([9, 1, 2], np.float32),
        }
    )
    np.testing.assert_array_equal(ours["box_predictor/cls_score/bias"], [1, 2, 9])
    np.testing.assert_array_equal(ours["box_predictor/bbox_pred/bias"], np.arange(4, 12))
    np.testing.assert_array_equal(ours["mask_head/predictor/bias"], [1, 2])


def test_foreign_parameters_are_named(read):
    with pytest.raises(
        ValueError, match=r"model.pth: no weights of a torchvision .* features.0.weight \[4, 3, 3, 3\]"
    ):
        read({"features.0.weight": np.zeros((4, 3, 3, 3), np.float32)})
