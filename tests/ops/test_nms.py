"""Non-maximum suppression, on torchvision's survivors and against the definition."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_seg.ops.boxes import pairwise_iou
from keras_seg.ops.nms import batched_nms, nms


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7])
def test_survivors_are_the_references(shared, threshold):
    golden = np.load(shared / "golden/ops/nms.npz")
    boxes, scores, classes = (tf.constant(golden[name]) for name in ("boxes", "scores", "classes"))
    np.testing.assert_array_equal(nms(boxes, scores, threshold, 300), golden[f"nms_{threshold}.keep"])
    found = tf.function(batched_nms)(boxes, scores, classes, threshold, 300)
    np.testing.assert_array_equal(found, golden[f"batched_nms_{threshold}.keep"])


def test_ties_keep_the_lower_index_and_the_threshold_itself_is_allowed(shared):
    golden = np.load(shared / "golden/ops/nms.npz")
    for case in ("ties", "threshold_equal"):
        boxes, scores = tf.constant(golden[f"{case}.boxes"]), tf.constant(golden[f"{case}.scores"])
        np.testing.assert_array_equal(nms(boxes, scores, 0.5, 10), golden[f"{case}.nms_0.5.keep"])


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000), count=st.integers(0, 40), groups=st.integers(1, 4), most=st.integers(1, 50)
)
def test_the_definition(seed, count, groups, most):
    random = np.random.default_rng(seed)
    corner = random.uniform(0, 60, (count, 2))
    boxes = np.concatenate([corner, corner + random.uniform(0, 50, (count, 2))], 1).astype(np.float32)
    scores = random.choice([0.1, 0.4, 0.5, 0.9], count).astype(np.float32)
    group = random.integers(0, groups, count)
    overlap = pairwise_iou(tf.constant(boxes), tf.constant(boxes)).numpy()
    kept: list[int] = []
    for index in np.argsort(-scores, kind="stable"):
        if all(group[k] != group[index] or overlap[k, index] <= 0.5 for k in kept):
            kept.append(index)
    found = batched_nms(tf.constant(boxes), tf.constant(scores), tf.constant(group), 0.5, most)
    np.testing.assert_array_equal(found, kept[:most])


def test_in_a_graph_without_autograph():
    # Keras traces layers so
    boxes = tf.constant([[0.0, 0, 9, 9], [0, 0, 9, 9], [0, 0, 9, 8]])
    found = tf.function(batched_nms, autograph=False)(
        boxes, tf.constant([0.2, 0.9, 0.8]), tf.constant([3, 3, 7]), 0.5, 10
    )
    np.testing.assert_array_equal(found, [1, 2])


def test_under_xla():
    boxes, scores = tf.constant([[0.0, 0, 9, 9], [0, 0, 9, 8], [20, 0, 29, 9]]), tf.constant([0.2, 0.9, 0.8])
    compiled = tf.function(lambda boxes, scores: nms(boxes, scores, 0.5, 10), jit_compile=True)
    np.testing.assert_array_equal(compiled(boxes, scores), [1, 2])


def test_odd_boxes():
    """A box without area overlaps nothing; an inverted one is what its corners span."""
    boxes = tf.constant([[5.0, 5, 5, 5], [5, 5, 5, 5], [0, 0, 9, 9], [9, 9, 0, 0], [9, 0, 0, 9]])
    scores = tf.constant([0.9, 0.8, 0.7, 0.6, 0.5])
    np.testing.assert_array_equal(nms(boxes, scores, 0.5, 10), [0, 1, 2])
    assert nms(boxes[:0], scores[:0], 0.5, 10).shape == (0,)


def test_far_away_boxes_lose_no_precision():
    # 0.5 exactly, and a hair more; moved apart by a class offset in float32 the two would be the same
    base = np.array([[0, 0, 10, 10], [0, 5, 10, 10], [0, 4.9999, 10, 10]], np.float32)
    boxes = np.concatenate([base[[0, 1]], base[[0, 2]]])
    groups = tf.constant([70, 70, 79, 79])
    found = batched_nms(tf.constant(boxes), tf.constant([0.9, 0.8, 0.7, 0.6]), groups, 0.5, 10)
    np.testing.assert_array_equal(found, [0, 1, 2])
