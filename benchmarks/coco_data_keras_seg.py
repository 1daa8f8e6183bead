"""A contestant of coco_data.py: keras_seg's `data.coco`."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import tensorflow as tf
from worker import serve

import keras_seg
from keras_seg import data


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--annotations", type=Path)
    parser.add_argument("--images", type=Path)
    for name in ("batch", "short-side", "workers", "batches"):
        parser.add_argument(f"--{name}", type=int)
    args = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(args.workers)
    tf.config.threading.set_inter_op_parallelism_threads(args.workers)
    options = {
        "batch_size": args.batch,
        "short_side": args.short_side,
        "keypoints": False,
        "parallel": args.workers,
    }
    state: dict = {}

    def run() -> None:
        if not state:
            state["batches"] = iter(data.coco(args.annotations, args.images, **options))
        for _ in range(args.batches):
            next(state["batches"])

    def check() -> dict:
        found = {}
        for batch in data.coco(args.annotations, args.images, augment=False, repeat=False, **options):
            for k, number in enumerate(batch["image_id"].numpy().tolist()):
                boxes = batch["boxes"][k].numpy()[batch["classes"][k].numpy() >= 0]
                found[str(number)] = {
                    "size": batch["size"][k].numpy().astype(int).tolist(),
                    "boxes": boxes.tolist(),
                    "sum": float(np.sum(batch["image"][k].numpy(), dtype=np.float64)),
                }
        return found

    version = f"keras_seg {keras_seg.__version__} (TensorFlow {tf.__version__})"
    serve({"run": run, "check": check, "version": lambda: version})


if __name__ == "__main__":
    main()
