"""Mask R-CNN (He et al. 2017) and its relatives: Faster R-CNN, Keypoint R-CNN, on C4, DC5, C5 or a feature pyramid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import layers

from keras_seg.backbones import fpn, res5_head, resnet
from keras_seg.backbones.resnet import STRIDES, VARIANTS
from keras_seg.heads import box_head as box_head_model
from keras_seg.heads import box_predictor, keypoint_head, rpn_head
from keras_seg.heads import mask_head as mask_head_model
from keras_seg.models import rcnn_training
from keras_seg.models.rcnn_layers import (
    ClassMasks,
    DecodeKeypoints,
    NormalizePixels,
    PoolRegions,
    ProposalsAsDetections,
    Regions,
    Scatter,
    SelectDetections,
    SelectProposals,
)
from keras_seg.models.rcnn_training import AnchorSamples, RegionSamples, TrainingOptions, training_options

STRUCTURES = ("fpn", "c4", "dc5", "c5")
# Of the maps that regions are pooled from: where a structure takes them, and at which stride.
SINGLE_MAP = {"c4": ("res4", 16), "dc5": ("res5", 16), "c5": ("res5", 32)}
FPN_STRIDES = (4, 8, 16, 32, 64)
SIZE_DIVISOR = 32  # a pyramid's maps are each half the one before
PARTS = ("backbone", "fpn", "rpn", "res5", "box_head", "box_predictor", "mask_head", "keypoint_head")


@keras.saving.register_keras_serializable("keras_seg")
class MaskRCNN(keras.Model):
    """The functional model that `mask_rcnn` builds, with its training step.

    Its configuration is the builder's arguments, and what `configure_training` changed.
    """

    def __init__(
        self, *, name: str = "mask_rcnn", training: dict[str, Any] | None = None, **arguments: Any
    ) -> None:
        inputs, outputs = _graph(**arguments)
        super().__init__(inputs, outputs, name=name)
        self.arguments = arguments
        for field, value in arguments.items():
            setattr(self, field, value)
        self.supports_jit = (
            False  # how many regions there are is data; Keras would have XLA compile `fit` on a GPU
        )
        self._samples = keras.random.SeedGenerator(name="samples")
        branches = {"loss_mask": self.masks, "loss_keypoint": self.keypoints}
        if self.rpn_only:
            branches |= {"loss_class": False, "loss_box": False}
        self._means = [
            keras.metrics.Mean(name=loss)
            for loss in ("loss", *rcnn_training.LOSSES)
            if branches.get(loss, True)
        ]
        self.configure_training(**(training or {}))

    @property
    def size_divisor(self) -> int:
        """Sides of a padded image must be multiples of this."""
        return SIZE_DIVISOR if self.structure == "fpn" else 1

    @property
    def parts(self) -> dict[str, keras.Model]:
        """The networks within by name, of `PARTS` those that this model has: for weights, and for freezing."""
        names = {layer.name for layer in self.layers}
        return {part: self.get_layer(part) for part in PARTS if part in names}

    def second_stage(self) -> keras.Model:
        """All but the RPN, with the same weights: a model that finds objects in regions which another network proposes.

        Inputs as of `mask_rcnn` and "proposals" float32 [B, P, 4], pixels of the input, of which the first "num_proposals"
        int32 [B] of each image are there; outputs as of `mask_rcnn`. ValueError: a model that is nothing but an RPN.
        """
        if self.rpn_only:
            raise ValueError(f"{self.name}: has rpn_only=True, so there is no second stage")
        boxes, count = self.get_layer("proposals").output
        inputs = {**self.input, "proposals": boxes, "num_proposals": count}
        model = keras.Model(inputs, self.output, name=f"{self.name}_second_stage")
        for name, tensor in model.input.items():  # Keras calls copies otherwise, and warns of it
            tensor.name = name
        return model

    # -- training ----------------------------------------------------------------------------------------------

    @property
    def training_options(self) -> TrainingOptions:
        """Numbers of samples, thresholds, weights of losses: see `rcnn_training.TrainingOptions`."""
        return training_options(self.arguments, **self._training)

    def configure_training(self, **changes: Any) -> None:
        """Sets the given `training_options`, and the others to the defaults of the model's convention. ValueError: an
        unknown option, or a value outside its range."""
        training_options(self.arguments, **changes)
        self._training = {key: [*v] if isinstance(v, tuple) else v for key, v in changes.items()}

    def freeze(self, stages: int) -> None:
        """Trains all but the first stages of the backbone: 1 is the stem, 2 the stem and res2 (what published models
        freeze), 5 all of it; 0 trains everything. Parts may be frozen besides: `parts[name].trainable = False`.

        ValueError: another number.
        """
        if stages not in range(6):
            raise ValueError(f"freeze: stages must be 0 to 5, got {stages!r}")
        frozen = ("stem", "res2", "res3", "res4", "res5")[:stages]
        for part in (self.parts["backbone"], self.parts.get("res5")):
            for layer in part.layers if part else ():
                layer.trainable = layer.name.partition("_")[0] not in frozen

    @tf.autograph.experimental.do_not_convert  # there is nothing to convert, and looking for it takes longer than tracing
    def compute_losses(
        self,
        batch: dict[str, tf.Tensor],
        training: bool = False,
        *,
        anchors: AnchorSamples | None = None,
        regions: RegionSamples | None = None,
        seed: tf.Tensor | None = None,
    ) -> dict[str, tf.Tensor]:
        """The losses of a batch, whose form `rcnn_training` describes: {"loss": their sum, "loss_rpn_class": …}, scalars
        float32, each times its weight. With "proposals" in the batch, the RPN is not computed and has no loss.

        Args:
            batch: images and their objects; none is an ordinary case.
            training: whether batch normalisation uses the batch's statistics, and each call draws other samples; if
                False, calls draw the same samples, so that losses of a validation can be compared.
            anchors, regions: samples to take instead of drawn ones.
            seed: int [2], of the samples to draw; None: of the model's own generator, whose state is one of the
                model's variables and thus kept by a checkpoint.

        Raises:
            ValueError, InvalidArgumentError: for what `rcnn_training.prepare` and `rcnn_layers.NormalizePixels` refuse.
        """
        options = self.training_options
        batch = rcnn_training.prepare(self, batch)
        if seed is None:
            seed = self._next_seed() if training else [0, 0]
        seed = tf.cast(seed, tf.int32)
        pixels = self.get_layer("normalize")(batch["image"], batch["size"])
        maps = tf.nest.flatten(self.parts["backbone"](pixels, training=training))
        if self.structure == "fpn":
            maps = self.parts["fpn"](maps, training=training)
        pooled_from = maps[:4] if self.structure == "fpn" else maps
        found: dict[str, Any] = {}
        if "proposals" in batch:
            boxes = batch["proposals"][:, : options.proposals]
            there = tf.reduce_all(boxes[..., 2:] > boxes[..., :2], -1)
        else:
            selection = self.get_layer("proposals")
            # proposals are data: no gradient goes through them
            logits, deltas = rcnn_training.rpn_outputs(self, [tf.stop_gradient(level) for level in maps])
            all_anchors = tf.concat(selection.anchors(logits), 0)
            if anchors is None:
                anchors = rcnn_training.sample_anchors(all_anchors, batch, options, seed)
            found |= rcnn_training.rpn_losses(self, maps, all_anchors, anchors, options)
            if regions is None and not self.rpn_only:
                logits, deltas = (
                    [tf.stop_gradient(level) for level in levels] for levels in (logits, deltas)
                )
                boxes, _, count = selection.select(
                    logits, deltas, batch["size"], options.pre_nms_proposals, options.proposals
                )
                there = tf.sequence_mask(count, tf.shape(boxes)[1])
        if not self.rpn_only:
            if regions is None:
                regions = rcnn_training.sample_regions(boxes, there, batch, self.classes, options, seed + 1)
            found |= rcnn_training.region_losses(self, pooled_from, batch, regions, options, training)
        found = {name: loss * options.loss_weights.get(name, 1.0) for name, loss in found.items()}
        return {"loss": tf.add_n([*found.values()]), **found}

    def optimize(self, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """One step of the compiled optimizer on a batch; returns the losses before the step, as `compute_losses`."""
        terms, gradients = self.gradients(batch)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        return terms

    def gradients(self, batch: dict[str, tf.Tensor]) -> tuple[dict[str, tf.Tensor], list[tf.Tensor]]:
        """The losses of a batch, and what they give the trainable variables for the compiled optimizer.

        Under a distribution strategy, one replica's part of it: the sum over replicas is the gradient of the mean loss.
        """
        variables = self.trainable_variables
        with tf.GradientTape() as tape:
            terms = self.compute_losses(batch, training=True)
            loss = terms["loss"] + self._decay(variables)
            loss = self.optimizer.scale_loss(loss / tf.distribute.get_strategy().num_replicas_in_sync)
        gradients = tape.gradient(loss, variables)
        # a part may see nothing of a batch, such as the keypoint head without keypoints
        pairs = zip(gradients, variables, strict=True)
        return terms, [tf.zeros_like(v) if g is None else g for g, v in pairs]

    @property
    def metrics(self) -> list[keras.Metric]:
        """The running means of the losses, which Keras resets at each epoch."""
        return [*self._means]

    def make_train_function(self, force: bool = False) -> None:
        """Keras's. Builds the optimizer before: a graph that makes variables is traced twice."""
        with self.distribute_strategy.scope():
            self.optimizer.build(self.trainable_variables)
        super().make_train_function(force)

    def train_step(self, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        return self._running_means(self.optimize(batch))

    def test_step(self, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        return self._running_means(self.compute_losses(batch))

    def _running_means(self, terms: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        means = [mean for mean in self._means if mean.name in terms]
        for mean in means:
            mean.update_state(terms[mean.name])
        return {mean.name: mean.result() for mean in means}

    def _next_seed(self) -> tf.Tensor:
        """Another one at each call, and on each replica."""
        seed = tf.bitcast(tf.cast(self._samples.next(), tf.uint32), tf.int32)
        context = tf.distribute.get_replica_context()
        replica = context.replica_id_in_sync_group if context else 0
        # a call uses the seed and the one after it
        return seed * [1, 2] + tf.stack([replica, 0])

    def _decay(self, variables: Sequence[keras.Variable]) -> tf.Tensor | float:
        """What has the weight decay for its gradient. Kernels have more than one axis, all else has one."""
        factor = self.training_options.weight_decay
        if not factor:
            return 0.0
        return factor * tf.add_n([tf.nn.l2_loss(v.value) for v in variables if len(v.shape) > 1])

    def get_config(self) -> dict:
        changed = {"training": dict(self._training)} if self._training else {}
        return {**self.arguments, **changed, "name": self.name}

    @classmethod
    def from_config(cls, config: dict, custom_objects: dict | None = None) -> MaskRCNN:
        return cls(**config)


def mask_rcnn(
    classes: int = 80,
    *,
    class_names: Sequence[str] | None = None,
    backbone: str = "resnet50",
    structure: str = "fpn",
    width: int = 64,
    fpn_channels: int = 256,
    fpn_normalization: str | None = None,
    fpn_top: str = "pool",
    normalization: str = "frozen",
    norm_eps: float = 1e-5,
    stride_in_1x1: bool = True,
    padding: str = "symmetric",
    pixel_mean: Sequence[float] = (123.675, 116.28, 103.53),
    pixel_std: Sequence[float] = (1.0, 1.0, 1.0),
    anchor_sizes: Sequence[float] = (32, 64, 128, 256, 512),
    anchor_ratios: Sequence[float] = (0.5, 1.0, 2.0),
    anchors_rounded: bool = False,
    anchor_offset: float = 0.0,
    rpn_convs: int = 1,
    rpn_channels: int | None = None,
    rpn_shared: bool = True,
    pre_nms_proposals: int | None = None,
    proposals: int = 1000,
    rpn_nms: float = 0.7,
    rpn_min_size: float = 0.0,
    rpn_only: bool = False,
    box_head: str = "fc",
    box_head_channels: int = 1024,
    class_agnostic_boxes: bool = False,
    box_weights: Sequence[float] = (10.0, 10.0, 5.0, 5.0),
    score_threshold: float = 0.05,
    box_nms: float = 0.5,
    detections: int = 100,
    box_min_size: float = 0.0,
    masks: bool = True,
    mask_head: str = "conv",
    mask_channels: int = 256,
    mask_loss: str = "sigmoid",
    class_agnostic_masks: bool = False,
    keypoints: int = 0,
    keypoint_names: Sequence[str] | None = None,
    keypoint_channels: int = 512,
    roi: str = "align",
    roi_sampling: int = 0,
    roi_aligned: bool = True,
    roi_pooling: str = "average",
    convention: str = "detectron2",
    short_side: int = 800,
    max_side: int = 1333,
    scale: float | None = None,
    name: str = "mask_rcnn",
) -> MaskRCNN:
    """A detector that computes what Detectron2's or torchvision's does.

    Input: {"image": float [B, H, W, 3], RGB, 0-255, padded at the bottom and at the right (structure "fpn": to
    multiples of 32), "size": [B, 2], the true height and width}. Output, D = `detections`, sorted by score, zeros
    after the last: {"boxes": float32 [B, D, 4] in pixels of the input, "scores": [B, D], "classes": int32 [B, D],
    "num_detections": int32 [B], and with the branches "masks": [B, D, m, m] probabilities and "keypoints":
    [B, D, K, 3]: x, y, score}.

    Args:
        classes: K, without the background, which is the last of the class logits.
        class_names: one for each class, kept with the model.
        backbone: one of `backbones.resnet.VARIANTS`.
        structure: "fpn"; "c4": res5 is the head (He et al. 2017, Figure 4 left); "dc5": res5 at stride 16; "c5": res5
            at stride 32. The last two have the pyramid's heads.
        width: channels of the stem; 64 in all published networks.
        fpn_channels: of the pyramid's maps.
        fpn_normalization: of the pyramid, None or as `normalization`. fpn_top: see `backbones.fpn`.
        normalization: of the backbone: "frozen", "batch" or "group"; norm_eps: added to the variance.
        stride_in_1x1, padding: see `backbones.resnet`.
        pixel_mean, pixel_std: RGB, 0-255.
        anchor_sizes: roots of their areas, pixels; of a pyramid one a level. anchor_ratios: height over width. anchors_rounded: to whole pixels, and so are their steps (torchvision).
        anchor_offset: of the first anchors' centre, in strides (Model Garden: 0.5).
        rpn_convs: 3x3 convolutions of the proposal head. rpn_channels: of them, None for the maps' own. rpn_shared:
            one head for all levels of the pyramid; if False, each has its own 3x3 convolutions (Model Garden).
        pre_nms_proposals: kept of each level before suppression; None: 1000 with a pyramid, else 6000.
        proposals: kept of an image after it (the paper: 300 for C4, 1000 with a pyramid).
        rpn_nms, box_nms: overlaps above which the worse of two boxes goes.
        rpn_min_size, box_min_size: least sides of a box in pixels.
        rpn_only: nothing but the backbone and the RPN, whose proposals are the detections, D = `proposals`, of class 0; needs
            classes=1 and masks=False. All objects it is trained on count as of one class.
        box_head: "fc", or "conv_fc" (torchvision's v2); c4 has its own. box_head_channels: of its dense layers.
        class_agnostic_boxes: one box for all classes.
        box_weights: factors of the box deltas.
        score_threshold: of detections. detections: D.
        masks: with the mask branch. mask_head: see `heads.mask_head`; c4 has its own. mask_channels: of it.
        mask_loss: "sigmoid", or "softmax" over the classes (Table 2b). class_agnostic_masks: one for all classes.
        keypoints: number of keypoints; 0 for no such branch. keypoint_names: one for each. keypoint_channels: of it.
        roi: "align", "pool" or "warp" (Table 2c). roi_sampling: samples a bin and axis; 0 adapts to the region.
        roi_aligned: half-pixel offset, as Detectron2's RoIAlignV2. roi_pooling: "average" or "max".
        convention: "detectron2" or "torchvision": of resizing and of pasting masks, for `keras_seg.segment`.
        short_side, max_side: images are resized to this shorter side, unless the longer one exceeds the other.
        scale: images are resized by this factor instead, whatever their size: where a pixel is a length, as in microscopy.

    Its networks (`parts`) work under XLA where shapes are static; the steps between them do not: how many boxes survive
    is data.

    Called with sides that are no multiples, a `size` beyond the padded image, or pixels that are not finite, the model
    raises InvalidArgumentError (`rcnn_layers.NormalizePixels`).

    Raises:
        ValueError: an argument outside its range, or contradictory ones.
    """
    arguments = {key: value for key, value in locals().items() if key != "name"}
    # lists, as they come back from a saved model's JSON
    arguments = {key: [*value] if isinstance(value, tuple) else value for key, value in arguments.items()}
    _check_arguments(arguments)
    return MaskRCNN(**arguments, name=name)


def _check_arguments(arguments: dict[str, Any]) -> None:
    choices = {
        "backbone": tuple(VARIANTS),
        "structure": STRUCTURES,
        "mask_loss": ("sigmoid", "softmax"),
        "roi": ("align", "pool", "warp"),
        "roi_pooling": ("average", "max"),
        "convention": ("detectron2", "torchvision"),
    }
    for field, allowed in choices.items():
        if arguments[field] not in allowed:
            raise ValueError(
                f"mask_rcnn: {field} must be one of {', '.join(map(repr, allowed))}, got {arguments[field]!r}"
            )
    for field in ("classes", "width", "fpn_channels", "proposals", "detections", "short_side", "max_side"):
        value = arguments[field]
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"mask_rcnn: {field} must be a positive integer, got {value!r}")
    for field, count in (("class_names", arguments["classes"]), ("keypoint_names", arguments["keypoints"])):
        names = arguments[field]
        if names is not None and len(names) != count:
            raise ValueError(f"mask_rcnn: {len(names)} {field} for {count}")
    if arguments["structure"] != "fpn" and not (arguments["rpn_shared"] and arguments["fpn_top"] == "pool"):
        raise ValueError(
            f"mask_rcnn: rpn_shared={arguments['rpn_shared']}, fpn_top={arguments['fpn_top']!r} need structure "
            f"'fpn', got {arguments['structure']!r}"
        )
    if arguments["short_side"] > arguments["max_side"]:
        raise ValueError(
            f"mask_rcnn: short_side={arguments['short_side']} is longer than max_side={arguments['max_side']}"
        )
    sizes = arguments["anchor_sizes"]
    if not sizes or min(sizes) <= 0 or (arguments["structure"] == "fpn" and len(sizes) != len(FPN_STRIDES)):
        raise ValueError(
            f"mask_rcnn: anchor_sizes must be positive, {len(FPN_STRIDES)} with structure 'fpn', got {sizes}"
        )
    if arguments["scale"] is not None and not arguments["scale"] > 0:
        raise ValueError(f"mask_rcnn: scale must be positive, got {arguments['scale']!r}")
    if not arguments["masks"] and arguments["class_agnostic_masks"]:
        raise ValueError("mask_rcnn: class_agnostic_masks=True, but masks=False")
    if arguments["class_agnostic_masks"] and arguments["mask_loss"] == "softmax":
        raise ValueError("mask_rcnn: a softmax over classes needs class-specific masks")
    if arguments["rpn_only"]:
        wrong = [
            f"{field}={arguments[field]!r}"
            for field, needed in (("classes", 1), ("masks", False), ("keypoints", 0))
            if arguments[field] != needed
        ]
        if wrong:
            raise ValueError(
                f"mask_rcnn: rpn_only=True, which knows objects from background and no more, but {', '.join(wrong)}: "
                "give classes=1, masks=False and no keypoints"
            )
    if arguments["structure"] == "c4":
        if arguments["keypoints"]:
            raise ValueError("mask_rcnn: the keypoint branch needs structure 'fpn', 'dc5' or 'c5', got 'c4'")
        changed = [f for f, v in (("box_head", "fc"), ("mask_head", "conv")) if arguments[f] != v]
        if changed:
            raise ValueError(f"mask_rcnn: structure 'c4' has its own heads, so {changed[0]} cannot be chosen")


def _graph(**a: Any) -> tuple[dict, dict]:
    """Inputs and outputs; the arguments are those of `mask_rcnn`."""
    image = keras.Input((None, None, 3), name="image")
    size = keras.Input((2,), name="size")
    pyramid = a["structure"] == "fpn"
    strides: tuple[int, ...]
    x = NormalizePixels(a["pixel_mean"], a["pixel_std"], SIZE_DIVISOR if pyramid else 1, name="normalize")(
        image, size
    )
    common = {key: a[key] for key in ("normalization", "norm_eps", "stride_in_1x1", "padding", "width")}
    if pyramid:
        maps = resnet(a["backbone"], **common)(x)
        counts = [level.shape[-1] for level in maps]
        maps = fpn(
            counts,
            a["fpn_channels"],
            normalization=a["fpn_normalization"],
            norm_eps=a["norm_eps"],
            top=a["fpn_top"],
        )(maps)
        strides, sizes = FPN_STRIDES, [[side] for side in a["anchor_sizes"]]
    else:
        stage, stride = SINGLE_MAP[a["structure"]]
        dilation = STRIDES[stage] // stride
        maps = [resnet(a["backbone"], outputs=[stage], res5_dilation=dilation, **common)(x)]
        strides, sizes = (stride,), [list(a["anchor_sizes"])]

    anchors = len(sizes[0]) * len(a["anchor_ratios"])
    levels = None if a["rpn_shared"] else range(2, 2 + len(maps))
    rpn = rpn_head(
        maps[0].shape[-1], anchors, channels=a["rpn_channels"], convs=a["rpn_convs"], levels=levels
    )
    logits, deltas = rpn(maps) if levels else zip(*(rpn(level) for level in maps), strict=True)
    select = ProposalsAsDetections if a["rpn_only"] else SelectProposals
    proposals = select(
        sizes,
        a["anchor_ratios"],
        strides,
        a["anchors_rounded"],
        a["pre_nms_proposals"] or (1000 if pyramid else 6000),
        a["proposals"],
        a["rpn_nms"],
        a["rpn_min_size"],
        a["anchor_offset"],
        name="proposals",
    )(list(logits), list(deltas), size)
    inputs = {"image": image, "size": size}
    if a["rpn_only"]:
        return inputs, dict(zip(("boxes", "scores", "classes", "num_detections"), proposals, strict=True))
    boxes, count = proposals
    boxes.name, count.name = "proposals", "num_proposals"  # as inputs of `second_stage`

    pooled_maps = maps[:4] if pyramid else maps

    def pool(side: int, name: str, boxes: keras.KerasTensor, images: keras.KerasTensor) -> keras.KerasTensor:
        return PoolRegions(
            side, strides[: len(pooled_maps)], a["roi_sampling"], a["roi_aligned"], a["roi_pooling"], a["roi"],
            name=name,
        )(pooled_maps, boxes, images)  # fmt: skip

    regions, images = Regions(name="proposal_regions")(boxes, count)
    c4 = a["structure"] == "c4"
    if c4:
        res5 = res5_head(a["backbone"], **common)
        features = layers.GlobalAveragePooling2D(name="box_average")(
            res5(pool(14, "box_pool", regions, images))
        )
    else:
        head = box_head_model(
            pooled_maps[0].shape[-1],
            kind=a["box_head"],
            channels=a["box_head_channels"],
            norm_eps=a["norm_eps"],
        )
        features = head(pool(7, "box_pool", regions, images))
    predictor = box_predictor(features.shape[-1], a["classes"], class_agnostic=a["class_agnostic_boxes"])
    class_logits, box_deltas = predictor(features)
    boxes, scores, classes, count = SelectDetections(
        a["box_weights"], a["score_threshold"], a["box_nms"], a["detections"], a["box_min_size"], name="detections"
    )(
        Scatter(name="class_logits")(class_logits, boxes, count),
        Scatter(name="box_deltas")(box_deltas, boxes, count),
        boxes,
        count,
        size,
    )  # fmt: skip
    outputs = {"boxes": boxes, "scores": scores, "classes": classes, "num_detections": count}

    regions, images = Regions(name="detection_regions")(boxes, count)
    if a["masks"]:
        region = pool(14, "mask_pool", regions, images)
        region = res5(region) if c4 else region
        head = mask_head_model(
            region.shape[-1],
            # a softmax over classes has the background as one of them (losses.mask_loss)
            1 if a["class_agnostic_masks"] else a["classes"] + (a["mask_loss"] == "softmax"),
            kind="deconv" if c4 else a["mask_head"],
            side=7 if c4 else 14,
            channels=a["mask_channels"],
            norm_eps=a["norm_eps"],
        )
        own = ClassMasks(a["mask_loss"], name="class_masks")(head(region), classes, count)
        outputs["masks"] = Scatter(name="masks")(own, boxes, count)
    if a["keypoints"]:
        head = keypoint_head(pooled_maps[0].shape[-1], a["keypoints"], channels=a["keypoint_channels"])
        heatmaps = head(pool(14, "keypoint_pool", regions, images))
        score = "logit" if a["convention"] == "torchvision" else "probability"
        found = DecodeKeypoints(score, name="decode_keypoints")(heatmaps, regions)
        outputs["keypoints"] = Scatter(name="keypoints")(found, boxes, count)
    return inputs, outputs
