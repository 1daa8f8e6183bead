"""One way to run a model, for `export.py`: the Keras model by `segment` or by a plain call, or a SavedModel with TensorFlow
alone."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from worker import serve


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("way", "model"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--folder", type=Path, required=True, help="with the SavedModels")
    parser.add_argument("--threads", type=int, required=True)
    args = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(args.threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    state: dict[str, Any] = {}

    def load() -> None:
        make = from_folder if args.way.startswith("SavedModel") else from_zoo
        state["run"] = make(args)

    def run() -> None:
        state["found"] = state["run"]()

    serve({"load": load, "run": run, "found": lambda: state["found"]})


def picture(name: str) -> np.ndarray:
    """uint8 [H, W, C]: blobs, so that there is something to find."""
    from export import MODELS

    height, width = MODELS[name][2]
    random = np.random.default_rng(0)
    blobs = random.uniform(0, 255, (height // 16, width // 16))
    rows, columns = (
        np.linspace(0, n - 1, side) for n, side in zip(blobs.shape, (height, width), strict=True)
    )
    image = blobs[rows.round().astype(int)][:, columns.round().astype(int)] + random.normal(
        0, 8, (height, width)
    )
    image = np.clip(image, 0, 255).astype(np.uint8)[..., None]
    return image if name.startswith("unet") else np.repeat(image, 3, -1)


def from_folder(args: argparse.Namespace) -> Callable[[], str]:
    folder = args.folder / ("direct" if args.way.endswith("Winograd") else "winograd")
    model = tf.saved_model.load(str(folder))
    signature, images = model.signatures["serving_default"], tf.constant(picture(args.model)[None])

    def run() -> str:
        outputs = {name: value.numpy() for name, value in signature(images=images).items()}
        if "probabilities" in outputs:
            return mean(outputs["probabilities"])
        return f"{int(outputs['num_detections'][0])} objects"

    run.model = model  # whose weights go with it
    return run


def from_zoo(args: argparse.Namespace) -> Callable[[], str]:
    import keras_seg
    from export import MODELS
    from keras_seg.data.resize import resize
    from keras_seg.detect import batch_of, resized_size

    overrides, image = MODELS[args.model][1], picture(args.model)
    model = keras_seg.zoo.load(args.model, weights=args.folder / "keras.weights.h5", **overrides)
    if hasattr(model, "legal_sizes"):
        if args.way == "segment":
            return lambda: mean(keras_seg.segment(model, image))
        return lambda: mean(model(image[None].astype(np.float32)).numpy())
    if args.way == "segment":
        options = {"score_threshold": 0.0, "max_detections": model.detections}
        return lambda: f"{len(keras_seg.segment(model, image, **options))} objects"
    inputs = batch_of(model, [resize(image, resized_size(model, *image.shape[:2]), model.convention)])
    return lambda: f"{int(model(inputs)['num_detections'][0])} objects"


def mean(probabilities: np.ndarray) -> str:
    return f"mean {probabilities[..., -1].mean():.5f}"


if __name__ == "__main__":
    main()
