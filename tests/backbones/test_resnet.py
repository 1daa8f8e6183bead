"""Backbones: sizes, strides, names, freezing and saving of every variant."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_seg.backbones import FrozenBatchNormalization, fpn, res5_head, resnet
from keras_seg.backbones.resnet import STAGES, VARIANTS, channels


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_has_four_maps(variant):
    width = 16 if variant.startswith("resnext") else 4
    model = resnet(variant, width=width, normalization="batch")
    shapes = [tuple(map_.shape) for map_ in model(tf.zeros([1, 64, 96, 3]))]
    expected = [
        (1, 64 // s, 96 // s, channels(variant, n, width))
        for n, s in zip(STAGES, (4, 8, 16, 32), strict=True)
    ]
    assert shapes == expected
    assert model.get_layer("res2_0_conv1_norm") and model.get_layer("res5_1_conv2")


@pytest.mark.parametrize("size", [(61, 75), (33, 34)])
def test_odd_sizes_are_rounded_up(size):
    maps = resnet("resnet18", width=2)(tf.zeros([1, *size, 3]))
    assert [map_.shape[1:3].as_list() for map_ in maps] == [
        [-(-side // s) for side in size] for s in (4, 8, 16, 32)
    ]


def test_dilation_keeps_the_stride_and_the_parameters():
    dilated, plain = (resnet("resnet18", width=2, outputs=["res5"], res5_dilation=d) for d in (2, 1))
    assert dilated(tf.zeros([1, 64, 64, 3])).shape == (1, 4, 4, 16)
    assert plain(tf.zeros([1, 64, 64, 3])).shape == (1, 2, 2, 16)
    assert [w.shape for w in dilated.weights] == [w.shape for w in plain.weights]


def test_the_stride_is_in_the_1x1_or_the_3x3():
    for in_1x1 in (True, False):
        model = resnet("resnet50", width=4, stride_in_1x1=in_1x1)
        strides = [model.get_layer(f"res3_0_conv{k}").strides for k in (1, 2)]
        assert strides == [(2, 2), (1, 1)][:: 1 if in_1x1 else -1]


def test_grouped_convolutions_have_gradients():
    model = resnet("resnext101_32x8d", width=16, outputs=["res2"], normalization="batch")
    assert model.get_layer("res2_0_conv2").kernel.shape == (3, 3, 2, 64)
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(model(tf.random.normal([1, 32, 32, 3]), training=True) ** 2)
    gradients = tape.gradient(loss, model.trainable_variables)
    assert all(g is not None and bool(tf.reduce_all(tf.math.is_finite(g))) for g in gradients)


def test_frozen_normalisation_is_batch_normalisation_at_rest():
    random = np.random.default_rng(0)
    x = tf.constant(random.normal(size=(2, 3, 3, 5)), tf.float32)
    frozen, plain = FrozenBatchNormalization(1e-3), keras.layers.BatchNormalization(epsilon=1e-3)
    frozen(x), plain(x)
    values = [random.uniform(0.5, 2, 5) for _ in range(4)]
    frozen.set_weights(values)
    plain.set_weights(values)
    np.testing.assert_allclose(frozen(x), plain(x), rtol=1e-4, atol=1e-5)
    assert not frozen.trainable_weights and len(frozen.weights) == 4


def test_saved_and_loaded_and_frozen_by_part(tmp_path):
    model = resnet("resnet18", width=2)
    model.save(tmp_path / "backbone.keras")
    loaded = keras.models.load_model(tmp_path / "backbone.keras")
    image = tf.random.normal([1, 32, 32, 3])
    for a, b in zip(model(image), loaded(image), strict=True):
        np.testing.assert_array_equal(a, b)
    count = len(model.trainable_weights)
    model.get_layer("stem_conv1").trainable = False
    assert len(model.trainable_weights) == count - 1


def test_the_last_stage_as_a_head():
    head = res5_head("resnet50", width=4)
    assert head(tf.zeros([3, 14, 14, 64])).shape == (3, 7, 7, 128)
    assert {"res5_0_conv1", "res5_2_conv3_norm"} <= {layer.name for layer in head.layers}


def test_mixed_precision():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        maps = resnet("resnet18", width=2)(tf.zeros([1, 32, 32, 3]))
    finally:
        keras.config.set_dtype_policy("float32")
    assert {map_.dtype for map_ in maps} == {tf.bfloat16}


@pytest.mark.parametrize(
    ("padding", "padded"),
    [("symmetric", {"stem_conv1_pad", "stem_pad"}), ("same_pool", {"stem_conv1_pad"}), ("same", set())],
)
def test_padding(padding, padded):
    """What TensorFlow itself pads, the layer does (tests/weights compare the numbers)."""
    model = resnet("resnet18", width=2, outputs=["res2"], padding=padding)
    assert {layer.name for layer in model.layers if layer.name.endswith("_pad")} == padded
    assert model(tf.zeros([1, 64, 96, 3])).shape == (1, 16, 24, 2)
    with pytest.raises(
        ValueError, match="padding must be one of 'symmetric', 'same', 'same_pool', got 'valid'"
    ):
        resnet("resnet18", padding="valid")


def test_the_top_of_the_pyramid():
    model = fpn([8, 16], 12, top="conv")
    found = model([tf.random.normal([1, 6, 10, 8]), tf.random.normal([1, 3, 5, 16])])
    assert [map_.shape for map_ in found] == [(1, 6, 10, 12), (1, 3, 5, 12), (1, 2, 3, 12)]
    assert {layer.name for layer in model.layers} >= {"fpn_output4", "fpn_top4"}
    with pytest.raises(ValueError, match="fpn_top must be one of 'pool', 'conv', got 'max'"):
        fpn([8, 16], top="max")


def test_the_pyramid():
    for norm in (None, "batch"):
        model = fpn([8, 16, 32, 64], 12, normalization=norm)
        maps = [tf.random.normal([1, 32 // s, 64 // s, c]) for s, c in ((1, 8), (2, 16), (4, 32), (8, 64))]
        found = model(maps)
        assert [m.shape.as_list() for m in found] == [[1, 32 // s, 64 // s, 12] for s in (1, 2, 4, 8, 16)]
        np.testing.assert_array_equal(found[4], found[3][:, ::2, ::2])
        assert model.get_layer("fpn_lateral5").use_bias == (norm is None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"variant": "resnet51"}, "backbone must be one of resnet18, .*got 'resnet51'"),
        ({"outputs": ["res6"]}, "outputs must be some of res2, res3, res4, res5, got"),
        ({"outputs": []}, "outputs must be some of"),
        ({"normalization": "layer"}, "normalization must be one of 'frozen', 'batch', 'group', got 'layer'"),
        ({"res5_dilation": 3}, "res5_dilation must be 1 or 2, got 3"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        resnet(**{"variant": "resnet18", "width": 2, **arguments})
