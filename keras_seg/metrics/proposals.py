"""How many objects a region proposal network proposes: COCO's average recall with all classes as one.

An object is found at a threshold of overlap if one of an image's best k proposals, to which no better-overlapping object
belongs, overlaps its box by that much. AR is the mean over the ten thresholds 0.5, 0.55, … 0.95 of the share of objects
that are found (Hosang et al. 2015, "What makes for effective detection proposals?", Section 4; COCO's AR, of boxes).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_seg.metrics.coco_data import read_annotations

__all__ = ["COUNTS", "average_recall"]

COUNTS = (100, 300, 1000)
THRESHOLDS = np.linspace(0.5, 0.95, 10)
# areas of objects, as COCO has them; of each the letter of its figure
AREAS = {"": (0, 1e10), "s": (0, 32**2), "m": (32**2, 96**2), "l": (96**2, 1e10)}
NEVER = np.iinfo(np.int64).max


def average_recall(
    annotations: str | Path | Mapping[str, Any],
    proposals: Iterable[tuple[int, np.ndarray, np.ndarray]],
    counts: Sequence[int] = COUNTS,
) -> dict[str, float]:
    """The recall of the best 100, 300 and 1000 proposals: {"AR100": …, "AR300": …, "AR1000": …, and of the most proposals
    that of small, medium and large objects: "ARs", "ARm", "ARl"}, 0-1; -1 where there is no such object.

    Args:
        annotations: COCO annotations, a JSON file or what it holds; crowds do not count.
        proposals: of images, (image id, boxes [P, 4] x1, y1, x2, y2, scores [P]); an image without is one in which nothing
            is proposed.
        counts: of the best proposals an image.

    Equal to pycocotools with `useCats = 0`. Raises as `coco_data.read_annotations`, and ValueError: counts that are not
    positive, an image that the annotations do not have, or given twice; boxes and scores of other shapes.
    """
    if not counts or min(counts) < 1:
        raise ValueError(f"average_recall: counts must be positive, got {list(counts)}")
    counts = sorted(counts)
    truth = read_annotations(annotations, "bbox")
    objects: dict[int, list[tuple[np.ndarray, float]]] = {k: [] for k in truth.images}
    for one in truth.objects:
        if not one["iscrowd"]:
            x, y, width, height = one["bbox"]
            objects[one["image_id"]].append((np.array([x, y, x + width, y + height]), one["area"]))
    # at which place of the order each object is found, of each range of areas [T, objects]
    ranks: dict[str, list[np.ndarray]] = {letter: [] for letter in AREAS}
    left = dict(objects)
    for image_id, boxes, scores in proposals:
        boxes, scores = np.asarray(boxes, np.float64), np.asarray(scores)
        if image_id not in left:
            known = "is there twice" if image_id in objects else f"is not among those of {truth.name}"
            raise ValueError(f"average_recall: image {image_id} {known}")
        if boxes.ndim != 2 or boxes.shape[1] != 4 or scores.shape != boxes.shape[:1]:
            raise ValueError(
                f"average_recall: image {image_id}: boxes must be [P, 4] and scores [P], got {boxes.shape} and {scores.shape}"
            )
        order = np.argsort(-scores, kind="stable")[: counts[-1]]
        _add(ranks, left.pop(image_id), boxes[order])
    for rest in left.values():
        _add(ranks, rest, np.zeros((0, 4)))
    figures = {f"AR{count}": _recall(ranks[""], count) for count in counts}
    return figures | {f"AR{letter}": _recall(ranks[letter], counts[-1]) for letter in AREAS if letter}


def _add(
    ranks: dict[str, list[np.ndarray]], objects: list[tuple[np.ndarray, float]], boxes: np.ndarray
) -> None:
    if not objects:
        return
    areas = np.array([area for _, area in objects])
    overlaps = _overlaps(boxes, np.stack([box for box, _ in objects]))
    for letter, (low, high) in AREAS.items():
        ranks[letter].append(_first_found(overlaps[:, (areas >= low) & (areas <= high)]))


def _first_found(overlaps: np.ndarray) -> np.ndarray:
    """Of overlaps [P, G] of proposals, best first, the proposal that finds each object at each threshold; int64 [T, G].

    Each proposal takes the object that it overlaps most among those that are left (the last of equals).
    """
    found = np.full((len(THRESHOLDS), overlaps.shape[1]), NEVER)
    rows = np.arange(len(THRESHOLDS))
    for rank in np.flatnonzero((overlaps >= THRESHOLDS[0]).any(1)).tolist():
        free = np.where(found == NEVER, overlaps[rank], -1.0)
        best = free.shape[1] - 1 - free[:, ::-1].argmax(1)
        takes = free[rows, best] >= THRESHOLDS
        found[rows[takes], best[takes]] = rank
    return found


def _recall(ranks: list[np.ndarray], count: int) -> float:
    if not sum(one.shape[1] for one in ranks):
        return -1.0
    return float(np.mean(np.concatenate(ranks, 1) < count))


def _overlaps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes [P, 4] and [G, 4]: float64 [P, G]."""
    sides = np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2])
    shared = np.maximum(sides, 0).prod(2)
    union = (a[:, 2:] - a[:, :2]).prod(1)[:, None] + (b[:, 2:] - b[:, :2]).prod(1) - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
