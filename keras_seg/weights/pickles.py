"""Weights out of pickle files (Detectron2's `.pkl`, PyTorch's `.pth`) without running what is in them.

A pickle is a program that may call any function. Here it may build NumPy arrays, tensors and plain containers; these
come about through stand-ins which only keep what they are given and are checked before they become arrays.
"""

from __future__ import annotations

import io
import math
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

# The first two of the objects that a `.pth` from before PyTorch 1.6 consists of.
LEGACY_MAGIC, LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
STORAGES = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "<i1",
    "ByteStorage": "<u1",
    "BoolStorage": "?",
}


def load_pickle(path: str | Path) -> Any:
    """The plain containers and NumPy arrays of a pickle file, one written by Python 2 included.

    Raises FileNotFoundError; ValueError if the file is damaged, or would call anything beyond that (it is named).
    """
    path = _existing(path)
    with open(path, "rb") as file:
        return _plain(_Unpickler(file, path, _NUMPY).read(), path)


def load_torch(path: str | Path) -> dict[str, np.ndarray]:
    """The tensors of a state dictionary that `torch.save` wrote, by name; PyTorch is not needed.

    Both formats: the zip archive, and the older one of torchvision's first published weights. A dictionary that
    holds the state under "model" or "state_dict" is accepted too.

    Raises FileNotFoundError; ValueError if the file is damaged, holds something else, or would call anything.
    """
    path = _existing(path)
    content = _read_zip(path) if zipfile.is_zipfile(path) else _read_legacy(path)
    for key in ("model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    entries = content.items() if isinstance(content, Mapping) else ()
    tensors = {name: value for name, value in entries if isinstance(value, np.ndarray)}
    if not tensors:
        raise ValueError(f"{path}: holds a {type(content).__name__}, but no dictionary of tensors")
    return tensors


class _Array:
    """Stands in for an array while the pickle is read: shape, type and bytes, as `ndarray.__setstate__` gets them."""

    __slots__ = ("state",)

    def __init__(self, *_: Any) -> None:
        self.state: tuple = ()

    def __setstate__(self, state: tuple) -> None:
        self.state = state

    def array(self) -> np.ndarray:
        _, shape, dtype, fortran, data = self.state
        data = data.encode("latin1") if isinstance(data, str) else data  # Python 2's bytes
        kind = dtype.dtype()
        if not isinstance(data, bytes) or len(data) != math.prod(shape) * kind.itemsize:
            raise ValueError("an array whose bytes do not fit its shape")
        return np.frombuffer(data, kind).reshape(shape, order="F" if fortran else "C")


def _from_buffer(data: Any, dtype: Any, shape: tuple[int, ...], order: str) -> _Array:
    """What protocol 5 calls for an array."""
    array = _Array()
    array.state = (1, shape, dtype, order == "F", bytes(data))
    return array


class _DType:
    """Stands in for a NumPy type: numbers only, so that no array can hold objects."""

    __slots__ = ("code", "order")

    def __init__(self, code: str, *_: Any) -> None:
        self.code, self.order = code, "|"

    def __setstate__(self, state: tuple) -> None:
        self.order = state[1]

    def dtype(self) -> np.dtype:
        dtype = np.dtype(self.code)
        if dtype.kind not in "biuf":
            raise ValueError(f"an array of type {self.code!r}; weights are numbers")
        return dtype.newbyteorder(cast(Any, self.order))


class _Scalar:
    """Stands in for a NumPy scalar."""

    __slots__ = ("data", "dtype")

    def __init__(self, dtype: _DType, data: Any) -> None:
        self.dtype, self.data = dtype, data

    def array(self) -> np.ndarray:
        filled = _Array()
        filled.state = (1, (), self.dtype, False, self.data)
        return filled.array()


class _Storage:
    """A tensor's memory: its type and key, and the bytes once they are read."""

    __slots__ = ("count", "data", "dtype", "key")

    def __init__(self, dtype: np.dtype, key: str, count: int) -> None:
        self.dtype, self.key, self.count, self.data = dtype, key, count, b""


class _Tensor:
    """A view of a storage: offset, shape and steps, counted in elements."""

    __slots__ = ("offset", "shape", "steps", "storage")

    def __init__(
        self, storage: _Storage, offset: int, shape: tuple[int, ...], steps: tuple[int, ...], *_: Any
    ):
        self.storage, self.offset, self.shape, self.steps = storage, offset, shape, steps

    def array(self) -> np.ndarray:
        """Read-only, and not a copy: those of a large network would need its memory twice."""
        storage = self.storage
        flat = np.frombuffer(storage.data, storage.dtype)
        last = self.offset + sum((n - 1) * step for n, step in zip(self.shape, self.steps, strict=True))
        within = 0 <= self.offset and min((*self.steps, 0)) >= 0 and last < len(flat)
        if math.prod(self.shape) and not (within and min((*self.shape, 1)) > 0):
            raise ValueError(f"a tensor {list(self.shape)} beyond the end of its storage")
        if not math.prod(self.shape):
            return np.zeros(self.shape, storage.dtype)
        steps = [step * flat.itemsize for step in self.steps]
        return np.lib.stride_tricks.as_strided(flat[self.offset :], self.shape, steps, writeable=False)


def _encode(text: str, codec: str = "latin1") -> bytes:
    """Python 3 writes bytes in protocol 2 as `_codecs.encode(text, "latin1")`."""
    if codec not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"it would call _codecs.encode with {codec!r}")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """Python 3 writes b"" in protocol 2 as a call of `bytes` without arguments."""
    return b""


