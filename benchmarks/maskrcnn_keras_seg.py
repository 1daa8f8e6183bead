"""keras_seg's detectors as workers of maskrcnn.py."""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from worker import serve, timed

from keras_seg import detect, inference, zoo
from keras_seg.data.resize import resize, shortest_edge_size
from keras_seg.inference import Compiled, for_inference
from keras_seg.models import MaskRCNN, mask_rcnn

RECIPE = "maskrcnn_r50_fpn_torchvision"
# recipe and changes of it; torchvision's importer fills all of these
MODELS = {
    "r50_fpn": (RECIPE, {}),
    "r101_fpn": (RECIPE, {"backbone": "resnet101"}),
    "x101_fpn": (RECIPE, {"backbone": "resnext101_32x8d"}),
    "keypoint_r50_fpn": ("keypointrcnn_r50_fpn_torchvision", {}),
    "resnet50": (RECIPE, {}),  # of which the backbone alone is run
}
BODY = 800, 1088  # of the image for "resnet50"
# what torchvision builds without weights of its own adds to the variance
NORM_EPS = 1e-5
PART_ROUNDS = 3


def build(name: str, weights: Path | None, sides: dict[str, int]) -> MaskRCNN:
    """A model with torchvision's weights; "r50_c4", which torchvision does not publish, with random ones."""
    if name == "r50_c4":
        keras.utils.set_random_seed(0)
        return mask_rcnn(
            90, structure="c4", proposals=300, stride_in_1x1=False, roi_sampling=2, score_threshold=0.0, convention="torchvision",
            pixel_std=(58.395, 57.12, 57.375), **sides,
        )  # fmt: skip
    recipe, changes = MODELS[name]
    return zoo.load(recipe, weights=weights, norm_eps=NORM_EPS, **changes, **sides)


def parts(model: MaskRCNN, images: list[np.ndarray]) -> dict[str, float]:
    """Seconds for the batch by part: medians of how much longer the network takes that ends with this part than
    the one that ends before it; resizing and pasting are timed by themselves."""
    ends = {
        "backbone": model.get_layer("box_pool").input[:4],
        "RPN": model.get_layer("proposals").output,
        "box": model.get_layer("detections").output,
        "mask": model.output,
    }
    inputs = prepare(model, images)
    networks = [compiled(for_inference(keras.Model(model.input, end))) for end in ends.values()]
    for network in networks:
        network(inputs)
    seconds = {name: [] for name in ("resize", *ends, "paste")}
    for _ in range(PART_ROUNDS):
        seconds["resize"].append(timed(lambda: prepare(model, images)))
        before = 0.0
        for name, network in zip(ends, networks, strict=True):
            upto = timed(lambda network=network: network(inputs))
            seconds[name].append(upto - before)
            before = upto
        found = detections(model, images)
        seconds["paste"].append(timed(lambda found=found: [instances.masks for instances in found]))
    return {name: statistics.median(values) for name, values in seconds.items()}


def compiled(network: keras.Model) -> Callable:
    signature = {
        "image": tf.TensorSpec([None, None, None, 3], tf.float32),
        "size": tf.TensorSpec([None, 2], tf.float32),
    }
    return tf.function(lambda inputs: network(inputs, training=False), input_signature=[signature])


def prepare(model: MaskRCNN, images: list[np.ndarray]) -> dict[str, tf.Tensor]:
    """The network's input, as `keras_seg.segment` makes it."""
    sides = model.short_side, model.max_side, model.convention
    sizes = [shortest_edge_size(*image.shape[:2], *sides) for image in images]
    resized = [resize(i, size, model.convention) for i, size in zip(images, sizes, strict=True)]
    return detect.batch_of(model, resized)


def detections(model: MaskRCNN, images: list[np.ndarray], precision: str = "float32") -> list:
    """All that the model finds, whatever the score."""
    return detect.detect(model, images, score_threshold=0.0, batch_size=len(images), precision=precision)


def body(model: MaskRCNN, batch: int, precision: str) -> Callable[[], list[np.ndarray]]:
    """The backbone alone, on an image of BODY."""
    call = Compiled(model.parts["backbone"], precision)
    picture = tf.constant(np.random.default_rng(0).standard_normal((batch, *BODY, 3), np.float32))
    return lambda: [level.numpy() for level in call(picture)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--inputs", type=Path, help=".npz of images, uint8 [H, W, 3]", required=True)
    parser.add_argument("--model", choices=[*MODELS, "r50_c4"], default="r50_fpn")
    parser.add_argument("--precision", default="float32")
    parser.add_argument(
        "--functional", action="store_true", help="the model itself, not its copy for inference"
    )
    parser.add_argument("--portable", action="store_true", help="without the compiled RoIAlign")
    parser.add_argument("--weights", type=Path, help="torchvision's .pth")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--short-side", type=int, default=800)
    parser.add_argument("--max-side", type=int, default=1333)
    parser.add_argument("--outputs", help=".npz to write what is compared", required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--matrix", type=int, default=2048)
    args = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(args.threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    if args.portable:
        os.environ["KERAS_SEG_NATIVE"] = "off"
    if args.functional:
        inference.for_inference = lambda model, precision: keras.Model(model.input, model.output)
    sides = {"short_side": args.short_side, "max_side": args.max_side}
    model = build(args.model, args.weights, sides)
    arrays = np.load(args.inputs)
    images = [arrays[name] for name in sorted(arrays.files)][: args.batch]

    def objects() -> list:
        """From uint8 pixels to binary masks of the image's size."""
        found = detections(model, images, args.precision)
        for instances in found if model.masks else ():
            instances.masks  # noqa: B018 -- pasted when asked for
        return found

    maps = body(model, args.batch, args.precision) if args.model == "resnet50" else None

    def check() -> None:
        if maps:
            np.savez(args.outputs, *maps())
            return
        scores = [instances.scores for instances in objects()]
        np.savez(args.outputs, scores=np.concatenate(scores), counts=np.array([len(s) for s in scores]))

    left, right = tf.random.normal((args.matrix, args.matrix)), tf.random.normal((args.matrix, args.matrix))
    product = tf.function(lambda: tf.matmul(left, right))
    serve({
        "version": lambda: f"TensorFlow {tf.__version__}, Keras {keras.__version__}",
        "check": check,
        "run": lambda: sum(map(len, objects())) if maps is None else maps() and None,
        "parts": lambda: parts(model, images),
        "matmul": lambda: product().numpy() is None,
    })  # fmt: skip


if __name__ == "__main__":
    main()
