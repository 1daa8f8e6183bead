"""The command `keras-seg segment`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

import keras_seg
from keras_seg import image_files
from keras_seg.command_options import (
    AsJson,
    Name,
    WeightsFile,
    check_own_rpn,
    detector_of,
    examples,
    import_tensorflow,
    value_range_of,
)

if TYPE_CHECKING:
    from keras_seg.models import MaskRCNN, UNet
    from keras_seg.segment_files import Batch

__all__ = ["add_to"]

# Of an output that is a file: what it holds, by its ending.
UNET_FILES = (".npy", ".tif", ".tiff", ".png", ".json", ".zip")
DETECTOR_FILES = (".png", ".jpg", ".tif", ".tiff", ".json", ".zip", ".jpeg")
# Endings that mean a file, though not one that we write; what has another is a folder.
OTHER_FILES = (*image_files.SUFFIXES, ".npz", ".csv", ".txt", ".h5", ".mat")


def add_to(app: typer.Typer) -> None:
    app.command(
        epilog=examples(
            "keras-seg segment maskrcnn_nuclei plate_1/ plate_2/ -o results",
            "keras-seg segment maskrcnn_nuclei 'plates/**/*.tif' -o results --save labels,rois --json",
            "keras-seg segment unet_isbi2012 stack.tif -o cells --save labels,rois --pixel-threshold 0.4",
            "keras-seg segment unet_isbi2012 slice.png -o probability.tif",
            "keras-seg segment maskrcnn_nuclei well.png -o drawn.png --score-threshold 0.7",
        )
    )(segment)


def segment(
    name: Name,
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE...",
            help="Images, TIFF stacks, folders of them, or patterns in quotes: 'a/**/*.tif'.",
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            help="A folder; or, of one image, a file. U-Net: .npy with the probabilities of every class, .tif or .png "
            "with those of one. Detector: .png or .jpg with the objects drawn, .tif with their numbers. Both: .json with "
            "COCO results, .zip with regions for ImageJ.",
        ),
    ],
    save: Annotated[
        str | None,
        typer.Option(
            metavar="KINDS",
            help="What to keep in the folder, separated by commas: overlay (PNG), labels (TIFF), coco (JSON), rois "
            "(ImageJ), probabilities (U-Net, TIFF). Else overlay,labels and for detectors coco.",
        ),
    ] = None,
    weights: WeightsFile = "pretrained",
    score_threshold: Annotated[float, typer.Option(help="Detector: least score of an object.")] = 0.5,
    max_detections: Annotated[
        int | None,
        typer.Option(min=1, help="Detector: the best so many of an image; else the recipe's number."),
    ] = None,
    class_index: Annotated[
        str,
        typer.Option(
            "--class", help="U-Net: the class that is shown or has the objects, its number or name."
        ),
    ] = "1",
    pixel_threshold: Annotated[
        float, typer.Option(min=0, max=1, help="U-Net: least probability of a pixel of an object.")
    ] = 0.5,
    tile: Annotated[int | None, typer.Option(help="U-Net: side of a tile of the output, pixels.")] = None,
    rotations: Annotated[
        int | None, typer.Option(help="U-Net: turned and mirrored versions to average, 1 to 8.")
    ] = None,
    value_range: Annotated[
        tuple[float, float] | None,
        typer.Option(
            metavar="LOW HIGH", help="Values that become 0 and 255; else the recipe's, or the type's range."
        ),
    ] = None,
    precision: Annotated[
        str, typer.Option(help="float32, or bfloat16: faster on processors that multiply it, less exact.")
    ] = "float32",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Do all anew, also where the folder holds other results.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Segment images, and write what was found.

    Into a folder: what is done is not done again, so that a batch which was stopped goes on by the same command.
    An image that cannot be read is named at the end, and the exit status is then 1.
    """
    recipe = keras_seg.zoo.show(name)
    detector = detector_of(recipe)
    check_own_rpn(recipe)
    options: dict[str, Any] = {"precision": precision}
    options["value_range"] = value_range_of(recipe) if value_range is None else value_range
    single = save is None and not output.is_dir() and _is_file(output)
    if single:
        _check_file(name, output, UNET_FILES if detector is None else DETECTOR_FILES)
        files = image_files.find(images)
        if len(files) > 1:
            raise ValueError(f"{output}: one file, and these are {len(files)} images: give a folder")
    else:
        image_files.find(images)  # before the model takes its time
    more = {}
    if detector is not None:
        options |= {
            "score_threshold": score_threshold,
            "max_detections": max_detections or detector.detections,
        }
        # a detector gives no more than its field `detections`
        more = {"detections": max_detections} if options["max_detections"] > detector.detections else {}
    import_tensorflow()
    model = keras_seg.zoo.load(recipe, weights, **more)
    if detector is None:
        options |= {"tile": tile, "rotations": rotations, "class_index": _class(model, class_index)}
        options["pixel_threshold"] = pixel_threshold
    if single:
        about = _write_one(model, files[0], output, options)
        print(json.dumps(about) if as_json else f"{output}: {about['what']}")
        return

    from keras_seg.segment_files import segment_files

    kinds = None if save is None else [kind.strip() for kind in save.split(",") if kind.strip()]
    try:
        batch = segment_files(model, images, output, save=kinds, overwrite=overwrite, **options)
    except KeyboardInterrupt:
        print(
            f"keras-seg: stopped; the same command goes on with what is not yet in {output}", file=sys.stderr
        )
        raise typer.Exit(130) from None
    print(json.dumps(batch.to_dict(), indent=1) if as_json else _summary(batch))
    _report_failed(batch)


