"""Speed and memory of a model on this machine: `keras-seg bench`."""

from __future__ import annotations

import json
import subprocess

import keras
import numpy as np
import pytest
import yaml
from detector_files import TINY
from PIL import Image

from keras_seg import bench, models, zoo

RECIPE = {
    "schema": 1,
    "name": "small",
    "summary": "A small one.",
    "model": {"builder": "unet", "depth": 1, "base_channels": 2, "padding": "same"},
    "data": {"reader": "isbi", "train_slices": 0, "tile": 32},
    "training": {"steps": 1, "optimizer": {"name": "adam", "learning_rate": 0.01}},
}


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(RECIPE))
    return "small.yaml"


def test_measure():
    keras.utils.set_random_seed(3)
    detector = models.mask_rcnn(3, **TINY)
    image = bench.drawn_image(40, 60, 3)
    assert image.shape == (40, 60, 3) and image.dtype == np.uint8 and np.ptp(image) > 100
    found = bench.measure(detector, image, batch_size=2, rounds=3, warmup=1)
    assert len(found["seconds"]) == 3 and min(found["seconds"]) > 0 and found["first"] > max(found["seconds"])
    assert found["objects"] == len(detector_finds(detector, image))
    unet = zoo.load("unet_isbi2012", weights=None, base_channels=2, depth=1)
    found = bench.measure(unet, bench.drawn_image(32, 32, 1), rounds=1, warmup=0)
    assert found["objects"] is None and len(found["seconds"]) == 1


def detector_finds(detector, image):
    from keras_seg.detect import detect

    return detect(detector, image)


def test_command_measures_in_a_process_of_its_own(run, recipe):
    line = ("bench", recipe, "--weights", "none", "--size", 48, 64, "--rounds", 3, "--warmup", 1, "--json")
    status, out, error = run(*line)
    report = json.loads(out)
    assert (status, error) == (0, "") and report["image"] == {"source": "drawn", "height": 48, "width": 64}
    (one,) = report["batches"]
    seconds, first = one["seconds"], one["first_result"]
    assert len(seconds["all"]) == 3 and seconds["least"] <= seconds["median"] <= seconds["most"]
    assert one["images_per_second"] == pytest.approx(1 / seconds["median"])
    parts = [first[part] for part in ("import", "load", "predict")]
    assert min(parts) > 0 and first["total"] == pytest.approx(sum(parts))
    assert 1e8 < one["peak_memory"] < 4e9 and (one["peak_gpu_memory"] is None or one["peak_gpu_memory"] > 0)
    assert report["machine"]["cpu"]["cores"] >= 1 and (report["rounds"], report["warmup"]) == (3, 1)

    report["machine"]["load_before"] = 99.0
    heading, *_, table_head, row, _, note = bench.table(report).splitlines()
    assert heading == "small, float32, 48x64 pixels (drawn)"
    assert table_head.split() == "batch images/s s a batch objects first result peak memory".split()  # noqa: SIM905
    assert (
        row.split()[0] == "1"
        and row.endswith("GB")
        and note.startswith("note: the machine was busy before (load")
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--batch-sizes", "1,many"), "--batch-sizes 1,many: must be numbers of images, as in 1,2,4"),
        (("--batch-sizes", "1,0"), "batch_sizes must be 1 or more, got [1, 0]"),
        (("--image", "none.png"), "none.png: no such image"),
        (("--image", "image.png", "--size", 8, 8), "an image has its own size; give one of the two"),
    ],
)
def test_messages(run, recipe, options, message):
    Image.new("L", (8, 8)).save("image.png")
    status, out, error = run("bench", recipe, "--weights", "none", *options)
    assert (status, out) == (2, "") and message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("status", "error", "message"),
    [
        (2, "trace\nsmall has no pretrained weights\n", "^small has no pretrained weights$"),
        (-9, "", "batch size 4: killed by signal 9, for want of memory perhaps"),
        (1, "Traceback\nKeyError: 3\n", "batch size 4: KeyError: 3"),
    ],
)
def test_a_process_that_fails(recipe, monkeypatch, status, error, message):
    ended = subprocess.CompletedProcess([], status, stdout="", stderr=error)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: ended)
    with pytest.raises((ValueError, ChildProcessError), match=message):
        bench.bench(recipe, batch_sizes=[4])
