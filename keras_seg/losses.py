"""U-Net's weighted cross-entropy (equation 1) and the weight map of equation 2 (Ronneberger et al. 2015, Section 3)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

if TYPE_CHECKING:
    import tensorflow as tf

IGNORE = -1
# The border term is dropped where it is below this: it changes no float32 digit of w, whose class term is around 1.
NEGLIGIBLE = 1e-9


def weight_map(
    labels: np.ndarray, w0: float = 10.0, sigma: float = 5.0, class_weights: Sequence[float] | None = None
) -> np.ndarray:
    """The weight of each pixel in the loss: w(x) = w_c(x) + w0 * exp(-(d1(x) + d2(x))^2 / (2 sigma^2)), equation 2.

    Args:
        labels: instances, int [H, W]: 0 background, k > 0 the k-th cell, -1 not annotated (weight 0).
        w0: height of the border term; 10 in the paper.
        sigma: its width in pixels; about 5 in the paper.
        class_weights: (w_c of the background, w_c of the cells); None balances the two in this image, with mean
            weight 1 (`class_balance`).

    d1 and d2 are the Euclidean distances, in pixels, to the nearest pixel of the nearest and of the second nearest
    cell; inside a cell d1 is 0. With fewer than two cells there is no border term.

    Returns: float32 [H, W].

    Raises:
        ValueError: if labels are not an integer [H, W] array with values >= -1, or sigma is not positive.
    """
    labels = _check_labels(labels)
    if not sigma > 0 or w0 < 0:
        raise ValueError(f"weight_map: needs sigma > 0 and w0 >= 0, got sigma={sigma}, w0={w0}")
    if class_weights is None:
        class_weights = class_balance([np.where(labels > 0, 1, labels)], classes=2)
    if len(class_weights) != 2:
        raise ValueError(
            f"weight_map: class_weights are (background, cells), got {len(class_weights)} values"
        )
    weights = np.where(labels > 0, class_weights[1], class_weights[0])
    if w0 > 0:
        weights = weights + w0 * np.exp(-(_two_distances(labels, _reach(w0, sigma)) ** 2) / (2 * sigma**2))
    return np.where(labels == IGNORE, 0, weights).astype(np.float32)


def class_balance(labels: Iterable[np.ndarray], classes: int) -> np.ndarray:
    """w_c of equation 2: weights inverse to the frequency of each class, 1 on average over the annotated pixels.

    labels: class indices, int arrays of any shape, -1 = not annotated. Returns float64 [classes]; a class without a
    pixel gets 0. ValueError if a label is outside -1 … classes - 1 or nothing is annotated.
    """
    counts = np.zeros(classes, np.int64)
    for label in labels:
        present, count = np.unique(label, return_counts=True)
        for value, n in zip(present.tolist(), count.tolist(), strict=True):
            if value != IGNORE and not 0 <= value < classes:
                raise ValueError(
                    f"class_balance: label {value} outside 0 … {classes - 1} (or -1 = not annotated)"
                )
            if value != IGNORE:
                counts[value] += n
    present = counts > 0
    if not present.any():
        raise ValueError("class_balance: no annotated pixel in any of the labels")
    return np.divide(counts.sum(), present.sum() * counts, out=np.zeros(classes), where=present)


def separate_touching(labels: np.ndarray, width: int = 2) -> np.ndarray:
    """Draws a background border between touching cells, by morphology (Section 3: "the separation border").

    A cell's pixel becomes background if another cell lies within a (2r + 1) x (2r + 1) square around it, r = width /
    2 rounded up; so two cells that touch are parted by 2r pixels. Cells apart by more than r pixels stay as they are.

    labels: instances, int [H, W], 0 background, -1 not annotated. width: pixels, >= 1. Returns a copy.
    """
    labels = _check_labels(labels)
    if width < 1:
        raise ValueError(f"separate_touching: width must be at least 1 pixel, got {width}")
    size = 2 * math.ceil(width / 2) + 1
    nearby_max = ndimage.maximum_filter(labels, size, mode="nearest")
    nobody = labels.max() + 1
    nearby_min = ndimage.minimum_filter(np.where(labels > 0, labels, nobody), size, mode="nearest")
    return np.where((labels > 0) & (nearby_min != nearby_max), 0, labels)


def weighted_crossentropy(
    labels: tf.Tensor, logits: tf.Tensor, weights: tf.Tensor | None = None, activation: str = "softmax"
) -> tf.Tensor:
    """Cross-entropy weighted by pixel (equation 1), averaged over the annotated pixels.

    Args:
        labels: int [B, h, w] class index, -1 = ignore; with "sigmoid" also [B, h, w, classes] of 0, 1 or -1.
        logits: float32 [B, h, w, classes].
        weights: float32 [B, h, w]; None = 1 everywhere.
        activation: "softmax"; or "sigmoid", one binary cross-entropy a class, summed (with classes = 1 every label
            above 0 is the class).

    Returns: scalar float32, the sum of w * cross-entropy over the number of annotated pixels.
    """
    import tensorflow as tf

    logits = tf.cast(logits, tf.float32)
    if activation == "softmax":
        known = labels >= 0
        entropy = tf.nn.sparse_softmax_cross_entropy_with_logits(tf.maximum(labels, 0), logits)
    else:
        classes = logits.shape[-1]
        if labels.shape.rank == 3:
            known = labels >= 0
            targets = (
                tf.cast(labels > 0, tf.float32)[..., None] if classes == 1 else tf.one_hot(labels, classes)
            )
        else:
            known = tf.reduce_any(labels >= 0, axis=-1)
            targets = tf.cast(labels > 0, tf.float32)
        each = tf.nn.sigmoid_cross_entropy_with_logits(targets, logits)
        if labels.shape.rank == 4:
            each = tf.where(labels >= 0, each, 0.0)
        entropy = tf.reduce_sum(each, axis=-1)
    entropy = tf.where(known, entropy, 0.0)
    if weights is not None:
        entropy = entropy * weights
    return tf.math.divide_no_nan(tf.reduce_sum(entropy), tf.reduce_sum(tf.cast(known, tf.float32)))


def _check_labels(labels: np.ndarray) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.ndim != 2 or labels.size == 0 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"labels: expected a non-empty integer array [H, W], got {labels.dtype} {labels.shape}"
        )
    labels = labels.astype(np.int64)
    if labels.min() < IGNORE:
        raise ValueError(f"labels: the least legal value is -1 (not annotated), got {labels.min()}")
    return labels


def _reach(w0: float, sigma: float) -> int:
    """Distance in pixels beyond which the border term is negligible."""
    return math.ceil(sigma * math.sqrt(2 * math.log(max(w0 / NEGLIGIBLE, 2))))


def _two_distances(labels: np.ndarray, reach: int) -> np.ndarray:
    """d1 + d2 [H, W], infinite where it exceeds `reach` or there are fewer than two cells.

    One distance transform a cell, but only in the cell's own window: farther away the cell cannot matter.
    """
    first = np.full(labels.shape, np.inf)
    second = np.full(labels.shape, np.inf)
    # consecutive numbers, since find_objects makes an entry for every number up to the largest
    values, numbers = np.unique(np.maximum(labels, 0), return_inverse=True)
    numbers = numbers.reshape(labels.shape) + (0 if values[0] == 0 else 1)
    for number, box in enumerate(ndimage.find_objects(numbers), start=1):
        window = tuple(slice(max(0, side.start - reach), side.stop + reach) for side in box)
        distance = ndimage.distance_transform_edt(numbers[window] != number)
        near, next_near = first[window], second[window]
        np.minimum(next_near, np.maximum(near, distance), out=next_near)
        np.minimum(near, distance, out=near)
    return first + second
