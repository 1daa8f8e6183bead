"""Checkpoints that survive a kill or a full disk: written beside the old one, then renamed over it."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_seg.weights.files import add_array, replacing

STATE = "state.json"


def save(path: str | Path, model: keras.Model, state: dict[str, Any]) -> None:
    """Writes all variables of a compiled model (weights, optimizer, seed generators) and `state`, JSON data, to one
    `.npz` file, atomically. OSError if it cannot be written."""
    variables = _named_variables(model)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(zipfile.ZipInfo(STATE), json.dumps({**state, "variables": list(variables)}))
        for name, variable in variables.items():
            add_array(archive, _entry(name), np.asarray(variable))


def restore(path: str | Path, model: keras.Model) -> dict[str, Any]:
    """Reads what `save` wrote into a compiled model whose optimizer is built, and returns the state.

    ValueError if the file is damaged or belongs to another model or optimizer; then the model is unchanged.
    """
    variables = _named_variables(model)
    arrays = {}
    try:
        with zipfile.ZipFile(path) as archive:
            state = json.loads(archive.read(STATE))
            for name in state.pop("variables"):
                with archive.open(_entry(name)) as file:
                    arrays[name] = np.lib.format.read_array(file, allow_pickle=False)
    except (zipfile.BadZipFile, KeyError, ValueError, EOFError) as error:
        raise ValueError(f"{path}: damaged, or no checkpoint of keras_seg ({error})") from error
    expected = {f"{name} {tuple(v.shape)}" for name, v in variables.items()}
    found = {f"{name} {array.shape}" for name, array in arrays.items()}
    if expected != found:
        missing, unknown = (
            ", ".join(sorted(s)[:3]) or "nothing" for s in (expected - found, found - expected)
        )
        raise ValueError(
            f"{path}: of another model or optimizer: lacks {missing}; has, unknown here, {unknown}"
        )
    for name, variable in variables.items():
        variable.assign(arrays[name])
    return state


def _entry(name: str) -> str:
    return f"{name.partition(' ')[0]}.npy"


def _named_variables(model: keras.Model) -> dict[str, keras.Variable]:
    """All variables under names that are the same in every process (Keras numbers optimizers and seed generators)."""
    metrics = {id(v) for metric in model.metrics for v in metric.variables}
    # `variables` holds the seed generators' states too, `weights` does not
    own = [v for v in model.variables if id(v) not in metrics]
    named = {
        f"{k:04d} {re.sub('seed_generator_[0-9]+', 'seed_generator', v.path)}": v for k, v in enumerate(own)
    }
    for k, v in enumerate(model.optimizer.variables, start=len(own)):
        named[f"{k:04d} optimizer/{v.path.partition('/')[2]}"] = v
    return named
