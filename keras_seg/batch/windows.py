"""Images of any size, a window at a time: small ones are read whole, of a large TIFF what the window needs."""

from __future__ import annotations

import contextlib
import functools
import os
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from keras_seg.data.images import STACK_AXES, read_image
from keras_seg.segment import as_stack

__all__ = ["TiffWindows", "open_image", "open_stack"]

WHOLE = 1 << 28  # bytes of an image, unpacked, up to which it is read whole


class TiffWindows:
    """The pages of a large TIFF; nothing is read before a window is asked for.

    Attributes:
        shape: (N, H, W, C), C being 1 or 3: alpha is left out.
        dtype: as stored; bilevel pages are uint8 0 and 255.

    `pages[n]` has `shape` (H, W, C) and gives windows: `page[top:bottom, left:right]`, or at positions int [h, 1] and
    [w], as NumPy indexes an array.

    Raises ValueError for what `data.images.read_stack` refuses too: a file that ends early, pages of several sizes or
    types, palettes, axes that are none of a stack of images. ModuleNotFoundError: compressed or tiled, without the
    package zarr.
    """

    def __init__(self, path: Path, file: tifffile.TiffFile, *, planes_are_pages: bool) -> None:
        series = file.series[0]
        page: Any = file.pages[0]
        if len(file.series) > 1:
            raise ValueError(f"{path}: pages of different sizes or types")
        if page.photometric in (tifffile.PHOTOMETRIC.MINISWHITE, tifffile.PHOTOMETRIC.PALETTE):
            raise ValueError(
                f"{path}: stored as {page.photometric.name}: save it as grey (MINISBLACK) or RGB"
            )
        axes = series.axes
        if axes == "SYX" and planes_are_pages:
            axes = "QYX"
        stack = axes.replace("S", "")
        if stack != "YX" and not (len(stack) == 3 and stack.endswith("YX") and stack[0] in STACK_AXES):
            raise ValueError(
                f"{path}: shape {list(series.shape)} with axes {axes}; expected one image or one stack of images"
            )
        _check_complete(path, series)
        self.path, self._axes, self._file = path, axes, file
        self._data = _lazy_array(path, series)
        length = dict(zip(axes, series.shape, strict=True))
        channels = 3 if length.get("S", 1) >= 3 else 1
        self.shape = (length[stack[0]] if len(stack) == 3 else 1, length["Y"], length["X"], channels)
        self.dtype = np.dtype(np.uint8) if series.dtype == bool else series.dtype.newbyteorder("=")

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, n: int) -> _Page:
        return _Page(self, range(len(self))[n])

    def read(self, n: int, rows: slice, columns: slice) -> np.ndarray:
        """One window of page n, [h, w, C]."""
        place = {"Y": rows, "X": columns, "S": slice(None)}
        try:
            window = np.asarray(self._data[tuple(place.get(axis, n) for axis in self._axes)])
        except Exception as error:  # codecs raise many kinds, several of them their own
            raise ValueError(f"{self.path}: the TIFF is truncated or damaged ({error})") from error
        left = [axis for axis in self._axes if axis in place]
        window = np.moveaxis(window, left.index("S"), -1) if "S" in left else window[..., None]
        window = window[..., : self.shape[-1]]
        return window.astype(np.uint8) * np.uint8(255) if window.dtype == bool else window.astype(self.dtype)


class _Page:
    def __init__(self, pages: TiffWindows, n: int) -> None:
        self._pages, self._n = pages, n
        self.shape, self.dtype = pages.shape[1:], pages.dtype

    def __getitem__(self, window: tuple[Any, Any]) -> np.ndarray:
        rows, columns = window
        if isinstance(rows, slice):
            return self._pages.read(self._n, rows, columns)
        top, left = int(rows.min()), int(columns.min())
        around = slice(top, int(rows.max()) + 1), slice(left, int(columns.max()) + 1)
        return self._pages.read(self._n, *around)[rows - top, columns - left]


def open_stack(path: str | Path, channels: int) -> np.ndarray | TiffWindows:
    """An image for a U-Net of so many channels, [N, H, W, C]; errors as of `segment_unet`."""
    large = _opened(str(path), _version(path), planes_are_pages=True)
    if large is None:
        return _whole_stack(str(path), _version(path), channels)
    if large.shape[-1] != channels and {large.shape[-1], channels} != {1, 3}:
        raise ValueError(f"{path}: {large.shape[-1]} channels, but the model takes {channels}")
    return large


def open_image(path: str | Path) -> np.ndarray | _Page:
    """An image for a detector, [H, W, C]; errors as of `data.images.read_image`."""
    large = _opened(str(path), _version(path), planes_are_pages=False)
    if large is None:
        return _whole_image(str(path), _version(path))
    if len(large) != 1:
        raise ValueError(f"{path}: holds {len(large)} pages where one image is expected")
    return large[0]


# The image used last stays open, since its windows come one after the other. `version` tells a file that was replaced.


@functools.lru_cache(maxsize=1)
def _opened(path: str, version: Any, *, planes_are_pages: bool) -> TiffWindows | None:
    """None: not a TIFF, a small one, or one that tifffile cannot open; reading it whole will say so."""
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(tifffile.TiffFile(path))
            large = file.series[0].nbytes > WHOLE
        except Exception:  # noqa: BLE001  tifffile raises many kinds; reading it whole names what is wrong
            return None
        if not large:
            return None
        windows = TiffWindows(Path(path), file, planes_are_pages=planes_are_pages)
        stack.pop_all()  # stays open
        return windows


@functools.lru_cache(maxsize=1)
def _whole_stack(path: str, version: Any, channels: int) -> np.ndarray:
    return as_stack(path, channels)[0]


@functools.lru_cache(maxsize=1)
def _whole_image(path: str, version: Any) -> np.ndarray:
    return read_image(path)


def _version(path: str | Path) -> tuple[int, int]:
    try:
        about = os.stat(path)
    except OSError:  # the reader has the message for it
        return 0, 0
    return about.st_mtime_ns, about.st_size


def _check_complete(path: Path, series: tifffile.TiffPageSeries) -> None:
    """Parts that lie beyond the end of the file would be read as zeros."""
    size = path.stat().st_size
    for page in series.pages:
        if page is not None and any(
            start + length > size
            for start, length in zip(page.dataoffsets, page.databytecounts, strict=False)
        ):
            raise ValueError(f"{path}: the TIFF is truncated or damaged (it ends before its pixels do)")


def _lazy_array(path: Path, series: tifffile.TiffPageSeries) -> Any:
    if series.dataoffset is not None and series.keyframe.is_memmappable:
        return tifffile.memmap(path, mode="r")
    try:
        import zarr
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{path}: to read parts of a compressed or tiled TIFF needs the package zarr: pip install 'keras_seg[beam]'"
        ) from error
    return zarr.open(series.aszarr(level=0), mode="r")
