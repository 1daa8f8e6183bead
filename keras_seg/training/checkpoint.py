"""Checkpoints that survive a kill or a full disk: written beside the old one, then renamed over it."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_seg.weights.files import replacing

STATE = "state.json"


def save(path: str | Path, model: keras.Model, state: dict[str, Any]) -> None:
    """Writes all variables of a compiled model (weights, optimizer, seed generators) and `state`, JSON data, to one
    `.npz` file, atomically. OSError if it cannot be written."""
    arrays = {f"{index:04d}": np.asarray(variable) for index, variable in enumerate(_variables(model))}

    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(STATE, json.dumps({**state, "paths": [v.path for v in _variables(model)]}))
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)


def restore(path: str | Path, model: keras.Model) -> dict[str, Any]:
    """Reads what `save` wrote into a compiled model whose optimizer is built, and returns the state.

    ValueError if the file is damaged or belongs to another model or optimizer; then the model is unchanged.
    """
    variables = _variables(model)
    try:
        with zipfile.ZipFile(path) as archive:
            state = json.loads(archive.read(STATE))
            arrays = []
            for index in range(len(state["paths"])):
                with archive.open(f"{index:04d}.npy") as file:
                    arrays.append(np.lib.format.read_array(file, allow_pickle=False))
    except (zipfile.BadZipFile, KeyError, ValueError, EOFError) as error:
        raise ValueError(f"{path}: damaged, or no checkpoint of keras_seg ({error})") from error
    expected = [(v.path, tuple(v.shape)) for v in variables]
    found = [(name, array.shape) for name, array in zip(state["paths"], arrays, strict=True)]
    for ours, theirs in zip(expected, found, strict=False):
        if ours != theirs:
            raise ValueError(f"{path}: of another model: it has {theirs[0]} {theirs[1]}, expected {ours[0]} {ours[1]}")
    if len(expected) != len(found):
        raise ValueError(f"{path}: of another model: it has {len(found)} variables, expected {len(expected)}")
    for variable, array in zip(variables, arrays, strict=True):
        variable.assign(array)
    del state["paths"]
    return state


def _variables(model: keras.Model) -> list[keras.Variable]:
    # `variables` holds the seed generators' states too, `weights` does not; metrics are left out
    metrics = {id(v) for metric in model.metrics for v in metric.variables}
    return [v for v in model.variables if id(v) not in metrics] + list(model.optimizer.variables)
