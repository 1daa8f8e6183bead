"""Weights files that mean harm: nothing in them runs, none fills the memory, each is refused in a line that names it.

tests/weights/test_pickles.py has what the reader of pickles admits, and damaged files.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import resource
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
from detector_files import write_recipe

from keras_seg.models import unet
from keras_seg.recipe import load_recipe
from keras_seg.training import checkpoint
from keras_seg.weights import files

MEMORY = 2 << 30  # bytes that a refusal may take, of addresses
SECONDS = 20  # of the processor, for all of them


class Touches:
    """What a pickle would do if it were run: make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.path}",)


def in_a_torch_archive(pickled: bytes, storage: bytes = b"", compression: int = zipfile.ZIP_STORED) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/data/0", storage)
    return content.getvalue()


@pytest.mark.parametrize("name", ["weights.pkl", "weights.pth", "archive.pth", "weights.pt", "weights.h5"])
def test_what_a_file_would_run_is_named_and_not_run(run, tmp_path, name):
    harm = tmp_path / "harm"
    content = pickle.dumps({"model": {"backbone.bottom_up.stem.conv1.weight": Touches(harm)}}, protocol=2)
    (tmp_path / name).write_bytes(in_a_torch_archive(content) if name.startswith("archive") else content)
    recipe = write_recipe(tmp_path / "tiny.yaml")
    status, _, said = run("import-weights", recipe, tmp_path / name, "-o", tmp_path / "out.weights.h5")
    assert status == 2 and name in said and said.count("\n") == 1
    assert ("refused, it would call" in said) == (not name.endswith(".h5"))
    assert not harm.exists() and not (tmp_path / "out.weights.h5").exists()


TENSOR = (
    b"\x80\x02}(X\x01\x00\x00\x00actorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
    b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpu%sNtQK\x00K\x01\x85K\x01\x85tRu."
)


def legacy_torch(count: int) -> bytes:
    """A file of PyTorch before 1.6 whose storage claims so many elements and has one."""
    start = b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {}))
    long = b"\x8a\x08" + struct.pack("<q", count)
    return start + TENSOR % long + pickle.dumps(["0"], 2) + struct.pack("<q", count) + bytes(4)


def laughs() -> bytes:
    """Ten to the twelfth words, in 300 bytes."""
    value: list = ["ha"]
    for _ in range(12):
        value = [value] * 10
    return pickle.dumps({"model": value}, protocol=2)


FILLERS = {
    "memo.pkl": b"\x80\x02Nr" + struct.pack("<I", 0xFFFFFFF) + b".",
    "bytes.pkl": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b"abc.",
    "frame.pkl": b"\x80\x04\x95" + struct.pack("<Q", 1 << 40) + b"N.",
    "laughs.pkl": laughs(),
    "deep.pkl": b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
    "terabytes.pth": legacy_torch(1 << 40),
    "beyond_numbers.pth": legacy_torch(1 << 61),
    "negative.pth": legacy_torch(-5),
    "zip.pth": in_a_torch_archive(TENSOR % b"K\x01", bytes(64 << 20), zipfile.ZIP_DEFLATED),
}
READ = """
import sys
from keras_seg.weights.pickles import load_pickle, load_torch
for path in sys.argv[1:]:
    try:
        found = load_pickle(path) if path.endswith(".pkl") else load_torch(path)
        print(path, "read", type(found).__name__)
    except ValueError as error:
        print(error)
"""


