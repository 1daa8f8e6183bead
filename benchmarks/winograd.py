"""From how many channels on Winograd's filtering beats a direct 3x3 convolution: `winograd.NARROWEST`.

    python benchmarks/winograd.py

The two take turns on each map; the ratio is the median over rounds.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf

from keras_seg import winograd

# images (or regions), height, width, channels, filters
MAPS = {
    "R50-FPN at 480x640": (
        (1, 120, 160, 64, 64), (1, 60, 80, 128, 128), (1, 30, 40, 256, 256), (1, 15, 20, 512, 512),
        (1, 120, 160, 256, 256), (100, 14, 14, 256, 256),
    ),
    "maskrcnn_nuclei at 256x320": (
        (1, 48, 60, 96, 96), (1, 24, 30, 192, 192), (1, 12, 15, 384, 384), (1, 96, 120, 80, 80), (1, 48, 60, 80, 80),
        (1, 24, 30, 80, 80), (1, 12, 15, 80, 80), (400, 14, 14, 80, 80),
    ),
    "other widths": ((1, 256, 256, 64, 64), (1, 128, 128, 128, 128), (1, 128, 128, 256, 128), (1, 120, 160, 96, 96), (1, 60, 80, 64, 64),
        (100, 14, 14, 128, 128)),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(options.threads)
    print("| map | channels | direct, ms | Winograd, ms | its time over the direct |")
    print("|---|---|---|---|---|")
    for where, maps in MAPS.items():
        for batch, height, width, channels, filters in maps:
            direct, ours, ratio = measure(batch, height, width, channels, filters, options.rounds)
            print(
                f"| {where}: {batch} x {height} x {width} | {channels} to {filters} | {1000 * direct:.2f} "
                f"| {1000 * ours:.2f} | {ratio:.2f} |",
                flush=True,
            )


def measure(
    batch: int, height: int, width: int, channels: int, filters: int, rounds: int
) -> tuple[float, float, float]:
    """Seconds of a direct convolution with bias and ReLU, of Winograd's, and the second's over the first's; medians."""
    random = np.random.default_rng(0)
    numbers = lambda *shape: tf.constant(random.normal(size=shape).astype(np.float32))
    x, kernel, bias = (
        numbers(batch, height, width, channels),
        numbers(3, 3, channels, filters),
        numbers(filters),
    )
    spec = tf.TensorSpec([None, None, None, channels])
    calls = [
        tf.function(call, input_signature=[spec], autograph=False).get_concrete_function()
        for call in (
            lambda x: tf.nn.relu(tf.nn.bias_add(tf.nn.conv2d(x, kernel, 1, "SAME"), bias)),
            lambda x: winograd.convolve(x, kernel, bias, padding="same", activation=tf.nn.relu),
        )
    ]
    taken = [seconds(calls[0], x, 2)]
    repeats = max(1, int(0.05 / taken[0]))
    seconds(calls[1], x, 2)
    rows = [[seconds(call, x, repeats) for call in calls] for _ in range(rounds)]
    direct, ours = (statistics.median(column) for column in zip(*rows, strict=True))
    return direct, ours, statistics.median(b / a for a, b in rows)


def seconds(call: Callable[[tf.Tensor], tf.Tensor], x: tf.Tensor, repeats: int) -> float:
    """Of one call."""
    began = time.perf_counter()
    for _ in range(repeats):
        call(x).numpy()
    return (time.perf_counter() - began) / repeats


if __name__ == "__main__":
    main()
