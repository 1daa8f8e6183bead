"""U-Net's overlap-tile strategy: tiles with mirrored borders that join to the whole image's prediction.

Ronneberger, Fischer, Brox 2015: Section 1 and Figure 2 (tiles, mirroring), Section 4 (averaged rotations).
`segment` is the way to it for users.

N slices, h x w pixels of a tile, C channels, K classes; lengths are in pixels.
"""

from __future__ import annotations

import functools
import itertools
import math
import os
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_seg.out_of_memory import advising

if TYPE_CHECKING:
    import keras

    from keras_seg.models.unet import UNet

# The symmetries of the square, in the order in which `rotations` takes them; turns are counter-clockwise.
SYMMETRIES = (
    "as it is", "turned by 90°", "turned by 180°", "turned by 270°",
    "mirrored", "mirrored, turned by 90°", "mirrored, turned by 180°", "mirrored, turned by 270°",
)  # fmt: skip

# Where neither the caller nor the model gives an output tile's side, it is the largest that keeps the maps of the first
# level, of which some five are there at once, within so many bytes, or a 32nd of the machine's memory; but no less and no
# more than these sides. The border costs a tenth of the time at 2048 pixels, and a fifth at 1024.
DEFAULT_BYTES, DEFAULT_TILES = 2**29, (512, 2048)

LUMA = np.array([[0.299], [0.587], [0.114]], np.float32)  # grey of R, G, B: ITU-R BT.601


@dataclass(frozen=True)
class Tiles:
    """A stack cut into tiles of one size; `predict` goes through them."""

    model: UNet
    stack: np.ndarray  # [N, H, W, C], with the channels, type and range of the file
    extremes: list[np.ndarray]  # of each slice: its least and its greatest value
    value_range: tuple[float, float] | None
    side: tuple[int, int]  # height and width of the output tiles
    rows: list[tuple[int, int]]  # start and stop of the pixels that each row of tiles contributes
    columns: list[tuple[int, int]]
    rotations: int
    batch_size: int
    precision: str

    def __len__(self) -> int:
        return len(self.stack) * len(self.rows) * len(self.columns)

    def predict(self) -> Iterator[tuple[int, int, int, np.ndarray]]:
        """Yields (slice, y, x, probabilities float32 [h, w, K]), slice by slice, row by row, each pixel once.

        A tile is turned and mirrored with its context. That equals turning the whole image: within a tile of
        legal size the pooling grid is symmetric.
        """
        predict, border = _compiled(self.model, self.precision), border_of(self.model)
        windows = list(itertools.product(range(len(self.stack)), self.rows, self.columns))
        for first in range(0, len(windows), self.batch_size):
            batch = windows[first : first + self.batch_size]
            with advising(*self._demand()):
                inputs = np.stack([self._cut(n, y, x, border) for n, (y, _), (x, _) in batch])
                views = (turn_back(predict(turn(inputs, k)), k) for k in range(self.rotations))
                total = functools.reduce(np.add, views)
            mean = _inner(total / self.rotations if self.rotations > 1 else total, self.side)
            if not np.isfinite(mean).all():
                raise ValueError(
                    "segment: the model's output is not finite; its weights are damaged or diverged"
                )
            for (n, (top, bottom), (left, right)), probabilities in zip(batch, mean, strict=True):
                yield n, top, left, probabilities[: bottom - top, : right - left]

    def _demand(self) -> tuple[str, str]:
        """What takes memory, and what takes less."""
        count = "a tile" if self.batch_size == 1 else f"{self.batch_size} tiles"
        less = "batch_size=1" if self.batch_size > 1 else f"a tile smaller than {max(self.side)}"
        return (
            f"{count} of {self.side[0]}x{self.side[1]} pixels at once",
            f"use {less} (keras-seg segment --tile)",
        )

    def _cut(self, n: int, top: int, left: int, border: int) -> np.ndarray:
        """The input tile [h, w, C], float32 0-255, of the output tile that starts at (top, left)."""
        from keras_seg.data.images import to_float

        image, extremes = self.stack[n], self.extremes[n]
        rows, columns = (
            mirrored(np.arange(start - border, start + side + border), length)
            for start, side, length in zip((top, left), self.side, image.shape[:2], strict=True)
        )
        tile = image[rows[:, None], columns]
        # Scaled along with the image's extremes, since a tile may be constant where the image is not.
        values = to_float(np.concatenate((extremes, tile.ravel())), self.value_range)
        tile = values[len(extremes) :].reshape(tile.shape)
        return match_channels(tile, self.model.input_channels)


