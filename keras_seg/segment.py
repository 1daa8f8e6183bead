"""Image in, result out: class probabilities of a U-Net, objects of a detector."""

from __future__ import annotations

import math
import os
import shutil
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from keras_seg import overlap_tile

if TYPE_CHECKING:
    from keras_seg.models.mask_rcnn import MaskRCNN
    from keras_seg.models.unet import UNet

__all__ = ["instances", "segment", "segment_tiles", "segment_unet"]

# Left open, a progress bar is drawn from this many passes of a tile through the network.
MANY_PASSES = 16


def segment(model: UNet | MaskRCNN, image: Any, **options: Any) -> Any:
    """Segment an image: `segment_unet` for a U-Net, `detect.detect` for a detector; these say which options there are.

    image: a path, PIL image or array; for a U-Net also a stack of slices, for a detector also a list or an iterator of images.

    Returns class probabilities float32 [H, W, K], of a stack [N, H, W, K]; or the `Instances` of each image. Type checkers know
    what `segment_unet` and `detect.detect` return.

    Raises TypeError for another model or an unknown option, and what the two raise.
    """
    if hasattr(model, "short_side"):
        from keras_seg.detect import detect

        return detect(model, image, **options)
    return segment_unet(model, image, **options)


def segment_unet(
    model: UNet,
    image: Any,
    *,
    tile: int | None = None,
    rotations: int | None = None,
    out: str | Path | np.ndarray | None = None,
    value_range: tuple[float, float] | None = None,
    batch_size: int = 1,
    precision: str = "float32",
    progress: bool | None = None,
) -> np.ndarray:
    """Class probabilities of an image, or of every slice of a stack ([N] slices, [H, W] pixels, [K] classes).

    The image is continued beyond its borders by mirroring (the border pixel is not repeated) and goes through
    the network in overlapping tiles (Ronneberger et al. 2015, Figure 2). The result is that of the whole
    image at once, to 1e-5, whatever the tile: each tile is computed with all the context that can influence
    it, and starts where the pooling grid of the whole image does. Only group normalisation, whose statistics
    are those of a tile, makes the tile matter; a warning says so.

    Args:
        model: a U-Net (`zoo.load` or `models.unet`).
        image: path of an image or of a multi-page TIFF stack, PIL image, or array: [H, W], [H, W, C], [N, H,
            W] or [N, H, W, C], any size, uint8, uint16 or float 0-255. Three axes are one image if the last
            is as long as the model has channels, or 1 or 3; else a stack of grey slices (slices that narrow:
            [N, H, W, 1]). Grey is repeated for an RGB model; for a grey model RGB becomes its luma (ITU-R
            BT.601).
        tile: largest side of an output tile. Multiples of 2**depth are legal with "same" padding; with
            "valid" padding the output sides of legal inputs (388 for the paper's network). The tiles used are
            as even as they can be, hence often smaller. Larger ones repeat less context and take more memory.
            None: the model's own, else the largest legal one from 512 to 1024 whose maps of the first level take 256
            MB, of which some five are there at once.
        rotations: how many symmetries of the square to average, 1 to 8, in the order of
            `overlap_tile.SYMMETRIES`: 1 is the image as it is; 4 its turns by 0, 90, 180 and 270 degrees,
            counter-clockwise; 8 these and the same turns of its mirror image (left to right). The paper
            averages "7 rotated versions" and does not say which: 7 here is all but the mirror image turned by
            270 degrees. None: the model's own.
        out: a float32 array or memmap for the result; or a path ending in .npy, whose file is complete or
            absent. None: a new array.
        value_range: the values that become 0 and 255, see `data.images.to_float`.
        batch_size: tiles to compute at once.
        precision: "float32", or "bfloat16", faster on processors that multiply such numbers, and less exact
            (docs/performance.md). UserWarning on others, where it is slower.
        progress: draw a progress bar on stderr; None: if there is much to do and stderr is a terminal.

    Returns:
        float32 [H, W, K], for a stack [N, H, W, K]: the array given as `out`, or its .npy file as a read-only
        memmap.

    Raises:
        FileNotFoundError: no such image.
        TypeError: the model is no U-Net.
        ValueError: an image that cannot be read, is constant, holds NaN, or has other channels or another
            type than these; an illegal tile (the nearest legal ones are named) or option; an `out` of other
            shape or type; a model whose output is not finite.
        OSError: too little disk space for `out`.
    """
    stack, is_stack, name = _as_stack(image, model)
    options: dict[str, Any] = {
        "tile": tile,
        "rotations": rotations,
        "value_range": value_range,
        "batch_size": batch_size,
    }
    options["precision"] = precision
    tiles = overlap_tile.tiles(model, stack, name, **options)
    _warn_of_group_statistics(tiles)
    shape = (*stack.shape[:3], model.classes)
    result, partial = _open_result(out, shape if is_stack else shape[1:])
    slices = result if is_stack else result[None]
    try:
        for n, y, x, probabilities in _with_progress(tiles, progress):
            height, width = probabilities.shape[:2]
            slices[n, y : y + height, x : x + width] = probabilities
    except BaseException:
        if partial is not None:
            partial.unlink(missing_ok=True)
        raise
    if partial is None:
        return result
    cast(np.memmap, result).flush()
    path = cast("str | Path", out)
    os.replace(partial, path)
    return np.load(path, mmap_mode="r")


