"""Image files in, NumPy arrays out: PNG, JPEG, TIFF and multi-page TIFF, with messages that name the file.

A file is known by its first bytes, not by its name. Reading keeps the stored values; `to_float` brings them
to the 0-255 that models take.
"""

from __future__ import annotations

import contextlib
import logging
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import tifffile
from PIL import Image, ImageOps, UnidentifiedImageError

TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # little and big endian, classic and BigTIFF
JPEG_MAGIC = b"\xff\xd8\xff"
STACK_AXES = "ZTCQI"  # what tifffile calls the page axis of a stack: depth, time, channel, other, sequence
# tifffile logs these and goes on with the pages that it could read; we stop instead.
TIFF_DAMAGE = ("invalid page offset", "failed", "corrupt", "truncated", "segments, got")
# What a TIFF's numbers must mean; in JPEG colours come as YCbCr, and are decoded to RGB.
PLAIN = (tifffile.PHOTOMETRIC.MINISBLACK, tifffile.PHOTOMETRIC.RGB)
JPEG_IN_TIFF = (tifffile.COMPRESSION.OJPEG, tifffile.COMPRESSION.JPEG)
# A TIFF that unpacks to more than this many bytes, and to more than so many times its own size, is no picture: one of a
# single value packs to a thousandth (deflate) or, by zstd, to a six-thousandth.
UNPACKED, PACKING = 1 << 28, 20_000


def read_image(path: str | Path) -> np.ndarray:
    """Read one image -> `[H, W, C]`, C = 1 (grey) or 3 (RGB; alpha dropped), in the stored dtype.

    uint8, uint16 or float32 as a rule; bilevel images come as uint8 0 and 255, palettes as RGB. The EXIF
    orientation is applied. Pillow gives 16-bit RGB PNG as 8 bit; 16-bit RGB TIFF keeps its 16 bits.

    Raises FileNotFoundError, or ValueError for an empty, truncated or foreign file, one that unpacks to far more than it
    can hold, a stack of several pages or an animation.
    """
    path = _checked(path)
    if not _is_tiff(path):
        with _pillow(path) as picture:
            return _pillow_array(picture)
    stack = _read_tiff(path, planes="RGB")
    if len(stack) != 1:
        raise ValueError(f"{path}: holds {len(stack)} pages where one image is expected")
    return stack[0]


def read_mask(path: str | Path, *, rgb: bool = False) -> np.ndarray:
    """Read one label image -> `[H, W]` in the stored dtype, or `[H, W, 3]` uint8 with rgb=True.

    The values of a palette image are its indices with rgb=False and its colours with rgb=True.

    Raises as `read_image`, and ValueError for a JPEG, whose compression changes label values, and where grey
    is stored but RGB is asked for or the reverse.
    """
    path = _checked(path)
    if _starts_with(path, JPEG_MAGIC):
        raise ValueError(
            f"{path}: JPEG changes pixel values, so it cannot hold labels: save masks as PNG or TIFF"
        )
    if _is_tiff(path):
        mask = read_image(path)
    else:
        with _pillow(path) as picture:
            if picture.mode == "P" and not rgb:
                mask = np.asarray(picture)[..., None]
            else:
                mask = _pillow_array(picture)
    if mask.shape[-1] != (3 if rgb else 1):
        stored, asked = ("a grey image", "RGB colours") if rgb else ("an RGB image", "one number a pixel")
        raise ValueError(f"{path}: {stored}, but the classes are given as {asked}")
    return mask if rgb else mask[..., 0]


def read_stack(path: str | Path) -> np.ndarray:
    """Read a multi-page TIFF -> `[N, H, W]` (grey) or `[N, H, W, 3]` (RGB), in the stored dtype.

    A single image (of any format) is a stack of one; but the three planes of a planar RGB TIFF are taken as
    three grey pages, because that is how common writers (tifffile, scikit-image) store a stack of three.
    Raises as `read_image`, and ValueError for pages that differ in size or type.
    """
    path = _checked(path)
    stack = _read_tiff(path, planes="pages") if _is_tiff(path) else read_image(path)[None]
    return stack[..., 0] if stack.shape[-1] == 1 else stack


