"""One image with its objects, before it is resized: what every source of detection data gives."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

__all__ = ["AnnotatedImage"]


@dataclass(frozen=True, eq=False)
class AnnotatedImage:
    """An image's file and its G objects.

    name: where it comes from, for messages. file: its path, or the bytes of an image file. image_id: the data set's.
    size: (height, width), pixels, upright.
    boxes: float64 [G, 4], x1, y1, x2, y2, continuous pixels, within the image. classes: int32 [G], 0 … K - 1.
    crowd: bool [G]. ids: int64 [G], of the annotations.
    polygon_points: float64 [V, 2], x, y of all polygons. polygon_lengths: int64 [Q], points of each. polygon_objects:
    int64 [Q], rising, the object of each.
    run_lengths: uint8 [C], the characters of all objects' COCO run lengths. run_splits: int64 [G + 1], where each
    object's begin; an object without any has none.
    keypoints: float64 [G, K, 3], x, y in continuous pixels (the centre of pixel i is i + 0.5) and COCO's visibility
    (0 not annotated, 1 hidden, 2 visible); K = 0 without.
    """

    name: str
    file: Path | bytes
    image_id: int
    size: tuple[int, int]
    boxes: np.ndarray
    classes: np.ndarray
    crowd: np.ndarray
    ids: np.ndarray
    polygon_points: np.ndarray
    polygon_lengths: np.ndarray
    polygon_objects: np.ndarray
    run_lengths: np.ndarray
    run_splits: np.ndarray
    keypoints: np.ndarray
