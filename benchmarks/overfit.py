"""Can a detector learn a few photographs by heart? If not, something in its training is wrong: `make prove-training`.

A small network from random weights, by the recipe `overfit.yaml`, on four photographs of COCO (masks and keypoints) and on
the 24 of Penn-Fudan (masks); scored on the same photographs. Stops with status 1 if a figure stays below its bar.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from datetime import date
from pathlib import Path

import compare
from compare import HERE

RECIPE = HERE / "overfit.yaml"
PENNFUDAN = {f"data.{part}annotations": "instances_val.json" for part in ("", "validation_")}
PENNFUDAN |= {f"data.{part}images": "val" for part in ("", "validation_")}
# folder: (what, changes of the recipe, {figure: least value})
TASKS = {
    "coco_people": (
        "4 photographs of COCO, 14 people",
        {"model.keypoint_names": "coco_keypoints", "model.keypoint_channels": 64},
        {"segm_AP": 0.9, "keypoints_AP": 0.9},
    ),
    "pennfudan": ("24 photographs of Penn-Fudan, 60 people", PENNFUDAN, {"segm_AP": 0.8}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared/data")
    parser.add_argument("--only", nargs="*", choices=[*TASKS], default=[*TASKS])
    parser.add_argument("--steps", type=int, help="instead of the recipe's, for a quick look")
    parser.add_argument("--runs", type=Path, default=HERE.parent / "runs/overfit", help="folder of the runs")
    parser.add_argument(
        "--output", type=Path, default=HERE / "results", help="folder of overfit.json and overfit.md"
    )
    parser.add_argument("--resume", action="store_true", help="go on with runs that were stopped")
    args = parser.parse_args()
    results = {"date": date.today().isoformat(), "machine": compare.machine(2), "tasks": {}}
    for name in args.only:
        results["tasks"][name] = learn(name, args)
        compare.write(results, report(results), args.output, "overfit", show=False)
    print(report(results))
    failed = [
        f"{name}: {figure}"
        for name, task in results["tasks"].items()
        for figure, bar in TASKS[name][2].items()
        if task["figures"][figure] < bar
    ]
    if failed:
        sys.exit(f"not learnt by heart: {', '.join(failed)}")


def learn(name: str, args: argparse.Namespace) -> dict:
    from keras_seg.recipe import load_recipe
    from keras_seg.training import detectors, train

    _, changes, _ = TASKS[name]
    recipe = load_recipe(RECIPE).override({**changes, "name": name})
    began = time.monotonic()
    folder, run = args.data / name, args.runs / name
    if not args.resume:  # a proof is of the code as it is now
        shutil.rmtree(run, ignore_errors=True)
    model = train(recipe, folder, run, steps=args.steps, resume=args.resume, say=compare.say)
    minutes = (time.monotonic() - began) / 60
    block = recipe.data
    figures = detectors.score(model, folder / block.annotations, folder / block.images)
    steps = args.steps or recipe.training.steps
    return {"steps": steps, "batch": block.batch_size, "minutes": minutes, "figures": figures}


def report(results: dict) -> str:
    about = results["machine"]
    lines = [
        (
            f"{results['date']}, {about['cpu']}, {about['cores']} cores. From random weights; scored on what was trained on. "
            "Percent; the bar in brackets."
        ),
        "",
        "| data | steps of images | minutes | mask AP | mask AP50 | keypoint AP | box AP |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, task in results["tasks"].items():
        what, _, bars = TASKS[name]
        cells = []
        for figure in ("segm_AP", "segm_AP50", "keypoints_AP", "bbox_AP"):
            value, bar = task["figures"].get(figure), bars.get(figure)
            cells.append(
                "-" if value is None else f"{100 * value:.1f}" + (f" ({100 * bar:.0f})" if bar else "")
            )
        lines.append(
            f"| {what} | {task['steps']} of {task['batch']} | {task['minutes']:.1f} | {' | '.join(cells)} |"
        )
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
