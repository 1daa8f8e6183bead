"""Annotations, results and recipes with anything in any place: read, or refused in a message that names the file.

tests/data/test_coco_index.py does the same to single fields of COCO annotations.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from keras_seg.data.coco_index import read_index
from keras_seg.data.labelme import from_labelme
from keras_seg.data.via import from_via
from keras_seg.metrics import coco as coco_metrics
from keras_seg.recipe import load_recipe

SIZE = (20, 30)
OFTEN = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 40)
    | st.sampled_from([2**31, -(2**63), 2**70, 1e308, math.nan, math.inf, -0.5, 1e-320])
    | st.text(max_size=4)
    | st.sampled_from(["a.png", "../a.png", "/etc/passwd", "\0", "\ud800", "polygon", "mask", "rect"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


def places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """The paths of all that a document holds, itself included."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


def changed(document: Any, path: tuple, value: Any, remove: bool) -> Any:
    """The document with another value in one place, or without it."""
    if not path:
        return value
    document = copy.deepcopy(document)
    inside = document
    for key in path[:-1]:
        inside = inside[key]
    if remove:
        del inside[path[-1]]
    else:
        inside[path[-1]] = value
    return document


def changes(document: Any) -> st.SearchStrategy:
    return st.builds(
        changed, st.just(document), st.sampled_from(list(places(document))), ANYTHING, st.booleans()
    )


def write(path, document: Any) -> None:
    path.write_bytes(json.dumps(document).encode("utf-8", "surrogatepass"))


