"""Intersection over union of classes of pixels."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

UNKNOWN = -1


def mean_iou(prediction: Iterable[np.ndarray], label: Iterable[np.ndarray], classes: int) -> float:
    """Intersection over union, counted over all images together, averaged over the classes that occur in either.

    prediction: class indices, int [H, W] an image; label: the same, -1 = not annotated, which does not count.
    ValueError if numbers or shapes of images differ, a class is out of range or nothing is annotated.
    """
    both = np.zeros((classes, classes), np.int64)
    for index, (found, true) in enumerate(zip(prediction, label, strict=True)):
        found, true = np.asarray(found), np.asarray(true)
        if found.shape != true.shape:
            raise ValueError(
                f"mean_iou: image {index}: prediction {found.shape} and label {true.shape} differ in shape"
            )
        known = true != UNKNOWN
        for name, values in (("prediction", found[known]), ("label", true[known])):
            if values.size and not (0 <= values.min() and values.max() < classes):
                raise ValueError(f"mean_iou: image {index}: {name} has classes outside 0 … {classes - 1}")
        both += np.bincount(true[known] * classes + found[known], minlength=classes**2).reshape(
            classes, classes
        )
    intersection, union = np.diag(both), both.sum(0) + both.sum(1) - np.diag(both)
    if not union.any():
        raise ValueError("mean_iou: no annotated pixel")
    return float(np.mean(intersection[union > 0] / union[union > 0]))
