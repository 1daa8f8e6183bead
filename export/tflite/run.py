#!/usr/bin/env python3
"""Segments an image with a TensorFlow Lite file that keras_seg wrote. Needs ai-edge-litert, numpy and pillow alone.

    python run.py MODEL.tflite IMAGE --output result.png

The output's name says what it is: .json, .npy (a U-Net's probabilities) or a picture.
"""

from __future__ import annotations

import argparse
import colorsys
import io
import itertools
import json
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from PIL import Image, ImageDraw, ImageOps, UnidentifiedImageError

FORMAT = 1  # of keras_seg.json
OPACITY = 0.45


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("image", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--score-threshold", type=float, default=0.5, help="least score of an object")
    parser.add_argument("--threads", type=int, default=None)
    args = parser.parse_args()
    try:
        about, runner = load(args.model, args.threads)
        image = read(args.image)
        if about["task"] == "segmentation":
            write_classes(args.output, image, segment(runner, about, image), about)
        else:
            write_objects(args.output, image, detect(runner, about, image, args.score_threshold))
    except (OSError, ValueError) as error:
        sys.exit(f"run.py: {error}")
    print(args.output)


def load(
    path: Path, threads: int | None = None
) -> tuple[dict[str, Any], Callable[..., dict[str, np.ndarray]]]:
    """What the file says of itself, and a function from images=uint8 [1, H, W, C] to its outputs by name."""
    content = path.read_bytes()
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            about = json.loads(archive.read("keras_seg.json"))
    except (zipfile.BadZipFile, KeyError):
        raise ValueError(
            f"{path}: not a TensorFlow Lite file of keras_seg (it has no keras_seg.json inside)"
        ) from None
    if about["format"] > FORMAT:
        raise ValueError(f"{path}: has format {about['format']}, and this program reads {FORMAT}")
    if about["select_ops"]:
        raise ValueError(f"{path}: needs TensorFlow's own operators, which this runtime lacks")
    return about, Interpreter(model_content=content, num_threads=threads).get_signature_runner()


def read(path: Path) -> Image.Image:
    """Upright, grey or RGB."""
    try:
        image = ImageOps.exif_transpose(Image.open(path))
    except UnidentifiedImageError:
        raise ValueError(f"{path}: not an image") from None
    return image if image.mode == "L" else image.convert("RGB")


# --- U-Nets ---


def segment(
    runner: Callable[..., dict[str, np.ndarray]], about: Mapping[str, Any], image: Image.Image
) -> np.ndarray:
    """Probabilities float32 [H, W, K]. Where the image is not as large as a fixed input, windows overlap by as much as the
    network sees, or half the input."""
    taken = about["input"]
    channels = taken["shape"][3]
    if channels not in (1, 3):
        raise ValueError(f"the model takes {channels} channels, and pictures have 1 or 3")
    pixels = np.asarray(image.convert("L" if channels == 1 else "RGB")).reshape(
        image.height, image.width, channels
    )
    sides = [
        side or _legal(length, taken) for side, length in zip(taken["shape"][1:3], pixels.shape, strict=False)
    ]
    result = np.empty((*pixels.shape[:2], about["classes"]), np.float32)
    rows, columns = (
        _windows(length, side, min(taken["context"], side // 4), taken["multiple"])
        for length, side in zip(pixels.shape[:2], sides, strict=True)
    )
    for top, inner_rows in rows:
        for left, inner_columns in columns:
            lines, places = (
                _mirrored(np.arange(start, start + side), length)
                for start, side, length in zip((top, left), sides, pixels.shape, strict=False)
            )
            found = runner(images=pixels[lines[:, None], places][None])["probabilities"][0]
            here = slice(*inner_rows), slice(*inner_columns)
            result[here] = found[
                inner_rows[0] - top : inner_rows[1] - top, inner_columns[0] - left : inner_columns[1] - left
            ]
    return result


def _legal(length: int, taken: Mapping[str, Any]) -> int:
    """The side of a resizable input for so many pixels: as many, or more by what the network sees beyond them."""
    for wanted in (length, length + taken["context"]):
        steps = max(0, -(-(wanted - taken["least"]) // taken["multiple"]))
        side = taken["least"] + steps * taken["multiple"]
        if side == length:
            break
    return side


def _windows(length: int, side: int, overlap: int, multiple: int) -> list[tuple[int, tuple[int, int]]]:
    """Where windows start that cover an axis, and which pixels, start and stop, each of them gives.

    They start where the network's pooling does in the whole image. The last one ends with the image or far beyond it, in
    what mirroring adds.
    """
    step = max(multiple, (side - 2 * overlap) // multiple * multiple)
    starts = [0]
    while starts[-1] + side != length and starts[-1] + side < length + overlap:
        starts.append(starts[-1] + step)
    cuts = [0, *(min((a + side + b) // 2, length) for a, b in itertools.pairwise(starts)), length]
    windows = zip(starts, itertools.pairwise(cuts), strict=True)
    return [(start, (first, stop)) for start, (first, stop) in windows if first < stop]


def _mirrored(index: np.ndarray, length: int) -> np.ndarray:
    period = max(2 * (length - 1), 1)
    index = index % period
    return np.minimum(index, period - index) if length > 1 else index * 0


def write_classes(
    path: Path, image: Image.Image, probabilities: np.ndarray, about: Mapping[str, Any]
) -> None:
    """A picture of the classes but for the first, the probabilities, or each class's share of the pixels."""
    names = about["class_names"] or [f"class {k}" for k in range(about["classes"])]
    classes = probabilities.argmax(-1) if about["classes"] > 1 else (probabilities[..., 0] > 0.5).astype(int)
    if path.suffix == ".npy":
        np.save(path, probabilities)
    elif path.suffix == ".json":
        shares = {name: float((classes == k).mean()) for k, name in enumerate(names)}
        path.write_text(json.dumps({"size": [*classes.shape], "share of pixels": shares}, indent=1) + "\n")
    else:
        picture = np.asarray(image.convert("RGB"), np.float32)
        for k in range(1, max(2, len(names))):
            picture[classes == k] = _blend(picture[classes == k], k)
        Image.fromarray(picture.astype(np.uint8)).save(path)


# --- detectors ---


def detect(
    runner: Callable[..., dict[str, np.ndarray]],
    about: Mapping[str, Any],
    image: Image.Image,
    threshold: float = 0.5,
) -> list[dict[str, Any]]:
    """The objects of an image in its pixels: "box" [x1, y1, x2, y2], "score", "class" and its "name", "mask" bool [H, W],
    "keypoints" [K, 3], by falling score."""
    height, width = about["input"]["shape"][1:3]
    resized = _resized_size(image.height, image.width, about["input"])
    pixels = np.empty((1, height, width, 3), np.uint8)
    pixels[:] = about["input"]["padding"]
    small = image.convert("RGB").resize(resized[::-1], Image.Resampling.BILINEAR)
    pixels[0, : resized[0], : resized[1]] = np.asarray(small)
    found = {name: values[0] for name, values in runner(images=pixels).items()}
    scale = np.array([image.width / resized[1], image.height / resized[0]], np.float32)
    names, objects = about["class_names"], []
    for n in range(int(found["num_detections"])):
        if found["scores"][n] < threshold:
            break
        box = np.clip(found["boxes"][n] * np.tile(scale, 2), 0, [image.width, image.height] * 2)
        number = int(found["classes"][n])
        one = {"box": box, "score": float(found["scores"][n]), "class": number}
        one["name"] = names[number] if names else f"class {number}"
        if "masks" in found:
            one["mask"] = _pasted(found["masks"][n], box, image.height, image.width)
        if "keypoints" in found:
            one["keypoints"] = found["keypoints"][n] * np.array([*scale, 1], np.float32)
        objects.append(one)
    return objects


def _resized_size(height: int, width: int, taken: Mapping[str, Any]) -> tuple[int, int]:
    """As the model's images are resized, and smaller where that does not fit the input."""
    how = taken["resize"]
    scale = how["scale"] or min(how["short_side"] / min(height, width), how["max_side"] / max(height, width))
    scale = min(scale, taken["shape"][1] / height, taken["shape"][2] / width)
    return tuple(
        max(1, min(round(side * scale), most))
        for side, most in zip((height, width), taken["shape"][1:3], strict=True)
    )


def _pasted(probabilities: np.ndarray, box: np.ndarray, height: int, width: int) -> np.ndarray:
    """A mask [m, m] over its box as pixels, bool [H, W]: bilinear, above one half."""
    along = []
    for low, high, length, cells in zip(
        box[:2], box[2:], (width, height), probabilities.shape[::-1], strict=True
    ):
        places = (np.arange(length) + 0.5 - low) / max(high - low, 1e-6) * cells - 0.5
        along.append(np.maximum(1 - np.abs(places[:, None] - np.arange(cells)), 0))
    return along[1] @ probabilities @ along[0].T >= 0.5


def write_objects(path: Path, image: Image.Image, objects: list[dict[str, Any]]) -> None:
    """A picture with the objects drawn, or a list of them: masks as COCO's run lengths, column by column."""
    if path.suffix == ".npy":
        raise ValueError(f"{path}: .npy is for the probabilities of a U-Net; give .json or a picture")
    if path.suffix == ".json":
        path.write_text(json.dumps([_plain(one) for one in objects], indent=1) + "\n")
        return
    picture = np.asarray(image.convert("RGB"), np.float32)
    for n, one in enumerate(objects):
        if "mask" in one:
            picture[one["mask"]] = _blend(picture[one["mask"]], n)
    drawn = Image.fromarray(picture.astype(np.uint8))
    draw = ImageDraw.Draw(drawn)
    for n, one in enumerate(objects):
        colour = tuple(int(value) for value in _colour(n))
        draw.rectangle([float(value) for value in one["box"]], outline=colour)
        for x, y, _ in one.get("keypoints", ()):
            draw.ellipse([float(x) - 2, float(y) - 2, float(x) + 2, float(y) + 2], fill=colour)
    drawn.save(path)


def _plain(one: Mapping[str, Any]) -> dict[str, Any]:
    plain = {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in one.items()}
    if "mask" in one:
        flat = np.concatenate(([False], one["mask"].ravel(order="F")))
        changes = np.flatnonzero(flat[1:] != flat[:-1])
        counts = np.diff(np.concatenate(([0], changes, [flat.size - 1])))
        plain["mask"] = {"size": [*one["mask"].shape], "counts": counts.tolist()}
    return plain


def _colour(number: int) -> np.ndarray:
    """Neighbouring numbers have different hues."""
    return 255 * np.array(colorsys.hsv_to_rgb(number * 0.618 % 1, 0.85, 1.0))


def _blend(pixels: np.ndarray, number: int) -> np.ndarray:
    return pixels * (1 - OPACITY) + _colour(number) * OPACITY


if __name__ == "__main__":
    main()
