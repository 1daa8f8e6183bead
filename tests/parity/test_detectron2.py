"""Whole models compute what Detectron2's do, with weights through the real importer.

Tolerances follow golden/README.md: detections are compared as sets (same class, overlap above 0.98), 1 of 100 may be
missing; boxes 0.05 px, scores 1e-3, mask probabilities 5e-3, 99 of 100 keypoints within 0.1 px.
"""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from golden_models import detectron2_model, network_input

from keras_seg.ops.boxes import pairwise_iou

CASES = {
    "mask_rcnn_R_50_FPN_1x": [
        "coco_000000000785_320",
        "coco_000000000785_800",
        "pennfudan_FudanPed00001_320",
    ],
    "mask_rcnn_R_101_FPN_3x": ["coco_000000040083_320"],
    "mask_rcnn_R_50_C4_1x": ["coco_000000196141_320"],
    "mask_rcnn_R_50_DC5_1x": ["pennfudan_FudanPed00001_320"],
    "faster_rcnn_R_50_FPN_1x": ["coco_000000196141_320"],
    "keypoint_rcnn_R_50_FPN_1x": ["coco_000000000785_320"],
}


@pytest.mark.parametrize("config", CASES)
def test_detections_are_detectron2s(shared, tmp_path, config):
    model = detectron2_model(shared, config, tmp_path)
    predict = tf.function(lambda inputs: model(inputs, training=False))
    for case in CASES[config]:
        golden = np.load(shared / "golden/detectron2" / config / f"{case}.npz")
        inputs = network_input(shared, [case[:-4]], [golden["input_size"].tolist()], model.size_divisor)
        found = {name: value.numpy()[0] for name, value in predict(inputs).items()}
        compare(found, golden)


def test_a_padded_batch_is_detectron2s(shared, tmp_path):
    model = detectron2_model(shared, "mask_rcnn_R_50_FPN_1x", tmp_path)
    golden = np.load(shared / "golden/detectron2/mask_rcnn_R_50_FPN_1x/batch2_320.npz")
    names = [str(name) for name in golden["names"]]
    sizes = [golden[f"image{k}.input_size"].tolist() for k in (0, 1)]
    inputs = network_input(shared, names, sizes, 32)
    assert list(inputs["image"].shape[1:3]) == golden["batch_input_shape"].tolist()[-2:]
    found = model(inputs, training=False)
    for image in (0, 1):
        compare({name: value.numpy()[image] for name, value in found.items()}, golden, f"image{image}.")


def compare(found: dict, golden, prefix: str = "") -> None:
    expected = {
        key.removeprefix(f"{prefix}instances."): golden[key]
        for key in golden.files
        if key.startswith(f"{prefix}instances.")
    }
    count = len(expected["boxes_input"])
    assert abs(int(found["num_detections"]) - count) <= 1
    overlap = pairwise_iou(tf.constant(expected["boxes_input"]), tf.constant(found["boxes"])).numpy()
    overlap = np.where(expected["classes"][:, None] == found["classes"], overlap, 0)
    match, good = overlap.argmax(1), overlap.max(1) > 0.98
    assert good.sum() >= count - max(1, count // 100), good.sum()
    match = match[good]
    np.testing.assert_allclose(found["boxes"][match], expected["boxes_input"][good], atol=0.05)
    np.testing.assert_allclose(found["scores"][match], expected["scores"][good], atol=1e-3)
    assert (np.diff(found["scores"][: found["num_detections"]]) <= 0).all()
    if "mask_probs" in expected:
        difference = np.abs(found["masks"][match] - expected["mask_probs"][good].astype(np.float32))
        assert difference.max() <= 5e-3, difference.max()
    if "keypoints_input" in expected:
        distance = np.abs(found["keypoints"][match] - expected["keypoints_input"][good])
        assert (distance[..., :2].max(-1) <= 0.1).mean() >= 0.99
        assert np.quantile(distance[..., 2], 0.99) <= 1e-3
