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

    model: its drop-out layers must have rate 0. inputs: what the model is called with, images as it will see them and not
    augmented beyond that. Nothing happens in a model without batch normalisation.

    Raises:
        ValueError: no inputs.
    """
    norms = [*_normalizations(model)]
    if not norms:
        return
    momenta, sums, count = [norm.momentum for norm in norms], [[0.0, 0.0] for _ in norms], 0
    for norm in norms:
        norm.momentum = 0.0  # each batch leaves its own statistics
    try:
        for batch in inputs:
            model(batch, training=True)
            count += 1
            for norm, total in zip(norms, sums, strict=True):
                total[0] += np.asarray(norm.moving_mean)
                total[1] += np.asarray(norm.moving_variance)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    if not count:
        raise ValueError("reestimate: no images to take statistics from")
    for norm, (mean, variance) in zip(norms, sums, strict=True):
        norm.moving_mean.assign(mean / count)
        norm.moving_variance.assign(variance / count)


def _normalizations(model: keras.Model) -> Iterator[keras.layers.BatchNormalization]:
    """Those of the models within, too."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _normalizations(layer)
        elif isinstance(layer, keras.layers.BatchNormalization):
            yield layer
