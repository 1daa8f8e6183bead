"""Boxes: overlaps, clipping, coding, on Detectron2's numbers and by their own laws."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_seg.ops.boxes import MAX_LOG_SCALE, area, clip, decode, encode, pairwise_iou


def random_boxes(count: int, seed: int = 0, side: float = 200) -> np.ndarray:
    random = np.random.default_rng(seed)
    corner = random.uniform(0, side, (count, 2))
    return np.concatenate([corner, corner + random.uniform(1, side, (count, 2))], 1).astype(np.float32)


def test_overlaps_are_detectron2s(shared):
    golden = np.load(shared / "golden/ops/pairwise_iou.npz")
    found = pairwise_iou(tf.constant(golden["boxes1"]), tf.constant(golden["boxes2"]))
    np.testing.assert_allclose(found, golden["iou"], atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), n=st.integers(0, 7), m=st.integers(0, 7))
def test_overlaps_by_hand(seed, n, m):
    a, b = random_boxes(n, seed), random_boxes(m, seed + 1)
    b[: m // 2] = np.round(b[: m // 2])
    expected = np.zeros((n, m))
    for i, p in enumerate(a.astype(float)):
        for j, q in enumerate(b.astype(float)):
            width = max(0, min(p[2], q[2]) - max(p[0], q[0]))
            height = max(0, min(p[3], q[3]) - max(p[1], q[1]))
            both = (p[2] - p[0]) * (p[3] - p[1]) + (q[2] - q[0]) * (q[3] - q[1])
            expected[i, j] = width * height / (both - width * height)
    np.testing.assert_allclose(pairwise_iou(tf.constant(a), tf.constant(b)), expected, atol=1e-5)


def test_boxes_without_area_overlap_nothing():
    odd = tf.constant([[0, 0, 0, 0], [5, 5, 5, 9], [9, 9, 1, 1]], tf.float32)
    np.testing.assert_array_equal(area(odd), [0, 0, 0])
    others = tf.concat([odd, [[0.0, 0.0, 10.0, 10.0]]], 0)
    np.testing.assert_array_equal(pairwise_iou(odd, others), np.zeros((3, 4)))


@pytest.mark.parametrize("kind", ["rpn", "roi"])
def test_coding_is_detectron2s(shared, kind):
    golden = np.load(shared / "golden/ops/box_transform.npz")
    boxes, targets, weights = (tf.constant(golden[k]) for k in ("boxes", "targets", f"{kind}.weights"))
    weights = weights.numpy().tolist()
    np.testing.assert_allclose(
        encode(boxes, targets, weights), golden[f"{kind}.get_deltas"], rtol=1e-5, atol=1e-5
    )
    deltas = tf.reshape(golden["deltas"], [40, 3, 4])
    found = tf.reshape(decode(deltas, boxes[:, None], weights), [40, 12])
    np.testing.assert_allclose(found, golden[f"{kind}.apply_deltas"], rtol=1e-5, atol=1e-3)
    assert float(golden["scale_clamp"]) == pytest.approx(MAX_LOG_SCALE)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000))
def test_decoding_undoes_encoding(seed):
    anchors, boxes = (tf.constant(random_boxes(9, seed + k)) for k in (0, 1))
    weights = (10, 10, 5, 5)
    found = decode(encode(anchors, boxes, weights), anchors, weights, clamp=20)
    np.testing.assert_allclose(found, boxes, rtol=1e-4, atol=1e-2)


def test_growth_is_clamped():
    box = decode(tf.constant([[0.0, 0, 50, 50]]), tf.constant([[0.0, 0, 16, 16]]))
    np.testing.assert_allclose(box[0, 2:] - box[0, :2], [1000, 1000], rtol=1e-5)


def test_clipping_to_one_or_several_sizes():
    boxes = tf.constant([[[-5.0, 3, 400, 90]], [[2.0, -1, 30, 500]]])
    np.testing.assert_array_equal(clip(boxes, tf.constant([100, 200]))[0], [[0, 3, 200, 90]])
    each = clip(boxes, tf.constant([[100, 200], [300, 20]])[:, None])
    np.testing.assert_array_equal(each, [[[0, 3, 200, 90]], [[2, 0, 20, 300]]])


def test_under_xla():
    a, b = (tf.constant(random_boxes(6, seed)) for seed in (0, 1))
    size, weights = tf.constant([[120, 90]] * 6), (10, 10, 5, 5)

    def run(a, b):
        deltas = encode(a, b, weights)
        return area(a), pairwise_iou(a, b), clip(a, size), deltas, decode(deltas, a, weights)

    for found, expected in zip(tf.function(run, jit_compile=True)(a, b), run(a, b), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
