"""Images in, `Instances` out: what `keras_seg.segment` does with detectors."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_seg.instances import Instances
from keras_seg.out_of_memory import advising

if TYPE_CHECKING:
    import tensorflow as tf

    from keras_seg.export.loaded import Exported
    from keras_seg.models.mask_rcnn import MaskRCNN

LOOK_AHEAD = 4  # batches among which images are sorted by their proportions


def detect(
    model: MaskRCNN,
    image: Any,
    *,
    score_threshold: float = 0.5,
    max_detections: int = 100,
    classes: Sequence[int | str] | None = None,
    short_side: int | None = None,
    max_side: int | None = None,
    batch_size: int = 1,
    precision: str = "float32",
) -> Instances | list[Instances] | Iterator[Instances]:
    """The objects in an image, in each of a list of images, or in each of a stream of them.

    Args:
        model: a `models.mask_rcnn`.
        image: path, PIL image, or array [H, W], [H, W, 1], [H, W, 3] or [H, W, 4], uint8, uint16 or float 0-255; or a
            list or an iterator of these. The EXIF orientation of files and PIL images is applied; grey is repeated, alpha dropped.
            Detectors are trained on 8 bits, so other types are rounded to them.
        score_threshold: least score of an object; the model's own, often 0.05, comes first.
        max_detections: the best so many of an image.
        classes: names or numbers of the classes to keep; None: all.
        short_side, max_side: size of the resized image, see `models.mask_rcnn`; None: the model's own, or its scale.
        batch_size: images to compute at once, padded to the largest of them; always one with group normalisation, whose
            statistics the padding would change. Of each LOOK_AHEAD batches, images of similar proportions go together.
            Sizes may vary freely: the model is traced once.
        precision: "float32", or "bfloat16", faster on processors that multiply such numbers, and less exact
            (docs/performance.md says how much). UserWarning on others, where it is slower.

    Returns: `Instances` in pixels of the image, by falling score. For a list a list, for an iterator another, which reads
    LOOK_AHEAD batches ahead. Masks are pasted when asked for.

    Raises:
        FileNotFoundError: no such image.
        ValueError: an image that cannot be read, is empty, holds NaN, or has other channels or another type than
            these; an option outside its range; an unknown class.
    """
    from keras_seg.inference import check_precision

    if batch_size < 1:
        raise ValueError(f"segment: batch_size must be positive, got {batch_size!r}")
    check_precision(precision)
    sides = short_side, max_side
    resized_size(model, 1, 1, *sides)  # raises before the first image is read
    return one_or_many(
        image,
        lambda named: (
            instances.filter(score_threshold, classes, max_detections)
            for instances in _stream(model, named, sides, batch_size, precision)
        ),
    )


def one_or_many(
    image: Any, find: Callable[[Iterator[tuple[str, Any]]], Iterator[Instances]]
) -> Instances | list[Instances] | Iterator[Instances]:
    """What `find` makes of an image; of a list of images a list, of an iterator another.

    find: from pairs (a name for messages, image) to what is found in each.
    """
    single = not isinstance(image, list | tuple | Iterator)
    found = find(
        (str(one) if isinstance(one, str | Path) else f"image {n}", one)
        for n, one in enumerate([image] if single else image)
    )
    if isinstance(image, Iterator):
        return found
    return next(found) if single else list(found)


def _stream(
    model: MaskRCNN,
    named: Iterator[tuple[str, Any]],
    sides: tuple[int | None, int | None],
    batch_size: int,
    precision: str,
) -> Iterator[Instances]:
    """The objects in each image, in their order."""
    from keras_seg.data.resize import resize

    if "group" in (model.normalization, model.fpn_normalization):
        batch_size = 1
    while ahead := list(itertools.islice(named, LOOK_AHEAD * batch_size if batch_size > 1 else 1)):
        pixels = [pixels_of(image, name) for name, image in ahead]
        sizes = [resized_size(model, p.shape[0], p.shape[1], *sides) for p in pixels]
        order = sorted(range(len(ahead)), key=lambda n: sizes[n][0] / sizes[n][1])
        found: dict[int, Instances] = {}
        for first in range(0, len(order), batch_size):
            batch = order[first : first + batch_size]
            outputs = _predict(
                model, [resize(pixels[n], sizes[n], model.convention) for n in batch], precision
            )
            for row, n in enumerate(batch):
                one = {name: value[row] for name, value in outputs.items()}
                found[n] = instances_of(model, one, pixels[n].shape[:2], sizes[n])
        yield from (found[n] for n in range(len(ahead)))


def resized_size(
    model: MaskRCNN, height: int, width: int, short_side: int | None = None, max_side: int | None = None
) -> tuple[int, int]:
    """Height and width of an image of these when the model sees it; arguments and errors as of `detect`."""
    from keras_seg.data.resize import shortest_edge_size

    if short_side is None and max_side is None and model.scale is not None:
        return max(1, round(height * model.scale)), max(1, round(width * model.scale))
    short_side = model.short_side if short_side is None else short_side
    max_side = max(model.max_side, short_side) if max_side is None else max_side
    if not 0 < short_side <= max_side:
        raise ValueError(
            f"segment: short_side and max_side must be positive and in this order, got {short_side} and {max_side}"
        )
    return shortest_edge_size(height, width, short_side, max_side, model.convention)


def _predict(model: MaskRCNN, images: list[np.ndarray], precision: str) -> dict[str, np.ndarray]:
    """The model's outputs for images [h, w, 3] of several sizes."""
    from keras_seg.inference import compiled

    height, width = (max(image.shape[axis] for image in images) for axis in (0, 1))
    less = "a smaller short_side and max_side" if len(images) == 1 else "a smaller batch_size"
    with advising(f"{len(images)} images of up to {height}x{width} pixels at once", f"use {less}"):
        outputs = compiled(model, precision)(batch_of(model, images))
        return {name: value.numpy() for name, value in outputs.items()}


