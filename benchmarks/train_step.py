"""One training step of keras_seg's Mask R-CNN against torchvision's, in one run: `make bench-train-step`.

Forward, backward and SGD with momentum, on the same weights, images and objects, and on the same samples: both take the
first of those they could draw, so that they do the same work, and their losses and gradients are compared before anything is
timed.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path

import compare
import numpy as np
from compare import HERE, OURS
from PIL import Image
from unet import TORCH_ENVIRONMENT, TORCH_REQUIREMENTS

SETTINGS = {"torchvision": "plain", "torchvision, channels_last": "channels_last"}
# model, height, width, images, objects an image
TASKS = {
    "R50-FPN, batch 1": ("resnet50", 800, 1088, 1, 12),
    "R50-FPN, batch 2": ("resnet50", 800, 1088, 2, 12),
    "R18, narrow FPN, batch 4": ("resnet18", 256, 256, 4, 30),
}
SHARED = HERE.parent.parent / "shared"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tasks", nargs="*", default=[*TASKS], choices=TASKS)
    parser.add_argument("--only", nargs="*", help="leave out other contestants than these")
    parser.add_argument("--images", type=Path, default=SHARED / "data/coco_people/val2017")
    parser.add_argument(
        "--rule", type=Path, default=SHARED / "golden/weights.py", help="module that fills the weights"
    )
    parser.add_argument("--output", type=Path, default=HERE / "results", help="folder of train_step.*")
    args = parser.parse_args()
    names = [name for name in SETTINGS if args.only is None or name in args.only]
    torch_python = compare.environment(TORCH_ENVIRONMENT, TORCH_REQUIREMENTS)
    results = {"date": date.today().isoformat(), "machine": compare.machine(args.threads), "tables": {}}
    with tempfile.TemporaryDirectory() as folder:
        for task in args.tasks:
            backbone, *shape = TASKS[task]
            inputs = Path(folder) / "inputs.npz"
            write_inputs(inputs, args.images, *shape)
            options = ["--backbone", backbone, "--inputs", inputs, "--weights", Path(folder) / "weights.pth"]
            options += ["--threads", args.threads]
            peer = [torch_python, HERE / "train_step_torchvision.py"]
            line = [*peer, "plain", *options, "--write-weights", args.rule]
            subprocess.run([*map(str, line)], check=True)
            commands = {OURS: [sys.executable, HERE / "train_step_keras_seg.py", *options]}
            commands |= {name: [*peer, SETTINGS[name], *options] for name in names}
            results["tables"][task] = compare.compare(task, commands, args.rounds, 0, Path(folder))
    compare.write(results, report(results), args.output, "train_step")


def write_inputs(path: Path, folder: Path, height: int, width: int, images: int, objects: int) -> None:
    """Photographs of one size, uint8 [B, H, W, 3], and ellipses for objects: boxes float32 [B, G, 4], labels from 1,
    masks bool [B, G, H, W]."""
    files = sorted(folder.glob("*.jpg"))[:images]
    if len(files) < images:
        raise FileNotFoundError(f"{folder}: {len(files)} photographs (.jpg), the benchmark needs {images}")
    random = np.random.default_rng(0)
    pixels = [np.asarray(Image.open(f).convert("RGB").resize((width, height))) for f in files]
    masks = np.zeros((images, objects, height, width), bool)
    boxes = np.zeros((images, objects, 4), np.float32)
    for image in range(images):
        for entry in range(objects):
            # sides from a tenth to a half of the image's, as in COCO
            h, w = (int(side * 0.5 * random.uniform(0.2, 1)) for side in (height, width))
            y, x = random.integers(0, height - h), random.integers(0, width - w)
            rows, columns = np.mgrid[:h, :w]
            inside = ((rows + 0.5) / h - 0.5) ** 2 + ((columns + 0.5) / w - 0.5) ** 2 < 0.25
            masks[image, entry, y : y + h, x : x + w] = inside
            boxes[image, entry] = x, y, x + w, y + h
    labels = np.ones((images, objects), np.int32)
    np.savez(path, images=np.stack(pixels), masks=masks, boxes=boxes, labels=labels)


def report(results: dict) -> str:
    lines = [compare.machine_line(results)]
    for task, table in results["tables"].items():
        lines += ["", f"One training step, {task}.", ""]
        lines += [
            "| | seconds: median (range) | its time over keras_seg's | peak memory, MiB |",
            "|---|---|---|---|",
        ]
        for name, row in table["contestants"].items():
            median, low, high = (f(row["seconds"]) for f in (statistics.median, min, max))
            lines.append(
                f"| {name} | {median:.2f} ({low:.2f}-{high:.2f}) | {row['ratio']:.2f} | {row['MiB']:.0f} |"
            )
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