def test_few_bytes_do_not_fill_the_memory(tmp_path):
    paths = [tmp_path / name for name in FILLERS]
    for path in paths:
        path.write_bytes(FILLERS[path.name])

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))

    done = subprocess.run(
        [sys.executable, "-c", READ, *paths], capture_output=True, text=True, check=False, preexec_fn=limit
    )
    assert done.returncode == 0, done.stderr[-500:]
    said = dict(zip(FILLERS, done.stdout.splitlines(), strict=True))
    assert all(name in line for name, line in said.items())
    # these two say nothing wrong: a memo's number may be any, and a word may occur often
    assert "read NoneType" in said.pop("memo.pkl") and "read dict" in said.pop("laughs.pkl")
    assert all(": truncated" in said.pop(name) for name in ("bytes.pkl", "frame.pkl", "terabytes.pth"))
    assert ": truncated" in said.pop("beyond_numbers.pth") and ": truncated" in said.pop("negative.pth")
    assert "nested too deeply" in said.pop("deep.pkl")
    assert "is compressed, which torch.save does not do" in said.pop("zip.pth")
    assert not said


@pytest.fixture(scope="module")
def network():
    model = unet(depth=1, base_channels=2, padding="same")
    model.compile(optimizer="sgd")
    model.optimizer.build(model.trainable_variables)
    return model


def test_a_checkpoint_with_objects_is_refused(tmp_path, network):
    path, harm = tmp_path / "checkpoint.npz", tmp_path / "harm"
    checkpoint.save(path, network, {"step": 1})
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    objects = io.BytesIO()
    np.save(objects, np.array([Touches(harm)], dtype=object), allow_pickle=True)
    entries[next(name for name in entries if name.endswith(".npy"))] = objects.getvalue()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    with pytest.raises(ValueError, match=r"checkpoint.npz: damaged, or no checkpoint of keras_seg"):
        checkpoint.restore(path, network)
    assert not harm.exists()


@pytest.mark.parametrize("how", ["external_link", "soft_link", "external_array"])
def test_a_weights_file_reads_no_other_file(tmp_path, network, how):
    path, other = tmp_path / "model.weights.h5", tmp_path / "other.weights.h5"
    for place in (path, other):
        files.save_weights(network, place)
    (tmp_path / "secret").write_bytes(bytes(1 << 16))
    with h5py.File(path, "a") as file:
        name = "layers/" + next(n for n in file["layers"] if len(file["layers"][n].get("vars", {})))
        if how == "external_array":
            array = file[name]["vars/0"]
            shape, kind = array.shape, array.dtype
            del file[name]["vars/0"]
            outside = [(str(tmp_path / "secret"), 0, h5py.h5f.UNLIMITED)]
            file[name]["vars"].create_dataset("0", shape, kind, external=outside)
        else:
            del file[name]
            link = h5py.ExternalLink(str(other), name) if how == "external_link" else h5py.SoftLink("/layers")
            file[name] = link
    with pytest.raises(
        ValueError, match=r"model.weights.h5: .*(lies in another file|links to another place)"
    ):
        files.load_weights(network, path)


def test_a_recipe_is_data(tmp_path):
    harm = tmp_path / "harm"
    path = tmp_path / "recipe.yaml"
    path.write_text(f"schema: 1\nname: !!python/object/apply:os.system ['touch {harm}']\n")
    with pytest.raises(ValueError, match=r"recipe.yaml: not a YAML file: .*python/object"):
        load_recipe(path)
    assert not harm.exists()


def test_a_keras_model_file_with_code_is_not_loaded(tmp_path):
    """Keras's own loader is what reads a `.keras` file, in its safe mode: layers of Python code are refused."""
    model = keras.Sequential([keras.Input((2,)), keras.layers.Lambda(lambda x: x)])
    model.save(tmp_path / "model.keras")
    with pytest.raises(ValueError, match=r"[Ll]ambda"):
        keras.models.load_model(tmp_path / "model.keras")


def test_a_backend_setting_is_data_too(tmp_path):
    """keras.json may hold anything: it is read for one word."""
    (tmp_path / "keras.json").write_text(json.dumps({"backend": ["tensorflow"]}))
    environment = {**os.environ, "KERAS_HOME": str(tmp_path)}
    environment.pop("KERAS_BACKEND", None)
    done = subprocess.run(
        [sys.executable, "-c", "import keras_seg"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and "runs on Keras's TensorFlow backend only" in done.stderr
