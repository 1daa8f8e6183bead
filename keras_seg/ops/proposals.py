"""From the region proposal network's outputs to proposals (Ren et al. 2015, Section 3.3; Lin et al. 2017, Section 4.1)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import tensorflow as tf

from keras_seg.ops.boxes import clip, decode

REFUSED = -math.inf  # the score of a place that holds no proposal


def select_proposals(
    logits: Sequence[tf.Tensor],
    deltas: Sequence[tf.Tensor],
    anchors: Sequence[tf.Tensor],
    size: tf.Tensor,
    *,
    pre_nms: int,
    post_nms: int,
    nms_threshold: float,
    min_size: float = 0.0,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """The best boxes of each image after non-maximum suppression within each level of the pyramid.

    Args:
        logits: objectness, one float32 [B, A_l] a level.
        deltas: one float32 [B, A_l, 4] a level.
        anchors: one float32 [A_l, 4] a level, input pixels.
        size: [B, 2], the images' true height and width, to which boxes are clipped.
        pre_nms: how many a level are decoded.
        post_nms: how many an image come out, P.
        nms_threshold: overlap above which the worse of two boxes of a level goes.
        min_size: sides must be longer than this, in pixels.

    Boxes and logits that are not finite are left out. One operation does all images and levels, each level on its own:
    no offsets between levels, which cost float32 its last bits, and memory in proportion to the boxes. Not under XLA.

    Returns: boxes float32 [B, P, 4] and logits float32 [B, P], by falling logit and padded with zeros; their
        number int32 [B].
    """
    boxes, scores = [], []
    for level_logits, level_deltas, level_anchors in zip(logits, deltas, anchors, strict=True):
        count = tf.minimum(tf.shape(level_logits)[1], pre_nms)
        # a NaN has no place in an order
        level_logits = tf.where(tf.math.is_finite(level_logits), level_logits, REFUSED)
        best, places = tf.math.top_k(level_logits, count)
        decoded = decode(tf.gather(level_deltas, places, batch_dims=1), tf.gather(level_anchors, places))
        finite = tf.reduce_all(tf.math.is_finite(decoded), -1) & tf.math.is_finite(best)
        decoded = clip(tf.where(finite[..., None], decoded, 0), size[:, None])
        sides = decoded[..., 2:] - decoded[..., :2]
        sound = finite & tf.reduce_all(sides > min_size, -1)
        missing = pre_nms - count
        boxes.append(tf.pad(decoded, [[0, 0], [0, missing], [0, 0]]))
        scores.append(tf.pad(tf.where(sound, best, REFUSED), [[0, 0], [0, missing]], constant_values=REFUSED))
    # The levels take the place of classes, which suppress each other no more than levels do. The operation raises
    # scores below -1 to -1, so it gets ranks, from which the logits are looked up again.
    score = tf.stack(scores, 2)
    shape = tf.shape(score)
    flat = tf.reshape(score, [shape[0], -1])
    order = tf.argsort(flat, direction="DESCENDING", stable=True)
    rank = tf.cast(tf.shape(flat)[1] - tf.argsort(order), tf.float32)
    rank = tf.reshape(tf.where(flat > REFUSED, rank, 0), shape)
    kept = tf.image.combined_non_max_suppression(
        tf.stack(boxes, 2),
        rank,
        max_output_size_per_class=min(pre_nms, post_nms),
        max_total_size=post_nms,
        iou_threshold=nms_threshold,
        score_threshold=0.5,
        clip_boxes=False,
    )
    count = kept.valid_detections
    place = tf.where(
        tf.sequence_mask(count, post_nms), tf.shape(flat)[1] - tf.cast(kept.nmsed_scores, tf.int32), 0
    )
    found = tf.gather(tf.gather(flat, order, batch_dims=1), place, batch_dims=1)
    return kept.nmsed_boxes, tf.where(tf.sequence_mask(count, post_nms), found, 0), count
