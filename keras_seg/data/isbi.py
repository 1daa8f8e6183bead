"""ISBI 2012 EM segmentation stacks: one multi-page TIFF of slices, one of labels.

Cardona et al. 2010, doi:10.1371/journal.pbio.1000502; Arganda-Carreras et al. 2015,
doi:10.3389/fnana.2015.00142. In the labels 255 is the inside of a cell and 0 the membrane between cells.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage

from keras_seg.data.images import read_stack, to_float
from keras_seg.data.sample import Sample
from keras_seg.losses import weight_map

if TYPE_CHECKING:
    import tensorflow as tf

CLASS_NAMES = ("membrane", "cell")


def read(
    volume: str | Path,
    labels: str | Path,
    *,
    slices: Iterable[int] | None = None,
    w0: float = 10,
    sigma: float = 5,
    class_weights: Sequence[float] | None = None,
    membrane_edge_weight: float = 1.0,
    value_range: tuple[float, float] | None = None,
    allow_single_class: bool = False,
) -> list[Sample]:
    """Read annotated slices; class 0 is membrane, class 1 the inside of a cell.

    The instances are the 4-connected components of each slice's cell interior. The weight is
    `losses.weight_map` of them (U-Net, equation 2; w0 without unit, sigma in pixels; class_weights for
    membrane and cell, None balances the two in each slice), times membrane_edge_weight on membrane pixels beside
    a cell: annotators agree on where a membrane runs, not on which pixel it ends at, and a network that is
    made to guess that pixel widens its membranes, at the cells' cost (a factor below 1 prevents it).

    volume: multi-page TIFF of `N` slices `[H, W]`. labels: multi-page TIFF of the same shape, values 0 and
    255 (or 0 and 1). slices: the slices to read, counted from 0; None for all. value_range: see
    `images.to_float`. allow_single_class: accept a slice that is all cell or all membrane.

    Raises FileNotFoundError or ValueError naming file and slice: unreadable files, stacks of different
    shapes, other label values, slices of one class, constant or NaN images, slices that do not exist.
    """
    images, annotations = read_stack(volume), read_stack(labels)
    if annotations.ndim != 3:
        raise ValueError(f"{labels}: RGB pages; labels must be grey pages of 0 and 255")
    if len(images) != len(annotations):
        raise ValueError(
            f"{volume} has {len(images)} slices, {labels} has {len(annotations)}: they must be as many"
        )
    if images.shape[1:3] != annotations.shape[1:3]:
        raise ValueError(
            f"{volume} has slices of {_size(images)} pixels, {labels} of {_size(annotations)}: they must be "
            "the same"
        )
    samples = []
    for index in _chosen(slices, len(images), volume):
        name = f"{volume} slice {index}"
        interior = _interior(annotations[index], f"{labels} slice {index}", allow_single_class)
        instances = ndimage.label(interior)[0].astype(np.int32)  # SciPy's default structure is 4-connected
        image = to_float(images[index], value_range, name)
        samples.append(
            Sample(
                name=name,
                image=image if image.ndim == 3 else image[..., None],
                label=interior.astype(np.int32),
                weight=np.where(_edge(interior), np.float32(membrane_edge_weight), np.float32(1))
                * weight_map(instances, w0=w0, sigma=sigma, class_weights=class_weights),
                instances=instances,
            )
        )
    return samples


def isbi(
    volume: str | Path,
    labels: str | Path,
    *,
    slices: Iterable[int] | None = None,
    w0: float = 10,
    sigma: float = 5,
    class_weights: Sequence[float] | None = None,
    membrane_edge_weight: float = 1.0,
    value_range: tuple[float, float] | None = None,
    allow_single_class: bool = False,
    **tiling: Any,
) -> tf.data.Dataset:
    """Annotated slices as a dataset of training tiles: `read`, then `tiles.tile_dataset(samples, **tiling)`.

    Yields dictionaries of image `[B, tile, tile, C]` float32 0-255, label `[B, out, out]` int32 and weight
    `[B, out, out]` float32. Raises as both of them.
    """
    from keras_seg.data.tiles import tile_dataset  # TensorFlow is imported for tiles only, not for reading

    samples = read(
        volume,
        labels,
        slices=slices,
        w0=w0,
        sigma=sigma,
        class_weights=class_weights,
        membrane_edge_weight=membrane_edge_weight,
        value_range=value_range,
        allow_single_class=allow_single_class,
    )
    return tile_dataset(samples, **tiling)


def _interior(labels: np.ndarray, name: str, allow_single_class: bool) -> np.ndarray:
    values = np.unique(labels)
    if not (np.isin(values, (0, 255)).all() or np.isin(values, (0, 1)).all()):
        shown = ", ".join(f"{value:g}" for value in values[:8]) + (", ..." if len(values) > 8 else "")
        raise ValueError(f"{name}: label values {shown}; expected 0 (membrane) and 255 or 1 (inside a cell)")
    if len(values) == 1 and not allow_single_class:
        raise ValueError(
            f"{name}: one class only, every pixel is {values[0]:g}; expected both membrane (0) and cells "
            "(255). If this slice is right, pass allow_single_class=True"
        )
    return labels > 0


def _edge(interior: np.ndarray) -> np.ndarray:
    """bool [H, W]: membrane pixels beside a cell, by side or corner."""
    return ndimage.binary_dilation(interior, np.ones((3, 3))) & ~interior


def _chosen(slices: Iterable[int] | None, count: int, volume: str | Path) -> list[int]:
    chosen = list(range(count)) if slices is None else list(slices)
    wrong = [index for index in chosen if not 0 <= index < count]
    if wrong:
        raise ValueError(f"slices: {wrong[:8]} not in {volume}, which has {count} slices, 0 to {count - 1}")
    if not chosen:
        raise ValueError(f"slices: none chosen of the {count} in {volume}")
    return chosen


def _size(stack: np.ndarray) -> str:
    return f"{stack.shape[1]}x{stack.shape[2]}"
