"""Which ground truth an anchor or a proposal stands for, and which of them a loss looks at.

`match` and `sample_labels` are of one image; `match_boxes` and `sample_batch` are the same for a padded batch, within
bounded memory. `match` works under XLA; `sample_labels` does not, since the number of samples is data.
"""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from keras_seg.ops.boxes import area

IGNORE, NEGATIVE, POSITIVE = -1, 0, 1
PAIRS_AT_ONCE = 2**22  # overlaps of truths with candidates: 16 MiB an array


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
    _check_thresholds("match", thresholds, labels)
    candidates = tf.shape(iou)[1]

    def with_truth() -> tuple[tf.Tensor, tf.Tensor]:
        best = tf.reduce_max(iou, 0)
        matches = tf.argmax(iou, 0, output_type=tf.int32)
        result = _label(best, thresholds, labels)
        if allow_low_quality:
            own_best = tf.reduce_max(iou, 1, keepdims=True)
            wanted = tf.reduce_any((iou == own_best) & (own_best > 0), 0)
            result = tf.where(wanted, POSITIVE, result)
        return matches, result

    def without() -> tuple[tf.Tensor, tf.Tensor]:
        return tf.zeros([candidates], tf.int32), tf.fill([candidates], labels[0])

    return tf.cond(tf.shape(iou)[0] > 0, with_truth, without)


def match_boxes(
    boxes: tf.Tensor,
    valid: tf.Tensor,
    candidates: tf.Tensor,
    thresholds: Sequence[float],
    labels: Sequence[int],
    allow_low_quality: bool = False,
) -> tuple[tf.Tensor, tf.Tensor]:
    """`match` of each image of a batch by `ops.boxes.pairwise_iou`, truth by truth instead of all overlaps at once.

    boxes: float32 [B, G, 4]; valid: bool [B, G], those that are there; candidates: float32 [A, 4], the same for all
    images, or [B, A, 4]. The other arguments are those of `match`.

    Returns matches int32 [B, A] and labels int32 [B, A]. Memory: some arrays of `PAIRS_AT_ONCE`, or of B * A if that is
    more. Not under XLA.
    """
    _check_thresholds("match_boxes", thresholds, labels)
    batch, truths = tf.shape(boxes)[0], tf.shape(boxes)[1]
    if candidates.shape.rank == 2:
        candidates = candidates[None]
    number = tf.shape(candidates)[1]
    at_once = tf.maximum(PAIRS_AT_ONCE // tf.maximum(batch * number, 1), 1)
    # coordinates apart, so that the innermost axis is the long one
    x1, y1, x2, y2 = (side[:, None] for side in tf.unstack(candidates, axis=-1))
    candidate_area = area(candidates)[:, None]

    def step(
        start: tf.Tensor, best: tf.Tensor, matches: tf.Tensor, wanted: tf.Tensor
    ) -> tuple[tf.Tensor, ...]:
        some = boxes[:, start : start + at_once]
        left, top, right, bottom = (side[:, :, None] for side in tf.unstack(some, axis=-1))
        across = tf.maximum(tf.minimum(x2, right) - tf.maximum(x1, left), 0)
        common = across * tf.maximum(tf.minimum(y2, bottom) - tf.maximum(y1, top), 0)
        union = area(some)[:, :, None] + candidate_area - common
        iou = tf.where(common > 0, common / tf.where(common > 0, union, 1), 0)
        iou = tf.where(valid[:, start : start + at_once, None], iou, -1)
        here = tf.reduce_max(iou, 1)
        better = here > best  # of equal ones the first stays
        found = start + tf.argmax(iou, 1, output_type=tf.int32)
        if allow_low_quality:
            own_best = tf.reduce_max(iou, 2, keepdims=True)
            wanted |= tf.reduce_any((iou == own_best) & (own_best > 0), 1)
        return start + at_once, tf.where(better, here, best), tf.where(better, found, matches), wanted

    shape = [batch, number]
    state = (tf.constant(0), tf.fill(shape, -1.0), tf.zeros(shape, tf.int32), tf.zeros(shape, tf.bool))
    shapes = (tf.TensorShape([]), *[tf.TensorShape([boxes.shape[0], None])] * 3)
    _, best, matches, wanted = tf.while_loop(
        lambda start, *_: start < truths, step, state, shapes, parallel_iterations=1
    )
    result = _label(best, thresholds, labels)
    return matches, tf.where(wanted, POSITIVE, result) if allow_low_quality else result


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


def sample_batch(
    labels: tf.Tensor, count: int, positive_fraction: float, seed: tf.Tensor, *, first: bool = False
) -> tuple[tf.Tensor, tf.Tensor]:
    """A random choice of candidates in each image of a batch, of fixed size.

    labels: int32 [B, A], 1 positive, 0 negative, others not eligible. count, positive_fraction: as in `sample_labels`.
    seed: int [2]; the same gives the same choice. first: the first ones instead of random ones.

    Returns indices int32 [B, count] into the A candidates, the positives first; and their labels int32 [B, count], -1
    where too few are eligible.
    """
    batch, number = tf.shape(labels)[0], tf.shape(labels)[1]
    if first:
        noise = tf.tile(1 - tf.range(number)[None] / number, [batch, 1])
    else:
        noise = tf.random.stateless_uniform(tf.shape(labels), seed, dtype=tf.float64)

    def choose(eligible: tf.Tensor, most: int) -> tuple[tf.Tensor, tf.Tensor]:
        """Places [B, most], and how many of the first are meant: [B, 1]."""
        taken = tf.minimum(most, number)
        _, places = tf.math.top_k(tf.where(eligible, noise, -1), taken)
        there = tf.reduce_sum(tf.cast(eligible, tf.int32), 1, keepdims=True)
        return tf.pad(places, [[0, 0], [0, most - taken]]), tf.minimum(there, most)

    positive, positives = choose(labels == POSITIVE, int(count * positive_fraction))
    negative, negatives = choose(labels == NEGATIVE, count)
    slot = tf.tile(tf.range(count)[None], [batch, 1])
    is_positive, is_there = slot < positives, slot < positives + negatives
    positive = tf.pad(positive, [[0, 0], [0, count - int(count * positive_fraction)]])
    after = tf.gather(negative, tf.maximum(slot - positives, 0), batch_dims=1)
    indices = tf.where(is_positive, positive, tf.where(is_there, after, 0))
    return indices, tf.where(is_positive, POSITIVE, tf.where(is_there, NEGATIVE, IGNORE))


def _label(best: tf.Tensor, thresholds: Sequence[float], labels: Sequence[int]) -> tf.Tensor:
    """int32, of the best overlaps: how many thresholds one has reached says which label it gets."""
    reached = tf.add_n([tf.cast(best >= threshold, tf.int32) for threshold in thresholds])
    return tf.gather(tf.constant(labels, tf.int32), reached)


def _check_thresholds(name: str, thresholds: Sequence[float], labels: Sequence[int]) -> None:
    if len(labels) != len(thresholds) + 1 or list(thresholds) != sorted(set(thresholds)):
        raise ValueError(
            f"{name}: needs rising thresholds and one label more than thresholds, got {[*thresholds]} and {[*labels]}"
        )
