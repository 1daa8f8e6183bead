"""From a recipe and a folder of data to a trained model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import keras
import numpy as np

from keras_seg import zoo
from keras_seg.data.augment import Augmentation
from keras_seg.data.cell_tracking import read as read_cell_tracking
from keras_seg.data.folder import read as read_folder
from keras_seg.data.isbi import read as read_isbi
from keras_seg.data.sample import Sample
from keras_seg.data.tiles import tile_dataset
from keras_seg.metrics import cell_tracking as cell_tracking_metrics
from keras_seg.metrics import isbi as isbi_metrics
from keras_seg.metrics.iou import mean_iou
from keras_seg.models import UNet
from keras_seg.recipe import Recipe, load_recipe
from keras_seg.segment import instances, segment
from keras_seg.training import loop, normalization
from keras_seg.training.schedule import WarmupThenDecay
from keras_seg.weights.files import load_weights

STATISTICS_TILES = 160  # that batch normalisation's statistics of averaged weights are taken from


def train(
    recipe: Recipe | str | Path,
    data: str | Path,
    output: str | Path,
    *,
    weights: str | Path | None = None,
    resume: bool = False,
    steps: int | None = None,
    all_data: bool = False,
    say: Callable[[str], None] = print,
) -> UNet:
    """Trains what a recipe describes, on the data folder `data`, into the folder `output`; see `loop.run`.

    Args:
        recipe: a recipe, or the path of one.
        data: the folder that holds the files which the recipe's `data:` block names.
        output: where checkpoints, weights and learning curves go.
        weights: where to start from: a file, or "pretrained" for the recipe's own (`zoo.load`); None: from random
            weights.
        resume: go on from the checkpoint in `output`.
        steps: instead of the recipe's number of steps.
        all_data: train on the validation part as well, and choose nothing: the weights are those of the last step.
        say: receives a line of progress now and then.

    Returns: the model, with the best weights where there was a validation, else the last ones.
    """
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    training, validation = read_samples(recipe, data)
    if recipe.model.builder != "unet":
        raise ValueError(
            f"{recipe.name}: only U-Nets are trained from a recipe, and it builds a {recipe.model.builder}"
        )
    if all_data:
        training, validation = training + validation, []
    steps = recipe.training.steps if steps is None else steps
    keras.utils.set_random_seed(recipe.training.seed)
    with _precision(recipe.training.precision):
        model = zoo.load(recipe, weights)
    model.compile(optimizer=_optimizer(recipe, steps))
    result = zoo.load(recipe, weights=None)  # float32, with averaged weights

    def finished() -> UNet:
        result.set_weights(model.get_weights())
        if recipe.training.optimizer.average:
            model.optimizer.finalize_variable_values(result.trainable_variables)
            _reestimate_normalization(result, recipe, training)
        return result

    def batches(start: int):
        return tile_dataset(
            training,
            tile=recipe.data.tile,
            output_tile=model.output_size(recipe.data.tile),
            batch_size=recipe.data.batch_size,
            augment=Augmentation(**recipe.data.augmentation.model_dump()),
            seed=recipe.training.seed,
            start=start,
        )

    say(f"{recipe.name}: {len(training)} images to train on, {len(validation)} to validate; {steps} steps")
    loop.run(
        model,
        batches,
        output,
        steps=steps,
        finished=finished,
        evaluate=(lambda trained: evaluate(trained, recipe, validation)) if validation else None,
        evaluate_every=recipe.training.evaluate_every,
        checkpoint_every=recipe.training.checkpoint_every,
        select=(recipe.training.select.metric, recipe.training.select.mode),
        resume=resume,
        sample_names=[sample.name for sample in training],
        say=say,
    )
    load_weights(result, Path(output) / (loop.BEST if validation else loop.LAST))
    return result


def read_samples(recipe: Recipe, data: str | Path) -> tuple[list[Sample], list[Sample]]:
    """The images to train on and those to validate with, as the recipe's `data:` block says; ValueError without one."""
    block, root = recipe.data, Path(data)
    if block is None:
        raise ValueError(
            f"{recipe.name}: its recipe has no data and training blocks, so it cannot be trained or scored"
        )
    options = {**block.weight_map.model_dump(), "value_range": block.value_range}
    if block.reader == "isbi":
        parts = block.train_slices, block.validation_slices
        options["membrane_edge_weight"] = block.membrane_edge_weight

        def read(slices):
            return read_isbi(root / block.volume, root / block.labels, slices=slices, **options)
    elif block.reader == "cell_tracking":
        parts = block.train_sequences, block.validation_sequences

        def read(sequences):
            return read_cell_tracking(root, sequences, border=block.border, **options)
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

        def read(folders):
            return read_folder(*(root / folder for folder in folders), **options)

    training, validation = parts
    return read(training), read(validation) if validation else []


