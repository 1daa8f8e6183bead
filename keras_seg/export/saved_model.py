"""A model as a TensorFlow SavedModel, for TensorFlow Serving, C++ or `tf.saved_model.load`: stock operators alone."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf

from keras_seg.export import comparison, detection_graph, metadata, tile_graph, warmup
from keras_seg.export.limits import Limits, limits_of
from keras_seg.ops.roi_align import portable
from keras_seg.ops.roi_sampling import without_gradients
from keras_seg.weights.files import folder_beside

if TYPE_CHECKING:
    from keras_seg.models.mask_rcnn import MaskRCNN
    from keras_seg.models.unet import UNet

# Of the largest probability of the sample: the two graphs hold the same operations, up to the order of sums, which the
# libraries of a GPU choose.
TOLERANCE, TOLERANCE_ON_GPU = 1e-5, 1e-4
# Of the detections in the image on which a detector is compared, the share that must be within `CHECKED`: two that are almost
# equal may change places.
SAME = 0.75
# Networks without training multiply rounding: a ResNet-50's boxes were up to 0.2 px apart. A graph that is wrong moves them by
# half a pixel and more. Of trained ones `comparison` demands more.
CHECKED = {**comparison.SAVED_MODEL, "boxes": 0.25}


def saved_model(
    model: UNet | MaskRCNN,
    path: str | Path,
    *,
    masks: str = "probabilities",
    most_pixels: int | None = None,
    most_images: int | None = None,
    most_request_pixels: int | None = None,
    winograd: bool = True,
    warmup_sizes: Sequence[tuple[int, int]] | None = None,
    licence: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a SavedModel, load it back and compare the two, then put it in place.

    B images of H x W pixels, N = `model.detections`, K classes, P keypoints, m cells of a mask (28; 14 for structure "c4").

    A detector's signature "serving_default" takes {"images": uint8 [B, H, W, 3]}, RGB, any number of any size;
    "encoded_images" {"image_bytes": string [B]}, JPEG or PNG files of any sizes, whose EXIF orientation is applied. Both return
    what `keras_seg.segment` finds, from `model.score_threshold` on, by falling score and zero beyond `num_detections`:

        num_detections  int32 [B]
        boxes           float32 [B, N, 4], x1, y1, x2, y2 in pixels of the given image
        scores          float32 [B, N]
        classes         int32 [B, N], from 0
        masks           with the mask branch: float32 [B, N, m, m], probabilities over the box; or see `masks`
        keypoints       with the keypoint branch: float32 [B, N, P, 3] of x, y (pixels), score
        image_sizes     int32 [B, 2], height and width of each given image

    A detector with rpn_only gives its proposals so, all of class 0.

    A U-Net's signatures return {"probabilities": float32 [B, H, W, K]}, what `keras_seg.segment` gives: tiles, mirrored borders
    and the model's own `rotations` are in the graph. "serving_default" takes {"images": uint8 [B, H, W, C]}, "float_images"
    {"images": float32 [B, H, W, C], 0-255}, "encoded_images" (of grey and RGB models) files of one size a request.

    `assets/keras_seg.json` says what the model is (`metadata.describe`). Images that cannot be read (CMYK JPEGs among them), are
    empty, too large or too many give an InvalidArgumentError (the server's status INVALID_ARGUMENT).

    Args:
        model: of `zoo.load`, `models.unet` or `models.mask_rcnn`.
        path: the folder to write, which for TensorFlow Serving ends in a version number ("serving/unet/1").
        masks: "probabilities"; "pasted": uint8 [B, N, H, W], 1 inside (H, W of the largest image of the request); "bits":
            uint8 [B, N, ceil(H * W / 8)], the same in COCO's order, column by column, 8 pixels a byte as `numpy.packbits`
            has them, of which an image has its own H and W.
        most_pixels: an image of more is refused by the graph, before it is decoded. None: 2**24, or with `model.scale` so
            many that the network sees 2**24; no more than `most_request_pixels`.
        most_images: a request of more is refused likewise. None: 64.
        most_request_pixels: a request of more pixels in all its images together. None: 2**26, or such that the network sees
            2**26; fewer if maps of their size (a U-Net's, pasted masks) would make an answer of more than 2**30 bytes.
        winograd: 3x3 convolutions by Winograd's filtering: faster on processors. False for a server with a GPU.
        warmup_sizes: heights and widths of images that TensorFlow Serving runs through each signature when it loads the model
            (`warmup`). None: one, of the size that the network is meant for. (): none.
        licence: of the weights. None: that of the zoo's model of this name, which is not that of weights of your own.
        overwrite: replace a SavedModel at `path`.

    Returns: the path. Until it is complete, nothing of it is there.

    Raises:
        TypeError: another model.
        ValueError: an unknown option, or `masks` of a model without them.
        FileExistsError: `path` is a file, or a folder that is not empty (with overwrite: no SavedModel).
        OSError: the folder cannot be written; names it.
        RuntimeError: weights that are not finite; or the reloaded model gives other numbers: a U-Net by more than 1e-5 of the
            largest one, a detector for a quarter of the detections.
    """
    is_unet = hasattr(model, "legal_sizes")
    if not is_unet and not hasattr(model, "short_side"):
        raise TypeError(
            f"saved_model: takes a U-Net of keras_seg.models.unet or a detector of keras_seg.models.mask_rcnn, got "
            f"{type(model).__name__}"
        )
    _check_masks(model, masks, is_unet)
    most = limits_of(model, masks, most_pixels, most_images, most_request_pixels)
    warmup_sizes = _warmup_sizes(model, warmup_sizes, most)
    _check_finite(model)
    path = Path(path)
    _check_free(path, overwrite)
    with folder_beside(path) as folder:
        fresh, former = Path(folder, "fresh"), Path(folder, "former")
        with portable(), without_gradients():
            if is_unet:
                signatures = tile_graph.signatures(model, most, winograd=winograd)
                more = {}
            else:
                signatures = detection_graph.signatures(model, masks, most, winograd=winograd)
                more = {"masks": masks if model.masks else None, "convention": model.convention}
        outputs = signatures["serving_default"].structured_outputs
        more |= {f"most_{what}": value for what, value in most._asdict().items()}
        more |= {"signatures": sorted(signatures)}
        about = metadata.describe(model, outputs, licence, **more)
        _write(signatures, about, fresh)
        warmup.write(fresh, model.name, signatures, warmup_sizes)
        with _whole_float32():
            _check_same(model, fresh, most.pixels)
        if path.exists():
            path.rename(former)
        fresh.rename(path)
    return path


