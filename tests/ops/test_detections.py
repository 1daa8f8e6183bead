"""Detections, on Detectron2's choice."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from keras_seg.ops.detections import select_detections


def select(boxes, probabilities, size, count=None, **options):
    count = boxes.shape[0] if count is None else count
    options = {"score_threshold": 0.05, "nms_threshold": 0.5, "max_detections": 100, **options}
    boxes, scores, classes, number = tf.function(select_detections)(
        tf.constant(boxes)[None],
        tf.constant(probabilities)[None],
        tf.constant([count]),
        tf.constant([size]),
        **options,
    )
    number = int(number[0])
    assert not np.any(boxes[0, number:]) and not np.any(scores[0, number:])
    return boxes[0, :number].numpy(), scores[0, :number].numpy(), classes[0, :number].numpy()


@pytest.mark.parametrize("case", ["default", "top20", "strict", "class_agnostic"])
def test_detections_are_detectron2s(shared, case):
    golden = np.load(shared / "golden/ops/fast_rcnn_inference.npz")
    agnostic = case == "class_agnostic"
    boxes = golden["class_agnostic.input_boxes"] if agnostic else golden["boxes"]
    settings = golden[f"{'default' if agnostic else case}.settings_score_nms_topk"]
    found = select(
        boxes.reshape(150, -1, 4),
        golden["scores"][:, :-1],
        golden["image_size"].tolist(),
        score_threshold=float(settings[0]),
        nms_threshold=float(settings[1]),
        max_detections=int(settings[2]),
    )
    for array, name in zip(found, ("boxes", "scores", "classes"), strict=True):
        np.testing.assert_allclose(array, golden[f"{case}.{name}"], atol=1e-4)


def test_padding_small_boxes_and_the_threshold_itself():
    boxes = np.array(
        [[[0, 0, 9, 9]], [[20, 20, 20.005, 29]], [[40, 40, 49, 49]], [[60, 60, 69, 69]]], np.float32
    )
    probabilities = np.array([[0.25], [0.9], [0.5], [0.8]], np.float32)
    _, scores, _ = select(boxes, probabilities, [100, 100], count=3, score_threshold=0.25, min_size=0.01)
    np.testing.assert_array_equal(scores, [0.5])


def test_no_proposals():
    found = select(np.zeros((0, 3, 4), np.float32), np.zeros((0, 3), np.float32), [10, 10])
    assert [len(array) for array in found] == [0, 0, 0]
