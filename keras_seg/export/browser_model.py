"""What the browser page must know of a model: its input, its classes, and answers by which the page checks itself."""

from __future__ import annotations

from typing import Any

import numpy as np

from keras_seg import overlap_tile
from keras_seg.export import metadata, tflite_images
from keras_seg.export.tflite import interpreter
from keras_seg.models import MaskRCNN, UNet

UNET_SIDE = 512  # pixels a side of what a U-Net sees at once
WINDOW = 256  # pixels a side of an image that a detector whose images are enlarged by a factor sees at once
THRESHOLD = 0.5  # where the page's slider starts: of a probability, or the least score
DISCS = 24  # in the picture of the page's check
MOST_ANSWERS = 20  # of objects that the page compares; of probabilities forty times as many
# How far apart the page's numbers and these may be: in half precision or none, and in 8 bits, which each processor rounds in
# its own way.
TOLERANCES = {
    False: {"boxes": 1.0, "scores": 0.03, "masks": 0.05, "probabilities": 0.02, "share": 0.8},
    True: {"boxes": 6.0, "scores": 0.25, "masks": 0.2, "probabilities": 0.15, "share": 0.6},
}


def describe(
    model: UNet | MaskRCNN, size: tuple[int, int], content: bytes, quantize: str | None
) -> dict[str, Any]:
    """An entry of the page's models.json (src/unet.js, src/detector.js, src/results.js, src/selfcheck.js), but for its files.

    size: height and width of the input of the TensorFlow Lite file, whose bytes are `content`.
    """
    about = metadata.describe(model, {})
    classes = list(model.class_names or map(str, range(model.classes)))
    common = {
        "name": model.name,
        "summary": " ".join(
            about["recipe"].get("summary", f"{about['task'].capitalize()} by {model.name}").split()
        ),
        "license": about["licence"] or "",
        "classes": classes,
        "threshold": THRESHOLD,
        "input": list(size),
        "check": answers(content, size, getattr(model, "input_channels", 3))
        | {"tolerances": TOLERANCES[quantize == "dynamic"]},
    }
    if hasattr(model, "legal_sizes"):
        return common | {
            "kind": "unet",
            "border": overlap_tile.border_of(model),
            "multiple": 2**model.depth,
            "versions": model.rotations if size[0] == size[1] else 1,
            "object_class": len(classes) - 1,
        }
    return common | {
        "kind": "detector",
        "convention": model.convention,
        "scale": model.scale,
        "fill": tflite_images.padding(model),
    }


def input_size(model: UNet | MaskRCNN, height: int | None, width: int | None) -> tuple[int, int]:
    """Height and width of the TensorFlow Lite file's input: as given, or as the model wants.

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


def check_picture(height: int, width: int, channels: int) -> np.ndarray:
    """Bright discs on dark ground, the same to the last bit as src/selfcheck.js draws: uint8 [height, width, channels]."""
    state = 1

    def number(below: int) -> int:
        nonlocal state
        state = (1664525 * state + 1013904223) % 2**32  # Numerical Recipes' generator
        return (state >> 16) % below

    rows, columns = np.mgrid[:height, :width]
    picture = 20 + (7 * columns + 13 * rows + columns * rows) % 8
    for _ in range(DISCS):
        x, y, radius, light = number(width), number(height), 6 + number(18), 90 + number(120)
        picture[(columns - x) ** 2 + (rows - y) ** 2 < radius**2] = light
    return np.repeat(picture.astype(np.uint8)[..., None], channels, -1)


def answers(content: bytes, size: tuple[int, int], channels: int) -> dict[str, Any]:
    """What the file gives for `check_picture` in Python: some probabilities and how far they lie apart; or how many objects
    there are, and of the best of them box, score, class and (with masks) the mask's mean."""
    run = interpreter(content).get_signature_runner()
    found = {name: values[0] for name, values in run(images=check_picture(*size, channels)[None]).items()}
    if "probabilities" in found:
        flat = found["probabilities"].ravel()
        step = max(1, len(flat) // (40 * MOST_ANSWERS))
        step += 1 - step % 2  # odd, so that each class has its turn
        return {"step": step, "probabilities": [round(float(value), 5) for value in flat[::step]]}
    count = int(found["num_detections"])
    objects = [
        {
            "box": found["boxes"][n].round(2).tolist(),
            "score": round(float(found["scores"][n]), 4),
            "class": int(found["classes"][n]),
            **({"mask": round(float(found["masks"][n].mean()), 4)} if "masks" in found else {}),
        }
        for n in range(min(count, MOST_ANSWERS))
    ]
    return {"count": count, "objects": objects}