def tiles(
    model: UNet,
    stack: np.ndarray,
    name: str,
    *,
    tile: int | None,
    rotations: int | None,
    value_range: tuple[float, float] | None,
    batch_size: int,
    precision: str = "float32",
) -> Tiles:
    """Check the arguments, which are those of `segment`, and lay out the tiles.

    stack: [N, H, W, C]; name: what messages call it.
    """
    rotations = model.rotations if rotations is None else rotations
    if rotations not in range(1, len(SYMMETRIES) + 1):
        raise ValueError(
            f"segment: rotations must be an integer from 1 to {len(SYMMETRIES)}, got {rotations!r}"
        )
    if batch_size not in range(1, 2**31):
        raise ValueError(f"segment: batch_size must be a positive integer, got {batch_size!r}")
    tile = legal_tile(model, model.tile if tile is None else tile)
    (height, rows), (width, columns) = (spans(length, tile, 2**model.depth) for length in stack.shape[1:3])
    names = [name] if len(stack) == 1 else [f"{name}, slice {n}" for n in range(len(stack))]
    extremes = [checked_extremes(image, value_range, name) for image, name in zip(stack, names, strict=True)]
    return Tiles(
        model, stack, extremes, value_range, (height, width), rows, columns, rotations, batch_size, precision
    )


def match_channels(image: np.ndarray, channels: int) -> np.ndarray:
    """float32 [H, W, C] with as many channels as a model takes: colours become grey, grey is repeated."""
    if image.shape[-1] == channels:
        return image
    return image @ LUMA if channels == 1 else np.repeat(image, channels, axis=-1)


def border_of(model: UNet) -> int:
    """Pixels that a tile needs around it on each side."""
    return model.margin or model.context


def legal_tile(model: UNet, tile: int | None) -> int:
    """A legal side of an output tile: `tile`, or for None the largest that memory allows (DEFAULT_BYTES).

    ValueError, naming the nearest legal ones, if `tile` is not legal.
    """
    multiple, halo = 2**model.depth, 2 * border_of(model)
    wanted = _default_tile(model) if tile is None else int(tile)
    sizes = model.legal_sizes(max(wanted, multiple) + halo)
    # at least one cell of the pooling grid, by which tiles advance
    legal = sorted({size - halo for size in sizes if size is not None and size - halo >= multiple})
    if tile is None:
        return legal[0]
    if tile not in legal:
        raise ValueError(
            f"segment: tile={tile} is no legal side of an output tile for depth={model.depth}, "
            f"padding={model.padding!r}; nearest legal: {' or '.join(map(str, legal))}"
        )
    return wanted


def _default_tile(model: UNet) -> int:
    least, most = DEFAULT_TILES
    affordable = math.isqrt(_map_bytes() // (4 * model.base_channels)) - 2 * border_of(model)
    return min(max(affordable, least), most)


def _map_bytes() -> int:
    if "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", {}):
        return DEFAULT_BYTES // 2
    return min(DEFAULT_BYTES, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 32)


def _inner(probabilities: np.ndarray, side: tuple[int, int]) -> np.ndarray:
    """The middle [B, *side, K] of what the network gave, which exceeds a tile by as much on each side."""
    surplus = (probabilities.shape[1] - side[0]) // 2
    return probabilities[:, surplus : surplus + side[0], surplus : surplus + side[1]]


