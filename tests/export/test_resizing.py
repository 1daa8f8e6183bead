"""Resizing in the graph gives the very numbers of `keras_seg.data.resize`."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import example, given, settings
from hypothesis import strategies as st

from keras_seg.data.resize import resize, shortest_edge_size
from keras_seg.export import resizing

CONVENTIONS = ("detectron2", "torchvision")
SIDE = tf.TensorSpec([], tf.int32)
IMAGES = tf.TensorSpec([None, None, None, 3], tf.uint8)
sides = st.integers(1, 90)
in_graph = {
    convention: tf.function(
        lambda images, height, width, c=convention: resizing.resize(images, (height, width), c),
        input_signature=[IMAGES, SIDE, SIDE],
        autograph=False,
    )
    for convention in CONVENTIONS
}


@pytest.mark.parametrize("convention", CONVENTIONS)
@settings(deadline=None, max_examples=60)
@given(height=sides, width=sides, new_height=sides, new_width=sides, seed=st.integers(0, 9))
@example(height=90, width=40, new_height=20, new_width=30, seed=0)  # the height first, in Pillow
@example(height=1, width=90, new_height=90, new_width=1, seed=0)
def test_pixels(convention, height, width, new_height, new_width, seed):
    images = np.random.default_rng(seed).integers(0, 256, (2, height, width, 3), np.uint8)
    expected = [resize(image, (new_height, new_width), convention) for image in images]
    np.testing.assert_array_equal(in_graph[convention](images, new_height, new_width), expected)


def test_a_photograph(shared):
    from PIL import Image

    image = np.asarray(Image.open(shared / "golden/images/coco_000000000785.png").convert("RGB"))
    for convention in CONVENTIONS:
        size = shortest_edge_size(*image.shape[:2], 800, 1333, convention)
        expected = resize(image, size, convention)
        np.testing.assert_array_equal(in_graph[convention](image[None], *size)[0], expected)


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("short_side, max_side", [(800, 1333), (320, 533), (64, 64)])
def test_sizes(convention, short_side, max_side):
    size = tf.function(
        lambda height, width: resizing.resized_size(
            height, width, short_side=short_side, max_side=max_side, convention=convention
        ),
        input_signature=[SIDE, SIDE],
        autograph=False,
    )
    random = np.random.default_rng(0)
    for height, width in [(1, 5000), (800, 800), (533, 320), *random.integers(1, 3000, (300, 2)).tolist()]:
        expected = shortest_edge_size(height, width, short_side, max_side, convention)
        assert tuple(map(int, size(height, width))) == expected, (height, width)


@pytest.mark.parametrize("scale", [1.5, 0.25, 2.0, 0.001])
def test_scaled_sizes(scale):
    size = tf.function(
        lambda height, width: resizing.resized_size(height, width, short_side=1, max_side=1, scale=scale),
        input_signature=[SIDE, SIDE],
        autograph=False,
    )
    for height, width in ((1, 3), (5, 255), (10, 30)):  # some of whose products end in a half
        expected = max(1, round(height * scale)), max(1, round(width * scale))
        assert tuple(map(int, size(height, width))) == expected
