"""A model as one TensorFlow Lite file, for phones, small computers and browsers."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import tensorflow as tf

from keras_seg.data.progress import track
from keras_seg.export import metadata, tflite_detector, tflite_images, tflite_metadata, tflite_unet
from keras_seg.export.tflite_networks import Exact, Treatment
from keras_seg.export.tflite_quantization import EightBits, Ranges
from keras_seg.models import MaskRCNN, UNet
from keras_seg.ops.roi_align import portable
from keras_seg.overlap_tile import border_of
from keras_seg.weights.files import replacing

MODES = (None, "float16", "dynamic", "int8")
CALIBRATION_SIDE = 512  # of images for a U-Net whose input is resizable
DESCRIPTIONS = {
    "num_detections": "How many detections there are.",
    "boxes": "x1, y1, x2, y2 of each detection in pixels of the input, by falling score, 0 after the last.",
    "scores": "Probability of each detection.",
    "classes": "Class of each detection, from 0, a line of labels.txt.",
    "masks": "Probability of each cell of a grid over the detection's box.",
    "keypoints": "x, y in pixels of the input, and score, of each keypoint of each detection.",
    "probabilities": "Of each pixel the probability of each class, the lines of labels.txt.",
}


def tflite(
    model: UNet | MaskRCNN,
    path: str | Path,
    *,
    quantize: str | None = None,
    select_ops: bool = False,
    height: int | None = None,
    width: int | None = None,
    representative: str | Path | Iterable[Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a TensorFlow Lite file whose one signature takes {"images": uint8 [1, H, W, C]}; normalising is inside.

    Of a U-Net the output is "probabilities" float32 [1, H, W, K], of the image continued by mirroring and computed at once:
    what `segment(model, image, rotations=1)` gives. Of a detector it is "num_detections" int32 [1], "boxes" float32
    [1, N, 4] (x1, y1, x2, y2 in pixels of the input, 0 after the last), "scores" [1, N], "classes" int32 [1, N] from 0, and
    with the branches "masks" float32 [1, N, 28, 28] over each box and "keypoints" [1, N, K, 3]. Whoever calls resizes the
    image and pads it at the bottom and at the right with the colour that keras_seg.json inside says (`tflite_metadata.read`),
    by which the file knows the padding (`tflite_detector.true_size`); export/tflite/run.py does so.

    Args:
        model: a U-Net (`models.unet`) or a detector (`models.mask_rcnn`).
        path: the file to write.
        quantize: None: float32. "float16": weights of half the size. "dynamic": weights of 8 bits, a quarter of the size, and
            activations rounded to 8 bits as they come. "int8": convolutions and dense layers in 8 bits, with the ranges that
            representative images have; what leaves the networks, boxes, group normalisation and the like stay float32.
        select_ops: allow other TensorFlow operators, which the program must then link ("Flex"). Only models with roi="pool"
            or roi_pooling="max" need them. Such a file is not tried, since no interpreter for Python has them.
        height, width: of the input. U-Net: any; None: resizable, the sides being what `tflite_unet.legal_sides` says.
            Detector: multiples of `model.size_divisor`; None: `model.short_side`, rounded up to one, squared.
        representative: some images like those the model will see, for "int8" alone: `tflite_images.representative_images`.
        overwrite: replace a file at `path`.

    Returns: the path. The file appears there complete or not at all.

    Raises:
        TypeError: another model.
        ValueError: an unknown mode, illegal sides, representative images missing, superfluous or unreadable, a detector
            that needs select_ops, a model whose output is not finite.
        FileExistsError: `path` is a folder, or a file and overwrite=False. OSError: it cannot be written.
        RuntimeError: the converter failed, or the file gives other numbers than the model.
    """
    if not hasattr(model, "legal_sizes") and not hasattr(model, "short_side"):
        raise TypeError(f"tflite: takes a model of keras_seg.models, got {type(model).__name__}")
    if quantize not in MODES:
        raise ValueError(f"tflite: quantize must be one of {', '.join(map(repr, MODES))}, got {quantize!r}")
    if (quantize == "int8") != (representative is not None):
        raise ValueError(
            'tflite: quantize="int8" needs representative=, some images (or a folder of them) like those the model will see'
            if quantize == "int8"
            else f'tflite: representative is for quantize="int8", got quantize={quantize!r}'
        )
    height, width = _sides(model, height, width)
    if select_ops and quantize == "int8":
        raise ValueError('tflite: quantize="int8" goes with built-in operators alone: select_ops=False')
    if not select_ops and hasattr(model, "short_side"):
        tflite_detector.check(model)
    path = Path(path)
    _check_place(path, overwrite)
    treatment = (
        _calibrated(model, cast(Any, representative), height, width) if quantize == "int8" else Exact()
    )
    function = _function(model, height, width, treatment, select_ops)
    spec = tf.TensorSpec([1, height, width, getattr(model, "input_channels", 3)], tf.uint8, name="images")
    traced = tf.function(function, input_signature=[spec], autograph=False)
    content = _convert(model, traced, quantize, select_ops)
    content = tflite_metadata.embed(content, _about(model, traced, quantize, select_ops), _labels(model))
    if not select_ops:  # whose operators no interpreter for Python has, TensorFlow's own neither
        _check(model, content, traced, quantize)
    with replacing(path) as partial:
        partial.write_bytes(content)
    return path


