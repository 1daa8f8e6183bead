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
from keras_seg import data_commands, evaluate
from keras_seg.metrics import coco, coco_data
from keras_seg.recipe import HIGHER_IS_BETTER

if TYPE_CHECKING:
    from keras_seg.instances import Instances
    from keras_seg.metrics.coco import Score
    from keras_seg.recipe import Recipe

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Segment images with Keras.",
)
data_commands.add_to(app)

Name = Annotated[str, typer.Argument(metavar="MODEL", help="A name of the zoo, or a recipe's YAML file.")]
DataFolder = Annotated[
    Path, typer.Option("--data", help="Folder with the files that the recipe's data block names.")
]
WeightsFile = Annotated[str, typer.Option("--weights", help="A .weights.h5 file, or the recipe's own.")]


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
    _check_own_rpn(recipe)
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


@app.command()
def proposals(
    name: Name,
    data: Annotated[Path, typer.Option("--data", help="COCO annotations, .json.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write, .npz.")],
    images: Annotated[
        Path | None, typer.Option(help="Folder of the images; that of the annotations if left out.")
    ] = None,
    weights: WeightsFile = "pretrained",
    count: Annotated[
        int | None, typer.Option(min=1, help="The best so many of an image; else the recipe's proposals.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images to compute at once.")] = 1,
) -> None:
    """Store what a region proposal network proposes in each image, for a detector's data.proposals."""
    from keras_seg import stored_proposals

    recipe = keras_seg.zoo.show(name)
    if not getattr(recipe.model, "rpn_only", False):
        raise ValueError(f"{name}: proposals come from a recipe that is an RPN alone: model.rpn_only: true")
    more = {"proposals": count} if count and count > recipe.model.proposals else {}
    model = keras_seg.zoo.load(recipe, weights, **more)
    folder = data.parent if images is None else images
    number = stored_proposals.store(model, data, folder, output, count=count, batch_size=batch_size)
    print(f"{output}: {number} proposals")


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


