"""The commands of `keras-seg` that judge models: evaluate, proposals."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import keras_seg
from keras_seg.command_options import (
    AsJson,
    Name,
    WeightsFile,
    check_own_rpn,
    complete_model,
    detector_of,
    examples,
    import_tensorflow,
    value_range_of,
)

if TYPE_CHECKING:
    from keras_seg.metrics.coco import Score
    from keras_seg.recipe import Expect, Recipe

__all__ = ["add_to"]


def add_to(app: typer.Typer) -> None:
    app.command(
        "evaluate",
        epilog=examples(
            "keras-seg evaluate maskrcnn_nuclei --data nuclei/instances_val.json --images nuclei/val --report report",
            "keras-seg evaluate unet_isbi2012 --data isbi2012 --report report",
            "keras-seg evaluate results.json --data instances_val.json --json",
            "keras-seg evaluate serving/nuclei/1 --data nuclei/instances_val.json --images nuclei/val",
        ),
    )(evaluate_model)
    app.command(
        epilog=examples(
            "keras-seg proposals my_rpn.yaml --data train.json --images train -o train_proposals.npz"
        )
    )(proposals)


def evaluate_model(
    name: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A name of the zoo, a recipe's YAML file; of a detector also a SavedModel's folder or COCO results, .json.",
            autocompletion=complete_model,
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
    value_range: Annotated[
        tuple[float, float] | None,
        typer.Option(
            metavar="LOW HIGH",
            help="Detector: the values of the images that become black and white; the recipe's if left out.",
        ),
    ] = None,
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
    report: Annotated[
        Path | None,
        typer.Option(
            help="Folder for a page to browse, index.html: the worst images first, pictures, curves, classes."
        ),
    ] = None,
    report_pictures: Annotated[
        int, typer.Option(min=0, help="How many images, the worst, the page has pictures of.")
    ] = 100,
    as_json: AsJson = False,
) -> None:
    """Score a model, and compare with what its recipe expects.

    A U-Net on its recipe's validation data, a detector on COCO annotations (an RPN alone: its recall).
    The exit status is 1 if the figure is worse than the recipe expects by more than its tolerance.
    """
    from keras_seg import evaluate
    from keras_seg.metrics import coco_data

    recipe = None if name.endswith(".json") or Path(name).is_dir() else keras_seg.zoo.show(name)
    detector = None if recipe is None else detector_of(recipe)
    if recipe is not None and detector is not None and value_range is None:
        value_range = value_range_of(recipe)
    if not name.endswith(".json"):
        import_tensorflow()
    if recipe is not None and detector is None:
        if value_range is not None:
            raise ValueError("--value-range is for detectors; a U-Net's is in its recipe's data block")
        figures = _evaluate_unet(recipe, data, weights, report, report_pictures)
        shown = json.dumps(figures) if as_json else "\n".join(f"{k:<20} {v:.6g}" for k, v in figures.items())
        print(shown)
    elif data.is_dir():
        raise ValueError(f"--data {data}: a detector is scored on COCO annotations, a .json file")
    elif recipe is not None and detector is not None and detector.rpn_only:
        from keras_seg import stored_proposals

        if report is not None:
            raise ValueError("--report is not for an RPN alone, which finds no objects of classes")
        model = keras_seg.zoo.load(recipe, weights)
        figures = stored_proposals.recall(
            model, data, images or data.parent, batch_size=batch_size, value_range=value_range
        )
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
            found, max_detections = _detect_exported(
                name,
                annotations,
                images or data.parent,
                max_detections=max_detections,
                flip=flip,
                scales=scales,
                value_range=value_range,
            )
        elif stored is not None:
            if flip or scales or max_detections:
                raise ValueError("--proposals goes with neither --flip, --scales nor --max-detections")
            found = _detect_in(recipe, stored, data, images or data.parent, weights, value_range)
        else:
            check_own_rpn(recipe)
            found = _detect_all(
                recipe, annotations, images or data.parent, weights,
                max_detections=max_detections, flip=flip, scales=scales, batch_size=batch_size,
                value_range=value_range,
            )  # fmt: skip
        if results is not None:
            results.write_text(json.dumps(found))
        if max_detections is None and detector is not None:
            max_detections = _above_coco(detector.detections)
        scores = evaluate.score(found, annotations, iou_type, max_detections=max_detections)
        if curves is not None:
            from keras_seg.metrics.coco_picture import precision_recall_picture

            for kind, score in scores.items():
                precision_recall_picture(curves.with_stem(f"{curves.stem}-{kind}"), score)
        if pictures is not None:
            from keras_seg.error_pictures import write_error_pictures

            write_error_pictures(found, annotations, images or data.parent, pictures, value_range=value_range)
        if report is not None:
            from keras_seg.detector_report import write_detector_report

            shown = name if recipe is None else recipe.name
            page = write_detector_report(
                report, found, annotations, images or data.parent, scores,
                title=f"{shown} on {data.stem}", facts=_facts(recipe, name, weights, data), pictures=report_pictures,
                value_range=value_range,
            )  # fmt: skip
            print(f"keras-seg: report: {page}", file=sys.stderr)
        _print_scores(scores, as_json)
        figures = {f"{kind}_{k}": v for kind, score in scores.items() for k, v in score.figures.items()}
    if recipe is not None and recipe.expect is not None:
        _check_expected(recipe.name, recipe.expect, figures, quiet=as_json)


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
    import_tensorflow()
    from keras_seg import stored_proposals

    recipe = keras_seg.zoo.show(name)
    detector = detector_of(recipe)
    if detector is None or not detector.rpn_only:
        raise ValueError(f"{name}: proposals come from a recipe that is an RPN alone: model.rpn_only: true")
    more = {"proposals": count} if count and count > detector.proposals else {}
    model = keras_seg.zoo.load(recipe, weights, **more)
    folder = data.parent if images is None else images
    number = stored_proposals.store(
        model, data, folder, output, count=count, batch_size=batch_size, value_range=value_range_of(recipe)
    )
    print(f"{output}: {number} proposals")


def _evaluate_unet(
    recipe: Recipe, data: Path, weights: str, report: Path | None, pictures: int
) -> dict[str, float]:
    from keras_seg.metrics.isbi import METRICS
    from keras_seg.training import unets

    assert recipe.model.builder == "unet"
    model = keras_seg.zoo.load(recipe, weights)
    _, samples = unets.read_samples(recipe, data)
    if not samples or recipe.data is None:
        raise ValueError(f"{recipe.name}: its data block names nothing to validate with")
    seen = unets.predict(model, samples, rotations=recipe.model.rotations)
    figures = unets.evaluate(model, recipe, samples, metrics=METRICS, probabilities=seen)
    if report is not None:
        from keras_seg.unet_report import write_unet_report

        names = model.class_names or [f"class {k}" for k in range(model.classes)]
        page = write_unet_report(
            report, samples, seen, figures, reader=recipe.data.reader, class_names=names,
            title=f"{recipe.name} on {data.name}", facts=_facts(recipe, recipe.name, weights, data), pictures=pictures,
        )  # fmt: skip
        print(f"keras-seg: report: {page}", file=sys.stderr)
    return figures


def _facts(recipe: Recipe | None, name: str, weights: str, data: Path) -> list[tuple[str, str]]:
    """The head of a report."""
    model = [("model", recipe.name), ("weights", weights)] if recipe else [("results of", name)]
    return [*model, ("data", str(data)), ("keras_seg", keras_seg.__version__)]


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
    value_range: tuple[float, float] | None,
) -> list[dict[str, Any]]:
    """COCO results of a recipe's detector."""
    from keras_seg import evaluate

    assert recipe.model.builder == "mask_rcnn"
    most = max_detections or recipe.model.detections
    # a detector gives no more than its field `detections`
    more = {"detections": most} if most > recipe.model.detections else {}
    model = keras_seg.zoo.load(recipe, weights, **more)
    find = evaluate.finder(
        model, max_detections=most, flip=flip, short_sides=_parse_sides(scales), value_range=value_range,
    )  # fmt: skip
    return evaluate.results(find, annotations, images, batch_size=batch_size)


