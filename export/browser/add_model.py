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

from keras_seg import export, overlap_tile, zoo
from keras_seg.data.images import read_stack

MODELS = Path(__file__).resolve().parent / "models"
INDEX = "models.json"
OUTPUT_TILE = 512  # pixels a side of what one pass of a U-Net gives
WINDOW = 256  # pixels a side of an image that a detector whose images are enlarged by a factor sees at once
VERSIONS = 7  # symmetries of the square; the page offers their mean where the model's own is more than one
THRESHOLDS = {"unet": 0.5, "detector": 0.5}


def describe(
    model: Any, name: str, summary: str, licence: str, input_size: tuple[int, int]
) -> dict[str, Any]:
    """What the page must know of a model (src/unet.js, src/detector.js), but for its files.

    input_size: height and width of the TFLite file's input.
    """
    classes = list(model.class_names or map(str, range(model.classes)))
    common = {"name": name, "title": name, "summary": summary, "license": licence, "classes": classes}
    if hasattr(model, "legal_sizes"):
        return common | {
            "kind": "unet",
            "border": overlap_tile.border_of(model),
            "multiple": 2**model.depth,
            "versions": model.rotations if input_size[0] == input_size[1] else 1,
            "object_class": len(classes) - 1,
            "threshold": THRESHOLDS["unet"],
        }
    return common | {
        "kind": "detector",
        "convention": model.convention,
        "scale": model.scale,
        "fill": [round(value) for value in model.get_config()["pixel_mean"]],
        "threshold": THRESHOLDS["detector"],
    }


def input_size(model: Any, height: int | None, width: int | None) -> tuple[int, int]:
    """Height and width of the TFLite file's input: as given, or a tile and its borders, or a detector's own."""
    if hasattr(model, "legal_sizes"):
        border = 2 * overlap_tile.border_of(model)
        side = model.legal_sizes(OUTPUT_TILE + border)[1]
    else:
        side = round(WINDOW * model.scale) if model.scale is not None else model.short_side
        side = -(-side // model.size_divisor) * model.size_divisor
    return height or side, width or side


def write_example(path: Path, number: int, name: str, folder: Path) -> str:
    """An image, or a slice of a stack, as PNG. Returns its file's name."""
    Image.fromarray(
        read_stack(path)[number] if path.suffix in (".tif", ".tiff") else np.asarray(Image.open(path))
    ).save(folder / (file := f"{name}_example.png"))
    return file


def add(entry: dict[str, Any], folder: Path) -> None:
    """Puts a model's description into the index, in place of that of the same name."""
    index = folder / INDEX
    entries = json.loads(index.read_text()) if index.is_file() else []
    entries = [other for other in entries if other["name"] != entry["name"]]
    index.write_text(json.dumps([*entries, entry], indent=1) + "\n")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="a name of the zoo, or a recipe")
    parser.add_argument("--weights", default="pretrained", help="a file, in place of the recipe's own")
    parser.add_argument("--height", type=int, help="of the network's input, pixels; None: as the model wants")
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
        height, width = input_size(model, options.height, options.width)
        options.output.mkdir(parents=True, exist_ok=True)
        entry = describe(
            model, recipe.name, " ".join(recipe.summary.split()), options.licence, (height, width)
        )
        entry["file"] = f"{recipe.name}.tflite"
        quantize = None if options.quantize == "none" else options.quantize
        path = export.tflite(
            model,
            options.output / entry["file"],
            quantize=quantize,
            height=height,
            width=width,
            overwrite=True,
        )
        if options.example:
            file = write_example(options.example, options.slice, recipe.name, options.output)
            entry["example"] = {"file": file, "credit": options.credit}
        add(entry, options.output)
    except (OSError, ValueError) as error:
        sys.exit(f"add_model: {error}")
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, input {height} x {width}")


if __name__ == "__main__":
    main()