@app.command("evaluate")
def evaluate_model(
    name: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A name of the zoo, a recipe's YAML file, or a detector's COCO results, .json.",
        ),
    ],
    data: Annotated[
        Path,
        typer.Option(
            "--data",
            help="U-Net: folder with the files that the recipe's data block names. Detector: COCO annotations, .json.",
        ),
    ],
    images: Annotated[
        Path | None, typer.Option(help="Detector: folder of the images; that of the annotations if left out.")
    ] = None,
    weights: WeightsFile = "pretrained",
    iou_type: Annotated[
        list[str] | None,
        typer.Option(help="Detector: bbox, segm or keypoints; repeatable. Else all that there are."),
    ] = None,
    max_detections: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Detector: best so many of an image count; else the recipe's if over 100, or 100 (keypoints: 20).",
        ),
    ] = None,
    flip: Annotated[bool, typer.Option("--flip", help="Detector: see each image mirrored as well.")] = False,
    scales: Annotated[
        str | None, typer.Option(metavar="SIDES", help="Detector: shorter sides to see it at, as in 640,800.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Detector: images to compute at once.")] = 1,
    stored: Annotated[
        Path | None,
        typer.Option(
            "--proposals", help="Detector: what to look at, from keras-seg proposals, not its own RPN's."
        ),
    ] = None,
    results: Annotated[
        Path | None, typer.Option(help="Detector: write what was found, as .json of COCO results.")
    ] = None,
    curves: Annotated[
        Path | None,
        typer.Option(help="Detector: draw precision over recall; -bbox etc. is added to the name."),
    ] = None,
    pictures: Annotated[
        Path | None,
        typer.Option(
            help="Detector: folder for pictures of the images with most errors in masks, worst first."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Score a model, and compare with what its recipe expects.

    A U-Net on its recipe's validation data, a detector on COCO annotations (an RPN alone: its recall). The exit status is 1
    if the figure is worse than the recipe expects by more than its tolerance.
    """
    recipe = None if name.endswith(".json") or Path(name).is_dir() else keras_seg.zoo.show(name)
    if recipe is not None and recipe.model.builder == "unet":
        figures = _evaluate_unet(recipe, data, weights)
        shown = json.dumps(figures) if as_json else "\n".join(f"{k:<20} {v:.6g}" for k, v in figures.items())
        print(shown)
    elif data.is_dir():
        raise ValueError(f"--data {data}: a detector is scored on COCO annotations, a .json file")
    elif recipe is not None and recipe.model.rpn_only:
        from keras_seg import stored_proposals

        model = keras_seg.zoo.load(recipe, weights)
        figures = stored_proposals.recall(model, data, images or data.parent, batch_size=batch_size)
        print(json.dumps(figures) if as_json else "\n".join(f"{k:<8} {v:.4f}" for k, v in figures.items()))
    else:
        annotations, _ = coco_data.load(data, "annotations")
        for kind in iou_type or ["bbox"]:  # before anything takes time
            coco_data.read_annotations(annotations, kind)
        if name.endswith(".json"):
            if stored is not None:
                raise ValueError("--proposals is for a model; these are results")
            found, _ = coco_data.load(name, "results")
        elif recipe is None:
            raise ValueError(f"{name}: is a folder; give a model of the zoo, a recipe or COCO results")
        elif stored is not None:
            if flip or scales or max_detections:
                raise ValueError("--proposals goes with neither --flip, --scales nor --max-detections")
            found = _detect_in(recipe, stored, data, images or data.parent, weights)
        else:
            _check_own_rpn(recipe)
            found = _detect_all(
                recipe, annotations, images or data.parent, weights,
                max_detections=max_detections, flip=flip, scales=scales, batch_size=batch_size,
            )  # fmt: skip
        if results is not None:
            results.write_text(json.dumps(found))
        if max_detections is None and recipe is not None:
            max_detections = _recipes_detections(recipe)
        scores = evaluate.score(found, annotations, iou_type, max_detections=max_detections)
        if curves is not None:
            from keras_seg.metrics.coco_picture import precision_recall_picture

            for kind, score in scores.items():
                precision_recall_picture(curves.with_stem(f"{curves.stem}-{kind}"), score)
        if pictures is not None:
            from keras_seg.error_pictures import write_error_pictures

            write_error_pictures(found, annotations, images or data.parent, pictures)
        _print_scores(scores, as_json)
        figures = {f"{kind}_{k}": v for kind, score in scores.items() for k, v in score.figures.items()}
    if recipe is not None and recipe.expect is not None:
        _check_expected(recipe, figures, quiet=as_json)


@app.command()
def export(
    name: Name,
    path: Annotated[Path, typer.Argument(help="Folder for the SavedModel.")],
    weights: WeightsFile = "pretrained",
) -> None:
    """Write a SavedModel, for TensorFlow Serving and the like."""
    _check_own_rpn(keras_seg.zoo.show(name))
    keras_seg.export.saved_model(keras_seg.zoo.load(name, weights), path)
    print(f"{path}: SavedModel of {name}")


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
    except (ValueError, OSError, ArithmeticError, DownloadFailed) as error:
        print(f"keras-seg: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


def _evaluate_unet(recipe: Recipe, data: Path, weights: str) -> dict[str, float]:
    from keras_seg.metrics.isbi import METRICS
    from keras_seg.training import unets

    model = keras_seg.zoo.load(recipe, weights)
    _, samples = unets.read_samples(recipe, data)
    if not samples:
        raise ValueError(f"{recipe.name}: its data block names nothing to validate with")
    return unets.evaluate(model, recipe, samples, rotations=recipe.model.rotations, metrics=METRICS)


def _detect_all(
    recipe: Recipe,
    annotations: dict[str, Any],
    images: Path,
    weights: str,
    *,
    max_detections: int | None,
    flip: bool,
    scales: str | None,
    batch_size: int,
) -> list[dict[str, Any]]:
    """COCO results of a recipe's detector."""
    most = max_detections or recipe.model.detections
    # a detector gives no more than its field `detections`
    more = {"detections": most} if most > recipe.model.detections else {}
    model = keras_seg.zoo.load(recipe, weights, **more)
    find = evaluate.finder(model, max_detections=most, flip=flip, short_sides=_parse_sides(scales))
    return evaluate.results(find, annotations, images, batch_size=batch_size)


def _detect_in(
    recipe: Recipe, stored: Path, annotations: Path, images: Path, weights: str
) -> list[dict[str, Any]]:
    """COCO results of a recipe's detector in regions that were proposed and stored."""
    from keras_seg import stored_proposals
    from keras_seg.data.proposals import read_proposals

    proposals = read_proposals(stored)
    proposals.check_made_for(annotations)
    return stored_proposals.results(keras_seg.zoo.load(recipe, weights), proposals, annotations, images)


def _check_own_rpn(recipe: Recipe) -> None:
    """ValueError if the recipe's second stage is trained on stored proposals: its own RPN has then learnt nothing."""
    if getattr(recipe.data, "proposals", None):
        raise ValueError(
            f"{recipe.name}: its second stage is trained on stored proposals and its own RPN not at all, so it needs those "
            "of another one: keras-seg evaluate --proposals FILE"
        )


def _recipes_detections(recipe: Recipe) -> int | None:
    """How many detections an image a recipe is made for, if more than COCO counts; else None, for COCO's."""
    most = recipe.model.detections
    return most if most > max(coco.MAX_DETECTIONS.values()) else None


def _parse_sides(text: str | None) -> list[int] | None:
    try:
        return None if text is None else [int(side) for side in text.split(",")]
    except ValueError:
        raise ValueError(f"--scales {text}: must be shorter sides in pixels, as in 640,800") from None


def _print_scores(scores: dict[str, Score], as_json: bool) -> None:
    if as_json:
        print(json.dumps({kind: {**s.figures, "per_class": s.per_class} for kind, s in scores.items()}))
    for score in scores.values():
        for note in score.notes:
            print(f"keras-seg: {score.iou_type}: {note}", file=sys.stderr)
        if not as_json:
            print(score.table(), end="\n\n")


def _check_expected(recipe: Recipe, figures: dict[str, float], *, quiet: bool) -> None:
    """Ends with status 1 if the figure that the recipe expects is not met."""
    expected = recipe.expect
    if expected.metric not in figures:
        raise ValueError(
            f"{recipe.name} expects {expected.metric}, which its data do not give: {', '.join(figures)}"
        )
    worse_by = figures[expected.metric] - expected.value
    if expected.metric in HIGHER_IS_BETTER:
        worse_by = -worse_by
    met = worse_by <= expected.tolerance
    if not quiet:
        verdict = "met" if met else "NOT met"
        print(f"expected {expected.metric} {expected.value:g} ± {expected.tolerance:g}: {verdict}")
    if not met:
        raise typer.Exit(1)


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
