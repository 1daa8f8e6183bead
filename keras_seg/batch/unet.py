"""What a batch does with a U-Net: label tiles of images of any size, equal to `segment`."""

from __future__ import annotations

import dataclasses
import io
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import tifffile

from keras_seg import overlap_tile
from keras_seg.batch.folder import Failure, Folder, Image, Outcome, Shard
from keras_seg.batch.windows import TiffWindows, open_stack

if TYPE_CHECKING:
    from keras_seg.export.loaded import Exported
    from keras_seg.models.unet import UNet

__all__ = ["Joining", "Tile", "UNetWork", "unet_work"]

UNREADABLE = (ValueError, OSError)  # what reading an image raises if it is the image's fault


@dataclasses.dataclass(frozen=True)
class Tile:
    """A tile of the output: of one page of an image, the rows and columns that it contributes, (start, stop).

    side: height and width of the network's output, which may exceed these; None: the page is computed whole.
    """

    image: Image
    page: int
    rows: tuple[int, int]
    columns: tuple[int, int]
    side: tuple[int, int] | None
    result: str

    @property
    def key(self) -> str:
        return f"{self.image.key}-z{self.page}-y{self.rows[0]}-x{self.columns[0]}"


@dataclasses.dataclass(frozen=True)
class Joining:
    """The tiles of an image, to become one file."""

    image: Image
    shape: tuple[int, int, int]  # pages, height, width
    tiles: tuple[Tile, ...]
    result: str

    @property
    def key(self) -> str:
        return self.image.key


@dataclasses.dataclass(frozen=True)
class UNetWork:
    """How the images are segmented; `unet_work` checks and completes it.

    tile, multiple: the largest side of an output tile, and where tiles may start; None: pages are computed whole.
    probabilities: write float32 [h, w, K] instead of the most probable class, uint8 [h, w]. join: also write each
    image's tiles as one file.
    """

    class_names: tuple[str, ...]
    channels: int
    tile: int | None
    multiple: int | None
    rotations: int
    value_range: tuple[float, float] | None
    precision: str
    probabilities: bool
    join: bool

    def units(self, shard: Shard, folder: Folder) -> Iterator[Tile | Joining | Failure]:
        """The tiles of a shard's images, and what is to be done after them."""
        for image in shard.images:
            try:
                shape = self._checked_shape(image)
            except UNREADABLE as error:
                yield Failure(image, str(error))
                continue
            tiles = list(self._tiles(image, shape))
            if self.join and len(tiles) > 1:
                yield Joining(image, shape, tuple(tiles), f"labels/{image.name}.tif")
            yield from tiles

    def run(self, model: UNet | Exported, tile: Tile, folder: Folder) -> Outcome:
        try:
            probabilities = self._probabilities(model, tile)
        except UNREADABLE as error:
            where = f"page {tile.page}, rows from {tile.rows[0]}, columns from {tile.columns[0]}"
            return Outcome(tile.key, failures=(Failure(tile.image, f"{where}: {error}"),))
        content = _tiff(probabilities if self.probabilities else _classes(probabilities))
        return Outcome(tile.key, files=((tile.result, content),), counts=(("tiles", 1),))

    def finish(self, joining: Joining, folder: Folder) -> Outcome:
        """Joins the tiles of an image, a tile at a time."""
        missing = [tile for tile in joining.tiles if not folder.has(tile.result)]
        if missing:
            error = f"not joined: {len(missing)} of {len(joining.tiles)} tiles failed"
            return Outcome(joining.key, failures=(Failure(joining.image, error),))
        tail = (len(self.class_names),) if self.probabilities else ()
        shape = (*joining.shape[joining.shape[0] == 1 :], *tail)
        dtype = np.float32 if self.probabilities else np.uint8
        with folder.writing(joining.result) as temporary:
            whole = tifffile.memmap(
                temporary,
                shape=shape,
                dtype=dtype,
                photometric="minisblack",
                planarconfig="contig" if tail else None,
            )
            pages = whole if joining.shape[0] > 1 else whole[None]
            for tile in joining.tiles:
                pages[tile.page, slice(*tile.rows), slice(*tile.columns)] = _array(folder.read(tile.result))
            whole.flush()
            del whole, pages
        return Outcome(joining.key, counts=(("joined", 1),))

    def _checked_shape(self, image: Image) -> tuple[int, int, int]:
        """Pages, height, width. Of an image that is read whole, each page is checked as `segment` does."""
        stack = open_stack(image.path, self.channels)
        if not isinstance(stack, TiffWindows):
            for n, page in enumerate(stack):
                name = image.path if len(stack) == 1 else f"{image.path}, slice {n}"
                overlap_tile.checked_extremes(page, self.value_range, name)
        return tuple(stack.shape[:3])

    def _tiles(self, image: Image, shape: tuple[int, int, int]) -> Iterator[Tile]:
        pages, *size = shape
        if self.tile is None or self.multiple is None:
            side, (rows, columns) = None, ([(0, length)] for length in size)
        else:
            (height, rows), (width, columns) = (
                overlap_tile.spans(length, self.tile, self.multiple) for length in size
            )
            side = height, width
        alone = pages * len(rows) * len(columns) == 1
        for page in range(pages):
            for top, bottom in rows:
                for left, right in columns:
                    place = "" if alone else f"/z{page:04d}_y{top:06d}_x{left:06d}"
                    result = f"labels/{image.name}{place}.tif"
                    yield Tile(image, page, (top, bottom), (left, right), side, result)

    def _probabilities(self, model: Any, tile: Tile) -> np.ndarray:
        """float32 [h, w, K] of the rows and columns of the tile."""
        page: Any = open_stack(tile.image.path, self.channels)[tile.page]
        if tile.side is None:
            whole = np.ascontiguousarray(page[slice(*tile.rows), slice(*tile.columns)])
            options = {} if self.value_range is None else {"value_range": self.value_range}
            return model.segment(whole, **options)
        pages: Any = [page]  # all that is asked of the stack is its pages
        tiles = overlap_tile.Tiles(
            model, pages, [_extremes(page.dtype, self.value_range)], self.value_range, tile.side, [tile.rows],
            [tile.columns], self.rotations, 1, self.precision,
        )  # fmt: skip
        [(_, _, _, probabilities)] = tiles.predict()
        return probabilities


