"""keras_seg's U-Net as a worker of unet.py."""

from __future__ import annotations

import argparse
import math
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from worker import serve

from keras_seg import overlap_tile
from keras_seg.models import unet


def build(base_channels: int, depth: int) -> keras.Model:
    """The paper's network with its own initialisation from a fixed seed, and small biases so that they count."""
    keras.utils.set_random_seed(0)
    model = unet(base_channels=base_channels, depth=depth)
    random = np.random.default_rng(0)
    for layer in model.layers:
        if layer.weights:
            layer.bias.assign(random.normal(0, 0.05, layer.bias.shape))
    return model


def weights(model: keras.Model) -> dict[str, np.ndarray]:
    """{"layer/kernel": array, "layer/bias": array}."""
    return {f"{layer.name}/{w.name}": np.asarray(w) for layer in model.layers for w in layer.weights}


def flops(model: keras.Model, size: int) -> float:
    """Multiplications and additions of the convolutions in a forward pass of one size x size image."""
    total = 0
    layers = [layer for layer in model.layers if layer.weights]
    sizes = keras.Model(model.input, [layer.output for layer in layers]).compute_output_shape(
        (1, size, size, 1)
    )
    for layer, (_, height, width, _) in zip(layers, sizes, strict=True):
        taps = 1 if isinstance(layer, keras.layers.Conv2DTranspose) else math.prod(layer.kernel_size)
        total += 2 * height * width * taps * layer.kernel.shape[-2] * layer.kernel.shape[-1]
    return total


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("task", choices=("inference", "training"))
    parser.add_argument("--inputs", help=".npz with weights, image, label and weight", required=True)
    parser.add_argument("--outputs", help=".npz to write what is compared", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--matrix", help="side of the matrices to multiply", type=int, required=True)
    args = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(args.threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)

    inputs = np.load(args.inputs)  # read on access: arrays of other contestants take no memory here
    image = inputs["image"]
    model = build(int(inputs["base_channels"]), int(inputs["depth"]))
    batch = {name: tf.constant(inputs[name]) for name in ("image", "label", "weight")}
    model.compile(keras.optimizers.SGD(float(inputs["learning_rate"]), momentum=0.99))
    if args.task == "training":
        model.optimizer.build(model.trainable_variables)
    predict, train_step = overlap_tile._compiled(model), tf.function(model.train_step)

    @tf.function
    def loss_and_gradients() -> tuple[tf.Tensor, list[tf.Tensor]]:
        with tf.GradientTape() as tape:
            loss = model.compute_losses(batch)["loss"]
        return loss, tape.gradient(loss, model.trainable_variables)

    def check() -> None:
        """Writes the probabilities, or the loss and the gradients' norms, both without drop-out."""
        if args.task == "inference":
            np.savez(args.outputs, probabilities=predict(image))
            return
        loss, gradients = loss_and_gradients()
        norms = {v.path: float(tf.norm(g)) for v, g in zip(model.trainable_variables, gradients, strict=True)}
        np.savez(
            args.outputs,
            loss=float(loss),
            **{name: n for name, n in norms.items() if name.endswith("kernel")},
        )

    left, right = tf.random.normal((args.matrix, args.matrix)), tf.random.normal((args.matrix, args.matrix))
    product = tf.function(lambda: tf.matmul(left, right))

    def run() -> None:
        if args.task == "inference":
            predict(image)
        else:
            float(train_step(batch)["loss"])

    serve({
        "version": lambda: f"TensorFlow {tf.__version__}, Keras {keras.__version__}",
        "check": check,
        "run": run,
        "matmul": lambda: product().numpy() is None,
    })  # fmt: skip


if __name__ == "__main__":
    main()
