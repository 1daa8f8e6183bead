"""Models in the formats in which they are deployed."""

from keras_seg.export.browser import browser
from keras_seg.export.loaded import load
from keras_seg.export.saved_model import saved_model
from keras_seg.export.tflite import tflite

__all__ = ["browser", "load", "saved_model", "tflite"]
