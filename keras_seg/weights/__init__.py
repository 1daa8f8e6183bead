"""Weights on disk: writing, checking and reading them."""

from keras_seg.weights.assign import LoadReport
from keras_seg.weights.download import DownloadFailed
from keras_seg.weights.files import check_sha256, load_weights, replacing, save_weights

__all__ = ["DownloadFailed", "LoadReport", "check_sha256", "load_weights", "replacing", "save_weights"]