def segment_tiles(
    model: UNet,
    image: Any,
    *,
    tile: int | None = None,
    rotations: int | None = None,
    value_range: tuple[float, float] | None = None,
    batch_size: int = 1,
    precision: str = "float32",
) -> Iterator[tuple[int, int, np.ndarray]]:
    """The tiles of `segment` one by one, for a result that is too large to keep or is reduced on the way.

    image: one image, as in `segment`. A np.memmap is read as the tiles need it, so that memory is bounded by
    the tile. The other arguments and the errors are those of `segment`.

    Yields (y, x, probabilities): the upper left pixel and float32 [h, w, K]; row by row, each pixel once.
    """
    stack, is_stack, name = _as_stack(image, model)
    if is_stack:
        raise ValueError(f"{name}: a stack of {len(stack)} slices; segment_tiles takes one image at a time")
    options: dict[str, Any] = {
        "tile": tile,
        "rotations": rotations,
        "value_range": value_range,
        "batch_size": batch_size,
    }
    options["precision"] = precision
    tiles = overlap_tile.tiles(model, stack, name, **options)
    _warn_of_group_statistics(tiles)
    return ((y, x, probabilities) for _, y, x, probabilities in tiles.predict())


def instances(probability: np.ndarray, threshold: float = 0.5) -> np.ndarray:
    """The objects of one class: 4-connected components of the pixels whose probability exceeds the threshold.

    probability: [H, W], 0-1, one class of one slice (`segment(...)[..., 1]`). Returns int32 [H, W]: 0 is no
    object, k > 0 the k-th object met row by row. ValueError for another shape or values outside 0-1.
    """
    from scipy import ndimage

    probability = np.asarray(probability)
    if probability.ndim != 2 or probability.size == 0:
        raise ValueError(
            f"instances: takes one class of one slice, [H, W], got shape {list(probability.shape)}"
        )
    if not (probability.min() >= 0 and probability.max() <= 1):
        raise ValueError("instances: probabilities must lie within 0-1 and not be NaN")
    return ndimage.label(probability > threshold, output=np.int32)[0]


def _as_stack(image: Any, model: UNet) -> tuple[np.ndarray, bool, str]:
    if not hasattr(model, "legal_sizes"):
        raise TypeError(f"segment: takes a U-Net of keras_seg.models.unet, got {type(model).__name__}")
    return as_stack(image, model.input_channels)


