"""One annotated image in memory: what every reader of `keras_seg.data` returns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

UNKNOWN = -1  # in `label` and `instances`: a pixel nobody annotated, ignored by losses and metrics


@dataclass(frozen=True, eq=False)
class Sample:
    """An image with its annotation; H and W are pixels and the same for all arrays.

    name: where it comes from (file, slice or frame), for messages.
    image: float32 `[H, W, C]`, 0-255.
    label: int32 `[H, W]`, class index: 0 background or membrane, 1.. objects, -1 not annotated.
    weight: float32 `[H, W]`, weight of each pixel in the loss; 0 where `label` is -1.
    instances: int32 `[H, W]`, 0 background, k > 0 the k-th object, -1 not annotated.

    Raises ValueError if shapes or dtypes differ from these.
    """

    name: str
    image: np.ndarray
    label: np.ndarray
    weight: np.ndarray
    instances: np.ndarray

    def __post_init__(self) -> None:
        size = list(self.image.shape[:2])
        if self.image.ndim != 3 or self.image.dtype != np.float32:
            raise ValueError(
                f"{self.name}: image must be float32 [H, W, C], not {self.image.dtype} {self.image.shape}"
            )
        for field, dtype in (("label", np.int32), ("weight", np.float32), ("instances", np.int32)):
            array = getattr(self, field)
            if array.shape != self.image.shape[:2] or array.dtype != dtype:
                raise ValueError(
                    f"{self.name}: {field} must be {np.dtype(dtype)} {size} like the image, "
                    f"not {array.dtype} {list(array.shape)}"
                )
