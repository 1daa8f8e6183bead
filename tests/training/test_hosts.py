"""The same recipe on several workers and devices, in processes of their own: those of a process are fixed once TensorFlow has
begun."""

from __future__ import annotations

import csv
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from keras_seg.data.sample import Sample
from keras_seg.data.tiles import tile_dataset
from keras_seg.recipe import load_recipe
from keras_seg.training import checkpoint, loop, train
from keras_seg.training.hosts import read_cluster

STEPS, SIDE = 6, 64
# SGD: Adam's first steps are ±1 times the rate however small the gradient, so they multiply errors of rounding
UNET = {
    "schema": 1, "name": "tiny_unet", "summary": "for a test",
    "model": {"builder": "unet", "input_channels": 3, "depth": 1, "base_channels": 4, "padding": "same", "dropout": 0.0},
    "data": {
        "reader": "folder", "classes": {"ground": 0, "cell": 255}, "ignore_value": 7, "tile": 32, "batch_size": 2,
        "train_images": "images", "train_masks": "masks",
        "validation_images": "images", "validation_masks": "masks",
    },
    "training": {
        "steps": STEPS, "evaluate_every": 3, "checkpoint_every": 2,
        "optimizer": {"name": "sgd", "learning_rate": 0.1, "momentum": 0.9, "clip_norm": 0.3, "average": 0.8},
        "schedule": {"reference_batch": 4, "warmup_steps": 2},
        "select": {"metric": "mean_iou", "mode": "max"},
    },
}  # fmt: skip
# Of samples all there are, since two workers draw others than one process would.
DETECTOR = {
    "schema": 1, "name": "tiny_detector", "summary": "for a test",
    "model": {
        "builder": "mask_rcnn", "class_names": ["square"], "backbone": "resnet18", "width": 8, "structure": "dc5",
        "anchor_sizes": [16, 32], "normalization": "group", "box_head_channels": 16, "mask_channels": 8, "proposals": 30,
        "detections": 10, "short_side": SIDE, "max_side": SIDE,
    },
    "data": {
        "reader": "coco", "annotations": "squares.json", "images": "images", "batch_size": 1, "short_side": SIDE,
        "max_side": 2 * SIDE, "augmentation": {"turns": True},
    },
    "training": {
        "steps": STEPS, "checkpoint_every": 2,
        "optimizer": {
            "name": "sgd", "learning_rate": 0.01, "momentum": 0.9, "weight_decay": 1e-3, "clip_norm": 1, "accumulate": 2,
        },
        "detector": {
            "rpn_samples": 4096, "rpn_positive_fraction": 1.0, "rpn_normalizer": "sampled", "region_samples": 64,
            "region_positive_fraction": 1.0, "pre_nms_proposals": 200, "proposals": 30,
        },
        "select": {"metric": "segm_AP", "mode": "max"},
    },
}  # fmt: skip
RECIPES = {"unet": UNET, "detector": DETECTOR}
WORKER = """
import json, os, signal, sys
import keras_seg.training.loop as loop
from keras_seg.recipe import load_recipe
from keras_seg.training import hosts, train

recipes, data, output, devices, killed_at = json.loads(sys.argv[1])
loop.LOG_EVERY = 1
if devices:
    import tensorflow as tf
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * devices)
    strategy = tf.distribute.MirroredStrategy([f"CPU:{k}" for k in range(devices)])
else:
    strategy = hosts.hosts_of().strategy
if killed_at:
    make = loop.optimizing
    def optimizing(*arguments):
        step, calls = make(*arguments), []
        def killed(batches):
            calls.append(batches)
            if len(calls) == killed_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return step(batches)
        return killed
    loop.optimizing = optimizing
for name, recipe in recipes.items():
    train(load_recipe(recipe), data, os.path.join(output, name), resume=True, strategy=strategy)
    print("done", name, flush=True)
own = hosts.hosts_of(strategy)
try:
    hosts.check_same(own, **{"the seed": own.number})
except ValueError as error:
    print(error)
"""


def ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("localhost", 0))
    numbers = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return numbers


def start(recipes, data, output, config: dict | None = None, devices: int = 0, killed_at: int = 0):
    arguments = json.dumps([recipes, str(data), str(output), devices, killed_at])
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "TF_NUM_INTRAOP_THREADS": "1"}
    environment.pop("TF_CONFIG", None)
    if config:
        environment["TF_CONFIG"] = json.dumps(config)
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, arguments], env=environment, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )  # fmt: skip


