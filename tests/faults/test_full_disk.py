"""A disk that fills up, and one that cannot be written: a message that names the file, and what was there stays.

tests/weights/test_files.py has weights files, tests/training/test_loop.py checkpoints, tests/ops/native/test_library.py the
folder of the compiled RoIAlign, tests/data/test_proposals.py stored proposals.
"""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
import tifffile
from detector_files import URL, write_detectron2, write_recipe
from PIL import Image

import keras_seg
from keras_seg.models import unet
from keras_seg.training import curves
from keras_seg.weights.download import fetch

ROOM = 20_000  # bytes that the full disk still takes


@contextlib.contextmanager
def full(room: int = ROOM):
    """No file can grow beyond so many bytes: stands in for a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a file system of 256 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a file system")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.fixture(scope="module")
def network():
    keras.utils.set_random_seed(0)
    return unet(1, 2, depth=1, base_channels=2, padding="same")


def picture(side: int = 200) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (side, side), np.uint8)


def test_probabilities_in_a_file(tmp_path, network):
    out = tmp_path / "out.npy"
    keras_seg.segment(network, picture(20), out=out)
    before = out.read_bytes()
    with full(), pytest.raises(OSError, match=r"could not write .*out.npy \(File too large\)"):
        keras_seg.segment(network, picture(), out=out)
    assert out.read_bytes() == before and os.listdir(tmp_path) == ["out.npy"]


def test_probabilities_on_a_small_disk(small_disk, network):
    with pytest.raises(OSError, match=r"out.npy: the result takes 0.0 GB, 0.0 GB are free|could not write"):
        keras_seg.segment(network, picture(), out=small_disk / "out.npy")
    assert os.listdir(small_disk) == []


def test_converted_annotations(tmp_path, run):
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
    Image.fromarray(picture()).save(tmp_path / "images/a.png")
    tifffile.imwrite(tmp_path / "labels/a.tif", np.arange(40_000, dtype=np.uint16).reshape(200, 200))
    out = tmp_path / "out.json"
    out.write_text("{}")
    with full():
        status, _, said = run(
            "convert", "labels", tmp_path / "images", tmp_path / "labels", out, "--overwrite"
        )
    assert status == 2 and "could not write" in said and "out.json" in said and said.count("\n") == 1
    assert out.read_text() == "{}" and sorted(os.listdir(tmp_path)) == ["images", "labels", "out.json"]


def test_learning_curves(tmp_path):
    history = [{"step": k, "loss": 1.0} for k in range(5000)]
    for write, name in ((curves.write_history, "history.csv"), (curves.plot_history, "curves.png")):
        with full(10_000), pytest.raises(OSError, match=rf"could not write .*{name}"):
            write(tmp_path / name, history)
    assert os.listdir(tmp_path) == []


def test_published_weights(tmp_path, monkeypatch):
    """Neither half a download nor half a conversion is taken for a whole one later."""
    home = tmp_path / "home"
    monkeypatch.setenv("KERAS_SEG_HOME", str(home))
    write_detectron2(tmp_path / "theirs.pkl")
    message = r"could not write .*\. That is in the cache, for which KERAS_SEG_HOME names another folder"
    with full(), pytest.raises(OSError, match=message):
        fetch((tmp_path / "theirs.pkl").as_uri())
    assert [path.suffix for path in home.rglob("*") if path.is_file()] == [".lock"]

    write_detectron2(home / "downloads" / URL.rsplit("/")[-1])
    recipe = write_recipe(tmp_path / "tiny.yaml")
    with full(), pytest.raises(OSError, match=message):
        keras_seg.zoo.load(recipe)
    assert not list(home.rglob("*.npz"))
    assert keras_seg.zoo.load(recipe).loaded.fresh == ()


def test_exports(tmp_path, network):
    target = tmp_path / "model.tflite"
    keras_seg.export.tflite(network, target, height=16, width=16)
    before = target.read_bytes()
    # TensorFlow writes itself, and says so in its own words
    for write in (
        lambda: keras_seg.export.tflite(network, target, height=16, width=16, overwrite=True),
        lambda: keras_seg.export.saved_model(network, tmp_path / "model"),
    ):
        with full(2_000), pytest.raises((OSError, tf.errors.OpError), match="File too large"):
            write()
    assert target.read_bytes() == before
    assert os.listdir(tmp_path) == ["model.tflite"]


SAY = "from keras_seg.cli import main; main()"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_what_is_printed_to_a_full_disk():
    with open("/dev/full", "w") as target:
        done = subprocess.run(
            [sys.executable, "-c", SAY, "list"], stdout=target, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode != 0 and "No space left" in done.stderr


# -- folders that cannot be written ----------------------------------------------------------------------------


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch, run):
    """Whoever runs it: a file lies where the folder should be."""
    (tmp_path / "home").write_text("")
    monkeypatch.setenv("KERAS_SEG_HOME", str(tmp_path / "home"))
    recipe = write_recipe(tmp_path / "tiny.yaml")
    Image.fromarray(picture()).save(tmp_path / "a.png")
    status, _, said = run("segment", recipe, tmp_path / "a.png", "-o", tmp_path / "out.json")
    assert status == 2 and str(tmp_path / "home") in said and "KERAS_SEG_HOME" in said


AS_NOBODY = """
import os, sys
import keras_seg
recipe, *homes = sys.argv[1:]
os.environ["KERAS_SEG_HOME"] = homes[0]
keras_seg.zoo.load(recipe)  # imports all, which another user may not be allowed to read
os.setgid(65534), os.setuid(65534)
for home in homes:
    os.environ["KERAS_SEG_HOME"] = home
    try:
        print(keras_seg.zoo.load(recipe).loaded.fresh)
    except OSError as error:
        print(error)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="gives up the rights of an administrator, hence needs them")
def test_a_cache_of_somebody_else_is_read_and_not_written(tmp_path, monkeypatch):
    """Shared by a group, say, who fill it once: what is in it loads; what would have to be written has a message."""
    for folder in (tmp_path, *tmp_path.parents):
        if "pytest" in folder.name or "popen" in folder.name or folder == tmp_path:
            folder.chmod(0o755)
    whole, half = tmp_path / "whole", tmp_path / "half"
    monkeypatch.setenv("KERAS_SEG_HOME", str(whole))
    write_detectron2(whole / "downloads" / URL.rsplit("/")[-1])
    recipe = write_recipe(tmp_path / "tiny.yaml")
    keras_seg.zoo.load(recipe)
    shutil.copytree(whole, half)
    for converted in (half / "converted").iterdir():
        converted.unlink()
    done = subprocess.run(
        [sys.executable, "-c", AS_NOBODY, recipe, whole, half], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-800:]
    read, refused = done.stdout.splitlines()
    assert read == "()"
    assert "could not write" in refused and "KERAS_SEG_HOME names another folder" in refused
