"""The paper's claims that can be tried on small data, on nuclei: `make claims`.

RoIAlign against RoIPool (He et al. 2017, Tables 2c and 2d), a convolutional mask head against a perceptron (Table 2e), a
sigmoid for each class against a softmax over the classes (Table 2b): mask AP on the validation part, the same budget for
all, three seeds each, by the recipe `claims.yaml`. Whatever comes out is reported.

Every run that is finished is stored; another call goes on, in the middle of a run too. 15 runs of two to three minutes on two
quiet cores: about forty minutes.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path

import compare
import numpy as np
import yaml
from compare import HERE
from PIL import Image

RECIPE = HERE / "claims.yaml"
CLASSES = ["stained", "small", "large"]
LARGE = 200  # pixels from which a nucleus under fluorescence is "large": some 16 across
THREE = {"model.class_names": CLASSES}
# of each setting what differs from the recipe
SETTINGS = {
    "RoIAlign, convolutions": {},
    "RoIPool": {"model.roi": "pool"},
    "perceptron": {"model.mask_head": "mlp2"},
    "sigmoid, three classes": THREE,
    "softmax, three classes": {**THREE, "model.mask_loss": "softmax"},
}
CLAIMS = (
    (
        "RoIAlign above RoIPool",
        "RoIAlign, convolutions",
        "RoIPool",
        "2c, 2d: 30.3 to 26.9 (C4), 30.9 to 23.6 (C5)",
    ),
    ("convolutions above a perceptron", "RoIAlign, convolutions", "perceptron", "2e: 33.6 to 31.5 (FPN)"),
    ("sigmoid above softmax", "sigmoid, three classes", "softmax, three classes", "2b: 30.3 to 24.8 (C4)"),
)
PARTS = ("train", "val")
FIGURES = ("segm_AP", "segm_AP50", "segm_AP75", "bbox_AP")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared/data/nuclei")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each setting")
    parser.add_argument("--steps", type=int, help="instead of the recipe's, for a quick look")
    parser.add_argument("--only", nargs="*", choices=[*SETTINGS], help="these settings alone")
    parser.add_argument("--runs", type=Path, default=HERE.parent / "runs/claims", help="folder of the runs")
    parser.add_argument(
        "--output", type=Path, default=HERE / "results", help="folder of claims.json and claims.md"
    )
    parser.add_argument("--one", help=argparse.SUPPRESS)  # a run in a process of its own: SETTING,SEED
    args = parser.parse_args()
    args.runs /= hashlib.sha256(json.dumps(conditions(args)).encode()).hexdigest()[:8]
    if args.one:
        setting, _, seed = args.one.rpartition(",")
        train_one(setting, int(seed), args)
        return
    results = begin(args)
    todo = [(seed, name) for seed in range(args.seeds) for name in args.only or SETTINGS]
    for seed, name in todo:
        key = f"{name}, seed {seed}"
        if key not in results["runs"]:
            compare.say(f"{len(results['runs']) + 1} of {len(todo)}: {key}")
            # a process each: TensorFlow does not give back what it has traced
            subprocess.run([sys.executable, __file__, *sys.argv[1:], "--one", f"{name},{seed}"], check=True)
            results["runs"][key] = outcome(folder_of(args.runs, name, seed))
        compare.write(results, report(results), args.output, "claims", show=False)
    print(report(results))


def conditions(args: argparse.Namespace) -> dict:
    """What results depend on, beside the code: those of other conditions are not mixed."""
    return {
        "recipe": hashlib.sha256(RECIPE.read_bytes()).hexdigest(),
        "settings": SETTINGS,
        "steps": args.steps or yaml.safe_load(RECIPE.read_text())["training"]["steps"],
        "data": {
            p: hashlib.sha256((args.data / f"instances_{p}.json").read_bytes()).hexdigest() for p in PARTS
        },
    }


def begin(args: argparse.Namespace) -> dict:
    """The stored results, if they are of the same conditions; else new ones."""
    about, path = conditions(args), args.output / "claims.json"
    if path.exists():
        stored = json.loads(path.read_text())
        if stored["about"] == about:
            return stored
        differs = ", ".join(name for name in about if stored["about"].get(name) != about[name])
        raise SystemExit(f"{path}: has results of other {differs}: move it away, or choose another --output")
    return {"date": date.today().isoformat(), "machine": compare.machine(2), "about": about, "runs": {}}


def train_one(setting: str, seed: int, args: argparse.Namespace) -> None:
    from keras_seg.recipe import load_recipe
    from keras_seg.training import train

    changes = {**SETTINGS[setting], "training.seed": seed}
    if args.steps:
        warmup = min(args.steps, load_recipe(RECIPE).training.schedule.warmup_steps)
        changes |= {"training.steps": args.steps, "training.schedule.warmup_steps": warmup}
    if "model.class_names" in changes:
        fields = ("data.annotations", "data.validation_annotations")
        changes |= {
            f: str(split(args.data, p, args.runs).absolute()) for f, p in zip(fields, PARTS, strict=True)
        }
    folder = folder_of(args.runs, setting, seed)
    began = time.monotonic()
    train(load_recipe(RECIPE).override(changes), args.data, folder, resume=True, say=compare.say)
    (folder / "minutes.txt").write_text(f"{(time.monotonic() - began) / 60:.2f}\n")


def folder_of(runs: Path, setting: str, seed: int) -> Path:
    return runs / f"{setting.replace(', ', '_').replace(' ', '_').lower()}_{seed}"


def outcome(folder: Path) -> dict[str, float]:
    """The figures of a finished run, of its last step."""
    with open(folder / "history.csv", newline="") as file:
        judged = [row for row in csv.DictReader(file) if row.get("segm_AP")]
    minutes = float((folder / "minutes.txt").read_text())
    return {**{name: float(judged[-1][name]) for name in FIGURES}, "minutes": minutes}


def split(data: Path, part: str, folder: Path) -> Path:
    """The annotations with three classes, as a file in `folder`: nuclei of stained tissue (the image has colours), and
    small and large ones under fluorescence (the image is grey)."""
    content = json.loads((data / f"instances_{part}.json").read_text())
    coloured = {image["id"]: has_colours(data / part / image["file_name"]) for image in content["images"]}
    for one in content["annotations"]:
        name = "stained" if coloured[one["image_id"]] else "large" if one["area"] >= LARGE else "small"
        one["category_id"] = 1 + CLASSES.index(name)
    content["categories"] = [{"id": k, "name": name} for k, name in enumerate(CLASSES, start=1)]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"three_classes_{part}.json"
    path.write_text(json.dumps(content))
    return path


def has_colours(file: Path) -> bool:
    """Whether red, green and blue differ by half a grey value in the mean; of grey images they are equal."""
    pixels = np.asarray(Image.open(file).convert("RGB")).astype(int)
    return float(np.ptp(pixels, axis=2).mean()) > 0.5


def report(results: Mapping) -> str:
    runs = results["runs"]
    seeds = sorted({int(key.rpartition(" ")[2]) for key in runs})
    about = results["machine"]
    minutes = sum(run["minutes"] for run in runs.values())
    lines = [
        (
            f"{results['date']}, {about['cpu']}, {about['cores']} cores. {len(runs)} runs of `claims.yaml`, {results['about']['steps']} steps each, "
            f"{minutes:.0f} minutes. Nuclei, validation part, at most 400 detections an image and class; mean ± standard deviation over "
            "seeds, percent."
        ),
        "",
        "| setting | seeds | mask AP | mask AP50 | mask AP75 | box AP |",
        "|---|---|---|---|---|---|",
    ]
    for name in SETTINGS:
        found = [runs[key] for seed in seeds if (key := f"{name}, seed {seed}") in runs]
        if found:
            cells = (spread([run[figure] for run in found]) for figure in FIGURES)
            lines.append(f"| {name} | {len(found)} | {' | '.join(cells)} |")
    lines += [
        "",
        "| claim | difference in mask AP, seed by seed | in AP75 | paper, mask AP (table) |",
        "|---|---|---|---|",
    ]
    for claim, better, worse, paper in CLAIMS:
        pairs = [
            (runs[a], runs[b])
            for seed in seeds
            if (a := f"{better}, seed {seed}") in runs and (b := f"{worse}, seed {seed}") in runs
        ]
        if pairs:
            cells = (spread([a[f] - b[f] for a, b in pairs], "+") for f in ("segm_AP", "segm_AP75"))
            lines.append(f"| {claim} | {' | '.join(cells)} | {paper} |")
    lines += [
        "",
        (
            f"Three classes: nuclei in images with colours ({CLASSES[0]}), in grey ones of less than {LARGE} pixels "
            f"({CLASSES[1]}) and of more ({CLASSES[2]}). With one class a softmax is a sigmoid."
        ),
        "",
    ]
    return "\n".join(lines)


def spread(values: Sequence[float], sign: str = "") -> str:
    """Percent: mean ± standard deviation."""
    deviation = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):{sign}.1f}{deviation}"


if __name__ == "__main__":
    main()
