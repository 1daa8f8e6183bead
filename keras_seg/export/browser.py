"""A model as a static page, on which a person segments images in a browser, on their own machine.

The page's sources (export/browser in a checkout, keras_seg._browser in an installed package) are bundled by Node with what
npm fetches once into the cache: LiteRT for web and the bundler.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

import keras_seg
from keras_seg import detect
from keras_seg.data.images import read_stack, to_float
from keras_seg.export.browser_model import describe, input_size
from keras_seg.export.comparison import SAME, SURE, differences
from keras_seg.export.tflite import tflite
from keras_seg.instances import Instances
from keras_seg.models import MaskRCNN, UNet
from keras_seg.ops.rle import to_string
from keras_seg.segment import segment
from keras_seg.weights.download import cache_folder, locked
from keras_seg.weights.files import folder_beside

MODES = (None, "float16", "dynamic")
INDEX = "models.json"
OLDEST_NODE = 20
CHROMIUMS = ("chromium", "chromium-headless-shell", "google-chrome", "google-chrome-stable")
# Largest differences that are rounding, in half precision too: boxes in pixels, scores, probabilities, shares of masks
TOLERANCES = {"boxes": 0.5, "scores": 1e-2, "probabilities": 1e-2, "masks": 0.05}
PAGE = ("*.html", "*.css", "*.mjs", "*.json", "src/*.js")  # of the sources, what a page is built from


class NotInstalled(OSError):
    """Node, npm, npm's packages or Chromium are needed and not there."""


def browser(
    model: UNet | MaskRCNN,
    path: str | Path,
    *,
    quantize: str | None = "float16",
    height: int | None = None,
    width: int | None = None,
    example: Any = None,
    credit: str = "",
    overwrite: bool = False,
) -> Path:
    """Write a page for any web server: a folder; or, with a name that ends in .html, one file that opens from a disk.

    A folder that is such a page already takes the model in beside those that it offers. Needs Node 20 or later with npm,
    which fetches LiteRT for web and a bundler at the first export (KERAS_SEG_OFFLINE=1: from npm's own cache alone).

    Args:
        model: a U-Net (`models.unet`) or a detector (`models.mask_rcnn`).
        quantize: as of `export.tflite`: None, "float16" or "dynamic".
        height, width: of what the network sees at once, pixels; None: as suits the model. Larger images go through in
            overlapping windows, or (detectors without `scale`) are made to fit.
        example: an image that the page offers to try, a path (of a stack the first slice) or an array. credit: whose it is.
        overwrite: replace an .html file, or the model of the same name in a page.

    Returns: the path. What is there appears complete or not at all; an error leaves what was there.

    Raises:
        TypeError, ValueError: what `export.tflite` and `browser_model.input_size` refuse; another precision; a model of other
            channels than pictures have; an example that cannot be read.
        FileExistsError: `path` is there, and no page, or the page offers a model of this name. OSError: it cannot be written.
        NotInstalled: Node, npm or npm's packages are missing. RuntimeError: the bundler or the converter failed.
    """
    path = Path(path)
    if quantize not in MODES:
        raise ValueError(f"browser: quantize must be one of {', '.join(map(repr, MODES))}, got {quantize!r}")
    if not hasattr(model, "legal_sizes") and not hasattr(model, "short_side"):
        raise TypeError(f"browser: takes a model of keras_seg.models, got {type(model).__name__}")
    if getattr(model, "input_channels", 3) not in (1, 3):
        raise ValueError(
            f"browser: {model.name} takes {model.input_channels} channels, and pictures have 1 or 3"
        )
    others = _others(path, model.name, overwrite)
    size = input_size(model, height, width)
    shown = None if example is None else np.squeeze(pixels_for_page(model, example))
    workshop = page_workshop()
    with folder_beside(path) as folder:
        models, fresh = folder / "models", folder / ("fresh.html" if path.suffix == ".html" else "fresh")
        models.mkdir()
        for file in (file for entry in others for file in _files(entry)):
            shutil.copy(path / file, models / file)
        written = tflite(
            model, models / f"{model.name}.tflite", quantize=quantize, height=size[0], width=size[1]
        )
        entry = describe(model, size, written.read_bytes(), quantize) | {"file": written.name}
        if shown is not None:
            entry["example"] = {"file": f"{model.name}_example.png", "credit": credit}
            Image.fromarray(shown).save(models / entry["example"]["file"])
        (models / INDEX).write_text(json.dumps([*others, entry], indent=1) + "\n")
        _node(workshop, "build.mjs", models, fresh)
        if path.is_dir():
            _keep_others_files(path, fresh, model.name)
        if path.exists():
            path.rename(folder / "former")
        fresh.rename(path)
    return path


