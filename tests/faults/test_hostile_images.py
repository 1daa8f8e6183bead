"""Images that are damaged, enormous, or not what they seem: read right or refused by name, never filled up with nothing.

tests/data/test_images.py has the kinds of images that are read, tests/test_detect.py and tests/test_segment.py arrays.
"""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import keras
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import keras_seg
from keras_seg.data.detection_items import open_picture
from keras_seg.data.images import read_image, read_mask, read_stack
from keras_seg.models import mask_rcnn, unet


@pytest.fixture(scope="module")
def network():
    keras.utils.set_random_seed(0)
    return unet(1, 2, depth=2, base_channels=2, padding="same")


@pytest.fixture(scope="module")
def detector():
    keras.utils.set_random_seed(0)
    return mask_rcnn(
        2, backbone="resnet18", width=4, fpn_channels=8, box_head_channels=16, mask_channels=8, proposals=20,
        detections=5, score_threshold=0.0, short_side=64, max_side=96,
    )  # fmt: skip


def picture(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int) -> bytes:
    """A grey PNG that claims this size, with at most a megabyte of zeros behind it."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(min((width + 1) * height, 1 << 20)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def tiff_claiming(path: Path, side: int) -> None:
    """A TIFF of 16 black tiles that says it is `side` pixels high and wide."""
    tiles = np.zeros((16, 1024, 1024), np.uint8)
    with tifffile.TiffWriter(path) as file:
        file.write(iter(tiles), shape=(4096, 4096), dtype=np.uint8, tile=(1024, 1024), compression="zlib")
    with tifffile.TiffFile(path) as file:
        places = [(file.pages[0].tags[name].offset, name) for name in ("ImageWidth", "ImageLength")]
    content = bytearray(path.read_bytes())
    for place, name in places:
        struct.pack_into("<HHII", content, place, 256 if name == "ImageWidth" else 257, 4, 1, side)
    path.write_bytes(content)


# -- bombs -----------------------------------------------------------------------------------------------------

READERS = [read_image, read_stack, read_mask, lambda path: open_picture(path, str(path))]


@pytest.mark.parametrize("read", READERS)
def test_few_bytes_do_not_become_gigabytes(tmp_path, read):
    (tmp_path / "bomb.png").write_bytes(png(50_000, 50_000))
    with pytest.raises(ValueError, match=r"bomb.png: too large for .png .* save it as TIFF"):
        read(tmp_path / "bomb.png")
    tiff_claiming(tmp_path / "bomb.tif", 40_000)
    with pytest.raises(
        ValueError, match=r"bomb.tif: \d+ bytes that say they unpack to 1.6 GB: damaged, or made"
    ):
        read(tmp_path / "bomb.tif")


def test_an_image_of_one_value_is_no_bomb(tmp_path):
    """The best compression there is: nothing but zeros."""
    for compression in ("zlib", "zstd"):
        path = tmp_path / f"{compression}.tif"
        tifffile.imwrite(
            path, np.zeros((18_000, 18_000), np.uint8), compression=compression, tile=(1024, 1024)
        )
        assert path.stat().st_size < 400_000
        assert read_image(path).shape == (18_000, 18_000, 1)


def test_tiles_that_a_tiff_lacks_do_not_become_black(tmp_path):
    tiff_claiming(tmp_path / "short.tif", 5000)
    with pytest.raises(
        ValueError, match=r"short.tif: the TIFF is truncated or damaged \(.*segments, got 16\)"
    ):
        read_image(tmp_path / "short.tif")


# -- several pictures in one file ------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".gif", ".png", ".webp"])
@pytest.mark.parametrize("read", READERS)
def test_an_animation_is_not_its_first_frame(tmp_path, suffix, read):
    frames = [Image.fromarray(picture(20, 20) // n) for n in (1, 2, 3)]
    path = tmp_path / f"moving{suffix}"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    with pytest.raises(ValueError, match=r"moving\S+: an animation of 3 frames where one image is expected"):
        read(path)


def test_pages_are_a_stack_and_no_image(tmp_path, network, detector):
    path = tmp_path / "pages.tif"
    tifffile.imwrite(path, picture(3, 20, 24), photometric="minisblack")
    assert keras_seg.segment(network, path).shape == (3, 20, 24, 2)
    with pytest.raises(ValueError, match=r"pages.tif: holds 3 pages where one image is expected"):
        keras_seg.segment(detector, path)


def test_the_previews_of_a_photograph_do_not_count(tmp_path):
    first, second = (Image.fromarray(picture(20, 20, 3)), Image.fromarray(picture(10, 10, 3)))
    path = tmp_path / "photo.jpg"
    first.save(path, format="MPO", save_all=True, append_images=[second])
    assert read_image(path).shape == (20, 20, 3)
    assert open_picture(path, "photo").size == (20, 20)


# -- kinds -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".jpg", ".tif"])
def test_cmyk_becomes_its_colours(tmp_path, suffix):
    """Cyan, magenta, yellow, black -> 255 minus each."""
    inks = {
        "red": (0, 255, 255, 0),
        "green": (255, 0, 255, 0),
        "white": (0, 0, 0, 0),
        "black": (0, 0, 0, 255),
    }
    rgb = {"red": (255, 0, 0), "green": (0, 255, 0), "white": (255, 255, 255), "black": (0, 0, 0)}
    for name, ink in inks.items():
        path = tmp_path / f"{name}{suffix}"
        Image.new("CMYK", (24, 20), ink).save(path)
        for found in (read_image(path), np.asarray(open_picture(path, name).convert("RGB"))):
            np.testing.assert_allclose(found[8, 8].astype(int), rgb[name], atol=3)


def test_numbers_of_a_tiff_that_are_no_grey_values(tmp_path):
    for mode in ("YCbCr", "LAB"):
        Image.new(mode, (24, 20)).save(tmp_path / f"{mode}.tif")
        with pytest.raises(
            ValueError, match=rf"{mode}.tif: stored as \w+ \(its values are not grey values\)"
        ):
            read_image(tmp_path / f"{mode}.tif")
    # in JPEG it is decoded
    smooth = Image.linear_gradient("L").convert("RGB")
    smooth.save(tmp_path / "jpeg.tif", compression="jpeg", quality=95)
    np.testing.assert_allclose(read_image(tmp_path / "jpeg.tif").astype(int), np.asarray(smooth), atol=4)


@pytest.mark.parametrize(("width", "height"), [(0, 5), (5, 0), (0, 0)])
def test_no_pixels(tmp_path, network, detector, width, height):
    (tmp_path / "none.png").write_bytes(png(width, height))
    for model in (network, detector):
        with pytest.raises(ValueError, match=r"none.png: "):
            keras_seg.segment(model, tmp_path / "none.png")
        with pytest.raises(ValueError, match=r"shape (is )?\[.*0.*\]"):
            keras_seg.segment(model, np.zeros((height, width, 1), np.uint8))


@pytest.mark.parametrize("shape", [(1, 10_000), (10_000, 1), (1, 1), (1, 2)])
def test_lines_and_points(tmp_path, network, detector, shape):
    pixels = picture(*shape)
    Image.fromarray(pixels).save(tmp_path / "line.png")
    found = keras_seg.segment(detector, tmp_path / "line.png")
    assert found.image_size == shape and found.masks.shape == (len(found), *shape)
    if pixels.size == 1:
        with pytest.raises(ValueError, match="the image is constant"):
            keras_seg.segment(network, tmp_path / "line.png")
        return
    probabilities = keras_seg.segment(network, tmp_path / "line.png")
    assert probabilities.shape == (*shape, 2)
    np.testing.assert_allclose(probabilities.sum(-1), 1, atol=1e-5)


# -- whatever the bytes ----------------------------------------------------------------------------------------


def encoded() -> dict[str, bytes]:
    grey, files = picture(24, 20), {}
    for name, options in {
        "png": {}, "jpeg": {}, "gif": {}, "webp": {"lossless": True}, "bmp": {}, "tiff": {"compression": "tiff_lzw"},
    }.items():  # fmt: skip
        content = io.BytesIO()
        Image.fromarray(grey).save(content, format=name, **options)
        files[name] = content.getvalue()
    content = io.BytesIO()
    tifffile.imwrite(content, picture(3, 24, 20), compression="zlib", photometric="minisblack")
    return files | {"stack": content.getvalue()}


ENCODED = encoded()


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from(sorted(ENCODED)),
    keep=st.floats(0, 1),
    place=st.floats(0, 1),
    noise=st.binary(max_size=6),
)
def test_damaged_files_are_an_image_or_a_message(tmp_path_factory, kind, keep, place, noise):
    """One of some size that was not changed, or a ValueError that names the file."""
    whole = ENCODED[kind]
    at = int(place * len(whole))
    content = (whole[:at] + noise + whole[at + len(noise) :])[
        : int(keep * len(whole)) + 1 if keep < 0.5 else None
    ]
    path = tmp_path_factory.getbasetemp() / f"damaged.{kind}"
    path.write_bytes(content)
    for read in (read_image, read_stack, lambda p: np.asarray(open_picture(p, str(p)))):
        try:
            found = read(path)
        except ValueError as error:
            assert str(path) in str(error)
            continue
        assert found.size > 0 and found.dtype.kind in "uif"
