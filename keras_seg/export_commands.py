"""The command `keras-seg export`."""

from __future__ import annotations

import math
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

import keras_seg
from keras_seg.command_options import Name, WeightsFile, check_own_rpn, examples

if TYPE_CHECKING:
    from keras_seg.models import MaskRCNN, UNet

__all__ = ["add_to"]


class Format(StrEnum):
    SAVEDMODEL = "savedmodel"
    TFLITE = "tflite"
    BROWSER = "browser"


# What each option is for; the others are for all formats.
FORMATS = {
    "--masks": {Format.SAVEDMODEL},
    "--most-pixels": {Format.SAVEDMODEL},
    "--most-images": {Format.SAVEDMODEL},
    "--most-request-pixels": {Format.SAVEDMODEL},
    "--for-gpu": {Format.SAVEDMODEL},
    "--quantize": {Format.TFLITE, Format.BROWSER},
    "--height": {Format.TFLITE, Format.BROWSER},
    "--width": {Format.TFLITE, Format.BROWSER},
    "--select-ops": {Format.TFLITE},
    "--representative": {Format.TFLITE},
    "--example": {Format.BROWSER},
    "--credit": {Format.BROWSER},
}


def add_to(app: typer.Typer) -> None:
    app.command(
        epilog=examples(
            "keras-seg export maskrcnn_nuclei serving/nuclei/1 --check",
            "keras-seg export unet_isbi2012 unet.tflite --format tflite --quantize dynamic",
        )
    )(export)


def export(
    name: Name,
    path: Annotated[
        Path,
        typer.Argument(
            help="SavedModel: the folder to write. TFLite: the file. Browser: the page's folder, or NAME.html for all in one file."
        ),
    ],
    weights: WeightsFile = "pretrained",
    format: Annotated[Format, typer.Option(help="What to write.")] = Format.SAVEDMODEL,
    masks: Annotated[
        str | None, typer.Option(help="SavedModel of a detector: probabilities (default), pasted or bits.")
    ] = None,
    most_pixels: Annotated[
        int | None,
        typer.Option(min=1, help="SavedModel: images of more pixels are refused. [default: 2**24]"),
    ] = None,
    most_images: Annotated[
        int | None, typer.Option(min=1, help="SavedModel: requests of more images are refused. [default: 64]")
    ] = None,
    most_request_pixels: Annotated[
        int | None,
        typer.Option(min=1, help="SavedModel: requests of more pixels in all are refused. [default: 2**26]"),
    ] = None,
    for_gpu: Annotated[
        bool, typer.Option("--for-gpu", help="SavedModel: plain convolutions, for servers with a GPU.")
    ] = False,
    quantize: Annotated[
        str | None,
        typer.Option(help="TFLite: float16, dynamic or int8. Browser: float16 (default), dynamic or none."),
    ] = None,
    select_ops: Annotated[
        bool, typer.Option("--select-ops", help="TFLite: allow TensorFlow's own operators.")
    ] = False,
    height: Annotated[int | None, typer.Option(min=1, help="TFLite, browser: of the input, pixels.")] = None,
    width: Annotated[int | None, typer.Option(min=1, help="TFLite, browser: of the input, pixels.")] = None,
    representative: Annotated[
        Path | None,
        typer.Option(help="TFLite, int8: a folder of images like those it will see, or the recipe's data."),
    ] = None,
    example: Annotated[
        Path | None, typer.Option(help="Browser: an image that the page offers to try.")
    ] = None,
    credit: Annotated[str | None, typer.Option(help="Browser: whose the example is.")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what is there; of a page the model of this name.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Load it back and print how far it is from the Keras model.")
    ] = False,
    image: Annotated[
        Path | None, typer.Option(help="For --check: an image of what the model knows; else a drawn one.")
    ] = None,
) -> None:
    """Write a model for TensorFlow Serving and C++ (SavedModel), for phones and small computers (TFLite), or as a page in which
    a person segments images on their own machine (browser: needs Node with npm; --check needs Chromium too).

    With --check the exit status is 1 if the results differ by more than rounding; of numbers of fewer bits (a page: 8 bits, or
    images that a detector sees in several windows) the differences are told, not judged.
    """
    from keras_seg.data.progress import working

    recipe = keras_seg.zoo.show(name)
    check_own_rpn(recipe)
    if image is not None and not check:
        raise ValueError("--image is for --check")
    if credit is not None and example is None:
        raise ValueError("--credit is for --example")
    given = {
        "--masks": masks, "--most-pixels": most_pixels, "--most-images": most_images,
        "--most-request-pixels": most_request_pixels, "--for-gpu": for_gpu or None,
        "--quantize": quantize, "--select-ops": select_ops or None, "--height": height, "--width": width,
        "--representative": representative, "--example": example, "--credit": credit,
    }  # fmt: skip
    foreign = [o for o, value in given.items() if value is not None and format not in FORMATS[o]]
    if foreign:
        raise ValueError(f"{foreign[0]} is not for --format {format}")
    if check and format == "browser":
        from keras_seg.export.browser import chromium_program

        chromium_program()  # raises before the work
    model = keras_seg.zoo.load(recipe, weights)  # with a bar of its own if they are fetched
    with working(f"exporting {name}"):
        if format == "tflite":
            keras_seg.export.tflite(
                model, path, quantize=quantize, select_ops=select_ops, height=height, width=width,
                representative=representative, overwrite=overwrite,
            )  # fmt: skip
        elif format == "browser":
            keras_seg.export.browser(
                model, path, quantize={None: "float16", "none": None}.get(quantize, quantize), height=height,
                width=width, example=example, credit=credit or "", overwrite=overwrite,
            )  # fmt: skip
        else:
            keras_seg.export.saved_model(
                model, path, masks="probabilities" if masks is None else masks, most_pixels=most_pixels,
                most_images=most_images, most_request_pixels=most_request_pixels, winograd=not for_gpu,
                overwrite=overwrite,
            )  # fmt: skip
    print(_written(path, format, model.name if format == "browser" else name))
    if check:
        side = min(256 if format == "browser" else 320, math.isqrt(most_pixels or 2**24))
        check_picture = drawn_picture(model, side) if image is None else image
        _check(model, path, format, quantize, check_picture)