def spans(length: int, tile: int, multiple: int) -> tuple[int, list[tuple[int, int]]]:
    """Cover an axis by as few tiles as `tile` allows, these as small as that: (side, [(start, stop), …]).

    Tiles start at multiples of 2**depth, where pooling has the phase that it has in the whole image. The
    output sides of a "valid" network are 2**depth * k + 4 (depth > 2): its tiles overlap by those 4 pixels.
    """
    overlap = tile % multiple
    count = math.ceil(max(length - overlap, 1) / (tile - overlap))
    step = multiple * math.ceil(max(length - overlap, 1) / (count * multiple))
    stops = [*range(step, count * step, step), length]
    return step + overlap, list(zip(range(0, count * step, step), stops, strict=True))


def checked_extremes(image: np.ndarray, value_range: tuple[float, float] | None, name: str) -> np.ndarray:
    """The least and the greatest value of an image, which is checked by them: no copy of it is made."""
    from keras_seg.data.images import to_float

    numbers = image.dtype.kind in "uif"
    extremes = np.array([image.min(), image.max()]) if numbers else image
    # raises where something is wrong; given the whole image, it counts the NaN
    to_float(extremes if numbers and np.isfinite(extremes).all() else image, value_range, name)
    return extremes


def mirrored(index: np.ndarray, length: int) -> np.ndarray:
    """Positions on an axis that is continued by mirroring, as often as it takes (np.pad's "reflect")."""
    period = max(2 * (length - 1), 1)
    index = index % period
    return np.minimum(index, period - index) if length > 1 else index


def turn(tiles: np.ndarray, k: int) -> np.ndarray:
    """The k-th of SYMMETRIES of [B, h, w, C]."""
    return np.rot90(tiles[:, :, ::-1] if k >= 4 else tiles, k % 4, axes=(1, 2))


def turn_back(tiles: np.ndarray, k: int) -> np.ndarray:
    """Undoes `turn`."""
    tiles = np.rot90(tiles, -(k % 4), axes=(1, 2))
    return tiles[:, :, ::-1] if k >= 4 else tiles


# model -> by precision its compiled call
_COMPILED: weakref.WeakKeyDictionary[UNet, dict[str, Callable[[np.ndarray], np.ndarray]]] = (
    weakref.WeakKeyDictionary()
)


def _compiled(model: UNet, precision: str = "float32") -> Callable[[np.ndarray], np.ndarray]:
    """float32 [B, h, w, C] -> float32 [B, h', w', K]; traced once a model and precision, whatever the sizes.

    The output is the tile, with a few pixels around it if the network has "same" padding.
    """
    from keras_seg.inference import LOCK, Compiled

    with LOCK:
        calls = _COMPILED.setdefault(model, {})
        if precision not in calls:
            call = Compiled(without_surplus(model), precision)  # keeps the layers alive, not the model
            calls[precision] = lambda tiles: call(np.ascontiguousarray(tiles)).numpy()
        return calls[precision]


def without_surplus(model: UNet) -> keras.Model:
    """A U-Net with "same" padding that expands the tile alone, without the context around it.

    The context is for the contracting path. On the way up, what two convolutions can reach suffices at each level: maps are
    cropped before they are joined, which leaves zeros of the padding in the outermost pixels, and these are not the tile's.
    Group normalisation takes its statistics from whole maps; such a network stays as it is.
    """
    import keras

    from keras_seg.models.unet import CONVOLUTIONS

    functional = keras.Model(model.input, model.output, name=model.name)
    if model.margin or model.normalization == "group":
        return functional
    kept = [CONVOLUTIONS]  # pixels around the tile that stay, by level
    for _ in range(1, model.depth):
        kept.append(math.ceil(kept[-1] / 2) + CONVOLUTIONS)
    # and of what comes up from the level below, in its pixels; the lowest is whole
    below = [*kept[1:], model.context >> model.depth]

    def call(layer: keras.Layer, *args: Any, **kwargs: Any) -> Any:
        if not layer.name.endswith("_concat"):
            return layer(*args, **kwargs)
        level = int(layer.name.removeprefix("dec").removesuffix("_concat")) - 1
        surplus = ((model.context >> level) - kept[level], 2 * below[level] - kept[level])
        return layer(
            [keras.layers.Cropping2D(n)(x) if n else x for n, x in zip(surplus, args[0], strict=True)]
        )

    return keras.models.clone_model(functional, clone_function=lambda layer: layer, call_function=call)