def _sides(model: UNet | MaskRCNN, height: int | None, width: int | None) -> tuple[int | None, int | None]:
    if hasattr(model, "legal_sizes"):
        tflite_unet.check_size(height, width)
        return height, width
    multiple = model.size_divisor
    default = -(-model.short_side // multiple) * multiple
    sides = default if height is None else height, default if width is None else width
    for name, side in zip(("height", "width"), sides, strict=True):
        if not isinstance(side, int) or side < 1 or side % multiple:
            near = max(multiple, round(side / multiple) * multiple) if isinstance(side, int) else multiple
            raise ValueError(
                f"tflite: {name} must be a positive multiple of {multiple} for {model.name}, got {side!r}; the nearest is {near}"
            )
    return sides


def _check_place(path: Path, overwrite: bool) -> None:
    """Raises before the work what would keep the file from being written after it; makes its folder."""
    if path.is_dir():
        raise FileExistsError(f"{path}: is a folder; give the name of the file to write")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path}: is there already; give another path, or overwrite=True to replace it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise OSError(f"{path}: cannot be written ({error.strerror}); give another path") from error


def _function(
    model: UNet | MaskRCNN, height: int | None, width: int | None, treatment: Treatment, select_ops: bool
) -> Callable[[tf.Tensor], dict[str, tf.Tensor]]:
    if hasattr(model, "legal_sizes"):
        return tflite_unet.segmenter(model, height, width, treatment)
    if not select_ops:
        return tflite_detector.detector(model, cast(int, height), cast(int, width), treatment)

    def detect(images: tf.Tensor) -> dict[str, tf.Tensor]:
        image, size = tf.cast(images, tf.float32), tflite_detector.true_size(model, images)
        with portable():
            return dict(model({"image": image, "size": size[None]}, training=False))

    return detect


