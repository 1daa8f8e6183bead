"""Average precision and recall of boxes, masks and keypoints, as COCO defines them and pycocotools computes them.

A detection is right at a threshold of overlap if it overlaps an object, to which no better-scored detection belongs, by that
much: intersection over union of boxes or masks, object keypoint similarity of keypoints. AP is the mean over ten thresholds
(0.5 to 0.95), classes and 101 recalls of the greatest precision at this recall or beyond; AR the mean of the greatest
recalls. Crowds, and objects outside the range of size, are neither found nor missed.

    bbox, segm  AP, AP50, AP75 (one threshold), APs, APm, APl (objects below 32^2, up to 96^2, above, in pixels), AR1, AR10,
                AR100 (with so many detections an image and class), ARs, ARm, ARl
    keypoints   AP, AP50, AP75, APm, APl, AR, AR50, AR75, ARm, ARl; 20 detections an image

Figures are 0-1, and -1 where there is no object of that kind. T. Lin et al., "Microsoft COCO: Common Objects in Context",
ECCV 2014, and cocodataset.org, "Detection evaluation" and "Keypoint evaluation".
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_seg.metrics import coco_data
from keras_seg.metrics.coco_data import IOU_TYPES, Truth

if TYPE_CHECKING:
    from keras_seg.instances import Instances

__all__ = ["IOU_TYPES", "Score", "evaluate", "score"]

# Of detections that count, in an image and class, where nothing else is said.
MAX_DETECTIONS = {"bbox": 100, "segm": 100, "keypoints": 20}
AREAS = {"all": "", "small": "s", "medium": "m", "large": "l"}  # range: letter of its figures
COCO_KEYPOINTS = 17  # whose standard deviations pycocotools knows
FAST = "faster_coco_eval"  # the same in C++
BACKENDS = ("auto", "pycocotools", FAST)

Results = str | Path | Iterable[Mapping[str, Any]] | Iterable[tuple[int, "Instances"]]


@dataclass(frozen=True)
class Score:
    """What `score` found.

    Attributes:
        iou_type, max_detections: its arguments.
        figures: {"AP": 0.371, ...}, see the module.
        per_class: the same for each class by its name (by name and id where names are not unique).
        precision: float64 [10, 101, K] at the thresholds 0.5, 0.55, ... 0.95 and recalls 0, 0.01, ... 1 of each class,
            for objects of all sizes; -1 for a class without objects.
        notes: what a reader of the figures should know; empty as a rule.
    """

    iou_type: str
    max_detections: int
    figures: dict[str, float]
    per_class: dict[str, dict[str, float]]
    precision: np.ndarray
    notes: tuple[str, ...] = ()

    def table(self) -> str:
        """The figures, and below them a line a class if there are several; percent, "-" without objects."""
        rows: list[tuple[Any, ...]] = [
            ("", *self.figures),
            (f"all ({self.iou_type})", *self.figures.values()),
        ]
        if len(self.per_class) > 1:
            rows += [(name, *figures.values()) for name, figures in self.per_class.items()]
        cells = [
            [v if isinstance(v, str) else "-" if v < 0 else f"{100 * v:.2f}" for v in row] for row in rows
        ]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        return "\n".join(
            "  ".join(
                [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
            )
            for row in cells
        )


def evaluate(
    annotations: str | Path | Mapping[str, Any], results: Results, iou_type: str = "segm", **options: Any
) -> dict[str, float]:
    """The figures of `score` alone; its notes are warnings here. Arguments and errors as there."""
    found = score(annotations, results, iou_type, **options)
    for note in found.notes:
        warnings.warn(f"metrics.coco: {note}", stacklevel=2)
    return found.figures


def score(
    annotations: str | Path | Mapping[str, Any],
    results: Results,
    iou_type: str = "segm",
    *,
    max_detections: int | None = None,
    image_ids: Sequence[int] | None = None,
    category_ids: Sequence[int | None] | None = None,
    sigmas: Sequence[float] | None = None,
    backend: str = "auto",
) -> Score:
    """Score detections by the annotations of their images, equal to pycocotools to 1e-9.

    Args:
        annotations: COCO instances or person-keypoints, as a JSON file or what it holds.
        results: a JSON file of COCO results, a list of them, or pairs of an image's id and the `Instances` found in it (a
            generator will do). An image without results is one in which nothing was found.
        iou_type: "bbox", "segm" or "keypoints". As in pycocotools, a result's size is that of its bbox if it has one,
            also for "segm", which matters to false alarms in APs, APm and APl alone.
        max_detections: the best so many of an image and class count; None: 100, or 20 for keypoints. All figures but
            AR1 and AR10 are at this number, and that of recall is called after it: AR400.
        image_ids: score these images alone.
        category_ids: of `Instances`, the category of each class, None: not scored. Default: by the classes' names; without
            names class k is the category with the k-th smallest id.
        sigmas: for keypoints, the standard deviation of each one's annotation, in parts of the root of the object's area; None:
            COCO's for a person's 17.
        backend: "pycocotools"; "faster_coco_eval", which computes the same several times faster, if it is installed
            (`pip install faster-coco-eval`); "auto": the faster one if it is there.

    Raises:
        FileNotFoundError: no such file.
        ModuleNotFoundError: the backend is not installed.
        ValueError: an unknown option; annotations or results that are malformed, or do not belong together
            (`metrics.coco_data`), naming the file and the object.
    """
    _check_options(max_detections, backend)
    truth = coco_data.read_annotations(annotations, iou_type)
    max_detections = MAX_DETECTIONS[iou_type] if max_detections is None else int(max_detections)
    found = coco_data.read_results(results, truth, iou_type, category_ids)
    chosen = _chosen_images(image_ids, truth)
    spreads = _sigmas(sigmas, truth, found) if iou_type == "keypoints" else None
    notes = []
    if not found:
        notes.append("there are no results, so that every figure is 0")
    if not any(o["image_id"] in chosen and not o["iscrowd"] for o in truth.objects):
        notes.append("the annotations hold no object, so that every figure is -1")
    counts = [max_detections] if iou_type == "keypoints" else sorted({1, 10, max_detections})
    counts = [count for count in counts if count <= max_detections]
    evaluation = _run(truth, found, iou_type, counts, sorted(chosen), spreads, backend)
    precision, recall = evaluation.eval["precision"], evaluation.eval["recall"]
    labels = _labels(evaluation.params, counts, iou_type)
    names = list(truth.categories.values())
    unique = [f"{name} ({k})" if names.count(name) > 1 else name for k, name in truth.categories.items()]
    return Score(
        iou_type=iou_type,
        max_detections=max_detections,
        figures=_figures(precision, recall, labels),
        per_class={
            name: _figures(precision[:, :, k : k + 1], recall[:, k : k + 1], labels)
            for k, name in enumerate(unique)
        },
        precision=precision[..., 0, -1].copy(),
        notes=tuple(notes),
    )


def _run(
    truth: Truth,
    results: list[dict[str, Any]],
    iou_type: str,
    counts: list[int],
    image_ids: list[int],
    sigmas: np.ndarray | None,
    backend: str,
) -> Any:
    """The evaluation of pycocotools or its drop-in, with eval["precision"] [T, R, K, A, M] and eval["recall"] [T, K, A, M]."""
    module, evaluator = ("pycocotools", "COCOeval")
    if backend == FAST or (backend == "auto" and importlib.util.find_spec(FAST)):
        module, evaluator = (FAST, "COCOeval_faster")
    images = [{"id": k, **{s: truth.images[k].get(s) for s in ("height", "width")}} for k in truth.images]
    categories = [{"id": k, "name": name} for k, name in truth.categories.items()]
    silence = contextlib.redirect_stdout(io.StringIO())  # both print their progress
    with silence:
        sides = []
        for objects in (
            truth.objects,
            [{"id": n, "iscrowd": 0, **r} for n, r in enumerate(results, start=1)],
        ):
            side = importlib.import_module(f"{module}.coco" if module == "pycocotools" else module).COCO()
            side.dataset = {"images": images, "categories": categories, "annotations": objects}
            side.createIndex()
            sides.append(side)
        home = importlib.import_module(f"{module}.cocoeval" if module == "pycocotools" else module)
        evaluation = getattr(home, evaluator)(*sides, iou_type)
        evaluation.params.imgIds, evaluation.params.catIds = image_ids, list(truth.categories)
        evaluation.params.maxDets = counts
        if sigmas is not None:
            evaluation.params.kpt_oks_sigmas = sigmas
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def _labels(params: Any, counts: list[int], iou_type: str) -> dict[str, tuple[bool, int | None, int, int]]:
    """Of each figure: whether it is of precision, its threshold's place or None for all, its range's, its count's."""
    thresholds = {
        threshold: int(np.argmin(np.abs(np.array(params.iouThrs) - threshold))) for threshold in (0.5, 0.75)
    }
    last, kinds = len(counts) - 1, list(params.areaRngLbl)
    sizes = {AREAS[kind]: (kinds.index(kind), last) for kind in kinds if kind != "all"}
    labels: dict[str, tuple[bool, int | None, int, int]] = {}
    for name, is_precision in (("AP", True), ("AR", False)):
        if is_precision or iou_type == "keypoints":
            labels[name] = (is_precision, None, 0, last)
            for threshold, place in thresholds.items():
                labels[f"{name}{100 * threshold:.0f}"] = (is_precision, place, 0, last)
        else:
            labels |= {f"{name}{count}": (False, None, 0, place) for place, count in enumerate(counts)}
        labels |= {f"{name}{letter}": (is_precision, None, *places) for letter, places in sizes.items()}
    return labels


