"""Heads: shapes, kinds and types."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_seg.heads import box_head, box_predictor, keypoint_head, mask_head, rpn_head


@pytest.mark.parametrize("convs", [1, 2])
def test_the_proposal_head(convs):
    head = rpn_head(8, 3, convs=convs)
    logits, deltas = head(tf.zeros([2, 5, 7, 8]))
    assert logits.shape == (2, 5, 7, 3) and deltas.shape == (2, 5, 7, 12)
    assert [layer.name for layer in head.layers[1 : 1 + convs]] == (
        ["conv"] if convs == 1 else ["conv0", "conv1"]
    )


@pytest.mark.parametrize("convs", [1, 2])
def test_a_proposal_head_for_each_level(convs):
    head = rpn_head(8, 3, convs=convs, channels=5, levels=(2, 3))
    maps = [tf.random.normal([1, side, side, 8]) for side in (4, 2)]
    logits, deltas = head(maps)
    assert [map_.shape for map_ in [*logits, *deltas]] == [
        (1, side, side, outputs) for outputs in (3, 12) for side in (4, 2)
    ]
    first = "conv" if convs == 1 else "conv0"
    assert head.get_layer(f"{first}_p3").kernel.shape == (3, 3, 8, 5)
    head.get_layer(f"{first}_p3").kernel.assign(tf.zeros([3, 3, 8, 5]))
    again, _ = head(maps)
    np.testing.assert_array_equal(again[0], logits[0])
    assert np.any(again[1] != logits[1])


@pytest.mark.parametrize(("kind", "dense"), [("fc", 2), ("conv_fc", 1)])
def test_box_heads(kind, dense):
    head = box_head(6, kind=kind, channels=10)
    assert head(tf.zeros([4, 7, 7, 6])).shape == (4, 10)
    assert sum(isinstance(layer, keras.layers.Dense) for layer in head.layers) == dense
    for agnostic, columns in ((False, 20), (True, 4)):
        logits, deltas = box_predictor(10, 5, class_agnostic=agnostic)(tf.zeros([4, 10]))
        assert logits.shape == (4, 6) and deltas.shape == (4, columns)


@pytest.mark.parametrize(
    ("kind", "side"), [("conv", 14), ("conv_norm", 14), ("deconv", 7), ("mlp2", 14), ("mlp3", 14)]
)
def test_mask_heads(kind, side):
    head = mask_head(6, 3, kind=kind, side=side, channels=8)
    assert head(tf.zeros([2, side, side, 6])).shape == (2, 2 * side, 2 * side, 3)


def test_the_keypoint_head(tmp_path):
    head = keypoint_head(4, 3, channels=5, convs=2)
    x = tf.random.normal([2, 14, 14, 4])
    assert head(x).shape == (2, 56, 56, 3)
    head.save(tmp_path / "head.keras")
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "head.keras")(x), head(x))


def test_logits_are_float32_under_mixed_precision():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        heads = rpn_head(4, 3), mask_head(4, 2, side=7, channels=4), keypoint_head(4, 2, channels=4, convs=1)
        outputs = [
            *heads[0](tf.zeros([1, 7, 7, 4])),
            heads[1](tf.zeros([1, 7, 7, 4])),
            heads[2](tf.zeros([1, 14, 14, 4])),
        ]
    finally:
        keras.config.set_dtype_policy("float32")
    assert {output.dtype for output in outputs} == {tf.float32}


def test_unknown_kinds_are_named():
    with pytest.raises(ValueError, match="box_head must be one of 'fc', 'conv_fc', got 'mlp'"):
        box_head(4, kind="mlp")
    with pytest.raises(ValueError, match="mask_head must be one of 'conv', .*got 'fc'"):
        mask_head(4, 2, kind="fc")