def _is_file(output: Path) -> bool:
    return output.suffix.lower() in {*UNET_FILES, *DETECTOR_FILES, *OTHER_FILES}


def _check_file(name: str, output: Path, endings: tuple[str, ...]) -> None:
    if output.suffix.lower() not in endings:
        raise ValueError(f"{output}: the output of {name} must end in {', '.join(endings)}, or be a folder")
    if not output.parent.is_dir():
        raise FileNotFoundError(f"{output.parent}: no such folder for the output")


def _class(model: UNet, wanted: str) -> int:
    """The number of a class that is given by number or name."""
    names = model.class_names or []
    if wanted in names:
        return names.index(wanted)
    if wanted.isdecimal() and int(wanted) < model.classes:
        return int(wanted)
    named = f" ({', '.join(names)})" if names else ""
    raise ValueError(f"--class is {wanted}; {model.name} has the classes 0 to {model.classes - 1}{named}")


def _write_one(model: UNet | MaskRCNN, file: Path, output: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Writes what was found in one image or stack to a file of the kind that its ending says, and says what it is."""
    from keras_seg import result_files, rois, segment_files

    ending = output.suffix.lower()
    if ending == ".zip":
        rois.require_roifile()
    if hasattr(model, "legal_sizes") and ending not in (".json", ".zip"):
        given = {key: options[key] for key in ("tile", "rotations", "value_range", "precision")}
        probabilities = keras_seg.segment(model, file, **given)
        _write_probabilities(output, probabilities, options["class_index"])
        shape = list(probabilities.shape)
        return {
            "file": str(file),
            "output": str(output),
            "what": f"{'x'.join(map(str, shape))} probabilities",
        }
    found = segment_files.look(model, file, **options)
    if ending == ".json":
        with result_files.replacing(output) as temporary:
            results = [result for n, one in enumerate(found) for result in one.coco(n)]
            temporary.write_text(json.dumps(results))
    elif ending == ".zip":
        rois.write_rois(output, [one.regions() for one in found])
    elif ending in (".tif", ".tiff"):
        result_files.write_labels(output, [one.labels() for one in found])
    else:
        if len(found) > 1:
            raise ValueError(
                f"{output}: a {ending} holds one image, and these are {len(found)}; give a folder"
            )
        with result_files.replacing(output) as temporary:
            found[0].picture().save(temporary)
    objects = sum(map(len, found))
    what = (
        repr(found[0].instances)
        if len(found) == 1 and hasattr(found[0], "instances")
        else f"{objects} objects"
    )
    return {"file": str(file), "output": str(output), "slices": len(found), "objects": objects, "what": what}


def _write_probabilities(path: Path, probabilities: np.ndarray, class_index: int) -> None:
    """probabilities: float32 [H, W, classes] or [N, H, W, classes]."""
    from keras_seg.result_files import replacing, write_tiff

    chosen = probabilities[..., class_index]
    ending = path.suffix.lower()
    if ending == ".png" and chosen.ndim == 3:
        raise ValueError(f"{path}: a .png holds one image, and these are {len(chosen)}; use .tif or .npy")
    if ending in (".tif", ".tiff"):
        write_tiff(path, chosen if chosen.ndim == 3 else chosen[None])
        return
    with replacing(path) as temporary:
        if ending == ".npy":
            np.save(temporary, probabilities)
        else:
            from PIL import Image

            Image.fromarray(np.round(255 * chosen).astype(np.uint8)).save(temporary)


def _summary(batch: Batch) -> str:
    slices = sum(image.slices for image in batch.images)
    stacks = f" ({slices} slices)" if slices > len(batch.images) else ""
    before = f", {batch.resumed} of them done before" if batch.resumed else ""
    images = f"{len(batch.images)} image{'' if len(batch.images) == 1 else 's'}{stacks}{before}"
    return f"{batch.output}: {images}; {batch.objects} objects; {', '.join(batch.kinds)}"


def _report_failed(batch: Batch) -> None:
    """Names the images that failed; ends with status 1 if there are some."""
    if not batch.failed:
        return
    total = len(batch.images) + len(batch.failed)
    print(f"keras-seg: {len(batch.failed)} of {total} images failed:", file=sys.stderr)
    for file, why in batch.failed.items():
        print(f"  {file}: {why}", file=sys.stderr)
    raise typer.Exit(1)
