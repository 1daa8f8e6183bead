"""The command `keras-seg`, run in this process."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
import yaml
from detector_files import write_detectron2
from detector_files import write_recipe as write_detector_recipe
from PIL import Image

from keras_seg import zoo
from keras_seg.weights.files import save_weights

RECIPE = {
    "schema": 1,
    "name": "small",
    "summary": "A small one.",
    "model": {
        "builder": "unet",
        "depth": 1,
        "base_channels": 2,
        "padding": "same",
        "class_names": ["membrane", "cell"],
    },
    "data": {"reader": "isbi", "train_slices": "0-1", "validation_slices": 2, "tile": 32},
    "training": {
        "steps": 4,
        "optimizer": {"name": "adam", "learning_rate": 0.01},
        "evaluate_every": 2,
        "checkpoint_every": 2,
    },
}


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A working folder with a recipe, weights for it, an image, and three annotated slices in `data`."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    write_recipe(tmp_path)
    save_weights(zoo.load(tmp_path / "small.yaml", weights=None), tmp_path / "mine.weights.h5")
    (tmp_path / "data").mkdir()
    tifffile.imwrite(
        tmp_path / "data/train-volume.tif",
        random.integers(0, 256, (3, 48, 40), np.uint8),
        photometric="minisblack",
    )
    labels = np.full((3, 48, 40), 255, np.uint8)
    labels[:, :, 20] = 0
    tifffile.imwrite(tmp_path / "data/train-labels.tif", labels, photometric="minisblack")
    Image.fromarray(random.integers(0, 256, (30, 20), np.uint8)).save(tmp_path / "image.png")
    return tmp_path


def write_recipe(folder: Path, **fields) -> None:
    (folder / "small.yaml").write_text(yaml.safe_dump({**RECIPE, **fields}))


def test_help_names_the_commands(run):
    status, out, _ = run("--help")
    assert status == 0
    for command in (
        "list",
        "show",
        "train",
        "segment",
        "evaluate",
        "proposals",
        "convert",
        "check-data",
        "import-weights",
        "export",
    ):
        assert command in out


def test_list_and_show(run):
    status, out, _ = run("list")
    assert status == 0 and [line[2:].split()[0] for line in out.splitlines()] == zoo.list()
    assert run("show", "unet_em_paper") == (0, f"{zoo.show('unet_em_paper')}\n", "")


def test_segment_writes_what_the_function_returns(run, folder):
    import keras_seg

    weights = ("--weights", "mine.weights.h5")
    expected = keras_seg.segment(zoo.load("small.yaml", "mine.weights.h5"), "image.png")
    status, out, _ = run("segment", "small.yaml", "image.png", "-o", "out.npy", *weights)
    assert (status, out.strip()) == (0, "out.npy: 30x20x2 probabilities")
    np.testing.assert_allclose(np.load("out.npy"), expected, atol=1e-6)
    assert run("segment", "small.yaml", "image.png", "-o", "out.tif", "--class", 0, *weights)[0] == 0
    np.testing.assert_allclose(tifffile.imread("out.tif"), expected[..., 0], atol=1e-6)
    assert run("segment", "small.yaml", "image.png", "-o", "out.png", *weights)[0] == 0
    np.testing.assert_allclose(np.asarray(Image.open("out.png")), 255 * expected[..., 1], atol=0.51)


def test_segment_a_stack(run, folder):
    stack = "data/train-volume.tif"
    assert run("segment", "small.yaml", stack, "-o", "out.tif", "--weights", "mine.weights.h5")[0] == 0
    assert tifffile.imread("out.tif").shape == (3, 48, 40)
    status, _, error = run("segment", "small.yaml", stack, "-o", "out.png", "--weights", "mine.weights.h5")
    assert status == 2 and "a .png holds one image, and these are 3; use .tif or .npy" in error


@pytest.fixture
def detector(folder) -> Path:
    """A small detector's recipe and its weights as a Detectron2 file, beside the image."""
    write_detectron2(folder / "model.pkl")
    return write_detector_recipe(folder / "tiny.yaml")


