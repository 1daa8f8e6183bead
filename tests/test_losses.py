"""The weight map of equation 2, separation borders and the weighted cross-entropy, against direct computations."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from keras_seg.losses import class_balance, separate_touching, weight_map, weighted_crossentropy


def direct_weight_map(labels, w0, sigma):
    """Equation 2 as it is written: one distance transform of the whole image a cell."""
    cells = [k for k in np.unique(labels) if k > 0]
    known = labels >= 0
    share = {c: np.mean(((labels > 0) == c)[known]) for c in (False, True)}
    present = sum(s > 0 for s in share.values())
    w_c = np.array(
        [0 if share[bool(v > 0)] == 0 else 1 / (present * share[bool(v > 0)]) for v in labels.ravel()]
    )
    border = np.zeros(labels.shape)
    if len(cells) > 1:
        distances = np.sort([ndimage.distance_transform_edt(labels != k) for k in cells], axis=0)
        border = w0 * np.exp(-((distances[0] + distances[1]) ** 2) / (2 * sigma**2))
    return np.where(known, w_c.reshape(labels.shape) + border, 0)


def blobs(shape, cells, seed):
    rng = np.random.default_rng(seed)
    centres = rng.uniform(0, shape, (cells, 2))
    y, x = np.indices(shape)
    distance = np.array([np.hypot(y - cy, x - cx) for cy, cx in centres])
    return np.where(distance.min(0) < 12, distance.argmin(0) + 1, 0)


@pytest.mark.parametrize("sigma", [1, 5, 40])
def test_equals_the_direct_computation(sigma):
    labels = separate_touching(blobs((150, 130), 25, seed=sigma))
    np.testing.assert_allclose(
        weight_map(labels, 10, sigma), direct_weight_map(labels, 10, sigma), rtol=1e-6, atol=1e-6
    )


@settings(max_examples=80, deadline=None)
@given(
    labels=arrays(np.int32, st.tuples(st.integers(1, 24), st.integers(1, 24)), elements=st.sampled_from([-1, 0, 0, 1, 2, 700])),
    w0=st.floats(0, 50),
    sigma=st.floats(0.5, 10),
)  # fmt: skip
def test_equals_the_direct_computation_on_any_labels(labels, w0, sigma):
    if not (labels >= 0).any():
        labels[0, 0] = 0
    np.testing.assert_allclose(
        weight_map(labels, w0, sigma), direct_weight_map(labels, w0, sigma), rtol=1e-5, atol=1e-5
    )


def test_a_gap_worked_by_hand():
    labels = np.zeros((1, 9), int)
    labels[0, :3], labels[0, 6:] = 1, 2
    weights = weight_map(labels, w0=10, sigma=5, class_weights=(0, 0))
    # the gap's pixels are 1, 2, 3 from the left cell and 3, 2, 1 from the right one
    np.testing.assert_allclose(weights[0, 3:6], 10 * np.exp(-16 / 50), rtol=1e-6)
    np.testing.assert_allclose(weights[0, 2], 10 * np.exp(-16 / 50), rtol=1e-6)  # inside: d1 = 0, d2 = 4
    assert weights.dtype == np.float32


def test_fewer_than_two_cells_have_no_border_term_and_unknown_pixels_no_weight():
    labels = np.zeros((20, 20), int)
    labels[5:10, 5:10] = 3
    labels[15:] = -1
    weights = weight_map(labels)
    assert set(np.unique(weights[:15])) == set(weight_map(labels, w0=0)[:15].ravel())
    assert not weights[15:].any()


def test_class_balance_gives_every_class_the_same_total_and_mean_one():
    labels = [np.array([0, 0, 0, 1, -1]), np.array([[0, 3, 3, 0]])]
    balance = class_balance(labels, classes=4)
    totals = [5 * balance[0], 1 * balance[1], 2 * balance[3]]
    np.testing.assert_allclose(totals, 8 / 3)
    assert balance[2] == 0


def test_touching_cells_are_parted_and_others_left_alone():
    labels = np.zeros((10, 12), int)
    labels[:, :4], labels[:, 4:8], labels[:, 10:] = 1, 2, 3
    parted = separate_touching(labels)
    assert parted[0].tolist() == [1, 1, 1, 0, 0, 2, 2, 2, 0, 0, 3, 3]
    for width, gap in {1: 2, 2: 2, 3: 4, 4: 4}.items():
        assert np.count_nonzero(separate_touching(labels[:, :8], width)[0] == 0) == gap
    np.testing.assert_array_equal(
        separate_touching(np.where(labels == 2, 0, labels)), np.where(labels == 2, 0, labels)
    )


@settings(max_examples=50, deadline=None)
@given(labels=arrays(np.int64, (15, 15), elements=st.integers(-1, 4)))
def test_no_two_cells_touch_after_separation(labels):
    parted = separate_touching(labels)
    assert np.isin(parted[parted != labels], [0]).all()
    np.testing.assert_array_equal(parted == -1, labels == -1)
    for k in range(1, 5):
        around = ndimage.binary_dilation(parted == k, np.ones((3, 3)))
        assert not ((parted > 0) & (parted != k) & around).any()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros((3, 3)), r"expected a non-empty integer array \[H, W\], got float64"),
        (np.zeros((3, 3, 1), int), r"got int64 \(3, 3, 1\)"),
        (np.zeros((0, 3), int), "non-empty"),
        (np.full((3, 3), -2), "least legal value is -1"),
        (np.full((3, 3), -1), "no annotated pixel"),
    ],
)
def test_wrong_labels_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        weight_map(labels)


def test_wrong_arguments_are_refused():
    labels = np.eye(4, dtype=int)
    with pytest.raises(ValueError, match="sigma > 0"):
        weight_map(labels, sigma=0)
    with pytest.raises(ValueError, match="got 3 values"):
        weight_map(labels, class_weights=(1, 2, 3))
    with pytest.raises(ValueError, match="width must be at least 1"):
        separate_touching(labels, 0)
    with pytest.raises(ValueError, match=r"label 5 outside 0 … 1"):
        class_balance([labels * 5], classes=2)


def test_crossentropy_against_numpy():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 4, 5, 3)).astype(np.float32) * 3
    labels = rng.integers(-1, 3, (2, 4, 5)).astype(np.int32)
    weights = rng.uniform(0, 5, (2, 4, 5)).astype(np.float32)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    each = -np.take_along_axis(log_p, np.maximum(labels, 0)[..., None], -1)[..., 0]
    known = labels >= 0
    found = weighted_crossentropy(tf.constant(labels), tf.constant(logits), tf.constant(weights))
    assert float(found) == pytest.approx((each * weights)[known].sum() / known.sum(), rel=1e-5)


def test_ignored_pixels_do_not_count_even_if_they_are_not_finite():
    logits = tf.constant([[[[np.nan, 0.0], [2.0, 0.0]]]])
    loss = weighted_crossentropy(tf.constant([[[-1, 0]]]), logits)
    assert float(loss) == pytest.approx(np.log1p(np.exp(-2)), rel=1e-5)
    assert float(weighted_crossentropy(tf.constant([[[-1, -1]]]), logits)) == 0


def test_sigmoid_crossentropy():
    logits = tf.constant([[[[2.0], [-1.0], [0.5]]]])
    expected = (np.log1p(np.exp(-2)) + np.log1p(np.exp(-1))) / 2
    found = weighted_crossentropy(tf.constant([[[1, 0, -1]]]), logits, activation="sigmoid")
    assert float(found) == pytest.approx(expected, rel=1e-5)
    # two overlapping classes; the second of the last pixel is not annotated
    logits = tf.constant([[[[2.0, 2.0], [-1.0, 7.0]]]])
    labels = tf.constant([[[[1, 1], [0, -1]]]])
    expected = (2 * np.log1p(np.exp(-2)) + np.log1p(np.exp(-1))) / 2
    assert float(weighted_crossentropy(labels, logits, activation="sigmoid")) == pytest.approx(
        expected, rel=1e-5
    )


def test_crossentropy_under_xla():
    random = np.random.default_rng(0)
    logits = tf.constant(random.normal(size=(2, 3, 4, 3)), tf.float32)
    labels = tf.constant(random.integers(-1, 3, (2, 3, 4)))
    weights = tf.constant(random.uniform(size=(2, 3, 4)), tf.float32)
    for activation in ("softmax", "sigmoid"):
        compiled = tf.function(weighted_crossentropy, jit_compile=True)(labels, logits, weights, activation)
        expected = weighted_crossentropy(labels, logits, weights, activation)
        np.testing.assert_allclose(compiled, expected, rtol=1e-5)
