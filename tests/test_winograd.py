"""Convolutions computed by Winograd's filtering give what direct ones give."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_seg import winograd

# Of outputs of about 6: float32 rounding.
TOLERANCE = 2e-5
SEVENS = 1e-3  # blocks of 7, which only bfloat16 uses


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def direct(x: np.ndarray, kernel: np.ndarray, padding: str) -> np.ndarray:
    return tf.nn.conv2d(x.astype(np.float64), kernel.astype(np.float64), 1, padding.upper()).numpy()


@functools.cache
def traced(padding: str):
    """`convolve` for all sizes."""
    signature = [tf.TensorSpec([None, None, None, 3]), tf.TensorSpec([3, 3, 3, 5])]
    return tf.function(
        lambda x, kernel: winograd.convolve(x, kernel, padding=padding), signature, autograph=False
    )


def test_a_tile_worked_by_hand():
    # one channel, all ones: each of the four by four outputs is the sum of the kernel
    kernel = np.arange(9, dtype=np.float32).reshape(3, 3, 1, 1)
    np.testing.assert_allclose(
        winograd.convolve(tf.ones([1, 6, 6, 1]), kernel, padding="valid"),
        np.full((1, 4, 4, 1), 36),
        rtol=1e-6,
    )


@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 3), height=st.integers(3, 20), width=st.integers(3, 20), padding=st.sampled_from(["valid", "same"])
)  # fmt: skip
def test_every_size(batch, height, width, padding):
    x, kernel = numbers(batch, height, width, 3), numbers(3, 3, 3, 5, seed=1) / 5
    found = traced(padding)(x, kernel)
    np.testing.assert_allclose(found, direct(x, kernel, padding), atol=TOLERANCE)


@pytest.mark.parametrize("padding", ["valid", "same"])
def test_many_bands_are_one(padding, monkeypatch):
    x, kernel = numbers(2, 30, 21, 4), numbers(3, 3, 4, 5, seed=1) / 6
    monkeypatch.setattr(winograd, "BAND", 1)
    monkeypatch.setattr(winograd, "FEWEST", 1)  # a row of tiles each
    call = tf.function(lambda x: winograd.convolve(x, kernel, padding=padding))
    np.testing.assert_allclose(call(x), direct(x, kernel, padding), atol=TOLERANCE)


def test_many_channels_bias_and_activation():
    x, kernel, bias = (
        np.maximum(numbers(1, 12, 12, 512), 0),
        numbers(3, 3, 512, 64, seed=1) / 48,
        numbers(64, seed=2),
    )
    found = winograd.convolve(x, kernel, bias, padding="same", activation=tf.nn.relu)
    expected = np.maximum(direct(x, kernel, "same") + bias, 0)
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)
    # and no worse than twice what float32 costs a direct convolution that adds one product after the other (with the usual
    # points it would be worse); a library's own, which groups them for each processor in another way, may cost less
    products = (x[0, 5:8, 5:8, :, None] * kernel).reshape(-1, 64)
    one_by_one = np.add.accumulate(products)[-1] - products.sum(0, dtype=np.float64)
    error = (found - expected)[expected > 0]
    assert np.sqrt(np.mean(error**2)) < 2 * np.sqrt(np.mean(one_by_one**2))


def test_an_empty_batch():
    assert winograd.convolve(tf.zeros([0, 8, 8, 2]), tf.zeros([3, 3, 2, 7]), padding="same").shape == (
        0,
        8,
        8,
        7,
    )


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("size", [(14, 14), (9, 25), (3, 3)])
def test_blocks_of_seven(padding, size):
    x, kernel = numbers(2, *size, 32), numbers(3, 3, 32, 8, seed=1) / 17
    expected = direct(x, kernel, padding)
    found = winograd.convolve(x, kernel, padding=padding, block=7)
    np.testing.assert_allclose(found, expected, atol=SEVENS)
    # maps in bfloat16, all between in float32: one rounding of the result
    x = tf.cast(x, tf.bfloat16)
    found = winograd.convolve(x, kernel, padding=padding, block=7)
    assert found.dtype == tf.bfloat16
    expected = direct(tf.cast(x, tf.float32).numpy(), kernel, padding)
    np.testing.assert_allclose(tf.cast(found, tf.float32), expected, rtol=2**-8, atol=SEVENS)
