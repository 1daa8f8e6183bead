"""The commands of `keras-seg` about data: convert, check-data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from keras_seg.command_options import AsJson, examples

__all__ = ["add_to"]

convert = typer.Typer(
    no_args_is_help=True, help="Convert annotations to COCO JSON, or COCO data to TFRecord shards."
)

Output = Annotated[Path, typer.Argument(help="The COCO annotations to write, .json.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what exists.")]
Classes = Annotated[
    list[str] | None,
    typer.Option("--class", help="A class; repeatable, in the order wanted. Else all labels that occur."),
]


def add_to(app: typer.Typer) -> None:
    app.add_typer(convert, name="convert")
    app.command(
        "check-data",
        epilog=examples(
            "keras-seg check-data train.json train/",
            "keras-seg check-data train.json train/ -o pictures --samples 16",
            "keras-seg check-data train.json train/ --quick --json",
        ),
    )(check_data)


@convert.command(
    "labels", epilog=examples("keras-seg convert labels images/ masks/ train.json --class nucleus")
)
def convert_labels(
    images: Annotated[Path, typer.Argument(help="Folder of images, or a TIFF stack.")],
    labels: Annotated[
        Path, typer.Argument(help="Folder of label images of the same names, or a TIFF stack.")
    ],
    output: Output,
    class_name: Annotated[str, typer.Option("--class", help="What the objects are.")] = "object",
    label_suffix: Annotated[str, typer.Option(help="What a label's name has more, as _mask.")] = "",
    overwrite: Overwrite = False,
) -> None:
    """Label images, in which each object has a number, to COCO JSON."""
    from keras_seg.data.label_images import from_label_images

    print(
        from_label_images(
            images, labels, output, class_name=class_name, label_suffix=label_suffix, overwrite=overwrite
        )
    )


@convert.command(
    "labelme", epilog=examples("keras-seg convert labelme annotated/ train.json --class cat --class dog")
)
def convert_labelme(
    folder: Annotated[Path, typer.Argument(help="Folder of LabelMe's .json files.")],
    output: Output,
    classes: Classes = None,
    overwrite: Overwrite = False,
) -> None:
    """LabelMe's files to COCO JSON; file names are relative to FOLDER."""
    from keras_seg.data.labelme import from_labelme

    print(from_labelme(folder, output, class_names=classes or None, overwrite=overwrite))


@convert.command(
    "via", epilog=examples("keras-seg convert via project.json images/ train.json --attribute species")
)
def convert_via(
    project: Annotated[Path, typer.Argument(help="A project or JSON export of VIA.")],
    images: Annotated[Path, typer.Argument(help="Folder of the images.")],
    output: Output,
    attribute: Annotated[str | None, typer.Option(help="Region attribute that holds the class.")] = None,
    classes: Classes = None,
    overwrite: Overwrite = False,
) -> None:
    """Projects of VIA, the VGG Image Annotator, to COCO JSON."""
    from keras_seg.data.via import from_via

    print(
        from_via(
            project, images, output, attribute=attribute, class_names=classes or None, overwrite=overwrite
        )
    )


@convert.command("tfrecord", epilog=examples("keras-seg convert tfrecord train.json train/ shards/"))
def convert_tfrecord(
    annotations: Annotated[Path, typer.Argument(help="COCO annotations, .json.")],
    images: Annotated[Path, typer.Argument(help="Folder of the images.")],
    output: Annotated[Path, typer.Argument(help="Folder for the shards.")],
    shards: Annotated[
        int | None, typer.Option(min=1, help="How many; else one for every 512 images.")
    ] = None,
    keep_empty: Annotated[bool, typer.Option("--keep-empty", help="Keep images without objects.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """COCO data to TFRecord shards, which data.tfrecords reads."""
    from keras_seg.data.tfrecord import write_tfrecords

    folder = write_tfrecords(
        annotations, images, output, shards=shards, keep_empty=keep_empty, overwrite=overwrite
    )
    print(f"{folder}: {sum(1 for _ in folder.glob('*.tfrecord'))} shards")


def check_data(
    annotations: Annotated[Path, typer.Argument(help="COCO annotations, .json.")],
    images: Annotated[Path, typer.Argument(help="Folder of the images.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder for pictures of some images with their objects."),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="How many pictures.")] = 8,
    quick: Annotated[bool, typer.Option("--quick", help="Do not decode the images.")] = False,
    as_json: AsJson = False,
) -> None:
    """Look through a COCO data set before training: counts, sizes, every problem with file and annotation.

    The exit status is 1 if there are errors that training would stop at.
    """
    from keras_seg.data.check import check

    report = check(annotations, images, output=output, samples=samples, read_images=not quick)
    print(json.dumps(report.to_dict(), indent=1) if as_json else report)
    if not report.usable:
        raise typer.Exit(1)
