"""Functional builders of the models."""

from keras_seg.models.unet import UNet, unet

__all__ = ["UNet", "unet"]
