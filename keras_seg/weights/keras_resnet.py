"""ResNets under the names that Keras has given their layers, to keras_seg's backbone."""

from __future__ import annotations

import re

import numpy as np

from keras_seg.weights.layer_file import LayerFile

STEM = {
    "conv1": "stem_conv1",
    "conv1_conv": "stem_conv1",
    "bn_conv1": "stem_conv1_norm",
    "conv1_bn": "stem_conv1_norm",
}
PLACES = {"0": "shortcut", "1": "shortcut", "2a": "conv1", "2b": "conv2", "2c": "conv3"}


def rename(layer: str) -> str | None:
    """keras_seg's layer, "res2_0_conv1" or "res2_0_conv1_norm"; None for what is no ResNet's layer.

    Known are the names of keras.applications ("conv2_block1_1_conv") and those before ("res2a_branch2a"), which live
    on in Matterport's files.
    """
    if match := re.fullmatch(r"conv(\d)_block(\d+)_(\d)_(conv|bn)", layer):
        stage, block, place, kind = match.groups()
        convolution = f"conv{place}" if place != "0" else "shortcut"
        return f"res{stage}_{int(block) - 1}_{convolution}{'_norm' if kind == 'bn' else ''}"
    if match := re.fullmatch(r"(res|bn)(\d)([a-z])_branch(1|2[abc])", layer):
        kind, stage, block, place = match.groups()
        return f"res{stage}_{ord(block) - ord('a')}_{PLACES[place]}{'_norm' if kind == 'bn' else ''}"
    return STEM.get(layer)


def convert(file: LayerFile, *, epsilon: float, norm_eps: float) -> dict[str, np.ndarray]:
    """{"layer/variable": array} of the ResNet among a file's layers, in a backbone with `norm_eps`.

    epsilon: what the file's normalisations add to the variance. Its convolutions have biases; the normalisations'
    moving means take them in. Raises ValueError naming what the file lacks, or what does not fit together.
    """
    theirs = {ours: layer for layer in file.layers if (ours := rename(layer))}
    arrays: dict[str, np.ndarray] = {}
    for ours, layer in theirs.items():
        if ours.endswith("_norm"):
            continue
        if f"{ours}_norm" not in theirs:
            raise ValueError(f"{file.path}: lacks the batch normalisation after {layer}")
        found = file.normalized(layer, theirs[f"{ours}_norm"], epsilon, norm_eps=norm_eps)
        arrays |= {f"{ours}{variable}": array for variable, array in found.items()}
    return arrays
