"""Folders of image and mask pairs: PNG, TIFF or JPEG images, PNG or TIFF masks of the same names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage

from keras_seg.data.images import read_image, read_mask, to_float
from keras_seg.data.progress import track
from keras_seg.data.sample import UNKNOWN, Sample
from keras_seg.losses import class_balance, weight_map

if TYPE_CHECKING:
    import tensorflow as tf

Value = int | Sequence[int]  # of a class in the masks: a number, or (r, g, b)
SUFFIXES = (".png", ".tif", ".tiff", ".jpg", ".jpeg")
SHOWN = 10  # names in a message


def read(
    images_dir: str | Path,
    masks_dir: str | Path,
    *,
    classes: Mapping[str, Value],
    mask_suffix: str = "",
    ignore_value: Value | None = None,
    w0: float = 10,
    sigma: float = 5,
    class_weights: Sequence[float] | None = None,
    value_range: tuple[float, float] | None = None,
    allow_single_class: bool = False,
) -> list[Sample]:
    """Read all pairs, in the order of their names; images may differ in size.

    images_dir: the images, `[H, W]` grey or RGB. masks_dir: a mask for each, of the same name (suffixes may
    differ) or the same name plus mask_suffix: "cell_1.jpg" and "cell_1_mask.png" with mask_suffix="_mask";
    then both folders may be one. classes: name -> value in the masks, the background first: {"background": 0,
    "cell": 255} or {"background": (0, 0, 0), "cell": (255, 0, 0)}; their order gives the class indices 0, 1,
    .... ignore_value: the value of pixels that nobody annotated (label -1, weight 0). class_weights: w_c of
    each class; None balances them over all the masks (`losses.class_balance`). w0, sigma: border term of the
    weight (U-Net, equation 2; see `losses.weight_map`). value_range: see `images.to_float`.
    allow_single_class: accept masks in which all annotated pixels are of one class.

    The instances are the 4-connected components of each class but the first.

    Raises FileNotFoundError or ValueError: missing folders, unreadable files, JPEG masks, malformed
    `classes`, grey and RGB images together, constant or NaN images; and in one message for all pairs, images
    without a mask and masks without an image, pairs of different sizes, mask values that are in no class, and
    masks of one class.
    """
    coding = _coding(classes, ignore_value)
    if class_weights is not None and len(class_weights) != len(classes):
        raise ValueError(
            f"class_weights: {len(class_weights)} weights for {len(classes)} classes, {list(classes)}"
        )
    pairs, problems = _pairs(Path(images_dir), Path(masks_dir), mask_suffix)
    images, labels = [], []
    for image_path, mask_path in pairs:
        image, mask = read_image(image_path), read_mask(mask_path, rgb=coding.rgb)
        label, problem = _label(mask, coding, allow_single_class)
        if image.shape[:2] != mask.shape[:2]:
            problem = f"{_size(mask)} pixels, but {image_path} has {_size(image)}"
        if problem:
            problems.append(f"{mask_path}: {problem}")
        images.append(image)
        labels.append(label)
    if problems:
        more = f"\n  and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise ValueError(
            f"{images_dir} and {masks_dir} do not fit together:\n  " + "\n  ".join(problems[:SHOWN]) + more
        )
    _check_channels(images, [path for path, _ in pairs])

    weights = np.asarray(class_balance(labels, len(classes)) if class_weights is None else class_weights)
    samples = []
    for (path, _), image, label in track(list(zip(pairs, images, labels, strict=True)), "Weight maps"):
        instances = _instances(label, len(classes))
        of_class = np.where(label == UNKNOWN, 0, weights[label])
        border = weight_map(instances, w0=w0, sigma=sigma, class_weights=(0, 0))
        samples.append(
            Sample(
                name=str(path),
                image=to_float(image, value_range, str(path)),
                label=label,
                weight=(of_class + border).astype(np.float32),
                instances=instances,
            )
        )
    return samples


def folder(
    images_dir: str | Path,
    masks_dir: str | Path,
    *,
    classes: Mapping[str, Value],
    mask_suffix: str = "",
    ignore_value: Value | None = None,
    w0: float = 10,
    sigma: float = 5,
    class_weights: Sequence[float] | None = None,
    value_range: tuple[float, float] | None = None,
    allow_single_class: bool = False,
    **tiling: Any,
) -> tf.data.Dataset:
    """Image and mask pairs as a dataset of tiles: `read`, then `tiles.tile_dataset(samples, **tiling)`.

    Yields dictionaries of image `[B, tile, tile, C]` float32 0-255, label `[B, out, out]` int32 (-1 ignored)
    and weight `[B, out, out]` float32. Raises as both of them.
    """
    from keras_seg.data.tiles import tile_dataset  # TensorFlow is imported for tiles only, not for reading

    samples = read(
        images_dir,
        masks_dir,
        classes=classes,
        mask_suffix=mask_suffix,
        ignore_value=ignore_value,
        w0=w0,
        sigma=sigma,
        class_weights=class_weights,
        value_range=value_range,
        allow_single_class=allow_single_class,
    )
    return tile_dataset(samples, **tiling)


@dataclass(frozen=True)
class _Coding:
    """How the masks tell classes: names, and one number a class (a colour as 0xRRGGBB)."""

    names: list[str]
    codes: list[int]
    ignore: int | None
    rgb: bool

    def show(self, code: float) -> str:
        if not self.rgb:
            return f"{code:g}"
        return str((int(code) >> 16, int(code) >> 8 & 255, int(code) & 255))


def _coding(classes: Mapping[str, Value], ignore_value: Value | None) -> _Coding:
    if len(classes) < 2:
        raise ValueError(f"classes: {dict(classes)}; at least two are needed, the background first")
    values = [*classes.values()] + ([] if ignore_value is None else [ignore_value])
    rgb = not isinstance(values[0], (int, np.integer))
    try:
        codes = [_code(value, rgb) for value in values]
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"classes: {dict(classes)}, ignore_value={ignore_value}: the values must be all integers from 0 "
            "up or all (r, g, b) of 0-255"
        ) from error
    if len(set(codes)) < len(codes):
        raise ValueError(f"classes: {dict(classes)}, ignore_value={ignore_value}: a value occurs twice")
    ignore = None if ignore_value is None else codes[-1]
    return _Coding(names=list(classes), codes=codes[: len(classes)], ignore=ignore, rgb=rgb)


def _code(value: Value, rgb: bool) -> int:
    numbers: list[Any] = [int(number) for number in value] if rgb and isinstance(value, Sequence) else [value]
    if len(numbers) != (3 if rgb else 1) or any(isinstance(number, bool) for number in numbers):
        raise ValueError(value)
    if min(numbers) < 0 or (rgb and max(numbers) > 255) or any(number != int(number) for number in numbers):
        raise ValueError(value)
    return (numbers[0] << 16) + (numbers[1] << 8) + numbers[2] if rgb else int(numbers[0])


def _label(mask: np.ndarray, coding: _Coding, allow_single_class: bool) -> tuple[np.ndarray, str | None]:
    """Mask `[H, W]` or `[H, W, 3]` -> class index int32 `[H, W]`, -1 ignored; and what is wrong, or None."""
    if coding.rgb:
        if mask.dtype != np.uint8:
            return np.zeros(mask.shape[:2], np.int32), f"{mask.dtype} colours; they must be 8 bit"
        mask = mask.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)
    known = dict(zip(coding.codes, range(len(coding.codes)), strict=True))
    if coding.ignore is not None:
        known[coding.ignore] = UNKNOWN
    values, inverse = np.unique(mask, return_inverse=True)
    foreign = [coding.show(value) for value in values.tolist() if value not in known]
    label = np.array([known.get(value, UNKNOWN) for value in values.tolist()], np.int32)[inverse].reshape(
        mask.shape
    )
    if foreign:
        pairs = zip(coding.names, coding.codes, strict=True)
        expected = ", ".join(f"{name} {coding.show(code)}" for name, code in pairs)
        shown = ", ".join(foreign[:SHOWN]) + (", ..." if len(foreign) > SHOWN else "")
        return label, f"values {shown} are of no class; classes: {expected}"
    present = np.unique(label[label != UNKNOWN])
    if len(present) == 0:
        return label, "no annotated pixel, all are ignore_value"
    if len(present) == 1 and not allow_single_class:
        name = coding.names[present[0]]
        return (
            label,
            f"one class only, every annotated pixel is {name}; if it is: allow_single_class=True",
        )
    return label, None


def _instances(label: np.ndarray, classes: int) -> np.ndarray:
    """4-connected components of the classes 1..: int32 `[H, W]`, 0 background, -1 not annotated."""
    instances = np.where(label == UNKNOWN, UNKNOWN, 0).astype(np.int32)
    total = 0
    for index in range(1, classes):
        components, count = ndimage.label(label == index)
        instances[components > 0] = components[components > 0] + total
        total += count
    return instances


def _pairs(images_dir: Path, masks_dir: Path, mask_suffix: str) -> tuple[list[tuple[Path, Path]], list[str]]:
    """The pairs in the order of their names, and what has no partner."""
    images, masks = _files(images_dir), _files(masks_dir)
    if images_dir.resolve() == masks_dir.resolve():
        if not mask_suffix:
            raise ValueError(
                f"{images_dir}: images and masks in one folder need a mask_suffix to tell them apart"
            )
        images = [path for path in images if not path.stem.endswith(mask_suffix)]
    masks = [path for path in masks if path.stem.endswith(mask_suffix)]
    for folder_path, files in ((images_dir, images), (masks_dir, masks)):
        if not files:
            names = f" named *{mask_suffix}" if mask_suffix and folder_path == masks_dir else ""
            raise ValueError(f"{folder_path}: no files{names} of {', '.join(SUFFIXES)}")
    image_of = _by_name(images, "")
    mask_of = _by_name(masks, mask_suffix)
    problems = []
    if image_of.keys() != mask_of.keys():
        problems.append(f"{len(images)} images, {len(masks)} masks")
    for what, missing in (
        ("images without a mask", [image_of[name] for name in sorted(image_of.keys() - mask_of.keys())]),
        ("masks without an image", [mask_of[name] for name in sorted(mask_of.keys() - image_of.keys())]),
    ):
        if missing:
            shown = ", ".join(path.name for path in missing[:SHOWN]) + (
                ", ..." if len(missing) > SHOWN else ""
            )
            problems.append(f"{len(missing)} {what}: {shown}")
    return [(image_of[name], mask_of[name]) for name in sorted(image_of.keys() & mask_of.keys())], problems


def _files(folder_path: Path) -> list[Path]:
    if not folder_path.is_dir():
        raise FileNotFoundError(f"{folder_path}: no such folder")
    return sorted(
        path
        for path in folder_path.iterdir()
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
    )


def _by_name(files: Iterable[Path], suffix: str) -> dict[str, Path]:
    named: dict[str, Path] = {}
    for path in files:
        name = path.stem.removesuffix(suffix)
        if name in named:
            raise ValueError(
                f"{path} and {named[name].name}: two files of one name, so which is meant is unclear"
            )
        named[name] = path
    return named


def _check_channels(images: list[np.ndarray], paths: list[Path]) -> None:
    grey = [path.name for image, path in zip(images, paths, strict=True) if image.shape[2] == 1]
    colour = [path.name for image, path in zip(images, paths, strict=True) if image.shape[2] == 3]
    if grey and colour:
        raise ValueError(
            f"{paths[0].parent}: {len(grey)} grey images ({', '.join(grey[:3])}) and {len(colour)} RGB "
            f"images ({', '.join(colour[:3])}) together: convert them to one kind"
        )


def _size(array: np.ndarray) -> str:
    return f"{array.shape[0]}x{array.shape[1]}"