def _detect_exported(
    folder: str,
    annotations: dict[str, Any],
    images: Path,
    *,
    max_detections: int | None,
    flip: bool,
    scales: str | None,
    value_range: tuple[float, float] | None,
) -> tuple[list[dict[str, Any]], int | None]:
    """COCO results of a SavedModel, and how many an image count: as many as it gives, if more than COCO's."""
    from keras_seg import evaluate

    exported = keras_seg.export.load(folder)
    if not exported.is_detector:
        raise ValueError(f"{folder}: holds a U-Net; those of detectors can be scored")
    given = exported.about["outputs"]["scores"]["shape"][-1]
    if max_detections and max_detections > given:
        raise ValueError(f"{folder}: gives {given} detections an image, not {max_detections}")
    most = max_detections or given
    find = evaluate.finder(
        exported, max_detections=most, flip=flip, short_sides=_parse_sides(scales), value_range=value_range
    )
    return evaluate.results(find, annotations, images), max_detections or _above_coco(given)


def _detect_in(
    recipe: Recipe,
    stored: Path,
    annotations: Path,
    images: Path,
    weights: str,
    value_range: tuple[float, float] | None,
) -> list[dict[str, Any]]:
    """COCO results of a recipe's detector in regions that were proposed and stored."""
    from keras_seg import stored_proposals
    from keras_seg.data.proposals import read_proposals

    proposals = read_proposals(stored)
    proposals.check_made_for(annotations)
    model = keras_seg.zoo.load(recipe, weights)
    return stored_proposals.results(model, proposals, annotations, images, value_range=value_range)


def _above_coco(detections: int) -> int | None:
    """How many detections an image a model gives, if more than COCO counts; else None, for COCO's."""
    from keras_seg.metrics import coco

    return detections if detections > max(coco.MAX_DETECTIONS.values()) else None


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


def _check_expected(name: str, expected: Expect, figures: dict[str, float], *, quiet: bool) -> None:
    """Ends with status 1 if the figure that the recipe expects is not met."""
    from keras_seg.recipe import HIGHER_IS_BETTER

    if expected.metric not in figures:
        raise ValueError(
            f"{name} expects {expected.metric}, which its data do not give: {', '.join(figures)}"
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
