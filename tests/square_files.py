"""A COCO-format data set of squares and discs, and a recipe that learns them, for tests of training."""

from __future__ import annotations

import json

import numpy as np
from PIL import Image

from keras_seg.recipe import load_recipe

SIDE = 96


def write_squares(folder, name: str, images: int, seed: int, categories=("square", "disc")) -> None:
    """Bright squares and discs on dark ground, as COCO annotations `name`.json and images in `name`."""
    rng = np.random.default_rng(seed)
    (folder / name).mkdir()
    records, annotations = [], []
    for k in range(1, images + 1):
        picture = rng.normal(40, 8, (SIDE, SIDE, 3))
        for place, (x, y) in enumerate([(8, 8), (52, 48)]):
            kind, side = (k + place) % 2, int(rng.integers(24, 36))
            rows, columns = np.mgrid[:side, :side]
            inside = (rows - side / 2 + 0.5) ** 2 + (columns - side / 2 + 0.5) ** 2 < side**2 / 4
            inside = inside if kind else np.ones_like(inside)
            picture[y : y + side, x : x + side][inside] = (200, 200, 60) if kind else (60, 120, 220)
            angles = np.linspace(0, 2 * np.pi, 16, endpoint=False)
            outline = np.stack([np.cos(angles), np.sin(angles)], 1) * side / 2 + side / 2 + [x, y]
            corners = np.float64([[x, y], [x + side, y], [x + side, y + side], [x, y + side]])
            annotations.append(
                {
                    "id": len(annotations) + 1, "image_id": k, "category_id": kind + 1, "iscrowd": 0,
                    "bbox": [x, y, side, side], "area": int(inside.sum()),
                    "segmentation": [(outline if kind else corners).ravel().tolist()],
                }
            )  # fmt: skip
        Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8)).save(folder / name / f"{k}.png")
        records.append({"id": k, "file_name": f"{k}.png", "height": SIDE, "width": SIDE})
    kinds = [{"id": k, "name": kind} for k, kind in enumerate(categories, start=1)]
    content = {"images": records, "annotations": annotations, "categories": kinds}
    (folder / f"{name}.json").write_text(json.dumps(content))


def recipe(steps: int = 4, **training):
    return load_recipe(
        {
            "schema": 1,
            "name": "tiny_detector",
            "summary": "for a test",
            "model": {
                "builder": "mask_rcnn", "class_names": ["square", "disc"], "backbone": "resnet18", "width": 8,
                "structure": "fpn", "fpn_channels": 16, "normalization": "group", "box_head_channels": 32,
                "mask_channels": 16, "proposals": 50, "detections": 10, "short_side": SIDE, "max_side": SIDE,
            },
            "data": {
                "reader": "coco", "annotations": "train.json", "images": "train", "batch_size": 2,
                "validation_annotations": "validation.json", "validation_images": "validation",
                "short_side": SIDE, "max_side": SIDE, "augmentation": {"turns": True},
            },
            "training": {
                "steps": steps,
                "optimizer": {"name": "adam", "learning_rate": 0.003, "clip_norm": 10},
                "evaluate_every": 100, "checkpoint_every": 2, "detector": {"region_samples": 32},
                "select": {"metric": "segm_AP50", "mode": "max"},
                **training,
            },
        }
    )  # fmt: skip
