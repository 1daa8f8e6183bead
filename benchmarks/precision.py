"""What `precision="bfloat16"` changes in results: `make bench-precision`.

Detections and average precision of a trained detector, and ISBI's scores of a trained U-Net, in both precisions.
"""

from __future__ import annotations

import argparse
import itertools
import os
from datetime import date
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import compare
import numpy as np
from compare import HERE

DATA = HERE.parent.parent / "shared/data"
PRECISIONS = ("float32", "bfloat16")
SAME = 0.5  # overlap from which two detections are taken for the same object
UNET_SCORES = ("pixel_error", "rand_error", "v_rand")
SLICES = slice(20, 25)  # which unet_isbi2012 is judged on


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--detector", default="maskrcnn_nuclei", help="of nuclei: a recipe of the zoo, or a file"
    )
    parser.add_argument("--weights", default="pretrained")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument(
        "--output", type=Path, default=HERE / "results", help="folder of precision.json and precision.md"
    )
    args = parser.parse_args()
    nuclei = args.data / "nuclei"
    results = {
        "date": date.today().isoformat(),
        "machine": compare.machine(os.cpu_count()),
        "unet": unet(args.data / "isbi2012"),
    }
    found = detector(args.detector, args.weights, nuclei / "instances_val.json", nuclei / "val")
    results |= {"name": Path(args.detector).stem, "detector": found}
    compare.write(results, report(results), args.output, "precision")


def detector(name: str, weights: str, annotations: Path, images: Path) -> dict:
    """Figures in each precision, and how far detections of the same object are apart."""
    from keras_seg import evaluate, zoo
    from keras_seg.metrics import coco_data

    model = zoo.load(name, weights)
    content, _ = coco_data.load(annotations, "annotations")
    truth = coco_data.read_annotations(content, "bbox")
    found, scores = {}, {}
    for precision in PRECISIONS:
        find = evaluate.finder(model, max_detections=model.detections, precision=precision)
        found[precision] = dict(evaluate.detections(find, content, images))
        lines = [
            line
            for image, one in found[precision].items()
            for line in coco_data.to_results(image, one, truth)
        ]
        figures = evaluate.score(lines, content, ["bbox", "segm"], max_detections=model.detections)
        scores[precision] = {kind: figures[kind].figures for kind in figures}
    return {"scores": scores, "differences": differences(*(found[p] for p in PRECISIONS))}


def differences(exact: dict, rounded: dict) -> dict[str, float]:
    """How many sure detections (a score of 0.5 or more) have no counterpart, and how far those that have one are from it."""
    from keras_seg.ops.boxes import pairwise_iou

    boxes, scores, count = [], [], 0
    for image, one in exact.items():
        other, sure = rounded[image], np.flatnonzero(one.scores >= 0.5)
        count += len(sure)
        if not len(sure) or not len(other):
            continue
        overlap = pairwise_iou(one.boxes[sure], other.boxes).numpy()
        kept = overlap.max(1) >= SAME
        mine, theirs = sure[kept], overlap.argmax(1)[kept]
        boxes.extend(np.abs(one.boxes[mine] - other.boxes[theirs]).max(1))
        scores.extend(np.abs(one.scores[mine] - other.scores[theirs]))
    if not boxes:
        raise RuntimeError("no detection with a score of 0.5 that both have: is the model trained?")
    found = {"detections": count, "missed": count - len(boxes)}
    for name, values in (("box", boxes), ("score", scores)):
        found |= {
            f"{name}, median": float(np.median(values)),
            f"{name}, 95%": float(np.percentile(values, 95)),
        }
    return found


def unet(folder: Path) -> dict:
    """ISBI's scores in each precision, one orientation, and the differences of probabilities."""
    from keras_seg import segment, zoo
    from keras_seg.data.images import read_stack
    from keras_seg.metrics import isbi

    model = zoo.load("unet_isbi2012")
    volume, labels = (read_stack(folder / f"train-{name}.tif")[SLICES] for name in ("volume", "labels"))
    found = {p: segment(model, volume, rotations=1, precision=p, progress=False) for p in PRECISIONS}
    apart = np.abs(found["bfloat16"] - found["float32"])
    scores = {p: isbi.evaluate(one[..., 1], labels, UNET_SCORES) for p, one in found.items()}
    return {"scores": scores, "differences": {"mean": float(apart.mean()), "largest": float(apart.max())}}


def report(results: dict) -> str:
    """The tables as Markdown."""
    network = results["unet"]
    lines = [
        f"{results['date']}, {results['machine']['cpu']}.",
        "",
        "| | float32 | bfloat16 |",
        "|---|---|---|",
    ]
    for name in UNET_SCORES:
        values = [network["scores"][p][name] for p in PRECISIONS]
        lines.append(f"| unet_isbi2012, {name} | {values[0]:.4f} | {values[1]:.4f} |")
    for kind, name in itertools.product(("bbox", "segm"), ("AP", "AP50", "AP75")):
        values = [results["detector"]["scores"][p][kind][name] for p in PRECISIONS]
        lines.append(f"| {results['name']}, {kind} {name} | {values[0]:.4f} | {values[1]:.4f} |")
    apart = network["differences"]
    probabilities = f"U-Net's probabilities: {apart['mean']:.1e} on average, {apart['largest']:.3f} at most."
    return "\n".join([*lines, "", detections_line(results["detector"]["differences"]), probabilities, ""])


def detections_line(apart: dict[str, float]) -> str:
    text = f"Of {apart['detections']} detections with a score of 0.5 or more, {apart['missed']} have no counterpart with an "
    text += f"overlap of {SAME}; of the others' boxes the side that moved most did by {apart['box, median']:.2f} px (median; 95%: "
    text += f"{apart['box, 95%']:.2f}), the scores changed by {apart['score, median']:.4f} (95%: {apart['score, 95%']:.4f})."
    return text


if __name__ == "__main__":
    main()
