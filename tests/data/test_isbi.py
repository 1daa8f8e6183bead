"""ISBI stacks: the real one, and small ones with something wrong."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile
from scipy import ndimage

import keras_seg.data
from keras_seg.data.isbi import isbi, read
from keras_seg.losses import weight_map

RNG = np.random.default_rng(0)
VOLUME = RNG.integers(0, 256, (3, 40, 48), dtype=np.uint8)
LABELS = np.full((3, 40, 48), 255, np.uint8)
LABELS[:, :, 20:23] = 0  # a membrane between two cells


def write(folder, volume=VOLUME, labels=LABELS):
    tifffile.imwrite(folder / "volume.tif", volume, photometric="minisblack")
    tifffile.imwrite(folder / "labels.tif", labels, photometric="minisblack")
    return folder / "volume.tif", folder / "labels.tif"


def test_the_function_wins_over_the_module_name():
    assert keras_seg.data.isbi is isbi


def test_real_slices(shared):
    folder = shared / "data" / "isbi2012"
    samples = read(folder / "train-volume.tif", folder / "train-labels.tif", slices=[3, 24])
    volume, labels = (
        tifffile.imread(folder / "train-volume.tif"),
        tifffile.imread(folder / "train-labels.tif"),
    )
    assert [sample.name.split()[-1] for sample in samples] == ["3", "24"]
    for sample, index in zip(samples, (3, 24), strict=True):
        np.testing.assert_array_equal(sample.image[..., 0], volume[index])
        np.testing.assert_array_equal(sample.label, labels[index] == 255)
        np.testing.assert_array_equal(sample.instances, ndimage.label(labels[index] == 255)[0])
        assert sample.weight.min() > 0 and sample.weight[sample.label == 0].max() > 5


def test_small_stack_by_hand(tmp_path):
    (sample,) = read(*write(tmp_path), slices=range(1, 2), w0=10, sigma=5)
    assert sample.image.shape == (40, 48, 1) and sample.image.dtype == np.float32
    assert sample.instances[0, 0] != sample.instances[0, 47] and sample.instances[0, 21] == 0
    # The middle of the 3-pixel membrane is 2 pixels from both cells; w_c balances 120 and 1800 pixels.
    assert sample.weight[7, 21] == pytest.approx(10 * np.exp(-(4**2) / 50) + 1920 / (2 * 120), rel=1e-5)
    np.testing.assert_array_equal(sample.weight, weight_map(sample.instances))


def test_labels_of_0_and_1_and_given_class_weights(tmp_path):
    volume, labels = write(tmp_path, labels=LABELS // 255)
    (first, *_) = read(volume, labels, class_weights=(3, 1), w0=0)
    assert np.unique(first.weight[first.label == 0]).tolist() == [3]
    assert np.unique(first.weight[first.label == 1]).tolist() == [1]


def test_the_edges_of_membranes_can_weigh_less(tmp_path):
    volume, labels = write(tmp_path)
    whole = read(volume, labels, slices=[0])[0].weight
    lighter = read(volume, labels, slices=[0], membrane_edge_weight=0.25)[0].weight
    factor = np.ones((40, 48))
    factor[:, [20, 22]] = 0.25  # of the membrane's three columns, the two beside a cell
    np.testing.assert_allclose(lighter, factor * whole, rtol=1e-6)


def test_16_bit_and_rgb_volumes(tmp_path):
    (first, *_) = read(*write(tmp_path, volume=VOLUME.astype(np.uint16) * 257))
    np.testing.assert_allclose(first.image[..., 0], VOLUME[0], atol=1e-4)
    (first, *_) = read(*write(tmp_path, volume=VOLUME.astype(np.uint16)), value_range=(0, 255))
    np.testing.assert_allclose(first.image[..., 0], VOLUME[0], atol=1e-4)
    volume, labels = write(tmp_path)
    tifffile.imwrite(volume, np.stack([VOLUME] * 3, axis=-1), photometric="rgb")
    assert read(volume, labels)[0].image.shape == (40, 48, 3)


def test_dataset_of_tiles(tmp_path):
    dataset = isbi(*write(tmp_path), tile=32, output_tile=16, batch_size=2, augment=False, seed=1)
    batch = next(iter(dataset))
    assert batch["image"].shape == (2, 32, 32, 1)
    assert batch["label"].shape == batch["weight"].shape == (2, 16, 16)


def test_tile_larger_than_the_image(tmp_path):
    with pytest.raises(ValueError, match=r"volume\.tif slice 0: 40x48 pixels, smaller than"):
        isbi(*write(tmp_path), tile=64, output_tile=64)


@pytest.mark.parametrize(
    ("slices", "message"),
    [
        ([0, 3], r"slices: \[3\] not in .*volume\.tif, which has 3 slices, 0 to 2"),
        ([-1], r"slices: \[-1\] not in"),
        ([], "slices: none chosen of the 3"),
    ],
)
def test_slices_that_do_not_exist(tmp_path, slices, message):
    with pytest.raises(ValueError, match=message):
        read(*write(tmp_path), slices=slices)


def test_different_counts_and_sizes(tmp_path):
    with pytest.raises(ValueError, match=r"volume\.tif has 3 slices, .*labels\.tif has 2"):
        read(*write(tmp_path, labels=LABELS[:2]))
    with pytest.raises(ValueError, match=r"slices of 40x48 pixels, .*labels\.tif of 40x47"):
        read(*write(tmp_path, labels=LABELS[:, :, :-1]))


def test_other_label_values(tmp_path):
    labels = LABELS.copy()
    labels[1, 0, :2] = 7, 128
    with pytest.raises(
        ValueError, match=r"labels\.tif slice 1: label values 0, 7, 128, 255; expected 0 \(membrane\)"
    ):
        read(*write(tmp_path, labels=labels))


def test_one_class(tmp_path):
    labels = LABELS.copy()
    labels[2] = 255
    paths = write(tmp_path, labels=labels)
    with pytest.raises(
        ValueError, match=r"labels\.tif slice 2: one class only, every pixel is 255.*allow_single_class"
    ):
        read(*paths)
    assert read(*paths, allow_single_class=True)[2].label.min() == 1
    assert len(read(*paths, slices=[0, 1])) == 2  # slices left out do not matter


def test_constant_and_nan_slices(tmp_path):
    volume = VOLUME.copy()
    volume[1] = 40
    with pytest.raises(ValueError, match=r"volume\.tif slice 1: the image is constant, every pixel is 40"):
        read(*write(tmp_path, volume=volume))
    volume = VOLUME.astype(np.float32)
    volume[2, 5, 5] = np.nan
    with pytest.raises(ValueError, match=r"volume\.tif slice 2: 1 of 1920 pixel values are NaN"):
        read(*write(tmp_path, volume=volume))


def test_colour_labels_and_missing_file(tmp_path):
    volume, labels = write(tmp_path)
    tifffile.imwrite(labels, np.stack([LABELS] * 3, axis=-1), photometric="rgb")
    with pytest.raises(ValueError, match=r"labels\.tif: RGB pages"):
        read(volume, labels)
    with pytest.raises(FileNotFoundError, match=r"other\.tif: no such file"):
        read(volume, tmp_path / "other.tif")
