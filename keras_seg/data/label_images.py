"""Label images, in which each object has a number, as COCO JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tifffile

from keras_seg.data.coco_json import Converted, checked_output, label_annotations, write
from keras_seg.data.images import read_image, read_mask, read_stack
from keras_seg.data.progress import track

__all__ = ["from_label_images"]

SUFFIXES = (".png", ".tif", ".tiff", ".jpg", ".jpeg")


def from_label_images(
    images: str | Path,
    labels: str | Path,
    output: str | Path,
    *,
    class_name: str = "object",
    label_suffix: str = "",
    overwrite: bool = False,
) -> Converted:
    """COCO JSON of images whose objects are given by numbers: 0 background, k > 0 an object.

    images, labels: folders whose files pair by their names (but for the ending, and `label_suffix` after a label's
    name), or two TIFF stacks. A stack's pages become TIFF files in a folder beside `output`, named like it. Labels are
    PNG or TIFF. overwrite: whether files that exist are replaced.

    Raises FileNotFoundError, FileExistsError, or ValueError: images without labels and labels without an image (all are
    named), sizes that differ, labels below 0, with fractions, or colours.
    """
    images, labels, output = Path(images), Path(labels), checked_output(output, overwrite)
    if images.is_dir() and labels.is_dir():
        pairs = [
            (
                name.name,
                lambda path=name: read_image(path).shape[:2],
                lambda path=label: read_mask(path),
                str(label),
            )
            for name, label in _pairs(images, labels, label_suffix)
        ]
    else:
        pairs = _stack_pages(images, labels, output, overwrite)
    records: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, (name, size, read, label_name) in enumerate(track(pairs, "Converting labels"), start=1):
        label, (height, width) = read(), size()
        if label.shape != (height, width):
            raise ValueError(
                f"{label_name}: {label.shape[0]}x{label.shape[1]} pixels (height x width), its image {name} has "
                f"{height}x{width}"
            )
        records.append({"id": number, "file_name": name, "height": height, "width": width})
        annotations += label_annotations(label, number, len(annotations) + 1, name=label_name)
    return write(output, records, annotations, [class_name])


def _pairs(images: Path, labels: Path, label_suffix: str) -> list[tuple[Path, Path]]:
    pictures, masks = _by_stem(images), _by_stem(labels)
    if images.resolve() == labels.resolve():
        if not label_suffix:
            raise ValueError(
                f"{images}: images and labels in one folder are told apart by label_suffix, which is empty"
            )
        pictures = {stem: path for stem, path in pictures.items() if not stem.endswith(label_suffix)}
        masks = {stem: path for stem, path in masks.items() if stem.endswith(label_suffix)}
    wanted = {stem + label_suffix for stem in pictures}
    problems = [
        f"{path}: no labels {stem}{label_suffix}.*"
        for stem, path in pictures.items()
        if stem + label_suffix not in masks
    ]
    problems += [f"{path}: no image of that name" for stem, path in masks.items() if stem not in wanted]
    if problems:
        listed = "\n  ".join(sorted(problems))
        raise ValueError(f"{images} and {labels} do not fit together:\n  {listed}")
    if not pictures:
        raise ValueError(f"{images}: no images ({', '.join(SUFFIXES)})")
    return [(path, masks[stem + label_suffix]) for stem, path in pictures.items()]


def _by_stem(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in SUFFIXES:
            continue
        if path.stem in found:
            raise ValueError(f"{path} and {found[path.stem].name}: the same name but for the ending")
        found[path.stem] = path
    return found


def _stack_pages(images: Path, labels: Path, output: Path, overwrite: bool) -> list[tuple]:
    for path, other in ((images, labels), (labels, images)):
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file or folder")
        if path.is_dir() != other.is_dir():
            raise ValueError(f"{images} and {labels}: give two folders or two stacks")
    pages, masks = read_stack(images), read_stack(labels)
    if len(pages) != len(masks) or masks.ndim != 3:
        raise ValueError(
            f"{labels}: labels of shape {list(masks.shape)} for images of shape {list(pages.shape)}; one grey page an "
            f"image"
        )
    folder = output.with_suffix("")
    if folder.exists() and not overwrite:
        raise FileExistsError(
            f"{folder}: the folder for the pages exists already; overwrite=True (--overwrite) writes into it"
        )
    folder.mkdir(parents=True, exist_ok=True)
    for number, page in enumerate(pages):
        photometric = "rgb" if page.ndim == 3 else "minisblack"
        tifffile.imwrite(folder / f"{number:05d}.tif", page, photometric=photometric)
    return [
        (f"{n:05d}.tif", lambda page=page: page.shape[:2], lambda mask=mask: mask, f"{labels}, page {n}")
        for n, (page, mask) in enumerate(zip(pages, masks, strict=True))
    ]
