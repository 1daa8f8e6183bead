"""Matching and sampling, on Detectron2's labels, and where we differ on purpose."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_seg.ops.anchors import cell_anchors, grid_anchors
from keras_seg.ops.boxes import pairwise_iou
from keras_seg.ops.matching import match, match_boxes, sample_batch, sample_labels

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


def test_tied_candidates_are_all_the_best(shared):
    golden = np.load(shared / "golden/ops/matcher.npz")
    matches, labels = match(tf.constant(golden["tied.iou"]), *KINDS["rpn"])
    np.testing.assert_array_equal(matches, golden["tied.rpn.matches"])
    # the third truth overlaps nothing, so the third candidate stays undecided (0.6); Detectron2: all positive
    np.testing.assert_array_equal(labels, [1, 1, -1, 1])


@pytest.mark.parametrize("thresholds, labels", [((0.5,), (0, -1, 1)), ((0.7, 0.3), (0, -1, 1))])
def test_thresholds_and_labels_that_do_not_fit(thresholds, labels):
    with pytest.raises(ValueError, match="match: needs rising thresholds and one label more than thresholds"):
        match(tf.zeros([1, 1]), thresholds, labels)


def test_matching_under_xla():
    iou = tf.random.stateless_uniform([5, 40], [1, 2])
    compiled = tf.function(match, jit_compile=True)(iou, *KINDS["rpn"])
    for found, expected in zip(compiled, match(iou, *KINDS["rpn"]), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_without_truth_everything_is_negative(shared):
    golden = np.load(shared / "golden/ops/matcher.npz")
    matches, labels = tf.function(match)(tf.zeros([0, 9]), *KINDS["rpn"])
    np.testing.assert_array_equal(matches, golden["empty_gt.rpn.matches"])
    np.testing.assert_array_equal(labels, golden["empty_gt.rpn.labels"])


TRAIN_STEPS = ("mask_rcnn_R_50_FPN_1x", "mask_rcnn_R_50_C4_1x", "keypoint_rcnn_R_50_FPN_1x")


@pytest.mark.parametrize("config", TRAIN_STEPS)
@pytest.mark.parametrize("image", [0, 1])
def test_a_training_step_looks_at_detectron2s_samples(shared, config, image):
    golden = np.load(shared / f"golden/ops/train_step_{config}.npz")
    truth = tf.constant(golden[f"image{image}.gt_boxes"])
    height, width = golden["batch_input_shape"][2:].tolist()
    if "FPN" in config:
        levels = [([32 * 2**k], 4 * 2**k) for k in range(5)]
    else:
        levels = [([32, 64, 128, 256, 512], 16)]
    anchors = tf.concat(
        [
            grid_anchors(cell_anchors(sizes, [0.5, 1, 2]), -(-height // stride), -(-width // stride), stride)
            for sizes, stride in levels
        ],
        0,
    )
    assert len(anchors) == golden[f"image{image}.rpn.num_anchors"]
    matches, labels = match(pairwise_iou(truth, anchors), *KINDS["rpn"])
    positive, negative = sample_labels(labels, 256, 0.5, first=True)
    np.testing.assert_array_equal(positive, golden[f"image{image}.rpn.positive_anchors"])
    np.testing.assert_array_equal(negative, golden[f"image{image}.rpn.negative_anchors"])
    matched = tf.gather(truth, tf.gather(matches, positive))
    np.testing.assert_array_equal(matched, golden[f"image{image}.rpn.positive_gt_boxes"])

    # the true boxes are proposals too, after all others
    regions = tf.concat([golden[f"image{image}.proposals.boxes"], truth], 0)
    matches, labels = match(pairwise_iou(truth, regions), *KINDS["roi"])
    chosen = tf.concat(sample_labels(labels, 64, 0.25, first=True), 0)
    np.testing.assert_array_equal(tf.gather(regions, chosen), golden[f"image{image}.roi.boxes"])
    matched = tf.gather(truth, tf.gather(matches, chosen))
    np.testing.assert_array_equal(matched, golden[f"image{image}.roi.gt_boxes"])


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


@functools.cache
def matched_boxes(kind: str, rank: int):
    """`match_boxes` as a graph for any number of boxes."""
    signature = (
        tf.TensorSpec([None, None, 4]),
        tf.TensorSpec([None, None], tf.bool),
        tf.TensorSpec([None] * (rank - 1) + [4]),
    )
    return tf.function(
        lambda *given: match_boxes(*given, *KINDS[kind]), input_signature=signature, autograph=False
    )


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(sorted(KINDS)), st.booleans())
def test_a_padded_batch_is_matched_like_each_image(seed, kind, shared_candidates):
    random = np.random.default_rng(seed)
    batch, truths, number = random.integers(1, 4), random.integers(0, 8), random.integers(1, 60)
    boxes, candidates = (
        np.sort(random.integers(0, 9, (batch, count, 2, 2)), 2).reshape(batch, count, 4).astype(np.float32)
        for count in (truths, number)  # whole numbers: overlaps tie
    )
    valid = random.random((batch, truths)) < 0.7
    candidates = candidates[0] if shared_candidates else candidates
    found = matched_boxes(kind, candidates.ndim)(*map(tf.constant, (boxes, valid, candidates)))
    for image in range(batch):
        own = candidates if shared_candidates else candidates[image]
        matches, labels = match(
            pairwise_iou(tf.constant(boxes[image][valid[image]]), tf.constant(own)), *KINDS[kind]
        )
        np.testing.assert_array_equal(found[1][image], labels)
        if valid[image].any():
            matches = np.flatnonzero(valid[image])[matches]
            overlaps = pairwise_iou(tf.constant(boxes[image]), tf.constant(own)).numpy().max(0) > 0
            np.testing.assert_array_equal(found[0][image].numpy()[overlaps], matches[overlaps])


def test_truths_are_matched_some_at_a_time(monkeypatch):
    """With one truth a turn and with all at once."""
    random = np.random.default_rng(3)
    boxes = np.sort(random.integers(0, 20, (2, 13, 2, 2)), 2).reshape(2, 13, 4).astype(np.float32)
    candidates = np.sort(random.integers(0, 20, (90, 2, 2)), 1).reshape(90, 4).astype(np.float32)
    arguments = tf.constant(boxes), tf.constant(random.random((2, 13)) < 0.8), tf.constant(candidates)
    expected = match_boxes(*arguments, *KINDS["rpn"])
    for pairs in (1, 1000):
        monkeypatch.setattr("keras_seg.ops.matching.PAIRS_AT_ONCE", pairs)
        for found, wanted in zip(match_boxes(*arguments, *KINDS["rpn"]), expected, strict=True):
            np.testing.assert_array_equal(found, wanted)


sampled = tf.function(sample_batch, reduce_retracing=True)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_samples_of_a_batch(seed, first):
    random = np.random.default_rng(seed)
    labels = random.choice([-1, 0, 1], (2, random.integers(1, 40)), p=random.dirichlet([1, 1, 1])).astype(
        np.int32
    )
    indices, chosen = (
        a.numpy() for a in sampled(tf.constant(labels), 8, 0.5, tf.constant([1, 2]), first=first)
    )
    assert indices.shape == chosen.shape == (2, 8)
    for row, places, kinds in zip(labels, indices, chosen, strict=True):
        positives = min((row == 1).sum(), 4)
        negatives = min((row == 0).sum(), 8 - positives)
        np.testing.assert_array_equal(
            kinds, [1] * positives + [0] * negatives + [-1] * (8 - positives - negatives)
        )
        there = places[kinds >= 0]
        np.testing.assert_array_equal(row[there], kinds[kinds >= 0])
        assert len(set(there.tolist())) == len(there)
        if first:
            np.testing.assert_array_equal(there[:positives], np.flatnonzero(row == 1)[:positives])
            np.testing.assert_array_equal(there[positives:], np.flatnonzero(row == 0)[:negatives])


def test_samples_of_a_batch_follow_the_seed_and_are_uniform():
    labels = tf.constant([[0] * 40 + [1] * 40] * 2)
    again = [sampled(labels, 20, 0.5, tf.constant([1, 2]))[0].numpy() for _ in range(2)]
    np.testing.assert_array_equal(*again)
    drawn = np.concatenate([sampled(labels, 20, 0.5, tf.constant([7, k]))[0].numpy() for k in range(200)])
    counts = np.bincount(drawn.ravel(), minlength=80)
    # 400 draws of 10 of 40: 100 of each expected, with a standard deviation of 8.7
    assert 60 < counts.min() and counts.max() < 140