def batch_of(model: MaskRCNN, images: list[np.ndarray]) -> dict[str, tf.Tensor]:
    """The model's input: images [h, w, 3] padded to one size, and their sizes."""
    import tensorflow as tf

    multiple = model.size_divisor
    height, width = (-(-max(i.shape[axis] for i in images) // multiple) * multiple for axis in (0, 1))
    batch = np.zeros((len(images), height, width, 3), np.float32)
    for row, image in zip(batch, images, strict=True):
        row[: image.shape[0], : image.shape[1]] = image
    sizes = np.array([image.shape[:2] for image in images], np.float32)
    return {"image": tf.constant(batch), "size": tf.constant(sizes)}


def instances_of(
    model: MaskRCNN | Exported,
    outputs: dict[str, np.ndarray],
    original: tuple[int, int],
    size: tuple[int, int],
) -> Instances:
    """One image's outputs, of a network that saw it resized from `original` to `size`, in pixels of the original."""
    count = int(outputs["num_detections"])
    kept = {name: value[:count] for name, value in outputs.items() if name != "num_detections"}
    scale = np.array([original[1] / size[1], original[0] / size[0]], np.float32)  # x, y
    boxes = np.clip(kept["boxes"] * np.tile(scale, 2), 0, np.tile(np.array(original[::-1]), 2))
    keypoints = kept.get("keypoints")
    if keypoints is not None:
        keypoints = keypoints * np.array([*scale, 1], np.float32)
    return Instances(
        boxes=boxes.astype(np.float32),
        scores=kept["scores"],
        classes=kept["classes"],
        image_size=original,
        mask_probabilities=kept.get("masks"),
        keypoints=keypoints,
        class_names=model.class_names,
        convention=model.convention,
    )


def pixels_of(image: Any, name: str, value_range: tuple[float, float] | None = None) -> np.ndarray:
    """An image as `detect` takes it, as uint8 [H, W, 3]. name: for the messages of its errors. value_range: the values that
    become 0 and 255, see `data.images.to_float`."""
    from PIL import Image, ImageOps

    from keras_seg.data.images import read_image, to_float

    if isinstance(image, str | Path):
        array = read_image(image)
    elif isinstance(image, Image.Image):
        turned = ImageOps.exif_transpose(image)
        plain = turned.mode in ("L", "RGB", "F") or turned.mode.startswith("I")
        array = np.asarray(turned if plain else turned.convert("RGB"))
    else:
        array = np.asarray(image)
    array = array[..., None] if array.ndim == 2 else array
    if array.ndim != 3 or array.shape[-1] not in (1, 3, 4) or 0 in array.shape:
        raise ValueError(
            f"{name}: shape {list(array.shape)}; an image is [H, W], [H, W, 1], [H, W, 3] or [H, W, 4]"
        )
    if array.dtype != np.uint8 or value_range is not None:
        array = np.rint(to_float(array, value_range, name, may_be_constant=True)).astype(np.uint8)
    return np.repeat(array, 3, axis=-1) if array.shape[-1] == 1 else array[..., :3]
