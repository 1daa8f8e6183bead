"""An exported model finds what Detectron2 or torchvision does, and what the Keras model does: boxes to 0.01 px, scores to 1e-4.

In a process with TensorFlow alone, and in a C++ program that knows the signature. With KERAS_SEG_ALL_GOLDEN=1 for all golden
models and images (a quarter of an hour), else for one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from golden_models import compare_instances, detectron2_model, matched, torchvision_model

import keras_seg
from keras_seg.export import saved_model
from keras_seg.instances import Instances

HERE = Path(__file__).parent
# (origin, model, shorter side) and the longest side
CASES = {("detectron2", "mask_rcnn_R_50_FPN_1x", 320): 533}
IMAGES = "coco_000000000785*"
if os.environ.get("KERAS_SEG_ALL_GOLDEN") == "1":
    IMAGES = "[cp]*"  # of one image each
    CASES |= {
        ("detectron2", f"{name}_1x", 320): 533
        for name in (
            "mask_rcnn_R_50_C4",
            "mask_rcnn_R_50_DC5",
            "faster_rcnn_R_50_FPN",
            "keypoint_rcnn_R_50_FPN",
        )
    }
    CASES |= {("detectron2", "mask_rcnn_R_101_FPN_3x", 320): 533}
    CASES |= {("detectron2", "mask_rcnn_R_50_FPN_1x", 800): 1333}
    CASES |= {
        ("torchvision", f"{name}_resnet50_fpn", 320): 533
        for name in ("fasterrcnn", "keypointrcnn", "maskrcnn")
    }  # fmt: skip
    CASES |= {("torchvision", "maskrcnn_resnet50_fpn_v2", 320): 533}


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join(map(str, case)))
def case(request, shared, tmp_path_factory):
    """(model, its SavedModel, golden file of each image)."""
    origin, name, side = request.param
    load = detectron2_model if origin == "detectron2" else torchvision_model
    model = load(shared, name, tmp_path_factory.mktemp("weights"))
    model.short_side, model.max_side = side, CASES[request.param]
    files = sorted((shared / "golden" / origin / name).glob(f"{IMAGES}_{side}.npz"))
    images = {shared / "golden/images" / f"{file.stem.rsplit('_', 1)[0]}.png": file for file in files}
    assert images
    return model, saved_model(model, tmp_path_factory.mktemp("serving") / "1", warmup_sizes=()), images


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    """export/cpp's, compiled."""
    if not (shutil.which("g++") and shutil.which("make")):
        pytest.skip("needs g++ and make")
    program = tmp_path_factory.mktemp("program") / "run_saved_model"
    command = [
        "make",
        "-C",
        str(HERE.parents[1] / "export/cpp"),
        f"PYTHON={sys.executable}",
        f"OUTPUT={program}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return program


def outputs_of(command, exported, folder, images) -> dict[str, np.ndarray]:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    arguments = [*map(str, command), str(exported), str(folder), *map(str, images)]
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return {file.stem: np.load(file) for file in folder.glob("*.npy")}


def instances(model, outputs, image: int) -> Instances:
    count = outputs["num_detections"][image]
    size = tuple(outputs["image_sizes"][image])
    kept = {name: value[image, :count] for name, value in outputs.items() if value.ndim > 1}
    return Instances(
        kept["boxes"], kept["scores"], kept["classes"], size, kept.get("masks"), kept.get("keypoints"),
        convention=model.convention,
    )  # fmt: skip


@pytest.mark.parametrize("language", ["Python", "C++"])
def test_detections(case, tmp_path, language, request):
    model, exported, images = case
    alone = [sys.executable, HERE / "with_tensorflow_alone.py"]
    command = alone if language == "Python" else [request.getfixturevalue("program")]
    outputs = outputs_of(command, exported, tmp_path, images)
    for n, (image, golden) in enumerate(images.items()):
        found = instances(model, outputs, n)
        compare_instances(found, dict(np.load(golden)))
        expected = keras_seg.segment(model, image, score_threshold=0.0)
        assert len(found) == len(expected)
        match, same = matched(found.boxes, expected.boxes, found.classes, expected.classes)
        match = match[same]
        boxes = np.abs(found.boxes[match] - expected.boxes[same]).max()
        scores = np.abs(found.scores[match] - expected.scores[same]).max()
        print(
            f"{model.structure} {language} {golden.stem}: {(~same).sum()} missing, {boxes:.1e} px, {scores:.1e}"
        )
        # a hundredth may lie so near a threshold that the order of sums decides
        assert same.sum() >= len(expected) - max(1, len(expected) // 100)
        assert boxes <= 0.01 and scores <= 1e-4


def test_the_programs_errors(program, tmp_path):
    def run(*arguments):
        done = subprocess.run(
            [str(program), *map(str, arguments)], capture_output=True, text=True, check=False
        )
        return done.returncode, done.stderr.splitlines()[-1]

    assert run() == (1, "run_saved_model: give MODEL_FOLDER OUTPUT_FOLDER IMAGE...")
    assert run(tmp_path, tmp_path, "a.png") == (1, f"run_saved_model: {tmp_path}: holds no SavedModel")
