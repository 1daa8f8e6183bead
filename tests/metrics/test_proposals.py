"""Average recall of proposals, against pycocotools with all classes as one."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from keras_seg.metrics.proposals import average_recall


def annotations(objects: dict[int, list[tuple]], crowd: bool = False) -> dict:
    """Of images by id, boxes x, y, width, height of two classes; crowd: the first object of each is one."""
    listed = [
        {
            "id": 0, "image_id": k, "category_id": 1 + place % 2, "bbox": [*map(float, box)],
            "area": float(box[2] * box[3]), "iscrowd": int(crowd and place == 0),
        }
        for k, boxes in objects.items()
        for place, box in enumerate(boxes)
    ]  # fmt: skip
    for number, one in enumerate(listed, start=1):
        one["id"] = number
    return {
        "images": [{"id": k, "height": 200, "width": 200} for k in objects],
        "annotations": listed,
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
    }


def by_pycocotools(truth: dict, found: list[tuple], counts: tuple[int, ...]) -> dict[str, float]:
    with contextlib.redirect_stdout(io.StringIO()):
        sides = COCO(), COCO()
        results = [
            {"id": 0, "image_id": k, "category_id": 1, "bbox": [*b[:2], *(b[2:] - b[:2])], "score": s,
             "area": np.prod(b[2:] - b[:2]), "iscrowd": 0}
            for k, boxes, scores in found
            for b, s in zip(np.float64(boxes), scores, strict=True)
        ]  # fmt: skip
        for number, one in enumerate(results, start=1):
            one["id"] = number
        for side, listed in zip(sides, (truth["annotations"], results), strict=True):
            side.dataset = {**truth, "annotations": listed}
            side.createIndex()
        evaluation = COCOeval(*sides, "bbox")
        evaluation.params.useCats, evaluation.params.maxDets = 0, list(counts)
        evaluation.evaluate()
        evaluation.accumulate()
    recall = evaluation.eval["recall"][:, 0]  # [T, area, count]

    def mean(values: np.ndarray) -> float:
        return float(values[values > -1].mean()) if (values > -1).any() else -1.0

    figures = {f"AR{count}": mean(recall[:, 0, place]) for place, count in enumerate(counts)}
    return figures | {f"AR{letter}": mean(recall[:, place, -1]) for place, letter in enumerate("sml", 1)}


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_equals_pycocotools(seed, crowd):
    random = np.random.default_rng(seed)
    objects, found = {}, []
    for k in (3, 5, 8):
        places = random.integers(0, 90, (random.integers(0, 6), 2))
        objects[k] = [(*place, *random.integers(8, 110, 2)) for place in places.tolist()]
        truth = np.array(objects[k], float).reshape(-1, 4)
        truth[:, 2:] += truth[:, :2]
        # near ones, far ones and exact copies, which tie
        near = np.repeat(truth, 4, 0) + random.integers(-6, 7, (4 * len(truth), 4))
        corner = random.integers(0, 150, (12, 2)).astype(float)
        boxes = np.concatenate([near, truth, truth, np.concatenate([corner, corner + 30], 1)])
        boxes = boxes[(boxes[:, 2:] > boxes[:, :2]).all(1)]
        found.append((k, boxes, random.permutation(len(boxes)) / 100))
    content, counts = annotations(objects, crowd), (2, 7, 20)
    expected = by_pycocotools(content, found, counts)
    assert average_recall(content, found, counts) == pytest.approx(expected, abs=1e-9)


def test_an_image_without_proposals_counts():
    content = annotations({1: [(10, 10, 40, 40)], 2: [(10, 10, 40, 40)]})
    figures = average_recall(content, [(1, [[10, 10, 50, 50]], [0.5])])
    assert figures == {"AR100": 0.5, "AR300": 0.5, "AR1000": 0.5, "ARs": -1, "ARm": 0.5, "ARl": -1}


def test_only_the_best_so_many_count():
    content = annotations({1: [(10, 10, 40, 40)]})
    boxes = np.array([[100, 100, 140, 140]] * 3 + [[10, 10, 50, 50]], float)
    figures = average_recall(content, [(1, boxes, np.array([0.9, 0.8, 0.7, 0.6]))], (3, 4))
    assert (figures["AR3"], figures["AR4"]) == (0, 1)


@pytest.mark.parametrize(
    ("found", "counts", "message"),
    [
        ([(9, np.zeros((0, 4)), np.zeros(0))], (100,), "image 9 is not among those of"),
        ([(1, np.zeros((0, 4)), np.zeros(0))] * 2, (100,), "image 1 is there twice"),
        ([(1, np.zeros((2, 4)), np.zeros(1))], (100,), r"image 1: boxes must be \[P, 4\] and scores \[P\]"),
        ([], (0,), "counts must be positive"),
    ],
)
def test_what_does_not_fit_is_told(found, counts, message):
    with pytest.raises(ValueError, match=message):
        average_recall(annotations({1: [(10, 10, 40, 40)]}), found, counts)
