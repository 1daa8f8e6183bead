"""export/tflite/run.py, the program that segments with a TensorFlow Lite file and without TensorFlow."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from keras_seg import models
from keras_seg.detect import detect
from keras_seg.export.tflite import tflite
from keras_seg.segment import segment

pytest.importorskip("ai_edge_litert", reason="needs ai-edge-litert")
PROGRAM = Path(__file__).resolve().parents[2] / "export/tflite/run.py"
# Nothing of these may be imported.
WITHOUT = (
    "import sys; sys.modules.update(dict.fromkeys(('tensorflow', 'keras', 'keras_seg', 'scipy', 'cv2')))"
)


def run(*arguments) -> subprocess.CompletedProcess:
    program = (
        f"{WITHOUT}; import runpy; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    command = [sys.executable, "-c", program, str(PROGRAM), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def unet(folder):
    keras.utils.set_random_seed(0)
    model = models.unet(depth=1, base_channels=4, padding="same", class_names=["membrane", "cell"])
    return (
        model,
        tflite(model, folder / "unet.tflite"),
        tflite(model, folder / "fixed.tflite", height=40, width=48),
    )


@pytest.fixture(scope="module")
def detector(folder):
    keras.utils.set_random_seed(0)
    model = models.mask_rcnn(
        2, class_names=["nucleus", "vessel"], backbone="resnet18", width=8, fpn_channels=8, box_head_channels=16,
        mask_channels=8, proposals=15, detections=30, score_threshold=0.0, scale=2.0, pixel_std=(60, 60, 60),
        anchor_sizes=(8, 16, 32, 64, 128), normalization="batch",
    )  # fmt: skip
    for layer in ("cls_score", "bbox_pred"):  # all that survive are kept, so that equal scores decide nothing
        kernel = model.parts["box_predictor"].get_layer(layer).kernel
        kernel.assign(kernel * 50)
    return model, tflite(model, folder / "detector.tflite", height=64, width=64)


def picture(folder, height, width, mode="L"):
    shape = (height, width) if mode == "L" else (height, width, 3)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, np.uint8))
    path = folder / f"{height}x{width}{mode}.png"
    image.save(path)
    return path


def test_a_resizable_unet_from_a_picture(folder, unet):
    image = picture(folder, 33, 50)
    done = run(unet[1], image, "--output", folder / "p.npy")
    assert done.returncode == 0, done.stderr
    expected = segment(unet[0], np.asarray(Image.open(image)), rotations=1)
    np.testing.assert_allclose(np.load(folder / "p.npy"), expected, atol=1e-5)


def test_a_fixed_unet_goes_over_larger_images_in_windows(folder, unet):
    for size in ((40, 48), (90, 131), (30, 60)):
        image = picture(folder, *size)
        done = run(unet[2], image, "--output", folder / "w.npy")
        assert done.returncode == 0, done.stderr
        expected = segment(unet[0], np.asarray(Image.open(image)), rotations=1)
        np.testing.assert_allclose(np.load(folder / "w.npy"), expected, atol=1e-5)


def test_a_unets_picture_and_shares(folder, unet):
    image = picture(folder, 30, 40)
    assert run(unet[1], image, "--output", folder / "classes.png").returncode == 0
    assert Image.open(folder / "classes.png").size == (40, 30)
    assert run(unet[1], image, "--output", folder / "classes.json").returncode == 0
    shares = json.loads((folder / "classes.json").read_text())["share of pixels"]
    assert list(shares) == ["membrane", "cell"] and sum(shares.values()) == pytest.approx(1)


def test_a_detectors_objects(folder, detector):
    model, path = detector
    image = picture(folder, 32, 32, "RGB")
    done = run(path, image, "--output", folder / "objects.json", "--score-threshold", 0)
    assert done.returncode == 0, done.stderr
    objects = json.loads((folder / "objects.json").read_text())
    expected = detect(model, image, score_threshold=0.0)
    assert len(objects) == len(expected) > 2
    np.testing.assert_allclose(sorted(one["score"] for one in objects), np.sort(expected.scores), atol=1e-3)
    for one in objects:
        of_class = expected.classes == model.class_names.index(one["name"])
        m = np.where(of_class, np.abs(expected.boxes - one["box"]).max(1), np.inf).argmin()
        np.testing.assert_allclose(one["box"], expected.boxes[m], atol=0.1)
        run_lengths = coco_mask.frPyObjects(one["mask"], *one["mask"]["size"])
        assert (coco_mask.decode(run_lengths).astype(bool) != expected.masks[m]).mean() <= 0.01
    assert run(path, image, "--output", folder / "objects.png").returncode == 0
    assert Image.open(folder / "objects.png").size == (32, 32)


def test_windows_cover_an_axis():
    program = runpy.run_path(str(PROGRAM))
    for length, side, overlap, multiple in (
        (10, 16, 4, 2),
        (16, 16, 4, 2),
        (17, 16, 4, 4),
        (131, 48, 12, 8),
        (1000, 64, 16, 16),
    ):
        windows = program["_windows"](length, side, overlap, multiple)
        assert [first for _, (first, _) in windows] == [0, *(stop for _, (_, stop) in windows[:-1])]
        assert windows[-1][1][1] == length
        for start, (first, stop) in windows:
            assert start % multiple == 0 and start <= first < stop <= start + side
            assert first == 0 or first - start >= overlap
            # with the image's end it ends there too, or sees enough of what mirroring adds
            assert start + side - stop >= overlap or start + side == length


def test_errors(folder, unet, detector):
    image, text = picture(folder, 8, 8), folder / "notes.txt"
    text.write_text("no picture")
    for arguments, message in (
        ((unet[1], text, "--output", "x.png"), "notes.txt: not an image"),
        ((text, image, "--output", "x.png"), "notes.txt: not a TensorFlow Lite file of keras_seg"),
        ((unet[1], folder / "absent.png", "--output", "x.png"), "absent.png"),
        (
            (detector[1], image, "--output", folder / "x.npy"),
            "x.npy: .npy is for the probabilities of a U-Net",
        ),
    ):
        done = run(*arguments)
        assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr
