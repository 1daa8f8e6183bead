"""The pipeline of training tiles: shapes, reproducibility, resuming, what is refused."""

import numpy as np
import pytest

from keras_seg.data.augment import Augmentation
from keras_seg.data.sample import Sample
from keras_seg.data.tiles import tile_dataset


def sample(height=60, width=72, channels=1, seed=0, name="a.tif"):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, (height, width)).astype(np.int32)
    image = np.repeat(label[..., None] * 100.0 + seed, channels, -1).astype(np.float32)
    weight = rng.uniform(0, 1, (height, width)).astype(np.float32)
    return Sample(name=name, image=image, label=label, weight=weight, instances=label)


def take(dataset, count):
    return [{k: v.numpy() for k, v in batch.items()} for batch in dataset.take(count)]


def assert_same(first, second):
    for a, b in zip(first, second, strict=True):
        for key in a:
            np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def test_shapes_types_and_values():
    samples = [sample(seed=k, channels=3) for k in range(3)]
    (batch,) = take(tile_dataset(samples, tile=48, output_tile=32, batch_size=2), 1)
    assert {k: (v.shape, v.dtype.name) for k, v in batch.items()} == {
        "image": ((2, 48, 48, 3), "float32"),
        "label": ((2, 32, 32), "int32"),
        "weight": ((2, 32, 32), "float32"),
        "sample": ((2,), "int32"),
    }
    assert set(np.unique(batch["label"])) <= {-1, 0, 1}


def test_the_label_is_the_centre_of_the_image_tile():
    options = Augmentation(elastic_sigma=0, rotation="none", brightness=0, contrast=0)
    for batch in take(tile_dataset([sample()], tile=20, output_tile=12, augment=options), 5):
        np.testing.assert_allclose(batch["image"][:, 4:-4, 4:-4, 0], batch["label"] * 100.0, atol=1e-3)


@pytest.mark.parametrize("interpolation", ["bicubic", "nearest"])
def test_the_nearest_pixel_keeps_grey_values_under_elastic_deformation(interpolation):
    options = Augmentation(elastic_sigma=10, brightness=0, contrast=0, interpolation=interpolation)
    (batch,) = take(tile_dataset([sample()], tile=48, batch_size=4, augment=options), 1)
    kept = np.isin(batch["image"], sample().image)
    if interpolation == "nearest":
        assert kept.all()
        np.testing.assert_array_equal(batch["image"][..., 0], batch["label"] * 100.0)
    else:
        assert kept.mean() < 0.9


def test_the_same_seed_gives_the_same_tiles_whatever_the_parallelism():
    samples = [sample(seed=k) for k in range(4)]
    first = take(tile_dataset(samples, tile=24, batch_size=3, seed=5, parallel=1), 6)
    assert_same(first, take(tile_dataset(samples, tile=24, batch_size=3, seed=5, parallel=4), 6))
    other = take(tile_dataset(samples, tile=24, batch_size=3, seed=6), 1)
    assert np.any(first[0]["image"] != other[0]["image"])
    assert np.any(first[0]["image"] != first[1]["image"])


def test_start_resumes_in_the_middle():
    samples = [sample(seed=k) for k in range(3)]
    whole = take(tile_dataset(samples, tile=24, batch_size=2), 7)
    assert_same(whole[4:], take(tile_dataset(samples, tile=24, batch_size=2, start=4), 3))


def test_every_pass_sees_every_image_once_in_a_new_order():
    samples = [sample(seed=k) for k in range(7)]
    order = [int(batch["sample"][0]) for batch in take(tile_dataset(samples, tile=24), 21)]
    passes = [order[k : k + 7] for k in (0, 7, 14)]
    assert all(sorted(p) == list(range(7)) for p in passes)
    assert passes[0] != passes[1] or passes[1] != passes[2]


def test_one_pass_ends():
    samples = [sample(seed=k) for k in range(5)]
    batches = take(tile_dataset(samples, tile=24, batch_size=2, repeat=False, augment=False), 99)
    assert [len(batch["label"]) for batch in batches] == [2, 2, 1]


def test_images_of_different_sizes_mix():
    samples = [sample(30, 50), sample(80, 26, seed=1)]
    (batch,) = take(tile_dataset(samples, tile=24, batch_size=4), 1)
    assert batch["image"].shape == (4, 24, 24, 1)


@pytest.mark.parametrize(
    ("samples", "options", "message"),
    [
        ([], {"tile": 8}, "no samples"),
        ([sample(20, 90, name="b.png")], {"tile": 32}, r"b.png: 20x90 pixels, smaller than .* \(32x32\)"),
        ([sample(), sample(channels=3, name="c.png")], {"tile": 8}, "c.png: 3 channels, but a.tif has 1"),
        ([sample()], {"tile": 20, "output_tile": 13}, "even number of pixels, got 13 and 20"),
        ([sample()], {"tile": 20, "output_tile": 22}, "at most tile"),
        ([sample()], {"tile": 8, "batch_size": 0}, "must be positive, got 0 and 8"),
    ],
)
def test_what_cannot_be_tiled_is_refused(samples, options, message):
    with pytest.raises(ValueError, match=message):
        tile_dataset(samples, **options)
