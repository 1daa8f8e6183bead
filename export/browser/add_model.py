"""Puts a model where the page's build looks for it: models/NAME.tflite, and what the page must know in models/models.json.

    python add_model.py unet_isbi2012 --example ../shared/data/isbi2012/test-volume.tif --credit "ISBI 2012 …"

Run again with another name, it adds that one; with the same, it replaces it.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from keras_seg import overlap_tile, zoo
from keras_seg.data.images import read_image, read_stack
from keras_seg.export import tflite_images
from keras_seg.export.tflite import tflite

MODELS = Path(__file__).resolve().parent / "models"
INDEX = "models.json"
UNET_SIDE = 512  # pixels a side of what a U-Net sees at once
WINDOW = 256  # pixels a side of an image that a detector whose images are enlarged by a factor sees at once
VERSIONS = 7  # symmetries of the square; the page offers their mean where the model's own is more than one
THRESHOLDS = {"unet": 0.5, "detector": 0.5}


def describe(model: Any, summary: str, licence: str, size: tuple[int, int]) -> dict[str, Any]:
    """What the page must know of a model (src/unet.js, src/detector.js, src/results.js), but for its files.

    size: height and width of the TFLite file's input.
    """
    classes = list(model.class_names or map(str, range(model.classes)))
    common = {"name": model.name, "summary": summary, "license": licence, "classes": classes}
    if hasattr(model, "legal_sizes"):
        return common | {
            "kind": "unet",
            "border": overlap_tile.border_of(model),
            "multiple": 2**model.depth,
            "versions": model.rotations if size[0] == size[1] else 1,
            "object_class": len(classes) - 1,
            "threshold": THRESHOLDS["unet"],
        }
    return common | {
        "kind": "detector",
        "convention": model.convention,
        "scale": model.scale,
        "fill": tflite_images.padding(model),
        "threshold": THRESHOLDS["detector"],
    }


def input_size(model: Any, height: int | None, width: int | None) -> tuple[int, int]:
    """Height and width of the TFLite file's input: as given, or as the model wants.

    ValueError: too small for a U-Net to go through larger images in overlapping windows, or sides that turning would change.
    """
    if not hasattr(model, "legal_sizes"):
        side = round(WINDOW * model.scale) if model.scale is not None else model.short_side
        side = -(-side // model.size_divisor) * model.size_divisor
        return height or side, width or side
    border, multiple = overlap_tile.border_of(model), 2**model.depth
    least = 2 * border + multiple
    legal = [
        size - 2 * border
        for size in model.legal_sizes(max(UNET_SIDE, least) + 2 * border)
        if size is not None
    ]
    size = height or legal[-1], width or legal[-1]
    for side in size:
        near = [size - 2 * border for size in model.legal_sizes(side + 2 * border) if size is not None]
        if side < least or side not in near:
            raise ValueError(
                f"{model.name}: an input of {size[0]} x {size[1]} pixels; sides must be at least {least}, and the nearest "
                f"to {side} are {' and '.join(map(str, near))}"
            )
    return size


def write_example(path: Path, number: int, name: str, folder: Path) -> str:
    """An image, or a slice of a stack, as PNG. Returns its file's name."""
    pixels = read_stack(path)[number] if path.suffix in (".tif", ".tiff") else read_image(path)
    file = f"{name}_example.png"
    Image.fromarray(np.squeeze(pixels)).save(folder / file)
    return file


def add_model(
    model: Any,
    folder: Path,
    *,
    summary: str = "",
    licence: str = "",
    height: int | None = None,
    width: int | None = None,
    quantize: str | None = "float16",
    example: dict[str, str] | None = None,
) -> Path:
    """Writes folder/NAME.tflite and puts its description into the folder's index, in place of that of the same name.

    height, width: of the network's input, pixels; None: as the model wants. quantize: of `export.tflite`. example: its
    "file" in the folder and "credit". Returns the TFLite file's path.

    ValueError: a detector in float32, an illegal size; and what `export.tflite` raises.
    """
    if quantize is None and not hasattr(model, "legal_sizes"):
        raise ValueError(
            f"{model.name}: in float32 LiteRT for web (2.5.3) finds other objects from the second image on; use "
            'quantize="float16"'
        )
    folder.mkdir(parents=True, exist_ok=True)
    size = input_size(model, height, width)
    path = folder / f"{model.name}.tflite"
    tflite(model, path, quantize=quantize, height=size[0], width=size[1], overwrite=True)
    entry = (
        describe(model, summary, licence, size)
        | {"file": path.name}
        | ({"example": example} if example else {})
    )
    index = folder / INDEX
    entries = json.loads(index.read_text()) if index.is_file() else []
    entries = [other for other in entries if other["name"] != model.name]
    index.write_text(json.dumps([*entries, entry], indent=1) + "\n")
    return path


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="a name of the zoo, or a recipe")
    parser.add_argument("--weights", default="pretrained", help="a file, in place of the recipe's own")
    parser.add_argument(
        "--height", type=int, help="of the network's input, pixels; by default as the model wants"
    )
    parser.add_argument("--width", type=int)
    parser.add_argument("--quantize", choices=("none", "float16", "dynamic"), default="float16")
    parser.add_argument("--licence", default="Apache-2.0")
    parser.add_argument("--example", type=Path, help="an image that the page offers to try")
    parser.add_argument("--slice", type=int, default=0, help="of the example, if that is a stack")
    parser.add_argument("--credit", default="", help="whose the example is")
    parser.add_argument("--output", type=Path, default=MODELS)
    options = parser.parse_args(arguments)
    try:
        recipe = zoo.show(options.model)
        model = zoo.load(recipe, weights=options.weights)
        example = None
        if options.example:
            options.output.mkdir(parents=True, exist_ok=True)
            file = write_example(options.example, options.slice, model.name, options.output)
            example = {"file": file, "credit": options.credit}
        path = add_model(
            model,
            options.output,
            summary=" ".join(recipe.summary.split()),
            licence=options.licence,
            height=options.height,
            width=options.width,
            quantize=None if options.quantize == "none" else options.quantize,
            example=example,
        )
    except (OSError, ValueError) as error:
        sys.exit(f"add_model: {error}")
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