def unet_work(
    model: Any,
    *,
    tile: int | None = None,
    rotations: int | None = None,
    value_range: tuple[float, float] | None = None,
    precision: str = "float32",
    probabilities: bool = False,
    join: bool = False,
) -> UNetWork:
    """The work of a U-Net: `tile`, `rotations`, `value_range` and `precision` as `segment_unet` takes them, the others
    as of `UNetWork`. A tile's default depends on the machine; it is that of the machine which starts the batch.

    model: a U-Net, or one that `export.load` gives. An exported model has its own tile, rotations and precision, and computes pages whole. ValueError: other values.
    """
    shared: dict[str, Any] = {
        "value_range": None if value_range is None else tuple(float(value) for value in value_range),
        "precision": precision,
        "probabilities": probabilities,
        "join": join,
    }
    if not hasattr(model, "legal_sizes"):
        if tile is not None or rotations is not None or precision != "float32":
            raise ValueError(
                "batch: an exported model has its own tile, rotations and precision; leave them out"
            )
        channels = model.about["recipe"]["model"]["input_channels"]
        names = model.class_names or [f"class {k}" for k in range(model.about["classes"])]
        return UNetWork(tuple(names), channels, None, None, 1, **shared)
    from keras_seg.inference import check_precision

    check_precision(precision)
    # what is wrong with the other options is said before the first image is read
    probe = np.arange(2, dtype=np.uint8).reshape(1, 1, 2, 1)
    checked = overlap_tile.tiles(
        model,
        probe,
        "batch",
        tile=tile,
        rotations=rotations,
        value_range=None,
        batch_size=1,
        precision=precision,
    )
    if model.normalization == "group":
        warnings.warn(
            f"batch: {model.name} has group normalisation, whose statistics are a tile's: in images of several tiles "
            "the tile matters",
            stacklevel=2,
        )
    names = model.class_names or [f"class {k}" for k in range(model.classes)]
    side = overlap_tile.legal_tile(model, model.tile if tile is None else tile)
    return UNetWork(tuple(names), model.input_channels, side, 2**model.depth, checked.rotations, **shared)


def _extremes(dtype: np.dtype, value_range: tuple[float, float] | None) -> np.ndarray:
    """Of no image in particular: a page is checked before, or too large to; a tile of it may be constant."""
    if value_range is not None:
        return np.array(value_range)
    return np.array([0, 65535 if dtype == np.uint16 else 255], dtype)


def _classes(probabilities: np.ndarray) -> np.ndarray:
    return probabilities.argmax(axis=-1).astype(np.uint8)


def _tiff(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(
        file, array, photometric="minisblack", compression="deflate",
        planarconfig="contig" if array.ndim == 3 else None,
    )  # fmt: skip
    return file.getvalue()


def _array(content: bytes) -> Any:
    return tifffile.imread(io.BytesIO(content))
