"""The command `keras-seg`, run in this process."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
import yaml
from detector_files import write_detectron2
from detector_files import write_recipe as write_detector_recipe
from PIL import Image

from keras_seg import cli, command_options, zoo
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


def commands(group=None, names=()) -> dict[tuple[str, ...], object]:
    """{names: command} of every command, also those inside `convert`."""
    import typer

    group = group or typer.main.get_command(cli.app)
    found = {}
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            found |= commands(command, (*names, name))
        else:
            found[*names, name] = command
    return found


def test_help_names_the_commands(run):
    status, out, _ = run("--help")
    assert status == 0
    for names in commands():
        assert names[0] in out
    for name in [
        "list",
        "show",
        "segment",
        "train",
        "evaluate",
        "export",
        "import-weights",
        "doctor",
        "bench",
    ]:
        assert (name,) in commands()


@pytest.mark.parametrize("names", commands())
def test_each_command_has_help_and_examples_that_it_takes(run, names, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    status, out, _ = run(*names, "--help")
    command = commands()[names]
    assert status == 0 and "Usage: keras-seg" in out
    examples = [line for line in (command.epilog or "").split("\n\n") if line.startswith("keras-seg ")]
    assert examples
    for line in examples:
        assert line in out
        words = shlex.split(line.partition(" | ")[0])[1:]
        assert tuple(words[: len(names)]) == names
        command.make_context(" ".join(names), words[len(names) :])  # fails for an option that there is not


def test_list_and_show(run):
    status, out, _ = run("list")
    assert status == 0 and [line[2:].split()[0] for line in out.splitlines()] == zoo.list()
    assert run("show", "unet_em_paper") == (0, f"{zoo.show('unet_em_paper')}\n", "")
    status, out, error = run("list", "--json")
    models = {one["name"]: one for one in json.loads(out)}
    assert (status, error) == (0, "") and list(models) == zoo.list()
    nuclei = models["maskrcnn_nuclei"]
    assert nuclei["has_weights"] and nuclei["builder"] == "mask_rcnn" and nuclei["class_names"] == ["nucleus"]
    status, out, error = run("show", "maskrcnn_nuclei", "--json")
    assert (status, error) == (0, "") and json.loads(out)["model"]["scale"] == 1.5


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (ValueError("a line\n  and another"), 2, "keras-seg: a line and another"),
        (OSError(), 2, "keras-seg: OSError"),
        (ModuleNotFoundError("needs the extra"), 2, "keras-seg: needs the extra"),
        (
            MemoryError("2 GB"),
            2,
            "keras-seg: out of memory: a smaller image, --tile or --batch-size takes less (2 GB)",
        ),
        (
            KeyError("x"),
            3,
            "keras-seg: unexpected KeyError: 'x' (with KERAS_SEG_DEBUG=1 it shows where)",
        ),
        (KeyboardInterrupt(), 130, "keras-seg: stopped"),
    ],
)
def test_every_error_is_one_line(run, monkeypatch, error, status, message):
    monkeypatch.delenv("KERAS_SEG_DEBUG", raising=False)

    def fail(_):
        raise error

    monkeypatch.setattr(zoo, "show", fail)
    assert run("show", "anything") == (status, "", f"{message}\n")


def test_the_traceback_is_to_be_had(monkeypatch):
    monkeypatch.setenv("KERAS_SEG_DEBUG", "1")
    monkeypatch.setattr(sys, "argv", ["keras-seg", "show", "none.yaml"])
    with pytest.raises(FileNotFoundError, match="none.yaml"):
        cli.main()


def test_wrong_use_is_status_2(run):
    status, out, error = run("show")
    assert (status, out) == (2, "") and "Missing argument 'MODEL'" in error
    status, out, error = run("list", "--jsn")
    # Click's words, which changed: the option that was given, and the one that was meant
    assert (status, out) == (2, "") and re.search("No such option.*--jsn.*--json", error)


def test_tab_completes_models_and_recipes(run, folder, monkeypatch):
    (folder / "recipes").mkdir()
    (folder / "recipes/second.yml").touch()
    (folder / "recipes/notes.txt").touch()
    assert command_options.complete_model("maskrcnn_nu") == ["maskrcnn_nuclei"]
    assert command_options.complete_model("sm") == ["small.yaml"]
    assert command_options.complete_model("rec") == ["recipes/"]
    assert command_options.complete_model("recipes/") == ["recipes/second.yml"]
    monkeypatch.setenv("_KERAS_SEG_COMPLETE", "complete_bash")
    for line, word, wanted in (
        ("keras-seg segm", 1, "segment"),
        ("keras-seg show unet_isbi", 2, "unet_isbi2012"),
        ("keras-seg evaluate maskrcnn_nu", 2, "maskrcnn_nuclei"),
        ("keras-seg segment small.yaml --score", 3, "--score-threshold"),
    ):
        monkeypatch.setenv("COMP_WORDS", line)
        monkeypatch.setenv("COMP_CWORD", str(word))
        assert wanted in run()[1].split()


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
    assert status == 2, error
    assert error.startswith("keras-seg: ") and error.count("\n") == 1 and message in error


def test_train_resume_evaluate_export(run, folder, terminal):
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
    status, _, error = run("evaluate", "small.yaml", "--data", "data", *best, "--value-range", 0, 9)
    assert status == 2 and "--value-range is for detectors; a U-Net's is in its recipe's data block" in error
    status, out, error = run("evaluate", "small.yaml", "--data", "data", *best, "--report", "report")
    assert "keras-seg: report: report/index.html" in error
    assert "train-volume.tif slice 2" in (folder / "report/index.html").read_text()
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

    with terminal:
        assert run("export", "small.yaml", "exported", *best)[0] == 0
    assert "exporting small.yaml" in terminal.written
    assert terminal.seen == ["exported: SavedModel of small.yaml", ""]
    assert (folder / "exported/saved_model.pb").is_file()


def test_train_draws_a_bar_on_a_terminal(run, folder, terminal):
    with terminal:
        assert run("train", "small.yaml", "--data", "data", "--output", "run")[0] == 0
    assert "4/4" in terminal.written and "val_loss" in terminal.written
    assert "the weights are in run" in terminal.seen
    assert [line.split()[:2] for line in terminal.seen if line.startswith("step")] == [
        ["step", "2"], ["step", "4/4"], ["step", "4"],
    ]  # fmt: skip


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
    assert status == 2, error
    assert error.startswith("keras-seg: ") and error.count("\n") == 1 and message in error
