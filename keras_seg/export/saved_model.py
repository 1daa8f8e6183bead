"""A U-Net as a TensorFlow SavedModel, for TensorFlow Serving, C++ or `tf.saved_model.load`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import keras
import numpy as np
import tensorflow as tf

if TYPE_CHECKING:
    from keras_seg.models.unet import UNet

# Of the largest probability of the sample: the two graphs hold the same operations, up to the order of sums.
TOLERANCE = 1e-5


def saved_model(model: UNet, path: str | Path, *, overwrite: bool = False) -> Path:
    """Write a SavedModel, load it back and compare the two, then put it in place.

    Its signature "serving_default" takes {"image": float32 [B, H, W, C], 0-255} and returns {"probabilities":
    float32 [B, h, w, K]}. Batch and size are free; a size that is not legal for the network is an
    InvalidArgumentError that names the legal ones. Mirrored borders, tiles and rotations are `segment`'s, not
    the model's.

    Args:
        model: a U-Net (`zoo.load` or `models.unet`).
        path: the folder to write, which for TensorFlow Serving ends in a version number ("serving/unet/1").
        overwrite: replace a SavedModel at `path`.

    Returns: the path. Until it is complete, nothing of it is there.

    Raises:
        TypeError: the model is no U-Net.
        FileExistsError: `path` is a file, or a folder that is not empty (with overwrite: no SavedModel).
        RuntimeError: the reloaded model gives other numbers, by more than 1e-5 of the largest one.
    """
    if not hasattr(model, "legal_sizes"):
        raise TypeError(f"saved_model: takes a U-Net of keras_seg.models.unet, got {type(model).__name__}")
    path = Path(path)
    _check_free(path, overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        fresh, former = Path(folder, "fresh"), Path(folder, "former")
        _write(model, fresh)
        _check_same(model, fresh)
        if path.exists():
            path.rename(former)
        fresh.rename(path)
    return path


def _check_free(path: Path, overwrite: bool) -> None:
    if not path.exists():
        return
    if not path.is_dir():
        raise FileExistsError(f"{path}: is a file; a SavedModel is a folder")
    if not any(path.iterdir()):
        return
    if not overwrite:
        raise FileExistsError(f"{path}: is not empty; give another path, or overwrite=True to replace it")
    if not (path / "saved_model.pb").is_file():
        raise FileExistsError(f"{path}: holds something else than a SavedModel, which is not overwritten")


def _write(model: UNet, path: Path) -> None:
    signature = tf.TensorSpec([None, None, None, model.input_channels], tf.float32, name="image")
    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint(
        "serving_default",
        lambda image: {"probabilities": model(image, training=False)},
        input_signature=[signature],
    )
    archive.write_out(str(path), verbose=False)


def _check_same(model: UNet, path: Path) -> None:
    reloaded = tf.saved_model.load(str(path)).signatures["serving_default"]
    random = np.random.default_rng(0)
    # two legal sizes, not square, more than one image
    small = model.legal_sizes(1)[1]
    for height, width in ((small, small + 2**model.depth), (small + 3 * 2**model.depth, small)):
        images = random.uniform(0, 255, (2, height, width, model.input_channels)).astype(np.float32)
        expected = model(images, training=False).numpy()
        difference = np.abs(reloaded(image=images)["probabilities"].numpy() - expected).max()
        if not difference <= TOLERANCE * expected.max():
            raise RuntimeError(
                f"saved_model: the reloaded model differs from the Keras model by {difference:g} on images "
                f"of {height} x {width} pixels; nothing was written"
            )
