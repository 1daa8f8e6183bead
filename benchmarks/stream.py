"""A stream of photographs of varied sizes through `keras_seg.segment`, in one run: `make bench-stream`.

Does a size that was never seen before cost more than one that was, or than always the same? R50-FPN with random weights.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable
from datetime import date
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import compare
import numpy as np
from compare import HERE
from PIL import Image
from worker import timed

SHARED = HERE.parent.parent / "shared"
NEW, AGAIN, SAME = "sizes never seen before", "the same images again", "as many images, all of one size"
FIRST = "warm-up: the first image, with building and tracing"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--count", type=int, default=8, help="images of a stream")
    parser.add_argument("--batch", type=int, default=4, help="images at once in the last row")
    parser.add_argument("--short-side", type=int, default=800)
    parser.add_argument("--images", type=Path, default=SHARED / "data/coco_people/val2017")
    parser.add_argument(
        "--output", type=Path, default=HERE / "results", help="folder of stream.json and stream.md"
    )
    args = parser.parse_args()
    photographs = [np.asarray(Image.open(file).convert("RGB")) for file in sorted(args.images.glob("*.jpg"))]
    if not photographs:
        raise FileNotFoundError(f"{args.images}: no photographs (.jpg)")
    about = {"date": date.today().isoformat(), "machine": compare.machine(args.threads)}
    found = measure(load(args.threads, args.short_side), photographs, args.count, args.batch, args.rounds)
    results = {**about, **found}
    compare.write(results, report(results), args.output, "stream")


def streams(images: list[np.ndarray], count: int, turn: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """`count` images whose sizes differ from each other and between turns, and as many of one size.

    Proportions go from 1 : 1 to 1.6 : 1, upright or not; the one size is in the middle of them.
    """
    varied, same = [], []
    for n in range(count):
        photograph = Image.fromarray(images[n % len(images)])
        long = round(400 * (1 + 0.6 * (n + 1) / count)) + 3 * turn
        size = (long, 400) if n % 2 else (400, long)
        varied.append(np.asarray(photograph.resize(size)))
        same.append(np.asarray(photograph.resize((520, 400))))
    return varied, same


def load(threads: int, short_side: int):
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    from keras_seg.models import mask_rcnn

    return mask_rcnn(80, short_side=short_side, score_threshold=0.0)


def measure(model, photographs: list[np.ndarray], count: int, batch: int, rounds: int) -> dict:
    """Seconds of each round, the rows taking turns, and how often the network was traced."""
    from keras_seg import inference, segment

    def through(images: list[np.ndarray], batch: int = 1) -> Callable[[], list]:
        def run() -> list:
            return [
                len(found) for found in segment(model, iter(images), score_threshold=0.0, batch_size=batch)
            ]

        return run

    _, same = streams(photographs, count, 0)
    first = timed(through(same[:1]))
    batches = f"the same images, {batch} at once"
    seconds = {name: [] for name in (NEW, AGAIN, SAME, batches)}
    through(same[:batch], batch)()
    for turn in range(rounds):
        varied, same = streams(photographs, count, turn + 1)
        rows = {
            NEW: through(varied), AGAIN: through(varied), SAME: through(same),
            batches: through(varied, batch),
        }  # fmt: skip
        for name, action in rows.items():
            compare.say(f"stream: round {turn + 1} of {rounds}, {name}")
            seconds[name].append(timed(action))
    traces = inference.compiled(model)._call.experimental_get_tracing_count()
    return {"count": count, "first": first, "seconds": seconds, "traces": traces}


def report(results: dict) -> str:
    """The table as Markdown."""
    about, count = results["machine"], results["count"]
    head = f"{results['date']}, {about['cpu']}, {about['threads']} threads. Mask R-CNN R50-FPN, {count} images a stream. "
    head += f"Traces of the network in the whole run: {results['traces']}. {FIRST}: {results['first']:.1f} s."
    lines = [
        head,
        "",
        "| | seconds an image: median (range) | its time over the first row's |",
        "|---|---|---|",
    ]
    for name, values in results["seconds"].items():
        ratio = statistics.median(a / b for a, b in zip(values, results["seconds"][NEW], strict=True))
        median, low, high = (f(values) / count for f in (statistics.median, min, max))
        lines.append(f"| {name} | {median:.2f} ({low:.2f}-{high:.2f}) | {ratio:.2f} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