ANNOTATIONS = {
    "images": [{"id": 1, "file_name": "a.png", "height": SIZE[0], "width": SIZE[1]}],
    "annotations": [
        {
            "id": 1, "image_id": 1, "category_id": 1, "iscrowd": 0, "bbox": [1, 2, 8, 6], "area": 24.0,
            "segmentation": [[1, 2, 9, 2, 9, 8]], "keypoints": [3, 3, 2], "num_keypoints": 1,
        },
        {
            "id": 2, "image_id": 1, "category_id": 2, "iscrowd": 1, "bbox": [0, 0, 30, 20], "area": 600,
            "segmentation": {"size": list(SIZE), "counts": [0, 600]},
        },
    ],
    "categories": [
        {"id": 1, "name": "cat", "keypoints": ["nose"], "skeleton": []}, {"id": 2, "name": "dog"},
    ],
}  # fmt: skip
RESULTS = [
    {
        "image_id": 1, "category_id": 1, "score": 0.5, "bbox": [1, 2, 8, 6],
        "segmentation": {"size": list(SIZE), "counts": [0, 300, 300]},
    }
]  # fmt: skip
LABELME = {
    "version": "5.0",
    "imagePath": "a.png",
    "imageHeight": SIZE[0],
    "imageWidth": SIZE[1],
    "shapes": [
        {"label": "cat", "points": [[1, 2], [9, 2], [9, 8]], "shape_type": "polygon", "group_id": 1},
        {"label": "dog", "points": [[12, 9], [4, 3]], "shape_type": "rectangle", "group_id": None},
        {"label": "dog", "points": [[5, 6], [6, 7]], "shape_type": "mask", "mask": "iVBORw0KGgo="},
    ],
}
VIA = {
    "_via_img_metadata": {
        "a.png1": {
            "filename": "a.png",
            "size": 1,
            "file_attributes": {},
            "regions": [
                {
                    "shape_attributes": {
                        "name": "polygon",
                        "all_points_x": [1, 9, 9],
                        "all_points_y": [2, 2, 8],
                    },
                    "region_attributes": {"kind": "cat"},
                },
                {
                    "shape_attributes": {"name": "ellipse", "cx": 9, "cy": 9, "rx": 3, "ry": 2, "theta": 0.1},
                    "region_attributes": {"kind": {"cat": True}},
                },
            ],
        }
    }
}
RECIPE = {
    "schema": 1,
    "name": "tiny",
    "summary": "for a test",
    "model": {"builder": "unet", "depth": 1, "base_channels": 4, "padding": "same", "class_names": ["a", "b"]},
    "data": {
        "reader": "folder", "classes": {"a": 0, "b": [1, 2, 3]}, "tile": 32, "batch_size": 2,
        "augmentation": {"elastic_sigma": 1}, "validation_images": "v", "validation_masks": "w",
    },
    "training": {
        "steps": 3, "optimizer": {"name": "adam", "learning_rate": 0.01}, "schedule": {"warmup_steps": 1},
        "select": {"metric": "mean_iou", "mode": "max"},
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "images").mkdir()
    for place in (folder, folder / "images"):
        Image.fromarray(np.zeros(SIZE, np.uint8)).save(place / "a.png")
    return folder


@OFTEN
@pytest.mark.filterwarnings("ignore:metrics.coco")
@given(document=changes(ANNOTATIONS))
def test_coco_annotations(folder, document):
    write(folder / "annotations.json", document)
    try:
        index, _ = read_index(folder / "annotations.json")
    except ValueError as error:
        assert "annotations.json" in str(error)
    else:
        assert len(index.annotated(0, folder).boxes) >= 0 if len(index) else True
    try:
        found = coco_metrics.evaluate(folder / "annotations.json", RESULTS, "segm")
    except ValueError as error:
        assert str(error)
    else:
        assert -1 <= found["AP"] <= 1


@OFTEN
@pytest.mark.filterwarnings("ignore:metrics.coco")
@given(document=changes(RESULTS))
@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_coco_results(folder, document, iou_type):
    write(folder / "results.json", document)
    try:
        found = coco_metrics.evaluate(ANNOTATIONS, folder / "results.json", iou_type)
    except ValueError as error:
        assert str(error)
    else:
        assert 0 <= found["AP"] <= 1


@OFTEN
@given(document=changes(LABELME))
def test_labelme(folder, document):
    (folder / "labelme").mkdir(exist_ok=True)
    Image.fromarray(np.zeros(SIZE, np.uint8)).save(folder / "labelme/a.png")
    write(folder / "labelme/a.json", document)
    try:
        from_labelme(folder / "labelme", folder / "from_labelme.json", overwrite=True)
    except (ValueError, FileNotFoundError) as error:
        assert "labelme" in str(error) or "class" in str(error)
    else:
        read_index(folder / "from_labelme.json")  # what was written can be read


@OFTEN
@given(document=changes(VIA))
def test_via(folder, document):
    write(folder / "via.json", document)
    try:
        from_via(folder / "via.json", folder / "images", folder / "from_via.json", overwrite=True)
    except (ValueError, FileNotFoundError) as error:
        assert str(folder) in str(error) or "class" in str(error)
    else:
        read_index(folder / "from_via.json")


@OFTEN
@given(document=changes(RECIPE))
def test_recipes(folder, document):
    path = folder / "recipe.yaml"
    path.write_bytes(yaml.safe_dump(document, allow_unicode=False).encode("utf-8", "surrogatepass"))
    try:
        recipe = load_recipe(path)
    except ValueError as error:
        assert "recipe.yaml" in str(error)
    else:
        assert recipe.name and str(recipe)


@OFTEN
@given(text=st.binary(max_size=40) | st.text(alphabet='{}[]":,-1e. \\u&*!|>', max_size=40).map(str.encode))
def test_text_that_is_neither_json_nor_yaml(folder, text):
    readers = {
        "annotations.json": lambda path: read_index(path),
        "results.json": lambda path: coco_metrics.evaluate(ANNOTATIONS, path, "bbox"),
        "via.json": lambda path: from_via(path, folder / "images", folder / "out.json", overwrite=True),
        "recipe.yaml": load_recipe,
    }
    for name, read in readers.items():
        (folder / name).write_bytes(text)
        if name == "results.json" and text.strip() == b"[]":
            continue
        with pytest.raises(ValueError, match=name.replace(".", r"\.")):
            read(folder / name)


@pytest.mark.parametrize("depth", [2_000, 200_000])
def test_brackets_without_end(folder, depth):
    """Deep nesting ends in a message too, not in Python's limit of recursion."""
    for text in ("[" * depth, "[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth):
        for name, read in {
            "annotations.json": read_index,
            "via.json": lambda path: from_via(path, folder / "images", folder / "out.json", overwrite=True),
            "recipe.yaml": load_recipe,
        }.items():
            (folder / name).write_text(text)
            with pytest.raises(ValueError, match=name.replace(".", r"\.")):
                read(folder / name)


def test_a_recipe_does_not_unfold_without_end(tmp_path):
    """Each list holds the one before ten times: 200 bytes, a hundred million words."""
    lists = ["&a0 [x, x, x, x, x, x, x, x, x, x]"]
    lists += [f"&a{k} [{', '.join([f'*a{k - 1}'] * 10)}]" for k in range(1, 8)]
    path = tmp_path / "recipe.yaml"
    path.write_text(f"schema: 1\nname: a\nsummary: b\nmodel: {{builder: [{', '.join(lists)}]}}\n")
    with pytest.raises(ValueError, match=r"recipe.yaml: holds more than 20000 values"):
        load_recipe(path)
