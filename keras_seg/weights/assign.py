"""Imported arrays into a model's parts: all of them, or none."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import keras

MAX_SHOWN = 8  # variables that an error lists


def variables(parts: Mapping[str, keras.Model]) -> dict[str, keras.Variable]:
    """All variables of functional models under the names that importers give: "part/layer/variable"."""
    return {
        f"{part}/{layer.name}/{variable.name}": variable
        for part, model in parts.items()
        for layer in model.layers
        for variable in layer.weights
    }


def assign(parts: Mapping[str, keras.Model], arrays: Mapping[str, np.ndarray], path: str | Path) -> None:
    """Set all variables of the parts {"backbone": model, …} from arrays of the same names; `path` is for messages.

    Raises ValueError, and changes nothing, if names or shapes differ: lists what is missing, left over or of
    another shape.
    """
    own = variables(parts)
    problems = [f"missing {name} {list(own[name].shape)}" for name in sorted(own.keys() - arrays.keys())]
    problems += [f"unknown {name} {list(arrays[name].shape)}" for name in sorted(arrays.keys() - own.keys())]
    problems += [
        f"{name} is {list(arrays[name].shape)} in the file and {list(own[name].shape)} in the model"
        for name in sorted(own.keys() & arrays.keys())
        if tuple(own[name].shape) != arrays[name].shape
    ]
    if problems:
        more = f"; and {len(problems) - MAX_SHOWN} more" if len(problems) > MAX_SHOWN else ""
        raise ValueError(f"{path}: weights of another model: {'; '.join(problems[:MAX_SHOWN])}{more}")
    for name, variable in own.items():
        variable.assign(arrays[name])
