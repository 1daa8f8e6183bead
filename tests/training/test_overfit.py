"""A detector that cannot learn two images by heart has something wrong in its training (the longer proof:
benchmarks/overfit.py)."""

from __future__ import annotations

import json

import numpy as np
from PIL import Image

from keras_seg.ops.rle import decode_rle, encode_mask
from keras_seg.recipe import load_recipe
from keras_seg.training import detectors, train

SIDE, SCALE = 64, 2.0
LEAST = 30  # pixels of a nucleus that counts; smaller rests at the crop's border are crowds


def write_crops(nuclei, folder, images: int = 2) -> None:
    """Crops of the first images with nuclei of some size, as COCO annotations."""
    content = json.loads((nuclei / "instances_train.json").read_text())
    objects: dict[int, list[dict]] = {}
    for one in content["annotations"]:
        objects.setdefault(one["image_id"], []).append(one)
    chosen = [i for i in content["images"] if 400 < np.median([o["area"] for o in objects[i["id"]]]) < 700][
        :images
    ]
    (folder / "crops").mkdir()
    records, annotations = [], []
    for k, image in enumerate(chosen, start=1):
        masks = np.stack([decode_rle(one["segmentation"]) for one in objects[image["id"]]])
        y, x = (int(c) for c in np.argwhere(masks[0]).mean(0))
        y, x = (int(np.clip(c - SIDE // 2, 0, image[s] - SIDE)) for c, s in ((y, "height"), (x, "width")))
        pixels = np.asarray(Image.open(nuclei / "train" / image["file_name"]).convert("RGB"))
        Image.fromarray(pixels[y : y + SIDE, x : x + SIDE]).save(folder / "crops" / f"{k}.png")
        records.append({"id": k, "file_name": f"{k}.png", "height": SIDE, "width": SIDE})
        for mask in masks[:, y : y + SIDE, x : x + SIDE]:
            if mask.any():
                rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
                box = [columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1]
                annotations.append(
                    {
                        "id": len(annotations) + 1, "image_id": k, "category_id": 1, "area": int(mask.sum()),
                        "iscrowd": int(mask.sum() < LEAST), "bbox": [*map(int, box)], "segmentation": encode_mask(mask),
                    }
                )  # fmt: skip
    content = {"images": records, "annotations": annotations, "categories": [{"id": 1, "name": "nucleus"}]}
    (folder / "crops.json").write_text(json.dumps(content))


def test_two_crops_are_learnt_by_heart(shared, tmp_path):
    write_crops(shared / "data/nuclei", tmp_path)
    recipe = load_recipe(
        {
            "schema": 1, "name": "by_heart", "summary": "for a test",
            "model": {
                "builder": "mask_rcnn", "class_names": ["nucleus"], "backbone": "resnet18", "width": 16,
                "fpn_channels": 32, "normalization": "group", "anchor_sizes": [16, 32, 64, 128, 256],
                "box_head_channels": 64, "mask_channels": 32, "proposals": 100, "detections": 30, "scale": SCALE,
            },
            "data": {
                "reader": "coco", "annotations": "crops.json", "images": "crops", "batch_size": 2, "short_side": None,
                "augmentation": {"flip": 0, "zoom": [SCALE, SCALE]},
            },
            "training": {
                "steps": 200, "checkpoint_every": 1000,
                "optimizer": {"name": "adam", "learning_rate": 0.003, "clip_norm": 10},
                "schedule": {"warmup_steps": 10, "decay_fraction": 0.5},
                "detector": {"region_samples": 48, "region_positive_fraction": 0.5, "proposals": 100},
            },
        }
    )  # fmt: skip
    model = train(recipe, tmp_path, tmp_path / "run", say=lambda line: None)
    figures = detectors.score(model, tmp_path / "crops.json", tmp_path / "crops")
    assert figures["segm_AP"] > 0.9 and figures["bbox_AP"] > 0.9, figures