def to_float(
    image: np.ndarray,
    value_range: tuple[float, float] | None = None,
    name: str = "image",
    *,
    may_be_constant: bool = False,
) -> np.ndarray:
    """Bring an image of any shape to float32 0-255.

    Without value_range: uint8 as it is, uint16 times 255 / 65535, floats as they are (they must be within
    0-255). With value_range=(low, high), for all of these: low -> 0, high -> 255, linearly, clipped.

    Raises ValueError, starting with `name`, for other dtypes, NaN or infinite values, floats outside 0-255,
    an image whose pixels are all equal (before or after clipping) unless it may_be_constant, and a value_range that is
    empty or reversed.
    """
    image = np.asarray(image)
    if image.dtype not in (np.uint8, np.uint16) and image.dtype.kind != "f":
        raise ValueError(f"{name}: {image.dtype} pixels; images are uint8, uint16 or float 0-255")
    if image.size == 0:
        raise ValueError(f"{name}: the image is empty, its shape is {list(image.shape)}")
    if image.dtype.kind == "f" and not np.isfinite(image).all():
        bad = int(image.size - np.isfinite(image).sum())
        raise ValueError(f"{name}: {bad} of {image.size} pixel values are NaN or infinite")
    low, high = float(image.min()), float(image.max())
    if low == high and not may_be_constant:
        raise ValueError(f"{name}: the image is constant, every pixel is {low:g}: nothing to see in it")
    if value_range is not None:
        return _stretch(image, value_range, name, may_be_constant)
    if image.dtype == np.uint16:
        return image.astype(np.float32) * np.float32(255 / 65535)
    if low < 0 or high > 255:
        raise ValueError(
            f"{name}: float values from {low:g} to {high:g}, outside 0-255: give value_range=(low, high), "
            "the values that become 0 and 255"
        )
    return image.astype(np.float32)


def _stretch(
    image: np.ndarray, value_range: tuple[float, float], name: str, may_be_constant: bool
) -> np.ndarray:
    low, high = (float(value) for value in value_range)
    if not (np.isfinite([low, high]).all() and low < high):
        raise ValueError(
            f"{name}: value_range=({low:g}, {high:g}) must be (low, high), finite, with low < high"
        )
    scaled = np.clip((image.astype(np.float64) - low) * (255 / (high - low)), 0, 255).astype(np.float32)
    if scaled.min() == scaled.max() and not may_be_constant:
        raise ValueError(
            f"{name}: constant once clipped to value_range=({low:g}, {high:g}): its values run from "
            f"{float(image.min()):g} to {float(image.max()):g}"
        )
    return scaled


def _checked(path: str | Path) -> Path:
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    if not path.is_file():
        raise ValueError(f"{path}: a folder, not an image file")
    if path.stat().st_size == 0:
        raise ValueError(f"{path}: the file is empty (0 bytes)")
    return path


def _starts_with(path: Path, *magic: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(4).startswith(magic)


def _is_tiff(path: Path) -> bool:
    return _starts_with(path, *TIFF_MAGIC)


def frames_of(picture: Image.Image) -> int:
    """How many frames an animation has, else 1: the further pictures of a photograph (MPO: a preview, the other eye) do
    not count."""
    return 1 if picture.format == "MPO" else getattr(picture, "n_frames", 1)


@contextlib.contextmanager
def _pillow(path: Path) -> Iterator[Image.Image]:
    """The decoded picture, upright."""
    try:
        with Image.open(path) as picture:
            if (frames := frames_of(picture)) > 1:
                raise ValueError(
                    f"{path}: an animation of {frames} frames where one image is expected; save the frame you mean as PNG, "
                    "or all as the pages of a TIFF"
                )
            picture.load()
            yield ImageOps.exif_transpose(picture)
    except UnidentifiedImageError as error:
        raise ValueError(f"{path}: not an image (PNG, JPEG or TIFF)") from error
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"{path}: too large for {path.suffix or 'this format'} ({error}): save it as TIFF"
        ) from error
    except (OSError, SyntaxError, struct.error) as error:  # Pillow raises SyntaxError for a broken PNG chunk
        raise ValueError(f"{path}: the image is truncated or damaged ({error})") from error


