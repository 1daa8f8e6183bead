"""An exported SavedModel used from Python as the model that it came from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from keras_seg.export import metadata
from keras_seg.instances import Instances


class Exported:
    """What `load` gives.

    Attributes:
        about: the contents of `assets/keras_seg.json`.
        signatures: name to function, as `tf.saved_model.load` gives them.
    """

    def __init__(self, path: Path, about: dict[str, Any]) -> None:
        self.path, self.about = path, about
        self._model = tf.saved_model.load(str(path))
        self.signatures = self._model.signatures

    @property
    def name(self) -> str:
        return self.about["name"]

    @property
    def class_names(self) -> list[str] | None:
        return self.about["class_names"]

    @property
    def convention(self) -> str:
        return self.about["convention"]

    @property
    def is_detector(self) -> bool:
        return self.about["task"] == "detection"

    def segment(self, image: Any, **options: Any) -> Any:
        """What `keras_seg.segment` gives for the Keras model, its sizes, tiles and rotations being those in the graph.

        A detector takes an image, a list or an iterator of them, and score_threshold, max_detections and classes as
        `keras_seg.detect.detect` does; a U-Net an image or a stack, and value_range as `segment_unet` does.

        ValueError: what these raise; a detector that was not exported with masks="probabilities". TypeError: another
        option.
        """
        return self._detect(image, **options) if self.is_detector else self._probabilities(image, **options)

    def _detect(
        self,
        image: Any,
        *,
        score_threshold: float = 0.5,
        max_detections: int = 100,
        classes: Sequence[int | str] | None = None,
    ) -> Instances | list[Instances] | Iterator[Instances]:
        from keras_seg.detect import one_or_many, pixels_of

        if self.about["masks"] not in (None, "probabilities"):
            raise ValueError(
                f"{self.path}: exported with masks={self.about['masks']!r}; `segment` needs masks='probabilities'"
            )
        return one_or_many(
            image,
            lambda named: (
                self._instances(pixels_of(one, name)).filter(score_threshold, classes, max_detections)
                for name, one in named
            ),
        )

    def _instances(self, image: np.ndarray) -> Instances:
        """image: uint8 [H, W, 3]."""
        from keras_seg.detect import instances_of

        found = self.outputs(image)
        size = tuple(found.pop("image_sizes").tolist())
        return instances_of(self, found, size, size)

    def outputs(self, image: np.ndarray) -> dict[str, np.ndarray]:
        """A detector's outputs (`saved_model`) for one image, uint8 [H, W, 3], without their first dimension."""
        outputs = self.signatures["serving_default"](images=tf.constant(image[None]))
        return {name: value.numpy()[0] for name, value in outputs.items()}

    def _probabilities(self, image: Any, *, value_range: tuple[float, float] | None = None) -> np.ndarray:
        from keras_seg.data.images import to_float
        from keras_seg.overlap_tile import match_channels
        from keras_seg.segment import as_stack

        channels = self.about["recipe"]["model"]["input_channels"]
        stack, is_stack, name = as_stack(image, channels)
        slices = []
        for n, one in enumerate(stack):
            pixels = to_float(one, value_range, name if len(stack) == 1 else f"{name}, slice {n}")
            pixels = match_channels(pixels, channels)
            outputs = self.signatures["float_images"](images=tf.constant(pixels[None]))
            slices.append(outputs["probabilities"].numpy()[0])
        return np.stack(slices) if is_stack else slices[0]


def load(path: str | Path) -> Exported:
    """A SavedModel of `export.saved_model`, ready to segment.

    FileNotFoundError: no such folder. ValueError: no SavedModel, one that keras_seg did not write, or of a later format.
    """
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such folder")
    if not (path / "saved_model.pb").is_file():
        raise ValueError(f"{path}: not a SavedModel; its folder holds saved_model.pb")
    return Exported(path, metadata.read(path))