def browser_differences(model: UNet | MaskRCNN, path: str | Path, image: Any) -> dict[str, float]:
    """`comparison.differences` of `segment` and what the page at `path` finds in a headless Chromium; of masks, which the
    page saves pasted, the largest share in which two of one object do not overlap.

    image: a path (of a stack the first slice) or an array, made 8 bits.

    NotInstalled: Chromium is not on the PATH, and $CHROMIUM does not name it; or Node or npm's packages are missing.
    RuntimeError: what the page says instead of a result.
    """
    pixels, unet = pixels_for_page(model, image), hasattr(model, "legal_sizes")
    chromium, workshop = chromium_program(), page_workshop()
    with tempfile.TemporaryDirectory() as folder:
        picture, numbers = Path(folder, "image.png"), Path(folder, "found.npy" if unet else "found.json")
        Image.fromarray(np.squeeze(pixels)).save(picture)
        _node(workshop, "look.mjs", Path(path).resolve(), model.name, picture, numbers, chromium)
        if unet:
            return differences(segment(model, pixels, rotations=1, progress=False), np.load(numbers))
        found = json.loads(numbers.read_text())["detections"]
    expected = segment(model, pixels, score_threshold=0.0, max_detections=model.detections)
    return objects_differ(expected, found)


def objects_differ(expected: Instances, found: list[dict[str, Any]]) -> dict[str, float]:
    """As `browser_differences`. found: "detections" of the JSON that the page saves."""
    others = Instances(
        boxes=np.array([one["box"] for one in found], np.float32).reshape(-1, 4),
        scores=np.array([one["score"] for one in found], np.float32),
        classes=np.array([one["class"] for one in found], np.int32),
        image_size=expected.image_size,
    )
    compared = differences(dataclasses.replace(expected, mask_probabilities=None, keypoints=None), others)
    if expected.mask_probabilities is not None and len(found):
        masks = [
            one["segmentation"] | {"counts": to_string(np.array(one["segmentation"]["counts"]))}
            for one in found
        ]
        sure = [one["segmentation"] for one in expected.filter(SURE).to_coco(0)]
        overlaps = coco_mask.iou(sure, masks, [0] * len(masks)).max(axis=1) if sure else np.ones(1)
        compared["masks"] = float(1 - overlaps[overlaps > SAME].min(initial=1.0))
    return compared


def shows_whole(model: UNet | MaskRCNN, path: str | Path, image: Any) -> bool:
    """Whether the page computes the image as `segment` does: a U-Net's page always, a detector's where the resized image is
    what the network sees at once."""
    if hasattr(model, "legal_sizes"):
        return True
    size = detect.resized_size(model, *pixels_for_page(model, image).shape[:2])
    entry = next(entry for entry in _entries(Path(path)) if entry["name"] == model.name)
    return list(size) == entry["input"]


def pixels_for_page(model: UNet | MaskRCNN, image: Any) -> np.ndarray:
    """An image as the page takes it, of 8 bits: uint8 [H, W, C]. Of a stack the first slice."""
    if not hasattr(model, "legal_sizes"):
        return detect.pixels_of(image, "image")
    pixels = read_stack(image)[0] if isinstance(image, str | Path) else np.asarray(image)
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    return np.rint(to_float(pixels, name="image", may_be_constant=True)).astype(np.uint8)


def page_workshop() -> Path:
    """A folder in the cache with the page's sources and npm's packages, made on first use.

    NotInstalled: Node or npm are missing or too old, or npm cannot fetch the packages.
    """
    _check_node()
    sources = _sources()
    files = sorted(file for pattern in PAGE for file in sources.glob(pattern))
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.relative_to(sources).as_posix().encode() + b"\0" + file.read_bytes())
    place = cache_folder() / "browser" / digest.hexdigest()[:16]
    with locked(place):
        if not place.is_dir():
            with tempfile.TemporaryDirectory(dir=place.parent) as folder:
                fresh = Path(folder, "fresh")
                for file in files:
                    copy = fresh / file.relative_to(sources)
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(file, copy)
                _fetch_packages(fresh)
                fresh.rename(place)
    return place


