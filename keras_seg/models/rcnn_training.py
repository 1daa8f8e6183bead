"""What a Mask R-CNN is trained with: the batch, the samples that its losses look at, and the losses.

A batch is a dictionary of tensors. B images, padded at the bottom and at the right to H x W, G objects an image at most:

    "image"    uint8 or float [B, H, W, 3], RGB, 0-255; sides as the model takes them
    "size"     float32 [B, 2], true height and width
    "boxes"    float32 [B, G, 4], x1, y1, x2, y2 in pixels of "image"
    "classes"  int32 [B, G], 0 … K - 1; -1 where there is no object
    "crowd"    bool [B, G], optional: objects that stand for many, which nothing is trained on (as in Detectron2)

of a model with masks, bitmaps, or polygons, or both (an object that has both has their union):

    "mask_pixels"       uint8 [B, L], the objects' bitmaps, 0 or 1, one after the other, row by row
    "mask_windows"      int32 [B, G, 5], of each object: where its bitmap starts in "mask_pixels" of its image; y, x, height
                        and width of the window of the image that it covers, in whole pixels; zeros: no bitmap. Outside
                        the window there is nothing of the object, so its tightest window says all that the full bitmap
                        says, and 400 nuclei take as many bytes as they have pixels in their windows
    "polygon_points"    float64 [B, V, 2], x and y in pixels of "image", all polygons of an image one after the other
    "polygon_lengths"   int32 [B, Q], points of each polygon; 0 after an image's last
    "polygon_objects"   int32 [B, Q], the object of each polygon, 0 … G - 1; -1 after an image's last

of a model with keypoints:

    "keypoints"  float32 [B, G, K, 3]: x, y in continuous pixels of "image" (the centre of pixel i is i + 0.5), visibility
                 (0: not annotated)

of a model whose second stage is trained on what another RPN proposed (He et al. 2017, Section 3.1):

    "proposals"  float32 [B, P, 4], x1, y1, x2, y2 in pixels of "image", by falling score; zeros where there is none

Other entries ("image_id", say) are left alone. Crowds and places without an object need no mask nor keypoints.

The names of the losses: "loss_rpn_class", "loss_rpn_box", "loss_class", "loss_box", "loss_mask", "loss_keypoint", and
"loss", their sum.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import tensorflow as tf

from keras_seg import losses
from keras_seg.ops import mask_targets
from keras_seg.ops.boxes import encode
from keras_seg.ops.keypoints import keypoint_targets
from keras_seg.ops.matching import match_boxes, sample_batch

if TYPE_CHECKING:
    from keras_seg.models.mask_rcnn import MaskRCNN

LOSSES = ("loss_rpn_class", "loss_rpn_box", "loss_class", "loss_box", "loss_mask", "loss_keypoint")
WINDOWS = ("mask_pixels", "mask_windows")
POLYGONS = ("polygon_points", "polygon_lengths", "polygon_objects")
RANKS = {
    "image": 4, "size": 2, "boxes": 3, "classes": 2, "crowd": 2, "mask_pixels": 2, "mask_windows": 3,
    "polygon_points": 3, "polygon_lengths": 2, "polygon_objects": 2, "keypoints": 4, "proposals": 3,
}  # fmt: skip
# The heads' convolutions are made ready for each number of regions anew, so it comes in steps.
ROWS = 8


@dataclasses.dataclass(frozen=True)
class TrainingOptions:
    """How a model is trained; the defaults, which depend on the model, are `training_options`'.

    rpn_samples, rpn_positive_fraction: anchors an image that the RPN's losses look at, and the largest share of
        positives among them (Ren et al. 2015, Section 3.1.3: 256 and 0.5).
    rpn_thresholds: overlaps below and from which an anchor is negative and positive.
    rpn_beta, box_beta: of the smooth L1 losses of boxes; 0 is L1.
    rpn_normalizer: what the RPN's losses are divided by: "wanted", `rpn_samples` an image, or "sampled", those there are.
    pre_nms_proposals, proposals: kept of each level before suppression, and of an image after it; of a batch's own
        proposals, the first so many.
    region_samples, region_positive_fraction: regions an image that the heads are trained on, and the largest share of
        regions of objects (He et al. 2017, Section 3.1: 512 with a pyramid, 64 with C4; 1 to 3).
    region_threshold: overlap from which a region is of an object.
    loss_weights: {name: factor} of the losses whose factor is not 1.
    weight_decay: the gradient of each kernel gets this many times the kernel (coupled, as in PyTorch's SGD); biases and
        normalisations have none.
    """

    rpn_samples: int = 256
    rpn_positive_fraction: float = 0.5
    rpn_thresholds: Sequence[float] = (0.3, 0.7)
    rpn_beta: float = 0.0
    rpn_normalizer: str = "wanted"
    pre_nms_proposals: int = 2000
    proposals: int = 1000
    region_samples: int = 512
    region_positive_fraction: float = 0.25
    region_threshold: float = 0.5
    box_beta: float = 0.0
    loss_weights: Mapping[str, float] = dataclasses.field(default_factory=dict)
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        for name in ("rpn_samples", "pre_nms_proposals", "proposals", "region_samples"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"training options: {name} must be a positive integer, got {value!r}")
        for name in ("rpn_positive_fraction", "region_positive_fraction", "region_threshold"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(
                    f"training options: {name} must be above 0 and at most 1, got {getattr(self, name)!r}"
                )
        low_high = self.rpn_thresholds
        if len(low_high) != 2 or not 0 <= low_high[0] <= low_high[1] <= 1:
            raise ValueError(
                f"training options: rpn_thresholds must be two rising overlaps, got {[*low_high]}"
            )
        for name in ("rpn_beta", "box_beta", "weight_decay"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"training options: {name} must be at least 0, got {getattr(self, name)!r}")
        if self.rpn_normalizer not in ("wanted", "sampled"):
            raise ValueError(
                f"training options: rpn_normalizer must be 'wanted' or 'sampled', got {self.rpn_normalizer!r}"
            )
        for name, factor in self.loss_weights.items():
            if name not in LOSSES:
                raise ValueError(
                    f"training options: loss_weights has {name!r}; the losses are {', '.join(LOSSES)}"
                )
            if not factor >= 0:
                raise ValueError(f"training options: the weight of {name} must be at least 0, got {factor!r}")


def training_options(arguments: Mapping[str, object], **changes: object) -> TrainingOptions:
    """The options for a model of these builder's arguments: those of its convention, and `changes`.

    Detectron2's configurations: proposals 1000 of 2000 a level with a pyramid, 1500 with keypoints, 2000 of 12000 without a
    pyramid; L1, but 0.5 in the box head with keypoints. torchvision's: 2000 of 2000 a level, 1/9 in both losses, and the
    RPN's divided by the samples there are.

    Raises:
        ValueError: an unknown option, or a value outside its range.
    """
    known = {field.name for field in dataclasses.fields(TrainingOptions)}
    if unknown := changes.keys() - known:
        raise ValueError(
            f"training options: no option {min(unknown)!r}; there are {', '.join(sorted(known))}"
        )
    if arguments["convention"] == "torchvision":
        own: dict[str, Any] = {
            "proposals": 2000,
            "rpn_beta": 1 / 9,
            "box_beta": 1 / 9,
            "rpn_normalizer": "sampled",
        }
    elif arguments["structure"] != "fpn":
        own = {"pre_nms_proposals": 12000, "proposals": 2000}
    else:
        own = {"proposals": 1500, "box_beta": 0.5} if arguments["keypoints"] else {}
    # tuples, which a saved model's JSON holds as lists
    changes = {name: tuple(value) if isinstance(value, list) else value for name, value in changes.items()}
    return TrainingOptions(**{**own, **changes})


class AnchorSamples(NamedTuple):
    """Anchors that the RPN's losses look at, S of each image.

    indices: int32 [B, S], by level, y, x, anchor. labels: int32 [B, S], 1 positive, 0 negative, -1 none. boxes: float32
    [B, S, 4], the truth of the positive ones.
    """

    indices: tf.Tensor
    labels: tf.Tensor
    boxes: tf.Tensor


class RegionSamples(NamedTuple):
    """Regions that the heads are trained on, R of each image.

    boxes: float32 [B, R, 4]. classes: int32 [B, R]: K is the background, -1 none. matches: int32 [B, R], the objects
    of those that have one.
    """

    boxes: tf.Tensor
    classes: tf.Tensor
    matches: tf.Tensor


def prepare(model: MaskRCNN, batch: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """A batch, checked, with "valid" bool [B, G], the objects to train on, and with room for one more object, which is
    none: so G is at least 1. Boxes, classes and keypoints of places without an object are 0, -1 and 0.

    Raises:
        ValueError: entries that are missing, or of another rank or number.
        InvalidArgumentError: boxes that are not finite or without extent, and classes out of range: names the image (of
            the batch, from 0) and the object.
    """
    batch = {name: tf.convert_to_tensor(value) for name, value in batch.items() if name in RANKS}
    _check_entries(model, batch)
    for name in ("boxes", "classes", "crowd", "mask_windows", "keypoints"):
        if name in batch:
            rest = [[0, 0]] * (batch[name].shape.rank - 2)
            empty = -1 if name == "classes" else batch[name].dtype.as_numpy_dtype(0)
            batch[name] = tf.pad(batch[name], [[0, 0], [0, 1], *rest], constant_values=empty)
    boxes, classes = tf.cast(batch["boxes"], tf.float32), tf.cast(batch["classes"], tf.int32)
    classes = tf.minimum(classes, 0) if model.rpn_only else classes
    there = classes >= 0
    sound = tf.reduce_all(tf.math.is_finite(boxes), -1) & tf.reduce_all(boxes[..., 2:] > boxes[..., :2], -1)
    in_range = (classes >= -1) & (classes < model.classes)
    checks = [
        _refuse(there & ~sound, "boxes must be finite, with x1 < x2 and y1 < y2", boxes),
        _refuse(
            ~in_range, f"classes must be 0 to {model.classes - 1}, or -1 where there is no object", classes
        ),
    ]
    if "proposals" in batch:
        batch["proposals"] = tf.cast(batch["proposals"], tf.float32)
        wrong = ~tf.reduce_all(tf.math.is_finite(batch["proposals"]), -1)
        checks.append(_refuse(wrong, "proposals must be finite", batch["proposals"]))
    with tf.control_dependencies(checks):
        valid = tf.identity(there)
    if "crowd" in batch:
        valid &= ~tf.cast(batch["crowd"], tf.bool)
    # what is not there must not make a NaN anywhere
    batch |= {
        "boxes": tf.where(there[..., None], boxes, 0),
        "classes": tf.where(valid, classes, -1),
        "valid": valid,
    }
    if "keypoints" in batch:
        batch["keypoints"] = tf.where(valid[..., None, None], tf.cast(batch["keypoints"], tf.float32), 0)
    return batch


def sample_anchors(
    anchors: tf.Tensor, batch: Mapping[str, tf.Tensor], options: TrainingOptions, seed: tf.Tensor
) -> AnchorSamples:
    """anchors: float32 [A, 4]; batch: `prepare`d; seed: int [2]. Ren et al. 2015, Sections 3.1.2 and 3.1.3."""
    matches, labels = match_boxes(
        batch["boxes"], batch["valid"], anchors, options.rpn_thresholds, (0, -1, 1), allow_low_quality=True
    )
    indices, labels = sample_batch(labels, options.rpn_samples, options.rpn_positive_fraction, seed)
    own = tf.gather(matches, indices, batch_dims=1)
    return AnchorSamples(indices, labels, tf.gather(batch["boxes"], own, batch_dims=1))


def sample_regions(
    proposals: tf.Tensor,
    there: tf.Tensor,
    batch: Mapping[str, tf.Tensor],
    background: int,
    options: TrainingOptions,
    seed: tf.Tensor,
) -> RegionSamples:
    """Of the proposals and the objects themselves (Girshick 2015, Section 2.3; the reference adds the latter).

    proposals: float32 [B, P, 4]; there: bool [B, P], which of them are; batch: `prepare`d; background: K; seed: int [2].
    """
    there = tf.concat([there, batch["valid"]], 1)
    candidates = tf.concat([proposals, batch["boxes"]], 1)
    threshold = options.region_threshold
    matches, labels = match_boxes(batch["boxes"], batch["valid"], candidates, (threshold,), (0, 1))
    labels = tf.where(there, labels, -1)
    indices, labels = sample_batch(labels, options.region_samples, options.region_positive_fraction, seed)
    matches = tf.gather(matches, indices, batch_dims=1)
    classes = tf.gather(batch["classes"], matches, batch_dims=1)
    classes = tf.where(labels == 1, classes, tf.where(labels == 0, background, -1))
    return RegionSamples(tf.gather(candidates, indices, batch_dims=1), classes, matches)


def rpn_losses(
    model: MaskRCNN,
    maps: Sequence[tf.Tensor],
    anchors: tf.Tensor,
    samples: AnchorSamples,
    options: TrainingOptions,
) -> dict[str, tf.Tensor]:
    """maps: of all levels; anchors: float32 [A, 4], of all levels."""
    logits, deltas = outputs_at(model, maps, samples.indices)
    targets = encode(tf.gather(anchors, samples.indices), samples.boxes)
    wanted = tf.cast(options.rpn_samples * tf.shape(samples.labels)[0], tf.float32)
    normalizer = wanted if options.rpn_normalizer == "wanted" else losses.count(samples.labels >= 0)
    found = losses.rpn_losses(logits, deltas, samples.labels, targets, normalizer, options.rpn_beta)
    return dict(zip(("loss_rpn_class", "loss_rpn_box"), found, strict=True))


def outputs_at(model: MaskRCNN, maps: Sequence[tf.Tensor], indices: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The RPN's logits float32 [B, S] and deltas float32 [B, S, 4] of some anchors, indices int32 [B, S].

    The RPN is evaluated where the anchors lie and nowhere else, so the gradient costs in proportion to the samples and
    not to the maps (at 800 x 1088 pixels the convolution over them is a quarter of the whole network). That needs one
    head of one 3x3 convolution for all levels; other heads are evaluated everywhere.
    """
    rpn, batch = model.parts["rpn"], tf.shape(indices)[0]
    if not model.rpn_shared or model.rpn_convs != 1:
        logits, deltas = rpn_outputs(model, maps)
        logits = tf.concat([tf.reshape(level, [batch, -1]) for level in logits], 1)
        deltas = tf.concat([tf.reshape(level, [batch, -1, 4]) for level in deltas], 1)
        return tf.gather(logits, indices, batch_dims=1), tf.gather(deltas, indices, batch_dims=1)
    convolution, objectness, regression = (
        rpn.get_layer(name) for name in ("conv", "objectness_logits", "anchor_deltas")
    )
    kinds = objectness.filters
    patches = _patches(maps, indices // kinds)
    dtype = convolution.compute_dtype
    kernel = tf.reshape(tf.cast(convolution.kernel, dtype), [-1, convolution.filters])
    hidden = tf.nn.relu(tf.cast(patches, dtype) @ kernel + tf.cast(convolution.bias, dtype))
    kind = tf.one_hot(tf.reshape(indices % kinds, [-1]), kinds)
    logits = tf.reduce_sum(objectness(hidden[:, None, None])[:, 0, 0] * kind, 1)
    deltas = tf.reshape(regression(hidden[:, None, None]), [-1, kinds, 4])
    deltas = tf.einsum("nad,na->nd", deltas, kind)
    return tf.reshape(logits, tf.shape(indices)), tf.reshape(deltas, [batch, -1, 4])


def rpn_outputs(model: MaskRCNN, maps: Sequence[tf.Tensor]) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
    """Logits [B, H_l, W_l, A] and deltas [B, H_l, W_l, 4A] of each level."""
    rpn = model.parts["rpn"]
    logits, deltas = rpn(maps) if not model.rpn_shared else zip(*(rpn(level) for level in maps), strict=True)
    return list(logits), list(deltas)


def region_losses(
    model: MaskRCNN,
    maps: Sequence[tf.Tensor],
    batch: Mapping[str, tf.Tensor],
    samples: RegionSamples,
    options: TrainingOptions,
    training: bool,
) -> dict[str, tf.Tensor]:
    """Of the heads. maps: those that regions are pooled from."""
    rows, real = _rows(samples.classes >= 0)
    boxes = tf.gather(tf.reshape(samples.boxes, [-1, 4]), rows)
    matches = tf.gather(tf.reshape(samples.matches, [-1]), rows)
    classes = tf.where(real, tf.gather(tf.reshape(samples.classes, [-1]), rows), -1)
    images = rows // tf.shape(samples.classes)[1]
    pooled = model.get_layer("box_pool")(maps, boxes, images)
    if model.structure == "c4":
        pooled = model.parts["res5"](pooled, training=training)
        features = model.get_layer("box_average")(pooled)
    else:
        features = model.parts["box_head"](pooled, training=training)
    logits, deltas = model.parts["box_predictor"](features, training=training)
    truth = _of(batch["boxes"], images, matches)
    of_boxes = losses.box_losses(
        logits, deltas, classes, encode(boxes, truth, model.box_weights), beta=options.box_beta
    )
    found: dict[str, tf.Tensor] = dict(zip(("loss_class", "loss_box"), of_boxes, strict=True))
    positive = (classes >= 0) & (classes < model.classes)
    if model.masks:
        own, real = _rows(positive)
        region, objects = tf.gather(boxes, own), tf.gather(matches, own)
        image, own_classes = tf.gather(images, own), tf.where(real, tf.gather(classes, own), -1)
        if model.structure == "c4":  # the box branch has pooled them already
            features = tf.gather(pooled, own)
        else:
            features = model.get_layer("mask_pool")(maps, region, image)
        logits = model.parts["mask_head"](features, training=training)
        targets = _mask_targets(model, batch, region, image, tf.where(real, objects, -1), logits.shape[1])
        found["loss_mask"] = losses.mask_loss(logits, targets, own_classes, model.mask_loss)
    if model.keypoints:
        side = model.parts["keypoint_head"].output_shape[1]
        cells, visible = keypoint_targets(_of(batch["keypoints"], images, matches), boxes, side)
        visible &= positive[:, None]
        own, real = _rows(tf.reduce_any(visible, 1))
        features = model.get_layer("keypoint_pool")(maps, tf.gather(boxes, own), tf.gather(images, own))
        logits = model.parts["keypoint_head"](features, training=training)
        visible = tf.gather(visible, own) & real[:, None]
        found["loss_keypoint"] = losses.keypoint_loss(logits, tf.gather(cells, own), visible)
    return found


def _mask_targets(
    model: MaskRCNN,
    batch: Mapping[str, tf.Tensor],
    boxes: tf.Tensor,
    images: tf.Tensor,
    objects: tf.Tensor,
    m: int,
) -> tf.Tensor:
    """float32 [N, m, m]; shares of cells in torchvision's convention, else 0 or 1."""
    found = []
    if WINDOWS[0] in batch:
        soft = mask_targets.window_targets(
            batch["mask_pixels"],
            batch["mask_windows"],
            boxes,
            images,
            objects,
            batch["size"],
            m,
            model.convention,
        )
        hard = model.convention == "detectron2" or model.mask_loss == "softmax"
        found.append(tf.cast(soft >= 0.5, tf.float32) if hard else soft)
    if POLYGONS[0] in batch:
        points, lengths, owners = (batch[name] for name in POLYGONS)
        found.append(mask_targets.polygon_targets(points, lengths, owners, boxes, images, objects, m))
    return found[0] if len(found) == 1 else tf.maximum(*found)


def _rows(there: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Where `there` is true in its flat order: int32 [N], N a multiple of `ROWS`, and which of them are real, bool [N].

    Rows that only fill up repeat real ones, of which statistics of a batch normalisation take no harm; without any, they
    are the first.
    """
    places = tf.cast(tf.where(tf.reshape(there, [-1]))[:, 0], tf.int32)
    count = tf.size(places)
    row = tf.range(tf.maximum(-(-count // ROWS), 1) * ROWS)
    places = tf.concat([places, tf.zeros([1], tf.int32)], 0)
    return tf.gather(places, row % tf.maximum(count, 1)), row < count


def _of(values: tf.Tensor, images: tf.Tensor, objects: tf.Tensor) -> tf.Tensor:
    """Of values [B, G, …] those of N objects, [N, …]."""
    return tf.gather_nd(values, tf.stack([images, objects], 1))


def _patches(maps: Sequence[tf.Tensor], places: tf.Tensor) -> tf.Tensor:
    """The 3 x 3 features around places, flattened: [B * S, 9 * C]; 0 beyond the border.

    maps: [B, H_l, W_l, C] a level; places: int32 [B, S], counted through all levels by y, x.
    """
    first, total = 0, 0.0
    image = tf.range(tf.shape(places)[0])[:, None, None]
    step = tf.constant([-1, 0, 1])
    down, across = tf.reshape(tf.tile(step[:, None], [1, 3]), [9]), tf.tile(step, [3])
    for level in maps:
        height, width, channels = tf.shape(level)[1], tf.shape(level)[2], level.shape[-1]
        here = places - first
        y, x = (here // width)[..., None] + down, (here % width)[..., None] + across
        inside = (here >= 0) & (here < height * width)
        inside = inside[..., None] & (y >= 0) & (y < height) & (x >= 0) & (x < width)
        index = tf.where(inside, (image * height + y) * width + x, -1)
        total += _pixels(tf.reshape(level, [-1, channels]), tf.reshape(index, [-1]))
        first += height * width
    return tf.reshape(total, [-1, 9 * maps[0].shape[-1]])


@tf.custom_gradient
def _pixels(table: tf.Tensor, index: tf.Tensor) -> tuple[tf.Tensor, object]:
    """Rows of a table [P, C], zeros for the index -1; with a gradient that is a sum, and no list of slices."""
    rows = tf.where((index >= 0)[:, None], tf.gather(table, tf.maximum(index, 0)), 0)

    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, None]:
        return tf.math.unsorted_segment_sum(upstream, index, tf.shape(table)[0]), None

    return rows, gradient


def _refuse(wrong: tf.Tensor, rule: str, values: tf.Tensor) -> tf.Operation | None:
    """An error if any of `wrong` [B, G] is true, which names them and their values [B, G, …]."""
    message = f"Mask R-CNN: {rule}. Wrong are, as (image of the batch, object), counted from 0:"
    return tf.debugging.Assert(
        ~tf.reduce_any(wrong),
        [message, tf.where(wrong), "which have", tf.boolean_mask(values, wrong)],
        summarize=20,
    )


def _check_entries(model: MaskRCNN, batch: Mapping[str, tf.Tensor]) -> None:
    needed = ["image", "size", "boxes", "classes", *(["keypoints"] if model.keypoints else [])]
    for group in (WINDOWS, POLYGONS):
        needed += group if any(name in batch for name in group) else []
    if missing := [name for name in needed if name not in batch]:
        raise ValueError(
            f"{model.name}: the batch lacks {', '.join(missing)}; it has {', '.join(sorted(batch))}"
        )
    if model.masks and WINDOWS[0] not in batch and POLYGONS[0] not in batch:
        raise ValueError(
            f"{model.name}: the batch has no masks: give {' and '.join(WINDOWS)}, or {', '.join(POLYGONS)}"
        )
    for name, tensor in batch.items():
        if tensor.shape.rank != RANKS[name]:
            raise ValueError(f"{model.name}: {name} must have {RANKS[name]} axes, got shape {tensor.shape}")
    if "proposals" in batch and model.rpn_only:
        raise ValueError(
            f"{model.name}: is nothing but an RPN, which makes proposals; the batch has some already"
        )
    sides = {"boxes": 4, "proposals": 4, "mask_windows": 5, "polygon_points": 2, "keypoints": 3}
    for name, number in sides.items():
        if name in batch and batch[name].shape[-1] != number:
            raise ValueError(
                f"{model.name}: the last axis of {name} must be {number}, got shape {batch[name].shape}"
            )
    if model.keypoints and batch["keypoints"].shape[2] not in (None, model.keypoints):
        raise ValueError(
            f"{model.name}: has {model.keypoints} keypoints, the batch {batch['keypoints'].shape[2]}"
        )
