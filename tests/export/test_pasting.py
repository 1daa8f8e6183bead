"""Masks pasted in the graph are those of `keras_seg.ops.masks.paste`."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_seg.export.pasting import paste, to_bits
from keras_seg.ops import masks as mask_ops

SPECS = [
    tf.TensorSpec([None, 3, 7, 7]),
    tf.TensorSpec([None, 3, 4]),
    tf.TensorSpec([None], tf.int32),
    tf.TensorSpec([None, 2], tf.int32),
]
in_graph = {
    (function, convention): tf.function(
        lambda *given, f=function, c=convention: f(*given, c), input_signature=SPECS, autograph=False
    )
    for function in (paste, to_bits)
    for convention in mask_ops.CONVENTIONS
}
# of which some lie outside, have no extent or are inverted
corners = st.floats(-20, 60, width=32)


@pytest.mark.parametrize("convention", mask_ops.CONVENTIONS)
@settings(deadline=None, max_examples=60)
@given(
    boxes=st.lists(st.lists(corners, min_size=4, max_size=4), min_size=6, max_size=6),
    sizes=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=2, max_size=2),
    counts=st.lists(st.integers(0, 3), min_size=2, max_size=2),
    seed=st.integers(0, 99),
)
def test_masks(convention, boxes, sizes, counts, seed):
    masks = np.random.default_rng(seed).uniform(0, 1, (2, 3, 7, 7)).astype(np.float32)
    boxes = np.array(boxes, np.float32).reshape(2, 3, 4)
    pasted, bits = (in_graph[f, convention](masks, boxes, counts, sizes).numpy() for f in (paste, to_bits))
    height, width = np.max(sizes, 0)
    assert pasted.shape == (2, 3, height, width)
    assert bits.shape == (2, 3, max(-(-h * w // 8) for h, w in sizes))
    for image, ((h, w), count) in enumerate(zip(sizes, counts, strict=True)):
        expected = np.zeros((3, height, width), bool)
        expected[:count, :h, :w] = mask_ops.paste(
            masks[image, :count], boxes[image, :count], (h, w), convention=convention
        )
        # a probability at the threshold itself may fall on either side
        assert (pasted[image] != expected).sum() <= 1
        unpacked = np.unpackbits(bits[image], axis=-1)
        in_columns = pasted[image, :, :h, :w].transpose(0, 2, 1).reshape(3, -1)
        np.testing.assert_array_equal(unpacked[:, : h * w], in_columns)
        assert not unpacked[:, h * w :].any()
