"""The demo's second half: nuclei found by `maskrcnn_nuclei`, scored and drawn."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import keras_seg

if TYPE_CHECKING:
    from keras_seg.models.mask_rcnn import MaskRCNN

MODEL = "maskrcnn_nuclei"
ANNOTATIONS, IMAGES = "instances_val.json", "val"
DETECTIONS = (400, 100)  # an image, at which it is scored; the first is the most that the recipe gives
SURE = 0.5  # score from which one is counted and drawn
DRAWN = 3  # images, spread over the range of how many nuclei they have


def run(model: MaskRCNN, data: Path, output: Path) -> dict[str, float]:
    """Find the nuclei of the validation images, print their average precision, draw some images.

    data: folder with instances_val.json and the folder val. output: folder for nuclei.png.

    Returns "bbox_AP", "bbox_AP50", "segm_AP", "segm_AP50" at as many detections an image as the model gives. Raises
    FileNotFoundError without the data, and what `evaluate.detections` raises.
    """
    from keras_seg import evaluate
    from keras_seg.metrics import coco_data

    file = data / ANNOTATIONS
    if not file.is_file():
        raise FileNotFoundError(
            f"{file} is not there. The demo finds nuclei in images of the 2018 Data Science Bowl: put their COCO "
            f"annotations {ANNOTATIONS} and the folder {IMAGES} into a folder and give that with --nuclei"
        )
    content = json.loads(file.read_text())
    truth = coco_data.read_annotations(content, "bbox")
    start = time.perf_counter()
    find = evaluate.finder(model, max_detections=model.detections)
    found = dict(evaluate.detections(find, content, data / IMAGES))
    seconds = time.perf_counter() - start
    count = sum(len(one.filter(SURE)) for one in found.values())
    print(f"found {count} nuclei in {len(found)} images of {data / IMAGES}, in {seconds:.1f} s")

    results = [
        line for image, instances in found.items() for line in coco_data.to_results(image, instances, truth)
    ]
    figures: dict[str, float] = {}
    for most in DETECTIONS:
        scores = evaluate.score(results, content, ["bbox", "segm"], max_detections=most)
        shown = {f"{kind}_{name}": scores[kind].figures[name] for kind in scores for name in ("AP", "AP50")}
        figures = figures or shown
        print(f"  at {most} an image:  " + "  ".join(f"{name} {value:.3f}" for name, value in shown.items()))

    picture = output / "nuclei.png"
    output.mkdir(parents=True, exist_ok=True)
    by_count = sorted(found, key=lambda image: len(found[image]))
    drawn = [by_count[int(place)] for place in np.linspace(0, len(by_count) - 1, DRAWN + 2)[1:-1]]
    panels = []
    for image in drawn:
        sure = found[image].filter(SURE)
        path = data / IMAGES / truth.images[image]["file_name"]
        panels.append(
            (f"{len(sure)} nuclei", keras_seg.visualize.draw(path, sure, boxes=False, labels=False))
        )
    keras_seg.visualize.side_by_side(panels).save(picture)
    print(f"picture:    {picture}")
    return figures
