"""Statistics of batch normalisation that belong to averaged weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np


def reestimate(model: keras.Model, inputs: Iterable[Any]) -> None:
    """Sets the moving means and variances of a model's batch normalisations to their means over batches of its inputs.

    Averaged weights need it: no network that was trained had them, so that the statistics kept on the way are of other
    activations (Izmailov et al. 2018, "Averaging weights leads to wider optima", Section 3.2).

    Nothing is dropped out meanwhile. inputs: what the model is called with, images as it will see them and not augmented
    beyond that. Nothing happens in a model without batch normalisation.

    Raises:
        ValueError: no inputs.
    """
    layers = [*_layers(model)]
    norms = [layer for layer in layers if isinstance(layer, keras.layers.BatchNormalization)]
    drops = [layer for layer in layers if isinstance(layer, keras.layers.Dropout)]
    if not norms:
        return
    before = [(norm, "momentum", norm.momentum) for norm in norms] + [
        (drop, "rate", drop.rate) for drop in drops
    ]
    sums: list[list[Any]] = [[0.0, 0.0] for _ in norms]
    count = 0
    for layer, name, _ in before:
        setattr(layer, name, 0.0)  # each batch leaves its own statistics
    try:
        for batch in inputs:
            model(batch, training=True)
            count += 1
            for norm, total in zip(norms, sums, strict=True):
                total[0] += np.asarray(norm.moving_mean)
                total[1] += np.asarray(norm.moving_variance)
    finally:
        for layer, name, value in before:
            setattr(layer, name, value)
    if not count:
        raise ValueError("reestimate: no images to take statistics from")
    for norm, (mean, variance) in zip(norms, sums, strict=True):
        norm.moving_mean.assign(mean / count)
        norm.moving_variance.assign(variance / count)


def _layers(model: keras.Model) -> Iterator[keras.layers.Layer]:
    """Those of the models within, too."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _layers(layer)
        else:
            yield layer
