"""Statistics of averaged weights."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_seg.models import unet
from keras_seg.training.normalization import reestimate


def test_statistics_are_means_over_batches():
    inputs = keras.Input((None, None, 2))
    norm = keras.layers.BatchNormalization(momentum=0.9)
    model = keras.Model(inputs, norm(inputs))
    batches = [np.random.default_rng(k).normal(k, 1 + k, (2, 5, 5, 2)).astype(np.float32) for k in range(3)]
    reestimate(model, map(tf.constant, batches))
    np.testing.assert_allclose(norm.moving_mean, np.mean([b.mean((0, 1, 2)) for b in batches], 0), rtol=1e-5)
    np.testing.assert_allclose(
        norm.moving_variance, np.mean([b.var((0, 1, 2)) for b in batches], 0), rtol=1e-5
    )
    assert norm.momentum == 0.9


def test_inference_then_equals_training_mode_on_the_same_batch():
    model = unet(depth=1, base_channels=4, padding="same", normalization="batch", dropout=0.0)
    batch = tf.random.stateless_uniform([2, 16, 16, 1], [1, 2], 0, 255)
    before = model(batch)
    reestimate(model, [batch])
    np.testing.assert_allclose(model(batch), model(batch, training=True), atol=1e-5)
    assert np.abs(model(batch) - before).max() > 1e-3


def test_nothing_is_dropped_out_meanwhile():
    dropping = unet(depth=1, base_channels=4, padding="same", normalization="batch", dropout=0.5)
    whole = unet(depth=1, base_channels=4, padding="same", normalization="batch", dropout=0.0)
    whole.set_weights(dropping.get_weights())
    batch = tf.random.stateless_uniform([2, 16, 16, 1], [1, 2], 0, 255)
    for model in (dropping, whole):
        reestimate(model, [batch])
    for one, other in zip(dropping.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert {layer.rate for layer in dropping.layers if isinstance(layer, keras.layers.Dropout)} == {0.5}


def test_without_images_or_without_normalisation():
    with pytest.raises(ValueError, match="no images to take statistics from"):
        reestimate(unet(depth=1, base_channels=4, padding="same", normalization="batch"), [])
    reestimate(unet(depth=1, base_channels=4, padding="same"), [])  # nothing to do
