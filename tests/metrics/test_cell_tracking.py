"""SEG of the Cell Tracking Challenge: equal to a published implementation, and to its definition."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_seg.metrics.cell_tracking import seg

CASES = (
    "isbi3_identical",
    "isbi3_relabelled",
    "isbi3_erode3",
    "isbi3_merged_dilate1",
    "isbi3_merged_cut",
    "isbi3_split_spurious",
    "isbi3_shift4",
    "isbi3_dropped_every_third",
    "isbi3_extra_false_positives",
    "isbi3_empty_prediction",
    "tiny_handmade",
    "tiny_with_empty_reference_frame",
)

unhurried = settings(deadline=None, max_examples=60)


@pytest.fixture(scope="module")
def golden(shared: Path) -> Path:
    return shared / "golden" / "metrics"


@pytest.fixture(scope="module")
def values(golden: Path) -> dict:
    return json.loads((golden / "values.json").read_text())["ctc"]


def test_golden_cases_are_all_here(values):
    assert set(CASES) == set(values)


@pytest.mark.parametrize("case", CASES)
def test_seg_equals_the_published_implementation(golden, values, case):
    with np.load(golden / "ctc_seg.npz") as arrays:
        prediction, reference = arrays[f"{case}__pred"], arrays[f"{case}__ref"]
    expected = values[case]
    result = seg(prediction, reference)
    assert result["SEG"] == pytest.approx(expected["SEG"], rel=0, abs=1e-12)
    assert (result["n_ref"], result["n_matched"]) == (expected["n_ref"], expected["n_matched"])
    means = [frame["seg"] for frame in result["frames"]]
    assert np.mean(means) == pytest.approx(expected["mean_of_frame_means"], rel=0, abs=1e-12)
    for frame, expected_frame in zip(result["frames"], expected["frames"], strict=True):
        assert frame["seg"] == pytest.approx(expected_frame["seg"], rel=0, abs=1e-12)
        assert (frame["n_ref"], frame["n_pred"]) == (expected_frame["n_ref"], expected_frame["n_pred"])
        assert [list(match) for match in frame["matches"]] == expected_frame["matches"]


@st.composite
def stacks(draw) -> tuple[np.ndarray, np.ndarray]:
    """A reference and a prediction [N, H, W], uint16, that overlap now and then."""
    shape = tuple(draw(st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9))))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    reference = rng.integers(0, draw(st.sampled_from([2, 4, 9])), shape, np.uint16)
    reference[0, 0, 0] = 1
    keep = rng.random(shape) < draw(st.sampled_from([0.4, 0.7, 0.95]))
    return np.where(keep, reference, rng.integers(0, 9, shape, np.uint16)), reference


@unhurried
@given(stacks())
def test_seg_equals_its_definition(stack):
    overlaps = []
    for found, truth in zip(*stack, strict=True):
        for r in set(truth.ravel().tolist()) - {0}:
            overlaps.append(0.0)
            for s in set(found.ravel().tolist()) - {0}:
                shared_pixels = np.sum((truth == r) & (found == s))
                if shared_pixels > 0.5 * np.sum(truth == r):
                    overlaps[-1] = shared_pixels / np.sum((truth == r) | (found == s))
    result = seg(*stack)
    assert result["SEG"] == pytest.approx(np.mean(overlaps), abs=1e-12)
    assert result["n_ref"] == len(overlaps)
    assert result["n_matched"] == np.count_nonzero(overlaps)


@unhurried
@given(stacks(), st.integers(0, 2**32))
def test_new_ids_change_nothing(stack, seed):
    ids = np.random.default_rng(seed).permutation(np.arange(1, 60000))[:9]
    prediction = np.concatenate([[0], ids])[stack[0]]
    reference = np.concatenate([[0], ids[::-1]])[stack[1]]
    assert seg(prediction, reference)["SEG"] == pytest.approx(seg(*stack)["SEG"], abs=1e-12)


@unhurried
@given(stacks())
def test_a_perfect_prediction_scores_1_and_an_empty_one_0(stack):
    _, reference = stack
    assert seg(reference, reference)["SEG"] == 1
    assert seg(np.zeros_like(reference), reference)["SEG"] == 0


def test_objects_beside_the_reference_cost_nothing():
    reference = np.zeros((20, 20), int)
    reference[2:6, 2:6] = 3
    prediction = reference.copy()
    prediction[10:15, 10:15] = 8
    result = seg(prediction, reference)
    assert result["SEG"] == 1
    assert result["frames"] == [{"seg": 1.0, "n_ref": 1, "n_pred": 2, "matches": [(3, 3, 1.0)]}]


def test_exactly_half_is_no_match_and_one_pixel_more_is():
    reference, prediction = np.ones((1, 10), int), np.zeros((1, 10), int)
    prediction[0, :5] = 1
    assert seg(prediction, reference)["SEG"] == 0
    prediction[0, 5] = 1
    assert seg(prediction, reference)["SEG"] == pytest.approx(0.6)


def test_frames_may_differ_in_size_and_ids_may_be_large():
    reference = [np.full((2, 3), 1, np.uint16), np.full((5, 4), 2**31, np.uint32)]
    prediction = [np.full((2, 3), 2**40, np.int64), np.zeros((5, 4), np.uint8)]
    result = seg(prediction, reference)
    assert result["SEG"] == 0.5
    assert [frame["seg"] for frame in result["frames"]] == [1.0, 0.0]


def test_one_object_that_merges_two_can_match_both():
    reference = np.array([[1, 1, 1, 2, 2, 0]])
    result = seg(np.full_like(reference, 7), reference)
    assert result["frames"][0]["matches"] == [(1, 7, 3 / 6), (2, 7, 2 / 6)]


@pytest.mark.parametrize(
    ("prediction", "reference", "message"),
    [
        (np.ones((2, 3, 3), int), np.ones((3, 3, 3), int), "prediction has 2 frames and reference 3"),
        (
            [np.ones((2, 2), int), np.ones((3, 3), int)],
            [np.ones((2, 2), int), np.ones((3, 4), int)],
            r"frame 1: prediction has shape \(3, 3\), reference \(3, 4\)",
        ),
        (
            np.ones((1, 2, 2)),
            np.ones((1, 2, 2), int),
            "prediction, frame 0: must hold integer .* float64",
        ),
        (
            np.ones((2, 2), int),
            np.ones((2, 2), bool),
            "reference, frame 0: must hold integer .* bool",
        ),
        (np.ones((1, 2, 2), int), -np.ones((1, 2, 2), int), "reference, frame 0: holds the id -1"),
        (
            np.ones((1, 2, 2, 3), int),
            np.ones((1, 2, 2), int),
            r"prediction, frame 0: must be \[H, W\]",
        ),
        (np.ones((2, 3, 3), int), np.zeros((2, 3, 3), int), "reference has no objects in any frame"),
        (np.zeros((0, 3, 3), int), np.zeros((0, 3, 3), int), "reference has no objects in any frame"),
    ],
)
def test_what_cannot_be_scored_is_refused(prediction, reference, message):
    with pytest.raises(ValueError, match=message):
        seg(prediction, reference)
