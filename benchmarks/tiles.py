"""A large image through `keras_seg.segment` against the network alone on as many pixels, in one run: `make bench-tiles`."""

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
from worker import timed

MODEL = "unet_isbi2012"
SEGMENT, BATCH, TILES = "segment", "the pixels as a batch", "its tiles through the network"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--size", type=int, default=4096, help="side of the image, pixels")
    parser.add_argument(
        "--part", type=int, default=512, help="side of the pieces that make the batch, pixels"
    )
    parser.add_argument("--batch", type=int, default=4, help="pieces that go through the network at once")
    parser.add_argument(
        "--output", type=Path, default=HERE / "results", help="folder of tiles.json and tiles.md"
    )
    args = parser.parse_args()
    seconds = measure(load(args.threads), args.size, args.part, args.batch, args.rounds)
    ratios = {
        name: statistics.median(a / b for a, b in zip(seconds[SEGMENT], seconds[name], strict=True))
        for name in (BATCH, TILES)
    }
    settings = {"size": args.size, "part": args.part, "batch": args.batch}
    about = {"date": date.today().isoformat(), "machine": compare.machine(args.threads)}
    results = {**about, **settings, "seconds": seconds, "ratios": ratios}
    compare.write(results, report(results), args.output, "tiles")


def load(threads: int):
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    from keras_seg import zoo

    return zoo.load(MODEL)


def measure(model, size: int, part: int, batch: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of each round, the three taking turns: `segment`; the image cut into pieces [size / part squared, part, part, 1]
    through the whole network, without any context; and the very tiles of `segment`, cut beforehand."""
    from keras_seg import overlap_tile, segment
    from keras_seg.inference import for_inference

    image = np.random.default_rng(0).integers(0, 256, (size, size), np.uint8)
    pieces = image.astype(np.float32).reshape(size // part, part, size // part, part).swapaxes(1, 2)
    pieces = np.ascontiguousarray(pieces.reshape(-1, part, part, 1))
    options = {"tile": None, "rotations": 1, "value_range": None, "batch_size": 1}
    tiles = overlap_tile.tiles(model, image[None, ..., None], "image", **options)
    border = overlap_tile.border_of(model)
    inputs = [tiles._cut(0, y, x, border)[None] for y, _ in tiles.rows for x, _ in tiles.columns]
    whole, cropped = compiled(for_inference(model)), overlap_tile._compiled(model)
    actions = {
        SEGMENT: lambda: segment(model, image, rotations=1, progress=False),
        BATCH: lambda: [whole(pieces[first : first + batch]) for first in range(0, len(pieces), batch)],
        TILES: lambda: [cropped(tile) for tile in inputs],
    }
    whole(pieces[:1])
    cropped(inputs[0][:, : 2 * border, : 2 * border])
    seconds = {name: [] for name in actions}
    for turn in range(rounds):
        for name, action in actions.items():
            compare.say(f"tiles: round {turn + 1} of {rounds}, {name}")
            seconds[name].append(timed(action))
    return seconds


def compiled(network) -> Callable[[np.ndarray], np.ndarray]:
    import tensorflow as tf

    signature = [tf.TensorSpec([None, None, None, network.input_shape[-1]], tf.float32)]
    call = tf.function(lambda image: network(image, training=False), input_signature=signature)
    return lambda image: call(image).numpy()


def report(results: dict) -> str:
    """The table as Markdown."""
    about, size, part = results["machine"], results["size"], results["part"]
    lines = [
        f"{results['date']}, {about['cpu']}, {about['threads']} threads. {MODEL}, one orientation, {size}x{size} pixels.",
        f"As a batch: {(size // part) ** 2} pieces of {part}x{part}, {results['batch']} at once.",
        "",
        "| | seconds: median (range) | `segment`'s time over it |",
        "|---|---|---|",
    ]
    for name, values in results["seconds"].items():
        ratio = f"{results['ratios'][name]:.2f}" if name in results["ratios"] else ""
        lines.append(
            f"| {name} | {statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f}) | {ratio} |"
        )
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
