"""No network, and clocks that jump.

tests/weights/test_download.py has servers that fail and processes that download at once; tests/test_zoo_detectors.py processes that
convert at once; tests/ops/native/test_library.py processes that compile at once.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
from detector_files import URL, write_detectron2, write_recipe
from PIL import Image

import keras_seg
from keras_seg.data.sample import Sample
from keras_seg.data.tiles import tile_dataset
from keras_seg.models import unet
from keras_seg.training import loop
from keras_seg.weights.download import DownloadFailed

DEAD_PROXY = "http://127.0.0.1:9"


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_SEG_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("KERAS_SEG_OFFLINE", raising=False)
    return tmp_path / "home"


# -- no network ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variable", "value", "reason"),
    [
        ("https_proxy", DEAD_PROXY, "the download failed"),
        ("KERAS_SEG_OFFLINE", "1", "KERAS_SEG_OFFLINE forbids to download"),
    ],
)
def test_the_command_line_says_which_file_to_put_where(
    run, home, tmp_path, monkeypatch, variable, value, reason
):
    monkeypatch.setenv(variable, value)
    recipe = write_recipe(tmp_path / "tiny.yaml")
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(tmp_path / "a.png")
    status, _, said = run("segment", recipe, tmp_path / "a.png", "-o", tmp_path / "out.json")
    assert status == 2 and said.count("\n") == 1 and "Traceback" not in said
    assert reason in said and URL in said and str(home / "downloads" / URL.rsplit("/")[-1]) in said


def test_imagenet_weights_behind_a_dead_proxy(home, monkeypatch, tmp_path):
    monkeypatch.setenv("https_proxy", DEAD_PROXY)
    with pytest.raises(DownloadFailed, match=r"Put the file of https://\S+ at .*resnet50"):
        keras_seg.zoo.load("maskrcnn_r50_fpn", weights="imagenet")


OFFLINE = """
import socket
def refuse(*arguments, **options):
    raise AssertionError("the network was asked")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
import numpy as np
import keras_seg
for name in ("unet_isbi2012", "maskrcnn_nuclei"):
    model = keras_seg.zoo.load(name)
image = np.arange(64 * 64, dtype=np.uint8).reshape(64, 64)
print(len(keras_seg.segment(model, image)))
"""


def test_models_that_ship_ask_nobody():
    done = subprocess.run([sys.executable, "-c", OFFLINE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-800:]


# -- clocks ----------------------------------------------------------------------------------------------------


def test_a_conversion_does_not_depend_on_the_times_of_files(home, tmp_path):
    """Once converted, always; of an exchanged download, anew: whatever a clock said when."""
    source = home / "downloads" / URL.rsplit("/")[-1]
    write_detectron2(source)
    recipe = write_recipe(tmp_path / "tiny.yaml")
    keras_seg.zoo.load(recipe)
    (converted,) = (home / "converted").glob("*.npz")
    written = converted.stat().st_ino
    for path, moment in ((source, time.time() + 1e8), (converted, 0)):
        os.utime(path, (moment, moment))
    keras_seg.zoo.load(recipe)
    assert [path.stat().st_ino for path in (home / "converted").glob("*.npz")] == [written]

    # another file in its place, older than the conversion: its own weights are read
    source.unlink()
    source.with_name(f"{source.name}.sha256").unlink()
    write_detectron2(source, classes=2)
    os.utime(source, (0, 0))
    with pytest.raises(ValueError, match="box_predictor"):
        keras_seg.zoo.load(recipe)


def test_training_goes_on_while_clocks_jump(tmp_path, monkeypatch):
    """Backwards, far ahead, and standing still; resumed from files that lie in the future."""
    label = np.tile(np.int32([[0, 1], [1, 0]]), (12, 12))
    sample = Sample(
        "a", label[..., None].astype(np.float32) * 200, label, np.ones(label.shape, np.float32), label
    )

    def run(output: Path, steps: int, say=lambda line: None) -> list[dict]:
        keras.utils.set_random_seed(1)
        model = unet(depth=1, base_channels=2, padding="same")
        model.compile(optimizer=keras.optimizers.Adam(0.01))
        batches = lambda start: tile_dataset([sample], tile=16, batch_size=2, start=start)
        return loop.run(model, batches, output, steps=steps, checkpoint_every=2, resume=True, say=say)

    monkeypatch.setattr(loop, "LOG_EVERY", 1)
    expected = run(tmp_path / "steady", 6)
    walls = iter([1e9, 0, 4e9, 1.0] * 10_000)
    monkeypatch.setattr(time, "time", lambda: next(walls))
    frozen = time.monotonic()
    monkeypatch.setattr(loop.time, "monotonic", lambda: frozen)
    lines: list[str] = []
    run(tmp_path / "jumping", 3)
    for path in (tmp_path / "jumping").iterdir():
        os.utime(path, (4e9, 4e9))
    assert run(tmp_path / "jumping", 6, lines.append) == expected
    assert "resumed at step 3 of 6" in lines[0] and "step 6/6" in lines[-1]
