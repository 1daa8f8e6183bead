"""Does int8 pay in TensorFlow on this processor? One convolution in four kinds of numbers, in one run: `make bench-int8`."""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable
from datetime import date
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import compare
from compare import HERE
from worker import timed

CASES = (
    (200, 272, 256, 3),
    (50, 68, 256, 3),
    (50, 68, 1024, 1),
)  # height, width, channels in and out, kernel
ROWS = ("float32", "float32, winograd", "bfloat16", "int8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--output", type=Path, default=HERE / "results", help="folder of int8.json and int8.md"
    )
    args = parser.parse_args()
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(args.threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    tables = {f"{h}x{w}, {c} channels, {k}x{k}": measure(h, w, c, k, args.rounds) for h, w, c, k in CASES}
    results = {"date": date.today().isoformat(), "machine": compare.machine(args.threads), "tables": tables}
    compare.write(results, report(results), args.output, "int8")


def measure(height: int, width: int, channels: int, side: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of each round; int8's are those of the product to int32 alone, without the rounding before and after it."""
    import tensorflow as tf

    from keras_seg import winograd

    image = tf.random.normal((1, height, width, channels))
    kernel = tf.random.normal((side, side, channels, channels))
    bytes_ = tf.quantization.quantize(image, -5.0, 5.0, tf.quint8)[0]
    weights = tf.quantization.quantize(kernel, -5.0, 5.0, tf.qint8)[0].numpy()
    halves = tf.cast(image, tf.bfloat16), tf.cast(kernel, tf.bfloat16)
    ranges = [tf.constant(value) for value in (-5.0, 5.0, -5.0, 5.0)]
    convolve = {
        "float32": lambda: tf.nn.conv2d(image, kernel, 1, "SAME"),
        "bfloat16": lambda: tf.nn.conv2d(*halves, 1, "SAME"),
        "int8": lambda: tf.raw_ops.QuantizedConv2D(
            input=bytes_, filter=tf.constant(weights, tf.qint8), min_input=ranges[0], max_input=ranges[1], min_filter=ranges[2], max_filter=ranges[3],
            strides=[1, 1, 1, 1], padding="SAME",
        )[0],
    }  # fmt: skip
    if side == 3:
        convolve["float32, winograd"] = lambda: winograd.convolve(image, kernel, None, padding="same")
    calls: dict[str, Callable] = {name: tf.function(convolve[name]) for name in ROWS if name in convolve}
    seconds = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            # waits for the result
            taken = timed(lambda call=call: call().numpy()[0, 0, 0, 0])
            if turn:
                seconds[name].append(taken)
    return seconds


def report(results: dict) -> str:
    """The table as Markdown."""
    about = results["machine"]
    lines = [
        f"{results['date']}, {about['cpu']}, {about['threads']} threads, {' '.join(about['instruction_sets'])}.",
        "",
        f"| convolution, milliseconds (median) | {' | '.join(ROWS)} |",
        "|---" * (len(ROWS) + 1) + "|",
    ]
    for case, seconds in results["tables"].items():
        values = [f"{1e3 * statistics.median(seconds[name]):.1f}" if name in seconds else "" for name in ROWS]
        lines.append(f"| {case} | {' | '.join(values)} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