def two_workers(recipes, data, output, *, second_killed_at: int = 0) -> list[tuple[int, str]]:
    """Exit status and output of each."""
    addresses = [f"localhost:{port}" for port in ports(2)]
    workers = [
        start(
            recipes, data, output, {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": k}},
            killed_at=second_killed_at if k else 0,
        )
        for k in range(2)
    ]  # fmt: skip
    try:
        outputs = [worker.communicate(timeout=400)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    return [(worker.returncode, output) for worker, output in zip(workers, outputs, strict=True)]


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    """Images of bright squares, a different number in each: as masks for a U-Net, not annotated in parts, and as COCO
    annotations."""
    folder = tmp_path_factory.mktemp("squares")
    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    (folder / "masks").mkdir()
    records, annotations = [], []
    for k in range(1, 5):
        image, mask = rng.normal(60, 9, (SIDE, SIDE, 3)), np.zeros((SIDE, SIDE), np.uint8)
        for x, y in [(4, 6), (36, 34), (8, 38)][: 1 + k % 3]:
            side = int(rng.integers(16, 24))
            image[y : y + side, x : x + side] += (90, 40, -20)
            mask[y : y + side, x : x + side] = 255
            corners = [x, y, x + side, y, x + side, y + side, x, y + side]
            annotations.append(
                {
                    "id": len(annotations) + 1, "image_id": k, "category_id": 1, "iscrowd": 0, "area": side**2,
                    "bbox": [x, y, side, side], "segmentation": [corners],
                }
            )  # fmt: skip
        mask[:, SIDE - 8 * k :] = 7
        Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)).save(folder / f"images/{k}.png")
        Image.fromarray(mask).save(folder / f"masks/{k}.png")
        records.append({"id": k, "file_name": f"{k}.png", "height": SIDE, "width": SIDE})
    content = {"images": records, "annotations": annotations, "categories": [{"id": 1, "name": "square"}]}
    (folder / "squares.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def one_process(squares, tmp_path_factory):
    """Runs of one process with twice the batch."""
    folder, log_every = tmp_path_factory.mktemp("one"), loop.LOG_EVERY
    loop.LOG_EVERY = 1
    try:
        for name, recipe in RECIPES.items():
            batch = 2 * recipe["data"]["batch_size"]
            twice = load_recipe(recipe).override({"data.batch_size": batch})
            train(twice, squares, folder / name, say=lambda line: None)
    finally:
        loop.LOG_EVERY = log_every
    return folder


@pytest.fixture(scope="module")
def undisturbed(squares, tmp_path_factory):
    folder = tmp_path_factory.mktemp("workers")
    return folder, two_workers(RECIPES, squares, folder)


def history(folder: Path) -> list[dict[str, float]]:
    with open(folder / loop.HISTORY, newline="") as file:
        return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]


def assert_same_run(folder: Path, other: Path, rtol: float) -> None:
    """The same figures at each step, and the same weights and optimizer state up to a part of their largest value."""
    for own, expected in zip(history(folder), history(other), strict=True):
        assert own == pytest.approx(expected, rel=rtol)
    with np.load(folder / loop.CHECKPOINT) as own, np.load(other / loop.CHECKPOINT) as expected:
        names = [name for name in expected.files if name != checkpoint.STATE]
        assert own.files == expected.files and len(names) > 10
        for name in names:
            largest = np.abs(expected[name]).max(initial=0)
            np.testing.assert_allclose(own[name], expected[name], rtol=0, atol=rtol * largest, err_msg=name)


@pytest.mark.parametrize("name", RECIPES)
def test_two_workers_make_the_run_of_one_process_with_twice_the_batch(undisturbed, one_process, name):
    folder, results = undisturbed
    for code, output in results:
        assert code == 0 and f"done {name}" in output, output
    # sums in another order, from which rounding errors grow step by step
    assert_same_run(folder / name, one_process / name, rtol=1e-3)


def test_two_devices_of_a_process_make_that_run_too(squares, one_process, tmp_path):
    worker = start({"unet": UNET}, squares, tmp_path, devices=2)
    output, _ = worker.communicate(timeout=400)
    assert worker.returncode == 0 and "6 steps on 2 devices" in output, output
    assert_same_run(tmp_path / "unet", one_process / "unet", rtol=1e-3)


def test_workers_that_differ_say_in_what(undisturbed):
    for number, (_, output) in enumerate(undisturbed[1]):
        assert (
            f"the workers do not agree on the seed, which is {number} on worker {number}: all need the same"
            in output
        )


def test_only_the_chief_tells_and_writes(undisturbed):
    folder, ((_, chief), (_, other)) = undisturbed
    assert (
        f"step {STEPS}/{STEPS}" in chief
        and "tiny_unet: 4 images to train on, 4 to validate; 6 steps on 2 devices" in chief
    )
    assert "step" not in other.replace("6 steps on 2 devices", "") and "worker 1 of 2" in other
    written = {loop.CHECKPOINT, loop.BEST, loop.LAST, loop.HISTORY, loop.CURVES, loop.BOARD}
    assert {path.name for path in (folder / "unet").iterdir()} == written
    assert len([*(folder / "unet" / loop.BOARD).iterdir()]) == 1