def as_stack(image: Any, channels: int) -> tuple[np.ndarray, bool, str]:
    """An image as `segment` takes it, for a U-Net of so many channels: ([N, H, W, C], whether it was given as a stack, its
    name in messages)."""
    from PIL import Image

    from keras_seg.data.images import read_stack

    if isinstance(image, (str, Path)):
        stack, name = read_stack(image), str(image)
        stack = stack[..., None] if stack.ndim == 3 else stack
        is_stack = len(stack) > 1
    else:
        array, name = _pixels(image) if isinstance(image, Image.Image) else np.asanyarray(image), "image"
        if array.ndim not in (2, 3, 4):
            raise ValueError(
                f"{name}: shape {list(array.shape)}; give [H, W], [H, W, C], [N, H, W] or [N, H, W, C]"
            )
        # 2 and 4 are no channels of ours, but grey and RGB with alpha rather than slices that narrow
        has_channels = array.ndim == 4 or (array.ndim == 3 and array.shape[-1] in {channels, 1, 2, 3, 4})
        array = array if has_channels else array[..., None]
        is_stack = array.ndim == 4
        stack = array if is_stack else array[None]
    if stack.size == 0:
        raise ValueError(f"{name}: the image is empty, its shape is {list(stack.shape)}")
    given = stack.shape[-1]
    if given != channels and {given, channels} != {1, 3}:
        hint = (
            f"; without alpha it is image[..., :{given - 1}]"
            if given in (2, 4) and channels in (1, 3)
            else ""
        )
        raise ValueError(f"{name}: {given} channels, but the model takes {channels}{hint}")
    return stack, is_stack, name


def _pixels(picture: Any) -> np.ndarray:
    """A PIL image without palette and alpha; 16-bit, 32-bit and float images stay what they are."""
    if picture.mode in ("1", "LA"):
        picture = picture.convert("L")
    elif picture.mode not in ("L", "RGB", "F") and not picture.mode.startswith("I"):
        picture = picture.convert("RGB")
    return np.asarray(picture)


def _open_result(out: Any, shape: tuple[int, ...]) -> tuple[np.ndarray, Path | None]:
    """(array to fill, the unfinished file behind it if `out` is a path)."""
    if out is None:
        return np.empty(shape, np.float32), None
    if isinstance(out, (str, Path)):
        out = Path(out)
        if out.suffix != ".npy" or not out.parent.is_dir():
            raise ValueError(f"out={str(out)!r}: must end in .npy and lie in an existing folder")
        needed, free = 4 * math.prod(shape), shutil.disk_usage(out.parent).free
        if needed > free:
            raise OSError(f"{out}: the result takes {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free")
        partial = out.with_name(f".{out.name}.partial")
        try:
            array = np.lib.format.open_memmap(partial, "w+", np.float32, shape)
            _reserve(partial)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise OSError(error.errno, f"could not write {out} ({error.strerror or error})") from error
        return array, partial
    if not (
        isinstance(out, np.ndarray) and out.dtype == np.float32 and out.shape == shape and out.flags.writeable
    ):
        got = f"{out.dtype} {list(out.shape)}" if isinstance(out, np.ndarray) else type(out).__name__
        raise ValueError(f"out: must be a path or a writeable float32 array {list(shape)}, got {got}")
    return out, None


def _reserve(path: Path) -> None:
    """Claims the disk space of a file's length: a process that writes to a file in memory dies where the disk is full."""
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def _warn_of_group_statistics(tiles: overlap_tile.Tiles) -> None:
    if tiles.model.normalization == "group" and len(tiles.rows) * len(tiles.columns) > 1:
        warnings.warn(
            "segment: group normalisation takes its statistics from a tile, so that the tile matters; "
            f"one of at least {max(tiles.stack.shape[1:3])} pixels holds the whole image",
            stacklevel=3,
        )


def _with_progress(
    tiles: overlap_tile.Tiles, show: bool | None
) -> Iterator[tuple[int, int, int, np.ndarray]]:
    """The predictions of the tiles, counted on stderr as they are taken."""
    if show is None:
        show = len(tiles) > 1 and len(tiles) * tiles.rotations >= MANY_PASSES and sys.stderr.isatty()
    if not show:
        yield from tiles.predict()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("segmenting"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("tiles"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        yield from bar.track(tiles.predict(), total=len(tiles))
