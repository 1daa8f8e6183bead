"""Matching and sampling, on Detectron2's labels, and where we differ on purpose."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_seg.ops.matching import match, sample_labels

RPN, ROI = ((0.3, 0.7), (0, -1, 1)), ((0.5,), (0, 1))
KINDS = {"rpn": (*RPN, True), "roi": (*ROI, False), "rpn_no_low_quality": (*RPN, False)}


@pytest.mark.parametrize("kind", KINDS)
def test_labels_are_detectron2s(shared, kind):
    golden = np.load(shared / "golden/ops/matcher.npz")
    matches, labels = tf.function(match)(tf.constant(golden["main.iou"]), *KINDS[kind])
    np.testing.assert_array_equal(matches, golden[f"main.{kind}.matches"])
    np.testing.assert_array_equal(labels, golden[f"main.{kind}.labels"])


def test_a_truth_that_overlaps_nothing_makes_nothing_positive(shared):
    golden = np.load(shared / "golden/ops/matcher.npz")
    iou = golden["gt_without_overlap.iou"]
    assert (iou.max(1) == 0).sum() == 1
    _, labels = match(tf.constant(iou), *KINDS["rpn"])
    without = np.delete(iou, iou.max(1).argmin(), 0)
    np.testing.assert_array_equal(labels, match(tf.constant(without), *KINDS["rpn"])[1])
    assert (golden["gt_without_overlap.rpn.labels"] == 1).all()  # what Detectron2 does
    for kind in ("roi", "rpn_no_low_quality"):
        _, labels = match(tf.constant(iou), *KINDS[kind])
        np.testing.assert_array_equal(labels, golden[f"gt_without_overlap.{kind}.labels"])


def test_without_truth_everything_is_negative(shared):
    golden = np.load(shared / "golden/ops/matcher.npz")
    matches, labels = tf.function(match)(tf.zeros([0, 9]), *KINDS["rpn"])
    np.testing.assert_array_equal(matches, golden["empty_gt.rpn.matches"])
    np.testing.assert_array_equal(labels, golden["empty_gt.rpn.labels"])


@settings(max_examples=25, deadline=None)
@given(
    labels=st.lists(st.sampled_from([-1, 0, 1]), max_size=60),
    count=st.integers(0, 40),
    fraction=st.floats(0, 1),
    first=st.booleans(),
)
def test_samples_are_eligible_distinct_and_not_too_many(labels, count, fraction, first):
    labels = np.array(labels, np.int32)
    positive, negative = (
        x.numpy()
        for x in sample_labels(tf.constant(labels), count, fraction, seed=tf.constant([1, 2]), first=first)
    )
    assert (labels[positive] == 1).all() and (labels[negative] == 0).all()
    assert len(positive) == min((labels == 1).sum(), int(count * fraction))
    assert len(negative) == min((labels == 0).sum(), count - len(positive))
    assert (np.diff(positive) > 0).all() and (np.diff(negative) > 0).all()
    if first:
        np.testing.assert_array_equal(positive, np.flatnonzero(labels == 1)[: len(positive)])


def test_seeds_choose_and_repeat():
    labels = tf.constant([0, 1] * 100)

    def draw(seed):
        return sample_labels(labels, 20, 0.5, seed=None if seed is None else tf.constant(seed))

    for a, b in zip(draw([1, 2]), draw([1, 2]), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(draw([1, 2])[0], draw([3, 2])[0])
    assert not np.array_equal(draw(None)[0], draw(None)[0])
