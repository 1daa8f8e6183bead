"""Weights files of Keras 2: HDF5 with a group for each layer, which Keras calls its legacy format."""

from __future__ import annotations

import re
from pathlib import Path

import h5py
import numpy as np

from keras_seg.weights.files import check_self_contained


def read_layers(path: str | Path) -> dict[str, dict[str, np.ndarray]]:
    """{layer: {variable: float32 array}} of a file of weights, or of a whole model; layers of models within the model
    stand beside the others.

    Raises FileNotFoundError; ValueError: truncated, no HDF5, or HDF5 of something else.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such weights file")
    layers: dict[str, dict[str, np.ndarray]] = {}
    try:
        with h5py.File(path, "r") as file:
            check_self_contained(file)
            root = file.get("model_weights", file)
            for name in _strings(root, "layer_names"):
                weights = _strings(root[name], "weight_names")
                scopes = {weight.rpartition("/")[0] for weight in weights}
                for weight in weights:
                    scope, _, variable = weight.rpartition("/")
                    # TensorFlow 1 numbers the scopes of a second model ("conv1_1"), so a layer's own name is better
                    layer = re.sub(r"_\d+$", "", scope.split("/")[-1]) if len(scopes) > 1 else name
                    array = np.asarray(root[name][weight], np.float32)
                    layers.setdefault(layer, {})[variable.removesuffix(":0")] = array
    except (OSError, KeyError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: truncated, damaged, or no HDF5 file ({error})") from error
    if not layers:
        raise ValueError(
            f"{path}: an HDF5 file, but without the layer names of Keras 2's weights; Keras 3 writes such a file with "
            'model.save("model.h5")'
        )
    return layers


def _strings(group: h5py.Group, name: str) -> list[str]:
    """A list of names, which Keras splits over attributes "name0", "name1", … where it is long."""
    if name in group.attrs:
        values = [*group.attrs[name]]
    else:
        values = [value for part in range(len(group.attrs)) for value in group.attrs.get(f"{name}{part}", ())]
    return [value.decode() if isinstance(value, bytes) else str(value) for value in values]
