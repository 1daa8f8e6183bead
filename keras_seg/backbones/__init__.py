"""Feature extractors: functional Keras models from an image to maps of several strides."""

from keras_seg.backbones.fpn import fpn
from keras_seg.backbones.resnet import FrozenBatchNormalization, res5_head, resnet

__all__ = ["FrozenBatchNormalization", "fpn", "res5_head", "resnet"]
