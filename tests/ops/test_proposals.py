"""Proposals, on Detectron2's choice."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from keras_seg.ops.boxes import encode
from keras_seg.ops.proposals import select_proposals

SIZE = tf.constant([[100, 100]])


@pytest.mark.parametrize("case", ["a", "b", "c"])
def test_proposals_are_detectron2s(shared, case):
    golden = np.load(shared / "golden/ops/rpn_proposals.npz")
    pre, post, min_size, threshold = golden[f"{case}.settings_pre_post_min_nms"]
    levels = range(5)
    logits = [tf.constant(golden[f"level{k}.objectness_logits"]) for k in levels]
    # Detectron2's boxes were decoded already: as deltas from anchors [-50, -50, 50, 50], in float64
    proposals = [golden[f"level{k}.proposals"].astype(np.float64) for k in levels]
    anchors = [np.broadcast_to([-50.0, -50, 50, 50], (p.shape[1], 4)) for p in proposals]
    finite = [np.where(np.isfinite(p), p, 1e3) for p in proposals]
    deltas = [
        tf.cast(tf.where(np.isfinite(p), encode(tf.constant(a)[None], tf.constant(f)), np.nan), tf.float32)
        for p, f, a in zip(proposals, finite, anchors, strict=True)
    ]
    boxes, scores, count = tf.function(select_proposals)(
        logits,
        deltas,
        [tf.constant(a, tf.float32) for a in anchors],
        tf.constant(golden["image_sizes"]),
        pre_nms=int(pre),
        post_nms=int(post),
        nms_threshold=float(threshold),
        min_size=float(min_size),
    )
    for image in range(2):
        expected = golden[f"{case}.image{image}.boxes"]
        assert count[image] == len(expected)
        np.testing.assert_allclose(
            scores[image, : len(expected)], golden[f"{case}.image{image}.objectness_logits"]
        )
        np.testing.assert_allclose(boxes[image, : len(expected)], expected, atol=0.01)
        assert not boxes[image, len(expected) :].numpy().any()


def choose(deltas, logits, **options):
    anchors = tf.constant([[10.0, 10, 30, 30]] * len(logits))
    options = {"pre_nms": 10, "post_nms": 5, "nms_threshold": 0.7, **options}
    return select_proposals([tf.constant([logits])], [tf.constant([deltas])], [anchors], SIZE, **options)


def test_what_is_not_finite_or_too_small_is_left_out():
    nothing = [0.0, 0, 0, 0]
    deltas = [nothing, [np.nan, 0, 0, 0], [np.inf, 0, 0, 0], [50.0, 0, 0, 0], [0, 0, -9.0, -9.0]]
    boxes, scores, count = choose(deltas, [1.0, 2, 3, 4, 5], min_size=0.1)
    assert count.numpy().tolist() == [1] and boxes.shape == (1, 5, 4)
    np.testing.assert_allclose(boxes[0, 0], [10, 10, 30, 30])
    np.testing.assert_array_equal(scores[0], [1, 0, 0, 0, 0])


def test_a_nan_among_the_logits_disorders_nothing():
    logits = [0.1, np.nan, 0.3, np.inf, 0.2]
    _, scores, count = choose([[0.8 * k, 0, 0, 0] for k in range(5)], logits, pre_nms=3)
    assert count.numpy().tolist() == [3]
    np.testing.assert_allclose(scores[0, :3], [0.3, 0.2, 0.1])


def test_no_anchors_and_no_survivors():
    boxes, _, count = select_proposals(
        [tf.zeros([2, 0])],
        [tf.zeros([2, 0, 4])],
        [tf.zeros([0, 4])],
        tf.constant([[8, 8], [9, 9]]),
        pre_nms=10,
        post_nms=3,
        nms_threshold=0.5,
    )
    assert boxes.shape == (2, 3, 4) and count.numpy().tolist() == [0, 0]
    assert choose([[np.nan] * 4], [1.0])[2].numpy().tolist() == [0]
