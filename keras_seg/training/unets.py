"""Training and judging a U-Net as its recipe says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import tensorflow as tf

from keras_seg.data.augment import Augmentation
from keras_seg.data.cell_tracking import read as read_cell_tracking
from keras_seg.data.folder import read as read_folder
from keras_seg.data.isbi import read as read_isbi
from keras_seg.data.progress import track
from keras_seg.data.sample import Sample
from keras_seg.data.tiles import tile_dataset
from keras_seg.metrics import cell_tracking as cell_tracking_metrics
from keras_seg.metrics import isbi as isbi_metrics
from keras_seg.metrics.iou import mean_iou
from keras_seg.models import UNet
from keras_seg.recipe import CellTrackingData, FolderData, IsbiData, Recipe, Training
from keras_seg.segment import instances, segment_unet
from keras_seg.training.plan import Plan

TileData = IsbiData | CellTrackingData | FolderData


def plan(
    model: UNet, recipe: Recipe, data: str | Path, *, all_data: bool, shard: tuple[int, int] = (0, 1)
) -> Plan:
    """The tiles and the judgement of a run; arguments as of `recipes.train`. shard: (number, how many), of the worker whose
    tiles they are."""
    training, validation = read_samples(recipe, data)
    if all_data:
        training, validation = training + validation, []
    block, run = cast(TileData, recipe.data), cast(Training, recipe.training)
    tile = block.tile
    names = [sample.name for sample in training]

    def tiles(augment: Augmentation, start: int = 0, shard: tuple[int, int] = (0, 1)) -> tf.data.Dataset:
        return tile_dataset(
            training,
            tile=tile,
            output_tile=model.output_size(tile),
            batch_size=block.batch_size,
            augment=augment,
            seed=run.seed,
            start=start,
            shard=shard,
        )

    varied = Augmentation(**block.augmentation.model_dump())
    turned = Augmentation(elastic_sigma=0.0, rotation="right_angles", brightness=0.0, contrast=0.0)

    def sources(batch: dict[str, Any]) -> list[str]:
        return [names[index] for index in batch["sample"].numpy()]

    return Plan(
        batches=lambda start: tiles(varied, start, shard),
        plain_inputs=lambda: (batch["image"] for batch in tiles(turned)),
        evaluate=(lambda trained: evaluate(trained, recipe, validation)) if validation else None,
        sources=sources,
        contents=f"{len(training)} images to train on, {len(validation)} to validate",
    )


def read_samples(recipe: Recipe, data: str | Path) -> tuple[list[Sample], list[Sample]]:
    """The images to train on and those to validate with, as the recipe's `data:` block says; ValueError without one."""
    block, root = cast("TileData | None", recipe.data), Path(data)
    if block is None:
        raise ValueError(
            f"{recipe.name}: its recipe has no data and training blocks, so it cannot be trained or scored"
        )
    options: dict[str, Any] = {**block.weight_map.model_dump(), "value_range": block.value_range}
    parts: tuple[tuple, tuple]
    if block.reader == "isbi":
        parts = block.train_slices, block.validation_slices
        options["membrane_edge_weight"] = block.membrane_edge_weight

        def read(part: tuple) -> list[Sample]:
            return read_isbi(root / block.volume, root / block.labels, slices=part, **options)
    elif block.reader == "cell_tracking":
        parts = block.train_sequences, block.validation_sequences

        def read(part: tuple) -> list[Sample]:
            return read_cell_tracking(root, part, border=block.border, **options)
    else:
        if len(block.classes) != recipe.model.classes:
            raise ValueError(
                f"{recipe.name}: data.classes names {len(block.classes)} classes, the model has {recipe.model.classes}"
            )
        parts = (
            (block.train_images, block.train_masks),
            (block.validation_images, block.validation_masks) if block.validation_images else (),
        )
        options |= {key: getattr(block, key) for key in ("classes", "mask_suffix", "ignore_value")}

        def read(part: tuple) -> list[Sample]:
            return read_folder(*(root / folder for folder in part), **options)

    training, validation = parts
    return read(training), read(validation) if validation else []


def evaluate(
    model: UNet,
    recipe: Recipe,
    samples: list[Sample],
    *,
    rotations: int = 1,
    metrics: Sequence[str] = ("pixel_error", "rand_error", "v_rand"),
    probabilities: Sequence[np.ndarray] | None = None,
) -> dict[str, float]:
    """Figures of a model on annotated images: "val_loss", and those that go with the kind of data.

    ISBI data: the `metrics` of `metrics.isbi`. Cell tracking data: "seg", the objects being the connected components
    of the pixels where class 1 has a probability above 1/2. Folders: "mean_iou" of the most probable classes.
    rotations: how many versions of each image are averaged. probabilities: what the model gives for the images, float32
    [H, W, K] each; None: they are computed.
    """
    reader = cast(TileData, recipe.data).reader
    figures = {"val_loss": _loss(model, recipe, samples)}
    if probabilities is None:
        probabilities = predict(model, samples, rotations=rotations)
    if reader == "isbi":
        interior = np.stack([probability[..., 1] for probability in probabilities])
        scores = isbi_metrics.evaluate(interior, np.stack([sample.label for sample in samples]), metrics)
        figures |= {name: scores[name] for name in metrics}
    elif reader == "cell_tracking":
        found = [instances(probability[..., 1]) for probability in probabilities]
        figures["seg"] = cell_tracking_metrics.seg(found, [np.maximum(s.instances, 0) for s in samples])[
            "SEG"
        ]
    else:
        classes = [probability.argmax(-1) for probability in probabilities]
        figures["mean_iou"] = mean_iou(classes, [sample.label for sample in samples], model.classes)
    return figures


def predict(model: UNet, samples: Sequence[Sample], *, rotations: int = 1) -> list[np.ndarray]:
    """Class probabilities of each image, float32 [H, W, K], with a progress bar. rotations: as of `evaluate`."""
    return [
        segment_unet(model, sample.image, rotations=rotations, progress=False)
        for sample in track(samples, "segmenting")
    ]


def _loss(model: UNet, recipe: Recipe, samples: list[Sample]) -> float:
    """The mean loss on centred tiles without augmentation."""
    tile = cast(TileData, recipe.data).tile
    batches = tile_dataset(
        samples, tile=tile, output_tile=model.output_size(tile), augment=False, repeat=False, batch_size=1
    )
    return float(np.mean([float(model.compute_losses(batch)["loss"]) for batch in batches]))
