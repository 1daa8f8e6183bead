"""Images as a TensorFlow Lite model takes them: uint8 and of its size."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from keras_seg import detect, overlap_tile, zoo
from keras_seg.data.images import read_stack, to_float
from keras_seg.data.resize import resize
from keras_seg.models import MaskRCNN, UNet

MOST_IMAGES = 32  # of representative ones; more change the ranges little
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")


def representative_images(
    model: UNet | MaskRCNN, source: str | Path | Iterable[Any], height: int, width: int
) -> list[np.ndarray]:
    """At most `MOST_IMAGES` images uint8 [1, height, width, C], spread over those that there are.

    source: images as `segment` takes them; a file (of a stack all slices); or a folder: that which the recipe of the model's
    name describes the training images in, or one of image files.

    Raises FileNotFoundError: no such folder. ValueError: no image, or one that cannot be read.
    """
    images = _spread(list(_images(model, source)))
    if not images:
        raise ValueError("tflite: representative: there are no images")
    fit = fit_slice if hasattr(model, "legal_sizes") else fit_photograph
    return [
        fit(model, image, height, width, f"representative image {n}")[None] for n, image in enumerate(images)
    ]


def fit_photograph(model: MaskRCNN, image: Any, height: int, width: int, name: str = "image") -> np.ndarray:
    """An image for a detector, resized as the model's images are, smaller where it would not fit, and padded at the bottom
    and at the right with the mean colour: uint8 [height, width, 3]."""
    pixels = detect.pixels_of(image, name)
    size = fitted_size(model, pixels.shape[0], pixels.shape[1], height, width)
    result = np.empty((height, width, 3), np.uint8)
    result[:] = padding(model)
    result[: size[0], : size[1]] = np.rint(resize(pixels, size, model.convention))
    return result


def fitted_size(model: MaskRCNN, tall: int, wide: int, height: int, width: int) -> tuple[int, int]:
    """Height and width of an image of tall x wide pixels within a detector's input of height x width."""
    tall, wide = detect.resized_size(model, tall, wide)
    shrink = min(1.0, height / tall, width / wide)
    tall, wide = (max(1, min(round(side * shrink), most)) for side, most in ((tall, height), (wide, width)))
    return tall, wide


def padding(model: MaskRCNN) -> list[int]:
    """The colour that is next to nothing for the networks."""
    return [round(min(max(value, 0), 255)) for value in model.pixel_mean]


def fit_slice(model: UNet, image: Any, height: int, width: int, name: str = "image") -> np.ndarray:
    """The middle of an image for a U-Net, mirrored where it is too small: uint8 [height, width, C]."""
    pixels = np.asarray(image)
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    if pixels.ndim != 3 or pixels.size == 0:
        raise ValueError(f"{name}: shape {list(pixels.shape)}; an image is [H, W] or [H, W, C]")
    given, wanted = pixels.shape[-1], model.input_channels
    if given != wanted and {given, wanted} != {1, 3}:
        raise ValueError(f"{name}: {given} channels, but the model takes {wanted}")
    values = overlap_tile.match_channels(to_float(pixels, name=name, may_be_constant=True), wanted)
    rows, columns = (
        overlap_tile.mirrored(np.arange(side) + max(0, (given - side) // 2), given)
        for side, given in zip((height, width), values.shape[:2], strict=True)
    )
    return np.rint(values[rows[:, None], columns]).astype(np.uint8)


def _images(model: UNet | MaskRCNN, source: str | Path | Iterable[Any]) -> Iterator[Any]:
    is_unet = hasattr(model, "legal_sizes")
    items = _files(model, Path(source)) if isinstance(source, str | Path) else list(source)
    for item in _spread(items):
        if is_unet and isinstance(item, str | Path):
            yield from _spread(list(read_stack(item)))
        else:
            yield item


def _files(model: UNet | MaskRCNN, path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such folder of representative images, and no such file")
    data: Any = zoo.show(model.name).data if model.name in zoo.list() else None
    places = {
        "isbi": lambda: [path / data.volume],
        "coco": lambda: [path / data.images],
        "folder": lambda: [path / data.train_images],
        "cell_tracking": lambda: [path / sequence for sequence in data.train_sequences],
    }
    named = [place for place in places[data.reader]() if place.exists()] if data else []
    return list(itertools.chain.from_iterable(_image_files(place) for place in named or [path]))


def _image_files(place: Path) -> list[Path]:
    if place.is_file():
        return [place]
    files = sorted(file for file in place.iterdir() if file.suffix.lower() in SUFFIXES)
    if not files:
        raise ValueError(f"{place}: holds no images ({', '.join(SUFFIXES)})")
    return files


def _spread(items: list[Any]) -> list[Any]:
    """At most MOST_IMAGES of them, from first to last."""
    if len(items) <= MOST_IMAGES:
        return items
    return [items[n] for n in np.linspace(0, len(items) - 1, MOST_IMAGES).round().astype(int)]
