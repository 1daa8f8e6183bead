"""A COCO-format data set looked through before training: what it holds, what is wrong with it, and pictures of it."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from keras_seg import drawing
from keras_seg.data import run_lengths
from keras_seg.data.annotated_image import AnnotatedImage
from keras_seg.data.coco import missing_files
from keras_seg.data.coco_entries import ERROR, Problem
from keras_seg.data.coco_index import CocoIndex, scan
from keras_seg.data.detection_items import open_picture
from keras_seg.data.progress import bytes_read, track

__all__ = ["Report", "check", "draw_annotations"]

# COCO's small, medium and large objects, by area in pixels.
AREAS = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, math.inf)}
QUANTILES = {"least": 0.0, "median": 0.5, "most": 1.0}
DRAWN_SIDE = 640  # pixels that a drawn sample's longer side has at least
SHOWN = 20  # problems of a kind in the text


@dataclass
class Report:
    """What `check` found. errors, dropped, notes: one line each, with file, id and field. The rest is empty if the
    annotations have errors, since then they cannot be relied on."""

    annotations: str
    images: str
    entries: dict[str, int]
    errors: list[str]
    dropped: list[str]
    notes: list[str]
    counts: dict[str, int] = field(default_factory=dict)
    classes: dict[str, int] = field(default_factory=dict)
    sizes: dict[str, dict[str, float]] = field(default_factory=dict)
    samples: list[str] = field(default_factory=list)

    @property
    def usable(self) -> bool:
        return not self.errors

    def to_dict(self) -> dict[str, Any]:
        return {"usable": self.usable, **asdict(self)}

    def __str__(self) -> str:
        lines = [f"{self.annotations}: " + ", ".join(f"{n} {what}" for what, n in self.entries.items())]
        lines += [f"  {what:<28} {n}" for what, n in self.counts.items()]
        if self.sizes:
            lines += ["", f"  {'':<28} " + " ".join(f"{name:>10}" for name in QUANTILES)]
            lines += [
                f"  {w:<28} " + " ".join(f"{v:10.1f}" for v in row.values()) for w, row in self.sizes.items()
            ]
        if self.classes:
            lines += ["", "  objects of each class"]
            lines += [f"  {name:<28} {n}" for name, n in self.classes.items()]
        for title, problems in (("errors", self.errors), ("dropped", self.dropped), ("notes", self.notes)):
            if problems:
                lines += ["", f"{len(problems)} {title}"] + [f"  {p}" for p in problems[:SHOWN]]
                lines += (
                    [f"  and {len(problems) - SHOWN} more (--json lists all)"]
                    if len(problems) > SHOWN
                    else []
                )
        if self.samples:
            lines += [
                "",
                f"drawn: {self.samples[0]}"
                + (f" and {len(self.samples) - 1} more" if self.samples[1:] else ""),
            ]
        return "\n".join([*lines, "", "usable" if self.usable else "NOT usable: see the errors"])


def check(
    annotations: str | Path,
    images: str | Path,
    *,
    output: str | Path | None = None,
    samples: int = 8,
    min_box_side: float = 1.0,
    read_images: bool = True,
    seed: int = 0,
) -> Report:
    """Look through COCO annotations and their images.

    annotations: JSON file. images: folder. output: folder for `samples` pictures, drawn at random, with their objects;
    None: none are drawn. min_box_side: as of `data.coco`. read_images: whether every image is decoded, to find those
    that are unreadable or of another size; False looks only whether they are there.

    Errors are what `data.coco` refuses or would stumble upon; "dropped" are the objects that it leaves out; "notes" are
    worth a look. FileNotFoundError: no annotations or folder. ValueError: no COCO annotations at all.
    """
    path, folder = Path(annotations), Path(images)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of images")
    with bytes_read(path, "Reading annotations") as advance:
        index, problems, entries = scan(path, min_box_side=min_box_side, on_bytes=advance)
    report = Report(str(path), str(folder), entries, [], [], [])
    lists = {"error": report.errors, "dropped": report.dropped, "note": report.notes}
    if index is not None:
        missing = set(missing_files(index, folder))
        problems += _file_problems(index, folder, missing, read_images)
        report.counts, report.classes, report.sizes = _counts(index), _classes(index), _sizes(index)
    for problem in problems:
        lists[problem.kind].append(str(problem))
    if index is not None and output is not None:
        bad = {p.id for p in problems if p.section == "images" and p.kind == ERROR}
        report.samples = _draw_samples(index, folder, Path(output), samples, seed, bad)
    return report


def _file_problems(index: CocoIndex, folder: Path, missing: set[str], read_images: bool) -> list[Problem]:
    problems = []
    names = [index.file_name(i) for i in range(len(index))]
    ids = index.image_ids.tolist()
    for name, number in zip(names, ids, strict=True):
        if name in missing:
            problems.append(Problem(ERROR, "images", number, "file_name", f"{name} is not in {folder}"))
    places: dict[str, int] = {}
    for name, number in zip(names, ids, strict=True):
        if (first := places.setdefault(name, number)) != number:
            problems.append(
                Problem("note", "images", number, "file_name", f"{name} is that of image {first} too")
            )
    bare = index.objects_without_masks()
    if len(bare) and (index.has_runs().any() or index.has_polygons().any()):
        text = "is missing, which other annotations have: training masks refuses this"
        problems += [Problem(ERROR, "annotations", n, "segmentation", text) for n in index.ids[bare].tolist()]
    if read_images:
        there = [i for i, name in enumerate(names) if name not in missing]
        with ThreadPoolExecutor() as pool:
            found = pool.map(lambda i: _image_problem(index, folder, i), there)
            problems += [p for _, p in zip(track(there, "Reading images"), found, strict=True) if p]
    return problems


def _image_problem(index: CocoIndex, folder: Path, i: int) -> Problem | None:
    name, number = index.file_name(i), int(index.image_ids[i])
    try:
        picture = open_picture(folder / name, name)
    except (OSError, ValueError) as error:
        return Problem(ERROR, "images", number, "file_name", f"{error}")
    height, width = index.sizes[i].tolist()
    if (picture.height, picture.width) != (height, width):
        text = f"{name} has {picture.height}x{picture.width} pixels (height x width, upright), not {height}x{width}"
        return Problem(ERROR, "images", number, "height, width", text)
    return None


def _counts(index: CocoIndex) -> dict[str, int]:
    single = index.rows[~index.crowd[index.rows]]
    extent = index.boxes[single, 2:] - index.boxes[single, :2]
    areas = extent.prod(axis=1)
    counts = {
        "images with objects": int(index.with_objects().sum()),
        "images without": int((~index.with_objects()).sum()),
        "objects": len(single),
        "crowds": len(index.rows) - len(single),
        "objects with polygons": int(index.has_polygons(single).sum()),
        "objects with run lengths": int(index.has_runs(single).sum()),
    }
    counts |= {
        f"{name} boxes": int(((areas >= low) & (areas < high)).sum()) for name, (low, high) in AREAS.items()
    }
    if index.keypoint_names:
        visible = (index.keypoints[single, :, 2] > 0).sum(axis=1)
        counts |= {"objects with keypoints": int((visible > 0).sum()), "keypoints": int(visible.sum())}
    return counts


def _classes(index: CocoIndex) -> dict[str, int]:
    single = index.rows[~index.crowd[index.rows]]
    counts = np.bincount(index.classes[single], minlength=len(index.class_names))
    return dict(zip(index.class_names, counts.tolist(), strict=True))


def _sizes(index: CocoIndex) -> dict[str, dict[str, float]]:
    single = index.rows[~index.crowd[index.rows]]
    extent = index.boxes[single, 2:] - index.boxes[single, :2]
    of_image = np.repeat(np.arange(len(index)), np.diff(index.starts))[~index.crowd[index.rows]]
    values = {
        "image height, pixels": index.sizes[:, 0],
        "image width, pixels": index.sizes[:, 1],
        "objects an image": np.bincount(of_image, minlength=len(index)),
        "box height, pixels": extent[:, 1],
        "box width, pixels": extent[:, 0],
    }
    return {
        what: {name: float(np.quantile(v, q)) for name, q in QUANTILES.items()}
        for what, v in values.items()
        if len(v)
    }


# -- pictures --------------------------------------------------------------------------------------------------


def _draw_samples(
    index: CocoIndex, folder: Path, output: Path, samples: int, seed: int, bad: set[int | str | None]
) -> list[str]:
    usable = [i for i in np.flatnonzero(index.with_objects()).tolist() if int(index.image_ids[i]) not in bad]
    chosen = np.random.default_rng(seed).permutation(np.array(usable, np.int64))[:samples]
    output.mkdir(parents=True, exist_ok=True)
    drawn = []
    for i in track(np.sort(chosen).tolist(), "Drawing samples"):
        path = output / f"{index.image_ids[i]}.png"
        draw_annotations(index.annotated(i, folder), index.class_names).save(path)
        drawn.append(str(path))
    return drawn


def draw_annotations(annotated: AnnotatedImage, class_names: tuple[str, ...]) -> Image.Image:
    """The image, small ones enlarged, with its objects: masks, boxes, keypoints, and labels of class and annotation
    id."""
    from keras_seg import visualize

    picture = open_picture(annotated.file, annotated.name).convert("RGB")
    scale = max(1, math.ceil(DRAWN_SIDE / max(picture.size)))
    picture = picture.resize([scale * side for side in picture.size], Image.Resampling.BICUBIC)
    canvas = picture.copy()
    side = math.sqrt(canvas.width * canvas.height)
    line = max(visualize.LEAST_LINE, round(side * visualize.LINE_SHARE))
    font = max(visualize.LEAST_FONT, round(side * visualize.FONT_SHARE))
    boxes = (annotated.boxes * scale).astype(np.float32)
    tints = visualize.colours(1 + np.arange(len(boxes))).astype(int)
    order = np.argsort(-np.prod(boxes[:, 2:] - boxes[:, :2], axis=1), kind="stable").tolist()
    windows = _windows(annotated, scale)
    for k in order:
        if windows[k] is not None:
            drawing.paint_mask(canvas, picture, windows[k], tints[k], 0.45, line)
    for k in order:
        drawing.paint_box(canvas, boxes[k], tints[k], line)
    for k in order if annotated.keypoints.shape[1] else ():
        keypoints = annotated.keypoints[k] * np.array([scale, scale, 1.0])
        pairs = visualize.PERSON_SKELETON if len(keypoints) == visualize.PERSON_KEYPOINTS else ()
        drawing.paint_skeleton(canvas, keypoints, boxes[k], pairs, 0.5, tints[k], line)
    texts = [
        f"{class_names[c]}{' crowd' if crowd else ''} {number}"
        for c, crowd, number in zip(
            annotated.classes.tolist(), annotated.crowd.tolist(), annotated.ids.tolist(), strict=True
        )
    ]
    drawing.paint_labels(canvas, texts, boxes, tints, font)
    return canvas


def _windows(annotated: AnnotatedImage, scale: int) -> list[tuple[slice, slice, np.ndarray] | None]:
    """Of each object its mask as (rows, columns, bool [h, w]) of the enlarged picture."""
    from pycocotools import mask as coco

    height, width = annotated.size
    found: list[tuple[slice, slice, np.ndarray] | None] = [None] * len(annotated.boxes)
    splits = np.concatenate([[0], np.cumsum(annotated.polygon_lengths)])
    for k in np.unique(annotated.polygon_objects).tolist():
        own = np.flatnonzero(annotated.polygon_objects == k)
        polygons = [
            (annotated.polygon_points[splits[p] : splits[p + 1]] * scale).ravel().tolist() for p in own
        ]
        mask = coco.decode(coco.merge(coco.frPyObjects(polygons, height * scale, width * scale))).astype(bool)
        found[k] = slice(0, height * scale), slice(0, width * scale), mask
    masks = run_lengths.windows(annotated.run_lengths, annotated.run_splits, height)
    for k in np.flatnonzero(np.diff(annotated.run_splits)).tolist():
        y, x = masks.bounds[k, :2].tolist()
        inside = masks.bitmap(k).astype(bool).repeat(scale, 0).repeat(scale, 1)
        found[k] = (
            slice(y * scale, y * scale + inside.shape[0]),
            slice(x * scale, x * scale + inside.shape[1]),
            inside,
        )
    return found
