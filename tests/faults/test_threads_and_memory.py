"""Many threads, many predictions, too little memory."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_seg
from keras_seg import overlap_tile
from keras_seg.models import mask_rcnn, unet
from keras_seg.training import loop

THREADS, PREDICTIONS, GROWTH = 8, 1000, 50  # MB
TINY = {
    "backbone": "resnet18", "width": 4, "fpn_channels": 8, "box_head_channels": 16, "mask_channels": 8,
    "proposals": 20, "detections": 5, "score_threshold": 0.0, "short_side": 64, "max_side": 96,
}  # fmt: skip


def network():
    keras.utils.set_random_seed(0)
    return unet(1, 2, depth=2, base_channels=4, padding="same", normalization="batch")


def detector():
    keras.utils.set_random_seed(0)
    return mask_rcnn(3, **TINY)


def images(count: int, *channels: int) -> list[np.ndarray]:
    """Of several sizes."""
    rng = np.random.default_rng(0)
    return [
        rng.integers(0, 256, (int(h), int(w), *channels), np.uint8)
        for h, w in rng.integers(40, 90, (count, 2))
    ]


# -- threads ---------------------------------------------------------------------------------------------------


def from_threads(work, items: list) -> list:
    """work(item) for each item, from THREADS threads that start at once."""
    gate = threading.Barrier(THREADS)
    with ThreadPoolExecutor(THREADS, initializer=gate.wait) as pool:
        return list(pool.map(work, items))


def test_a_unet_gives_eight_threads_what_it_gives_one():
    pictures = images(3 * THREADS)
    # a fresh model: the threads meet while it is compiled
    model = network()
    found = from_threads(lambda image: keras_seg.segment(model, image, rotations=2), pictures)
    for image, one in zip(pictures, found, strict=True):
        np.testing.assert_array_equal(one, keras_seg.segment(model, image, rotations=2))


def test_a_detector_gives_eight_threads_what_it_gives_one():
    pictures = images(3 * THREADS, 3)
    model = detector()
    found = from_threads(lambda image: keras_seg.segment(model, image, score_threshold=0.0), pictures)
    for image, one in zip(pictures, found, strict=True):
        alone = keras_seg.segment(model, image, score_threshold=0.0)
        assert len(one) == len(alone) > 0
        np.testing.assert_array_equal(one.boxes, alone.boxes)
        np.testing.assert_array_equal(one.scores, alone.scores)
        np.testing.assert_array_equal(one.masks, alone.masks)


def test_threads_compile_a_model_once(monkeypatch):
    from keras_seg import inference

    made = []
    real = inference.for_inference
    monkeypatch.setattr(inference, "for_inference", lambda *arguments: made.append(1) or real(*arguments))
    model = network()
    from_threads(lambda image: keras_seg.segment(model, image), images(THREADS))
    assert len(made) == 1


# -- memory over time ------------------------------------------------------------------------------------------

GROW = """
import gc, sys
import numpy as np
import keras_seg
from test_threads_and_memory import PREDICTIONS, detector, network

def resident():
    gc.collect()
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) / 1024

model = {"network": network, "detector": detector}[sys.argv[1]]()
channels = () if sys.argv[1] == "network" else (3,)
rng = np.random.default_rng(0)
for n in range(PREDICTIONS + 200):
    if n == 200:  # allocators have their pools
        before = resident()
    keras_seg.segment(model, rng.integers(0, 256, (*rng.integers(30, 100, 2), *channels), np.uint8))
print("grown by", resident() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the resident memory is read from /proc")
@pytest.mark.parametrize("kind", ["network", "detector"])
def test_memory_does_not_grow_with_predictions_of_any_size(kind):
    here = Path(__file__).resolve().parent
    path = os.pathsep.join(map(str, (here, here.parents[1])))
    done = subprocess.run(
        [sys.executable, "-c", GROW, kind],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-800:]
    grown = float(re.search(r"grown by (\S+)", done.stdout)[1])
    assert grown < GROWTH


# -- too little of it ------------------------------------------------------------------------------------------


def exhausted(*_, **__):
    raise tf.errors.ResourceExhaustedError(
        None, None, "OOM when allocating tensor with shape[1,9999,9999,64]"
    )


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        ({}, r"a tile of 40x56 pixels at once: use a tile smaller than 56"),
        ({"tile": 16, "batch_size": 4}, r"4 tiles of 16x16 pixels at once: use batch_size=1"),
    ],
)
def test_a_unet_out_of_memory_asks_for_smaller_tiles(monkeypatch, options, advice):
    monkeypatch.setattr(overlap_tile, "_compiled", lambda *_: exhausted)
    with pytest.raises(MemoryError, match=f"not enough memory for {advice}"):
        keras_seg.segment(network(), images(1)[0][:40, :53], **options)


@pytest.mark.parametrize(
    ("batch_size", "advice"),
    [
        (1, "1 images? .*: use a smaller short_side and max_side"),
        (2, "2 images .*: use a smaller batch_size"),
    ],
)
def test_a_detector_out_of_memory_asks_for_smaller_images(monkeypatch, batch_size, advice):
    monkeypatch.setattr("keras_seg.inference.compiled", lambda *_: exhausted)
    with pytest.raises(MemoryError, match=f"not enough memory for {advice}"):
        keras_seg.segment(detector(), images(2, 3), batch_size=batch_size)


def test_training_out_of_memory_asks_for_smaller_batches(tmp_path):
    model = network()
    model.compile(optimizer="sgd")
    batch = {
        "image": np.zeros((1, 16, 16, 1), np.float32),
        "label": np.zeros((1, 16, 16), np.int32),
        "weight": np.ones((1, 16, 16), np.float32),
    }
    model.optimize = exhausted
    batches = tf.data.Dataset.from_tensors(batch).repeat()
    with pytest.raises(MemoryError, match=r"the batch of step 1: use a smaller data.batch_size .* data.tile"):
        loop.run(model, lambda start: batches, tmp_path, steps=2, say=lambda line: None)


STARVED = """
import resource, sys
import numpy as np
import keras_seg
from test_threads_and_memory import network
model = network()
keras_seg.segment(model, np.arange(4096, dtype=np.uint8).reshape(64, 64))  # threads and pools are there
with open("/proc/self/status") as status:
    used = next(int(line.split()[1]) for line in status if line.startswith("VmSize")) * 1024
resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 28), used + (1 << 28)))
image = np.random.default_rng(0).integers(0, 256, (4096, 4096), np.uint8)
try:
    keras_seg.segment(model, image, tile=4096)
except MemoryError as error:
    print(error)
print(keras_seg.segment(model, image[:600, :600], tile=64).shape)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the size in memory is read from /proc")
def test_where_memory_really_ends_the_advice_helps():
    here = Path(__file__).resolve().parent
    path = os.pathsep.join(map(str, (here, here.parents[1])))
    done = subprocess.run(
        [sys.executable, "-c", STARVED],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-800:]
    first, second = done.stdout.splitlines()
    assert "not enough memory for a tile of 4096x4096 pixels at once: use a tile smaller than 4096" in first
    assert second == "(600, 600, 2)"
