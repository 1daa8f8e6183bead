"""Test-time augmentation of detectors: an image is seen at several sizes and mirrored, and what is found is merged.

As Detectron2 does it (modeling/test_time_augmentation.py, GeneralizedRCNNWithTTA): the boxes of all views go through one more
suppression within each class; then the mask head looks at the boxes that remain in every view, and a mask is the mean of its
probabilities. Keypoints stay those of the view whose box remains.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

from keras_seg import detect
from keras_seg.instances import Instances

if TYPE_CHECKING:
    from keras_seg.models.mask_rcnn import MaskRCNN

__all__ = ["augmented_detector"]

# Longest side of a resized view in pixels (Detectron2, TEST.AUG.MAX_SIZE), so that a large scale is not cut short.
MAX_SIDE = 4000
# Detections with a lower score are dropped when views are merged (Detectron2).
LEAST_SCORE = 1e-8


class _View(NamedTuple):
    """One way to look at an image: its pixels uint8 [H, W, 3], mirrored or not, at a shorter side (None: as the model does)."""

    pixels: np.ndarray
    mirrored: bool
    short_side: int | None


def augmented_detector(
    model: MaskRCNN,
    *,
    flip: bool = True,
    short_sides: Sequence[int] | None = None,
    max_side: int = MAX_SIDE,
    max_detections: int = 100,
) -> Callable[[Any], Instances]:
    """A function from an image (as in `detect.detect`) to what the model finds in all its views together.

    Args:
        model: a `models.mask_rcnn`.
        flip: see the image mirrored (left to right) as well.
        short_sides: the shorter sides to resize it to, in pixels; None: the model's own.
        max_side: of an image resized to `short_sides`.
        max_detections: the best so many of an image.

    Raises:
        ValueError: an option outside its range; to mirror keypoints, the model needs keypoint_names, of which "left_..." and
            "right_..." change places.
    """
    sides = [None] if short_sides is None else list(short_sides)
    sound = all(isinstance(side, int) and 0 < side <= max_side for side in short_sides or ())
    if not sides or not sound:
        raise ValueError(
            f"tta: short_sides are positive integers up to max_side={max_side}, got {short_sides!r}"
        )
    if max_detections < 1:
        raise ValueError(f"tta: max_detections must be positive, got {max_detections!r}")
    order = _mirrored_keypoints(model) if flip and model.keypoints else None
    longest = None if short_sides is None else max_side
    branch = _mask_branch(model) if model.masks else None

    def find(image: Any) -> Instances:
        pixels = detect.pixels_of(image, str(image) if isinstance(image, str) else "image")
        views = [
            _View(np.ascontiguousarray(pixels[:, ::-1]) if mirrored else pixels, mirrored, side)
            for side in sides
            for mirrored in ((False, True) if flip else (False,))
        ]
        found = []
        for view in views:
            seen = cast(Instances, detect.detect(
                model, view.pixels, score_threshold=0.0, max_detections=model.detections,
                short_side=view.short_side, max_side=longest,
            ))  # fmt: skip
            found.append(_turned_back(seen, order) if view.mirrored else seen)
        merged = _merged(found, model.box_nms, max_detections)
        if branch is None or not len(merged):
            return merged
        probabilities = [_masks(branch, model, view, merged, longest) for view in views]
        return dataclasses.replace(merged, mask_probabilities=np.mean(probabilities, axis=0))

    return find


def _mirrored_keypoints(model: MaskRCNN) -> list[int]:
    """Of each keypoint, which one takes its place in a mirror."""
    names = model.keypoint_names
    if names is None:
        raise ValueError(
            f"tta: {model.name} has {model.keypoints} keypoints without names; to mirror them (flip), give it "
            'keypoint_names, of which "left_..." and "right_..." change places'
        )
    other = {
        n: n.replace("left_", "right_", 1) if n.startswith("left_") else n.replace("right_", "left_", 1)
        for n in names
    }
    return [names.index(other[n]) if other[n] in names else k for k, n in enumerate(names)]


def _turned_back(found: Instances, order: list[int] | None) -> Instances:
    """What was found in a mirrored image, in the image itself. Masks are left as they are."""
    width = np.float32(found.image_size[1])
    boxes = found.boxes.copy()
    boxes[:, [0, 2]] = width - found.boxes[:, [2, 0]]
    keypoints = found.keypoints
    if keypoints is not None:
        keypoints = keypoints[:, order] * np.array([-1, 1, 1], np.float32) + [width, 0, 0]
    return dataclasses.replace(found, boxes=boxes, keypoints=keypoints)


def _merged(found: Sequence[Instances], threshold: float, max_detections: int) -> Instances:
    """The best boxes of all views, those of one class overlapping by `threshold` at most; by falling score."""
    from keras_seg.ops.nms import batched_nms

    def joined(field: str) -> np.ndarray | None:
        arrays = [getattr(one, field) for one in found]
        return None if arrays[0] is None else np.concatenate(arrays)

    fields = ("boxes", "scores", "classes", "mask_probabilities", "keypoints")
    together = dataclasses.replace(
        found[0], **cast("dict[str, Any]", {field: joined(field) for field in fields})
    )
    together = together[together.scores > LEAST_SCORE]
    kept = batched_nms(together.boxes, together.scores, together.classes, threshold, max_detections)
    return together[kept.numpy()]


def _masks(
    branch: Callable, model: MaskRCNN, view: _View, found: Instances, max_side: int | None
) -> np.ndarray:
    """What the mask head sees in the boxes of `found` in this view: float32 [N, m, m]."""
    from keras_seg.data.resize import resize

    height, width = found.image_size
    size = detect.resized_size(model, height, width, view.short_side, max_side)
    inputs = detect.batch_of(model, [resize(view.pixels, size, model.convention)])
    boxes = found.boxes.copy()
    if view.mirrored:
        boxes[:, [0, 2]] = width - found.boxes[:, [2, 0]]
    boxes *= np.tile(np.array([size[1] / width, size[0] / height], np.float32), 2)
    masks = branch(inputs["image"], inputs["size"], boxes[None], found.classes[None], [len(found)])[0].numpy()
    return masks[:, :, ::-1] if view.mirrored else masks


def _mask_branch(model: MaskRCNN) -> Callable:
    """The mask branch for boxes that are given: (image [1, h, w, 3], size [1, 2], boxes float32 [1, N, 4], classes int32
    [1, N], count int32 [1]) -> float32 [1, N, m, m]; traced once a model."""
    import tensorflow as tf

    if hasattr(model, "compiled_mask_branch"):
        return model.compiled_mask_branch
    parts, layer = model.parts, model.get_layer

    def masks(
        image: tf.Tensor, size: tf.Tensor, boxes: tf.Tensor, classes: tf.Tensor, count: tf.Tensor
    ) -> tf.Tensor:
        maps = parts["backbone"](layer("normalize")(image, size), training=False)
        # the pyramid's last map is the proposals' alone
        maps = parts["fpn"](maps, training=False)[:4] if "fpn" in parts else [maps]
        regions, images = layer("detection_regions")(boxes, count)
        region = layer("mask_pool")(maps, regions, images)
        if "res5" in parts:
            region = parts["res5"](region, training=False)
        own = layer("class_masks")(parts["mask_head"](region, training=False), classes, count)
        return layer("masks")(own, boxes, count)

    signature = [
        tf.TensorSpec([1, None, None, 3], tf.float32),
        tf.TensorSpec([1, 2], tf.float32),
        tf.TensorSpec([1, None, 4], tf.float32),
        tf.TensorSpec([1, None], tf.int32),
        tf.TensorSpec([1], tf.int32),
    ]
    model.compiled_mask_branch = tf.function(masks, input_signature=signature)
    return model.compiled_mask_branch
