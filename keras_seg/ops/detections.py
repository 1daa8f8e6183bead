"""From class probabilities and boxes of proposals to detections (Girshick 2015, Section 2)."""

from __future__ import annotations

import tensorflow as tf

from keras_seg.ops.boxes import clip


def select_detections(
    boxes: tf.Tensor,
    probabilities: tf.Tensor,
    count: tf.Tensor,
    size: tf.Tensor,
    *,
    score_threshold: float,
    nms_threshold: float,
    max_detections: int,
    min_size: float = 0.0,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
    """The best boxes of all classes after non-maximum suppression within each class.

    Args:
        boxes: float32 [B, P, K, 4] for each of K classes, or [B, P, 1, 4] for all.
        probabilities: float32 [B, P, K], without the background.
        count: int32 [B]: how many of the P proposals are there; the others are padding.
        size: [B, 2], the images' true height and width, to which boxes are clipped.
        score_threshold: probabilities must be above it.
        nms_threshold: overlap above which the worse of two boxes of a class goes.
        max_detections: D, how many an image come out at most.
        min_size: the least length of a side, in pixels.

    A proposal with a box or a probability that is not finite is left out. One operation does all images and classes,
    each class on its own: no offsets between classes, which cost float32 its last bits, and memory in proportion to the
    boxes. Not under XLA.

    Returns: boxes float32 [B, D, 4], scores float32 [B, D], classes int32 [B, D], by falling score and padded with
        zeros; their number int32 [B].
    """
    there = tf.sequence_mask(count, tf.shape(boxes)[1])
    finite = tf.reduce_all(tf.math.is_finite(boxes), (2, 3)) & tf.reduce_all(
        tf.math.is_finite(probabilities), 2
    )
    there &= finite
    boxes = clip(tf.where(there[..., None, None], boxes, 0), size[:, None, None])
    scores = tf.where(there[..., None], probabilities, 0)
    if min_size > 0:
        large = tf.reduce_all(boxes[..., 2:] - boxes[..., :2] >= min_size, -1)
        scores = tf.where(large, scores, 0)
    kept = tf.image.combined_non_max_suppression(
        boxes,
        scores,
        max_output_size_per_class=max_detections,
        max_total_size=max_detections,
        iou_threshold=nms_threshold,
        score_threshold=score_threshold,
        clip_boxes=False,
    )
    classes = tf.cast(kept.nmsed_classes, tf.int32)
    return kept.nmsed_boxes, kept.nmsed_scores, classes, kept.valid_detections
