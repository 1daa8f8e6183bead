"""Where the compiled RoIAlign comes from: beside the package, from the cache, or built into it once.

The environment variable KERAS_SEG_NATIVE: "off" or "0" never uses it; "require" makes it an error where it cannot be
had; otherwise the portable implementations take its place, with one warning.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import shutil
import sys
import tempfile
import threading
import warnings
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from keras_seg.ops.native import build
from keras_seg.ops.native.build import LIBRARY, MANIFEST

VARIABLE = "KERAS_SEG_NATIVE"
_size = ctypes.c_int64
RESIZE_ARGUMENTS = (
    ctypes.c_void_p, _size, _size, _size, _size, ctypes.c_bool, ctypes.c_void_p, _size, _size,
)  # fmt: skip
OFF, REQUIRE, NORMAL = ("0", "off"), ("require",), ("", "1", "on", "auto")

_lock = threading.RLock()
_outcome: Library | Unavailable | None = None
_warned = False


class Unavailable(RuntimeError):
    """The compiled operation cannot be used; the message says why."""


@dataclass(frozen=True)
class Library:
    """A library that is loaded and gives right results."""

    operations: ModuleType
    path: Path
    origin: str  # "the package" or "the cache"
    instruction_set: str
    cuda: bool
    manifest: dict  # build.build's
    note: str | None = None  # why it has less than it might
    functions: ctypes.CDLL | None = None  # those that are no operations


def setting() -> str:
    """ "off", "require" or "auto"; ValueError for another value of KERAS_SEG_NATIVE."""
    value = os.environ.get(VARIABLE, "").strip().lower()
    if value not in (*OFF, *REQUIRE, *NORMAL):
        raise ValueError(f'{VARIABLE} is {value!r}: must be "off", "require" or not set')
    return "off" if value in OFF else "require" if value in REQUIRE else "auto"


def get() -> Library:
    """The loaded library, found or built on the first call. Raises Unavailable with the reason."""
    if setting() == "off":
        raise Unavailable(f"the environment variable {VARIABLE} is {os.environ[VARIABLE]!r}")
    with _lock:
        if _outcome is None:
            # In a thread of its own: whoever calls first may be building a graph, or be on some device.
            thread = threading.Thread(target=_find)
            thread.start()
            thread.join()
    if isinstance(_outcome, Library):
        return _outcome
    raise Unavailable(str(_outcome))


def usable() -> bool:
    """Whether there is a library with kernels for the devices in use; the first time not, a warning says why.

    Raises Unavailable, with the reason, where KERAS_SEG_NATIVE is "require" and there is none.
    """
    global _warned
    if setting() == "off":
        return False
    try:
        reason = missing(get())
    except Unavailable as error:
        reason = str(error)
    if reason is None:
        return True
    if setting() == "require":
        raise Unavailable(f"{VARIABLE}=require, but the compiled RoIAlign cannot be used: {reason}")
    with _lock:
        warn, _warned = not _warned, True
    if warn:
        warnings.warn(
            f"RoIAlign runs on TensorFlow's own operations, which is slower: {reason}. {VARIABLE}=off hides this.",
            RuntimeWarning,
            stacklevel=2,
        )
    return False


def missing(found: Library) -> str | None:
    """What the devices in use need and a library has not."""
    if found.cuda or not _gpus():
        return None
    return f"{found.path} has no CUDA kernels" + (f" ({found.note})" if found.note else "")


def prebuilt_folder() -> Path:
    """Where a wheel has the library for the present TensorFlow."""
    import tensorflow as tf

    release = ".".join(tf.__version__.split(".")[:2])
    return build.HERE / "prebuilt" / f"tf{release}-{sys.platform}-{platform.machine()}"


def cache_folder(cuda: bool) -> Path:
    """Where the library for the present TensorFlow and sources is built."""
    import tensorflow as tf

    from keras_seg.weights.download import cache_folder

    kind = "-cuda" if cuda else ""
    name = f"tf{tf.__version__}-{sys.platform}-{platform.machine()}-{build.sources_digest()[:16]}{kind}"
    return cache_folder() / "native" / name


def problem_with(folder: Path) -> str | None:
    """Why the library in a folder cannot be used; None: it can. Nothing is loaded: a damaged file may end the process."""
    import tensorflow as tf

    path = folder / LIBRARY
    if not path.is_file():
        return "not there"
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        if manifest["sources"] != build.sources_digest():
            return "built from other sources"
        if manifest["tensorflow"].split(".")[:2] != tf.__version__.split(".")[:2]:
            return f"built for TensorFlow {manifest['tensorflow']}, and this is {tf.__version__}"
        if manifest["sha256"] != build.file_digest(path):
            return "damaged: its sha256 is not that of its manifest"
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        return f"its manifest cannot be read ({type(error).__name__}: {error})"
    return None


def _gpus() -> bool:
    import tensorflow as tf

    return bool(tf.config.list_logical_devices("GPU"))


def _find() -> None:
    global _outcome
    try:
        _outcome = _load()
    except Unavailable as error:
        _outcome = error
    except Exception as error:  # noqa: BLE001  a thread's exception would be lost; the reason must reach the caller
        _outcome = Unavailable(f"{type(error).__name__}: {error}")


def _load() -> Library:
    import tensorflow as tf

    notes = []
    if problem_with(prebuilt_folder()) is None:
        return _loaded(prebuilt_folder(), "the package")
    nvcc = None
    if tf.test.is_built_with_cuda() and tf.config.list_physical_devices("GPU"):
        nvcc = build.find_nvcc()
        if nvcc is None:
            notes.append("no nvcc was found: put it on the PATH or name it in KERAS_SEG_NVCC")
    if nvcc:
        try:
            return _loaded(_cached(nvcc), "the cache")
        except build.BuildFailed as error:
            notes.append(f"the CUDA kernels did not compile: {error}")
    try:
        return _loaded(_cached(None), "the cache", "; ".join(notes) or None)
    except build.BuildFailed as error:
        raise Unavailable(f"it could not be built: {error}") from error


def _cached(nvcc: Path | None) -> Path:
    """The folder of the cache that holds the library, built if need be, by one process at a time."""
    from keras_seg.weights.download import locked

    folder = cache_folder(nvcc is not None)
    if problem_with(folder) is None:  # without a lock: the cache may be read-only
        return folder
    if nvcc is None and build.find_compiler() is None:
        raise build.BuildFailed(
            f"{folder / LIBRARY} is not there, and no C++ compiler was found to build it (c++, g++ or clang++ on the "
            "PATH, or the environment variable CXX)"
        )
    try:
        with locked(folder):
            if problem_with(folder) is None:  # another process was first
                return folder
            print(
                f"keras_seg: building RoIAlign for this machine, once, in about a minute: {folder}",
                file=sys.stderr,
                flush=True,
            )
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
                complete = Path(temporary, "complete")
                complete.mkdir()
                build.build(complete, nvcc)
                shutil.rmtree(folder, ignore_errors=True)
                os.replace(complete, folder)
    except OSError as error:
        raise build.BuildFailed(
            f"{folder} cannot be written ({error.strerror or error}); KERAS_SEG_HOME names another folder"
        ) from error
    return folder


def _loaded(folder: Path, origin: str, note: str | None = None) -> Library:
    import tensorflow as tf

    path = folder / LIBRARY
    try:
        operations = tf.load_op_library(str(path))
        functions = ctypes.CDLL(str(path))
        functions.keras_seg_instruction_set.restype = ctypes.c_char_p
        instruction_set = functions.keras_seg_instruction_set().decode()
        cuda = bool(functions.keras_seg_has_cuda())
        functions.keras_seg_resize.argtypes = RESIZE_ARGUMENTS
        functions.keras_seg_resize.restype = ctypes.c_bool
    except (tf.errors.OpError, OSError, AttributeError) as error:
        raise Unavailable(f"{path} does not load: {error}") from error
    manifest = json.loads((folder / MANIFEST).read_text())
    found = Library(operations, path, origin, instruction_set, cuda, manifest, note, functions)
    _check(found, "CPU")
    if cuda and _gpus():
        _check(found, "GPU")
    return found


def _check(found: Library, device: str) -> None:
    """A small case with a known result: a ramp's value in the middle of a box, and its gradient."""
    import numpy as np
    import tensorflow as tf

    channels = 67  # vectors of all widths, and some more
    y, x, c = np.meshgrid(np.arange(5), np.arange(6), np.arange(channels), indexing="ij")
    ramp = tf.constant((4 * y + x + 0.25 * c)[None], tf.float32)
    arguments = {
        "features": [ramp], "boxes": [[2.0, 2.0, 8.0, 6.0]], "box_indices": [0], "box_levels": [0], "scales": [0.5],
        "output_height": 1, "output_width": 1, "sampling_ratio": 0, "aligned": True, "pool": "average",
    }  # fmt: skip
    expected = 4 * 1.5 + 2 + 0.25 * np.arange(channels)
    try:
        with tf.device(device):
            pooled = found.operations.keras_seg_roi_align(**arguments)
            (gradient,) = found.operations.keras_seg_roi_align_grad(
                **arguments, upstream=tf.ones_like(pooled)
            )
        right = np.allclose(pooled[0, 0, 0], expected, atol=1e-4)
        right = right and np.allclose(tf.reduce_sum(gradient, [0, 1, 2]), np.ones(channels), atol=1e-4)
    except tf.errors.OpError as error:
        raise Unavailable(f"{found.path} fails on the {device}: {error.message}") from error
    if not right:
        raise Unavailable(f"{found.path} gives wrong results on the {device}")
