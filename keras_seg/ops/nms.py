"""Non-maximum suppression: of boxes that overlap by more than a threshold, the one with the highest score stays.

Memory grows with the number of boxes, not with its square. `nms` works under XLA, where memory does grow with the square;
`batched_nms` does not.
"""

from __future__ import annotations

import tensorflow as tf


def nms(boxes: tf.Tensor, scores: tf.Tensor, iou_threshold: float, max_output: tf.Tensor | int) -> tf.Tensor:
    """Indices, int32 [M], of at most `max_output` survivors, by falling score.

    boxes: float32 [N, 4]; scores: float32 [N]. A box goes if its overlap (intersection over union) with a better
    survivor is strictly above `iou_threshold`; of equal scores the lower index is the better. A box without area overlaps
    nothing; an inverted one is taken for the box that its corners span.
    """
    most = tf.minimum(max_output, tf.size(scores))  # XLA's takes no more than there are
    return tf.image.non_max_suppression(boxes, scores, most, iou_threshold)


def batched_nms(
    boxes: tf.Tensor,
    scores: tf.Tensor,
    groups: tf.Tensor,
    iou_threshold: float,
    max_output: tf.Tensor | int,
) -> tf.Tensor:
    """`nms` within each group (class, pyramid level): int32 [M] of the best survivors of all, by falling score.

    groups: integers [N]. The groups are taken one by one and not moved apart in one plane, as is often done: float32
    coordinates would lose the bits that decide at the threshold.
    """
    present = tf.unique(groups).y

    def add(place: tf.Tensor, kept: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        members = tf.cast(tf.where(groups == present[place])[:, 0], tf.int32)
        chosen = nms(tf.gather(boxes, members), tf.gather(scores, members), iou_threshold, max_output)
        return place + 1, tf.concat([kept, tf.gather(members, chosen)], 0)

    # spelled out, since Keras calls layers without AutoGraph
    _, kept = tf.while_loop(
        lambda place, _: place < tf.size(present),
        add,
        (tf.constant(0), tf.zeros([0], tf.int32)),
        shape_invariants=(tf.TensorShape([]), tf.TensorShape([None])),
    )
    indices = tf.sort(kept)
    best = tf.argsort(tf.gather(scores, indices), direction="DESCENDING", stable=True)
    return tf.gather(indices, best)[:max_output]