def evaluate(
    model: UNet,
    recipe: Recipe,
    samples: list[Sample],
    *,
    rotations: int = 1,
    metrics: Sequence[str] = ("pixel_error", "rand_error", "v_rand"),
) -> dict[str, float]:
    """Figures of a model on annotated images: "val_loss", and those that go with the kind of data.

    ISBI data: the `metrics` of `metrics.isbi`. Cell tracking data: "seg", the objects being the connected components
    of the pixels where class 1 has a probability above 1/2. Folders: "mean_iou" of the most probable classes.
    rotations: how many versions of each image are averaged.
    """
    figures = {"val_loss": _loss(model, recipe, samples)}
    probabilities = [segment(model, sample.image, rotations=rotations, progress=False) for sample in samples]
    if recipe.data.reader == "isbi":
        interior = np.stack([probability[..., 1] for probability in probabilities])
        scores = isbi_metrics.evaluate(interior, np.stack([sample.label for sample in samples]), metrics)
        figures |= {name: scores[name] for name in metrics}
    elif recipe.data.reader == "cell_tracking":
        found = [instances(probability[..., 1]) for probability in probabilities]
        figures["seg"] = cell_tracking_metrics.seg(found, [np.maximum(s.instances, 0) for s in samples])[
            "SEG"
        ]
    else:
        classes = [probability.argmax(-1) for probability in probabilities]
        figures["mean_iou"] = mean_iou(classes, [sample.label for sample in samples], model.classes)
    return figures


def _loss(model: UNet, recipe: Recipe, samples: list[Sample]) -> float:
    """The mean loss on centred tiles without augmentation."""
    tile = recipe.data.tile
    batches = tile_dataset(
        samples, tile=tile, output_tile=model.output_size(tile), augment=False, repeat=False, batch_size=1
    )
    return float(np.mean([float(model.compute_losses(batch)["loss"]) for batch in batches]))


def _reestimate_normalization(model: UNet, recipe: Recipe, samples: list[Sample]) -> None:
    """Gives averaged weights their own statistics, from tiles as they are cut of images, turned and mirrored."""
    if recipe.model.normalization != "batch":
        return
    undropped = zoo.load(recipe, weights=None, dropout=0.0)
    undropped.set_weights(model.get_weights())
    turned = Augmentation(elastic_sigma=0.0, rotation="right_angles", brightness=0.0, contrast=0.0)
    tile, size = recipe.data.tile, recipe.data.batch_size
    tiles = tile_dataset(
        samples,
        tile=tile,
        output_tile=model.output_size(tile),
        batch_size=size,
        augment=turned,
        seed=recipe.training.seed,
    )
    normalization.reestimate(
        undropped, (batch["image"] for batch in tiles.take(STATISTICS_TILES // size + 1))
    )
    model.set_weights(undropped.get_weights())


@contextmanager
def _precision(policy: str) -> Iterator[None]:
    """Layers made inside the block have this Keras dtype policy."""
    before = keras.mixed_precision.dtype_policy()
    keras.mixed_precision.set_dtype_policy(policy)
    try:
        yield
    finally:
        keras.mixed_precision.set_dtype_policy(before)


def _optimizer(recipe: Recipe, steps: int) -> keras.optimizers.Optimizer:
    block, schedule = recipe.training.optimizer, recipe.training.schedule
    rate = WarmupThenDecay(block.learning_rate, steps, schedule.warmup_steps, schedule.decay_fraction)
    average = {"use_ema": True, "ema_momentum": block.average} if block.average else {}
    if block.name == "sgd":
        options = {"momentum": block.momentum, "weight_decay": block.weight_decay or None}
        return keras.optimizers.SGD(rate, **options, **average)
    return keras.optimizers.AdamW(rate, weight_decay=block.weight_decay, **average)
