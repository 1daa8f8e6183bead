"""What a run needs to know of its data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import keras
    import numpy as np
    import tensorflow as tf


class Plan(NamedTuple):
    """The data of a run and how its model is judged.

    batches: start -> the batches from number `start` on, the same for the same number.
    plain_inputs: inputs of the model in batches, of images that are turned and mirrored at most, to take statistics from.
    evaluate: model -> named figures; None: there is nothing to validate with.
    sources: batch -> the names of its images, for messages.
    contents: how much there is of what, in words.
    pictures: model -> named pictures uint8 [H, W, 3] of what it sees in the validation's first images; None: none.
    """

    batches: Callable[[int], tf.data.Dataset]
    plain_inputs: Callable[[], Iterator[Any]]
    evaluate: Callable[[keras.Model], dict[str, float]] | None
    sources: Callable[[dict[str, Any]], list[str]]
    contents: str
    pictures: Callable[[keras.Model], dict[str, np.ndarray]] | None = None