def _written(path: Path, format: Format, name: str) -> str:
    if format == "tflite":
        return f"{path}: TensorFlow Lite file of {name}, {path.stat().st_size / 1e6:.1f} MB"
    if format == "browser":
        if path.is_file():
            return f"{path}: page with {name}"
        return f"{path / 'index.html'}: page with {name}; put the folder on any web server"
    return f"{path}: SavedModel of {name}"


def _check(model: UNet | MaskRCNN, path: Path, format: Format, quantize: str | None, image: Any) -> None:
    from keras_seg.data.progress import working
    from keras_seg.export import comparison

    judged = not quantize
    with working("comparing with the model"):
        if format == "tflite":
            compared, tolerances = comparison.tflite_differences(model, path, image), comparison.TFLITE
        elif format == "browser":
            from keras_seg.export.browser import TOLERANCES, browser_differences, shows_whole

            compared, tolerances = browser_differences(model, path, image), TOLERANCES
            judged = quantize != "dynamic" and shows_whole(model, path, image)
        else:
            compared = comparison.saved_model_differences(model, path, image)
            tolerances = comparison.SAVED_MODEL
    for what, value in compared.items():
        unit = " px" if what in ("boxes", "keypoints") else ""
        print(f"  {what:<20} {value:.2g}{unit}" if isinstance(value, float) else f"  {what:<20} {value}")
    over = comparison.exceeded(compared, tolerances) if judged else []
    if over:
        print(f"differ by more than rounding: {', '.join(over)}")
        raise typer.Exit(1)


def drawn_picture(model: UNet | MaskRCNN, side: int = 320) -> np.ndarray:
    """Bright discs of several sizes on a dark ground with noise: uint8 [side, side, C]."""
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[:side, :side]
    picture = random.normal(20, 4, (side, side))
    for x, y, radius in random.uniform([0, 0, 6], [side, side, 24], (30, 3)):
        picture[(columns - x) ** 2 + (rows - y) ** 2 < radius**2] += 120
    channels = getattr(model, "input_channels", 3)
    return np.repeat(picture.clip(0, 255).astype(np.uint8)[..., None], channels, axis=-1)
