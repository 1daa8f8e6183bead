"""Figures and pictures for TensorBoard, which itself need not be installed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import tensorflow as tf

# TensorBoard's names of its plug-ins, and the class of data that each shows.
SCALARS, IMAGES = ("scalars", 1), ("images", 3)


class Board:
    """Event files in a folder, for `tensorboard --logdir`."""

    def __init__(self, folder: str | Path) -> None:
        self._writer = tf.summary.create_file_writer(str(folder))

    def figures(self, step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self._write(name, tf.constant(value, tf.float32), step, SCALARS)
        self._writer.flush()

    def pictures(self, step: int, pictures: Mapping[str, np.ndarray]) -> None:
        """pictures: uint8 [H, W, 3] each."""
        for name, picture in pictures.items():
            height, width = picture.shape[:2]
            content = [str(width), str(height), tf.io.encode_png(picture).numpy()]
            self._write(name, tf.constant(content), step, IMAGES)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()

    def _write(self, name: str, value: tf.Tensor, step: int, plugin: tuple[str, int]) -> None:
        metadata = tf.compat.v1.SummaryMetadata(
            plugin_data=tf.compat.v1.SummaryMetadata.PluginData(plugin_name=plugin[0]), data_class=plugin[1]
        )
        with self._writer.as_default(step=step):
            tf.summary.write(name, value, metadata=metadata)