def test_weights_are_imported_and_used(run, detector):
    status, out, _ = run("import-weights", "tiny.yaml", "model.pkl", "-o", "tiny.weights.h5")
    assert (
        status == 0 and out.startswith("tiny.weights.h5: ") and out.endswith("variables kept from the file\n")
    )
    objects = ("segment", "tiny.yaml", "image.png", "--score-threshold", 0, "--weights", "tiny.weights.h5")
    assert run(*objects, "-o", "objects.json")[0] == 0
    found = json.loads(Path("objects.json").read_text())
    assert found and {"bbox", "score", "segmentation", "category_id"} <= found[0].keys()
    status, out, _ = run(*objects, "-o", "objects.png")
    assert status == 0 and "objects.png: <Instances in 30x20 pixels: " in out
    assert Image.open("objects.png").size == (20, 30)
    assert run(*objects, "-o", "objects.tif")[0] == 0
    assert tifffile.imread("objects.tif").shape == (30, 20)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("import-weights", "tiny.yaml", "model.pkl", "-o", "tiny.h5"), "name must end in .weights.h5"),
        (("import-weights", "tiny.yaml", "image.png", "-o", "t.weights.h5"), "weights of which format?"),
        (("import-weights", "tiny.yaml", "none.pkl", "-o", "t.weights.h5"), "none.pkl"),
        (("import-weights", "small.yaml", "model.pkl", "-o", "t.weights.h5"), "this is a U-Net"),
        (
            ("import-weights", "tiny.yaml", "model.pkl", "-o", "t.weights.h5", "--format", "caffe"),
            "format must be one of 'detectron2'",
        ),
        (
            ("segment", "tiny.yaml", "image.png", "-o", "out.npy"),
            "tiny.yaml must end in .png, .jpg, .tif, .tiff, .json",
        ),
        (("train", "tiny.yaml", "--data", "data"), "no data and training blocks"),
        (
            ("evaluate", "tiny.yaml", "--data", "data", "--weights", "model.pkl"),
            "--data data: a detector is scored on COCO annotations, a .json file",
        ),
    ],
)
def test_wrong_use_of_a_detector_is_one_line(run, detector, arguments, message):
    status, _, error = run(*arguments)
    assert status == 2
    assert error.startswith("keras-seg: ") and error.count("\n") == 1 and message in error


def test_train_resume_evaluate_export(run, folder):
    status, out, _ = run("train", "small.yaml", "--data", "data", "--output", "run", "--steps", 2)
    assert status == 0 and "the weights are in run" in out
    assert run("train", "small.yaml", "--data", "data", "--output", "run", "--resume")[::2] == (0, "")

    best = ("--weights", "run/best.weights.h5")
    again = ("train", "small.yaml", "--data", "data", "--output", "again", "--steps", 1)
    assert run(*again, *best)[0] == 0
    assert run(*again, "--weights", "none.weights.h5")[0] == 2
    assert "training.sed: unknown field; did you mean" in run(*again, "--set", "training.sed=1")[2]
    assert "--set seed: must be FIELD=VALUE" in run(*again, "--set", "seed")[2]
    third = ("train", "small.yaml", "--data", "data", "--output", "third", "--set", "training.seed=7")
    assert "nearest legal: 32 or 34" in run(*third, "--set", "data.tile=33")[2]
    status, out, _ = run("evaluate", "small.yaml", "--data", "data", *best)
    figures = dict(line.split() for line in out.splitlines())
    assert status == 0 and {"rand_error", "pixel_error", "v_rand", "warping_error"} <= set(figures)

    for metric, better, worse in (("rand_error", 0.1, -0.1), ("v_rand", -0.1, 0.1)):
        for change, verdict in ((0, "met"), (better, "met"), (worse, "NOT met")):
            value = float(figures[metric]) + change
            write_recipe(folder, expect={"metric": metric, "value": value, "tolerance": 0.001})
            status, out, _ = run("evaluate", "small.yaml", "--data", "data", *best)
            assert status == (verdict == "NOT met") and out.strip().endswith(f"± 0.001: {verdict}")
    write_recipe(folder, expect={"metric": "seg", "value": 1, "tolerance": 0.1})
    status, _, error = run("evaluate", "small.yaml", "--data", "data", *best)
    assert status == 2 and "small expects seg, which its data do not give" in error

    assert run("export", "small.yaml", "exported", *best)[0] == 0
    assert (folder / "exported/saved_model.pb").is_file()


def test_evaluate_needs_something_to_validate_with(run, folder):
    write_recipe(folder, data={"reader": "isbi", "train_slices": 0, "tile": 32})
    status, _, error = run("evaluate", "small.yaml", "--data", "data", "--weights", "mine.weights.h5")
    assert status == 2 and "its data block names nothing to validate with" in error


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("show", "unet_isbi"), 'did you mean "unet_isbi2012"?'),
        (("segment", "small.yaml", "image.png", "-o", "out.npy"), "small has no pretrained weights"),
        (
            ("segment", "small.yaml", "image.png", "-o", "out.jpg"),
            "out.jpg: the output of small.yaml must end in .npy, .tif, .tiff, .png",
        ),
        (("segment", "small.yaml", "image.png", "-o", "no/out.npy"), "no: no such folder for the output"),
        (
            (
                "segment",
                "small.yaml",
                "image.png",
                "-o",
                "out.png",
                "--weights",
                "mine.weights.h5",
                "--class",
                2,
            ),
            "--class is 2; small has the classes 0 to 1",
        ),
        (("segment", "small.yaml", "none.png", "-o", "o.npy", "--weights", "mine.weights.h5"), "none.png"),
        (("train", "small.yaml", "--data", "nowhere"), "nowhere"),
        (
            ("export", "small.yaml", "out", "--weights", "none.weights.h5"),
            "none.weights.h5: no such weights file",
        ),
    ],
)
def test_an_error_is_one_line_and_status_2(run, folder, arguments, message):
    status, _, error = run(*arguments)
    assert status == 2
    assert error.startswith("keras-seg: ") and error.count("\n") == 1 and message in error
