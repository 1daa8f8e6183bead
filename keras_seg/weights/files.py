"""Weights files (Keras's `.weights.h5`): written whole or not at all, checked before a model is touched."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np

if TYPE_CHECKING:
    import keras

SUFFIX = ".weights.h5"
MAX_SHOWN = 8  # variables that an error lists
ZEROS = bytes(1 << 20)
HDF5_OVERHEAD = 4096  # bytes a layer, generously: groups, attributes, object headers


@dataclass(frozen=True)
class LoadReport:
    """Which variables (`layer/variable`) came from the file, and which kept their fresh values."""

    kept: tuple[str, ...]
    fresh: tuple[str, ...]

    def __str__(self) -> str:
        fresh = f"; new: {', '.join(self.fresh)}" if self.fresh else ""
        return f"{len(self.kept)} of {len(self.kept) + len(self.fresh)} variables kept from the file{fresh}"


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
        _reserve(temporary, sum(v.nbytes for v in bare.get_weights()) + HDF5_OVERHEAD * len(bare.layers))
        bare.save_weights(temporary)
        if half:
            _halve_kernels(temporary)


def load_weights(model: keras.Model, path: str | Path, *, may_be_fresh: Collection[str] = ()) -> LoadReport:
    """Read weights that `save_weights` or Keras wrote into a model with the same layer names.

    may_be_fresh: names of layers that keep their present values where the file's shapes differ.

    Everything is checked before the first variable is set. Raises FileNotFoundError, or ValueError: a corrupt
    or foreign file, or one of another network (lists variables missing, left over or of another shape).
    """
    stored = _read(Path(path))
    layers = {layer.name: _variables(layer) for layer in model.layers}
    label = {
        (layer, key): f"{layer}/{variable.name}"
        for layer in layers
        for key, variable in layers[layer].items()
    }
    expected = {place: tuple(layers[place[0]][place[1]].shape) for place in label}
    found = {(layer, key): array.shape for layer in stored for key, array in stored[layer].items()}
    differing = [place for place in expected.keys() & found.keys() if found[place] != expected[place]]
    fresh = {layer for layer, _ in differing} & set(may_be_fresh)

    problems = [
        f"missing {label[place]} {_shape(expected[place])}"
        for place in sorted(expected.keys() - found.keys())
    ]
    problems += [
        f"unknown {'/'.join(place)} {_shape(found[place])}"
        for place in sorted(found.keys() - expected.keys())
    ]
    problems += [
        f"{label[place]} is {_shape(found[place])} in the file and {_shape(expected[place])} in the model"
        for place in sorted(differing)
        if place[0] not in fresh
    ]
    if problems:
        shown = problems[:MAX_SHOWN]
        shown += [f"and {len(problems) - MAX_SHOWN} more"] if len(problems) > MAX_SHOWN else []
        raise ValueError(f"{path}: weights of another network than {model.name!r}: {'; '.join(shown)}")

    for layer in model.layers:
        if layers[layer.name] and layer.name not in fresh:
            layer.load_own_variables(stored[layer.name])
    return LoadReport(
        kept=tuple(label[place] for place in expected if place[0] not in fresh),
        fresh=tuple(label[place] for place in expected if place[0] in fresh),
    )


def check_sha256(path: str | Path, expected: str) -> None:
    """Raises FileNotFoundError, or ValueError if the file's SHA-256 is not `expected` (hexadecimal)."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such weights file")
    with open(path, "rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
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
    """{layer name: {key: array}} of a `.weights.h5` file. Keras keeps `layers/<class>_<n>/vars`, with the
    layer's name as an attribute; an optimizer's state lies elsewhere."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such weights file")
    stored = {}
    try:
        with h5py.File(path, "r") as file:
            for group in file.get("layers", {}).values():
                variables = group.get("vars", {})
                if len(variables):
                    stored[str(variables.attrs["name"])] = {
                        key: np.asarray(value) for key, value in variables.items()
                    }
    except (OSError, KeyError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: corrupt, truncated, or no weights file of Keras 3 ({error})") from error
    if not stored:
        raise ValueError(f"{path}: an HDF5 file, but without the layers of a Keras 3 weights file")
    return stored


def _shape(shape: tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, shape))}]"
