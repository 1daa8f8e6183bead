"""The comparison with SAM behind docs/sam.md: prompts, scoring, and the whole path with a tiny SAM of random weights."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def discs(size: int, *circles: tuple[int, int, int]) -> np.ndarray:
    rows, columns = np.mgrid[:size, :size]
    return np.stack([(columns - x) ** 2 + (rows - y) ** 2 <= r**2 for x, y, r in circles])


def test_prompts_are_the_box_and_the_deepest_pixel():
    import sam

    boxes, points = sam.prompts_of(discs(40, (10, 20, 5), (30, 8, 3)))
    assert boxes.tolist() == [[5, 15, 16, 26], [27, 5, 34, 12]]
    assert points.tolist() == [[10, 20], [30, 8]]
    assert sam.prompts_of(np.zeros((0, 9, 9), bool))[0].shape == (0, 4)


def test_perfect_masks_score_full_marks():
    import sam

    from keras_seg.metrics import coco, isbi

    masks = discs(64, (16, 20, 9), (44, 40, 12))
    truth = sam.as_results(1, masks, np.ones(2))
    annotations = [
        {**one, "id": n + 1, "iscrowd": 0, "area": int(mask.sum()), "bbox": [0, 0, 9, 9]}
        for n, (one, mask) in enumerate(zip(truth, masks, strict=True))
    ]
    content = {
        "images": [{"id": 1, "height": 64, "width": 64, "file_name": "a.png"}],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "nucleus"}],
    }
    np.testing.assert_array_equal(sam.instances_of(content, content["images"][0]), masks)
    scores = np.float32([0.9, 0.8])
    assert coco.evaluate(content, sam.as_results(1, masks, scores), "segm")["AP"] == pytest.approx(1)
    half = sam.as_results(1, masks[:1], scores[:1])
    assert coco.evaluate(content, half, "segm")["AP"] == pytest.approx(0.5, abs=0.01)

    inside = sam.interior(masks, scores, (64, 64))
    labels = 255 * inside
    assert isbi.evaluate(inside, labels, ["pixel_error"])["pixel_error"] == 0


def test_cells_that_touch_are_parted_by_a_membrane():
    import sam
    from scipy import ndimage

    left, right = np.zeros((2, 20, 20), bool)
    left[2:18, 2:10], right[2:18, 10:18] = True, True
    inside = sam.interior(np.stack([left, right]), np.float32([0.5, 0.6]), (20, 20))
    assert ndimage.label(inside)[1] == 2
    assert not inside[:, 9:11].any()


def test_a_table_says_what_the_unet_was_trained_on():
    import sam

    figures = {"AP": 0.5, "AP50": 0.8, "AP75": 0.5, "AR400": 0.6}
    errors = {"pixel_error": 0.04, "rand_error": 0.06, "v_rand": 0.97, "v_info": 0.98}
    results = {
        "date": "today",
        "machine": {"cpu": "a", "cores": 2},
        "sam": "random",
        "unet_trained_on_these_slices": True,
        "nuclei": {"maskrcnn_nuclei": figures},
        "neurons": {"SAM, grid": errors},
    }
    text = sam.report(results)
    assert "| maskrcnn_nuclei | 50.0 | 80.0 | 50.0 | 60.0 |" in text
    assert "on which this U-Net was trained too" in text and "| SAM, grid | 0.0400 |" in text


def environment() -> Path:
    python = BENCHMARKS / ".venv-hub/bin/python"
    if not python.exists():
        pytest.skip("needs KerasHub's own environment, which benchmarks/sam.py makes")
    return python


def test_without_weights_it_says_where_they_come_from(tmp_path):
    command = [
        environment(),
        BENCHMARKS / "sam_kerashub.py",
        "--sam",
        tmp_path / "absent",
        "--prompts",
        "boxes",
    ]
    command += ["--inputs", tmp_path / "in.npz", "--outputs", tmp_path / "out.npz"]
    done = subprocess.run([*map(str, command)], check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert "could not be had" in done.stderr and "Kaggle or Hugging Face" in done.stderr


def test_the_comparison_runs_whole_with_random_weights(tmp_path, shared, monkeypatch):
    import sam

    environment()
    arguments = ["sam.py", "--sam", "random", "--images", "1", "--grid", "3"]
    arguments += ["--data", str(shared / "data"), "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", arguments)
    sam.main()
    results = json.loads((tmp_path / "sam.json").read_text())
    assert [*results["nuclei"]] == ["maskrcnn_nuclei", "SAM, boxes", "SAM, points", "SAM, grid"]
    assert results["nuclei"]["maskrcnn_nuclei"]["AP"] > 0.3 > results["nuclei"]["SAM, boxes"]["AP"]
    assert results["neurons"]["unet_isbi2012"]["v_rand"] > 0.9
    assert "SAM, grid" in (tmp_path / "sam.md").read_text()
