"""SAM against keras_seg's small models, on the same images by the same figures: `.venv/bin/python benchmarks/sam.py`.

- Nuclei: `maskrcnn_nuclei` and SAM on the 56 validation images, COCO's average precision of masks at 400 an image.
- Neurons: a U-Net and SAM on slices 20-24 of ISBI 2012, the challenge's figures. Give weights that were not trained on these
  slices (`make train-isbi`, --unet-weights runs/isbi_rounds.weights.h5): those that ship were trained on all 25, which the
  table then says.

SAM must be told where to look, and how decides what is compared:

- boxes, points: from the ground truth, the box of each object or the pixel deepest inside. SAM is told how many objects there are
  and where, which is what a detector has to find; it says what SAM is as a tool in an annotator's hand.
- grid: SAM's own automatic masks, from 32x32 points. No hint, as keras_seg has none.

SAM is KerasHub's, in an environment of its own (benchmarks/.venv-hub, some GB). Its weights are a download from Kaggle or Hugging
Face: `--sam` takes a preset, or the folder of one where there is no network. Without them this ends and says so.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import compare
import numpy as np
from compare import HERE

ENVIRONMENT, REQUIREMENTS = (
    ".venv-hub",
    ["keras-hub==0.32.0", "keras==3.15.1", "tensorflow==2.21.0", "numpy==2.4.6"],
)
PROMPTS = ("boxes", "points", "grid")
SLICES = range(20, 25)
DETECTIONS = 400
NUCLEI_FIGURES = ("AP", "AP50", "AP75", "AR400")
NEURON_FIGURES = ("pixel_error", "rand_error", "v_rand", "v_info")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sam", default="sam_base_sa1b", help="a preset of KerasHub, or the folder of one")
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared/data")
    parser.add_argument("--prompts", nargs="+", choices=PROMPTS, default=list(PROMPTS))
    parser.add_argument("--grid", type=int, default=32, help="points along each side of an image")
    parser.add_argument("--images", type=int, help="look at the first so many of each data set alone")
    parser.add_argument("--unet-weights", default="pretrained")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=HERE / "results", help="folder of sam.json and sam.md")
    args = parser.parse_args()
    tasks = {"nuclei": nuclei(args), "neurons": neurons(args)}
    found = ask_sam(
        args, [pair for task in tasks.values() for pair in zip(task.images, task.truth, strict=True)]
    )
    results = {
        "date": date.today().isoformat(),
        "machine": compare.machine(args.threads),
        "sam": args.sam,
        "unet_trained_on_these_slices": args.unet_weights == "pretrained",
    }
    first = 0
    for name, task in tasks.items():
        last = first + len(task.images)
        results[name] = {task.model: task.score(task.ours())}
        for prompt in args.prompts:
            results[name][f"SAM, {prompt}"] = task.score(task.answer(found[prompt][first:last]))
        first = last
    compare.write(results, report(results), args.output, "sam")


@dataclass
class Task:
    """One data set: its images, the objects in them, and how an answer is scored."""

    model: str
    images: list[np.ndarray]  # uint8 [H, W, 3]
    truth: list[np.ndarray]  # bool [N, H, W]
    ours: Callable[[], Any]  # the answer of keras_seg's model
    answer: Callable[[list[tuple[np.ndarray, np.ndarray]]], Any]  # what SAM found, as such an answer
    score: Callable[[Any], dict[str, float]]


def nuclei(args: argparse.Namespace) -> Task:
    from keras_seg import evaluate, zoo
    from keras_seg.detect import pixels_of
    from keras_seg.metrics import coco, coco_data

    folder = args.data / "nuclei"
    content, _ = coco_data.load(folder / "instances_val.json", "annotations")
    content = first_images(content, args.images)

    def ours() -> list[dict]:
        model = zoo.load("maskrcnn_nuclei")
        find = evaluate.finder(model, max_detections=model.detections)
        return evaluate.results(find, content, folder / "val")

    def answer(found: list[tuple[np.ndarray, np.ndarray]]) -> list[dict]:
        pairs = zip(content["images"], found, strict=True)
        return [result for image, masks in pairs for result in as_results(image["id"], *masks)]

    return Task(
        "maskrcnn_nuclei",
        [pixels_of(folder / "val" / one["file_name"], one["file_name"]) for one in content["images"]],
        [instances_of(content, one) for one in content["images"]],
        ours,
        answer,
        lambda results: coco.score(content, results, "segm", max_detections=DETECTIONS).figures,
    )


def neurons(args: argparse.Namespace) -> Task:
    import tifffile
    from scipy import ndimage

    from keras_seg import segment, zoo
    from keras_seg.metrics import isbi

    slices = list(SLICES)[: args.images]
    volume, labels = (
        tifffile.imread(args.data / f"isbi2012/train-{name}.tif")[slices] for name in ("volume", "labels")
    )
    truth = []
    for one in labels:
        numbered, count = ndimage.label(one > 0)
        truth.append(np.stack([numbered == k for k in range(1, count + 1)]))
    return Task(
        "unet_isbi2012",
        [np.repeat(one[..., None], 3, -1) for one in volume],
        truth,
        lambda: segment(zoo.load("unet_isbi2012", args.unet_weights), volume)[..., 1],
        lambda found: np.stack([interior(*one, labels.shape[1:]) for one in found]),
        lambda inside: isbi.evaluate(inside, labels, NEURON_FIGURES),
    )


def first_images(content: Mapping, count: int | None) -> dict:
    images = content["images"][:count]
    ids = {image["id"] for image in images}
    annotations = [one for one in content["annotations"] if one["image_id"] in ids]
    return {**content, "images": images, "annotations": annotations}


def instances_of(content: Mapping, image: Mapping) -> np.ndarray:
    """bool [N, H, W], the objects of an image."""
    from pycocotools import mask as coco_masks

    size = image["height"], image["width"]
    masks = [np.zeros((0, *size), bool)]
    for one in content["annotations"]:
        if one["image_id"] == image["id"]:
            run_lengths = one["segmentation"]
            if not isinstance(run_lengths, dict):
                run_lengths = coco_masks.merge(coco_masks.frPyObjects(run_lengths, *size))
            masks.append(coco_masks.decode(run_lengths).astype(bool)[None])
    return np.concatenate(masks)


def prompts_of(masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of objects, bool [N, H, W]: boxes [N, 4] of x1, y1, x2, y2, and points [N, 2] of x, y, deepest inside each."""
    from scipy import ndimage

    boxes, points = np.zeros((len(masks), 4), np.float32), np.zeros((len(masks), 2), np.float32)
    for n, mask in enumerate(masks):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        boxes[n] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
        depth = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
        y, x = np.unravel_index(np.argmax(depth), depth.shape)
        points[n] = x, y
    return boxes, points


