"""Keypoint heatmaps: by hand, against a slow loop, and against the references' outputs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_seg.ops.keypoints import decode_heatmaps, keypoint_targets


def cubic(x: float, a: float = -0.75) -> float:
    """The kernel of bicubic interpolation, as Keys gives it."""
    x = abs(x)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


def enlarge(heatmap: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bicubic interpolation, border cells repeated, pixel by pixel."""
    m = len(heatmap)
    result = np.zeros((height, width))
    for row, column in np.ndindex(height, width):
        y, x = (row + 0.5) * m / height - 0.5, (column + 0.5) * m / width - 0.5
        for i in range(math.floor(y) - 1, math.floor(y) + 3):
            for j in range(math.floor(x) - 1, math.floor(x) + 3):
                value = heatmap[min(max(i, 0), m - 1), min(max(j, 0), m - 1)]
                result[row, column] += value * cubic(y - i) * cubic(x - j)
    return result


@pytest.fixture(scope="module")
def golden(shared):
    return np.load(shared / "golden/ops/keypoint_decode.npz")


@pytest.fixture(scope="module")
def compiled():
    """The op in a graph whose number of boxes is not known."""
    signature = [tf.TensorSpec([None, 56, 56, 5]), tf.TensorSpec([None, 4])]
    return tf.function(decode_heatmaps, input_signature=signature)


def test_decode_is_detectron2s(golden, compiled):
    """Places to float32 rounding (the largest value is the same pixel), scores to 1e-5."""
    found = compiled(golden["heatmaps"].transpose(0, 2, 3, 1), golden["boxes"]).numpy()
    expected = golden["xy_logit_score"]
    np.testing.assert_allclose(found[..., :2], expected[..., :2], atol=1e-3)
    np.testing.assert_allclose(found[..., 2], expected[..., 3], atol=1e-5)


def test_decode_is_torchvisions(golden, shared):
    other = np.load(shared / "golden/ops/torchvision_conventions.npz")
    found = decode_heatmaps(golden["heatmaps"].transpose(0, 2, 3, 1), golden["boxes"], score="logit").numpy()
    np.testing.assert_allclose(found[..., :2], other["keypoint_decode.xyv"][..., :2], atol=1e-3)
    np.testing.assert_allclose(found[..., 2], other["keypoint_decode.scores"], atol=1e-4)


def test_decode_by_hand():
    """One hot cell of a 4 x 4 map over 8 x 8 pixels: its middle is between two pixels, and the first of them wins."""
    logits = np.zeros((1, 4, 4, 1), np.float32)
    logits[0, 2, 1, 0] = 9
    (((x, y, score),),) = decode_heatmaps(logits, [[10.0, 20.0, 18.0, 28.0]]).numpy()
    assert (x, y) == (12.5, 24.5)
    peak = 9 * cubic(0.25) ** 2
    assert score == pytest.approx(math.exp(peak) / (math.exp(9) + 15), rel=1e-5)


def test_decode_matches_the_slow_loop():
    """Boxes larger and smaller than the map, and not of whole pixels."""
    random = np.random.default_rng(0)
    logits = random.normal(size=(3, 6, 6, 2)).astype(np.float32)
    boxes = np.float32([[3.5, 1.25, 20.75, 12.5], [0, 0, 2.5, 4.5], [7, 7, 7, 30.2]])
    found = decode_heatmaps(logits, boxes, score="logit").numpy()
    for heatmaps, box, keypoints in zip(logits, boxes, found, strict=True):
        width, height = np.maximum(box[2:] - box[:2], 1)
        for k, keypoint in enumerate(keypoints):
            large = enlarge(heatmaps[..., k], math.ceil(height), math.ceil(width))
            row, column = np.unravel_index(large.argmax(), large.shape)
            x = box[0] + (column + 0.5) * width / math.ceil(width)
            y = box[1] + (row + 0.5) * height / math.ceil(height)
            np.testing.assert_allclose(keypoint, [x, y, large.max()], atol=1e-4)


def test_decode_of_no_boxes_and_odd_ones(compiled):
    nothing = np.zeros((0, 56, 56, 5), np.float32), np.zeros((0, 4), np.float32)
    assert compiled(*nothing).shape == (0, 5, 3)
    assert decode_heatmaps(*nothing).shape == (0, 5, 3)
    odd = np.float32([[5, 5, 5, 5], [9, 9, 2, 2], [np.nan, 0, 5, 5], [0, 0, np.inf, 5]])
    found = compiled(np.zeros((4, 56, 56, 5), np.float32), odd).numpy()
    np.testing.assert_array_equal(found[0, 0, :2], [5.5, 5.5])  # a pixel, where there is no extent
    np.testing.assert_allclose(found[:2, :, 2], 1 / 56**2, rtol=1e-5)


def test_scores_of_huge_logits_are_finite():
    logits = np.zeros((1, 4, 4, 1), np.float32)
    logits[0, 1:3, 1:3] = 4000  # interpolated, 4000 * 1.29 between the four: exp(-1160) in float32 is 0
    found = decode_heatmaps(logits, [[0.0, 0, 40, 40]]).numpy()
    assert np.isfinite(found).all() and found[0, 0, 2] > 1


