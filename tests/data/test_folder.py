"""Folders of image and mask pairs: pairing, classes, weights, and bad input."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile
from PIL import Image

import keras_seg.data
from keras_seg.data.folder import folder, read
from keras_seg.losses import class_balance

RNG = np.random.default_rng(0)
TWO = {"background": 0, "cell": 255}
COLOURS = {"sky": (0, 0, 0), "tree": (0, 128, 0), "house": (200, 0, 0)}


def picture(height=40, width=50, channels=1) -> np.ndarray:
    shape = (height, width, 3) if channels == 3 else (height, width)
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def mask(height=40, width=50) -> np.ndarray:
    """Two squares of 255."""
    values = np.zeros((height, width), np.uint8)
    values[5:15, 5:15] = values[5:15, 20:30] = 255
    return values


def save(path, array):
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".tif":
        tifffile.imwrite(path, array)
    else:
        Image.fromarray(array).save(path)


@pytest.fixture
def pairs(tmp_path):
    """Folders with the pairs a, b, c."""
    for name in "abc":
        save(tmp_path / "images" / f"{name}.png", picture())
        save(tmp_path / "masks" / f"{name}.png", mask())
    return tmp_path / "images", tmp_path / "masks"


def test_the_function_wins_over_the_module_name():
    assert keras_seg.data.folder is folder


def test_pairs_of_many_formats_and_sizes(tmp_path):
    for name, size in (("a.png", (40, 50)), ("b.jpg", (64, 48)), ("c.tif", (41, 52)), ("d.jpeg", (40, 50))):
        save(tmp_path / "images" / name, picture(*size))
        save(tmp_path / "masks" / f"{name[0]}.{'tif' if name[0] == 'd' else 'png'}", mask(*size))
    (tmp_path / "images" / "notes.txt").write_text("not read")
    (tmp_path / "images" / ".hidden.png").write_text("not read")
    samples = read(tmp_path / "images", tmp_path / "masks", classes=TWO)
    assert [sample.name[-5:] for sample in samples] == ["a.png", "b.jpg", "c.tif", ".jpeg"]
    assert [sample.label.shape for sample in samples] == [(40, 50), (64, 48), (41, 52), (40, 50)]
    for sample in samples:
        np.testing.assert_array_equal(sample.label, mask(*sample.label.shape) == 255)
        assert sample.instances.max() == 2 and sample.instances[6, 6] != sample.instances[6, 21]


def test_several_classes_by_colour_and_an_ignored_one(tmp_path):
    colours = np.zeros((40, 50, 3), np.uint8)
    colours[5:15, 5:15] = COLOURS["tree"]
    colours[5:15, 15:25] = COLOURS["house"]  # touches the tree
    colours[30:] = 9, 9, 9
    save(tmp_path / "images" / "a.png", picture(channels=3))
    save(tmp_path / "masks" / "a.png", colours)
    (sample,) = read(tmp_path / "images", tmp_path / "masks", classes=COLOURS, ignore_value=(9, 9, 9), w0=0)
    assert sample.image.shape == (40, 50, 3)
    assert [sample.label[0, 0], sample.label[6, 6], sample.label[6, 16], sample.label[35, 0]] == [0, 1, 2, -1]
    np.testing.assert_array_equal(sample.instances, sample.label)  # one tree, one house
    # 1300 sky, 100 tree and 100 house pixels are annotated; w_c is 1500 / (3 * count).
    np.testing.assert_allclose(sample.weight[[0, 6, 6, 35], [0, 6, 16, 0]], [5 / 13, 5, 5, 0], rtol=1e-6)


def test_class_order_is_the_order_given(tmp_path):
    values = mask()
    values[20:30, 5:15] = 7
    save(tmp_path / "images" / "a.png", picture())
    save(tmp_path / "masks" / "a.png", values)
    classes = {"rest": 0, "nucleus": 7, "cell": 255}
    (sample,) = read(tmp_path / "images", tmp_path / "masks", classes=classes, class_weights=(1, 2, 3), w0=0)
    assert sample.label[25, 6] == 1 and sample.label[6, 6] == 2
    assert sample.weight[[0, 25, 6], [0, 6, 6]].tolist() == [1, 2, 3]


def test_weights_balance_the_classes_over_all_the_masks(pairs):
    images, masks = pairs
    half = mask()
    half[5:15, 5:15] = 0
    save(masks / "c.png", half)
    samples = read(images, masks, classes=TWO, w0=0)
    balance = class_balance([sample.label for sample in samples], 2)
    for sample in samples:
        np.testing.assert_allclose(sample.weight, balance[sample.label], rtol=1e-6)
    (with_border, *_) = read(images, masks, classes=TWO, w0=10, sigma=5)
    # Between the squares, 5 pixels apart, the middle is 3 pixels from both: equation 2 by hand.
    extra = with_border.weight[10, 17] - balance[0]
    assert extra == pytest.approx(10 * np.exp(-(6**2) / 50), rel=1e-5)


def test_mask_suffix_and_one_folder_for_both(tmp_path):
    for name in "ab":
        save(tmp_path / "all" / f"{name}.png", picture())
        save(tmp_path / "all" / f"{name}_mask.png", mask())
    assert len(read(tmp_path / "all", tmp_path / "all", classes=TWO, mask_suffix="_mask")) == 2
    with pytest.raises(ValueError, match="images and masks in one folder need a mask_suffix"):
        read(tmp_path / "all", tmp_path / "all", classes=TWO)


def test_upright_jpeg_fits_its_mask(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    (tmp_path / "images").mkdir()
    Image.fromarray(picture(50, 40)).save(tmp_path / "images" / "a.jpg", exif=exif)
    save(tmp_path / "masks" / "a.png", mask(40, 50))
    assert read(tmp_path / "images", tmp_path / "masks", classes=TWO)[0].image.shape == (40, 50, 1)


def test_dataset_of_tiles(pairs):
    batch = next(iter(folder(*pairs, classes=TWO, tile=32, batch_size=2, augment=False)))
    assert batch["image"].shape == (2, 32, 32, 1)
    assert batch["label"].shape == batch["weight"].shape == (2, 32, 32)


def test_image_smaller_than_a_tile(pairs):
    with pytest.raises(ValueError, match=r"a\.png: 40x50 pixels, smaller than"):
        folder(*pairs, classes=TWO, tile=64)


def test_missing_partners_and_sizes_in_one_message(pairs):
    images, masks = pairs
    save(images / "d.png", picture())
    save(images / "e.png", picture())
    save(masks / "f.png", mask())
    save(masks / "b.png", mask(39, 50))
    with pytest.raises(ValueError, match="do not fit together") as caught:
        read(images, masks, classes=TWO)
    message = str(caught.value)
    assert "5 images, 4 masks" in message
    assert "2 images without a mask: d.png, e.png" in message
    assert "1 masks without an image: f.png" in message
    assert f"{masks / 'b.png'}: 39x50 pixels, but {images / 'b.png'} has 40x50" in message


def test_long_lists_are_cut(tmp_path):
    for number in range(25):
        save(tmp_path / "images" / f"{number:02d}.png", picture())
        save(tmp_path / "masks" / f"{number:02d}.png", np.full((40, 50), 9, np.uint8))
    with pytest.raises(ValueError, match="and 15 more") as caught:
        read(tmp_path / "images", tmp_path / "masks", classes=TWO)
    assert str(caught.value).count("are of no class") == 10


def test_values_of_no_class(pairs):
    images, masks = pairs
    values = mask()
    values[0, :2] = 7, 9
    save(masks / "b.png", values)
    with pytest.raises(
        ValueError, match=r"b\.png: values 7, 9 are of no class; classes: background 0, cell 255"
    ):
        read(images, masks, classes=TWO)
    colours = np.zeros((40, 50, 3), np.uint8)
    colours[0, 0] = 1, 2, 3
    for name in "abc":
        save(masks / f"{name}.png", colours)
    with pytest.raises(
        ValueError, match=r"values \(1, 2, 3\) are of no class; classes: sky \(0, 0, 0\), tree"
    ):
        read(images, masks, classes=COLOURS)


def test_16_bit_colours(pairs):
    images, masks = pairs
    (masks / "b.png").unlink()
    tifffile.imwrite(masks / "b.tif", np.zeros((40, 50, 3), np.uint16), photometric="rgb")
    for name in "ac":
        save(masks / f"{name}.png", np.zeros((40, 50, 3), np.uint8))
    with pytest.raises(ValueError, match=r"b\.tif: uint16 colours; they must be 8 bit"):
        read(images, masks, classes=COLOURS, allow_single_class=True)


def test_one_class(pairs):
    images, masks = pairs
    save(masks / "b.png", np.zeros((40, 50), np.uint8))
    with pytest.raises(
        ValueError, match=r"b\.png: one class only, every annotated pixel is background; .*allow_single"
    ):
        read(images, masks, classes=TWO)
    assert read(images, masks, classes=TWO, allow_single_class=True)[1].instances.max() == 0
    with pytest.raises(ValueError, match=r"b\.png: no annotated pixel, all are ignore_value"):
        read(images, masks, classes={"background": 1, "cell": 255}, ignore_value=0, allow_single_class=True)


def test_grey_and_colour_images_together(pairs):
    images, masks = pairs
    save(images / "b.png", picture(channels=3))
    with pytest.raises(
        ValueError, match=r"2 grey images \(a\.png, c\.png\) and 1 RGB images \(b\.png\) together"
    ):
        read(images, masks, classes=TWO)


def test_jpeg_masks(pairs):
    images, masks = pairs
    (masks / "b.png").unlink()
    save(masks / "b.jpg", mask())
    with pytest.raises(ValueError, match=r"b\.jpg: JPEG changes pixel values"):
        read(images, masks, classes=TWO)


def test_bad_files(pairs):
    images, masks = pairs
    save(images / "b.png", np.full((40, 50), 128, np.uint8))
    with pytest.raises(ValueError, match=r"b\.png: the image is constant, every pixel is 128"):
        read(images, masks, classes=TWO)
    (images / "b.png").write_bytes((images / "a.png").read_bytes()[:900])
    with pytest.raises(ValueError, match=r"b\.png: the image is truncated or damaged"):
        read(images, masks, classes=TWO)
    (images / "b.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"b\.png: the file is empty"):
        read(images, masks, classes=TWO)
    (images / "b.png").write_text("not an image")
    with pytest.raises(ValueError, match=r"b\.png: not an image"):
        read(images, masks, classes=TWO)
    (images / "b.png").unlink()
    tifffile.imwrite(images / "b.tif", np.where(mask() > 0, np.nan, np.arange(50.0)))
    with pytest.raises(ValueError, match=r"b\.tif: 200 of 2000 pixel values are NaN"):
        read(images, masks, classes=TWO)


def test_missing_and_empty_folders_and_ambiguous_names(pairs, tmp_path):
    images, masks = pairs
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        read(images, tmp_path / "nowhere", classes=TWO)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty: no files of \.png, \.tif"):
        read(tmp_path / "empty", masks, classes=TWO)
    with pytest.raises(ValueError, match=r"masks: no files named \*_mask of"):
        read(images, masks, classes=TWO, mask_suffix="_mask")
    save(images / "a.tif", picture())
    with pytest.raises(ValueError, match="a.tif and a.png: two files of one name"):
        read(images, masks, classes=TWO)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": {"cell": 255}}, "at least two are needed"),
        ({"classes": {"a": 0, "b": (1, 2, 3)}}, r"all integers from 0 up or all .r, g, b. of 0-255"),
        ({"classes": {"a": (0, 0, 0), "b": (1, 2)}}, "all integers from 0 up or"),
        ({"classes": {"a": (0, 0, 0), "b": (1, 2, 256)}}, "all integers from 0 up or"),
        ({"classes": {"a": 0, "b": -1}}, "all integers from 0 up or"),
        ({"classes": {"a": 0, "b": 0.5}}, "all integers from 0 up or"),
        ({"classes": {"a": 0, "b": "255"}}, "all integers from 0 up or"),
        ({"classes": {"a": 0, "b": 0}}, "a value occurs twice"),
        ({"classes": TWO, "ignore_value": 255}, "a value occurs twice"),
        ({"classes": TWO, "class_weights": (1, 2, 3)}, "class_weights: 3 weights for 2 classes"),
    ],
)
def test_options_that_make_no_sense(pairs, options, message):
    with pytest.raises(ValueError, match=message):
        read(*pairs, **options)
