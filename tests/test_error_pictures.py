"""Which detections are right, and pictures of the others."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from keras_seg import error_pictures
from keras_seg.ops.rle import encode_mask


def square(top: int, left: int, side: int, size: int = 24) -> np.ndarray:
    mask = np.zeros((size, size), bool)
    mask[top : top + side, left : left + side] = True
    return mask


def test_the_surest_takes_what_it_overlaps_most():
    truth = np.array([square(0, 0, 8), square(12, 12, 8)])
    found = np.array([square(0, 1, 8), square(0, 0, 8), square(12, 12, 4)])
    errors = error_pictures.match(found, truth)
    assert errors.right.tolist() == [[0, 0]]
    assert errors.false.tolist() == [1, 2] and errors.missed.tolist() == [1]
    assert errors.f1 == pytest.approx(0.4)
    loose = error_pictures.match(found, truth, iou=0.25)
    assert loose.right.tolist() == [[0, 0], [2, 1]] and loose.missed.size == 0
    other = error_pictures.match(found, truth, same=np.zeros((3, 2), bool))
    assert other.right.shape == (0, 2) and other.f1 == 0


def test_nothing_there_and_nothing_found():
    none = np.zeros((0, 24, 24), bool)
    assert error_pictures.match(none, none).f1 == 1
    assert error_pictures.match(none, square(0, 0, 4)[None]).missed.tolist() == [0]
    assert error_pictures.match(square(0, 0, 4)[None], none).false.tolist() == [0]
    with pytest.raises(ValueError, match=r"masks of other sizes: \[24, 24\] found, \[8, 8\] there"):
        error_pictures.match(none, np.zeros((1, 8, 8), bool))


def test_outlines_have_the_colours_of_the_errors():
    truth, found = (
        np.array([square(2, 2, 6), square(14, 2, 6)]),
        np.array([square(2, 2, 6), square(2, 14, 6)]),
    )
    drawn = np.asarray(
        error_pictures.draw_errors(
            np.zeros((24, 24), np.uint8), found, truth, error_pictures.match(found, truth)
        )
    )
    assert tuple(drawn[2, 2]) == error_pictures.RIGHT
    assert tuple(drawn[14, 2]) == error_pictures.MISSED
    assert tuple(drawn[2, 14]) == error_pictures.FALSE
    assert not drawn[4, 4].any() and not drawn[22, 22].any()


def test_the_worst_image_comes_first(tmp_path):
    masks = {1: square(2, 2, 8), 2: square(10, 10, 8)}
    annotations = {
        "images": [{"id": k, "file_name": f"{k}.png", "height": 24, "width": 24} for k in masks],
        "categories": [{"id": 7, "name": "nucleus"}],
        "annotations": [
            {
                "id": k,
                "image_id": k,
                "category_id": 7,
                "bbox": [0, 0, 8, 8],
                "segmentation": encode_mask(mask),
                "iscrowd": 0,
            }
            for k, mask in masks.items()
        ],
    }
    for k in masks:
        Image.fromarray(np.full((24, 24), 50, np.uint8)).save(tmp_path / f"{k}.png")
    file = tmp_path / "annotations.json"
    file.write_text(json.dumps(annotations))

    found = [
        {"image_id": k, "category_id": 7, "score": score, "segmentation": encode_mask(masks[1])}
        for k, score in ((1, 0.9), (2, 0.8), (1, 0.4))
    ]
    written = error_pictures.write_error_pictures(found, file, tmp_path, tmp_path / "out", count=5)
    assert [path.name for path in written] == ["01_2.png", "02_1.png"]
    assert [errors.f1 for errors in written.values()] == [0, 1]
    drawn = np.asarray(Image.open(tmp_path / "out" / "01_2.png"))
    assert tuple(drawn[10, 10]) == error_pictures.MISSED and tuple(drawn[2, 2]) == error_pictures.FALSE
    # in the values that the detector saw
    for k in masks:
        Image.fromarray(np.full((24, 24), 500, np.uint16)).save(tmp_path / f"{k}.png")
    (path, *_) = error_pictures.write_error_pictures(
        found, file, tmp_path, tmp_path / "out", value_range=(0, 1000)
    )
    assert tuple(np.asarray(Image.open(path))[0, 0]) == (128, 128, 128)
