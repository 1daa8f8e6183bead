"""Reading image files: what comes back for each kind of file, and what is said about each bad one."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from keras_seg.data.images import read_image, read_mask, read_stack, to_float

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (12, 17), dtype=np.uint8)
GREY16 = RNG.integers(0, 65536, (12, 17), dtype=np.uint16)
RGB = RNG.integers(0, 256, (12, 17, 3), dtype=np.uint8)
STACK = RNG.integers(0, 256, (5, 64, 48), dtype=np.uint8)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("array", [GREY, GREY16, RGB], ids=["grey", "grey16", "rgb"])
def test_lossless_files_keep_values_and_dtype(tmp_path, suffix, array):
    path = tmp_path / f"image{suffix}"
    Image.fromarray(array).save(path)
    image = read_image(path)
    assert image.dtype == array.dtype
    np.testing.assert_array_equal(image, array.reshape(12, 17, -1))


def test_the_content_decides_not_the_name(tmp_path):
    path = tmp_path / "image.png"
    Image.fromarray(RGB).save(path, format="TIFF")
    np.testing.assert_array_equal(read_image(path), RGB)


def test_alpha_is_dropped(tmp_path):
    alpha = np.full((12, 17, 1), 7, np.uint8)
    Image.fromarray(np.concatenate([RGB, alpha], axis=-1)).save(tmp_path / "rgba.png")
    Image.fromarray(np.concatenate([RGB, alpha], axis=-1)).save(tmp_path / "rgba.tif")
    Image.fromarray(np.stack([GREY, alpha[..., 0]], axis=-1), "LA").save(tmp_path / "la.png")
    np.testing.assert_array_equal(read_image(tmp_path / "rgba.png"), RGB)
    np.testing.assert_array_equal(read_image(tmp_path / "rgba.tif"), RGB)
    np.testing.assert_array_equal(read_image(tmp_path / "la.png")[..., 0], GREY)


def test_palette_is_colours_as_image_and_indices_as_mask(tmp_path):
    indices = np.arange(6, dtype=np.uint8).reshape(2, 3) % 3
    picture = Image.fromarray(indices, "P")
    picture.putpalette([0, 0, 0, 255, 0, 0, 0, 0, 255])
    picture.save(tmp_path / "p.png")
    assert read_image(tmp_path / "p.png")[0].tolist() == [[0, 0, 0], [255, 0, 0], [0, 0, 255]]
    np.testing.assert_array_equal(read_mask(tmp_path / "p.png"), indices)
    assert read_mask(tmp_path / "p.png", rgb=True)[0, 1].tolist() == [255, 0, 0]


def test_bilevel_is_0_and_255(tmp_path):
    bits = GREY > 100
    Image.fromarray(bits).save(tmp_path / "bits.png")
    tifffile.imwrite(tmp_path / "bits.tif", bits, photometric="minisblack")
    for name in ("bits.png", "bits.tif"):
        image = read_image(tmp_path / name)
        assert image.dtype == np.uint8
        np.testing.assert_array_equal(image[..., 0], bits * 255)


def test_planar_and_float_tiff(tmp_path):
    tifffile.imwrite(
        tmp_path / "planar.tif", RGB.transpose(2, 0, 1), photometric="rgb", planarconfig="separate"
    )
    np.testing.assert_array_equal(read_image(tmp_path / "planar.tif"), RGB)
    tifffile.imwrite(tmp_path / "float.tif", GREY.astype(np.float32) / 3)
    np.testing.assert_array_equal(read_image(tmp_path / "float.tif")[..., 0], GREY.astype(np.float32) / 3)


def test_jpeg_is_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[274] = 6  # stored lying on its side: turn by 90 degrees clockwise
    ramp = np.repeat(np.linspace(0, 255, 32).astype(np.uint8)[:, None], 16, axis=1)  # dark at the top
    Image.fromarray(ramp).save(tmp_path / "lying.jpg", exif=exif, quality=95)
    image = read_image(tmp_path / "lying.jpg")[..., 0].astype(int)
    assert image.shape == (16, 32)
    assert (image[:, :4] > 200).all() and (image[:, -4:] < 55).all()  # the stored top is now at the right


@pytest.mark.parametrize(
    "options", [{}, {"metadata": None}, {"compression": "zlib"}, {"bigtiff": True}, {"imagej": True}]
)
def test_stack_of_any_flavour(tmp_path, options):
    tifffile.imwrite(tmp_path / "stack.tif", STACK, **options)
    np.testing.assert_array_equal(read_stack(tmp_path / "stack.tif"), STACK)


def test_a_stack_of_three_may_be_stored_as_planar_rgb(tmp_path):
    tifffile.imwrite(tmp_path / "three.tif", STACK[:3], photometric="rgb", planarconfig="separate")
    np.testing.assert_array_equal(read_stack(tmp_path / "three.tif"), STACK[:3])


def test_stack_of_one_page_of_colours_and_of_another_format(tmp_path):
    tifffile.imwrite(tmp_path / "one.tif", STACK[:1])
    assert read_stack(tmp_path / "one.tif").shape == (1, 64, 48)
    tifffile.imwrite(tmp_path / "rgb.tif", np.stack([RGB, RGB]), photometric="rgb")
    np.testing.assert_array_equal(read_stack(tmp_path / "rgb.tif"), np.stack([RGB, RGB]))
    Image.fromarray(GREY).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read_stack(tmp_path / "grey.png"), GREY[None])


@pytest.mark.parametrize("read", [read_image, read_mask, read_stack])
def test_missing_empty_foreign_and_folder(tmp_path, read):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.tif: no such file"):
        read(tmp_path / "nowhere.tif")
    with pytest.raises(ValueError, match="a folder, not an image file"):
        read(tmp_path)
    (tmp_path / "empty.tif").touch()
    with pytest.raises(ValueError, match=r"empty\.tif: the file is empty \(0 bytes\)"):
        read(tmp_path / "empty.tif")
    (tmp_path / "text.png").write_text("name,value\ncell,255\n")
    with pytest.raises(ValueError, match=r"text\.png: not an image \(PNG, JPEG or TIFF\)"):
        read(tmp_path / "text.png")


@pytest.mark.parametrize("kept", [0.02, 0.3, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("compression", [None, "zlib", "lzw"])
@pytest.mark.parametrize("metadata", [{}, None], ids=["described", "plain"])
def test_truncated_stack_never_comes_back_shorter(tmp_path, kept, compression, metadata):
    path = tmp_path / "stack.tif"
    tifffile.imwrite(path, STACK, compression=compression, metadata=metadata)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    try:
        stack = read_stack(path)
    except ValueError as error:
        assert f"{path}: the TIFF is truncated or damaged" in str(error)
    else:  # what was cut off held no pixel
        np.testing.assert_array_equal(stack, STACK)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_truncated_picture(tmp_path, suffix):
    path = tmp_path / f"image{suffix}"
    Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"image\.(png|jpg): the image is truncated or damaged"):
        read_image(path)


def test_overwritten_middle_of_a_png(tmp_path):
    path = tmp_path / "image.png"
    Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 50] = bytes(50)
    path.write_bytes(bytes(data))
    with pytest.raises(ValueError, match="the image is truncated or damaged"):
        read_image(path)


def test_tiff_of_another_layout(tmp_path):
    tifffile.imwrite(tmp_path / "stack.tif", STACK)
    with pytest.raises(ValueError, match="holds 5 pages where one image is expected"):
        read_image(tmp_path / "stack.tif")
    with tifffile.TiffWriter(tmp_path / "sizes.tif") as writer:
        writer.write(GREY, metadata=None)
        writer.write(GREY[:5], metadata=None)
    with pytest.raises(ValueError, match=r"pages of different sizes or types, \[\[12, 17\], \[5, 17\]\]"):
        read_stack(tmp_path / "sizes.tif")
    tifffile.imwrite(tmp_path / "hyper.tif", np.stack([STACK, STACK]), metadata={"axes": "TZYX"})
    with pytest.raises(ValueError, match="axes TZYX; expected one image or one stack"):
        read_stack(tmp_path / "hyper.tif")
    tifffile.imwrite(tmp_path / "inverted.tif", GREY, photometric="miniswhite")
    with pytest.raises(ValueError, match="stored as MINISWHITE .* save it as grey"):
        read_image(tmp_path / "inverted.tif")


def test_masks_are_lossless_and_of_the_kind_asked_for(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "mask.jpg")
    with pytest.raises(
        ValueError, match="JPEG changes pixel values, so it cannot hold labels: save masks as PNG"
    ):
        read_mask(tmp_path / "mask.jpg")
    Image.fromarray(GREY).save(tmp_path / "disguised.png", format="JPEG")
    with pytest.raises(ValueError, match="JPEG changes pixel values"):
        read_mask(tmp_path / "disguised.png")
    Image.fromarray(GREY).save(tmp_path / "grey.png")
    with pytest.raises(ValueError, match="a grey image, but the classes are given as RGB colours"):
        read_mask(tmp_path / "grey.png", rgb=True)
    Image.fromarray(RGB).save(tmp_path / "rgb.png")
    with pytest.raises(ValueError, match="an RGB image, but the classes are given as one number a pixel"):
        read_mask(tmp_path / "rgb.png")


def test_to_float_by_hand():
    assert to_float(np.array([[0, 255]], np.uint8)).tolist() == [[0, 255]]
    assert to_float(np.array([[0, 257, 65535]], np.uint16)).tolist() == [[0, 1, 255]]
    assert to_float(np.array([[0.5, 254]])).dtype == np.float32
    stretched = to_float(np.array([[50, 100, 150, 200]], np.uint16), value_range=(100, 200))
    assert stretched.tolist() == [[0, 0, 127.5, 255]]
    assert to_float(np.array([[-1, 0, 1]], np.float32), value_range=(-1, 1)).tolist() == [[0, 127.5, 255]]
    dark = to_float(np.array([[50, 60]], np.uint16), value_range=(100, 200), may_be_constant=True)
    assert dark.tolist() == [[0, 0]]


@given(
    hnp.arrays(st.sampled_from([np.uint8, np.uint16]), (4, 5)).filter(
        lambda image: image.min() < image.max()
    ),
    st.booleans(),
)
def test_to_float_keeps_the_order_and_the_range(image, stretch):
    full = 255 if image.dtype == np.uint8 else 65535
    result = to_float(image, (0, full) if stretch else None)
    assert result.dtype == np.float32 and result.shape == image.shape
    np.testing.assert_allclose(result, image * (255 / full), rtol=1e-6)


@pytest.mark.parametrize(
    ("image", "value_range", "message"),
    [
        (np.array([[0, np.nan]]), None, "frame 3: 1 of 2 pixel values are NaN or infinite"),
        (np.array([[0, np.inf]]), (0, 1), "frame 3: 1 of 2 pixel values are NaN or infinite"),
        (np.full((2, 2), 9, np.uint8), None, "frame 3: the image is constant, every pixel is 9"),
        (
            np.array([[1, 2]], np.uint8),
            (5, 9),
            r"constant once clipped to value_range=\(5, 9\): .* from 1 to 2",
        ),
        (
            np.array([[1, 2]], np.uint8),
            (9, 5),
            r"value_range=\(9, 5\) must be \(low, high\), finite, with low < high",
        ),
        (np.array([[1, 2]], np.uint8), (0, np.nan), "must be .low, high., finite"),
        (
            np.array([[0, 300.0]]),
            None,
            r"frame 3: float values from 0 to 300, outside 0-255: give value_range",
        ),
        (np.array([[True, False]]), None, "frame 3: bool pixels; images are uint8, uint16 or float 0-255"),
        (np.array([[1, 2]], np.int32), None, "frame 3: int32 pixels"),
        (np.zeros((0, 4), np.uint8), None, r"frame 3: the image is empty, its shape is \[0, 4\]"),
    ],
)
def test_to_float_refuses(image, value_range, message):
    with pytest.raises(ValueError, match=message):
        to_float(image, value_range, "frame 3")