def test_a_killed_worker_ends_the_others_and_all_resume_from_the_checkpoint(squares, undisturbed, tmp_path):
    (_, chief), (code, _) = two_workers({"unet": UNET}, squares, tmp_path, second_killed_at=5)
    assert code == -signal.SIGKILL
    assert "done" not in chief and f"step 4/{STEPS}" in chief and f"step 5/{STEPS}" not in chief
    assert "another of the 2 workers is gone" in chief, chief
    for code, output in two_workers({"unet": UNET}, squares, tmp_path):
        assert code == 0 and "done unet" in output, output
    assert_same_run(tmp_path / "unet", undisturbed[0] / "unet", rtol=1e-6)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "no JSON .* it looks like"),
        ("[]", 'needs "cluster" and "task"'),
        ({"cluster": {"worker": ["a:1", "b:1"]}}, 'needs "cluster" and "task"'),
        ({"cluster": {"worker": "a:1"}, "task": {}}, "cluster.worker must be a list"),
        ({"cluster": {"worker": ["a:1"], "ps": ["b:1"]}, "task": {}}, "cluster.ps: only workers"),
        ({"cluster": {"worker": ["a:1", "b"]}, "task": {}}, "'b' is no address; it must be host:port"),
        ({"cluster": {"worker": ["a:1", "b:70000"]}, "task": {}}, "'b:70000' is no address"),
        ({"cluster": {"worker": ["a:1", 3]}, "task": {}}, "3 is no address"),
        ({"cluster": {"worker": ["a:1", "a:1"]}, "task": {}}, "a:1 is there twice"),
        (
            {"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 2}},
            "'worker' number 2, which",
        ),
        (
            {"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "chief", "index": 0}},
            "'chief' number 0, which",
        ),
        (
            {"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": "0"}},
            "number '0', which",
        ),
        ({"cluster": {}, "task": {}}, r"not in the cluster \(empty"),
    ],
)
def test_a_wrong_cluster(config, message):
    with pytest.raises(ValueError, match=f"TF_CONFIG.*{message}"):
        read_cluster(config if isinstance(config, str) else json.dumps(config))


def test_a_cluster():
    assert read_cluster(" ") == ([], 0)
    cluster = {"worker": ["a:1", "b:1"], "chief": ["c:1"]}
    for task, number in ((("chief", 0), 0), (("worker", 0), 1), (("worker", 1), 2)):
        config = json.dumps({"cluster": cluster, "task": dict(zip(("type", "index"), task, strict=True))})
        assert read_cluster(config) == (["c:1", "a:1", "b:1"], number)


def test_a_wrong_cluster_is_a_line_on_the_command_line(run, monkeypatch, tmp_path):
    monkeypatch.setenv("TF_CONFIG", "{}")
    code, _, error = run("train", "unet_isbi2012", "--data", tmp_path, "--output", tmp_path / "run")
    assert code == 2 and error.startswith('keras-seg: TF_CONFIG: needs "cluster"') and error.count("\n") == 1


def sample(seed: int) -> Sample:
    image = np.random.default_rng(seed).uniform(0, 255, (8, 8, 1)).astype(np.float32)
    label = np.zeros((8, 8), np.int32)
    return Sample(f"{seed}", image, label, label.astype(np.float32), label)


@pytest.mark.parametrize(
    ("batch", "hosts", "start", "repeat"), [(2, 2, 1, True), (1, 3, 0, False), (3, 2, 0, False)]
)
def test_shards_of_tiles_are_parts_of_larger_batches(batch, hosts, start, repeat):
    samples = [sample(k) for k in range(7)]
    options = {"tile": 8, "seed": 3, "start": start, "repeat": repeat}

    def images(size: int, shard: tuple[int, int]) -> list[np.ndarray]:
        data = tile_dataset(samples, batch_size=size, shard=shard, **options).take(3)
        return [batch["image"].numpy() for batch in data]

    whole = images(batch * hosts, (0, 1))
    parts = [images(batch, (host, hosts)) for host in range(hosts)]
    for k, expected in enumerate(whole):
        joined = np.concatenate([part[k] for part in parts if k < len(part)])
        np.testing.assert_array_equal(joined, expected)


@pytest.mark.parametrize("shard", [(2, 2), (-1, 2), (0, 0)])
def test_a_wrong_shard_of_tiles(shard):
    with pytest.raises(ValueError, match="shard must be"):
        tile_dataset([sample(0)], tile=8, shard=shard)