def chromium_program() -> str:
    """The Chromium in which a page is tried: $CHROMIUM, or one on the PATH. NotInstalled: neither is there."""
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, CHROMIUMS)), None)
    if found is None or shutil.which(found) is None:
        raise NotInstalled(
            f"browser: {found or 'Chromium'} is not there, in which the page is tried: install it (Debian: apt install "
            "chromium), or name it in the environment variable CHROMIUM"
        )
    return found


def _sources() -> Path:
    """Where the page's sources lie: inside an installed package, or beside it in a checkout."""
    package = Path(keras_seg.__file__).parent
    places = package / "_browser", package.parent / "export" / "browser"
    return next(folder for folder in places if (folder / "build.mjs").is_file())


def _check_node() -> None:
    advice = "install Node 20 or later with npm (https://nodejs.org; Debian: apt install nodejs npm)"
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            raise NotInstalled(f"browser: {program} is not on the PATH, and bundles the page: {advice}")
    version = subprocess.run(["node", "--version"], capture_output=True, text=True, check=False).stdout
    major = re.match(r"v(\d+)", version)
    if not major or int(major[1]) < OLDEST_NODE:
        raise NotInstalled(f"browser: node is {version.strip() or 'broken'}: {advice}")


def _fetch_packages(folder: Path) -> None:
    offline = os.environ.get("KERAS_SEG_OFFLINE", "") not in ("", "0")
    command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    command.append("--offline" if offline else "--prefer-offline")
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        why = "KERAS_SEG_OFFLINE is set and npm's cache lacks them" if offline else done.stderr.strip()[-400:]
        raise NotInstalled(
            f"browser: npm could not fetch the page's packages (LiteRT for web and a bundler): {why}. They are kept once "
            "they are there: try again with a connection to npm's registry"
        )


def _node(workshop: Path, script: str, *arguments: str | Path) -> None:
    command = ["node", str(workshop / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(
            f"browser: {done.stderr.strip()[-600:] or f'{script} ended with {done.returncode}'}"
        )


def _entries(path: Path) -> list[dict[str, Any]]:
    """What the page in a folder or file offers."""
    if path.is_dir():
        return json.loads((path / INDEX).read_text())
    inside = re.search(rf'id="asset:{INDEX}">([^<]*)<', path.read_text())
    if inside is None:
        raise ValueError(f"{path}: no page that export.browser wrote")
    return json.loads(base64.b64decode(cast(re.Match, inside)[1]))


def _others(path: Path, name: str, overwrite: bool) -> list[dict[str, Any]]:
    """The other models of the page that is there; raises before the work what would keep the page from being written."""
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return []
    if path.suffix == ".html":
        if path.is_dir() or not overwrite:
            raise FileExistsError(
                f"{path}: is there already; give another path, or overwrite=True to replace it"
            )
        return []
    if not path.is_dir():
        raise FileExistsError(f"{path}: is a file; a page is a folder, or a file whose name ends in .html")
    if not all((path / file).is_file() for file in (INDEX, "worker.js")):
        raise FileExistsError(f"{path}: holds something else than a page; give another path")
    entries = _entries(path)
    if name in (entry["name"] for entry in entries) and not overwrite:
        raise FileExistsError(f"{path}: offers {name} already; overwrite=True replaces it")
    return [entry for entry in entries if entry["name"] != name]


def _keep_others_files(path: Path, fresh: Path, name: str) -> None:
    """What somebody else has put into the page's folder stays there."""
    former = _entries(path) if (path / INDEX).is_file() else []
    replaced = {file for entry in former if entry["name"] == name for file in _files(entry)}
    for item in path.iterdir():
        if item.name not in replaced and not (fresh / item.name).exists():
            if item.is_dir():
                shutil.copytree(item, fresh / item.name)
            else:
                shutil.copy2(item, fresh / item.name)


def _files(entry: dict[str, Any]) -> list[str]:
    return [entry["file"], *([entry["example"]["file"]] if "example" in entry else [])]
