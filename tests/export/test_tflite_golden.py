"""TensorFlow Lite files of the golden models find what the models find: boxes to 0.5 px, scores to 0.01, with built-in operators.

With KERAS_SEG_ALL_GOLDEN=1 alone: a minute for each model.
"""

from __future__ import annotations

import os

import numpy as np
import pytest
import tensorflow as tf
from golden_models import detectron2_model, matched, torchvision_model
from PIL import Image

from keras_seg.export.tflite import tflite
from keras_seg.export.tflite_images import fit_photograph, fitted_size
from keras_seg.models import mask_rcnn

interpreter = pytest.importorskip("ai_edge_litert.interpreter", reason="needs ai-edge-litert")

IMAGE = "coco_000000000785.png"  # 640 x 425; its shorter side becomes 320
HEIGHT, WIDTH = 320, 512
CASES = [
    ("detectron2", name)
    for name in (
        "mask_rcnn_R_50_FPN_1x",
        "mask_rcnn_R_50_C4_1x",
        "mask_rcnn_R_50_DC5_1x",
        "keypoint_rcnn_R_50_FPN_1x",
        "mask_rcnn_R_101_FPN_3x",
    )
]
CASES += [
    ("torchvision", f"{name}_resnet50_fpn{version}")
    for name, version in (("fasterrcnn", ""), ("keypointrcnn", ""), ("maskrcnn", ""), ("maskrcnn", "_v2"))
]


@pytest.mark.skipif(
    os.environ.get("KERAS_SEG_ALL_GOLDEN") != "1", reason="takes minutes: set KERAS_SEG_ALL_GOLDEN=1"
)
@pytest.mark.parametrize(("origin", "name"), CASES)
def test_the_models_detections(shared, tmp_path, origin, name):
    load = detectron2_model if origin == "detectron2" else torchvision_model
    weights = load(shared, name, tmp_path)
    model = mask_rcnn(**{**weights.arguments, "short_side": 320, "max_side": 533})
    model.set_weights(weights.get_weights())
    picture = Image.open(shared / "golden/images" / IMAGE)
    size = fitted_size(model, picture.height, picture.width, HEIGHT, WIDTH)
    image = fit_photograph(model, picture, HEIGHT, WIDTH)[None]
    path = tflite(model, tmp_path / "model.tflite", height=HEIGHT, width=WIDTH)
    run = interpreter.Interpreter(model_path=str(path), num_threads=2).get_signature_runner()
    found = {key: value[0] for key, value in run(images=image).items()}
    inputs = {"image": tf.constant(image, tf.float32), "size": tf.constant([size], tf.float32)}
    expected = {key: value[0].numpy() for key, value in model(inputs, training=False).items()}
    count, wanted = found["num_detections"], expected["num_detections"]
    assert abs(int(count) - int(wanted)) <= wanted // 50 and wanted > 10
    found = {key: value[:count] for key, value in found.items() if key != "num_detections"}
    expected = {key: value[:wanted] for key, value in expected.items() if key != "num_detections"}
    match, same = matched(found["boxes"], expected["boxes"], found["classes"], expected["classes"])
    match = match[same]
    report = {"found": same.mean(), "detections": int(wanted)}
    for key, value in expected.items():
        if key != "classes":
            report[key] = np.abs(found[key][match] - value[same]).max()
    print(name, report)
    assert report["found"] >= 0.98
    assert report["boxes"] <= 0.5 and report["scores"] <= 1e-2
    assert report.get("masks", 0) <= 2e-2
