"""Weights of other libraries, read by the format of their file, and published ones fetched, converted and cached."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from keras_seg.weights import detectron2, garden, matterport, torchvision
from keras_seg.weights.download import cache_folder, fetch, kept, locked, pinned
from keras_seg.weights.files import add_array

if TYPE_CHECKING:
    from keras_seg.recipe_models import Published

READERS = {
    "detectron2": detectron2.read,
    "torchvision": torchvision.read,
    "matterport": matterport.read,
    "garden": garden.read,
}
SUFFIXES = {
    ".pkl": "detectron2",
    ".pth": "torchvision",
    ".pt": "torchvision",
    ".h5": "matterport",
    ".index": "garden",
}


def read(path: str | Path, format: str | None = None) -> dict[str, np.ndarray]:
    """A file's arrays under keras_seg's names, "part/layer/variable", in Keras's layouts.

    format: one of `READERS`; None: by the file's ending.

    Raises FileNotFoundError; ValueError: an unknown format or ending, or what the reader says of the file.
    """
    path = Path(path)
    if format is None:
        format = SUFFIXES.get(path.suffix)
        if format is None:
            known = ", ".join(f"{suffix} ({name})" for suffix, name in SUFFIXES.items())
            raise ValueError(
                f"{path}: weights of which format? By their ending are known: .weights.h5 (Keras), {known}"
            )
    if format not in READERS:
        raise ValueError(f"format must be one of {', '.join(map(repr, READERS))}, got {format!r}")
    return READERS[format](path)


def read_published(published: Published) -> dict[str, np.ndarray]:
    """The arrays of published weights: downloaded and converted on first use, then from the cache.

    Several processes may ask at once. Raises what `download.fetch` and the reader raise; a damaged conversion is made
    again.
    """
    source = fetch(published.url, published.sha256)
    # the name tells the source by its digest: times of files mean nothing once a clock was set
    target = cache_folder() / "converted" / f"{source.name}.{pinned(source)[:16]}.npz"
    with locked(target):
        if target.is_file():
            try:
                return _load(target)
            except (OSError, ValueError, zipfile.BadZipFile):
                target.unlink()
        arrays = READERS[published.format](source)
        _save(target, arrays)
    return arrays


def _save(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    with kept(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            add_array(archive, f"{name}.npy", array)


def _load(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}
