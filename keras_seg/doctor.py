"""What keras_seg runs on here: versions, devices, processor, cache folder, which RoIAlign and why, and extras."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from typing import Any

import keras_seg
from keras_seg import processor

CPU_FEATURES = (
    "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "asimd", "sve",
)  # fmt: skip


# pip install 'keras_seg[EXTRA]': the package that it brings
EXTRAS = {
    "fast": "faster-coco-eval",
    "imagej": "roifile",
    "tflite": "ai-edge-litert",
    "serving": "tensorflow-serving-api",
    "beam": "apache-beam",
}


_ONEDNN = {
    True: "on",
    False: "off; TF_ENABLE_ONEDNN_OPTS=1 may make inference faster (docs/performance.md)",
    None: "unknown",
}


def examine() -> dict:
    """A dictionary of plain values. Builds the compiled RoIAlign if it has not been built."""
    import keras
    import tensorflow as tf

    return {
        "keras_seg": keras_seg.__version__,
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "platform": f"{sys.platform} {platform.machine()}",
        "devices": [_device(device) for device in tf.config.list_physical_devices()],
        "cpu": _cpu(),
        "onednn": _onednn(),
        "home": _home(),
        "roi_align": _roi_align(),
        "extras": {extra: _version(package) for extra, package in EXTRAS.items()},
    }


def report(found: dict) -> str:
    """The dictionary of `examine` for people."""
    home, roi_align, cpu = found["home"], found["roi_align"], found["cpu"]
    versions = (
        f"keras_seg {found['keras_seg']}, TensorFlow {found['tensorflow']}, Keras {found['keras']}, "
        f"Python {found['python']}, {found['platform']}"
    )
    lines = [
        versions,
        f"devices: {', '.join(found['devices'])}",
        f"processor: {cpu['model']}, {cpu['cores']} cores, {' '.join(cpu['features']) or 'no wide instructions'}",
        f"oneDNN: {_ONEDNN[found['onednn']]}",
        f"cache folder: {home['path']} ({home['chosen_by']}), {home['state']}",
    ]
    if roi_align["used"]:
        lines += [
            f"RoIAlign: compiled, from {roi_align['origin']}: {roi_align['path']}",
            f"  built {roi_align['built']} by {roi_align['compiler']} for TensorFlow {roi_align['built_for']}",
            f"  instruction set {roi_align['instruction_set']}; CUDA kernels: {roi_align['cuda'] or 'no'}",
        ]
        if roi_align["note"]:
            lines.append(f"  note: {roi_align['note']}")
    else:
        lines.append(f"RoIAlign: TensorFlow's own operations, which are slower: {roi_align['reason']}")
    extras = [
        f"{extra} ({EXTRAS[extra]} {version or 'not installed'})"
        for extra, version in found["extras"].items()
    ]
    lines.append(f"extras: {', '.join(extras)}")
    return "\n".join(lines)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _device(device: Any) -> str:
    import tensorflow as tf

    details = tf.config.experimental.get_device_details(device) if device.device_type == "GPU" else {}
    name = details.get("device_name")
    return f"{device.name.removeprefix('/physical_device:')}{f' ({name})' if name else ''}"


def _cpu() -> dict:
    flags = processor.flags()
    return {
        "model": processor.fields().get("model name") or platform.processor() or "unknown",
        "cores": os.cpu_count(),
        "features": [feature for feature in CPU_FEATURES if feature in flags],
    }


def _onednn() -> bool | None:
    """Whether TensorFlow runs oneDNN's operations; None if this version does not say."""
    try:
        from tensorflow.python.util import _pywrap_util_port
    except ImportError:
        return None
    return bool(_pywrap_util_port.IsMklEnabled())


def _home() -> dict:
    from keras_seg.weights.download import cache_folder

    path = cache_folder()
    chosen_by = next(
        (variable for variable in ("KERAS_SEG_HOME", "XDG_CACHE_HOME") if os.environ.get(variable)),
        "the default",
    )
    nearest = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    if not nearest.is_dir():
        state = f"not usable: {nearest} is a file"
    elif not os.access(nearest, os.W_OK | os.X_OK):
        state = "not writable"
    else:
        state = "writable" if path.exists() else "writable, not made yet"
    return {"path": str(path), "chosen_by": chosen_by, "state": state}


def _roi_align() -> dict:
    from keras_seg.ops.native import library

    try:
        found = library.get()
        missing = library.missing(found)
    except (library.Unavailable, ValueError) as error:
        return {"used": False, "reason": str(error)}
    if missing:
        return {"used": False, "reason": missing}
    return {
        "used": True,
        "path": str(found.path),
        "origin": found.origin,
        "built": found.manifest["built"],
        "built_for": found.manifest["tensorflow"],
        "compiler": found.manifest["compiler"],
        "instruction_set": found.instruction_set,
        "cuda": found.manifest["cuda"] if found.cuda else None,
        "note": found.note,
    }