def _calibrated(
    model: UNet | MaskRCNN, representative: str | Path | Iterable[Any], height: int | None, width: int | None
) -> EightBits:
    """Ranges from a run of the float networks on the images."""
    if height is None or width is None:
        remainder, multiple, least = tflite_unet.legal_sides(model)
        height = width = max(least, CALIBRATION_SIDE // multiple * multiple + remainder)
    images = tflite_images.representative_images(model, representative, height, width)
    ranges = Ranges()
    function = _function(model, height, width, ranges, select_ops=False)
    for image in track(images, "calibrating"):
        function(tf.constant(image))
    return EightBits(ranges.result(), _leaving(model))


def _leaving(model: UNet | MaskRCNN) -> list[str]:
    """Layers whose results leave the networks, so that their last bits count."""
    if hasattr(model, "legal_sizes"):
        return [f"{model.name}/logits"]
    rpn = [f"rpn/{layer}" for layer in ("objectness_logits", "anchor_deltas")]
    return [
        *rpn,
        "box_predictor/cls_score",
        "box_predictor/bbox_pred",
        "mask_head/predictor",
        "keypoint_head/score_lowres",
    ]


def _convert(model: UNet | MaskRCNN, traced: Any, quantize: str | None, select_ops: bool) -> bytes:
    module = tf.Module()
    if select_ops:  # else weights are constants
        module.weights = [variable.value for variable in model.variables]
    with tempfile.TemporaryDirectory() as folder, _quiet():
        tf.saved_model.save(module, folder, {"serving_default": traced.get_concrete_function()})
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        if quantize is not None:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if quantize == "float16":
            converter.target_spec.supported_types = [tf.float16]
        if select_ops:
            converter.target_spec.supported_ops = [
                tf.lite.OpsSet.TFLITE_BUILTINS,
                tf.lite.OpsSet.SELECT_TF_OPS,
            ]
        try:
            return converter.convert()
        except Exception as error:  # of several kinds, with pages of text
            reason = next(
                (line for line in str(error).splitlines() if "TF Select ops:" in line), str(error)[:300]
            )
            raise RuntimeError(
                f"tflite: TensorFlow's converter cannot convert {model.name}: {reason}"
            ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without TensorFlow's notes on what it writes where."""
    logger = logging.getLogger("tensorflow")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _about(model: UNet | MaskRCNN, traced: Any, quantize: str | None, select_ops: bool) -> dict[str, Any]:
    """keras_seg.json."""
    function = traced.get_concrete_function()
    shape = function.inputs[0].shape.as_list()
    unet = hasattr(model, "legal_sizes")
    taken: dict[str, Any] = {"name": "images", "dtype": "uint8", "shape": shape, "range": [0, 255]}
    if unet:
        taken |= {"context": border_of(model), "multiple": 2**model.depth}
        taken["description"] = f"An image of {shape[3]} channel(s), 0-255, as it is."
        if shape[1] is None:
            taken |= dict(
                zip(("remainder", "multiple", "least"), tflite_unet.legal_sides(model), strict=True)
            )
    else:
        taken["description"] = (
            "An RGB image, 0-255, resized with its proportions kept, and padded at the bottom and at the right."
        )
        taken["padding"] = tflite_images.padding(model)
        taken["resize"] = {
            key: getattr(model, key) for key in ("short_side", "max_side", "scale", "convention")
        }
    outputs = {name: tf.TensorSpec(t.shape, t.dtype) for name, t in function.structured_outputs.items()}
    about = metadata.describe(
        model, outputs, input=taken, quantize=quantize, select_ops=select_ops,
        normalization="inside the model" if unet else {"inside the model": [list(model.pixel_mean), list(model.pixel_std)]},
        keypoint_names=getattr(model, "keypoint_names", None),
    )  # fmt: skip
    about["summary"] = about["recipe"].get("summary") or f"{about['task']} by {model.name}".capitalize()
    for name, output in about["outputs"].items():
        output["description"] = DESCRIPTIONS[name]
    return about


def _labels(model: UNet | MaskRCNN) -> list[str]:
    return list(model.class_names or [f"class {number}" for number in range(model.classes)])


def interpreter(content: bytes) -> Any:
    """Of `ai_edge_litert`; where that is not installed, TensorFlow's own."""
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        with warnings.catch_warnings(action="ignore"):  # it is to move to ai_edge_litert
            return tf.lite.Interpreter(model_content=content)
    return Interpreter(model_content=content)


def _check(model: UNet | MaskRCNN, content: bytes, traced: Any, quantize: str | None) -> None:
    """Runs the file. ValueError: what it gives is not finite. RuntimeError: other numbers than the graph it came from."""
    run = interpreter(content).get_signature_runner()
    shape = traced.get_concrete_function().inputs[0].shape.as_list()
    if shape[1] is None:
        shape[1:3] = [tflite_unet.legal_sides(model)[2]] * 2
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    found = run(images=images)
    if not all(np.isfinite(value).all() for value in found.values()):
        raise ValueError(
            f"tflite: {model.name} gives numbers that are not finite; its weights are damaged or diverged, nothing was written"
        )
    if "probabilities" in found and quantize is None:
        difference = np.abs(found["probabilities"] - traced(tf.constant(images))["probabilities"]).max()
        if not difference <= 1e-3:
            raise RuntimeError(
                f"tflite: the file differs from {model.name} by {difference:g}; nothing was written"
            )
