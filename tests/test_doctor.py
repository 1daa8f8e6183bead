"""`keras-seg doctor`: what it says, for people and for programs."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

import keras
import pytest
import tensorflow as tf
from typer.testing import CliRunner

import keras_seg
from keras_seg import doctor
from keras_seg.cli import app
from keras_seg.ops.native import library


def run(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["doctor", *arguments])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_for_programs():
    found = json.loads(run("--json"))
    assert found["tensorflow"] == tf.__version__ and found["keras"] == keras.__version__
    assert found["keras_seg"] == keras_seg.__version__ and "CPU:0" in found["devices"]
    assert found["cpu"]["cores"] >= 1 and found["cpu"]["model"] and found["onednn"] in (True, False)
    assert found["extras"]["imagej"] == importlib.metadata.version("roifile") and "beam" in found["extras"]
    used = found["roi_align"]
    try:
        there = library.get()
    except library.Unavailable as error:
        assert used == {"used": False, "reason": str(error)}
        return
    assert used["used"] and used["path"] == str(there.path) and Path(used["path"]).is_file()
    assert used["instruction_set"] == there.instruction_set and used["built_for"] == tf.__version__


def test_for_people(monkeypatch):
    monkeypatch.setenv("KERAS_SEG_NATIVE", "off")
    text = run()
    assert f"TensorFlow {tf.__version__}, Keras {keras.__version__}" in text and "devices: CPU:0" in text
    assert (
        "RoIAlign: TensorFlow's own operations, which are slower: the environment variable KERAS_SEG_NATIVE"
        in text
    )


def test_a_library_is_described(monkeypatch):
    manifest = {"built": "today", "tensorflow": "2.21.0", "compiler": "c++ 12", "cuda": "nvcc 12, sm_80"}
    found = library.Library(None, Path("/lib/roi_align.so"), "the cache", "AVX2", True, manifest, "a note")
    monkeypatch.setattr(library, "get", lambda: found)
    text = doctor.report(doctor.examine())
    assert "RoIAlign: compiled, from the cache: /lib/roi_align.so" in text
    assert "built today by c++ 12 for TensorFlow 2.21.0" in text
    assert "instruction set AVX2; CUDA kernels: nvcc 12, sm_80" in text and "note: a note" in text


def test_a_wrong_setting_is_told_and_no_crash(monkeypatch):
    monkeypatch.setenv("KERAS_SEG_NATIVE", "sometimes")
    assert "KERAS_SEG_NATIVE is 'sometimes': must be" in run()


@pytest.mark.parametrize(
    ("make", "state"),
    [
        (lambda path: None, "writable, not made yet"),
        (lambda path: path.mkdir(), "writable"),
        (lambda path: path.write_text(""), "not usable"),
    ],
)
def test_the_cache_folder(make, state, tmp_path, monkeypatch):
    home = tmp_path / "a home"
    make(home)
    monkeypatch.setenv("KERAS_SEG_HOME", str(home))
    monkeypatch.setenv("KERAS_SEG_NATIVE", "off")
    found = json.loads(run("--json"))["home"]
    assert found["path"] == str(home) and found["chosen_by"] == "KERAS_SEG_HOME"
    assert found["state"] == (f"not usable: {home} is a file" if state == "not usable" else state)
