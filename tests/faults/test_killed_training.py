"""Training that is killed at random moments goes on exactly; the same seed gives the same run in another process.

tests/training/test_loop.py kills a checkpoint half-way, fills the disk and damages the file; tests/training/test_hosts.py kills
one worker of two; tests/training/test_detectors.py resumes a detector.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml
from PIL import Image

KILLS = 2
RECIPE = {
    "schema": 1,
    "name": "tiny",
    "summary": "for a test",
    "model": {
        "builder": "unet", "depth": 1, "base_channels": 4, "padding": "same", "normalization": "batch", "dropout": 0.2,
        "class_names": ["ground", "cell"],
    },
    "data": {
        "reader": "folder", "classes": {"ground": 0, "cell": 255}, "tile": 32, "batch_size": 2,
        "augmentation": {"elastic_sigma": 2, "noise": 2},
        "train_images": "images", "train_masks": "masks", "validation_images": "images", "validation_masks": "masks",
    },
    "training": {
        "steps": 36, "optimizer": {"name": "adam", "learning_rate": 0.01, "average": 0.9}, "seed": 5,
        "evaluate_every": 18, "checkpoint_every": 3, "select": {"metric": "mean_iou", "mode": "max"},
    },
}  # fmt: skip
TRAIN = "from keras_seg.cli import main; main()"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cells")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    for kind in ("images", "masks"):
        (folder / kind).mkdir()
    rng = np.random.default_rng(0)
    for k in range(3):
        mask = np.zeros((48, 48), np.uint8)
        y, x = rng.integers(4, 20, 2)
        mask[y : y + 20, x : x + 20] = 255
        image = np.clip(mask * 0.5 + rng.normal(50, 10, mask.shape), 0, 255).astype(np.uint8)
        Image.fromarray(image).save(folder / f"images/{k}.png")
        Image.fromarray(mask).save(folder / f"masks/{k}.png")
    return folder


def start(data: Path, output: Path, hash_seed: int) -> subprocess.Popen:
    command = [sys.executable, "-c", TRAIN, "train", data / "recipe.yaml", "--data", data, "--output", output]
    # a run must not depend on the order of sets
    environment = {**os.environ, "PYTHONHASHSEED": str(hash_seed)}
    return subprocess.Popen(
        [*command, "--resume"], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def finish(process: subprocess.Popen) -> None:
    _, said = process.communicate()
    assert process.returncode == 0, said.decode()[-800:]


def arrays(path: Path) -> dict[str, np.ndarray]:
    found = {}
    with h5py.File(path) as file:
        file.visititems(
            lambda n, item: found.update({n: item[()]}) if isinstance(item, h5py.Dataset) else None
        )
    return found


def state(path: Path) -> tuple[dict, dict[str, bytes]]:
    """What a checkpoint says of the run, and the bytes of its variables."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    return json.loads(entries.pop("state.json")), entries


def test_a_run_that_is_killed_at_random_moments_is_the_undisturbed_one_to_the_bit(data, tmp_path):
    whole = start(data, tmp_path / "whole", hash_seed=1)
    checkpoint, moments = tmp_path / "killed/checkpoint.npz", random.Random()
    left, steps = [], []
    for number in range(KILLS):
        before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else None
        process = start(data, tmp_path / "killed", hash_seed=2 + number)
        # once it has got on, at any moment: in a step, in an evaluation, while a file is written
        while process.poll() is None:
            if checkpoint.exists() and checkpoint.stat().st_mtime_ns != before:
                break
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        steps.append(state(checkpoint)[0]["step"])
        left += [path for path in checkpoint.parent.iterdir() if path.name.startswith(".")]
    assert steps == sorted(steps)
    finish(start(data, tmp_path / "killed", hash_seed=9))
    finish(whole)

    (said, variables), (expected, undisturbed) = state(checkpoint), state(tmp_path / "whole/checkpoint.npz")
    assert said == expected and said["step"] == RECIPE["training"]["steps"], (steps, left)
    assert variables == undisturbed, steps
    for name in ("best.weights.h5", "last.weights.h5"):
        one, other = (arrays(tmp_path / run / name) for run in ("whole", "killed"))
        assert one.keys() == other.keys() and len(one) > 10
        for key, array in one.items():
            np.testing.assert_array_equal(array, other[key], err_msg=f"{name} {key}, killed after {steps}")
    texts = [(tmp_path / run / "history.csv").read_text() for run in ("whole", "killed")]
    assert texts[0] == texts[1] and texts[0].count("\n") > 3
    # what a kill left half-written is gone
    assert not [path for path in checkpoint.parent.iterdir() if path.name.startswith(".")]


DIGEST = """
import hashlib, sys
import numpy as np
import tensorflow as tf
from square_files import recipe
from keras_seg.training import train, loop
from keras_seg.data import coco
folder = sys.argv[1]
digest = hashlib.sha256()
data = coco(folder + "/train.json", folder + "/train", batch_size=2, short_side=96, max_side=96, seed=3)
for batch in data.take(6):
    for name in sorted(batch):
        digest.update(name.encode() + np.asarray(batch[name]).tobytes())
print("batches", digest.hexdigest())
loop.LOG_EVERY = 1
changes = {"data.validation_annotations": None, "data.validation_images": None}
# of one level, which is traced sooner
changes |= {"model.structure": "dc5", "model.anchor_sizes": [16, 32]}
model = train(recipe(2).override(changes), folder, sys.argv[2], say=lambda line: None)
print("weights", hashlib.sha256(b"".join(w.tobytes() for w in model.get_weights())).hexdigest())
"""


def test_a_seed_gives_a_detector_the_same_batches_losses_and_weights_in_another_process(squares, tmp_path):
    tests = Path(__file__).resolve().parents[1]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", DIGEST, squares, tmp_path / str(seed)],
            env={
                **os.environ,
                "PYTHONHASHSEED": str(seed),
                "PYTHONPATH": f"{tests}{os.pathsep}{tests.parent}",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for seed in (1, 2)
    ]
    printed = []
    for process in processes:
        out, said = process.communicate()
        assert process.returncode == 0, said[-800:]
        printed.append(out.split())
    assert printed[0] == printed[1] and [len(word) for word in printed[0]] == [7, 64, 7, 64]
    histories = [(tmp_path / str(seed) / "history.csv").read_text() for seed in (1, 2)]
    assert histories[0] == histories[1] and histories[0].count("\n") == 3
