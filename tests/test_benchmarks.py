"""The benchmarks run on tiny sizes, and PyTorch's results with the transferred weights are keras_seg's."""

from __future__ import annotations

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
