"""Training and judging a detector as its recipe says."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import tensorflow as tf

from keras_seg import evaluate as evaluation
from keras_seg import stored_proposals, visualize
from keras_seg.data.coco import CocoSource, open_source, read_for
from keras_seg.data.detection_batches import detection_dataset
from keras_seg.data.detection_geometry import DetectionAugmentation
from keras_seg.data.progress import track
from keras_seg.data.proposals import Proposals
from keras_seg.detect import pixels_of
from keras_seg.metrics import coco_data
from keras_seg.models import MaskRCNN
from keras_seg.recipe import CocoData, Recipe, Training
from keras_seg.training.plan import Plan

PICTURES = 4  # images of the validation that are drawn


def plan(model: MaskRCNN, recipe: Recipe, data: str | Path, *, shard: tuple[int, int] = (0, 1)) -> Plan:
    """The batches and the judgement of a run; sets the model's training options and freezes its first stages, and with
    stored proposals its RPN.

    data: the folder that the names in the recipe's `data:` block are relative to. shard: (number, how many), of the worker
    whose batches they are.

    Raises:
        FileNotFoundError: annotations or images that are not there.
        ValueError: malformed annotations, other classes or keypoints than the model's, an unknown training option,
            proposals for other annotations.
    """
    block, training, root = cast(CocoData, recipe.data), cast(Training, recipe.training), Path(data)
    decay = training.optimizer.weight_decay if training.optimizer.name == "sgd" else 0.0
    options = {"weight_decay": decay, **training.detector}
    model.configure_training(**options)
    model.freeze(training.freeze)
    source = _source(model, block.annotations, block.images, root, keep_empty=block.keep_empty)
    proposals = judged_proposals = None
    if block.proposals:
        proposals = read_for(root / block.proposals, source)
        model.parts["rpn"].trainable = False
    varied = DetectionAugmentation(**block.augmentation.model_dump())
    plain = DetectionAugmentation(flip=varied.flip, turns=varied.turns, crop=varied.crop)
    contents = f"{len(source.sizes)} images to train on"

    def batches(
        augment: DetectionAugmentation, start: int = 0, shard: tuple[int, int] = (0, 1)
    ) -> tf.data.Dataset:
        return _batches(
            model, recipe, source, augment=augment, start=start, seed=training.seed, batch_size=block.batch_size,
            short_side=block.short_side, max_side=block.max_side, shard=shard, proposals=proposals,
        )  # fmt: skip

    evaluate = pictures = None
    if block.validation_annotations and block.validation_images:
        annotations, images = root / block.validation_annotations, root / block.validation_images
        judged_on = _source(
            model, block.validation_annotations, block.validation_images, root, keep_empty=True
        )
        contents += f", {len(judged_on.sizes)} to validate"
        files = [images / judged_on.index.file_name(k) for k in range(min(PICTURES, len(judged_on.sizes)))]
        if block.validation_proposals:
            judged_proposals = read_for(root / block.validation_proposals, judged_on)
        unvaried = _as_segmented(model, recipe, judged_on, judged_proposals)

        @functools.cache  # traced once a model
        def losses_of(trained: MaskRCNN) -> Callable[[dict[str, tf.Tensor]], dict[str, tf.Tensor]]:
            trained.configure_training(**options)
            return tf.function(trained.compute_losses, input_signature=[unvaried.element_spec])

        def evaluate(trained: MaskRCNN) -> dict[str, float]:
            return {
                **_mean_losses(losses_of(trained), unvaried, len(judged_on.sizes)),
                **score(
                    trained,
                    annotations,
                    images,
                    batch_size=block.batch_size,
                    proposals=judged_proposals,
                    value_range=block.value_range,
                ),
            }

        def pictures(trained: MaskRCNN) -> dict[str, np.ndarray]:
            most, value_range = trained.detections, block.value_range
            find = evaluation.finder(trained, max_detections=most, value_range=value_range)
            return {
                file.stem: np.asarray(visualize.draw(pixels_of(file, str(file), value_range), find(file)))
                for file in files
            }

    return Plan(
        batches=lambda start: batches(varied, start, shard),
        plain_inputs=lambda: ({name: batch[name] for name in ("image", "size")} for batch in batches(plain)),
        evaluate=evaluate,
        sources=lambda batch: [f"image {k}" for k in np.asarray(batch["image_id"]).ravel().tolist()],
        contents=contents,
        # its own RPN has learnt nothing, and the pictures are drawn with it
        pictures=pictures if proposals is None else None,
    )


def score(
    model: MaskRCNN,
    annotations: str | Path,
    images: str | Path,
    *,
    batch_size: int = 1,
    proposals: Proposals | None = None,
    value_range: tuple[float, float] | None = None,
) -> dict[str, float]:
    """Figures of a model on COCO annotations: "bbox_AP", "bbox_AP50", "bbox_AP75", and so for "segm" and "keypoints" if the
    model has them; at as many detections an image as it gives (`metrics.coco.score`). Of an RPN alone, the average recall
    (`metrics.proposals`). proposals: what the model's second stage is to look at, instead of its own RPN's. value_range: as
    of `evaluate.finder`."""
    if model.rpn_only:
        return stored_proposals.recall(
            model, annotations, images, batch_size=batch_size, value_range=value_range
        )
    content, _ = coco_data.load(annotations, "annotations")
    if proposals is None:
        find = evaluation.finder(model, max_detections=model.detections, value_range=value_range)
        found = evaluation.results(find, content, images, batch_size=batch_size)
    else:
        found = stored_proposals.results(model, proposals, content, images, value_range=value_range)
    has = {"bbox": True, "segm": model.masks, "keypoints": bool(model.keypoints)}
    kinds = [kind for kind, there in has.items() if there]
    scores = evaluation.score(found, content, kinds, max_detections=model.detections)
    names = ("AP", "AP50", "AP75")
    return {f"{kind}_{name}": scores[kind].figures[name] for kind in kinds for name in names}


def _as_segmented(
    model: MaskRCNN, recipe: Recipe, source: CocoSource, proposals: Proposals | None
) -> tf.data.Dataset:
    """The images one by one, of the size that `segment` gives them."""
    scale = model.scale
    augment = DetectionAugmentation(flip=0.0, zoom=(scale or 1.0, scale or 1.0))
    size = {"short_side": None} if scale else {"short_side": model.short_side, "max_side": model.max_side}
    return _batches(
        model,
        recipe,
        source,
        seed=0,
        batch_size=1,
        augment=augment,
        repeat=False,
        proposals=proposals,
        **size,
    )


def _mean_losses(
    compute: Callable[[dict[str, tf.Tensor]], dict[str, tf.Tensor]], batches: tf.data.Dataset, count: int
) -> dict[str, float]:
    """The mean of each loss over the `count` batches, with samples that are the same each time: "val_loss",
    "val_loss_mask", …"""
    found = [
        {name: float(value) for name, value in compute(batch).items()}
        for _, batch in zip(track(range(count), "validating"), batches, strict=False)
    ]
    return {f"val_{name}": float(np.mean([one[name] for one in found])) for name in found[0]}


def _source(model: MaskRCNN, annotations: str, images: str, root: Path, *, keep_empty: bool) -> CocoSource:
    source = open_source(root / annotations, root / images, keep_empty=keep_empty, masks=model.masks)
    if len(source.class_names) != model.classes and not model.rpn_only:
        raise ValueError(
            f"{source.name}: has {len(source.class_names)} categories ({', '.join(source.class_names[:5])}), the model "
            f"{model.classes} classes: give the recipe's model.class_names those of the data"
        )
    if model.keypoints and len(source.keypoint_names) != model.keypoints:
        raise ValueError(
            f"{source.name}: has {len(source.keypoint_names)} keypoints, the model {model.keypoints}"
        )
    return source


def _batches(model: MaskRCNN, recipe: Recipe, source: CocoSource, **options: Any) -> tf.data.Dataset:
    masks, keypoints = model.masks, bool(model.keypoints)
    return detection_dataset(
        source,
        masks=masks,
        keypoints=keypoints,
        value_range=cast(CocoData, recipe.data).value_range,
        **options,
    )
