"""The ISBI 2012 scores: equal to the challenge's own program, and to their definitions followed literally."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter, deque
from itertools import combinations
from math import log
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from keras_seg.metrics import isbi, warping
from keras_seg.metrics.watershed import thin_membranes

# Parity with the challenge's program. ../shared/golden/metrics/README.md says how its figures were made.

PROPOSALS = {
    "crop3": "perfect erode1 dilate1 blur2 cut spurious shift2 network_like raw "
    "all_interior all_membrane constant_half inverted",
    "stack5": "perfect erode1 dilate1 blur2 raw cut spurious shift2 network_like",
    "full2": "erode1 blur2 cut spurious network_like",
    "rect1": "cut spurious shift2 network_like raw",
}
CASES = [f"{file}_{proposal}" for file, proposals in PROPOSALS.items() for proposal in proposals.split()]
UNWARPED = ("stack5_raw", "full2_blur2", "full2_network_like")  # without figures for the warping error
GOLDEN_NAMES = {
    "pixel_error": "pixel_error_1_minus_max_fscore",
    "pixel_disagreement": "pixel_error_min_disagreement",
    "rand_error": "rand_error",
    "warping_error": "warping_error",
    "v_rand": "v_rand_thin",
    "v_info": "v_info_thin",
}
CLASSES = {
    "merge": warping.MERGE,
    "split": warping.SPLIT,
    "hole_addition": warping.HOLE_ADDITION,
    "object_deletion": warping.OBJECT_DELETION,
    "object_addition": warping.OBJECT_ADDITION,
    "hole_deletion": warping.HOLE_DELETION,
}


@pytest.fixture(scope="module")
def golden(shared: Path) -> Path:
    return shared / "golden" / "metrics"


@pytest.fixture(scope="module")
def values(golden: Path) -> dict:
    return json.loads((golden / "values.json").read_text())


def read_case(golden: Path, case: str) -> tuple[np.ndarray, np.ndarray]:
    file, proposal = case.split("_", 1)
    with np.load(golden / f"isbi_{file}.npz") as arrays:
        return arrays[proposal].astype(np.float32) / np.float32(255), arrays["label"]


def test_golden_cases_are_all_here(values):
    assert set(CASES) == set(values["isbi"])
    assert set(UNWARPED) == {
        case for case, found in values["isbi"].items() if "warping_error" not in found["headline"]
    }
    assert list(isbi.THRESHOLDS) == values["meta"]["thresholds"]


@pytest.mark.parametrize("case", CASES)
def test_scores_and_their_thresholds_equal_the_official_ones(golden, values, case):
    probability, labels = read_case(golden, case)
    headline = values["isbi"][case]["headline"]
    metrics = [name for name in isbi.METRICS if name != "warping_error" or case not in UNWARPED]
    result = isbi.evaluate(probability, labels, metrics)
    for name in metrics:
        assert result[name] == pytest.approx(headline[GOLDEN_NAMES[name]], rel=0, abs=1e-9), name
        assert result[f"{name}_threshold"] == headline[f"{GOLDEN_NAMES[name]}__threshold"], name
    if "warping_error" in metrics:
        assert round(result["warping_error"] * labels.size) == headline["warping_error__n_pixels"]


@pytest.mark.parametrize("case", CASES)
def test_figures_at_every_threshold_equal_the_official_ones(golden, values, case):
    probability, labels = read_case(golden, case)
    stack = values["isbi"][case]["aggregate_per_threshold"]
    check_curves(probability, labels, stack, pixels=stack["pixel"])
    for p, label, expected in zip(probability, labels, values["isbi"][case]["slices"], strict=True):
        check_curves(p, label, expected, pixels=expected["pixel"])
        v_rand = isbi.v_rand(p, label).curve
        v_info = isbi.v_info(p, label).curve
        np.testing.assert_allclose(v_rand, expected["rand_thin"]["fscore"], rtol=0, atol=1e-9)
        np.testing.assert_allclose(v_info, expected["v_info_thin_fscore"], rtol=0, atol=1e-9)


def check_curves(probability, labels, expected, *, pixels):
    pixel_error = np.array(isbi.pixel_error(probability, labels).curve)
    rand_error = np.array(isbi.rand_error(probability, labels).curve)
    disagreement = isbi.pixel_disagreement(probability, labels).curve
    np.testing.assert_allclose(1 - pixel_error, pixels["fscore"], rtol=0, atol=1e-9)
    np.testing.assert_allclose(disagreement, pixels["metric_value"], rtol=0, atol=1e-9)
    np.testing.assert_allclose(1 - rand_error, expected["rand_fg"]["fscore"], rtol=0, atol=1e-9)


@pytest.mark.parametrize("case", [case for case in CASES if case not in UNWARPED])
def test_warping_counts_of_each_class_slice_and_threshold_equal_the_official_ones(golden, values, case):
    slices = values["isbi"][case]["slices"]
    probability, labels = read_case(golden, case)
    for p, label, expected in zip(probability.astype(np.float64), labels > 0, slices, strict=True):
        for k, threshold in enumerate(values["meta"]["warping_thresholds"]):
            proposal = p > threshold
            warped = warping.warp(label, proposal, np.abs(p - threshold))
            counts = np.bincount(warping.mismatch_classes(warped, proposal).ravel(), minlength=33)
            assert {name: counts[code] for name, code in CLASSES.items()} == {
                name: expected[f"warping_n_{name}"][k] for name in CLASSES
            }


def test_intermediate_images_equal_the_official_ones(golden):
    with np.load(golden / "isbi_intermediates.npz") as arrays:
        expected = dict(arrays)
    cases = {name.split("__")[0] for name in expected if "__" in name}
    assert len(cases) == 10
    for case in cases:
        probability, labels = read_case(golden, case)
        for n, (p, label) in enumerate(zip(probability.astype(np.float64), labels > 0, strict=True)):
            proposal = p > 0.5
            warped = warping.warp(label, proposal, np.abs(p - 0.5))
            np.testing.assert_array_equal(warped, expected[f"{case}__warped_label"][n], case)
            classes = warping.mismatch_classes(warped, proposal)
            np.testing.assert_array_equal(classes, expected[f"{case}__mismatch_class"][n], case)
            np.testing.assert_array_equal(thin_membranes(proposal), expected[f"{case}__thinned"][n], case)


def test_simple_points_equal_the_official_table(golden):
    with np.load(golden / "isbi_intermediates.npz") as arrays:
        table = arrays["simple_point_lut"]
    for number, simple in enumerate(table):
        neighbourhood = np.array([number >> k & 1 for k in range(9)]).reshape(3, 3)
        ring = [int(neighbourhood[1 + row, 1 + column]) for row, column in warping.RING]
        code = sum(interior << k for k, interior in enumerate(ring))
        assert warping.SIMPLE_POINTS[code] == simple


# Parity with the definitions, followed word by word.


unhurried = settings(deadline=None, max_examples=60)


@st.composite
def images(draw, *, side: int) -> np.ndarray:
    """bool [H, W], smoothed at random so that there are both specks and cells."""
    height, width = draw(st.integers(1, side)), draw(st.integers(1, side))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    image = ndimage.gaussian_filter(rng.random((height, width)), draw(st.sampled_from([0, 0.7, 1.5])))
    return image >= np.quantile(image, draw(st.sampled_from([0, 0.2, 0.5, 0.7])))


@st.composite
def labels_and_probabilities(draw, *, side: int) -> tuple[np.ndarray, np.ndarray]:
    label = draw(images(side=side))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    levels = draw(st.sampled_from([2, 5, 256]))
    noisy = 0.5 * label + rng.random(label.shape) * draw(st.sampled_from([0.5, 1.0]))
    return label, np.clip(np.round(noisy * (levels - 1)) / (levels - 1), 0, 1).astype(np.float32)


def flood(mask: np.ndarray) -> np.ndarray:
    """4-connected components by walking from pixel to pixel."""
    ids = {(row, column): 0 for row, column in np.argwhere(mask).tolist()}
    count = 0
    for start in list(ids):
        count += ids[start] == 0
        walk = [start]
        while walk:
            row, column = here = walk.pop()
            if ids.get(here) == 0:
                ids[here] = count
                walk += [(row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)]
    result = np.zeros(mask.shape, int)
    for here, number in ids.items():
        result[here] = number
    return result


def with_singletons(ids: np.ndarray) -> list:
    return [("pixel", n) if value == 0 else value for n, value in enumerate(ids)]


@unhurried
@given(labels_and_probabilities(side=6))
def test_rand_error_equals_counting_pairs_of_pixels(case):
    label, probability = case
    if not label.any():
        return
    curve = isbi.rand_error(probability, label).curve
    for error, threshold in zip(curve, isbi.THRESHOLDS, strict=True):
        truth = flood(label)[label].tolist()
        found = with_singletons(flood(probability.astype(np.float64) > threshold)[label])
        pairs = list(combinations(zip(truth, found, strict=True), 2))
        itself = len(truth)  # in the n² form a pixel is a pair with itself
        together = 2 * sum(a == c and b == d for (a, b), (c, d) in pairs) + itself
        in_label = 2 * sum(a == c for (a, _), (c, _) in pairs) + itself
        in_proposal = 2 * sum(b == d for (_, b), (_, d) in pairs) + itself
        assert 1 - error == pytest.approx(2 * together / (in_label + in_proposal), abs=1e-12)


def entropy(items: list) -> float:
    return -sum(n / len(items) * log(n / len(items)) for n in Counter(items).values())


@unhurried
@given(labels_and_probabilities(side=8))
def test_v_info_equals_entropies_of_pixel_lists(case):
    label, probability = case
    if not label.any():
        return
    truth = flood(label)[label].tolist()
    for score, threshold in zip(isbi.v_info(probability, label).curve, isbi.THRESHOLDS, strict=True):
        found = with_singletons(thin_by_queue(probability.astype(np.float64) > threshold)[label])
        of_truth, of_found = entropy(truth), entropy(found)
        mutual = of_truth + of_found - entropy(list(zip(truth, found, strict=True)))
        explicable = len(set(truth)) > 1 and len(set(found)) > 1 and mutual > 1e-12
        expected = 2 * mutual / (of_truth + of_found) if explicable else 0
        assert score == pytest.approx(expected, abs=1e-9)


def thin_by_queue(interior: np.ndarray) -> np.ndarray:
    """The watershed pixel by pixel, with its queue, its states and its flag."""
    height, width = interior.shape
    masked, queued = -2, -3
    result = flood(interior.T).T  # numbered column by column
    queue, flag = deque(), False

    def neighbours(x, y):
        around = ((x - 1, y), (x, y - 1), (x + 1, y), (x, y + 1))
        return [(b, a) for a, b in around if 0 <= a < width and 0 <= b < height]

    result[~interior] = masked
    for x in range(width):
        for y in range(height):
            if result[y, x] == masked and any(result[q] >= 0 for q in neighbours(x, y)):
                result[y, x] = queued
                queue.append((x, y))
    while queue:
        x, y = queue.popleft()
        for q in neighbours(x, y):
            if result[q] > 0:
                if result[y, x] == queued or (result[y, x] == 0 and flag):
                    result[y, x] = result[q]
                elif result[y, x] > 0 and result[y, x] != result[q]:
                    result[y, x], flag = 0, False
            elif result[q] == 0:
                if result[y, x] == queued:
                    result[y, x], flag = 0, True
            elif result[q] == masked:
                result[q] = queued
                queue.append(q[::-1])
    result[result == masked] = result.max(initial=0, where=result > 0) + 1
    return result


@unhurried
@given(images(side=16))
def test_thinning_equals_flooding_pixel_by_pixel(interior):
    np.testing.assert_array_equal(thin_membranes(interior), thin_by_queue(interior))


def is_simple(neighbourhood: np.ndarray) -> bool:
    ring = neighbourhood.copy()
    ring[1, 1] = False
    cells = ndimage.label(ring)[0]
    hollow = ~neighbourhood
    hollow[1, 1] = False
    touching = {cells[0, 1], cells[1, 0], cells[1, 2], cells[2, 1]} - {0}
    return len(touching) == 1 and ndimage.label(hollow, np.ones((3, 3)))[1] == 1


def warp_by_sweeps(label: np.ndarray, proposal: np.ndarray, distance: np.ndarray) -> np.ndarray:
    warped, target = np.pad(label, 1), np.pad(proposal, 1)
    before = None
    while True:
        columns, rows = np.nonzero((warped != target).T)
        if len(rows) in (0, before):
            return warped[1:-1, 1:-1]
        before = len(rows)
        for k in np.argsort(-distance.astype(np.float32)[rows - 1, columns - 1], kind="stable"):
            row, column = rows[k], columns[k]
            if is_simple(warped[row - 1 : row + 2, column - 1 : column + 2]):
                warped[row, column] ^= True


@unhurried
@given(labels_and_probabilities(side=12), st.sampled_from(isbi.THRESHOLDS[:-1]))
def test_warping_equals_trying_every_pixel_in_every_sweep(case, threshold):
    label, probability = case
    p = probability.astype(np.float64)
    expected = warp_by_sweeps(label, p > threshold, np.abs(p - threshold))
    np.testing.assert_array_equal(warping.warp(label, p > threshold, np.abs(p - threshold)), expected)


@unhurried
@given(labels_and_probabilities(side=24), st.sampled_from(isbi.THRESHOLDS[:-1]))
def test_warping_keeps_the_topology_and_ends_without_simple_mismatches(case, threshold):
    label, probability = case
    proposal = probability.astype(np.float64) > threshold
    warped = warping.warp(label, proposal, np.abs(probability - threshold))
    assert ndimage.label(warped)[1] == ndimage.label(label)[1]
    membranes = [ndimage.label(~np.pad(image, 1), np.ones((3, 3)))[1] for image in (warped, label)]
    assert membranes[0] == membranes[1]
    padded = np.pad(warped, 1)
    for row, column in zip(*np.nonzero(warped != proposal), strict=True):
        assert not is_simple(padded[row : row + 3, column : column + 3])


def class_by_table(warped: np.ndarray, row: int, column: int) -> int:
    """The class of one mismatch, always looking at the window where the definition has one."""
    cells = np.pad(ndimage.label(warped)[0], 1, constant_values=-1)
    ids = set(np.delete(cells[row : row + 3, column : column + 3].ravel(), 4).tolist()) - {-1}
    inside = warped[row, column]
    if ids <= {0}:
        return warping.OBJECT_DELETION if inside else warping.OBJECT_ADDITION
    if len(ids) == 1:
        return warping.HOLE_ADDITION if inside else warping.HOLE_DELETION
    if len(ids) > 2:
        return warping.SPLIT if inside else warping.MERGE
    if not inside:
        return warping.HOLE_ADDITION
    window = np.pad(warped, 20)[row : row + 41, column : column + 41].copy()
    window[20, 20] = False
    around = ndimage.label(window)[0][19:22, 19:22].ravel()
    return warping.SPLIT if len(set(np.delete(around, 4).tolist())) > 2 else warping.HOLE_DELETION


@unhurried
@given(images(side=60), st.integers(0, 2**32))
def test_classes_of_mismatches_equal_the_table(warped, seed):
    """On images that were not warped, so that all kinds of pixels come up, and wider than the window."""
    proposal = warped ^ (np.random.default_rng(seed).random(warped.shape) < 0.2)
    classes = warping.mismatch_classes(warped, proposal)
    np.testing.assert_array_equal(classes > 0, warped != proposal)
    for row, column in zip(*np.nonzero(classes), strict=True):
        assert classes[row, column] == class_by_table(warped, row, column)


def test_a_ring_wider_than_the_window_is_split_and_a_smaller_one_opened():
    for side, expected in ((15, warping.HOLE_DELETION), (60, warping.SPLIT)):
        ring = np.zeros((side + 4, side + 4), bool)
        ring[2:-2, 2:-2] = True
        ring[3:-3, 3:-3] = False
        cut = ring.copy()
        cut[2, side // 2] = False
        assert warping.mismatch_classes(ring, cut)[2, side // 2] == expected


# Properties.


@unhurried
@given(images(side=20))
def test_a_perfect_proposal_has_no_errors(labels):
    result = isbi.evaluate(labels, labels, ("pixel_error", "pixel_disagreement", "warping_error"))
    assert set(result.values()) == {0.0}
    if labels.any():
        assert isbi.rand_error(labels, labels) == 0


@unhurried
@given(st.integers(1, 12), st.integers(0, 2**32))
def test_thin_membranes_between_cells_do_not_lower_the_thinned_scores(lines, seed):
    """The same cells with wider membranes: V_rand and V_info are meant not to see the difference."""
    rng = np.random.default_rng(seed)
    labels = np.ones((40, 60), bool)
    labels[:, np.sort(rng.choice(np.arange(2, 58, 5), size=min(lines, 10), replace=False))] = False
    wide = ~ndimage.binary_dilation(~labels)
    assert isbi.v_rand(wide, labels) == pytest.approx(1)
    assert isbi.v_info(wide, labels) == pytest.approx(1)
    assert isbi.rand_error(wide, labels) > 0


@unhurried
@given(labels_and_probabilities(side=12))
def test_every_score_stays_between_0_and_1_and_is_the_best_of_its_curve(case):
    label, probability = case
    if not label.any():
        return
    for name in isbi.METRICS:
        score = getattr(isbi, name)(probability, label)
        assert 0 <= score <= 1
        best = max if name.startswith("v_") else min
        assert score == best(score.curve) == score.curve[isbi.THRESHOLDS.index(score.threshold)]


@unhurried
@given(labels_and_probabilities(side=12))
def test_scores_without_an_order_of_visit_do_not_depend_on_the_images_orientation(case):
    label, probability = case
    if not label.any():
        return
    names = ("pixel_error", "pixel_disagreement", "rand_error")
    turned = isbi.evaluate(probability.T[::-1], label.T[::-1], names)
    assert isbi.evaluate(probability, label, names) == turned


@pytest.fixture
def two_cells() -> tuple[np.ndarray, np.ndarray]:
    labels = np.ones((1, 9, 10), np.uint8)
    labels[:, :, 5] = 0
    return np.where(labels > 0, 0.8, 0.3).astype(np.float32), labels


def test_evaluate_gives_plain_figures_and_thresholds_that_json_can_hold(two_cells):
    result = isbi.evaluate(*two_cells)
    assert list(result) == [key for name in isbi.METRICS for key in (name, f"{name}_threshold")]
    assert {type(value) for value in result.values()} == {float}
    assert json.loads(json.dumps(result)) == result
    assert result["rand_error"] == 0
    assert result["rand_error_threshold"] == 0.4  # not 0.30000000000000004, which float32's 0.3 is above


def test_a_gap_in_the_membrane_merges_cells(two_cells):
    probability, labels = two_cells
    probability[0, 4, 5] = 1
    assert isbi.rand_error(probability, labels) > 0.2
    assert isbi.pixel_disagreement(probability, labels) == pytest.approx(1 / 90)
    warping_error = isbi.warping_error(probability, labels)
    assert warping_error.curve[isbi.THRESHOLDS.index(0.5)] == pytest.approx(1 / 90)
    assert (warping_error, warping_error.threshold) == (0, 0.8999999999999999)  # without any cell but the gap


def test_membrane_alone_has_a_small_warping_error_but_a_large_rand_error(two_cells):
    probability, labels = two_cells
    result = isbi.evaluate(np.zeros_like(probability), labels)
    assert result["warping_error"] == 0
    assert result["rand_error"] > 0.9


def test_labels_may_be_bool_or_0_and_1_or_0_and_255_and_a_single_image_is_a_stack_of_one(two_cells):
    probability, labels = two_cells
    expected = isbi.evaluate(probability, labels)
    assert isbi.evaluate(probability, labels * 255) == expected
    assert isbi.evaluate(probability, labels > 0) == expected
    assert isbi.evaluate(probability.astype(np.float64), labels.astype(float)) == expected
    assert isbi.evaluate(probability[0], labels[0]) == expected


def test_inputs_are_left_alone(two_cells):
    before = [array.copy() for array in two_cells]
    isbi.evaluate(*two_cells)
    for array, copy in zip(two_cells, before, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_rounding_just_beyond_1_is_no_error(two_cells):
    probability, labels = two_cells
    probability[probability > 0.5] = np.nextafter(np.float32(1), np.float32(2))
    assert isbi.rand_error(probability, labels) == 0


def test_labels_of_one_class_have_the_scores_that_are_defined_for_them():
    image = np.zeros((2, 6, 6), np.float32)
    assert isbi.evaluate(image, image, ("pixel_error", "warping_error"))["pixel_error"] == 0
    assert isbi.pixel_error(image + 1, image) == 1
    assert isbi.rand_error(image + 1, image + 1) == 0
    assert isbi.v_rand(image + 1, image + 1) == 1
    assert isbi.v_info(image + 1, image + 1) == 0


# Bad input.


@pytest.mark.parametrize("metric", isbi.METRICS)
def test_shapes_that_differ_are_refused(metric):
    with pytest.raises(ValueError, match=r"probability has shape \(2, 4, 4\) and labels \(2, 4, 5\)"):
        getattr(isbi, metric)(np.zeros((2, 4, 4)), np.zeros((2, 4, 5)))


def test_a_channel_for_each_class_is_refused_with_a_hint():
    with pytest.raises(ValueError, match="give the interior's class alone"):
        isbi.evaluate(np.zeros((2, 4, 4, 2)), np.zeros((2, 4, 4)))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.nan, r"probability is not finite at 1 pixels, first at \(0, 1, 2\)"),
        (np.inf, r"probability is not finite at 1 pixels, first at \(0, 1, 2\)"),
        (255, "probability must be from 0 to 1, but is from 0 to 255: divide 8-bit values by 255"),
        (1.01, "but is from 0 to 1.01"),
        (-3, "but is from -3 to 0: apply softmax or sigmoid to logits"),
        (1000, "but is from 0 to 1000: apply softmax or sigmoid to logits"),
    ],
)
def test_values_that_are_no_probabilities_are_refused(value, message):
    probability = np.zeros((1, 4, 4))
    probability[0, 1, 2] = value
    with pytest.raises(ValueError, match=message):
        isbi.evaluate(probability, np.ones((1, 4, 4)))


@pytest.mark.parametrize(
    ("values", "found"),
    [([0, 1, 2], "0, 1, 2"), ([0, 1, 255], "0, 1, 255"), ([-1, 0, 1], "-1, 0, 1"), ([0, 0.5, 1], "0, 0.5, 1"),
     ([0, np.nan, 1], "0, 1, nan"), (range(9), "0, 1, 2, 3, 4, ...")],
)  # fmt: skip
def test_labels_with_other_values_are_refused(values, found):
    labels = np.array([list(values)])
    with pytest.raises(ValueError, match=f"labels must be 0 .* and 1 or 255 .*, but hold {found}"):
        isbi.evaluate(np.zeros(labels.shape), labels)


def test_empty_or_flat_arrays_are_refused():
    with pytest.raises(ValueError, match=r"probability is empty: its shape is \(0, 4, 4\)"):
        isbi.evaluate(np.zeros((0, 4, 4)), np.zeros((0, 4, 4)))
    with pytest.raises(ValueError, match=r"must be \[N, H, W\] or \[H, W\], not \(4,\)"):
        isbi.evaluate(np.zeros(4), np.zeros(4))


def test_arrays_without_numbers_are_refused():
    with pytest.raises(ValueError, match="labels must hold numbers, not object"):
        isbi.evaluate(np.zeros((2, 2)), np.full((2, 2), None))


def test_unknown_metrics_are_refused():
    with pytest.raises(ValueError, match="unknown metric 'rand': choose from pixel_error, .* v_info"):
        isbi.evaluate(np.zeros((2, 2)), np.zeros((2, 2)), "rand")


def test_scores_of_cells_need_cells():
    labels = np.zeros((2, 3, 3))
    with pytest.raises(ValueError, match="labels hold no interior: rand_error"):
        isbi.rand_error(labels, labels)
    labels[0] = 1
    assert isbi.rand_error(labels, labels) == 0
    for score in (isbi.v_rand, isbi.v_info):
        with pytest.raises(ValueError, match="no interior in slice 1: v_rand and v_info need some"):
            score(labels, labels)


def test_metrics_do_without_tensorflow():
    program = "import sys; import keras_seg.metrics.isbi; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
