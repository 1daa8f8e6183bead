"""Training: the loop, checkpoints, schedules and learning curves."""

from keras_seg.training.loop import NonFiniteLoss
from keras_seg.training.recipes import average, train

__all__ = ["NonFiniteLoss", "average", "train"]
