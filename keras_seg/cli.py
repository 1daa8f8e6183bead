"""The command `keras-seg`: list, show, train, average, segment, evaluate, proposals, convert, check-data, import-weights,
export, doctor."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
import yaml

import keras_seg
from keras_seg import data_commands, evaluate_commands, export_commands
from keras_seg.command_options import DataFolder, Name, WeightsFile, check_own_rpn

if TYPE_CHECKING:
    from keras_seg.instances import Instances

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Segment images with Keras.",
)
data_commands.add_to(app)
evaluate_commands.add_to(app)
export_commands.add_to(app)


@app.command("list")
def list_models() -> None:
    """The models that ship with the package; those marked * have weights, shipped or downloaded on first use."""
    for name in keras_seg.zoo.list():
        recipe = keras_seg.zoo.show(name)
        print(f"{'*' if recipe.has_weights else ' '} {name:<32} {recipe.summary}")


@app.command()
def show(name: Name) -> None:
    """A model's card."""
    print(keras_seg.zoo.show(name))


@app.command()
def train(
    name: Name,
    data: DataFolder,
    output: Annotated[Path | None, typer.Option(help="Folder for the run; runs/MODEL if left out.")] = None,
    weights: Annotated[
        str | None, typer.Option(help='Weights to start from: a .weights.h5 file, or "pretrained".')
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the checkpoint in the output folder.")
    ] = False,
    steps: Annotated[int | None, typer.Option(min=1, help="Instead of the recipe's number of steps.")] = None,
    all_data: Annotated[bool, typer.Option("--all-data", help="Train on the validation part too.")] = False,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="FIELD=VALUE", help="Change a field, as in training.seed=1; repeatable."
        ),
    ] = None,
) -> None:
    """Train a recipe on your own data."""
    recipe = keras_seg.zoo.show(name).override(_parse_changes(changes or []))
    output = output or Path("runs") / recipe.name
    options = {"weights": weights, "resume": resume, "steps": steps, "all_data": all_data}
    keras_seg.training.train(recipe, data, output, **options)
    print(f"the weights are in {output}")


@app.command()
def average(
    name: Name,
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE...", help="The .weights.h5 files of runs with the same start."),
    ],
    data: DataFolder,
    output: Annotated[Path, typer.Option("--output", "-o", help="A .weights.h5 file.")],
    all_data: Annotated[bool, typer.Option("--all-data", help="As it was given to train.")] = False,
    half: Annotated[bool, typer.Option("--half", help="Store kernels in half precision.")] = False,
) -> None:
    """One network from several runs: the mean of their weights, with its own statistics of batch normalisation."""
    from keras_seg.weights import save_weights

    model = keras_seg.training.average(keras_seg.zoo.show(name), data, files, all_data=all_data)
    save_weights(model, output, half=half)
    print(f"{output}: the mean of {len(files)} files")


@app.command()
def segment(
    name: Name,
    image: Annotated[Path, typer.Argument(help="An image, or a stack of images in one TIFF file.")],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            help="U-Net: .npy with every class, .tif or .png with one. Detector: .png or .jpg with the objects drawn, "
            ".tif with their numbers, .json with COCO results.",
        ),
    ],
    weights: WeightsFile = "pretrained",
    class_index: Annotated[int, typer.Option("--class", help="U-Net: which class a .tif or .png shows.")] = 1,
    tile: Annotated[int | None, typer.Option(help="U-Net: side of a tile of the output, pixels.")] = None,
    rotations: Annotated[
        int | None, typer.Option(help="U-Net: turned and mirrored versions to average, 1 to 8.")
    ] = None,
    score_threshold: Annotated[float, typer.Option(help="Detector: least score of an object.")] = 0.5,
    precision: Annotated[
        str, typer.Option(help="float32, or bfloat16: faster on processors that multiply it, less exact.")
    ] = "float32",
) -> None:
    """Write what a model sees in an image: class probabilities (float32, or 0-255 in a .png), or objects."""
    recipe = keras_seg.zoo.show(name)
    unet = recipe.model.builder == "unet"
    check_own_rpn(recipe)
    suffixes = (".npy", ".tif", ".tiff", ".png") if unet else (".png", ".jpg", ".tif", ".tiff", ".json")
    if output.suffix not in suffixes:
        raise ValueError(f"{output}: the output of {name} must end in {', '.join(suffixes)}")
    if not output.parent.is_dir():
        raise FileNotFoundError(f"{output.parent}: no such folder for the output")
    model = keras_seg.zoo.load(name, weights)
    if not unet:
        found = keras_seg.segment(model, image, score_threshold=score_threshold, precision=precision)
        _write_instances(output, image, found)
        print(f"{output}: {found!r}")
        return
    if not 0 <= class_index < model.classes:
        raise ValueError(f"--class is {class_index}; {model.name} has the classes 0 to {model.classes - 1}")
    probabilities = keras_seg.segment(model, image, tile=tile, rotations=rotations, precision=precision)
    _write(output, probabilities, class_index)
    print(f"{output}: {'x'.join(map(str, probabilities.shape))} probabilities")


