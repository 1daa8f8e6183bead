"""keras_seg's RoIAlign as a worker of roi_align.py."""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf
from worker import serve

import keras_seg
from keras_seg.ops.native import library
from keras_seg.ops.roi_align import roi_align


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("implementation", choices=["custom", "crop_and_resize", "gather"])
    parser.add_argument("task", choices=["forward", "backward"])
    parser.add_argument("--inputs", required=True)
    parser.add_argument("--ratio", type=int, required=True)
    parser.add_argument("--outputs", required=True, help=".npz to write what is compared")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--matrix", type=int, default=2048)
    args = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(args.threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    inputs = np.load(args.inputs)
    features, boxes, upstream = (tf.constant(inputs[name]) for name in ("features", "boxes", "upstream"))
    images, scale, bins = tf.zeros(len(boxes), tf.int32), float(inputs["scale"]), upstream.shape[1]

    def align(features: tf.Tensor) -> tf.Tensor:
        return roi_align(features, boxes, images, bins, scale, args.ratio, implementation=args.implementation)

    forward = tf.function(align)
    # The backward pass alone: the tape is kept between the runs.
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(features)
        result = forward(features)

    def run() -> tf.Tensor:
        done = forward(features) if args.task == "forward" else tape.gradient(result, features, upstream)
        return done[0, 0, 0, 0].numpy(), done

    def check() -> None:
        np.savez(args.outputs, values=run()[1].numpy()[:, ::3, ::3])

    matrix = tf.random.normal([args.matrix, args.matrix])
    set_ = f" ({library.get().instruction_set})" if args.implementation == "custom" else ""
    serve(
        {
            "check": check,
            "run": lambda: run() and None,
            "matmul": lambda: float(tf.matmul(matrix, matrix)[0, 0]),
            "version": lambda: f"keras_seg {keras_seg.__version__}{set_} on TensorFlow {tf.__version__}",
        }
    )


if __name__ == "__main__":
    main()
