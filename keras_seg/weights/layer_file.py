"""The layers of another library's file, taken out one by one, with biases and batch normalisations folded exactly (up to
float32's rounding) into their neighbours. What was never taken was not understood."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

STATISTICS = ("gamma", "beta", "moving_mean", "moving_variance")
XY = [1, 0, 3, 2]  # box deltas (dy, dx, dh, dw) in keras_seg's order
MAX_SHOWN = 8  # layers that an error lists


class LayerFile:
    """{layer: {variable: array}} of a file. All methods raise ValueError naming the file and the layer for what is
    missing or of a shape that does not fit. Kernels have their outputs, C, on the last axis."""

    def __init__(self, path: Path, layers: Mapping[str, Mapping[str, np.ndarray]]) -> None:
        self.path, self.layers = path, layers
        self._taken: set[str] = set()

    def __contains__(self, layer: str) -> bool:
        return layer in self.layers

    def linear(self, layer: str) -> tuple[np.ndarray, np.ndarray]:
        """Kernel [..., C] and bias [C] of a convolution, also a transposed one, or of a dense layer."""
        kernel, bias = self._take(layer, "kernel", "bias")
        if kernel.ndim < 2 or bias.ndim != 1 or len(bias) not in kernel.shape[-2:]:
            raise ValueError(
                f"{self.path}: {layer}/bias is {[*bias.shape]}, and {layer}/kernel {[*kernel.shape]}"
            )
        return kernel, bias

    def grouped(self, layer: str, size: int) -> tuple[np.ndarray, np.ndarray]:
        """`linear` with its outputs in groups: kernel [..., C / size, size] and bias [C / size, size]."""
        kernel, bias = self.linear(layer)
        if len(bias) % size:
            raise ValueError(f"{self.path}: {layer} has {len(bias)} outputs, which is no multiple of {size}")
        return kernel.reshape(*kernel.shape[:-1], -1, size), bias.reshape(-1, size)

    def folded(
        self, layer: str, norm: str, epsilon: float, *, axis: int = -1
    ) -> tuple[np.ndarray, np.ndarray]:
        """Kernel and bias that do what a layer and the batch normalisation after it do. axis: of the kernel's outputs."""
        kernel, bias = self.linear(layer)
        gamma, beta, mean, variance = (
            array.astype(np.float64) for array in self._statistics(norm, layer, bias)
        )
        scale = gamma / np.sqrt(variance + epsilon)
        shape = [1] * kernel.ndim
        shape[axis] = -1
        kernel = kernel * scale.reshape(shape)
        return kernel.astype(np.float32), ((bias - mean) * scale + beta).astype(np.float32)

    def normalized(
        self, layer: str, norm: str, epsilon: float, *, norm_eps: float, bias: bool = True
    ) -> dict[str, np.ndarray]:
        """{"/kernel": …, "_norm/gamma": …, …} of a convolution without a bias and a normalisation that adds `norm_eps`
        to the variance, which do what a convolution and one that adds `epsilon` do. bias: the file's has one."""
        if bias:
            kernel, own = self.linear(layer)
        else:
            (kernel,) = self._take(layer, "kernel")
            own = np.zeros(kernel.shape[-1], np.float32)
        gamma, beta, mean, variance = self._statistics(norm, layer, own)
        shifted = (variance.astype(np.float64) + (epsilon - norm_eps)).astype(np.float32)
        values = dict(zip(STATISTICS, (gamma, beta, mean - own, shifted), strict=True))
        return {"/kernel": kernel, **{f"_norm/{variable}": array for variable, array in values.items()}}

    def require_all_taken(self, kind: str) -> None:
        """Raises ValueError naming the layers that nobody took: a file of another network than a `kind`."""
        left = sorted(self.layers.keys() - self._taken)
        if left:
            more = f" and {len(left) - MAX_SHOWN} more" if len(left) > MAX_SHOWN else ""
            shown = ", ".join(left[:MAX_SHOWN])
            raise ValueError(f"{self.path}: no weights of a {kind} known here: it also holds {shown}{more}")

    def _take(self, layer: str, *variables: str) -> list[np.ndarray]:
        there = self.layers.get(layer, {})
        missing = [f"{layer}/{variable}" for variable in variables if variable not in there]
        if missing:
            raise ValueError(f"{self.path}: lacks {', '.join(missing)}")
        unknown = [f"{layer}/{variable}" for variable in there if variable not in variables]
        if unknown:
            raise ValueError(f"{self.path}: holds {', '.join(unknown)}, which is not known here")
        self._taken.add(layer)
        return [there[variable] for variable in variables]

    def _statistics(self, norm: str, layer: str, bias: np.ndarray) -> list[np.ndarray]:
        statistics = self._take(norm, *STATISTICS)
        for variable, array in zip(STATISTICS, statistics, strict=True):
            if array.shape != bias.shape:
                raise ValueError(
                    f"{self.path}: {norm}/{variable} is {[*array.shape]}, and {layer} has {len(bias)} channels"
                )
        return statistics


def ungrouped(array: np.ndarray) -> np.ndarray:
    """Undoes `LayerFile.grouped`: [..., N, M] to [..., N * M]."""
    return array.reshape(*array.shape[:-2], -1)
