"""PyTorch's memory layouts to Keras's, and a guard against names that are not understood."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

MAX_SHOWN = 8  # names that an error lists

# PyTorch's name of a normalisation layer's variable: Keras's
NORMALIZATION = {
    "weight": "gamma",
    "bias": "beta",
    "running_mean": "moving_mean",
    "running_var": "moving_variance",
}


def kernel(weight: np.ndarray) -> np.ndarray:
    """A convolution's weight [out, in, kh, kw], or a transposed one's [in, out, kh, kw], to Keras's: [kh, kw, in, out],
    and for the transposed [kh, kw, out, in]; a dense layer's [out, in] to [in, out]."""
    return weight.transpose(2, 3, 1, 0) if weight.ndim == 4 else weight.T


def dense_on_map(weight: np.ndarray, side: int) -> np.ndarray:
    """The weight [out, C * side * side] of a dense layer on a flattened map [C, side, side] to Keras's
    [side * side * C, out] for maps [side, side, C]."""
    outgoing, incoming = weight.shape
    channels = incoming // side**2
    return weight.reshape(outgoing, channels, side, side).transpose(2, 3, 1, 0).reshape(incoming, outgoing)


def require_understood(path: Path, arrays: Mapping[str, np.ndarray], known: Iterable[str], kind: str) -> None:
    """Raises ValueError naming what in `arrays` is not `known`: a file of another format or network."""
    unknown = sorted(arrays.keys() - set(known))
    if unknown:
        shown = ", ".join(f"{name} {list(arrays[name].shape)}" for name in unknown[:MAX_SHOWN])
        more = f" and {len(unknown) - MAX_SHOWN} more" if len(unknown) > MAX_SHOWN else ""
        raise ValueError(f"{path}: no weights of a {kind} Mask R-CNN known here: it also holds {shown}{more}")
