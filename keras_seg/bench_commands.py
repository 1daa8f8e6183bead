"""The command `keras-seg bench`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

import keras_seg
from keras_seg.command_options import AsJson, Name, WeightsFile, check_own_rpn, examples, import_tensorflow

__all__ = ["add_to"]


def add_to(app: typer.Typer) -> None:
    app.command(
        epilog=examples(
            "keras-seg bench maskrcnn_nuclei --image well.png",
            "keras-seg bench unet_isbi2012 --size 1024 1024 --batch-sizes 1,2,4 --rounds 20",
            "keras-seg bench maskrcnn_r50_fpn --precision bfloat16 --json",
        )
    )(bench)


def bench(
    name: Name,
    weights: WeightsFile = "pretrained",
    image: Annotated[
        Path | None, typer.Option(help="An image to segment; else a drawn one of the model's own size.")
    ] = None,
    size: Annotated[
        tuple[int, int] | None, typer.Option(metavar="HEIGHT WIDTH", help="Of the drawn image, pixels.")
    ] = None,
    batch_sizes: Annotated[str, typer.Option(metavar="SIZES", help="Images at once, as in 1,2,4.")] = "1",
    rounds: Annotated[int, typer.Option(min=1, help="How often it is measured.")] = 10,
    warmup: Annotated[int, typer.Option(min=0, help="How often before, after the first time.")] = 2,
    precision: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    as_json: AsJson = False,
) -> None:
    """Measure a model's speed and peak memory on this machine.

    From pixels in memory to probabilities, or to objects with masks. Each batch size runs in a process of its own.
    WEIGHTS "none" measures a model without weights, whose detections are those of noise.
    """
    from keras_seg.bench import bench as measure
    from keras_seg.bench import table

    check_own_rpn(keras_seg.zoo.show(name))
    try:
        sizes = [int(size) for size in batch_sizes.split(",")]
    except ValueError:
        raise ValueError(f"--batch-sizes {batch_sizes}: must be numbers of images, as in 1,2,4") from None
    import_tensorflow()
    report = measure(
        name, None if weights == "none" else weights, image=image, size=size, batch_sizes=sizes, rounds=rounds,
        warmup=warmup, precision=precision,
    )  # fmt: skip
    print(json.dumps(report, indent=1) if as_json else table(report))
