"""The benchmarks of masks, tiles, streams and precisions run on tiny sizes, and torchvision's masks are keras_seg's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_masks_of_torchvision_and_pycocotools_are_the_same(tmp_path: Path) -> None:
    import subprocess

    import compare
    import masks

    python = BENCHMARKS / masks.TORCH_ENVIRONMENT / "bin/python"
    if not python.exists() or subprocess.run([python, "-c", "import pycocotools"], check=False).returncode:
        pytest.skip("needs PyTorch's own environment, which `make bench-masks` makes")
    inputs = tmp_path / "inputs.npz"
    masks.write_inputs(inputs, 4, (120, 160))
    commands = masks.commands(python, inputs, 1)
    table = compare.compare("masks", commands, 2, 0, tmp_path, parts=False)  # raises where results differ
    results = {"date": "today", "machine": compare.machine(1), "tables": {"masks": table}}
    text = masks.report(results, 4)
    assert f"| {masks.PEER} |" in text and "torchvision 0." in text


def test_boxes_and_masks_of_the_benchmark(tmp_path: Path) -> None:
    import masks

    masks.write_inputs(tmp_path / "inputs.npz", 50, (120, 160))
    inputs = np.load(tmp_path / "inputs.npz")
    boxes = inputs["boxes"]
    assert (boxes[:, 2:] > boxes[:, :2]).all() and boxes.min() >= 0
    assert (boxes.max(axis=0)[2:] <= [160, 120]).all()
    shares = (inputs["masks"] >= 0.5).mean(axis=(1, 2))
    assert inputs["masks"].shape == (50, 28, 28) and 0.2 < shares.min() and shares.max() < 0.9


def test_tiles_of_a_small_image() -> None:
    import compare
    import tiles

    from keras_seg.models import unet

    model = unet(depth=1, base_channels=2, padding="same")
    seconds = tiles.measure(model, size=64, part=32, batch=2, rounds=2)
    assert list(seconds) == [tiles.SEGMENT, tiles.BATCH, tiles.TILES]
    assert all(len(values) == 2 and min(values) > 0 for values in seconds.values())
    results = {"date": "today", "machine": compare.machine(1), "size": 64, "part": 32, "batch": 2}
    text = tiles.report({**results, "seconds": seconds, "ratios": {tiles.BATCH: 1.25, tiles.TILES: 1.0}})
    assert "4 pieces of 32x32, 2 at once" in text and text.count("| 1.25 |") == 1


def test_stream_of_a_small_model() -> None:
    import compare
    import stream

    from keras_seg.models import mask_rcnn

    photograph = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    sizes = [{one.shape for one in stream.streams([photograph], 8, turn)[0]} for turn in (1, 2)]
    assert all(len(turn) == 8 for turn in sizes) and not sizes[0] & sizes[1]
    model = mask_rcnn(
        2, backbone="resnet18", width=4, fpn_channels=8, short_side=32, max_side=64, proposals=8
    )
    found = stream.measure(model, [photograph], count=4, batch=2, rounds=2)
    assert found["traces"] == 1  # whatever the sizes and the batch
    assert {len(values) for values in found["seconds"].values()} == {2}
    text = stream.report({"date": "today", "machine": compare.machine(1), **found})
    assert "Traces of the network in the whole run: 1" in text and text.count("\n| ") == 5


def test_detections_of_two_precisions_are_matched() -> None:
    import precision

    from keras_seg.instances import Instances

    def instances(boxes: list, scores: list) -> Instances:
        boxes = np.array(boxes, np.float32).reshape(-1, 4)
        return Instances(boxes, np.array(scores, np.float32), np.zeros(len(boxes), np.int32), (50, 50))

    exact = {
        1: instances([[0, 0, 10, 10], [20, 20, 40, 40], [5, 5, 9, 9]], [0.9, 0.8, 0.2]),
        2: instances([[0, 0, 9, 9]], [0.7]),
    }
    rounded = {1: instances([[0, 0, 10, 11]], [0.8]), 2: instances([], [])}
    found = precision.differences(exact, rounded)
    assert (found["detections"], found["missed"]) == (3, 2)
    assert found["box, median"] == pytest.approx(1) and found["score, 95%"] == pytest.approx(0.1)