def ask_sam(
    args: argparse.Namespace, images: Sequence[tuple[np.ndarray, np.ndarray]]
) -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
    """{prompt: for each image masks bool [N, H, W] and predicted overlaps [N]}; ends the program where SAM ends.

    images: each with its objects, bool [N, H, W].
    """
    python = compare.environment(ENVIRONMENT, REQUIREMENTS)
    with tempfile.TemporaryDirectory() as folder:
        inputs, outputs = Path(folder) / "inputs.npz", Path(folder) / "outputs.npz"
        arrays = {}
        for n, (image, masks) in enumerate(images):
            arrays[f"image_{n}"] = image.astype(np.uint8)
            arrays[f"boxes_{n}"], arrays[f"points_{n}"] = prompts_of(masks)
        np.savez(inputs, **arrays)
        command = [
            python,
            HERE / "sam_kerashub.py",
            "--sam",
            args.sam,
            "--inputs",
            inputs,
            "--outputs",
            outputs,
        ]
        command += ["--prompts", *args.prompts, "--grid", args.grid, "--threads", args.threads]
        done = subprocess.run([*map(str, command)], check=False)
        if done.returncode:
            raise SystemExit("sam: nothing was compared, see above")
        answers = np.load(outputs)
        found = {}
        for prompt in args.prompts:
            found[prompt] = []
            for n, (image, _) in enumerate(images):
                bits, size = answers[f"masks_{n}_{prompt}"], image.shape[:2]
                masks = np.unpackbits(bits, axis=1, count=size[0] * size[1]).reshape(-1, *size).astype(bool)
                found[prompt].append((masks, answers[f"scores_{n}_{prompt}"]))
    return found


def as_results(image_id: int, masks: np.ndarray, scores: np.ndarray) -> list[dict]:
    """COCO results of masks, bool [N, H, W]; empty ones are none."""
    from pycocotools import mask as coco_masks

    results = []
    for mask, score in zip(masks, scores, strict=True):
        if mask.any():
            run_lengths = coco_masks.encode(np.asfortranarray(mask.astype(np.uint8)))
            segmentation = {"size": [*mask.shape], "counts": run_lengths["counts"].decode()}
            results.append(
                {"image_id": image_id, "category_id": 1, "score": float(score), "segmentation": segmentation}
            )
    return results


def interior(masks: np.ndarray, scores: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Masks of cells as the interior that the challenge scores: uint8 [H, W], 1 inside.

    Masks are painted by rising predicted overlap, so that the surest lie on top; where two cells touch, and at the edge of
    each, is membrane, one pixel wide on either side.
    """
    from scipy import ndimage

    painted = np.zeros(size, np.int32)
    for number in np.argsort(scores, kind="stable"):
        painted[masks[number]] = number + 1
    edges = ndimage.grey_dilation(painted, 3) != ndimage.grey_erosion(painted, 3)
    return ((painted > 0) & ~edges).astype(np.uint8)


def report(results: Mapping) -> str:
    about = results["machine"]
    lines = [
        f"{results['date']}, {about['cpu']}, {about['cores']} cores. SAM: {results['sam']}, by KerasHub.",
        "",
    ]
    tables = {"Nuclei, mask AP and recall in percent": ("nuclei", NUCLEI_FIGURES, 100)}
    seen = ", on which this U-Net was trained too" if results["unet_trained_on_these_slices"] else ""
    tables[f"Neurons, slices {SLICES[0]}-{SLICES[-1]}{seen}"] = ("neurons", NEURON_FIGURES, 1)
    for title, (name, figures, factor) in tables.items():
        lines += [f"| {title} | {' | '.join(figures)} |", "|---" * (1 + len(figures)) + "|"]
        for contestant, row in results[name].items():
            cells = (f"{factor * row[figure]:.{1 if factor > 1 else 4}f}" for figure in figures)
            lines.append(f"| {contestant} | {' | '.join(cells)} |")
        lines.append("")
    lines.append(
        "boxes, points: SAM is told where each object of the ground truth lies; grid: it is told nothing."
    )
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
