"""Weights files (Keras's `.weights.h5`): written whole or not at all, checked before a model is touched."""

from __future__ import annotations

import hashlib
import os
import tempfile
import zipfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np

from keras_seg.weights.assign import LoadReport, assign_variables, leaf_layers

if TYPE_CHECKING:
    import keras

SUFFIX = ".weights.h5"
ZEROS = bytes(1 << 20)
HDF5_OVERHEAD = 4096  # bytes a layer, generously: groups, attributes, object headers


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to; at the end it takes the place of `path`, flushed to disk.

    If the block fails (a full disk, say) or the process is killed, `path` stays as it was. The temporary file
    is named like `path` at the end, for writers which look at the suffix.

    Raises OSError naming `path` where the block or the flush raised one.
    """
    path = Path(path)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        before = "the file that was there is untouched" if path.exists() else "no file was left there"
        raise OSError(error.errno, f"could not write {path} ({error.strerror or error}); {before}") from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def folder_beside(path: Path) -> Iterator[Path]:
    """A temporary folder from which `path` can be renamed into place; for what is a folder, or several files.

    Raises OSError naming `path` where its folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise type(error)(error.errno, f"{path}: cannot be written ({error.strerror})") from None
    with folder:
        yield Path(folder.name)


def add_array(archive: zipfile.ZipFile, name: str, array: np.ndarray) -> None:
    """Adds an array to an `.npz` file that is being written, as NumPy does but without the time: a clock that starts in
    1970 would fail, as a zip archive's begins in 1980."""
    with archive.open(zipfile.ZipInfo(name), "w", force_zip64=True) as file:
        np.lib.format.write_array(file, array, allow_pickle=False)


def remove_unfinished(folder: Path) -> None:
    """Removes what `replacing` left in a folder when its process was killed. No other process may be writing there."""
    for path in folder.glob(".[0-9]*.*"):
        if path.name.split(".")[1].isdecimal():
            path.unlink(missing_ok=True)


def save_weights(model: keras.Model, path: str | Path, *, half: bool = False) -> None:
    """Write a functional model's weights to `path`, which must end in `.weights.h5`; makes folders as needed.

    A file that is there is replaced in one step. half: store kernels as float16, which halves the file; values are
    rounded to 11 bits, and come back as the model's own type. Vectors (biases, statistics) keep their type.

    Raises ValueError for another ending, OSError if it cannot be written (the old file is then intact).
    """
    if not str(path).endswith(SUFFIX):
        raise ValueError(f"{path}: a weights file's name must end in {SUFFIX}")
    import keras

    bare = keras.Model(
        model.inputs, model.outputs
    )  # the same layers without an optimizer, whose state Keras would add
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        size = sum(v.nbytes for v in bare.get_weights()) + HDF5_OVERHEAD * len([*leaf_layers(bare)])
        _reserve(temporary, size)
        bare.save_weights(temporary)
        if half:
            _halve_kernels(temporary)


def load_weights(model: keras.Model, path: str | Path, *, may_be_fresh: Collection[str] = ()) -> LoadReport:
    """Read weights that `save_weights` or Keras wrote into a functional model with the same layer names.

    may_be_fresh: names of layers ("part/layer" inside a part of the model) or parts that keep their present values
    where the file lacks them or has other shapes.

    Everything is checked before the first variable is set. Raises FileNotFoundError, or ValueError: a corrupt
    or foreign file, or one of another network (lists variables missing, left over or of another shape).
    """
    layers = dict(leaf_layers(model))
    own: dict[str, keras.Variable] = {}
    arrays: dict[str, np.ndarray] = {}
    stored = _read(Path(path))
    for place in dict.fromkeys([*layers, *stored]):
        variables = _variables(layers[place]) if place in layers else {}
        own |= {f"{place}/{variable.name}": variable for variable in variables.values()}
        for key, array in stored.get(place, {}).items():
            arrays[f"{place}/{variables[key].name if key in variables else key}"] = array
    return assign_variables(own, arrays, path, may_be_fresh=may_be_fresh, network=repr(model.name))


def check_self_contained(file: h5py.File) -> None:
    """ValueError where a link or an array of an HDF5 file lies elsewhere: one from a stranger must not read other files."""

    def link(name: str, kind: object) -> str | None:
        return None if isinstance(kind, h5py.HardLink) else f"{name} links to another place"

    def array(name: str, item: h5py.Group | h5py.Dataset) -> str | None:
        outside = isinstance(item, h5py.Dataset) and (item.external or item.is_virtual)
        return f"{name} lies in another file" if outside else None

    # what a visitor returns ends the visit
    if found := file.visititems_links(link) or file.visititems(array):
        raise ValueError(f"{found}; a weights file is complete in itself")


def sha256_of(path: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_sha256(path: str | Path, expected: str) -> None:
    """Raises FileNotFoundError, or ValueError if the file's SHA-256 is not `expected` (hexadecimal)."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such weights file")
    actual = sha256_of(path)
    if actual != expected:
        raise ValueError(f"{path}: damaged or exchanged: its sha256 is {actual}, the recipe says {expected}")


def _reserve(path: Path, size: int) -> None:
    """Fill `path` with `size` bytes: a full disk then shows here, as a plain OSError. HDF5 itself cannot fail
    cleanly half-way through a file."""
    with open(path, "wb") as file:
        file.writelines(ZEROS[: size - start] for start in range(0, size, len(ZEROS)))


def _halve_kernels(path: Path) -> None:
    """Store a weights file's float32 arrays of two and more axes as float16.

    The file is written anew, since HDF5 frees no space; it takes less than was there, so the disk cannot be full.
    """
    items: list[tuple[str, np.ndarray | None, dict]] = []
    with h5py.File(path, "r") as file:
        file.visititems(
            lambda name, item: items.append(
                (name, item[()] if isinstance(item, h5py.Dataset) else None, dict(item.attrs))
            )
        )
        attributes = dict(file.attrs)
    with h5py.File(path, "w") as file:
        file.attrs.update(attributes)
        for name, array, own in items:
            if array is None:
                item = file.require_group(name)
            else:
                kernel = array.ndim > 1 and array.dtype == np.float32
                item = file.create_dataset(name, data=array.astype(np.float16) if kernel else array)
            item.attrs.update(own)


def _variables(layer: keras.layers.Layer) -> dict[str, keras.Variable]:
    """The layer's own variables under the keys that Keras files them by."""
    store: dict[str, keras.Variable] = {}
    layer.save_own_variables(store)
    return store


def _read(path: Path) -> dict[str, dict[str, np.ndarray]]:
    """{path of the layer: {key: array}} of a `.weights.h5` file. Keras keeps `layers/<class>_<n>/vars`, with the
    layer's name as an attribute, and a model's own layers beside; an optimizer's state lies elsewhere."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such weights file")
    stored: dict[str, dict[str, np.ndarray]] = {}

    def collect(layers: h5py.Group, prefix: str) -> None:
        for group in layers.values():
            variables = group.get("vars", {})
            if len(variables):
                place = f"{prefix}{variables.attrs['name']}"
                stored[place] = {key: np.asarray(value) for key, value in variables.items()}
            if "layers" in group:
                collect(group["layers"], f"{prefix}{variables.attrs['name']}/")

    try:
        with h5py.File(path, "r") as file:
            check_self_contained(file)
            collect(file.get("layers", {}), "")
    except (OSError, KeyError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: corrupt, truncated, or no weights file of Keras 3 ({error})") from error
    if not stored:
        raise ValueError(f"{path}: an HDF5 file, but without the layers of a Keras 3 weights file")
    return stored
