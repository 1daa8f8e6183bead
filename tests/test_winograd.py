"""Convolutions computed by Winograd's filtering give what the layers give."""

from __future__ import annotations

import gc
import weakref

import keras
import numpy as np
import pytest

from keras_seg.models import unet
from keras_seg.winograd import Winograd, with_winograd


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("normalization", [None, "batch"])
def test_same_probabilities(padding: str, normalization: str | None) -> None:
    model = unet(depth=2, base_channels=64, padding=padding, normalization=normalization)
    fast, _ = with_winograd(model)
    cut = [layer.name for layer in fast.layers if isinstance(layer, Winograd)]
    assert cut == ["bottom_conv1", "bottom_conv2"]  # those with 256 channels
    image = np.random.default_rng(0).uniform(0, 255, (1, 60, 76, 1)).astype(np.float32)
    np.testing.assert_allclose(fast(image), model(image), atol=2e-5)


def test_refresh_takes_over_changed_weights() -> None:
    model = unet(depth=1, base_channels=128, padding="same")
    fast, refresh = with_winograd(model)
    image = np.random.default_rng(0).uniform(0, 255, (1, 16, 16, 1)).astype(np.float32)
    before = np.asarray(fast(image))
    kernel = model.get_layer("bottom_conv2").kernel
    kernel.assign(np.random.default_rng(1).normal(0, 0.03, kernel.shape))
    refresh()
    after = np.asarray(fast(image))
    assert np.abs(after - before).max() > 1e-3
    np.testing.assert_allclose(after, model(image), atol=2e-5)


def test_other_convolutions_are_left_alone() -> None:
    x = image = keras.Input((None, None, 2))
    for options in (
        {"filters": 300},
        {"filters": 256, "groups": 2},
        {"filters": 256, "dilation_rate": 2},
        {"filters": 256, "strides": 2},
    ):
        x = keras.layers.Conv2D(kernel_size=3, **options)(x)
    assert not any(isinstance(layer, Winograd) for layer in with_winograd(keras.Model(image, x))[0].layers)


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("height", [5, 6, 7, 8, 9])
def test_every_number_of_rows(padding: str, height: int) -> None:
    image = keras.Input((None, None, 3))
    convolution = keras.layers.Conv2D(256, 3, padding=padding, activation="relu", use_bias=False)
    model = keras.Model(image, convolution(image))
    x = np.random.default_rng(0).normal(size=(2, height, 7, 3)).astype(np.float32)
    fast, _ = with_winograd(model)
    assert isinstance(fast.layers[-1], Winograd)
    np.testing.assert_allclose(fast(x), model(x), atol=2e-5)


def test_model_is_not_kept_alive() -> None:
    model = unet(depth=1, base_channels=4)
    alive, (fast, _) = weakref.ref(model), with_winograd(model)
    del model
    gc.collect()
    assert alive() is None and fast.output_shape[-1] == 2