@contextmanager
def _whole_float32() -> Iterator[None]:
    """Inside, no GPU multiplies in TensorFloat-32, whose rounding would hide differences."""
    config = tf.config.experimental
    before = config.tensor_float_32_execution_enabled()
    config.enable_tensor_float_32_execution(False)
    try:
        yield
    finally:
        config.enable_tensor_float_32_execution(before)


def _warmup_sizes(
    model: UNet | MaskRCNN, sizes: Sequence[tuple[int, int]] | None, most: Limits
) -> Sequence[tuple[int, int]]:
    """Those that are given, or one by default."""
    for size in sizes or ():
        if len(size) != 2 or not all(isinstance(side, int) and side >= 1 for side in size):
            raise ValueError(f"saved_model: warmup_sizes are pairs of (height, width), got {size!r}")
        if size[0] * size[1] > most.pixels:
            raise ValueError(f"saved_model: warmup_sizes has {size}, but most_pixels is {most.pixels}")
    if sizes is not None:
        return sizes
    if hasattr(model, "legal_sizes"):
        side = model.tile or model.legal_sizes(256)[1]
    else:
        side = 256 if model.scale is not None else model.short_side
    return [_within(side, side, most.pixels)]


def _within(height: int, width: int, pixels: int) -> tuple[int, int]:
    """This size, or a smaller one that has at most so many pixels."""
    height = min(height, math.isqrt(pixels))
    return height, min(width, pixels // height)


def _check_masks(model: UNet | MaskRCNN, masks: str, is_unet: bool) -> None:
    if masks not in detection_graph.MASKS:
        allowed = ", ".join(map(repr, detection_graph.MASKS))
        raise ValueError(f"saved_model: masks must be one of {allowed}, got {masks!r}")
    if masks != "probabilities" and (is_unet or not model.masks):
        raise ValueError(f"saved_model: masks={masks!r}, but {model.name} has no mask branch")


def _check_finite(model: UNet | MaskRCNN) -> None:
    broken = [weight.path for weight in model.weights if not np.isfinite(weight.numpy()).all()]
    if broken:
        raise RuntimeError(
            f"saved_model: {model.name} has weights that are NaN or infinite, in {', '.join(broken[:3])}"
            f"{' and more' if len(broken) > 3 else ''}; nothing was written"
        )


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


def _write(signatures: dict[str, tf.types.experimental.ConcreteFunction], about: dict, path: Path) -> None:
    """The functions, the variables that they read, and what the model is."""
    module = tf.Module()
    captured = {id(v): v for function in signatures.values() for v in function.graph.variables}
    module.weights = [*captured.values()]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, metadata.FILE)
        file.write_text(json.dumps(about, indent=1))
        module.about = tf.saved_model.Asset(str(file))
        tf.saved_model.save(module, str(path), signatures=signatures)


def _check_same(model: UNet | MaskRCNN, path: Path, most_pixels: int) -> None:
    """The reloaded model against the Keras model, on random pixels."""
    from keras_seg.detect import instances_of
    from keras_seg.segment import segment

    reloaded = tf.saved_model.load(str(path)).signatures["serving_default"]
    random = np.random.default_rng(0)
    if not hasattr(model, "legal_sizes"):
        size = _within(96, 128, most_pixels)
        image = random.integers(0, 256, (*size, 3), np.uint8)
        outputs = reloaded(images=tf.constant(image[None]))
        boxes = {name: outputs[name].numpy()[0] for name in ("num_detections", "boxes", "scores", "classes")}
        found = instances_of(model, boxes, size, size)
        expected = segment(model, image, score_threshold=0.0, max_detections=len(boxes["scores"]))
        share = comparison.share_in_common(expected, found, CHECKED)
        if share < SAME:
            raise RuntimeError(
                f"saved_model: the reloaded model finds {share:.0%} of what the Keras model finds, on {len(expected)} "
                "detections; nothing was written"
            )
        return
    tile = model.legal_sizes(1)[1]
    # no legal size, and not square
    height, width = _within(tile + 2, tile + 3, most_pixels)
    images = random.integers(0, 256, (1, height, width, model.input_channels), np.uint8)
    expected = segment(model, images)
    difference = np.abs(reloaded(images=tf.constant(images))["probabilities"].numpy() - expected).max()
    tolerance = TOLERANCE_ON_GPU if tf.config.list_physical_devices("GPU") else TOLERANCE
    if not difference <= tolerance * expected.max():
        raise RuntimeError(
            f"saved_model: the reloaded model differs from the Keras model by {difference:g} on an image of "
            f"{height} x {width} pixels; nothing was written"
        )
