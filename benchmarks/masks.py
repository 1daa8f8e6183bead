"""Mask probabilities of a hundred detections to COCO's run lengths: keras_seg against torchvision's pasting, a threshold and
pycocotools' encoding, in one run: `make bench-masks`."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path

import compare
import numpy as np
from compare import HERE, OURS
from unet import TORCH_ENVIRONMENT, TORCH_REQUIREMENTS

PEER = "torchvision and pycocotools"
PYCOCOTOOLS = "pycocotools==2.0.11"
SIZE = (800, 1205)  # height, width of the image, pixels
CELLS = 28  # a side of a mask
SIDES = (16, 500)  # of a box, pixels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--detections", type=int, default=100)
    parser.add_argument(
        "--output", type=Path, default=HERE / "results", help="folder of masks.json and masks.md"
    )
    args = parser.parse_args()
    python = compare.environment(TORCH_ENVIRONMENT, TORCH_REQUIREMENTS)
    add_pycocotools(python)
    results = {"date": date.today().isoformat(), "machine": compare.machine(args.threads), "tables": {}}
    with tempfile.TemporaryDirectory() as folder:
        inputs = Path(folder) / "inputs.npz"
        write_inputs(inputs, args.detections)
        contestants = commands(python, inputs, args.threads)
        table = compare.compare("masks", contestants, args.rounds, 0, Path(folder), parts=False)
        results["tables"]["masks"] = table
    compare.write(results, report(results, args.detections), args.output, "masks")


def add_pycocotools(python: Path) -> None:
    """Into the peer's environment, which other benchmarks share."""
    if subprocess.run([python, "-c", "import pycocotools"], capture_output=True, check=False).returncode:
        compare.say(f"installing {PYCOCOTOOLS}")
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, PYCOCOTOOLS], check=True)


def commands(python: Path, inputs: Path, threads: int) -> dict[str, list]:
    """The contestants' command lines."""
    options = ["--inputs", inputs, "--threads", threads]
    return {
        OURS: [sys.executable, HERE / "masks_keras_seg.py", *options],
        PEER: [python, HERE / "masks_torchvision.py", *options],
    }


def write_inputs(path: Path, count: int, size: tuple[int, int] = SIZE) -> None:
    """Boxes of all sizes with masks of one blob each, its outline wavy: a sigmoid of the distance to it."""
    random = np.random.default_rng(0)
    sides = np.exp(random.uniform(*np.log(SIDES), (count, 2)))
    corner = random.uniform(size=(count, 2)) * np.maximum(np.array(size[::-1]) - sides, 1)
    boxes = np.concatenate([corner, np.minimum(corner + sides, size[::-1])], axis=1).astype(np.float32)
    y, x = np.mgrid[:CELLS, :CELLS] / (CELLS - 1) * 2 - 1
    angle, distance = np.arctan2(y, x), np.hypot(x, y)
    phases, waves = random.uniform(0, 2 * np.pi, (count, 1, 1)), random.integers(2, 7, (count, 1, 1))
    radius = 0.8 + 0.15 * np.sin(waves * angle + phases)
    masks = 1 / (1 + np.exp(-12 * (radius - distance) - random.normal(0, 0.4, (count, CELLS, CELLS))))
    np.savez(path, masks=masks.astype(np.float32), boxes=boxes, size=np.array(size))


def report(results: dict, count: int) -> str:
    """The table as Markdown, in milliseconds."""
    lines = [
        compare.machine_line(results),
        "",
        f"{count} masks of {CELLS}x{CELLS} probabilities to the run lengths of an image of {SIZE[0]}x{SIZE[1]} pixels.",
        "",
        "| | milliseconds: median (range) | its time over keras_seg's | peak memory, MiB |",
        "|---|---|---|---|",
    ]
    for name, row in results["tables"]["masks"]["contestants"].items():
        low, *_, high = sorted(row["seconds"])
        median = float(np.median(row["seconds"]))
        lines.append(
            f"| {name} | {1e3 * median:.0f} ({1e3 * low:.0f}-{1e3 * high:.0f}) | {row['ratio']:.1f} | {row['MiB']:.0f} |"
        )
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
