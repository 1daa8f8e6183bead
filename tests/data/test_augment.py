"""Deformations and grey values: the paper's elastic grid, resampling, mirrored borders."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_seg.data.augment import (
    NO_AUGMENTATION,
    Augmentation,
    elastic_displacement,
    random_coordinates,
    sample_bicubic,
    sample_nearest,
    vary_grey_values,
)

SEED = tf.constant([3, 7])


def only(**options):
    return Augmentation(**{**vars(NO_AUGMENTATION), **options})


def keys_cubic(t):
    t = abs(t)
    return 1.5 * t**3 - 2.5 * t**2 + 1 if t <= 1 else -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2 if t < 2 else 0


def grid(size):
    return np.stack(np.meshgrid(np.arange(size), np.arange(size), indexing="ij"), -1).astype(np.float32)


def test_elastic_displacement_is_bicubic_in_the_nodes():
    nodes = np.random.default_rng(0).normal(0, 10, (3, 3, 2)).astype(np.float32)
    size = 11
    found = elastic_displacement(tf.constant(nodes), size).numpy()
    for y, x in [(0, 0), (0, 10), (5, 5), (3, 8), (7, 1)]:
        v, u = 2 * y / (size - 1), 2 * x / (size - 1)
        expected = sum(
            keys_cubic(v - i) * keys_cubic(u - j) * nodes[min(max(i, 0), 2), min(max(j, 0), 2)]
            for i in range(-2, 5)
            for j in range(-2, 5)
        )
        np.testing.assert_allclose(found[y, x], expected, atol=1e-4)
    # the grid's nodes themselves: corners, middles of the sides, centre
    np.testing.assert_allclose(found[::5, ::5], nodes, atol=1e-5)


def test_node_displacements_have_ten_pixels_standard_deviation():
    size, options = 33, only(elastic_sigma=10.0)
    still = random_coordinates(size, size, size, SEED, NO_AUGMENTATION).numpy()
    nodes = [
        (random_coordinates(size, size, size, tf.constant([k, 0]), options).numpy() - still)[
            :: size // 2, :: size // 2
        ]
        for k in range(80)
    ]
    nodes = np.array(nodes)
    assert nodes.shape == (80, 3, 3, 2)
    assert nodes.std() == pytest.approx(10, rel=0.05)
    assert abs(nodes.mean()) < 1
    # nodes are independent of one another
    assert abs(np.corrcoef(nodes[:, 0, 0, 0], nodes[:, 1, 1, 0])[0, 1]) < 0.3


def test_without_augmentation_a_tile_is_the_centre_of_the_image():
    image = np.random.default_rng(0).uniform(0, 255, (30, 41, 2)).astype(np.float32)
    for size, (top, left) in {8: (11, 17), 9: (10, 16)}.items():
        coordinates = random_coordinates(30, 41, size, SEED, NO_AUGMENTATION)
        tile = sample_bicubic(tf.constant(image), coordinates).numpy()
        best = min(
            np.abs(tile - image[y : y + size, x : x + size]).max()
            for y in (top, top + 1)
            for x in (left - 1, left, left + 1)
        )
        assert best == 0


@settings(max_examples=20, deadline=None)
@given(height=st.integers(1, 12), width=st.integers(1, 12), y=st.integers(-40, 40), x=st.integers(-40, 40))
def test_borders_are_mirrored_like_numpy_reflect(height, width, y, x):
    image = np.random.default_rng(1).integers(0, 255, (height, width)).astype(np.int32)
    padded = np.pad(image, 45, mode="reflect") if min(height, width) > 1 else None
    if padded is None:  # NumPy refuses to reflect an axis of one pixel; it can only be repeated
        padded = np.pad(image, [(0, 0) if n == 1 else (45, 45) for n in image.shape], mode="reflect")
        padded = np.pad(padded, [(45, 45) if n == 1 else (0, 0) for n in image.shape], mode="edge")
    at = tf.constant([[[float(y), float(x)]]])
    assert sample_nearest(tf.constant(image), at).numpy()[0, 0] == padded[y + 45, x + 45]
    found = sample_bicubic(tf.constant(image[..., None].astype(np.float32)), at).numpy()[0, 0, 0]
    assert found == pytest.approx(padded[y + 45, x + 45], abs=1e-3)


def test_bicubic_sampling_between_pixels_by_hand():
    image = np.arange(6, dtype=np.float32)[None, :, None] ** 2 * np.ones((5, 1, 1), np.float32)
    found = sample_bicubic(tf.constant(image), tf.constant([[[2.0, 2.5]]])).numpy()[0, 0, 0]
    assert found == pytest.approx((-1 * 1 + 9 * 4 + 9 * 9 - 1 * 16) / 16)


def test_rotation_keeps_distances_and_turns_by_all_angles():
    angles = []
    for k in range(60):
        c = random_coordinates(50, 50, 21, tf.constant([k, 1]), only(rotation="any")).numpy()
        along = c[10, 20] - c[10, 10]
        np.testing.assert_allclose(np.linalg.norm(along), 10, atol=1e-3)
        np.testing.assert_allclose(c[10, 10], [24, 24], atol=0.51)
        angles.append(np.arctan2(*along))
    assert np.histogram(angles, bins=4, range=(-np.pi, np.pi))[0].min() >= 5


def test_right_angles_turn_whole_pixels_in_four_ways():
    image = tf.constant(np.random.default_rng(0).uniform(0, 255, (16, 16, 1)).astype(np.float32))
    turned = [np.rot90(image.numpy(), k) for k in range(4)]
    seen = set()
    for k in range(40):
        at = random_coordinates(17, 17, 16, tf.constant([k, 4]), only(rotation="right_angles"))
        tile = sample_bicubic(image, at - tf.reduce_min(at, (0, 1))).numpy()
        seen.add(next(n for n in range(4) if np.array_equal(tile, turned[n])))
    assert seen == {0, 1, 2, 3}


def test_flips_mirror_about_half_of_the_tiles():
    mirrored = [
        np.linalg.det([c[1, 0] - c[0, 0], c[0, 1] - c[0, 0]]) < 0
        for c in (
            random_coordinates(20, 20, 4, tf.constant([k, 2]), only(flips=True)).numpy() for k in range(100)
        )
    ]
    assert 30 < sum(mirrored) < 70


def test_shift_reaches_every_part_of_the_image():
    centres = np.array(
        [
            random_coordinates(40, 80, 5, tf.constant([k, 3]), only(shift=True)).numpy()[2, 2]
            for k in range(120)
        ]
    )
    assert centres.min() >= 0 and centres[:, 0].max() < 40 and centres[:, 1].max() < 80
    assert np.histogram2d(*centres.T, bins=2, range=[(0, 40), (0, 80)])[0].min() > 15
    np.testing.assert_array_equal(centres, np.round(centres))  # whole pixels: no blur from shifting alone


def test_scale_zooms_within_its_limits():
    zooms = [
        np.linalg.norm(c[0, 1] - c[0, 0])
        for c in (
            random_coordinates(20, 20, 4, tf.constant([k, 4]), only(scale=0.5)).numpy() for k in range(100)
        )
    ]
    assert 1 / 1.5 - 1e-3 <= min(zooms) < 0.8 and 1.2 < max(zooms) <= 1.5 + 1e-3


def test_image_and_label_move_together_and_labels_stay_labels():
    label = np.kron(np.random.default_rng(5).integers(0, 4, (6, 6)), np.ones((10, 10))).astype(np.int32)
    image = (label * 60).astype(np.float32)[..., None]
    coordinates = random_coordinates(60, 60, 48, tf.constant([1, 9]), Augmentation())
    moved_label = sample_nearest(tf.constant(label), coordinates).numpy()
    moved_image = sample_bicubic(tf.constant(image), coordinates).numpy()[..., 0]
    assert set(np.unique(moved_label)) <= {0, 1, 2, 3}
    # they differ only where interpolation mixes the two sides of an edge
    assert np.mean(np.abs(moved_image / 60 - moved_label) < 0.5) > 0.93


def test_grey_values_vary_within_their_limits():
    image = tf.constant(np.random.default_rng(0).uniform(60, 200, (16, 16, 1)).astype(np.float32))
    unchanged = vary_grey_values(image, SEED, NO_AUGMENTATION)
    np.testing.assert_array_equal(unchanged, image)
    shifts = [
        float(tf.reduce_mean(vary_grey_values(image, (k, 0), only(brightness=20.0)) - image))
        for k in range(50)
    ]
    assert -20 <= min(shifts) < -10 and 10 < max(shifts) <= 20
    ratios = [
        float(
            tf.math.reduce_std(vary_grey_values(image, (k, 0), only(contrast=0.2)))
            / tf.math.reduce_std(image)
        )
        for k in range(50)
    ]
    assert 0.79 < min(ratios) < 0.9 and 1.1 < max(ratios) < 1.21
    noisy = [vary_grey_values(image, (k, 0), only(noise=4.0)) - image for k in range(20)]
    assert 0 < max(float(tf.math.reduce_std(n)) for n in noisy) < 4.5
    for k in range(20):
        extreme = vary_grey_values(image, (k, 0), only(gamma=1.0, contrast=1.0, brightness=200.0)).numpy()
        assert extreme.min() >= 0 and extreme.max() <= 255
