"""The command `keras-seg`: list, show, train, average, segment, batch, evaluate, proposals, convert, check-data,
import-weights, export, doctor, bench. docs/command_line.md has its exit statuses."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml

import keras_seg
from keras_seg import (
    batch_commands,
    bench_commands,
    data_commands,
    evaluate_commands,
    export_commands,
    segment_commands,
)
from keras_seg.command_options import DEBUG, AsJson, DataFolder, Name, examples, import_tensorflow

if TYPE_CHECKING:
    from keras_seg.recipe import Recipe

WRONG_USE, UNEXPECTED, STOPPED = 2, 3, 130
# Of TensorFlow's C++ side: what the package asks for, and without its errors too, one of which tells of each
# machine that it has no GPU. What fails is an exception as well.
QUIET, SILENT = "2", "3"

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Segment images with Keras: U-Net and Mask R-CNN.",
    epilog=examples(
        "keras-seg list",
        "keras-seg segment maskrcnn_nuclei images/ -o results",
        "keras-seg train my_cells.yaml --data my_data",
        "keras-seg --install-completion",
    ),
)


@app.command(
    "list",
    epilog=examples("keras-seg list", "keras-seg list --json | jq -r '.[] | select(.has_weights).name'"),
)
def list_models(as_json: AsJson = False) -> None:
    """The models that ship with the package; those marked * have weights, shipped or downloaded on first use."""
    recipes = {name: keras_seg.zoo.show(name) for name in keras_seg.zoo.list()}
    if as_json:
        print(json.dumps([_entry(name, recipe) for name, recipe in recipes.items()], indent=1))
        return
    for name, recipe in recipes.items():
        print(f"{'*' if recipe.has_weights else ' '} {name:<32} {recipe.summary}")


@app.command(epilog=examples("keras-seg show unet_isbi2012", "keras-seg show my_cells.yaml --json"))
def show(name: Name, as_json: AsJson = False) -> None:
    """A model's card; with --json the whole recipe."""
    recipe = keras_seg.zoo.show(name)
    if as_json:
        whole = recipe.model_dump(mode="json", by_alias=True)
        print(json.dumps({**_entry(name, recipe), **whole}, indent=1))
    else:
        print(recipe)


@app.command(
    epilog=examples(
        "keras-seg train my_cells.yaml --data my_data",
        "keras-seg train my_cells.yaml --data my_data --resume",
        "keras-seg train unet_isbi2012 --data slices --weights pretrained --set data.train_slices=0-7 --steps 500",
    )
)
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
    import_tensorflow()
    keras_seg.training.train(
        recipe, data, output, weights=weights, resume=resume, steps=steps, all_data=all_data, progress=True
    )
    print(f"the weights are in {output}")


@app.command(
    epilog=examples(
        "keras-seg average my_cells.yaml run_1/best.weights.h5 run_2/best.weights.h5 --data my_data -o mean.weights.h5"
    )
)
def average(
    name: Name,
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE", help="The .weights.h5 files of runs with the same start."),
    ],
    data: DataFolder,
    output: Annotated[Path, typer.Option("--output", "-o", help="A .weights.h5 file.")],
    all_data: Annotated[bool, typer.Option("--all-data", help="As it was given to train.")] = False,
    half: Annotated[bool, typer.Option("--half", help="Store kernels in half precision.")] = False,
) -> None:
    """One network from several runs: the mean of their weights, with its own statistics of batch normalisation."""
    import_tensorflow()
    from keras_seg.data.progress import working
    from keras_seg.weights import save_weights

    with working(f"averaging {len(files)} files"):
        model = keras_seg.training.average(keras_seg.zoo.show(name), data, files, all_data=all_data)
        save_weights(model, output, half=half)
    print(f"{output}: the mean of {len(files)} files")


@app.command(
    "import-weights",
    epilog=examples(
        "keras-seg import-weights maskrcnn_r50_fpn model_final_f10217.pkl -o r50.weights.h5",
        "keras-seg import-weights my_detector.yaml mask_rcnn_coco.h5 --format matterport -o mine.weights.h5",
    ),
)
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
    import_tensorflow()
    from keras_seg.data.progress import working
    from keras_seg.weights import formats, save_weights
    from keras_seg.weights.assign import assign

    recipe = keras_seg.zoo.show(name)
    if recipe.model.builder == "unet":
        raise ValueError(f"{name}: weights of other libraries are read for detectors, and this is a U-Net")
    with working(f"converting {source.name}"):
        arrays = formats.read(source, format)
        model = keras_seg.zoo.load(recipe, weights=None)
        report = assign(model.parts, arrays, source)
        save_weights(model, output)
    print(f"{output}: {report}")


@app.command(epilog=examples("keras-seg doctor", "keras-seg doctor --json"))
def doctor(as_json: AsJson = False) -> None:
    """Say what keras_seg runs on here: versions, devices, cache folder, and which RoIAlign and why."""
    import_tensorflow()
    from keras_seg.doctor import examine, report

    found = examine()
    print(json.dumps(found, indent=1) if as_json else report(found))


def main() -> None:
    """Runs the command; an error is one line on standard error, and its traceback is shown with KERAS_SEG_DEBUG."""
    if not os.environ.get(DEBUG) and os.environ.get("TF_CPP_MIN_LOG_LEVEL") == QUIET:
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = SILENT
    try:
        app(prog_name="keras-seg")
    except SystemExit as end:
        if end.code == STOPPED and not os.environ.get(DEBUG):
            print("keras-seg: stopped", file=sys.stderr)
        raise
    except Exception as error:
        if os.environ.get(DEBUG):
            raise
        status, message = _explain(error)
        print(f"keras-seg: {' '.join(message.split())}", file=sys.stderr)
        sys.exit(status)


def _explain(error: Exception) -> tuple[int, str]:
    """The exit status and the line for an error."""
    from keras_seg.weights import DownloadFailed

    name = type(error).__name__
    if str(error).startswith("not enough memory for "):
        return WRONG_USE, str(error)
    if isinstance(error, MemoryError) or name == "ResourceExhaustedError":
        return WRONG_USE, f"out of memory: a smaller image, --tile or --batch-size takes less ({error})"
    if isinstance(error, ValueError | OSError | ArithmeticError | ModuleNotFoundError | DownloadFailed):
        return WRONG_USE, str(error) or name
    return UNEXPECTED, f"unexpected {name}: {error} (with {DEBUG}=1 it shows where)"


def _entry(name: str, recipe: Recipe) -> dict[str, Any]:
    """A model as `list --json` has it."""
    fields = {"summary": recipe.summary, "builder": recipe.model.builder, "has_weights": recipe.has_weights}
    return {"name": name, **fields, "class_names": recipe.model.class_names}


def _parse_changes(changes: list[str]) -> dict[str, Any]:
    """["data.tile=128"] -> {"data.tile": 128}; values are YAML."""
    parsed = {}
    for change in changes:
        field, equals, value = change.partition("=")
        if not equals:
            raise ValueError(f"--set {change}: must be FIELD=VALUE, as in training.seed=1")
        parsed[field] = yaml.safe_load(value)
    return parsed


# after those above, in the order in which the help names them
segment_commands.add_to(app)
batch_commands.add_to(app)
evaluate_commands.add_to(app)
bench_commands.add_to(app)
export_commands.add_to(app)
data_commands.add_to(app)
