"""Whole models compute what torchvision's do, with weights through the real importer."""

from __future__ import annotations

import numpy as np
import pytest
from golden_models import (
    compare_instances,
    compare_map,
    compare_proposals,
    feature_maps,
    network_input,
    proposals,
    torchvision_model,
)

import keras_seg

CASES = {
    "fasterrcnn_resnet50_fpn": "pennfudan_FudanPed00001",
    "keypointrcnn_resnet50_fpn": "coco_000000196141",
    "maskrcnn_resnet50_fpn": "coco_000000000785",
    "maskrcnn_resnet50_fpn_v2": "coco_000000000785",
}


@pytest.fixture(scope="module", params=CASES)
def case(request, shared, tmp_path_factory):
    """(model, golden file, name of its image)."""
    model = torchvision_model(shared, request.param, tmp_path_factory.mktemp("weights"))
    image = CASES[request.param]
    return model, dict(np.load(shared / "golden/torchvision" / request.param / f"{image}_320.npz")), image


def test_features_and_proposals_are_torchvisions(shared, case):
    model, golden, image = case
    inputs = network_input(shared, [image], [golden["input_size"].tolist()], model)
    found = feature_maps(model, inputs)
    compare_map(found["input"], golden, "input")
    for level, name in enumerate(("0", "1", "2", "3", "pool")):
        compare_map(found["fpn"][level], golden, f"fpn.{name}")
        compare_map(found["logits"][level], golden, f"rpn.level{level}.objectness_logits")
        compare_map(found["deltas"][level], golden, f"rpn.level{level}.bbox_deltas")
    boxes, logits, count = proposals(model, found, inputs["size"])
    compare_proposals(boxes[0, : count[0]], logits[0, : count[0]], golden)


def test_detections_are_torchvisions(shared, case):
    model, golden, image = case
    path = shared / "golden/images" / f"{image}.png"
    found = keras_seg.segment(model, path, score_threshold=0.0, short_side=320, max_side=533)
    report = compare_instances(found, golden)
    print(report)
