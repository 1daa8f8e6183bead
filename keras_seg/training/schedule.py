"""Learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Sequence

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable("keras_seg")
class WarmupThenDecay(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up, then constant but for drops to a tenth, then a half cosine down to 0 over the last part.

    While the rate is constant the course of training does not depend on `steps`, so a run may be shortened or
    lengthened from a checkpoint and is the same as one that was planned so.

    learning_rate: the constant rate. steps: of the whole run. warmup_steps: steps of the warm-up. decay_fraction:
    part of `steps`, 0 to 1, taken by the decay. drop_steps: at each of them the rate falls to a tenth.
    """

    def __init__(
        self,
        learning_rate: float,
        steps: int,
        warmup_steps: int = 0,
        decay_fraction: float = 0.0,
        drop_steps: Sequence[int] = (),
    ) -> None:
        self.learning_rate, self.steps = learning_rate, steps
        self.warmup_steps, self.decay_fraction = warmup_steps, decay_fraction
        self.drop_steps = list(drop_steps)

    def __call__(self, step: tf.Tensor) -> tf.Tensor:
        step = tf.cast(step, tf.float32)
        warm = tf.minimum(1.0, (step + 1) / max(1, self.warmup_steps))
        decay = self.decay_fraction * self.steps
        gone = tf.clip_by_value((step - (self.steps - decay)) / decay, 0, 1) if decay else 0.0
        drops = sum(tf.cast(step >= drop, tf.float32) for drop in self.drop_steps)
        return self.learning_rate * 0.1**drops * warm * 0.5 * (1 + tf.cos(math.pi * gone))

    def get_config(self) -> dict:
        return {
            "learning_rate": self.learning_rate,
            "steps": self.steps,
            "warmup_steps": self.warmup_steps,
            "decay_fraction": self.decay_fraction,
            "drop_steps": self.drop_steps,
        }
