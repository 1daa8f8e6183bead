"""What networks are trained to make small.

U-Net: the weighted cross-entropy (equation 1) and the weight map of equation 2 (Ronneberger et al. 2015, Section 3).
Mask R-CNN: L = L_cls + L_box + L_mask of the regions (He et al. 2017, Section 3), the same two of the proposals (Ren et
al. 2015, Section 3.1.2) and the keypoints' (He et al. 2017, Section 5). All in float32, whatever comes in; all are 0, and
not NaN, when there is nothing to learn from; and all work under XLA.
"""

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
        class_weights = class_balance([np.where(labels > 0, 1, labels)], classes=2).tolist()
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
    return tf.reduce_sum(entropy) / count(known)


def rpn_losses(
    logits: tf.Tensor,
    deltas: tf.Tensor,
    labels: tf.Tensor,
    targets: tf.Tensor,
    normalizer: tf.Tensor | float,
    beta: float = 0.0,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Losses of the region proposal network, of objectness and of boxes: two scalars.

    Args:
        logits: [..., A] objectness.
        deltas: [..., A, 4].
        labels: int [..., A]: 1 positive, 0 negative, -1 not sampled.
        targets: [..., A, 4], the deltas to the matched boxes; looked at where the label is 1, and need not be finite
            elsewhere.
        normalizer: what both sums are divided by. Detectron2: samples wanted an image times images; torchvision: the
            samples that there are. At least 1 is taken.
        beta: of the smooth L1 loss of boxes, in units of deltas; 0 is L1 (Detectron2). torchvision: 1/9.
    """
    import tensorflow as tf

    positive = labels == 1
    entropy = tf.nn.sigmoid_cross_entropy_with_logits(
        tf.cast(positive, tf.float32), tf.cast(logits, tf.float32)
    )
    box = _smooth_l1(tf.cast(deltas, tf.float32), targets, positive[..., None], beta)
    normalizer = tf.maximum(tf.cast(normalizer, tf.float32), 1)
    return tf.reduce_sum(tf.where(labels >= 0, entropy, 0)) / normalizer, tf.reduce_sum(box) / normalizer


def box_losses(
    logits: tf.Tensor,
    deltas: tf.Tensor,
    classes: tf.Tensor,
    targets: tf.Tensor,
    normalizer: tf.Tensor | float | None = None,
    beta: float = 0.0,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Losses of the box head, of classes and of boxes: two scalars.

    Args:
        logits: [R, K + 1], the background last.
        deltas: [R, 4K] for each class, or [R, 4] for all.
        classes: int [R]: K is the background, -1 a row that does not count.
        targets: [R, 4], the deltas to the matched boxes; looked at where there is a foreground class, and need not be
            finite elsewhere.
        normalizer: what both sums are divided by; None: the rows that count (Detectron2 and torchvision). At least 1
            is taken.
        beta: as in `rpn_losses`.
    """
    import tensorflow as tf

    logits, deltas = tf.cast(logits, tf.float32), tf.cast(deltas, tf.float32)
    background = logits.shape[-1] - 1
    counts = classes >= 0
    foreground = counts & (classes < background)
    entropy = tf.nn.sparse_softmax_cross_entropy_with_logits(tf.maximum(classes, 0), logits)
    if deltas.shape[-1] != 4:
        own = tf.where(foreground, classes, 0)
        deltas = tf.gather(tf.reshape(deltas, [-1, background, 4]), own, batch_dims=1)
    box = _smooth_l1(deltas, targets, foreground[:, None], beta)
    normalizer = count(counts) if normalizer is None else tf.maximum(tf.cast(normalizer, tf.float32), 1)
    return tf.reduce_sum(tf.where(counts, entropy, 0)) / normalizer, tf.reduce_sum(box) / normalizer


def mask_loss(
    logits: tf.Tensor, targets: tf.Tensor, classes: tf.Tensor, activation: str = "sigmoid"
) -> tf.Tensor:
    """Mean cross-entropy of the masks' pixels: a scalar.

    Args:
        logits: [R, m, m, K]; [R, m, m, 1] for one mask for all classes; with "softmax" [R, m, m, K + 1], the
            background last.
        targets: bool or 0/1 [R, m, m], the true masks within the regions.
        classes: int [R]; -1 is a row that does not count.
        activation: "sigmoid": a binary cross-entropy on the true class's mask alone (He et al. 2017, Section 3); or
            "softmax": each pixel is of the true class or of the background, in competition (Table 2b).

    Raises:
        ValueError: another activation.
    """
    import tensorflow as tf

    if activation not in ("sigmoid", "softmax"):
        raise ValueError(f"mask_loss: activation must be 'sigmoid' or 'softmax', got {activation!r}")
    logits = tf.cast(logits, tf.float32)
    counts = classes >= 0
    own = tf.where(counts, classes, 0)
    if activation == "softmax":
        pixels = tf.where(tf.cast(targets, tf.bool), own[:, None, None], logits.shape[-1] - 1)
        entropy = tf.nn.sparse_softmax_cross_entropy_with_logits(pixels, logits)
    else:
        # the class's map is taken by a product: a gather along the last axis has a slow, scattering gradient
        own = tf.zeros_like(own) if logits.shape[-1] == 1 else own
        chosen = tf.einsum("rhwk,rk->rhw", logits, tf.one_hot(own, logits.shape[-1]))
        entropy = tf.nn.sigmoid_cross_entropy_with_logits(tf.cast(targets, tf.float32), chosen)
    each = tf.reduce_mean(entropy, (1, 2))
    return tf.reduce_sum(tf.where(counts, each, 0)) / count(counts)


def keypoint_loss(
    logits: tf.Tensor, indices: tf.Tensor, valid: tf.Tensor, normalizer: tf.Tensor | float | None = None
) -> tf.Tensor:
    """Cross-entropy over the m * m places of each visible keypoint (He et al. 2017, Section 5): a scalar.

    Args:
        logits: [R, m, m, K].
        indices: int [R, K], the true places y * m + x (`ops.keypoints.keypoint_targets`).
        valid: bool [R, K]: the keypoint is visible and within its region.
        normalizer: what the sum is divided by; None: the number of valid keypoints, at least 1. Detectron2's
            alternative: keypoints of a person times positive regions wanted in the batch.
    """
    import tensorflow as tf

    shape = tf.shape(logits)
    flat = tf.reshape(tf.cast(logits, tf.float32), [shape[0], shape[1] * shape[2], shape[3]])
    entropy = tf.nn.sparse_softmax_cross_entropy_with_logits(
        tf.where(valid, indices, 0), tf.transpose(flat, [0, 2, 1])
    )
    total = tf.reduce_sum(tf.where(valid, entropy, 0))
    return total / (count(valid) if normalizer is None else tf.cast(normalizer, tf.float32))


def count(true: tf.Tensor) -> tf.Tensor:
    """How many are true, at least 1: float32, what a sum is divided by for a mean.

    On a replica of a distribution strategy it is the mean over replicas (at least 1 in all): sums divided by it have for
    their mean over replicas what one process has with all the batches in one.
    """
    import tensorflow as tf

    number = tf.reduce_sum(tf.cast(true, tf.float32))
    context = tf.distribute.get_replica_context()
    replicas = context.num_replicas_in_sync if context else 1
    if replicas > 1:
        number = context.all_reduce(tf.distribute.ReduceOp.SUM, number)
    return tf.maximum(number, 1) / replicas


def _smooth_l1(deltas: tf.Tensor, targets: tf.Tensor, where: tf.Tensor, beta: float) -> tf.Tensor:
    """Girshick 2015, Section 2.3: quadratic up to `beta`, linear beyond; 0 outside `where`, of the gradient too."""
    import tensorflow as tf

    # the choice comes before the arithmetic: a NaN that is only dropped afterwards stays in the gradient
    error = tf.abs(tf.where(where, deltas, 0) - tf.where(where, tf.cast(targets, tf.float32), 0))
    if beta <= 0:
        return error
    return tf.where(error < beta, 0.5 * error**2 / beta, error - 0.5 * beta)


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
