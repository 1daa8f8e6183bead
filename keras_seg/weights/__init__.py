"""Weights on disk: writing, checking and reading them."""

from keras_seg.weights.files import LoadReport, check_sha256, load_weights, replacing, save_weights

__all__ = ["LoadReport", "check_sha256", "load_weights", "replacing", "save_weights"]
