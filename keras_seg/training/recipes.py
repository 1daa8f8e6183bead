"""From a recipe and a folder of data to a trained model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import cast

import keras
import numpy as np
import tensorflow as tf

from keras_seg import zoo
from keras_seg.models import MaskRCNN, UNet
from keras_seg.recipe import Data, Recipe, Sgd, Training, load_recipe
from keras_seg.training import detectors, loop, normalization, unets
from keras_seg.training.hosts import check_same, hosts_of
from keras_seg.training.plan import Plan
from keras_seg.training.schedule import WarmupThenDecay
from keras_seg.weights.files import load_weights

STATISTICS_IMAGES = 160  # that batch normalisation's statistics of averaged weights are taken from


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
    progress: bool = False,
    strategy: tf.distribute.Strategy | None = None,
) -> UNet | MaskRCNN:
    """Trains what a recipe describes, on the data folder `data`, into the folder `output`; see `loop.run`.

    With several devices or workers the recipe's `batch_size` is that of each device: N of them make the steps that one
    makes with N times the batch, and the learning rate grows with the batch if the recipe has a `reference_batch`
    (docs/training_hosts.md).

    Args:
        recipe: a recipe, or the path of one.
        data: the folder that holds the files which the recipe's `data:` block names.
        output: where checkpoints, weights and learning curves go.
        weights: where to start from: a file, "pretrained" for the recipe's own, or "imagenet" (`zoo.load`); None: from
            random weights.
        resume: go on from the checkpoint in `output`.
        steps: instead of the recipe's number of steps.
        all_data: train a U-Net on the validation part as well, and choose nothing: the weights are those of the last step.
        say: receives a line of progress now and then.
        progress: draw a bar where standard error is a terminal, instead of the lines about the steps but the last one.
        strategy: what spreads the work over devices, such as `tf.distribute.MirroredStrategy()`; None: the workers of the
            environment variable TF_CONFIG, or one device of this process.

    Returns: the model, with the best weights where there was a validation, else the last ones; on each worker.

    Raises:
        ValueError: a recipe that has no data and training blocks, data that do not fit it, a wrong TF_CONFIG.
        what `loop.run` raises.
    """
    recipe = _with_data(recipe)
    training = _training(recipe)
    steps = training.steps if steps is None else steps
    hosts = hosts_of(strategy, say)
    check_same(hosts, **{"the recipe": recipe.model_dump_json(), "the number of steps": steps})
    keras.utils.set_random_seed(training.seed)
    with hosts.strategy.scope():
        with _precision(training.precision):
            model = zoo.load(recipe, weights)
        model.compile(optimizer=_optimizer(recipe, steps))
    plan = _plan(model, recipe, data, all_data, hosts.shard)
    result = zoo.load(recipe, weights=None)  # float32, with averaged weights
    devices = hosts.strategy.num_replicas_in_sync
    say(f"{recipe.name}: {plan.contents}; {steps} steps{f' on {devices} devices' if devices > 1 else ''}")
    check_same(hosts, **{"the data": plan.contents})
    loop.run(
        model,
        plan.batches,
        output,
        steps=steps,
        finished=lambda: _finish(model, result, recipe, plan),
        evaluate=plan.evaluate,
        evaluate_every=training.evaluate_every,
        checkpoint_every=training.checkpoint_every,
        select=(training.select.metric, training.select.mode),
        resume=resume,
        sources=plan.sources,
        pictures=plan.pictures,
        say=say,
        progress=progress,
        hosts=hosts,
    )
    load_weights(result, Path(output) / (loop.BEST if plan.evaluate else loop.LAST))
    return result


def average(
    recipe: Recipe | str | Path, data: str | Path, weights: Sequence[str | Path], *, all_data: bool = False
) -> UNet | MaskRCNN:
    """The model with the mean of the weights of several runs, which had the same start: one network that is often better
    than each (Wortsman et al. 2022, "Model soups").

    recipe, data, all_data: as of `train`; the data give the statistics of batch normalisation. weights: `.weights.h5`
    files. Raises ValueError without files, or for one that is not the recipe's.
    """
    recipe = _with_data(recipe)
    if not weights:
        raise ValueError(f"{recipe.name}: no weights files to average")
    model = zoo.load(recipe, weights=None)
    runs = []
    for file in weights:
        load_weights(model, file)
        runs.append(model.get_weights())
    model.set_weights([np.mean(values, axis=0) for values in zip(*runs, strict=True)])
    _reestimate_normalization(model, recipe, _plan(model, recipe, data, all_data))
    return model


def _with_data(recipe: Recipe | str | Path) -> Recipe:
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    if recipe.data is None:
        raise ValueError(
            f"{recipe.name}: its recipe has no data and training blocks, so it cannot be trained"
        )
    return recipe


def _training(recipe: Recipe) -> Training:
    """A recipe's training block, of one that has it (`_with_data`)."""
    return cast(Training, recipe.training)


def _data(recipe: Recipe) -> Data:
    return cast(Data, recipe.data)


def _plan(
    model: UNet | MaskRCNN, recipe: Recipe, data: str | Path, all_data: bool, shard: tuple[int, int] = (0, 1)
) -> Plan:
    if recipe.model.builder == "unet":
        return unets.plan(model, recipe, data, all_data=all_data, shard=shard)
    if all_data:
        raise ValueError(
            f"{recipe.name}: annotations to train on and to validate with are two files; to train on both, join them "
            "into one and name that as data.annotations"
        )
    return detectors.plan(model, recipe, data, shard=shard)


def _finish(model: UNet | MaskRCNN, result: UNet | MaskRCNN, recipe: Recipe, plan: Plan) -> UNet | MaskRCNN:
    """Gives `result` the model's weights, averaged if the recipe says so."""
    if not _training(recipe).optimizer.average:
        result.set_weights(model.get_weights())
    else:
        own = model.get_weights()
        # under a strategy Keras gives the averages to none but the variables that it trains
        model.optimizer.finalize_variable_values(model.trainable_variables)
        result.set_weights(model.get_weights())
        model.set_weights(own)
        _reestimate_normalization(result, recipe, plan)
    return result


def _reestimate_normalization(model: UNet | MaskRCNN, recipe: Recipe, plan: Plan) -> None:
    count = -(-STATISTICS_IMAGES // _data(recipe).batch_size)
    normalization.reestimate(model, islice(plan.plain_inputs(), count))


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
    block, schedule, detector = (
        _training(recipe).optimizer,
        _training(recipe).schedule,
        recipe.model.builder == "mask_rcnn",
    )
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    batch = _data(recipe).batch_size * block.accumulate * replicas
    factor = batch / (schedule.reference_batch or batch)
    updates = -(-steps // block.accumulate)
    rate = WarmupThenDecay(
        block.learning_rate * factor,
        updates,
        schedule.warmup_steps,
        schedule.decay_fraction,
        schedule.drop_steps,
    )
    options = {"use_ema": True, "ema_momentum": block.average} if block.average else {}
    options |= {"global_clipnorm": block.clip_norm} if block.clip_norm else {}
    options |= {"gradient_accumulation_steps": block.accumulate} if block.accumulate > 1 else {}
    if isinstance(block, Sgd):
        # a detector adds its decay to the gradient (`MaskRCNN.configure_training`)
        decay = None if detector else block.weight_decay or None
        return keras.optimizers.SGD(rate, momentum=block.momentum, weight_decay=decay, **options)
    optimizer = keras.optimizers.AdamW(rate, weight_decay=block.weight_decay, **options)
    if detector:
        optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return optimizer
