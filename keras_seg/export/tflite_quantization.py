"""Eight-bit networks: ranges of activations from representative images, and where they are rounded.

Convolutions and dense layers whose input and output are rounded to 8 bits run on integers; all else stays float32: what
leaves a network (logits, box deltas), group normalisation, boxes, suppression, soft-max.
"""

from __future__ import annotations

from collections.abc import Iterable

import tensorflow as tf


class Ranges:
    """A treatment that changes nothing and notes what it sees, in eager calls."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[float, float]] = {}

    def weights(self, place: str, kernel: tf.Tensor) -> tf.Tensor:
        return kernel

    def activations(self, place: str, values: tf.Tensor) -> tf.Tensor:
        if tf.executing_eagerly():
            low, high = self._seen.get(place, (0.0, 0.0))
            array = values.numpy()
            self._seen[place] = min(low, float(array.min())), max(high, float(array.max()))
        return values

    def result(self) -> dict[str, tuple[float, float]]:
        """Of each place the least and the greatest number, with 0 between them."""
        return {place: (low, high if high > low else low + 1) for place, (low, high) in self._seen.items()}


class EightBits:
    """A treatment that rounds to 8 bits: kernels by output channel, activations by place.

    ranges: of activations, by place. A place without one, and `float_places`, stay as they are.
    """

    def __init__(self, ranges: dict[str, tuple[float, float]], float_places: Iterable[str] = ()) -> None:
        self.float_places = frozenset(float_places)
        self.ranges = {place: ends for place, ends in ranges.items() if place not in self.float_places}

    def weights(self, place: str, kernel: tf.Tensor) -> tf.Tensor:
        if place not in self.ranges:
            return kernel
        most = tf.reduce_max(tf.abs(kernel), range(kernel.shape.rank - 1))
        most = tf.maximum(most, 1e-9)
        return tf.quantization.fake_quant_with_min_max_vars_per_channel(
            kernel, -most, most, narrow_range=True
        )

    def activations(self, place: str, values: tf.Tensor) -> tf.Tensor:
        if place not in self.ranges:
            return values
        return tf.quantization.fake_quant_with_min_max_args(values, *self.ranges[place])
