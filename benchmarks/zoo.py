"""Size and speed of each model of the zoo, for docs/zoo.md: `.venv/bin/python benchmarks/zoo.py`.

Each model is a process of its own with fresh weights, and segments one image: a photograph of 425x640 pixels, for a U-Net a slice of 512x512 in its own number
of turned versions. A detector keeps all proposals and detections that it can give, so that its cost does not depend on the
weights. Seconds are those of the processor over the number of threads, which other work on the machine moves less
than those of a clock. Goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import compare
from compare import HERE

PHOTOGRAPH, SLICE = (425, 640, 3), (512, 512)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", help="names of the zoo; all but the ablations if left out")
    parser.add_argument("--rounds", type=int, default=2, help="timed images, after one that is not")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=HERE / "results", help="folder of zoo.json and zoo.md")
    parser.add_argument("--one", action="store_true", help="print the figures of the one model as JSON")
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(*args.models, rounds=args.rounds, threads=args.threads)))
        return
    from keras_seg import zoo

    file = args.output / "zoo.json"
    results = json.loads(file.read_text()) if file.exists() else {"models": {}}
    names = args.models or [
        name for name in zoo.list() if "/" not in name and not results["models"].get(name, {}).get("seconds")
    ]
    for name in names:
        compare.say(name)
        command = [
            sys.executable,
            __file__,
            name,
            "--one",
            "--rounds",
            args.rounds,
            "--threads",
            args.threads,
        ]
        answer = subprocess.run([*map(str, command)], check=True, stdout=subprocess.PIPE, text=True).stdout
        results["models"][name] = json.loads(answer.splitlines()[-1])
        results |= {"date": date.today().isoformat(), "machine": compare.machine(args.threads)}
        results["models"] = dict(sorted(results["models"].items()))
        compare.write(results, report(results), args.output, "zoo", show=False)
    print(report(results))


def measure(name: str, rounds: int, threads: int) -> dict:
    """{"parameters", "seconds": of each round}."""
    import numpy as np
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    import keras_seg

    detector = keras_seg.zoo.show(name).model.builder == "mask_rcnn"
    options = {"score_threshold": 0.0, "rpn_nms": 1.0, "pixel_std": (58.0, 58.0, 58.0)} if detector else {}
    model = keras_seg.zoo.load(name, weights=None, **options)
    for variable in model.weights:
        # without training, a deep network's blocks would add up to numbers whose boxes are all the same
        if variable.path.endswith(("conv2_norm/gamma", "conv3_norm/gamma")):
            variable.assign(np.full(variable.shape, 0.2, np.float32))
    image = np.random.default_rng(0).integers(0, 256, PHOTOGRAPH if detector else SLICE, np.uint8)
    options = {"score_threshold": 0.0, "max_detections": model.detections} if detector else {}
    seconds = []
    for _ in range(rounds + 1):
        began = time.process_time()
        found = keras_seg.segment(model, image, **options)
        if detector and found.mask_probabilities is not None:
            found.to_coco(image_id=1)
        seconds.append((time.process_time() - began) / threads)
    if detector and len(found) != model.detections:
        raise RuntimeError(
            f"{name}: {len(found)} detections instead of {model.detections}: its cost is not that of use"
        )
    return {"parameters": model.count_params(), "seconds": seconds[1:]}


def report(results: dict) -> str:
    about = results["machine"]
    lines = [
        (
            f"{results['date']}, {about['cpu']}, {about['cores']} cores ({about['threads']} threads used). One photograph of "
            f"{PHOTOGRAPH[0]}x{PHOTOGRAPH[1]} pixels through a detector, from array to masks; one slice of {SLICE[0]}x{SLICE[1]} "
            "through a U-Net. Seconds of the processor over the number of threads."
        ),
        "",
        "| | parameters, millions | seconds an image: median (range) |",
        "|---|---|---|",
    ]
    for name, row in results["models"].items():
        shown = "not measured"
        if row["seconds"]:
            median, low, high = (f(row["seconds"]) for f in (statistics.median, min, max))
            shown = f"{median:.2f} ({low:.2f}-{high:.2f})"
        lines.append(f"| {name} | {row['parameters'] / 1e6:.1f} | {shown} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
