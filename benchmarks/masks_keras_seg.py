"""keras_seg's masks to run lengths as a worker of masks.py."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from worker import serve

import keras_seg
from keras_seg.ops.masks import encode_rle
from keras_seg.ops.rle import decode_rle


def sums(masks: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Pixels inside by row and by column of each mask, [N, H] and [N, W]: what is compared."""
    return {f"axis{axis}": np.stack([mask.sum(axis) for mask in masks]).astype(float) for axis in (0, 1)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--inputs", type=Path, required=True, help=".npz of masks, boxes and size")
    parser.add_argument("--outputs", required=True, help=".npz to write what is compared")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--matrix", type=int, default=2048)
    args = parser.parse_args()
    inputs = np.load(args.inputs)
    masks, boxes, size = inputs["masks"], inputs["boxes"], tuple(inputs["size"].tolist())

    def encode() -> list[dict]:
        return encode_rle(masks, boxes, size, convention="torchvision")

    def check() -> None:
        np.savez(args.outputs, **sums([decode_rle(rle) for rle in encode()]))

    left = np.random.default_rng(0).normal(size=(args.matrix, args.matrix)).astype(np.float32)
    serve({
        "version": lambda: f"keras_seg {keras_seg.__version__}, NumPy {np.__version__}",
        "check": check,
        "run": lambda: encode() is None,
        "matmul": lambda: (left @ left) is None,
    })  # fmt: skip


if __name__ == "__main__":
    main()