def test_decode_of_half_precision():
    logits = tf.random.stateless_normal([2, 7, 7, 3], [1, 2], dtype=tf.float16)
    boxes = tf.constant([[0.0, 0, 9, 12], [3, 3, 8, 8]])
    found = decode_heatmaps(logits, boxes)
    assert found.dtype == tf.float32
    np.testing.assert_allclose(found, decode_heatmaps(tf.cast(logits, tf.float32), boxes))


@pytest.mark.parametrize("m", [56, 28])
def test_targets_are_detectron2s(shared, m):
    golden = np.load(shared / "golden/ops/keypoint_targets.npz")
    index, valid = keypoint_targets(golden["keypoints"], golden["boxes"], m)
    np.testing.assert_array_equal(index, golden[f"heatmap{m}.index"])
    np.testing.assert_array_equal(valid, golden[f"heatmap{m}.valid"].astype(bool))


def test_targets_are_torchvisions(shared):
    golden = np.load(shared / "golden/ops/keypoint_targets.npz")
    other = np.load(shared / "golden/ops/torchvision_conventions.npz")
    index, valid = keypoint_targets(golden["keypoints"], golden["boxes"], 56)
    np.testing.assert_array_equal(index, other["keypoint_targets56.index"])
    np.testing.assert_array_equal(valid, other["keypoint_targets56.valid"].astype(bool))


def test_targets_by_hand():
    """A box of 8 x 4 pixels and 4 x 4 cells: cells are 2 x 1 pixels; the far edges count, points beyond do not."""
    box = [10, 20, 18, 24]
    points = [
        ([10, 20, 2], 0, True),
        ([13.9, 21.5, 1], 1 * 4 + 1, True),
        ([18, 24, 2], 3 * 4 + 3, True),
        ([18.1, 22, 2], 0, False),
        ([9.9, 22, 2], 0, False),
        ([12, 22, 0], 0, False),
    ]
    index, valid = keypoint_targets(np.float32([[point for point, *_ in points]]), np.float32([box]), 4)
    assert index.numpy()[0].tolist() == [expected for _, expected, _ in points]
    assert valid.numpy()[0].tolist() == [expected for *_, expected in points]


def test_targets_of_no_boxes_and_odd_ones():
    index, valid = keypoint_targets(np.zeros((0, 17, 3)), np.zeros((0, 4)), 56)
    assert index.shape == valid.shape == (0, 17)
    odd = np.float32([[5, 5, 5, 9], [9, 9, 2, 2], [np.nan, 0, 5, 5]])
    index, valid = keypoint_targets(np.full((3, 1, 3), 5.0), odd, 56)
    assert not valid.numpy().any()
    assert not index.numpy().any()


def test_targets_under_xla(shared):
    golden = np.load(shared / "golden/ops/keypoint_targets.npz")
    compiled = tf.function(lambda keypoints, boxes: keypoint_targets(keypoints, boxes, 56), jit_compile=True)
    index, valid = compiled(golden["keypoints"], golden["boxes"])
    np.testing.assert_array_equal(index, golden["heatmap56.index"])
    np.testing.assert_array_equal(valid, golden["heatmap56.valid"].astype(bool))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_targets_decode_to_where_they_were(seed):
    """A heatmap that is hot in the target's cell gives the keypoint back, to a cell's size and a pixel.

    In a box of fewer pixels than cells none may see the hot one: there is no antialiasing.
    """
    random = np.random.default_rng(seed)
    box = np.concatenate([low := random.uniform(0, 50, 2), low + random.uniform(8, 40, 2)]).astype(np.float32)
    keypoint = random.uniform(box[:2], box[2:])
    index, valid = keypoint_targets([[[*keypoint, 2]]], box[None], 8)
    assert valid.numpy().all()
    logits = np.zeros(64, np.float32)
    logits[int(index[0, 0])] = 20
    found = decode_heatmaps(logits.reshape(1, 8, 8, 1), box[None]).numpy()[0, 0]
    assert (np.abs(found[:2] - keypoint) <= (box[2:] - box[:2]) / 8 + 1).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            (np.zeros((2, 56, 56)), np.zeros((2, 4))),
            r"logits must be \[N, m, m, K\] with K known, got \(2, 56, 56\)",
        ),
        (
            (np.zeros((2, 7, 7, 3)), np.zeros((2, 5))),
            r"decode_heatmaps: boxes must be \[N, 4\], got \(2, 5\)",
        ),
        (
            (np.zeros((2, 7, 7, 3)), np.zeros((2, 4)), "softmax"),
            "score must be one of 'probability', 'logit', got 'softmax'",
        ),
    ],
)
def test_messages_of_decode(arguments, message):
    with pytest.raises(ValueError, match=message):
        decode_heatmaps(*arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.zeros((2, 17, 2)), np.zeros((2, 4)), 56), r"keypoints must be \[N, K, 3\], got \(2, 17, 2\)"),
        ((np.zeros((2, 17, 3)), np.zeros(4), 56), r"keypoint_targets: boxes must be \[N, 4\], got \(4,\)"),
    ],
)
def test_messages_of_targets(arguments, message):
    with pytest.raises(ValueError, match=message):
        keypoint_targets(*arguments)