def _pillow_array(picture: Image.Image) -> np.ndarray:
    if picture.mode in ("1", "LA"):
        picture = picture.convert("L")
    elif picture.mode not in ("L", "RGB", "F", "I") and not picture.mode.startswith("I;16"):
        picture = picture.convert("RGB")  # palettes, CMYK, YCbCr, alpha
    array = np.asarray(picture)
    if picture.mode == "I" and array.min() >= 0 and array.max() <= 65535:
        array = array.astype(np.uint16)  # some 16-bit files arrive in 32 bits
    return array[..., None] if array.ndim == 2 else array


def _read_tiff(path: Path, *, planes: Literal["RGB", "pages"]) -> np.ndarray:
    """All pages -> `[N, H, W, C]`. planes: what the separate planes of one page are."""
    try:
        with _tiff_damage() as damage, tifffile.TiffFile(path) as file:
            series, page = file.series, file.pages[0]
            shape, axes = series[0].shape, series[0].axes
            photometric, compression = (getattr(page, field) for field in ("photometric", "compression"))
            _check_unpacked(path, series[0].nbytes)
            array = series[0].asarray()
    except DecompressionBomb:
        raise
    except Exception as error:  # tifffile and its codecs raise many kinds, several of them their own
        raise ValueError(f"{path}: the TIFF is truncated or damaged ({error})") from error
    if damage:
        raise ValueError(f"{path}: the TIFF is truncated or damaged ({damage[0]})")
    if len(series) > 1:
        raise ValueError(
            f"{path}: pages of different sizes or types, {[list(part.shape) for part in series]}"
        )
    inks = photometric == tifffile.PHOTOMETRIC.SEPARATED and axes == "YXS" and shape[-1] == 4
    if inks and array.dtype == np.uint8:
        array = np.asarray(
            Image.frombytes("CMYK", (shape[1], shape[0]), np.ascontiguousarray(array)).convert("RGB")
        )
    elif not (
        photometric in PLAIN or (photometric == tifffile.PHOTOMETRIC.YCBCR and compression in JPEG_IN_TIFF)
    ):
        stored = getattr(photometric, "name", photometric)
        raise ValueError(
            f"{path}: stored as {stored} (its values are not grey values): save it as grey (MINISBLACK) or RGB"
        )
    if axes == "SYX" and planes == "pages":
        axes = "QYX"
    if "S" in axes:  # samples of one pixel: grey with alpha, RGB, RGB with alpha
        array = np.moveaxis(array, axes.index("S"), -1)
        array = array[..., :3] if array.shape[-1] >= 3 else array[..., :1]
        axes = axes.replace("S", "")
    else:
        array = array[..., None]
    if axes == "YX":
        array = array[None]
    elif not (len(axes) == 3 and axes.endswith("YX") and axes[0] in STACK_AXES):
        raise ValueError(
            f"{path}: shape {list(shape)} with axes {axes}; expected one image or one stack of images"
        )
    return array.astype(np.uint8) * np.uint8(255) if array.dtype == bool else array


class DecompressionBomb(ValueError):
    """A file that unpacks to far more than it can hold."""


def _check_unpacked(path: Path, unpacked: int) -> None:
    packed = path.stat().st_size
    if unpacked > max(UNPACKED, PACKING * packed):
        raise DecompressionBomb(
            f"{path}: {packed} bytes that say they unpack to {unpacked / 1e9:.1f} GB: damaged, or made to fill the memory. If "
            "it is a picture after all, save it without compression"
        )


@contextlib.contextmanager
def _tiff_damage() -> Iterator[list[str]]:
    """Collect, instead of printing, what tifffile logs about a damaged file."""
    found: list[str] = []

    def keep(record: logging.LogRecord) -> bool:
        if any(word in record.getMessage() for word in TIFF_DAMAGE):
            found.append(record.getMessage())
            return False
        return True

    logger = logging.getLogger("tifffile")
    logger.addFilter(keep)
    try:
        yield found
    finally:
        logger.removeFilter(keep)
