"""keras_seg's Mask R-CNN as a worker of train_step.py."""

from __future__ import annotations

import argparse
import functools
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from worker import serve

from keras_seg.models import MaskRCNN, mask_rcnn, rcnn_training
from keras_seg.ops.matching import sample_batch
from keras_seg.weights import torchvision
from keras_seg.weights.assign import assign

COMMON = {
    "stride_in_1x1": False, "pixel_std": (58.395, 57.12, 57.375), "anchors_rounded": True, "rpn_min_size": 1e-3,
    "roi_sampling": 2, "roi_aligned": False, "convention": "torchvision",
}  # fmt: skip


def build(backbone: str, weights: Path) -> MaskRCNN:
    """See train_step_torchvision.py."""
    if backbone == "resnet50":
        model = mask_rcnn(90, **COMMON)
        model.freeze(2)
    else:
        model = mask_rcnn(1, backbone="resnet18", fpn_channels=64, normalization="batch", **COMMON)
    assign(model.parts, torchvision.read(weights), weights)
    model.compile(optimizer=keras.optimizers.SGD(1e-8, momentum=0.9))
    model.optimizer.build(model.trainable_variables)
    return model


def batch_of(arrays: dict[str, np.ndarray]) -> dict[str, tf.Tensor]:
    images, boxes = arrays["images"].astype(np.float32), arrays["boxes"]
    windows, pixels = np.zeros((*boxes.shape[:2], 5), np.int32), []
    for image, (image_boxes, masks) in enumerate(zip(boxes, arrays["masks"], strict=True)):
        start, rows = 0, []
        for entry, ((x1, y1, x2, y2), mask) in enumerate(zip(image_boxes.astype(int), masks, strict=True)):
            rows.append(mask[y1:y2, x1:x2].ravel())
            windows[image, entry] = start, y1, x1, y2 - y1, x2 - x1
            start += rows[-1].size
        pixels.append(np.concatenate(rows))
    longest = max(map(len, pixels))
    pixels = np.stack([np.pad(row, (0, longest - len(row))) for row in pixels]).astype(np.uint8)
    size = np.array([images.shape[1:3]] * len(images), np.float32)
    batch = {"image": images, "size": size, "boxes": boxes, "classes": arrays["labels"] - 1}
    return {
        name: tf.constant(value)
        for name, value in {**batch, "mask_pixels": pixels, "mask_windows": windows}.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--backbone", choices=("resnet50", "resnet18"), required=True)
    parser.add_argument("--inputs", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--outputs", required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--matrix", type=int, default=2048)
    args = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(args.threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    # the samples that torchvision is made to take
    rcnn_training.sample_batch = functools.partial(sample_batch, first=True)
    model = build(args.backbone, args.weights)
    batch = batch_of(dict(np.load(args.inputs)))
    step = tf.function(model.optimize)

    @tf.function
    def gradient_norm() -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = model.compute_losses(batch, training=True)["loss"]
        return tf.linalg.global_norm(tape.gradient(loss, model.trainable_variables))

    def check() -> None:
        norm = gradient_norm().numpy()
        losses = step(batch)
        names = ("loss_rpn_class", "loss_rpn_box", "loss_class", "loss_box", "loss_mask")
        np.savez(args.outputs, losses=np.array([losses[n] for n in names]), norm=np.array([norm]))

    left, right = tf.random.normal((args.matrix, args.matrix)), tf.random.normal((args.matrix, args.matrix))
    product = tf.function(lambda: tf.matmul(left, right))
    serve({
        "version": lambda: f"TensorFlow {tf.__version__}, Keras {keras.__version__}",
        "check": check,
        "run": lambda: step(batch)["loss"].numpy() is None,
        "matmul": lambda: product().numpy() is None,
    })  # fmt: skip


if __name__ == "__main__":
    main()
