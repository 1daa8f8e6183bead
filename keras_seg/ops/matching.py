"""Which ground truth an anchor or a proposal stands for, and which of them a loss looks at.

`match` works under XLA; `sample_labels` does not, since the number of samples is data.
"""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

IGNORE, NEGATIVE, POSITIVE = -1, 0, 1


def match(
    iou: tf.Tensor, thresholds: Sequence[float], labels: Sequence[int], allow_low_quality: bool = False
) -> tuple[tf.Tensor, tf.Tensor]:
    """The best ground truth of each candidate, and whether it is positive (1), negative (0) or ignored (-1).

    iou: float32 [G, A] overlaps of G ground truths with A candidates. thresholds: rising; labels: one more than
    thresholds, for the overlaps below, between and from them on: (0.3, 0.7) and (0, -1, 1) in the RPN, (0.5,) and
    (0, 1) in the heads. allow_low_quality: a ground truth's own best candidates are positive whatever their overlap
    (Ren et al. 2015, Section 3.1.2), and keep the match that is best for them.

    A ground truth that overlaps nothing makes nothing positive; in Detectron2 it makes every candidate positive that
    overlaps it as little as all others do, with an overlap of 0: that is, nearly all.

    Returns matches int32 [A], labels int32 [A]. Without ground truth: all 0, and the first label.

    Raises:
        ValueError: not one label more than thresholds, or thresholds that do not rise.
    """
    if len(labels) != len(thresholds) + 1 or list(thresholds) != sorted(set(thresholds)):
        raise ValueError(
            "match: needs rising thresholds and one label more than thresholds, got "
            f"{[*thresholds]} and {[*labels]}"
        )
    candidates = tf.shape(iou)[1]

    def with_truth() -> tuple[tf.Tensor, tf.Tensor]:
        best = tf.reduce_max(iou, 0)
        matches = tf.argmax(iou, 0, output_type=tf.int32)
        # how many thresholds each overlap has reached says which label it gets
        reached = tf.add_n([tf.cast(best >= threshold, tf.int32) for threshold in thresholds])
        result = tf.gather(tf.constant(labels, tf.int32), reached)
        if allow_low_quality:
            own_best = tf.reduce_max(iou, 1, keepdims=True)
            wanted = tf.reduce_any((iou == own_best) & (own_best > 0), 0)
            result = tf.where(wanted, POSITIVE, result)
        return matches, result

    def without() -> tuple[tf.Tensor, tf.Tensor]:
        return tf.zeros([candidates], tf.int32), tf.fill([candidates], labels[0])

    return tf.cond(tf.shape(iou)[0] > 0, with_truth, without)


def sample_labels(
    labels: tf.Tensor,
    count: int,
    positive_fraction: float,
    *,
    seed: tf.Tensor | None = None,
    first: bool = False,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Indices, rising int32 [P] and [N], of at most `count` candidates, of which at most `positive_fraction` positive.

    labels: int32 [A], 1 positive, 0 negative, others not eligible. Negatives fill up what positives leave. seed: int
    [2] for a reproducible choice; None: another one at each call. first: the first ones instead of random ones.
    """

    def choose(eligible: tf.Tensor, most: tf.Tensor, salt: int) -> tf.Tensor:
        if not first:
            order = (
                tf.random.shuffle(tf.range(tf.size(eligible)))
                if seed is None
                else tf.random.experimental.stateless_shuffle(tf.range(tf.size(eligible)), seed + salt)
            )
            eligible = tf.gather(eligible, order)
        return tf.sort(eligible[:most])

    positive = tf.cast(tf.where(labels == POSITIVE)[:, 0], tf.int32)
    negative = tf.cast(tf.where(labels == NEGATIVE)[:, 0], tf.int32)
    positives = tf.minimum(tf.size(positive), int(count * positive_fraction))
    return choose(positive, positives, 0), choose(negative, count - positives, 1)
