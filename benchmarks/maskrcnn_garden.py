"""TensorFlow Model Garden's Mask R-CNN R50-FPN as a worker of maskrcnn.py; runs in an environment of its own.

Its padding, anchors and heads differ from Detectron2's and torchvision's, so it has random weights of its own; its cost does
not depend on them, since it always computes 1000 proposals and 100 masks an image.
"""

from __future__ import annotations

import argparse
import os
from importlib.metadata import version
from pathlib import Path

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["TF_USE_LEGACY_KERAS"] = "1"

import numpy as np
import tensorflow as tf
import tf_keras
from official.vision.configs import maskrcnn as configs
from official.vision.modeling import factory
from official.vision.ops import anchor
from PIL import Image
from worker import serve

MULTIPLE = 128  # of the padded sides: the top of its pyramid is level 6 or 7

DEPTHS = {"r50_fpn": 50, "r101_fpn": 101}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--inputs", type=Path, help=".npz of images, uint8 [H, W, 3]", required=True)
    parser.add_argument("--model", choices=list(DEPTHS), default="r50_fpn")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--short-side", type=int, default=800)
    parser.add_argument("--max-side", type=int, default=1333)
    parser.add_argument("--outputs", help="not used: its results are its own")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--matrix", type=int, default=2048)
    args = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(args.threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    arrays = np.load(args.inputs)
    images = [arrays[name] for name in sorted(arrays.files)][: args.batch]
    scales = [
        min(args.short_side / min(image.shape[:2]), args.max_side / max(image.shape[:2])) for image in images
    ]
    sizes = [
        [round(side * scale) for side in image.shape[:2]] for image, scale in zip(images, scales, strict=True)
    ]
    height, width = (-(-max(size[axis] for size in sizes) // MULTIPLE) * MULTIPLE for axis in (0, 1))

    config = configs.maskrcnn_resnetfpn_coco().task.model
    config.backbone.resnet.model_id = DEPTHS[args.model]
    model = factory.build_maskrcnn(
        input_specs=tf_keras.layers.InputSpec(shape=[None, height, width, 3]), model_config=config
    )
    boxes = anchor.Anchor(
        config.min_level,
        config.max_level,
        config.anchor.num_scales,
        config.anchor.aspect_ratios,
        config.anchor.anchor_size,
        (height, width),
    ).multilevel_boxes
    anchors = {level: tf.tile(value[None], [len(images), 1, 1, 1]) for level, value in boxes.items()}

    @tf.function
    def forward(pixels: tf.Tensor, shapes: tf.Tensor) -> dict[str, tf.Tensor]:
        return model(pixels, image_shape=shapes, anchor_boxes=anchors, training=False)

    def predict() -> None:
        batch = np.zeros((len(images), height, width, 3), np.float32)
        for row, image, (h, w) in zip(batch, images, sizes, strict=True):
            row[:h, :w] = np.asarray(Image.fromarray(image).resize((w, h), Image.Resampling.BILINEAR))
        result = forward((batch - 127.5) / 64, tf.constant(sizes, tf.float32))
        result["detection_masks"].numpy()

    left, right = tf.random.normal((args.matrix, args.matrix)), tf.random.normal((args.matrix, args.matrix))
    product = tf.function(lambda: tf.matmul(left, right))
    serve({
        "version": lambda: f"Model Garden {version('tf-models-official')}, TensorFlow {tf.__version__}",
        "run": predict,
        "matmul": lambda: product().numpy() is None,
    })  # fmt: skip


if __name__ == "__main__":
    main()
