"""The files that `keras-seg segment` writes of an image or a stack. Each is written whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_seg.findings import Detected, Segmented
from keras_seg.rois import write_rois
from keras_seg.weights.files import replacing

__all__ = ["KINDS", "join_coco", "kinds_of", "write", "write_labels", "write_tiff", "written"]

# What can be kept, and in which files of the output folder; an overlay is of a slice, so a stack has several.
KINDS = {
    "overlay": "the image with the objects drawn, .png",
    "labels": "each object's number in its pixels, .tif of 16 bits (32 for more than 65,535 objects)",
    "coco": "COCO results, .json",
    "rois": "regions of interest for ImageJ, .zip",
    "probabilities": "U-Net: probabilities of the class, .tif of float32",
}
SUFFIXES = {"overlay": ".png", "labels": ".tif", "coco": ".json", "rois": ".zip", "probabilities": ".tif"}
LARGEST = 2**32 - 2**25  # bytes of pixels in a plain TIFF, whose places have 32 bits
SLICES = "_slices"  # the folder of a stack's overlays


def kinds_of(model: Any) -> tuple[str, ...]:
    """Which of KINDS a model's results can be kept as."""
    if not hasattr(model, "short_side"):
        return tuple(KINDS)
    return ("overlay", "labels", "coco", "rois") if model.masks else ("overlay", "coco")


def written(folder: Path, kind: str, name: str, slices: int) -> list[Path]:
    """The files of a kind for an image, or a stack of so many slices."""
    if kind == "overlay" and slices > 1:
        return [folder / kind / f"{name}{SLICES}" / f"{n:04d}.png" for n in range(1, slices + 1)]
    return [folder / kind / f"{name}{SUFFIXES[kind]}"]


def write(folder: Path, kind: str, name: str, found: Sequence[Detected | Segmented], source: str) -> None:
    """Writes a kind of result of an image, or of the slices of a stack, into a folder for all; makes folders as
    needed.

    source: the image's name inside COCO results. OSError where it cannot be written.
    """
    files = written(folder, kind, name, len(found))
    files[0].parent.mkdir(parents=True, exist_ok=True)
    if kind == "overlay":
        for file, one in zip(files, found, strict=True):
            with replacing(file) as temporary:
                one.picture().save(temporary)
    elif kind == "labels":
        write_labels(files[0], [one.labels() for one in found])
    elif kind == "rois":
        write_rois(files[0], [one.regions() for one in found])
    elif kind == "probabilities":
        write_tiff(files[0], np.stack([one.probability for one in found if isinstance(one, Segmented)]))
    else:
        with replacing(files[0]) as temporary:
            temporary.write_text(json.dumps(_coco(found, source)))


def write_labels(path: Path, labels: Sequence[np.ndarray]) -> None:
    """Label images int [H, W], one or a stack, as a TIFF of unsigned integers: of 16 bits, in ImageJ's own form, or
    of 32 where there are more objects."""
    stack = np.stack(labels)
    write_tiff(path, stack.astype(np.uint16 if stack.max(initial=0) < 2**16 else np.uint32))


def write_tiff(path: Path, stack: np.ndarray) -> None:
    """[N, H, W] of uint8, uint16, uint32 or float32, as one image or as a stack, such that ImageJ opens it."""
    import tifffile

    # ImageJ's own form holds no integers of 32 bits, nor 4 GB; ImageJ opens the plain form as well
    imagej = stack.dtype != np.uint32 and stack.nbytes < LARGEST
    bigtiff = not imagej and stack.nbytes >= LARGEST
    shown, axes = (stack, "ZYX") if len(stack) > 1 else (stack[0], "YX")
    with replacing(path) as temporary:
        tifffile.imwrite(
            temporary,
            shown,
            photometric="minisblack",
            metadata={"axes": axes},
            imagej=imagej,
            bigtiff=bigtiff,
        )


def _coco(found: Sequence[Detected | Segmented], source: str) -> dict[str, Any]:
    """{"images": [...], "results": [...]}; the n-th slice has the id n, from 1."""
    images, results = [], []
    for n, one in enumerate(found, start=1):
        height, width = one.pixels.shape[:2]
        images.append({"id": n, "file_name": source, "height": height, "width": width})
        if len(found) > 1:
            images[-1]["slice"] = n
        results += one.coco(n)
    return {"images": images, "results": results}


def join_coco(
    files: Sequence[Path], names: Sequence[str], categories: Sequence[dict[str, Any]], folder: Path
) -> tuple[Path, Path]:
    """The "coco" files of several images as two: coco_results.json, a list of results as `pycocotools` loads them,
    and coco_images.json, annotations without objects, that names images and categories. Image ids run from 1 in the
    order of the files; names: of the images. Returns the two paths."""
    images: list[dict[str, Any]] = []
    results, listing = folder / "coco_results.json", folder / "coco_images.json"
    with replacing(results) as temporary, temporary.open("w") as stream:
        first = True
        for file, name in zip(files, names, strict=True):
            part = json.loads(file.read_text())
            before = len(images)
            images += [{**image, "id": before + image["id"], "file_name": name} for image in part["images"]]
            for one in part["results"]:
                stream.write(
                    ("[" if first else ",\n") + json.dumps({**one, "image_id": before + one["image_id"]})
                )
                first = False
        stream.write("[]" if first else "]")
    with replacing(listing) as temporary:
        temporary.write_text(
            json.dumps({"images": images, "categories": list(categories), "annotations": []}, indent=1)
        )
    return results, listing
