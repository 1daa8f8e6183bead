"""U-Net and the Mask R-CNN family in Keras 3 on TensorFlow: load, segment, train, score, export.

    model = keras_seg.zoo.load("unet_isbi2012")
    probabilities = keras_seg.segment(model, "slice.png")

Importing the package is quick: TensorFlow is imported with the first submodule that computes.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

__version__ = "0.1.0"

_SUBMODULES = (
    "backbones",
    "batch",
    "data",
    "export",
    "heads",
    "instances",
    "losses",
    "metrics",
    "models",
    "ops",
    "recipe",
    "training",
    "visualize",
    "weights",
    "zoo",
)


def _keras_backend() -> tuple[str, str]:
    """(backend, who chose it): what Keras uses already, or will use once imported, in its own precedence."""
    if keras := sys.modules.get("keras"):
        return keras.config.backend(), "keras was imported before keras_seg"
    if backend := os.environ.get("KERAS_BACKEND"):
        return backend, "the environment variable KERAS_BACKEND"
    settings = Path(os.environ.get("KERAS_HOME") or "~/.keras").expanduser() / "keras.json"
    try:
        return json.loads(settings.read_text()).get("backend", "tensorflow"), str(settings)
    except (OSError, ValueError, AttributeError):  # absent or not a JSON object: Keras then takes its default
        return "tensorflow", "Keras's default"


def _require_tensorflow() -> None:
    backend, chosen_by = _keras_backend()
    if backend != "tensorflow":
        raise ImportError(
            f"keras_seg runs on Keras's TensorFlow backend only, and here it is {backend!r} ({chosen_by}). "
            'Set the environment variable KERAS_BACKEND to "tensorflow" before Keras is imported.'
        )


_require_tensorflow()
# TensorFlow's C++ side: errors alone; its warnings tell of cost estimates that maps of any size do not allow
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

# Bound before any other import can: `keras_seg.segment` is the function, not the module of that name.
from keras_seg.segment import segment

__all__ = ["__version__", "segment"]


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_SUBMODULES})
