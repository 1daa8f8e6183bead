"""`.pth` files as `torch.save` writes them, without PyTorch."""

from __future__ import annotations

import collections
import io
import pickle
import struct
import sys
import types
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from keras_seg.weights import pickles

STORAGES = {"f4": "FloatStorage", "f2": "HalfStorage", "i8": "LongStorage"}


class Tensor:
    """A view of storage `key`, which pickles as PyTorch's tensors do."""

    def __init__(self, key: str, array: np.ndarray, shape=None, steps=None, offset: int = 0) -> None:
        self.key, self.data = key, array
        self.shape = array.shape if shape is None else shape
        self.steps = tuple(s // array.itemsize for s in array.strides) if steps is None else steps
        self.offset = offset

    def __reduce__(self):
        rebuild = sys.modules["torch._utils"]._rebuild_tensor_v2
        arguments = (self, self.offset, self.shape, self.steps, False, collections.OrderedDict())
        return rebuild, (_Storage(self), *arguments[1:])


class _Storage:
    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def write_torch(path: Path, content: Any, storages: Mapping[str, np.ndarray], legacy: bool = False) -> Path:
    """`content` holds `Tensor`s of the storages. legacy: the format of before PyTorch 1.6."""
    if not legacy:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("model/data.pkl", _pickled(content, legacy))
            for key, array in storages.items():
                archive.writestr(f"model/data/{key}", array.tobytes())
        return path
    header = [pickles.LEGACY_MAGIC, pickles.LEGACY_PROTOCOL, {"little_endian": True}]
    parts = [pickle.dumps(part, 2) for part in header] + [_pickled(content, legacy)]
    parts.append(pickle.dumps(list(storages), 2))
    parts += [struct.pack("<q", array.size) + array.tobytes() for array in storages.values()]
    path.write_bytes(b"".join(parts))
    return path


def write_state_dictionary(path: Path, arrays: Mapping[str, np.ndarray]) -> Path:
    """Each array in a storage of its own, as a model's parameters are."""
    storages = {str(number): np.array(array, order="C") for number, array in enumerate(arrays.values())}
    content = collections.OrderedDict(
        (name, Tensor(key, storages[key], array.shape)) for (name, array), key in zip(arrays.items(), storages, strict=True)
    )  # fmt: skip
    return write_torch(path, content, storages)


def _pickled(content: Any, legacy: bool) -> bytes:
    modules = _modules()

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            if not isinstance(value, _Storage):
                return None
            array = value.tensor.data
            kind = getattr(modules["torch"], STORAGES[array.dtype.str[1:]])
            identifier = ("storage", kind, value.tensor.key, "cpu", array.size)
            return (*identifier, None) if legacy else identifier

    file = io.BytesIO()
    with mock.patch.dict(sys.modules, modules):
        Pickler(file, 2).dump(content)
    return file.getvalue()


def _modules() -> dict[str, types.ModuleType]:
    """Modules with PyTorch's names, so that a pickle can refer to them."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    for name in STORAGES.values():
        setattr(torch, name, type(name, (), {"__module__": "torch"}))

    def _rebuild_tensor_v2(*_):
        raise AssertionError

    _rebuild_tensor_v2.__module__, _rebuild_tensor_v2.__qualname__ = "torch._utils", "_rebuild_tensor_v2"
    utils._rebuild_tensor_v2 = _rebuild_tensor_v2
    return {"torch": torch, "torch._utils": utils}
