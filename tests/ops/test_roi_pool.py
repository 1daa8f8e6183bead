"""RoIPool: against torchvision, against a plain computation, and at its limits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_seg.ops.roi_pool import roi_pool


def direct(features, boxes, indices, size, scale):
    height, width, channels = features.shape[1:]
    result = np.zeros((len(boxes), size, size, channels), np.float32)
    for n, (box, index) in enumerate(zip(boxes.astype(np.float32), indices, strict=True)):
        x1, y1, x2, y2 = (int(math.copysign(math.floor(abs(v) + 0.5), v)) for v in box * np.float32(scale))
        tall, wide = (
            np.float32(max(end - start + 1, 1)) / np.float32(size) for start, end in ((y1, y2), (x1, x2))
        )
        for h, w in np.ndindex(size, size):
            rows = slice(*np.clip([y1 + math.floor(h * tall), y1 + math.ceil((h + 1) * tall)], 0, height))
            columns = slice(*np.clip([x1 + math.floor(w * wide), x1 + math.ceil((w + 1) * wide)], 0, width))
            values = features[index, rows, columns].reshape(-1, channels)
            if len(values):
                result[n, h, w] = values.max(0)
    return result


@pytest.mark.parametrize("stride", [4, 16])
@pytest.mark.parametrize("size", [7, 14])
def test_equals_torchvision_and_its_gradient(shared, stride, size):
    golden = np.load(shared / "golden" / "ops" / "roi_pool.npz")
    key = f"stride{stride}.pool{size}"
    features = tf.constant(np.moveaxis(golden[f"stride{stride}.features"], 1, -1))
    with tf.GradientTape() as tape:
        tape.watch(features)
        result = roi_pool(features, golden["rois"][:, 1:], golden["rois"][:, 0], size, 1 / stride)
    np.testing.assert_array_equal(result, np.moveaxis(golden[f"{key}.output"], 1, -1))
    gradient = tape.gradient(result, features, np.moveaxis(golden[f"{key}.upstream"], 1, -1))
    # sums in another order
    np.testing.assert_allclose(
        gradient, np.moveaxis(golden[f"{key}.grad_features"], 1, -1), rtol=0, atol=2e-5
    )


@settings(max_examples=8, deadline=None)
@given(
    seed=st.integers(0, 10**6), height=st.integers(1, 9), width=st.integers(1, 9),
    scale=st.sampled_from([1.0, 0.25, 1 / 16, 0.3]),
)  # fmt: skip
def test_equals_the_plain_computation(seed, height, width, scale):
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((2, height, width, 3)).astype(np.float32)
    boxes = np.sort(rng.uniform(-0.5, 1.5, (6, 2, 2)), 1).reshape(6, 4) * ([width, height] * 2) / scale
    indices = rng.integers(0, 2, 6)
    np.testing.assert_array_equal(
        roi_pool(features, boxes, indices, 3, scale), direct(features, boxes, indices, 3, scale)
    )


def test_the_gradient_goes_to_the_first_greatest_pixel():
    features = tf.constant([[[1.0, 2], [2, 0]]])[..., None]
    with tf.GradientTape() as tape:
        tape.watch(features)
        result = roi_pool(features, [[0.0, 0, 1, 1]], [0], 1, 1.0)
    assert result.numpy().item() == 2
    np.testing.assert_array_equal(tape.gradient(result, features)[0, ..., 0], [[0, 1], [0, 0]])


def test_odd_boxes():
    features = tf.fill([1, 4, 4, 1], -3.0)
    boxes = [
        [2, 2, 2, 2],  # a point is one pixel
        [3, 3, 1, 1],  # inverted: its first corner
        [-9, -9, -5, -5],  # outside
        [np.nan, 0, 2, 2],
        [0, 0, np.inf, 2],
        [-1e8, -1e8, 1e8, 1e8],  # far larger than the map
    ]
    result = roi_pool(features, boxes, [0] * 6, 1, 1.0).numpy().ravel()
    np.testing.assert_array_equal(result, [-3, -3, 0, 0, 0, -3])


def test_no_boxes_and_sizes_known_late():
    @tf.function(
        input_signature=[
            tf.TensorSpec([None, None, None, 2], tf.float16),
            tf.TensorSpec([None, 4]),
            tf.TensorSpec([None]),
        ]
    )
    def run(features, boxes, indices):
        return roi_pool(features, boxes, indices, (2, 1), 0.5)

    features = np.ones((1, 5, 6, 2), np.float16)
    assert run(features, np.zeros((0, 4), np.float32), np.zeros(0, np.float32)).shape == (0, 2, 1, 2)
    result = run(features, np.float32([[0, 0, 6, 6]]), np.float32([0]))
    assert result.dtype == tf.float16
    np.testing.assert_array_equal(result, np.ones((1, 2, 1, 2)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": np.zeros((4, 4, 2), np.float32)}, r"features must be \[B, H, W, C\]"),
        ({"boxes": np.zeros((3, 5), np.float32)}, r"boxes must be \[N, 4\], got \(3, 5\)"),
        ({"output_size": (0, 7)}, "output_size must be a positive number"),
        ({"spatial_scale": -1.0}, "spatial_scale must be positive"),
    ],
)
def test_bad_arguments(change, message):
    good = {
        "features": np.zeros((1, 4, 4, 2), np.float32), "boxes": np.zeros((3, 4)), "box_indices": [0, 0, 0],
        "output_size": 7, "spatial_scale": 0.25,
    }  # fmt: skip
    with pytest.raises(ValueError, match=f"roi_pool: {message}"):
        roi_pool(**good | change)
