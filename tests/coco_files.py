"""Small COCO-format data sets for tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from keras_seg.ops.rle import encode_mask

KEYPOINTS = ["nose", "left_hand", "right_hand"]


def content(
    images: int = 3, size: tuple[int, int] = (40, 60), objects: int = 2, **fields: Any
) -> dict[str, Any]:
    """Annotations of `images` images [H, W] with `objects` polygons each; category ids 7 and 3, image ids from 10."""
    height, width = size
    annotations = []
    for image in range(images):
        for k in range(objects):
            x, y = 4 + 3 * k + image, 5 + 7 * k
            corners = [[x, y], [x + 14, y + 1], [x + 12, y + 11], [x + 1, y + 9]]
            annotations.append(
                {
                    "id": 100 + len(annotations),
                    "image_id": 10 + image,
                    "category_id": (7, 3)[k % 2],
                    "bbox": [x, y, 14, 11],
                    "area": 130.0,
                    "iscrowd": 0,
                    "segmentation": [np.ravel(corners).tolist()],
                }
            )
    records = [
        {"id": 10 + k, "file_name": f"{k}.png", "height": height, "width": width} for k in range(images)
    ]
    categories = [{"id": 7, "name": "seven"}, {"id": 3, "name": "three"}]
    return {"images": records, "annotations": annotations, "categories": categories, **fields}


def with_runs(data: dict[str, Any]) -> dict[str, Any]:
    """The same with each polygon's box as a mask, in compressed and uncompressed run lengths by turns."""
    sizes = {image["id"]: (image["height"], image["width"]) for image in data["images"]}
    for number, annotation in enumerate(data["annotations"]):
        x, y, width, height = annotation["bbox"]
        mask = np.zeros(sizes[annotation["image_id"]], bool)
        mask[y : y + height, x : x + width] = True
        annotation["segmentation"] = encode_mask(mask)
        if number % 2:
            columns = np.flatnonzero(np.diff(np.pad(mask.ravel("F"), 1).astype(int)))
            counts = np.diff(columns, prepend=0, append=mask.size)
            annotation["segmentation"]["counts"] = counts.tolist()
    return data


def with_keypoints(data: dict[str, Any]) -> dict[str, Any]:
    for annotation in data["annotations"]:
        x, y, *_ = annotation["bbox"]
        annotation["keypoints"] = [x + 5, y + 2, 2, x + 2, y + 6, 2, 0, 0, 0]
    for category in data["categories"]:
        category["keypoints"] = KEYPOINTS
    return data


def write(folder: Path, data: dict[str, Any], *, mode: str = "RGB") -> tuple[Path, Path]:
    """(annotations, folder of images): the data with random images, but for records whose file exists."""
    images = folder / "images"
    images.mkdir(exist_ok=True)
    random = np.random.default_rng(0)
    for image in data["images"]:
        path = images / image["file_name"]
        if not path.exists():
            pixels = random.integers(0, 256, (image["height"], image["width"], 3), np.uint8)
            Image.fromarray(pixels).convert(mode).save(path)
    annotations = folder / "instances.json"
    annotations.write_text(json.dumps(data))
    return annotations, images
