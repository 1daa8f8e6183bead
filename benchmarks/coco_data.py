"""Images per second from COCO-format files to a detector's padded batch, against torch `DataLoader`s: `make
bench-data`.

Two loaders in the peer's environment, with the same photographs, annotations, sizes, batches and number of workers:
one does what torchvision's detection reference does (bitmaps of all masks, float images, resizing in float), one what
Detectron2's does (Pillow's resizing of 8 bits, polygons stay polygons).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import compare
from compare import HERE, OURS, Worker
from unet import TORCH_ENVIRONMENT, TORCH_REQUIREMENTS

SHARED = HERE.parent.parent / "shared"
PEERS = {"torch DataLoader, as torchvision": "torchvision", "torch DataLoader, as Detectron2": "detectron2"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--short-side", type=int, default=800)
    parser.add_argument("--batches", type=int, default=40, help="a turn")
    parser.add_argument(
        "--annotations", type=Path, default=SHARED / "data/coco_people/person_keypoints_val2017.json"
    )
    parser.add_argument("--images", type=Path, default=SHARED / "data/coco_people/val2017")
    parser.add_argument(
        "--output", type=Path, default=HERE / "results", help="folder of coco_data.json and .md"
    )
    args = parser.parse_args()
    torch_python = compare.environment(TORCH_ENVIRONMENT, TORCH_REQUIREMENTS)
    with tempfile.TemporaryDirectory() as folder:
        annotations = repeated(args.annotations, Path(folder), 16)
        options = ["--annotations", annotations, "--images", args.images.resolve(), "--batch", args.batch]
        options += ["--short-side", args.short_side, "--workers", args.workers, "--batches", args.batches]
        commands = {OURS: [sys.executable, HERE / "coco_data_keras_seg.py", *options]}
        for name, kind in PEERS.items():
            commands[name] = [torch_python, HERE / "coco_data_torch.py", kind, *options]
        results = run(commands, args)
    compare.write(results, report(results, args), args.output, "coco_data")


def repeated(path: Path, folder: Path, times: int) -> Path:
    """The annotations `times` over, each image under so many ids."""
    data = json.loads(path.read_text())
    many = {"categories": data["categories"], "images": [], "annotations": []}
    places = {image["id"]: k for k, image in enumerate(data["images"])}
    for copy in range(times):
        offset = copy * len(places) + 1
        many["images"] += [{**image, "id": offset + places[image["id"]]} for image in data["images"]]
        many["annotations"] += [
            {**a, "id": len(many["annotations"]) + k + 1, "image_id": offset + places[a["image_id"]]}
            for k, a in enumerate(data["annotations"])
        ]
    (folder / "instances.json").write_text(json.dumps(many))
    return folder / "instances.json"


def run(commands: dict[str, list], args: argparse.Namespace) -> dict:
    workers = []
    for name, command in commands.items():
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        workers.append(Worker(name, subprocess.Popen([*map(str, command)], **pipes)))
    compare.say("comparing what the loaders give")
    given = {worker.name: worker.ask("check")["result"] for worker in workers}
    for worker in workers[1:]:
        check_equal(worker.name, given[worker.name], given[OURS], exact="Detectron2" in worker.name)
    seconds: dict[str, list[float]] = {worker.name: [] for worker in workers}
    for turn in range(args.rounds + 1):  # the first is not counted
        compare.say(f"round {turn} of {args.rounds}")
        for worker in workers:
            time.sleep(compare.REST)
            taken = worker.ask("run")["seconds"]
            if turn:
                seconds[worker.name].append(taken)
    images = args.batch * args.batches
    table = {
        worker.name: {
            "version": worker.ask("version")["result"],
            "images_per_second": [images / s for s in seconds[worker.name]],
            "ratio": statistics.median(
                b / a for a, b in zip(seconds[OURS], seconds[worker.name], strict=True)
            ),
        }
        for worker in workers
    }
    for worker in workers:
        worker.close()
    return {
        "date": date.today().isoformat(),
        "machine": compare.machine(args.workers),
        "tables": {"data": {"contestants": table}},
    }


def check_equal(name: str, given: dict, expected: dict, *, exact: bool) -> None:
    """given: {image id: {"size", "boxes", "sum": of all pixels, 0-255}}. RuntimeError if another loader gives
    others."""
    if given.keys() != expected.keys():
        raise RuntimeError(f"{name}: gives other images than {OURS}")
    for number, item in given.items():
        ours = expected[number]
        pairs = [
            (a, b)
            for p, q in zip(item["boxes"], ours["boxes"], strict=True)
            for a, b in zip(p, q, strict=True)
        ]
        off = max((abs(a - b) for a, b in pairs), default=0.0)
        pixels = abs(item["sum"] - ours["sum"]) / ours["sum"]
        # torchvision rounds sizes down and does not round pixels
        sizes = max(abs(a - b) for a, b in zip(item["size"], ours["size"], strict=True))
        if sizes > (0 if exact else 1) or off > (1e-3 if exact else 2) or pixels > (0 if exact else 0.01):
            raise RuntimeError(
                f"{name}: image {number} differs: sizes by {sizes}, boxes by {off:.2g}, pixels by {pixels:.2g}"
            )


def report(results: dict, args: argparse.Namespace) -> str:
    title = (
        f"COCO photographs to padded batches of {args.batch}, shorter side {args.short_side}, mirrored at random, "
        f"{args.workers} workers; peers in processes, keras_seg in threads."
    )
    lines = [
        compare.machine_line(results),
        "",
        title,
        "",
        "| | images a second: median (range) | keras_seg's over its |",
        "|---|---|---|",
    ]
    for name, row in results["tables"]["data"]["contestants"].items():
        speed = row["images_per_second"]
        lines.append(
            f"| {name} | {statistics.median(speed):.1f} ({min(speed):.1f}-{max(speed):.1f}) | {row['ratio']:.2f} |"
        )
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
