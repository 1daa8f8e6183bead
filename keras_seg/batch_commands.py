"""The command `keras-seg batch`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

import keras_seg
from keras_seg.command_options import AsJson, WeightsFile, complete_model, examples, value_range_of

__all__ = ["add_to"]


def add_to(app: typer.Typer) -> None:
    app.command(
        epilog=examples(
            "keras-seg batch maskrcnn_nuclei 'plates/**/*.tif' -o results --max-detections 400 --workers 4",
            "keras-seg batch unet_isbi2012 volume.tif -o tiles",
            "keras-seg batch maskrcnn_nuclei slides/ -o results --tile-side 1024 --overlap 128",
        )
    )(batch)


def batch(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A name of the zoo, a recipe's YAML file, or a SavedModel's folder.",
            autocompletion=complete_model,
        ),
    ],
    images: Annotated[
        list[str],
        typer.Argument(metavar="IMAGES...", help='Folders, files or patterns, as "plates/**/*.tif".'),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="Folder for the results, which all machines see; new, or to go on in."
        ),
    ],
    weights: WeightsFile = "pretrained",
    score_threshold: Annotated[
        float | None, typer.Option(min=0, max=1, help="Detector: least score of an object; 0.5 if left out.")
    ] = None,
    max_detections: Annotated[
        int | None,
        typer.Option(min=1, help="Detector: best so many of an image, or of a tile; 100 if left out."),
    ] = None,
    classes: Annotated[
        list[str] | None, typer.Option("--class", help="Detector: a class to keep; repeatable. Else all.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Detector: images to compute at once.")
    ] = None,
    shard_size: Annotated[int, typer.Option(min=1, help="Detector: images in a JSON file.")] = 16,
    tile_side: Annotated[
        int | None,
        typer.Option(
            min=1, help="Detector: cut larger images into tiles of so many pixels and join the objects."
        ),
    ] = None,
    overlap: Annotated[
        int | None,
        typer.Option(
            min=0, help="Detector: pixels that tiles share, more than objects measure; 128 if left out."
        ),
    ] = None,
    labels: Annotated[
        bool, typer.Option("--labels", help="Detector: write label images too (of images seen whole).")
    ] = False,
    tile: Annotated[
        int | None, typer.Option(min=1, help="U-Net: side of a tile of the output, pixels.")
    ] = None,
    rotations: Annotated[
        int | None, typer.Option(min=1, max=8, help="U-Net: turned and mirrored versions to average.")
    ] = None,
    value_range: Annotated[
        tuple[float, float] | None,
        typer.Option(
            metavar="LOW HIGH", help="The values that become black and white; the recipe's if left out."
        ),
    ] = None,
    probabilities: Annotated[
        bool,
        typer.Option(
            "--probabilities", help="U-Net: write every class's probability, not the most probable class."
        ),
    ] = False,
    join: Annotated[
        bool, typer.Option("--join", help="U-Net: also write each image's tiles as one TIFF.")
    ] = False,
    precision: Annotated[
        str | None, typer.Option(help="float32, or bfloat16: faster on some processors.")
    ] = None,
    workers: Annotated[
        int, typer.Option(min=1, help="Processes on this machine; each loads the model. Not with --runner.")
    ] = 1,
    runner: Annotated[
        str | None, typer.Option(help="A runner of Apache Beam, as FlinkRunner; else this machine.")
    ] = None,
    beam: Annotated[
        list[str] | None,
        typer.Option(
            "--beam", metavar="NAME=VALUE", help="An option of Beam's, as flink_master=host:8081; repeatable."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Segment a folder of images on one machine or many: COCO JSON from a detector, label tiles from a U-Net.

    Started again, it goes on: what is done stays, what failed is tried again. The exit status is 1 if an image failed;
    the others are done all the same.
    """
    from keras_seg import batch as batches

    if workers > 1 and runner is not None:
        raise ValueError("--workers is for this machine; how many a runner has is its own option, for --beam")
    if value_range is None and not Path(model).is_dir():
        value_range = value_range_of(keras_seg.zoo.show(model))
    given = {
        "score_threshold": score_threshold, "max_detections": max_detections, "classes": classes or None,
        "batch_size": batch_size, "tile_side": tile_side, "overlap": overlap, "labels": labels or None, "tile": tile,
        "rotations": rotations, "value_range": value_range, "probabilities": probabilities or None,
        "join": join or None, "precision": precision,
    }  # fmt: skip
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if runner is not None:
        options["runner"] = runner
    parallel = (
        [f"--direct_num_workers={workers}", "--direct_running_mode=multi_processing"] if workers > 1 else []
    )
    summary = batches.run(
        model, images, output, weights=weights, shard_size=shard_size,
        pipeline_options=[*parallel, *(f"--{option}" for option in beam or [])], **options,
    )  # fmt: skip
    if as_json:
        content = {"output": str(summary.output), "images": summary.images, "failed": summary.failed}
        print(json.dumps({**content, "counters": summary.counters}, indent=1))
    else:
        print(summary)
        for failure in summary.failed[:10]:
            print(f"  {failure['file_name']}: {failure['error']}")
    if summary.failed:
        raise typer.Exit(1)
