"""How far what an exported model finds in an image is from what its Keras model finds."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from keras_seg.instances import Instances

if TYPE_CHECKING:
    from keras_seg.models import MaskRCNN, UNet

SAME = 0.5  # overlap of two boxes of one class from which they are taken for the same object
SURE = 0.5  # score from which a detection is compared, if any is so sure
# largest differences that are rounding: boxes in pixels, scores, probabilities, pixels of a mask (a share)
SAVED_MODEL = {"boxes": 0.01, "scores": 1e-4, "masks": 1e-3, "probabilities": 1e-5, "pasted masks": 0.02}
TFLITE = {"boxes": 0.5, "scores": 1e-2, "masks": 1e-2, "probabilities": 1e-3}


def saved_model_differences(model: UNet | MaskRCNN, path: str | Path, image: Any) -> dict[str, float]:
    """`differences` of `segment` with the SavedModel at `path` and with the model. Of masks that the graph pastes, "pasted masks" is
    the largest share of a mask's pixels that only one of the two has (1 - IoU). Raises what `export.load` and `segment` raise.
    """
    import keras_seg
    from keras_seg import detect
    from keras_seg.export.loaded import load

    exported = load(path)
    if not exported.is_detector:
        return differences(keras_seg.segment(model, image, progress=False), exported.segment(image))
    options = {"score_threshold": 0.0, "max_detections": model.detections}
    expected = keras_seg.segment(model, image, **options)
    if exported.about["masks"] in (None, "probabilities"):
        return differences(expected, exported.segment(image, **options))
    outputs = exported.outputs(detect.pixels_of(image, "image"))
    masks, (height, width) = outputs.pop("masks"), outputs.pop("image_sizes").tolist()
    if exported.about["masks"] == "bits":
        columns = np.unpackbits(masks, axis=1, count=height * width).reshape(-1, width, height)
        masks = columns.transpose(0, 2, 1)
    found = detect.instances_of(exported, outputs, (height, width), (height, width))
    compared = differences(dataclasses.replace(expected, mask_probabilities=None), found)
    sure = _sure(expected)
    apart = (_unlike(sure.masks[k], masks[j] > 0) for k, j in _pairs(sure, found))
    return {**compared, "pasted masks": max(apart, default=0.0)}


def tflite_differences(model: UNet | MaskRCNN, path: str | Path, image: Any) -> dict[str, float]:
    """`differences` of the TensorFlow Lite file at `path` and the model, on the image as the file takes it: resized and
    padded, or the middle of it."""
    import tensorflow as tf

    import keras_seg
    from keras_seg import detect, inference
    from keras_seg.data.images import read_image
    from keras_seg.export import tflite_images
    from keras_seg.export.tflite import interpreter
    from keras_seg.export.tflite_unet import legal_sides

    run = interpreter(Path(path).read_bytes()).get_signature_runner()
    ((_, details),) = run.get_input_details().items()
    _, height, width, _ = (int(side) for side in details.get("shape_signature", details["shape"]))
    if hasattr(model, "legal_sizes"):
        pixels = read_image(image) if isinstance(image, str | Path) else np.asarray(image)
        if height < 1:  # free
            remainder, multiple, least = legal_sides(model)
            height, width = (
                max(least, (side - remainder) // multiple * multiple + remainder) for side in pixels.shape[:2]
            )
        taken = tflite_images.fit_slice(model, pixels, height, width)
        found = run(images=taken[None])["probabilities"][0]
        return differences(keras_seg.segment(model, taken, rotations=1, progress=False), found)
    pixels = detect.pixels_of(image, "image")
    taken = tflite_images.fit_photograph(model, pixels, height, width)[None]
    size = tflite_images.fitted_size(model, pixels.shape[0], pixels.shape[1], height, width)
    true_size = tf.constant([size], tf.float32)
    expected = inference.compiled(model)({"image": tf.constant(taken, tf.float32), "size": true_size})
    found = run(images=taken)
    both = ({name: np.asarray(value)[0] for name, value in outputs.items()} for outputs in (expected, found))
    return differences(*(detect.instances_of(model, one, size, size) for one in both))


def differences(expected: Instances | np.ndarray, found: Instances | np.ndarray) -> dict[str, float]:
    """Probabilities: the largest difference. Objects: how many of the sure ones are compared, how many of them have no
    counterpart, and by how much boxes (pixels), scores and masks of the others differ at most."""
    if not isinstance(expected, Instances):
        return {"probabilities": float(np.abs(expected - found).max())}
    sure = _sure(expected)
    found = cast(Instances, found)
    pairs = list(_pairs(sure, found))
    compared: dict[str, float] = {"objects": len(sure), "without counterpart": len(sure) - len(pairs)}
    for name in ("boxes", "scores", "mask_probabilities", "keypoints"):
        mine, theirs = getattr(sure, name), getattr(found, name)
        if mine is not None:
            apart = [float(np.abs(mine[k] - theirs[j]).max()) for k, j in pairs]
            compared[name.removesuffix("_probabilities").replace("mask", "masks")] = max(apart, default=0.0)
    return compared


def exceeded(compared: dict[str, float], tolerances: dict[str, float]) -> list[str]:
    """What differs by more than rounding: names of `differences`."""
    over = [name for name, most in tolerances.items() if compared.get(name, 0) > most]
    # of two objects that are all but equally likely, one export may keep the one and another the other
    missing = compared.get("without counterpart", 0)
    return over + (["without counterpart"] if missing > 0.1 * compared.get("objects", 0) else [])


def share_in_common(expected: Instances, found: Instances, tolerances: dict[str, float]) -> float:
    """Of the objects of the larger set, the share that the other has at the same place, of the same class and score. Boxes may
    have no area, as those of a network without training."""
    if not len(expected) or not len(found):
        return float(len(expected) == len(found))
    near = np.abs(expected.boxes[:, None] - found.boxes[None]).max(-1) <= tolerances["boxes"]
    alike = np.abs(expected.scores[:, None] - found.scores[None]) <= tolerances["scores"]
    same = near & alike & (expected.classes[:, None] == found.classes[None])
    return min(same.any(axis).sum() for axis in (0, 1)) / max(len(expected), len(found))


def _sure(found: Instances) -> Instances:
    """The sure ones, or all if none is."""
    return found.filter(SURE) if (found.scores >= SURE).any() else found


def _unlike(mask: np.ndarray, other: np.ndarray) -> float:
    """1 - IoU of two bool [H, W]; 0 for two empty ones."""
    union = (mask | other).sum()
    return float((mask ^ other).sum() / union) if union else 0.0


def _pairs(expected: Instances, found: Instances) -> list[tuple[int, int]]:
    """Places of the same object in both."""
    from keras_seg.ops.boxes import pairwise_iou

    if not len(expected) or not len(found):
        return []
    overlap = pairwise_iou(expected.boxes, found.boxes).numpy()
    overlap = np.where(expected.classes[:, None] == found.classes[None], overlap, 0)
    best = overlap.argmax(axis=1)
    return [(k, int(j)) for k, j in enumerate(best) if overlap[k, j] >= SAME]
