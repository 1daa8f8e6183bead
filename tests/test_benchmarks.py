"""The benchmarks run on tiny sizes, and PyTorch's results with the transferred weights are keras_seg's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.mark.parametrize("task", ["inference", "training"])
def test_contestants_agree_and_are_reported(task: str, tmp_path: Path) -> None:
    import compare
    import unet

    python = BENCHMARKS / unet.TORCH_ENVIRONMENT / "bin/python"
    if not python.exists():
        pytest.skip("needs PyTorch's own environment, which `make bench-unet` makes")
    names = ["PyTorch", "PyTorch, channels_last"]
    inputs = tmp_path / "inputs.npz"
    flops = unet.write_inputs(inputs, size=60, base_channels=3, depth=2)
    commands = unet.commands(task, names, python, inputs, 1)
    table = compare.compare(task, commands, 2, flops, tmp_path)  # raises where results differ
    assert list(table["contestants"]) == [compare.OURS, *names]
    assert table["contestants"][compare.OURS]["ratio"] == 1
    assert all(len(row["seconds"]) == 2 and row["MiB"] > 1 for row in table["contestants"].values())
    results = {"date": "today", "machine": compare.machine(1), "tables": {task: table}, "data": tiny_data()}
    text = unet.report(results, size=60, base_channels=3)
    assert "PyTorch 2." in text and "| PyTorch, channels_last |" in text


def test_results_that_differ_are_refused() -> None:
    import compare

    ours = {"probabilities": np.array([0.2, 0.8])}
    compare.check_equal("peer", ours, ours)
    with pytest.raises(RuntimeError, match="peer: probabilities differs from keras_seg"):
        compare.check_equal("peer", {"probabilities": np.array([0.2, 0.7])}, ours)
    with pytest.raises(RuntimeError, match=r"peer: probabilities is \(1,\)"):
        compare.check_equal("peer", {"probabilities": np.array([0.2])}, ours)
    with pytest.raises(RuntimeError, match="peer: compares other arrays"):
        compare.check_equal("peer", {"loss": np.array(1.0)}, ours)


def test_flops_of_the_smallest_network() -> None:
    import unet_keras_seg

    # depth 1, 1 base channel, 24x24: input 24, 22, 20 | 10, 8, 6 | 12, 10, 8; multiplications and additions
    encoder = 9 * (1 * 1 * 22**2 + 1 * 1 * 20**2)
    bottom = 9 * (1 * 2 * 8**2 + 2 * 2 * 6**2)
    decoder = 2 * 1 * 12**2 + 9 * (2 * 1 * 10**2 + 1 * 1 * 8**2) + 1 * 2 * 8**2
    assert unet_keras_seg.flops(unet_keras_seg.build(1, 1), 24) == 2 * (encoder + bottom + decoder)


def test_weight_map_is_compared_with_an_exact_one() -> None:
    import data_path

    result = tiny_data()
    assert result["weight_map"]["ratio"] > 0
    assert [row["tile"] for row in result["tiles"]] == [32]
    labels = data_path.cells()
    assert labels.shape == (data_path.SIDE, data_path.SIDE)
    assert len(np.unique(labels)) == data_path.CELLS + 1
    assert "Augmented tiles per second: 32 px" in data_path.report(result)


def tiny_data() -> dict:
    import data_path

    labels = data_path.cells(side=48, count=6)
    return {
        "weight_map": data_path.measure_weight_map(labels, rounds=1),  # raises where the two differ
        "tiles": [data_path.measure_tiles(32, 28, 2, labels)],
    }


def test_mask_rcnn_contestants_agree_and_are_reported(shared: Path, tmp_path: Path) -> None:
    import compare
    import maskrcnn

    python = BENCHMARKS / maskrcnn.TORCH_ENVIRONMENT / "bin/python"
    if not python.exists():
        pytest.skip("needs PyTorch's own environment, which `make bench-maskrcnn` makes")
    inputs, weights = tmp_path / "inputs.npz", tmp_path / "weights.pth"
    np.savez(inputs, image=np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8))
    program = [python, BENCHMARKS / "maskrcnn_torchvision.py", "plain"]
    rule = shared / "golden/weights.py"
    subprocess.run([*program, "--write-weights", weights, "--rule", rule], check=True)
    options = ["--inputs", inputs, "--weights", weights, "--threads", "1", "--short-side", "64"]
    commands = {
        compare.OURS: [sys.executable, BENCHMARKS / "maskrcnn_keras_seg.py", *options],
        "torchvision": [*program, *options],
    }
    costs = {part: list(values) for part, values in maskrcnn.part_costs((40, 60, 3), 64).items()}
    # raises where results differ
    table = compare.compare(
        "batch 1", commands, 1, sum(flops for flops, _ in costs.values()), tmp_path, parts=False
    )
    assert list(table["contestants"]) == [compare.OURS, "torchvision"]
    table["contestants"][compare.OURS]["parts"] = {"resize": 0.5, "backbone": 0.25}
    tables = {"1": table | {"part_costs": costs}}
    about = {"date": "today", "machine": compare.machine(1), "bytes_per_second": 1e12}
    text = maskrcnn.report({**about, "tables": tables}, 64)
    assert "| torchvision |" in text and "PyTorch 2." in text
    flops, moved = costs["backbone"]
    limit = flops / table["peak_flops"]
    assert f"| backbone | 0.25 | {flops / 1e9:.1f} | {moved / 1e6:.0f} | {limit:.2f} |" in text
    assert "| resize | 0.50 |  | | |" in text


def test_time_by_part_of_mask_rcnn() -> None:
    import maskrcnn
    import maskrcnn_keras_seg

    from keras_seg.models import mask_rcnn

    model = mask_rcnn(
        2, backbone="resnet18", width=4, fpn_channels=8, box_head_channels=8, mask_channels=8, proposals=10,
        detections=3, short_side=64, max_side=96,
    )  # fmt: skip
    images = [np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)]
    parts = maskrcnn_keras_seg.parts(model, images)
    assert list(parts) == ["resize", *maskrcnn.part_costs((40, 60, 3), 64), "paste"]
    assert sum(parts.values()) > 0 and parts["resize"] > 0 and parts["backbone"] > 0


def test_flops_of_mask_rcnn_are_those_of_the_models_layers() -> None:
    import keras
    import maskrcnn

    from keras_seg import zoo

    model = zoo.load("maskrcnn_r50_fpn_torchvision", weights=None)

    def of(part: str, *shapes: tuple[int, ...]) -> float:
        network = model.parts[part]
        layers = [layer for layer in network.layers if hasattr(layer, "kernel")]
        outputs = keras.Model(network.input, [layer.output for layer in layers])
        sizes = outputs.compute_output_shape(shapes[0] if len(shapes) == 1 else list(shapes))
        total = 0
        for layer, size in zip(layers, sizes, strict=True):
            # of a transposed convolution with stride 2, each output pixel is one product
            taps = 1 if isinstance(layer, keras.layers.Conv2DTranspose) else np.prod(layer.kernel.shape[:-2])
            total += 2 * np.prod(size[:-1]) * taps * np.prod(layer.kernel.shape[-2:])
        return float(total)

    maps = [(1, 96 // stride, 64 // stride, 256 * stride // 4) for stride in (4, 8, 16, 32)]
    expected = {
        "backbone": of("backbone", (1, 96, 64, 3)) + of("fpn", *maps),
        "RPN": sum(of("rpn", (1, -(-96 // s), 64 // s, 256)) for s in (4, 8, 16, 32, 64)),
        "box": of("box_head", (1000, 7, 7, 256)) + of("box_predictor", (1000, 1024)),
        "mask": of("mask_head", (100, 14, 14, 256)),
    }
    found = {part: flops for part, (flops, _) in maskrcnn.part_costs((96, 64, 3), 64).items()}
    assert found.keys() == expected.keys()
    for part, flops in found.items():
        # torchvision's heads have a class for the background more
        assert flops == pytest.approx(expected[part], rel=2e-3), part


def test_too_few_photographs_are_an_error(tmp_path: Path) -> None:
    import maskrcnn

    with pytest.raises(FileNotFoundError, match=r"0 photographs \(.jpg\), the benchmark needs 4"):
        maskrcnn.write_images(tmp_path / "inputs.npz", tmp_path, 4)


def test_a_worker_names_its_actions(tmp_path: Path) -> None:
    import compare

    program = "from worker import serve; serve({'run': lambda: 3})"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": BENCHMARKS}
    worker = compare.Worker("tiny", subprocess.Popen([sys.executable, "-c", program], **pipes))
    assert worker.ask("actions")["result"] == ["memory", "run", "actions"]
    assert worker.ask("run")["result"] == 3
    worker.close()