def _figures(precision: np.ndarray, recall: np.ndarray, labels: Mapping[str, tuple]) -> dict[str, float]:
    """Means over what there are objects of; -1 without any."""
    figures = {}
    for name, (is_precision, threshold, area, count) in labels.items():
        values = (precision if is_precision else recall)[..., area, count]
        values = values if threshold is None else values[threshold]
        values = values[values > -1]
        figures[name] = float(np.mean(values)) if values.size else -1.0
    return figures


def _check_options(max_detections: int | None, backend: str) -> None:
    if max_detections is not None and max_detections not in range(1, 2**31):
        raise ValueError(f"metrics.coco: max_detections must be a positive integer, got {max_detections!r}")
    if backend not in BACKENDS:
        raise ValueError(
            f"metrics.coco: backend must be one of {', '.join(map(repr, BACKENDS))}, got {backend!r}"
        )
    if backend == FAST and not importlib.util.find_spec(FAST):
        raise ModuleNotFoundError(
            f"metrics.coco: backend={FAST!r} is not installed: pip install faster-coco-eval, or leave it out for pycocotools"
        )


def _chosen_images(image_ids: Sequence[int] | None, truth: Truth) -> set[int]:
    chosen = set(truth.images if image_ids is None else image_ids)
    if unknown := sorted(chosen - truth.images.keys()):
        raise ValueError(
            f"{truth.name}: image_ids has {unknown[0]}, which is not among the annotations' images"
        )
    return chosen


def _sigmas(given: Sequence[float] | None, truth: Truth, results: list[dict[str, Any]]) -> np.ndarray | None:
    """float64 [K], or None for COCO's; ValueError unless all objects and results have K keypoints."""
    sigmas = None if given is None else np.asarray(given, np.float64)
    if sigmas is not None and not (sigmas.ndim == 1 and (sigmas > 0).all()):
        raise ValueError(f"metrics.coco: sigmas are positive, one a keypoint, got {given!r}")
    count = COCO_KEYPOINTS if sigmas is None else len(sigmas)
    for what, objects in (("annotations", truth.objects), ("results", results)):
        for one in objects:
            if len(one["keypoints"]) != 3 * count:
                hint = "; give sigmas, one a keypoint" if sigmas is None else ""
                raise ValueError(
                    f"{what}: image {one['image_id']} has an object with {len(one['keypoints']) // 3} keypoints, "
                    f"not {count}{hint}"
                )
    return sigmas
