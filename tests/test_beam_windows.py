"""Windows of large TIFFs: the pixels that reading the whole file gives, and no more of the file than they need."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile

from keras_seg.batch import windows
from keras_seg.data.images import read_image, read_stack

GREY, RGB = {"photometric": "minisblack"}, {"photometric": "rgb"}
FILES = {
    "one strip": ((300, 200), np.uint8, GREY),
    "one strip of 16 bits, big endian": ((300, 200), np.uint16, {**GREY, "byteorder": ">"}),
    "stack": ((3, 90, 120), np.uint8, GREY),
    "RGB": ((120, 90, 3), np.uint8, RGB),
    "RGBA": ((120, 90, 4), np.uint8, {**RGB, "extrasamples": ["unassalpha"]}),
    "compressed tiles": ((300, 200), np.uint8, {**GREY, "tile": (64, 64), "compression": "deflate"}),
    "compressed strips of 16 bits, big endian": (
        (300, 200),
        np.uint16,
        {**GREY, "rowsperstrip": 16, "compression": "deflate", "byteorder": ">"},
    ),
    "stack of compressed tiles": ((3, 90, 120), np.float32, {**GREY, "tile": (32, 32), "compression": "deflate"}),
    "planes of colours, in tiles": (
        (3, 120, 90),
        np.uint8,
        {**RGB, "planarconfig": "separate", "tile": (32, 32)},
    ),
    "bilevel": ((96, 64), bool, {**GREY, "tile": (32, 32)}),
}  # fmt: skip


@pytest.fixture(autouse=True)
def nothing_is_small(monkeypatch):
    monkeypatch.setattr(windows, "WHOLE", 0)


def write(path, shape, dtype, options) -> None:
    values = np.random.default_rng(0).integers(0, 2 if dtype is bool else 250, shape)
    tifffile.imwrite(path, values.astype(dtype), **options)


@pytest.mark.parametrize("kind", FILES)
def test_windows_are_what_the_whole_file_holds(kind, tmp_path):
    shape, dtype, options = FILES[kind]
    if "tile" in options or "compression" in options:
        pytest.importorskip("zarr", reason="needs zarr: pip install 'keras_seg[beam]'")
    path = tmp_path / "image.tif"
    write(path, shape, dtype, options)
    whole = read_stack(path)
    whole = whole[..., None] if whole.ndim == 3 else whole
    stack = windows.open_stack(path, whole.shape[-1])
    assert isinstance(stack, windows.TiffWindows)
    assert (stack.shape, stack.dtype) == (whole.shape, whole.dtype)
    rows, columns = np.array([[30], [31], [2], [40]]), np.array([7, 6, 5, 50])
    for n in range(len(whole)):
        window = stack[n][10:50, 20:60]
        assert window.dtype == whole.dtype
        np.testing.assert_array_equal(window, whole[n, 10:50, 20:60])
        np.testing.assert_array_equal(stack[n][rows, columns], whole[n][rows, columns])
    if len(whole) == 1 or "planes" in kind:
        image = windows.open_image(path)
        np.testing.assert_array_equal(image[:40, :50], read_image(path)[:40, :50])


def test_a_window_reads_its_part_of_the_file(tmp_path):
    path = tmp_path / "large.tif"
    large = tifffile.memmap(
        path, shape=(60_000, 50_000), dtype=np.uint8, photometric="minisblack"
    )  # 3 GB, all holes
    large[30_000:30_010, 40_000:40_010] = 7
    large.flush()
    assert path.stat().st_blocks * 512 < 2e8
    page = windows.open_stack(path, 1)[0]
    assert page.shape == (60_000, 50_000, 1)
    assert (page[30_000:30_010, 40_000:40_010] == 7).all()
    assert page[30_005:30_015, 40_000:40_010].sum() == 7 * 50


def test_pages_out_of_range(tmp_path):
    write(tmp_path / "a.tif", (3, 90, 120), np.uint8, GREY)
    with pytest.raises(IndexError):
        windows.open_stack(tmp_path / "a.tif", 1)[3]


def refused(path, channels=1):
    with pytest.raises(ValueError) as error:
        page = windows.open_stack(path, channels)[0]
        page[0:1000, 0:1000]
    assert str(path) in str(error.value)
    return str(error.value)


def test_files_that_are_no_images_of_this_kind(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((64, 64), np.uint8), photometric="miniswhite")
    assert "MINISWHITE" in refused(path)
    tifffile.imwrite(path, np.zeros((2, 3, 64, 64), np.uint8), photometric="minisblack")
    assert "expected one image or one stack" in refused(path)
    with tifffile.TiffWriter(path) as file:
        for side in (64, 32):
            file.write(np.zeros((side, side), np.uint8), photometric="minisblack")
    assert "pages of different sizes" in refused(path)
    write(path, (64, 64), np.uint8, GREY)
    assert "1 channels, but the model takes 4" in refused(path, channels=4)
    write(path, (5, 64, 64), np.uint8, GREY)
    with pytest.raises(ValueError, match="holds 5 pages where one image is expected"):
        windows.open_image(path)
    path.write_bytes(b"no TIFF at all")
    assert "not an image" in refused(path)


@pytest.mark.parametrize("kind", ["one strip", "compressed tiles"])
def test_a_file_that_ends_early_is_an_error(kind, tmp_path):
    shape, dtype, options = FILES[kind]
    if kind != "one strip":
        pytest.importorskip("zarr", reason="needs zarr: pip install 'keras_seg[beam]'")
    path = tmp_path / "image.tif"
    write(path, shape, dtype, options)
    content = path.read_bytes()
    for length in (len(content) // 2, len(content) * 3 // 4, len(content) - 10):
        path.write_bytes(content[:length])
        assert "truncated or damaged" in refused(path)


def test_damaged_pixels_are_an_error(tmp_path):
    pytest.importorskip("zarr", reason="needs zarr: pip install 'keras_seg[beam]'")
    path = tmp_path / "image.tif"
    write(path, *FILES["compressed tiles"])
    content = bytearray(path.read_bytes())
    content[-3000:-2900] = bytes(100)
    path.write_bytes(content)
    assert "truncated or damaged" in refused(path)


def test_compressed_without_zarr(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "zarr", None)
    path = tmp_path / "image.tif"
    write(path, *FILES["compressed tiles"])
    with pytest.raises(ModuleNotFoundError, match=r"needs the package zarr: pip install 'keras_seg\[beam\]'"):
        windows.open_stack(path, 1)