_PLAIN = {
    ("__builtin__", "bytes"): _no_bytes,
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _encode,
    **{(module, "set"): set for module in ("builtins", "__builtin__")},
}
_NUMPY = {
    **_PLAIN,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _DType,
    **{
        (f"numpy.{core}.{name}", function): stand_in
        for core in ("core", "_core")
        for name, function, stand_in in (
            ("multiarray", "_reconstruct", _Array),
            ("multiarray", "scalar", _Scalar),
            ("numeric", "_frombuffer", _from_buffer),
        )
    },
}


def _storage_types() -> dict[str, np.dtype]:
    import ml_dtypes

    return {name: np.dtype(code) for name, code in STORAGES.items()} | {
        "BFloat16Storage": np.dtype(ml_dtypes.bfloat16)
    }


def _torch_names() -> dict[tuple[str, str], Any]:
    rebuild = {("torch._utils", "_rebuild_tensor_v2"): _Tensor}
    parameter = {("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor}
    return (
        _PLAIN
        | rebuild
        | parameter
        | {("torch", name): dtype for name, dtype in _storage_types().items()}
        # what `_rebuild_parameter` is given for its hooks
        | {("torch", "Size"): tuple}
    )


class _Unpickler(pickle._Unpickler):
    """Knows the names that it is given, and refuses every other.

    The unpickler written in Python: the one in C allocates its memo for the greatest number in it, so that ten bytes can
    take all memory. A weights file has few operations, hence takes as long.
    """

    def __init__(
        self,
        file: BinaryIO,
        path: Path,
        names: Mapping[tuple[str, str], Any],
        storage: Callable[[tuple], _Storage] | None = None,
    ) -> None:
        super().__init__(file, encoding="latin1")
        self.path, self.names, self.storage = path, names, storage

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.names:
            raise pickle.UnpicklingError(f"it would call {module}.{name}")
        return self.names[module, name]

    def persistent_load(self, identifier: Any) -> _Storage:
        if self.storage is None:
            raise pickle.UnpicklingError("it refers to data outside the pickle")
        return self.storage(identifier)

    def read(self) -> Any:
        """The next object of the file; ValueError naming the file for whatever goes wrong."""
        try:
            return self.load()
        except pickle.UnpicklingError as error:
            if "it would" not in str(error) and "it refers" not in str(error):
                raise ValueError(f"{self.path}: truncated, damaged or no pickle ({error})") from error
            raise ValueError(
                f"{self.path}: refused, {error}; a weights file holds arrays and plain containers only. Do not "
                "open it with anything that trusts it"
            ) from error
        except Exception as error:  # a damaged pickle fails in the ways of whatever it happens to say
            raise ValueError(
                f"{self.path}: truncated, damaged or no pickle ({type(error).__name__}: {error})"
            ) from error


def _plain(value: Any, path: Path, depth: int = 0, made: dict[int, Any] | None = None) -> Any:
    """The containers with arrays in the place of their stand-ins. What occurs in several places is made once, since few
    bytes can say that a list holds a list ten times, which holds a list ten times, and so on.

    made: by the identity of a container, what became of it.
    """
    made = {} if made is None else made
    if id(value) in made:
        return made[id(value)]
    if depth > 32:
        raise ValueError(f"{path}: containers nested too deeply, or in a circle")
    if isinstance(value, _Array | _Scalar | _Tensor):
        try:
            return value.array()
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}: damaged: {error}") from error
    if isinstance(value, Mapping):
        made[id(value)] = {key: _plain(item, path, depth + 1, made) for key, item in value.items()}
        return made[id(value)]
    if isinstance(value, list | tuple | set):
        made[id(value)] = type(value)(_plain(item, path, depth + 1, made) for item in value)
        return made[id(value)]
    if value is None or isinstance(value, str | bytes | bool | int | float):
        return value
    raise ValueError(f"{path}: holds a {type(value).__name__}, which is no data")


def _existing(path: str | Path) -> Path:
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such weights file")
    return path


def _storage_of(identifier: Any, storages: dict[str, _Storage]) -> _Storage:
    """The storage that a `.pth` refers to as ("storage", type, key, device, number of elements[, view])."""
    kind, dtype, key, _, count = identifier[:5]
    if kind != "storage" or not isinstance(dtype, np.dtype) or len(identifier) > 5 and identifier[5]:
        raise pickle.UnpicklingError(f"it refers to {kind!r} data, which is no storage of numbers")
    return storages.setdefault(str(key), _Storage(dtype, str(key), int(count)))


def _read_zip(path: Path) -> Any:
    storages: dict[str, _Storage] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            index = next((name for name in archive.namelist() if name.endswith("/data.pkl")), None)
            if index is None:
                raise ValueError(f"{path}: a zip archive, but not one of torch.save: it lacks data.pkl")
            folder = index.removesuffix("data.pkl")
            file = io.BytesIO(_stored(archive, index, path))
            content = _Unpickler(
                file, path, _torch_names(), lambda identifier: _storage_of(identifier, storages)
            ).read()
            for storage in storages.values():
                storage.data = _stored(archive, f"{folder}data/{storage.key}", path)
    except (zipfile.BadZipFile, KeyError, OSError, EOFError) as error:
        raise ValueError(f"{path}: truncated or damaged ({error})") from error
    return _plain(content, path)


def _stored(archive: zipfile.ZipFile, name: str, path: Path) -> bytes:
    """An entry's bytes, which torch.save never compresses: some megabytes could unpack to more than there is memory."""
    if archive.getinfo(name).compress_type != zipfile.ZIP_STORED:
        raise ValueError(
            f"{path}: {name} is compressed, which torch.save does not do. If the file is yours, save it anew with torch.save"
        )
    return archive.read(name)


def _read_legacy(path: Path) -> Any:
    storages: dict[str, _Storage] = {}
    with open(path, "rb") as file:
        names, size = _torch_names(), path.stat().st_size

        def read() -> Any:
            return _Unpickler(file, path, names, lambda identifier: _storage_of(identifier, storages)).read()

        if read() != LEGACY_MAGIC or read() != LEGACY_PROTOCOL:
            raise ValueError(f"{path}: a pickle, but not one of torch.save")
        read()  # byte order and sizes of C types on the machine that wrote it: all known ones are alike
        content, keys = read(), read()
        for key in keys:
            storage = storages.get(str(key))
            header = file.read(8)
            if storage is None or len(header) < 8 or struct.unpack("<q", header)[0] != storage.count:
                raise ValueError(f"{path}: truncated or damaged (storage {key})")
            length = storage.count * storage.dtype.itemsize
            if not 0 <= length <= size - file.tell():
                raise ValueError(f"{path}: truncated (storage {key})")
            storage.data = file.read(length)
    return _plain(content, path)
