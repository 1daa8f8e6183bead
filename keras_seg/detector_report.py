"""A detector's evaluation as a page: the images with most errors first, what was found beside what is there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_seg.data.progress import track
from keras_seg.error_pictures import FALSE, MISSED, RIGHT, Judged, judge, picture_of
from keras_seg.report_page import PANEL_SIDE, Column, Image, Page, Table, percent, save_panel, write_page

if TYPE_CHECKING:
    from PIL import Image as PIL

    from keras_seg.metrics.coco import Score

__all__ = ["outlined", "write_detector_report"]

LINE_SHARE = 1 / 500  # of an outline's width, in a picture's longest side

COLUMNS = (
    Column("image", "file"),
    Column("F1", "harmonic mean of precision and recall"),
    Column("precision", "share of what was found that is right"),
    Column("recall", "share of what is there that was found"),
    Column("there", "annotated objects, without crowds", most_first=True),
    Column("found", "detections that count", most_first=True),
    Column("missed", "objects without a detection", most_first=True),
    Column("false", "detections without an object", most_first=True),
    Column("IoU", "mean overlap of what is right"),
)
LEGEND = ((RIGHT, "right"), (MISSED, "missed"), (FALSE, "false, or a second time"))


def write_detector_report(
    folder: str | Path,
    found: Sequence[Mapping[str, Any]] | str | Path,
    annotations: Mapping[str, Any] | str | Path,
    images: str | Path,
    scores: Mapping[str, Score],
    *,
    title: str = "Evaluation",
    facts: Sequence[tuple[str, str]] = (),
    pictures: int = 100,
    score_threshold: float = 0.5,
    iou: float = 0.5,
    value_range: tuple[float, float] | None = None,
) -> Path:
    """Writes index.html and its pictures to a folder: to be opened from a disk, and complete without a network.

    Args:
        folder: made if missing; its pictures go to folder/images.
        found: COCO results, `evaluate.results` or a JSON file.
        annotations: COCO annotations.
        images: the folder that the annotations' file names are relative to.
        scores: of `evaluate.score`, by kind of overlap; the curves and classes are theirs. Images are judged by
            masks if "segm" is among them, else by boxes.
        title, facts: (name, value) for the head of the page.
        pictures: draw the worst so many images.
        score_threshold, iou: what counts as found, and as right, in an image.
        value_range: the values that are drawn black and white, see `data.images.to_float`.

    Returns the path of index.html. Raises ValueError for malformed annotations and results, FileNotFoundError for
    an image that is not there, OSError where the folder cannot be written.
    """
    from keras_seg.metrics.coco_picture import precision_recall_picture

    if pictures < 0:
        raise ValueError(f"report: pictures must be 0 or more, got {pictures}")
    folder, images = Path(folder), Path(images)
    iou_type = "segm" if "segm" in scores else "bbox"
    judged = judge(found, annotations, iou_type=iou_type, score_threshold=score_threshold, iou=iou)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    drawn = judged[:pictures]
    panels = {}
    for number, one in enumerate(track(drawn, "drawing") if len(drawn) > 1 else drawn, start=1):
        panels[one.image_id] = _panels(one, images, folder, number, iou_type, value_range)
    curves = []
    for kind, score in scores.items():
        file = precision_recall_picture(folder / f"precision_recall_{kind}.svg", score)
        curves.append((f"Precision over recall ({kind})", file.name))
    page = Page(
        title=title,
        facts=[*facts, ("in an image, found is", f"score {score_threshold:g} or more"),
               ("and right", f"{'mask' if iou_type == 'segm' else 'box'} IoU {iou:g} or more")],
        figures=_figures(judged, scores),
        columns=COLUMNS,
        images=[Image(one.file_name, _cells(one), panels.get(one.image_id, ())) for one in judged],
        tables=[_classes(score) for score in scores.values()],
        curves=curves,
        legend=LEGEND,
    )  # fmt: skip
    return write_page(page, folder / "index.html")


def outlined(
    image: PIL.Image, objects: Sequence[tuple[Mapping[str, Any], tuple[int, int, int]]], iou_type: str
) -> PIL.Image:
    """The image, no larger than PANEL_SIDE, with objects in outline: pairs of a COCO result or annotation (run
    lengths, or a bbox) and a colour; the first on top."""
    from PIL import Image as Pictures
    from PIL import ImageDraw

    line = max(1, round(LINE_SHARE * max(image.size)))
    canvas = image.copy()
    for one, colour in reversed(objects):
        if iou_type == "segm":
            _draw_rim(canvas, one["segmentation"], colour, line)
        else:
            x, y, width, height = one["bbox"]
            ImageDraw.Draw(canvas).rectangle((x, y, x + width, y + height), outline=colour, width=line)
    if max(canvas.size) > PANEL_SIDE:
        canvas.thumbnail((PANEL_SIDE, PANEL_SIDE), Pictures.Resampling.LANCZOS)
    return canvas


def _draw_rim(canvas: PIL.Image, rle: Mapping[str, Any], colour: tuple[int, int, int], line: int) -> None:
    from PIL import Image as Pictures
    from pycocotools import mask as coco
    from scipy import ndimage

    from keras_seg.ops.rle import decode_rle

    x, y, width, height = (int(value) for value in coco.toBbox(rle))
    if not width:
        return
    inside = np.pad(decode_rle(rle)[y : y + height, x : x + width], 1)
    rim = (inside & ~ndimage.binary_erosion(inside, iterations=line))[1:-1, 1:-1]
    canvas.paste(colour, (x, y), Pictures.fromarray(rim))


def _panels(
    one: Judged,
    images: Path,
    folder: Path,
    number: int,
    iou_type: str,
    value_range: tuple[float, float] | None,
) -> list[tuple[str, str]]:
    """The pictures of an image as (caption, file inside the folder)."""
    picture = picture_of(images / one.file_name, value_range)
    right_found = dict.fromkeys(one.errors.right[:, 0].tolist(), RIGHT)
    right_there = dict.fromkeys(one.errors.right[:, 1].tolist(), RIGHT)
    found = [(result, right_found.get(n, FALSE)) for n, result in enumerate(one.found)]
    there = [(thing, right_there.get(n, MISSED)) for n, thing in enumerate(one.there)]
    panels: tuple[tuple[str, list], ...] = (
        ("image", []),
        (f"found: {len(found)}", found),
        (f"there: {len(there)}", there),
    )
    written = []
    for name, (caption, objects) in zip(("image", "found", "there"), panels, strict=True):
        file = f"images/{number:04d}_{name}.jpg"
        save_panel(outlined(picture, objects, iou_type), folder / file)
        written.append((caption, file))
    return written


def _cells(one: Judged) -> list[tuple[float, str]]:
    right, errors = len(one.errors.right), one.errors
    counts = (len(one.there), len(one.found), len(errors.missed), len(errors.false))
    return [
        percent(errors.f1),
        percent(right / len(one.found) if one.found else -1),
        percent(right / len(one.there) if one.there else -1),
        *((count, str(count)) for count in counts),
        percent(float(one.overlaps.mean()) if right else -1),
    ]


def _figures(judged: Sequence[Judged], scores: Mapping[str, Score]) -> list[tuple[str, str]]:
    figures = []
    for kind, score in scores.items():
        figures += [
            (f"{kind} {name}", percent(score.figures[name])[1])
            for name in ("AP", "AP50", "AP75")
            if name in score.figures
        ]
    right, false, missed = (
        sum(len(part) for part in parts)
        for parts in zip(*((j.errors.right, j.errors.false, j.errors.missed) for j in judged), strict=True)
    ) if judged else (0, 0, 0)  # fmt: skip
    total = 2 * right + false + missed
    figures.append(("F1, all objects", percent(2 * right / total if total else -1)[1]))
    return [
        *figures,
        ("images", str(len(judged))),
        ("objects", str(right + missed)),
        ("found", str(right + false)),
    ]


def _classes(score: Score) -> Table:
    columns = [Column("class", ""), *(Column(name, _MEANING.get(name, "")) for name in score.figures)]
    rows = [
        (name, [percent(value) for value in figures.values()]) for name, figures in score.per_class.items()
    ]
    title = f"Classes ({score.iou_type}, {score.max_detections} detections an image)"
    every = [("all", [percent(value) for value in score.figures.values()])] if len(rows) > 1 else []
    return Table(title, columns, every + rows)


_MEANING = {
    "AP": "average precision, mean over overlaps of 0.5 to 0.95",
    "AP50": "average precision at an overlap of 0.5",
    "AP75": "average precision at an overlap of 0.75",
    "APs": "of objects below 32 x 32 pixels",
    "APm": "of objects of 32 x 32 to 96 x 96 pixels",
    "APl": "of objects above 96 x 96 pixels",
}
