"""What stands in for RoIAlign, suppression and layers in a TensorFlow Lite file, against what it stands for."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_seg import models
from keras_seg.export.tflite_networks import network
from keras_seg.export.tflite_quantization import EightBits, Ranges
from keras_seg.export.tflite_regions import REFUSED, inverse, pool_regions, suppress
from keras_seg.ops.nms import nms
from keras_seg.ops.roi_align import multilevel_roi_align


def features(levels, channels=5, side=48):
    random = np.random.default_rng(3)
    return [
        tf.constant(random.normal(size=(1, side >> k, side + 16 >> k, channels)), tf.float32)
        for k in range(levels)
    ]


@pytest.mark.parametrize(
    ("levels", "ratio", "aligned", "operation"),
    [(4, 0, True, "align"), (4, 2, False, "align"), (1, 0, False, "align"), (2, 0, True, "warp")],
)
@settings(deadline=None, max_examples=6)
@given(seed=st.integers(0, 2**31), number=st.integers(1, 40))
def test_regions(levels, ratio, aligned, operation, seed, number):
    """Boxes of all sizes and shapes, within the image, at its border and beyond, empty ones and inverted ones."""
    random = np.random.default_rng(seed)
    centre = random.uniform(-20, 280, (number, 2))
    half = random.uniform(0, 1, (number, 2)) ** 3 * 150 * random.choice([1, 1, 1, 0, -0.1], (number, 1))
    boxes = tf.constant(np.concatenate([centre - half, centre + half], 1), tf.float32)
    strides = [4 << k for k in range(levels)]
    maps, arguments = features(levels), (5, strides, ratio)
    expected = multilevel_roi_align(
        maps, boxes, tf.zeros([number], tf.int32), *arguments, aligned=aligned, operation=operation, implementation="gather"
    )  # fmt: skip
    found, order = pool_regions(maps, boxes, strides, 5, ratio, aligned, operation == "warp")
    np.testing.assert_allclose(tf.gather(found, inverse(order)), expected, atol=1e-4)


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 2**31),
    number=st.integers(1, 30),
    most=st.integers(1, 30),
    threshold=st.floats(0, 0.95),
)
def test_suppression(seed, number, most, threshold):
    random = np.random.default_rng(seed)
    low = random.uniform(0, 30, (2, number, 2))
    boxes = np.concatenate([low, low + random.uniform(0, 30, low.shape)], -1).astype(np.float32)
    scores = random.normal(size=(2, number)).astype(np.float32)
    scores[:, ::4] = REFUSED
    kept = suppress(tf.constant(boxes), tf.constant(scores), threshold, most).numpy()
    for group in range(2):
        there = np.flatnonzero(scores[group] > REFUSED)
        expected = (
            there[nms(boxes[group][there], scores[group][there], threshold, most)] if len(there) else []
        )
        assert sorted(expected) == list(np.flatnonzero(kept[group]))


def test_suppression_at_the_threshold_in_the_runtime():
    """An overlap of exactly the threshold suppresses nothing, a larger one does: TensorFlow's rule, not the operator's own."""
    interpreter = pytest.importorskip("ai_edge_litert.interpreter", reason="needs ai-edge-litert")
    shapes = [tf.TensorSpec([1, 3, 4], tf.float32), tf.TensorSpec([1, 3], tf.float32)]
    traced = tf.function(lambda b, s: suppress(b, s, 0.5, 3), input_signature=shapes).get_concrete_function()
    content = tf.lite.TFLiteConverter.from_concrete_functions([traced]).convert()
    run = interpreter.Interpreter(model_content=content)
    run.allocate_tensors()
    boxes = np.array([[[0, 0, 8, 8], [0, 0, 8, 4], [0, 0, 8, 4.5]]], np.float32)
    by_rank = {len(detail["shape"]): detail["index"] for detail in run.get_input_details()}
    for scores, expected in (([3, 2, REFUSED], [True, True, False]), ([3, REFUSED, 2], [True, False, False])):
        run.set_tensor(by_rank[3], boxes)
        run.set_tensor(by_rank[2], np.array([scores], np.float32))
        run.invoke()
        assert run.get_tensor(run.get_output_details()[0]["index"]).tolist() == [expected]


@pytest.mark.parametrize("normalization", [None, "batch", "group"])
def test_a_network_computes_what_the_model_does(normalization):
    keras.utils.set_random_seed(1)
    model = models.unet(2, 3, depth=2, base_channels=8, padding="same", normalization=normalization)
    for variable in model.weights:  # moments and scales of a trained network
        if len(variable.shape) == 1:
            variable.assign(np.random.default_rng(0).uniform(0.5, 1.5, variable.shape))
    image = np.random.default_rng(1).uniform(0, 255, (2, 16, 24, 2)).astype(np.float32)
    np.testing.assert_allclose(network(model)(image), model(image), atol=1e-5)


def test_ranges_and_rounding():
    keras.utils.set_random_seed(1)
    model = models.unet(depth=1, base_channels=4, padding="same", name="net")
    image = tf.constant(np.random.default_rng(1).uniform(0, 255, (1, 8, 8, 1)), tf.float32)
    ranges = Ranges()
    network(model, ranges)(image)
    found = ranges.result()
    assert found["net/rescaling"] == (0.0, pytest.approx(float(tf.reduce_max(image)) / 255))
    assert all(low <= 0 < high for low, high in found.values())
    assert {"net/enc1_conv1", "net/dec1_up", "net/dec1_concat", "net/logits"} <= found.keys()
    rounded = network(model, EightBits(found, ["net/logits"]))(image)
    difference = np.abs(rounded - model(image))
    assert 0 < difference.max() <= 0.02
    np.testing.assert_allclose(network(model, EightBits({}))(image), model(image), atol=1e-6)
