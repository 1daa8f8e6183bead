"""A detector's whole pipeline for one image of a fixed size, with built-in TensorFlow Lite operators alone.

What `models.mask_rcnn` computes, for a batch of one: anchors are constants, how many boxes there are is a number beside
arrays of a fixed size, and suppression goes group by group.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from keras_seg.export.tflite_images import padding
from keras_seg.export.tflite_networks import Exact, Treatment, network
from keras_seg.export.tflite_regions import REFUSED, inverse, pool_regions, suppress
from keras_seg.models.mask_rcnn import MaskRCNN
from keras_seg.ops import boxes as box_ops
from keras_seg.ops import keypoints as keypoint_ops


def check(model: MaskRCNN) -> None:
    """ValueError: what built-in operators cannot do."""
    if model.roi == "pool" or model.roi_pooling == "max":
        wrong = "roi='pool'" if model.roi == "pool" else "roi_pooling='max'"
        raise ValueError(
            f"tflite: {model.name} has {wrong}, whose maxima built-in operators cannot take; use select_ops=True, or a model "
            "with roi='align' and roi_pooling='average'"
        )


def detector(
    model: MaskRCNN, height: int, width: int, treatment: Treatment | None = None
) -> Callable[[tf.Tensor], dict[str, tf.Tensor]]:
    """A function from images uint8 [1, height, width, 3], padded as `true_size` knows, to detections, to be traced.

    Returns "num_detections" int32 [1], "boxes" float32 [1, D, 4] in pixels of the input, "scores" [1, D], "classes" int32
    [1, D], and with the branches "masks" float32 [1, D, m, m] and "keypoints" [1, D, K, 3], as of `models.mask_rcnn`.
    """
    treatment = treatment or Exact()
    parts = {name: network(part, treatment, name) for name, part in model.parts.items()}
    normalize, select = model.get_layer("normalize"), model.get_layer("proposals")
    pyramid = model.structure == "fpn"

    def maps_of(images: tf.Tensor, size: tf.Tensor) -> list[tf.Tensor]:
        pixels = (tf.cast(images, tf.float32) - normalize.mean) * (1 / np.array(normalize.std, np.float32))
        rows, columns = (
            tf.cast(tf.range(0.0, float(side), 1.0) < size[axis], tf.float32)
            for axis, side in enumerate((height, width))
        )
        pixels *= rows[None, :, None, None] * columns[None, None, :, None]
        maps = tf.nest.flatten(parts["backbone"](treatment.activations("normalize", pixels)))
        return tf.nest.flatten(parts["fpn"](maps)) if pyramid else maps

    def proposals(maps: list[tf.Tensor], size: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Boxes [P, 4] and logits [P], by falling logit, REFUSED after the last."""
        rpn = parts["rpn"]
        logits, deltas = (
            rpn(maps) if not model.rpn_shared else zip(*(rpn(level) for level in maps), strict=True)
        )
        with tf.init_scope():
            anchors = [a.numpy() for a in select.anchors([tf.zeros(level.shape) for level in logits])]
        found = []
        for level_logits, level_deltas, level_anchors in zip(logits, deltas, anchors, strict=True):
            count = min(len(level_anchors), select.pre_nms)
            scores, best = tf.math.top_k(tf.reshape(level_logits, [-1]), count)
            level_deltas = tf.gather(tf.reshape(level_deltas, [-1, 4]), best)
            boxes = box_ops.clip(box_ops.decode(level_deltas, tf.gather(level_anchors, best)), size)
            sound = tf.reduce_all(boxes[:, 2:] - boxes[:, :2] > select.min_size, -1)
            scores = tf.where(sound, scores, REFUSED)
            kept = suppress(boxes[None], scores[None], select.nms_threshold, min(count, select.post_nms))[0]
            found.append((boxes, tf.where(kept, scores, REFUSED)))
        boxes, scores = (tf.concat(values, 0) for values in zip(*found, strict=True))
        scores, best = tf.math.top_k(scores, min(select.post_nms, scores.shape[0]))
        return tf.gather(boxes, best), scores

    def pooled(name: str, maps: list[tf.Tensor], boxes: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Regions by rising window and their order."""
        layer = model.get_layer(name)
        values, order = pool_regions(
            maps[: len(layer.strides)], boxes, layer.strides, layer.output_size, layer.sampling_ratio, layer.aligned,
            layer.operation == "warp",
        )  # fmt: skip
        return treatment.activations(name, values), order

    def detect(images: tf.Tensor) -> dict[str, tf.Tensor]:
        size = true_size(model, images)
        maps = maps_of(images, size)
        boxes, scores = proposals(maps, size)
        there = scores > REFUSED / 2
        if model.rpn_only:
            most = model.get_layer("proposals").post_nms
            return _outputs(boxes, tf.sigmoid(scores), tf.zeros_like(scores, tf.int32), there, most)
        regions, order = pooled("box_pool", maps, boxes)
        boxes, there = tf.gather(boxes, order), tf.gather(there, order)
        if model.structure == "c4":
            features = tf.reduce_mean(parts["res5"](regions), [1, 2])
        else:
            features = parts["box_head"](regions)
        logits, deltas = parts["box_predictor"](features)
        boxes, scores, classes = _select(model, boxes, there, logits, deltas, size)
        there = scores > 0
        outputs = _outputs(boxes, scores, classes, there, model.detections)
        if model.masks:
            regions, order = pooled("mask_pool", maps, boxes)
            count = tf.maximum(outputs["num_detections"][0], 1)
            regions = tf.gather(regions, inverse(order)[:count])
            regions = parts["res5"](regions) if model.structure == "c4" else regions
            own = _own_masks(model, parts["mask_head"](regions), classes[:count])
            own = tf.pad(own, [[0, model.detections - count], [0, 0], [0, 0]])
            own = tf.reshape(own, [model.detections, *own.shape[1:]])
            outputs["masks"] = _padded(own, there, model.detections)
        if model.keypoints:
            regions, order = pooled("keypoint_pool", maps, boxes)
            heatmaps = parts["keypoint_head"](regions)
            found = _keypoints(model, heatmaps, tf.gather(boxes, order))
            outputs["keypoints"] = _padded(tf.gather(found, inverse(order)), there, model.detections)
        return outputs

    return detect


def true_size(model: MaskRCNN, images: tf.Tensor) -> tf.Tensor:
    """Height and width of what is not padding, at least 1: float32 [2].

    images: uint8 [1, H, W, 3]. Padding is what has the colour `tflite_images.padding` from some row on to the bottom, and
    from some column on to the right: one input is enough, and the model knows its image's size as it does in Keras.
    """
    differs = tf.abs(tf.cast(images, tf.float32) - np.array(padding(model), np.float32))
    sides = []
    for others in ([0, 2, 3], [0, 1, 3]):
        line = tf.sign(tf.reduce_max(differs, others))
        sides.append(tf.reduce_max(line * tf.range(1.0, line.shape[0] + 1.0, 1.0)))
    return tf.maximum(tf.stack(sides), 1.0)


def _select(
    model: MaskRCNN,
    proposals: tf.Tensor,
    there: tf.Tensor,
    logits: tf.Tensor,
    deltas: tf.Tensor,
    size: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Boxes [D, 4], scores [D] and classes int32 [D], by falling score, which is 0 after the last."""
    count, classes = proposals.shape[0], model.classes
    own = deltas.shape[-1] // 4  # boxes of a proposal
    boxes = box_ops.decode(tf.reshape(deltas, [count, own, 4]), proposals[:, None], model.box_weights)
    boxes = tf.transpose(box_ops.clip(boxes, size), [1, 0, 2])  # [own, P, 4]
    scores = tf.transpose(tf.nn.softmax(logits)[:, :-1])  # [K, P]
    sound = there[None] & (scores > model.score_threshold)
    if model.box_min_size > 0:
        sound &= tf.reduce_all(boxes[..., 2:] - boxes[..., :2] >= model.box_min_size, -1)
    scores = tf.where(sound, scores, REFUSED)
    of_class = tf.tile(boxes, [classes, 1, 1]) if own == 1 and classes > 1 else boxes
    kept = suppress(of_class, scores, model.box_nms, min(count, model.detections))
    flat = tf.reshape(tf.where(kept, scores, 0.0), [-1])
    scores, best = tf.math.top_k(flat, min(model.detections, classes * count))
    return tf.gather(tf.reshape(of_class, [-1, 4]), best), scores, best // count


def _own_masks(model: MaskRCNN, logits: tf.Tensor, classes: tf.Tensor) -> tf.Tensor:
    """logits: [D, m, m, K]; classes: int32 [D]. Returns float32 [D, m, m]."""
    probabilities = tf.nn.softmax(logits) if model.mask_loss == "softmax" else tf.sigmoid(logits)
    side, channels = logits.shape[2:]
    if channels == 1:
        return probabilities[..., 0]
    own = tf.expand_dims(tf.one_hot(classes, channels), 2)
    return tf.reshape(
        tf.matmul(tf.reshape(probabilities, [-1, side * side, channels]), own), [-1, side, side]
    )


def _keypoints(model: MaskRCNN, heatmaps: tf.Tensor, boxes: tf.Tensor) -> tf.Tensor:
    """`ops.keypoints.decode_heatmaps`, box by box, each of its own size. Returns float32 [D, K, 3]."""
    extent = tf.maximum(boxes[:, 2:] - boxes[:, :2], 1.0)
    pixels = tf.math.ceil(extent)
    side = heatmaps.shape[1]
    columns = tf.transpose(heatmaps, [0, 3, 1, 2])  # [D, K, m, m]
    found = []
    for n in range(boxes.shape[0]):
        width, height = (tf.cast(pixels[n, axis], tf.int32) for axis in (0, 1))
        rows = tf.matmul(keypoint_ops.bicubic(height, side)[None], columns[n])  # [K, h, m]
        enlarged = tf.matmul(rows, keypoint_ops.bicubic(width, side)[None], transpose_b=True)  # [K, h, w]
        of_rows, of_columns = tf.reduce_max(enlarged, 2), tf.reduce_max(enlarged, 1)
        place = tf.stack([tf.argmax(of_columns, 1, tf.int32), tf.argmax(of_rows, 1, tf.int32)], 1)
        peak = tf.reduce_max(of_rows, 1)
        found.append(tf.concat([tf.cast(place, tf.float32), peak[:, None]], 1))
    found = tf.stack(found)
    xy = boxes[:, None, :2] + (found[..., :2] + 0.5) * (extent / pixels)[:, None]
    peak = found[..., 2]
    if model.get_layer("decode_keypoints").score == "probability":
        total = tf.reduce_sum(tf.exp(heatmaps - peak[:, None, None]), [1, 2])
        peak = 1 / tf.maximum(total, keypoint_ops.SMALLEST)
    return tf.concat([xy, peak[..., None]], -1)


def _outputs(
    boxes: tf.Tensor, scores: tf.Tensor, classes: tf.Tensor, there: tf.Tensor, most: int
) -> dict[str, tf.Tensor]:
    return {
        "num_detections": tf.reduce_sum(tf.cast(there, tf.int32))[None],
        "boxes": _padded(boxes, there, most),
        "scores": _padded(scores, there, most),
        "classes": _padded(classes, there, most),
    }


def _padded(values: tf.Tensor, there: tf.Tensor, most: int) -> tf.Tensor:
    """[D, ...] to [1, most, ...], 0 where nothing is there."""
    mask = tf.reshape(tf.cast(there, values.dtype), [-1] + [1] * (len(values.shape) - 1))
    surplus = [[0, most - values.shape[0]]] + [[0, 0]] * (len(values.shape) - 1)
    return tf.pad(values * mask, surplus)[None]
