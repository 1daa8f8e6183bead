"""Files decoded in the graph are what `read_image` reads, and what cannot be read right is refused."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from keras_seg.data.images import read_image, to_float
from keras_seg.export import decoding
from keras_seg.export.decoding import as_grey, as_rgb, decode
from keras_seg.export.limits import Limits
from keras_seg.export.orientation import orientation

LIMITS = Limits(10_000, 64, 10_000)


@tf.function(input_signature=[tf.TensorSpec([], tf.string)], autograph=False)
def decoded(contents: tf.Tensor) -> tf.Tensor:
    files, sizes = decoding.checked(contents[None], LIMITS)
    image = decode(files[0])
    tf.debugging.assert_equal(tf.shape(image)[:2], sizes[0])  # what the header says, turned upright
    return image


oriented = tf.function(orientation, [tf.TensorSpec([], tf.string)], autograph=False)


def picture(mode: str, size=(31, 22)) -> Image.Image:
    random = np.random.default_rng(0)
    # smooth, so that JPEG's arithmetic shows and not its losses
    coarse = Image.fromarray(random.integers(0, 256, (4, 5, 3), np.uint8)).resize(
        size, Image.Resampling.BICUBIC
    )
    if mode == "I;16":
        return Image.fromarray(random.integers(0, 65536, size[::-1]).astype(np.uint16))
    return coarse.convert(mode)


def file_of(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def expected(path, contents: bytes) -> np.ndarray:
    path.write_bytes(contents)
    return to_float(read_image(path))


@pytest.mark.parametrize(
    "kind, mode, options",
    [
        ("PNG", "RGB", {}), ("PNG", "L", {}), ("PNG", "RGBA", {}), ("PNG", "LA", {}), ("PNG", "P", {}),
        ("PNG", "1", {}), ("PNG", "I;16", {}),
        ("JPEG", "RGB", {}), ("JPEG", "L", {}), ("JPEG", "RGB", {"subsampling": 0, "quality": 95}),
        ("JPEG", "RGB", {"subsampling": 1, "progressive": True}),
    ],
)  # fmt: skip
def test_pixels_are_those_of_read_image(tmp_path, kind, mode, options):
    contents = file_of(picture(mode), kind, **options)
    np.testing.assert_array_equal(decoded(contents), expected(tmp_path / "image", contents))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", range(10))
def test_jpegs_come_upright(tmp_path, kind, order):
    tiff = struct.pack(f"{order}2sHIH", b"II" if order == "<" else b"MM", 42, 8, 2)
    tiff += struct.pack(f"{order}HHIHH", 0x0100, 3, 1, 7, 0) + struct.pack(
        f"{order}HHIHH", 0x0112, 3, 1, kind, 0
    )
    contents = file_of(
        picture("RGB"), "JPEG", exif=b"Exif\0\0" + tiff + bytes(4), comment=b"\xff\xe1 no EXIF"
    )
    assert oriented(contents) == (kind if 1 <= kind <= 8 else 1)
    np.testing.assert_array_equal(decoded(contents), expected(tmp_path / "image", contents))


def test_grey_and_colours_for_each_other():
    colours, grey = decoded(file_of(picture("RGB"), "PNG")), decoded(file_of(picture("L"), "PNG"))
    assert as_rgb(colours) is not None and np.array_equal(as_rgb(colours), colours)
    np.testing.assert_array_equal(as_rgb(grey), np.repeat(grey, 3, -1))
    np.testing.assert_array_equal(as_grey(grey), grey)
    np.testing.assert_allclose(as_grey(colours)[..., 0], colours.numpy() @ [0.299, 0.587, 0.114], atol=1e-4)


def png_that_claims(height: int, width: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )


@pytest.mark.parametrize(
    "contents, message",
    [
        (b"", "neither a JPEG nor a PNG"),
        (b"GIF89a", r"neither a JPEG nor a PNG file; .*\] \[71 73 70 56 57 97\]"),
        (file_of(picture("RGB"), "PNG")[:20], r"ends in its header; .*\] \[?20"),
        (file_of(picture("RGB"), "PNG")[:200], "Invalid PNG"),
        (file_of(picture("RGB"), "JPEG")[:300], "Invalid JPEG|JPEG"),
        (file_of(picture("RGB"), "JPEG")[:3], "JPEG"),
        (file_of(picture("CMYK"), "JPEG"), "four colours"),
        (file_of(picture("RGB", (101, 100)), "PNG"), r"more than 10000 pixels, or of none: height and width are\] \[100 101\]"),
        (file_of(picture("RGB", (101, 100)), "JPEG"), r"more than 10000 pixels, or of none: height and width are\] \[100 101\]"),
        (png_that_claims(60_000, 60_000), r"\[60000 60000\]"),
        (png_that_claims(2**31 + 5, 2), "more than 10000 pixels"),
        (png_that_claims(0, 2), "more than 10000 pixels"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused(contents, message):
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        decoded(contents)


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_no_header_is_misread(data):
    """Whatever the bytes before the image are, an orientation is found, and never one that is none."""
    whole = file_of(
        picture("RGB"), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"
    )
    contents = bytearray(whole)
    for place in data.draw(st.lists(st.integers(2, 120), max_size=4)):
        contents[place] = data.draw(st.integers(0, 255))
    assert 1 <= oriented(bytes(contents)) <= 8
    assert 1 <= oriented(bytes(contents[: data.draw(st.integers(0, len(contents)))])) <= 8
