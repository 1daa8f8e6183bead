"""Functional builders of models."""

from keras_seg.models.mask_rcnn import MaskRCNN, mask_rcnn
from keras_seg.models.unet import UNet, unet

__all__ = ["MaskRCNN", "UNet", "mask_rcnn", "unet"]
