"""An exported model finds what Detectron2 does, in a process with TensorFlow alone and in a C++ program."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from golden_models import compare_instances, detectron2_model

import keras_seg
from keras_seg.export import saved_model
from keras_seg.instances import Instances
from keras_seg.models import mask_rcnn

CONFIG, IMAGE = "mask_rcnn_R_50_FPN_1x", "coco_000000000785"
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def model(shared, tmp_path_factory):
    """The golden configuration's, at the golden files' size."""
    weights = detectron2_model(shared, CONFIG, tmp_path_factory.mktemp("weights"))
    model = mask_rcnn(**{**weights.arguments, "short_side": 320, "max_side": 533})
    model.set_weights(weights.get_weights())
    return model


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    return saved_model(model, tmp_path_factory.mktemp("serving") / "1")


def outputs_of(command, exported, folder, *images) -> dict[str, np.ndarray]:
    folder.mkdir()
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    arguments = [*map(str, command), str(exported), str(folder), *map(str, images)]
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return {file.stem: np.load(file) for file in folder.glob("*.npy")}


def instances(outputs, image: int) -> Instances:
    count = outputs["num_detections"][image]
    boxes, scores, classes, masks = (
        outputs[name][image, :count] for name in ("boxes", "scores", "classes", "masks")
    )
    return Instances(boxes, scores, classes, tuple(outputs["image_sizes"][image]), masks)


def compiled(folder) -> Path:
    if not (shutil.which("g++") and shutil.which("make")):
        pytest.skip("needs g++ and make")
    program = folder / "run_saved_model"
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


@pytest.mark.parametrize("language", ["Python", "C++"])
def test_detections_are_detectron2s_and_the_keras_models(shared, model, exported, tmp_path, language):
    alone = [sys.executable, HERE / "with_tensorflow_alone.py"]
    command = alone if language == "Python" else [compiled(tmp_path)]
    image = shared / "golden/images" / f"{IMAGE}.png"
    found = instances(outputs_of(command, exported, tmp_path / "found", image), 0)
    compare_instances(found, dict(np.load(shared / "golden/detectron2" / CONFIG / f"{IMAGE}_320.npz")))
    expected = keras_seg.segment(model, image, score_threshold=0.0)
    assert len(found) == len(expected) == 100
    # almost equal scores may change places
    order, theirs = (np.lexsort((i.boxes[:, 0], i.classes)) for i in (found, expected))
    np.testing.assert_allclose(found.boxes[order], expected.boxes[theirs], atol=0.01)
    np.testing.assert_allclose(found.scores[order], expected.scores[theirs], atol=1e-4)


def test_the_programs_errors(tmp_path):
    program = compiled(tmp_path)

    def run(*arguments):
        done = subprocess.run(
            [str(program), *map(str, arguments)], capture_output=True, text=True, check=False
        )
        return done.returncode, done.stderr.splitlines()[-1]

    assert run() == (1, "run_saved_model: give MODEL_FOLDER OUTPUT_FOLDER IMAGE...")
    assert run(tmp_path, tmp_path, "a.png") == (1, f"run_saved_model: {tmp_path}: holds no SavedModel")
