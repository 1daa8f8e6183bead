"""Mask targets of a training step: those of `ops.masks`, which are Detectron2's."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_seg.ops import masks
from keras_seg.ops.mask_targets import polygon_targets, window_targets


def in_windows(bitmaps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """bool [B, G, H, W] as pixels uint8 [B, L] and windows int32 [B, G, 5], each as tight as it can be."""
    batch, objects = bitmaps.shape[:2]
    windows, rows = np.zeros((batch, objects, 5), np.int32), []
    for image in range(batch):
        parts, start = [np.zeros(0, bool)], 0
        for entry, bitmap in enumerate(bitmaps[image]):
            y, x = np.nonzero(bitmap)
            if len(y):
                part = bitmap[y.min() : y.max() + 1, x.min() : x.max() + 1]
                windows[image, entry] = start, y.min(), x.min(), *part.shape
                parts.append(part.ravel())
                start += part.size
        rows.append(np.concatenate(parts))
    longest = max(map(len, rows))
    return np.stack([np.pad(row, (0, longest - len(row))) for row in rows]).astype(np.uint8), windows


@pytest.mark.parametrize("m", [14, 28])
def test_bitmaps_are_detectron2s(shared, m):
    golden = np.load(shared / "golden/ops/mask_targets_bitmask.npz")
    height, width = golden["image_size"]
    bitmaps = np.unpackbits(golden["bitmasks_packed"], axis=1)[:, : height * width].reshape(-1, height, width)
    pixels, windows = in_windows(bitmaps[None].astype(bool))
    boxes, objects = golden["boxes"], golden["box_instance"].astype(np.int32)
    shares = tf.function(window_targets)(
        pixels, windows, boxes, np.zeros_like(objects), objects, np.array([[height, width]], np.float32), m
    )
    expected = np.unpackbits(golden[f"mask_targets_{m}"], axis=1)[:, : m * m].reshape(-1, m, m)
    np.testing.assert_array_equal(shares.numpy() >= 0.5, expected)


@pytest.mark.parametrize("m", [14, 28])
def test_polygons_are_detectron2s(shared, m):
    golden = np.load(shared / "golden/ops/mask_targets_polygon.npz")
    points = golden["polygon_values"].reshape(1, -1, 2)
    lengths = np.diff(golden["polygon_splits"])[None] // 2
    owners, boxes = golden["polygon_instance"][None], golden["boxes"]
    objects = golden["box_instance"].astype(np.int32)
    images = np.zeros_like(objects)
    drawn = tf.function(polygon_targets)(points, lengths, owners, boxes, images, objects, m)
    expected = np.unpackbits(golden[f"mask_targets_{m}"], axis=1)[:, : m * m].reshape(-1, m, m)
    np.testing.assert_array_equal(drawn, expected)
    assert not np.any(polygon_targets(points, lengths, owners, boxes[:2], images[:2], np.full(2, -1), m))


compiled = tf.function(window_targets, reduce_retracing=True)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(masks.CONVENTIONS))
def test_windows_say_what_full_bitmaps_say(seed, convention):
    random = np.random.default_rng(seed)
    height, width, objects, number = *random.integers(1, 50, 2), random.integers(1, 4), random.integers(0, 9)
    bitmaps = np.zeros((2, objects, height, width), bool)
    for bitmap in bitmaps.reshape(-1, height, width):
        y, x = np.sort(random.integers(0, height + 1, 2)), np.sort(random.integers(0, width + 1, 2))
        bitmap[y[0] : y[1], x[0] : x[1]] = random.random((y[1] - y[0], x[1] - x[0])) < 0.7
    boxes = random.uniform(-10, 60, (number, 4))
    boxes[: number // 2] = np.round(boxes[: number // 2])  # where samples fall on pixels' borders
    boxes = boxes.astype(np.float32)
    images, which = random.integers(0, 2, number), random.integers(0, objects, number)
    size = np.array([[height, width]] * 2, np.float32)
    arguments = boxes, images.astype(np.int32), which.astype(np.int32), size
    found = compiled(*map(tf.constant, (*in_windows(bitmaps), *arguments)), 7, convention)
    expected = np.zeros((number, 7, 7), np.float32)
    for row, image, entry, box in zip(range(number), images, which, boxes, strict=True):
        full = masks.bitmask_targets_soft(bitmaps[image, entry][None], box[None], 7, convention=convention)
        expected[row] = full[0]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_region_without_an_object_is_empty():
    pixels, windows = in_windows(np.ones((1, 1, 8, 8), bool))
    size, boxes = np.array([[8.0, 8]], np.float32), np.array([[0, 0, 8, 8], [np.nan, 0, 8, 8]], np.float32)
    found = window_targets(
        pixels, windows, np.tile(boxes, (2, 1)), [0, 0, 0, 0], np.array([0, 0, -1, -1]), size, 4
    )
    np.testing.assert_array_equal(found.numpy().mean((1, 2)), [1, 0, 0, 0])
    assert window_targets(pixels, windows, np.zeros((0, 4), np.float32), [], [], size, 4).shape == (0, 4, 4)


def test_wrong_arguments_are_named():
    pixels, windows = in_windows(np.ones((1, 1, 8, 8), bool))
    boxes, size = np.array([[0, 0, 8, 8]], np.float32), np.array([[8.0, 8]], np.float32)
    with pytest.raises(ValueError, match="convention must be one of 'detectron2', 'torchvision', got 'coco'"):
        window_targets(pixels, windows, boxes, [0], [0], size, 4, "coco")
    points, lengths = np.array([[[0.0, 0], [8, 8]]]), np.array([[2]])
    with pytest.raises(tf.errors.InvalidArgumentError, match="at least 3 points"):
        tf.function(polygon_targets)(points, lengths, np.array([[0]]), boxes, np.array([0]), np.array([0]), 4)