@app.command("import-weights")
def import_weights(
    name: Name,
    source: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="Detectron2 .pkl, torchvision .pth, Matterport .h5, Model Garden .index."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="A .weights.h5 file.")],
    format: Annotated[
        str | None,
        typer.Option(help="detectron2, torchvision, matterport or garden; else by the file's ending."),
    ] = None,
) -> None:
    """Convert the weights that another library published, for a model with the same parts."""
    from keras_seg.weights import formats, save_weights
    from keras_seg.weights.assign import assign

    recipe = keras_seg.zoo.show(name)
    if recipe.model.builder == "unet":
        raise ValueError(f"{name}: weights of other libraries are read for detectors, and this is a U-Net")
    arrays = formats.read(source, format)
    model = keras_seg.zoo.load(recipe, weights=None)
    report = assign(model.parts, arrays, source)
    save_weights(model, output)
    print(f"{output}: {report}")


@app.command()
def doctor(as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False) -> None:
    """Say what keras_seg runs on here: versions, devices, cache folder, and which RoIAlign and why."""
    from keras_seg.doctor import examine, report

    found = examine()
    print(json.dumps(found, indent=1) if as_json else report(found))


def main() -> None:
    """Runs the command; an error that a user can mend is one line, and the exit status 2."""
    from keras_seg.weights import DownloadFailed

    try:
        app()
    except (ValueError, OSError, ArithmeticError, MemoryError, DownloadFailed) as error:
        print(f"keras-seg: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


def _parse_changes(changes: list[str]) -> dict[str, Any]:
    """["data.tile=128"] -> {"data.tile": 128}; values are YAML."""
    parsed = {}
    for change in changes:
        field, equals, value = change.partition("=")
        if not equals:
            raise ValueError(f"--set {change}: must be FIELD=VALUE, as in training.seed=1")
        parsed[field] = yaml.safe_load(value)
    return parsed


def _write_instances(path: Path, image: Path, found: Instances) -> None:
    if path.suffix == ".json":
        path.write_text(json.dumps(found.to_coco(image_id=0)))
    elif path.suffix in (".tif", ".tiff"):
        import tifffile

        tifffile.imwrite(path, found.to_labels())
    else:
        keras_seg.visualize.draw(image, found).save(path)


def _write(path: Path, probabilities: np.ndarray, class_index: int) -> None:
    """probabilities: float32 [H, W, classes] or [N, H, W, classes]."""
    if path.suffix == ".npy":
        np.save(path, probabilities)
        return
    chosen = probabilities[..., class_index]
    if path.suffix != ".png":
        import tifffile

        tifffile.imwrite(path, chosen, photometric="minisblack")
        return
    if chosen.ndim == 3:
        raise ValueError(f"{path}: a .png holds one image, and these are {len(chosen)}; use .tif or .npy")
    from PIL import Image

    Image.fromarray(np.round(255 * chosen).astype(np.uint8)).save(path)
