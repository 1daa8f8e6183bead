"""A COCO annotations file as arrays: checked once, and small enough for the whole of COCO.

The file is read piece by piece (`json_stream`), its numbers go into flat arrays. COCO's 118,000 images with 860,000
objects take some 350 MB, most of them the polygons' points, and no Python object an image or an annotation stays.

Two kinds of trouble are told apart. An error makes the file's meaning doubtful (a polygon of two points, run lengths of
another size, an id given twice): nothing is read until it is mended. What is only useless (a box without extent, or
outside the image) is dropped, counted and reported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from keras_seg.data import run_lengths
from keras_seg.data.annotated_image import AnnotatedImage
from keras_seg.data.coco_entries import (
    DROPPED,
    ERROR,
    NOTE,
    Categories,
    Images,
    Objects,
    Problem,
    as_array,
    short,
)
from keras_seg.data.json_stream import sections

__all__ = ["CocoIndex", "read_index", "scan", "summarise"]

SHOWN = 10  # problems in a message
# COCO's keypoints name a pixel by its index, ours are continuous: the centre of pixel i is i + 0.5 (as Detectron2).
PIXEL_CENTRE = 0.5
CHARACTERS_AT_ONCE = 300_000  # of run lengths that are checked together: some tens of MB
BOXES_AT_ONCE = 100_000
OUT_BY = 1.0  # pixels by which a box must leave the image for its clipping to be reported


@dataclass(frozen=True, eq=False)
class CocoIndex:
    """The annotations of I images: O objects of K classes, in arrays.

    path: for messages. class_names: of each class. category_ids: int64 [K], COCO's of each class, rising: classes
    are 0 … K - 1 however many gaps the ids have. keypoint_names: of each keypoint; none: ().
    image_ids: int64 [I]. sizes: int32 [I, 2], height, width.
    starts: int64 [I + 1], rows: int32 [O]: the objects of image i are rows[starts[i]:starts[i + 1]] of the arrays
    below.
    ids: int64, boxes: float64 [·, 4] x1, y1, x2, y2, classes: int32, crowd: bool; keypoints: float32 [·, K, 3] as
    in the file. Polygons: object r has polygons polygon_splits[r] … of which p has numbers point_splits[p] … of
    `decimals`, x, y, x, y, …, float64, or int32 hundredths where that loses nothing. Run lengths: object r has
    characters run_splits[r] … of `runs`, uint8.
    """

    path: str
    class_names: tuple[str, ...]
    category_ids: np.ndarray
    keypoint_names: tuple[str, ...]
    image_ids: np.ndarray
    sizes: np.ndarray
    names: np.ndarray  # uint8: the file names, UTF-8, one after the other
    name_splits: np.ndarray
    starts: np.ndarray
    rows: np.ndarray
    ids: np.ndarray
    boxes: np.ndarray
    classes: np.ndarray
    crowd: np.ndarray
    decimals: np.ndarray
    point_splits: np.ndarray
    polygon_splits: np.ndarray
    runs: np.ndarray
    run_splits: np.ndarray
    keypoints: np.ndarray

    def __len__(self) -> int:
        return len(self.image_ids)

    def file_name(self, i: int) -> str:
        return self.names[self.name_splits[i] : self.name_splits[i + 1]].tobytes().decode()

    def objects(self, i: int) -> np.ndarray:
        """int32 [G]: the rows of image i's objects."""
        return self.rows[self.starts[i] : self.starts[i + 1]]

    def has_polygons(self, rows: np.ndarray | slice = slice(None)) -> np.ndarray:
        return np.diff(self.polygon_splits)[rows] > 0

    def has_runs(self, rows: np.ndarray | slice = slice(None)) -> np.ndarray:
        return np.diff(self.run_splits)[rows] > 0

    def keep(self, images: np.ndarray) -> CocoIndex:
        """The same of the images chosen by bool [I] or int [n] only; objects stay where they are."""
        chosen = np.arange(len(self))[images]
        counts = np.diff(self.starts)[chosen]
        starts = np.concatenate([[0], np.cumsum(counts)])
        rows = self.rows[np.arange(starts[-1]) - np.repeat(starts[:-1] - self.starts[chosen], counts)]
        lengths = np.diff(self.name_splits)[chosen]
        splits = np.concatenate([[0], np.cumsum(lengths)])
        names = self.names[np.arange(splits[-1]) - np.repeat(splits[:-1] - self.name_splits[chosen], lengths)]
        fields = {**self.__dict__, "starts": starts, "rows": rows, "names": names, "name_splits": splits}
        return CocoIndex(**{**fields, "image_ids": self.image_ids[chosen], "sizes": self.sizes[chosen]})

    def with_objects(self) -> np.ndarray:
        """bool [I]: images with an object that is no crowd."""
        single = np.concatenate([[0], np.cumsum(~self.crowd[self.rows])])
        return single[self.starts[1:]] > single[self.starts[:-1]]

    def objects_without_masks(self) -> np.ndarray:
        """int32 [n]: the rows of objects, no crowds, that have neither polygons nor run lengths."""
        single = self.rows[~self.crowd[self.rows]]
        return single[~(self.has_runs(single) | self.has_polygons(single))]

    def annotated(self, i: int, folder: Path) -> AnnotatedImage:
        """Image i, whose file lies in `folder`."""
        rows = self.objects(i)
        polygons = [np.arange(self.polygon_splits[r], self.polygon_splits[r + 1]) for r in rows]
        flat = np.concatenate(polygons) if polygons else np.zeros(0, np.int64)
        points = [self.decimals[self.point_splits[p] : self.point_splits[p + 1]] for p in flat]
        xy = np.concatenate(points).reshape(-1, 2) if points else np.zeros((0, 2))
        runs = [self.runs[self.run_splits[r] : self.run_splits[r + 1]] for r in rows]
        keypoints = self.keypoints[rows].astype(np.float64)
        keypoints[..., :2] += PIXEL_CENTRE
        return AnnotatedImage(
            name=f"{folder / self.file_name(i)} (image {self.image_ids[i]} of {self.path})",
            file=folder / self.file_name(i),
            image_id=int(self.image_ids[i]),
            size=(int(self.sizes[i, 0]), int(self.sizes[i, 1])),
            boxes=self.boxes[rows],
            classes=self.classes[rows],
            crowd=self.crowd[rows],
            ids=self.ids[rows],
            polygon_points=xy / 100 if xy.dtype == np.int32 else xy,
            polygon_lengths=np.array([len(p) // 2 for p in points], np.int64),
            polygon_objects=np.repeat(np.arange(len(rows)), [len(p) for p in polygons]),
            run_lengths=np.concatenate(runs) if runs else np.zeros(0, np.uint8),
            run_splits=np.concatenate([[0], np.cumsum([len(r) for r in runs], dtype=np.int64)]),
            keypoints=keypoints,
        )


def read_index(
    annotations: str | Path | Mapping[str, Any],
    *,
    min_box_side: float = 1.0,
    on_bytes: Callable[[int], None] | None = None,
) -> tuple[CocoIndex, list[Problem]]:
    """Read COCO instances or person-keypoints annotations: (index, what was dropped or is noteworthy).

    annotations: path of the JSON file, or its content. min_box_side: objects whose box, within the image, has a shorter
    side of less than so many pixels are dropped. on_bytes: is told how many bytes were read.

    Raises FileNotFoundError, or ValueError naming the file and, of each error, the entry's id and field.
    """
    index, problems, _ = scan(annotations, min_box_side=min_box_side, on_bytes=on_bytes)
    errors = [p for p in problems if p.kind == ERROR]
    if errors:
        name = "the annotations" if isinstance(annotations, Mapping) else annotations
        raise ValueError(f"{name}: {summarise(errors)}")
    return cast(CocoIndex, index), problems


def summarise(problems: Sequence[Problem], shown: int = SHOWN) -> str:
    """One line for each of the first, and how many there are."""
    if len(problems) == 1:
        return str(problems[0])
    more = (
        f"\n  and {len(problems) - shown} more (keras-seg check-data lists all)"
        if len(problems) > shown
        else ""
    )
    return f"{len(problems)} errors:\n  " + "\n  ".join(map(str, problems[:shown])) + more


def scan(
    annotations: str | Path | Mapping[str, Any],
    *,
    min_box_side: float = 1.0,
    on_bytes: Callable[[int], None] | None = None,
) -> tuple[CocoIndex | None, list[Problem], dict[str, int]]:
    """As `read_index`, but every problem is in the list, and the index is None if there is an error among them. Third:
    how many "images", "annotations" and "categories" the file lists."""
    problems: list[Problem] = []
    if isinstance(annotations, Mapping):
        path, entries = "annotations", _entries(annotations)
    else:
        path, entries = str(annotations), sections(annotations, on_bytes)
    images, objects, categories = Images(problems), Objects(problems), Categories(problems)
    readers = {"images": images.add, "annotations": objects.add, "categories": categories.add}
    found: dict[str, int] = {}
    for key, place, value in entries:
        if key not in readers:
            continue
        if place is None:
            raise ValueError(f"{path}: {key}: must be a list, not {short(value)}")
        if place < 0:
            found[key] = 0
            continue
        found[key] += 1
        if isinstance(value, dict):
            readers[key](value, place)
        else:
            problems.append(
                Problem(ERROR, key, f"number {place} of the list", "entry", f"an object, not {short(value)}")
            )
    if missing := [key for key in readers if key not in found]:
        raise ValueError(f"{path}: has no {', no '.join(missing)}: not COCO annotations")
    return _index(path, images, objects, categories, problems, min_box_side), problems, found


def _entries(annotations: Mapping[str, Any]) -> Iterator[tuple[str, int | None, Any]]:
    for key, value in annotations.items():
        if isinstance(value, list | tuple):
            yield key, -1, None
            for place, element in enumerate(value):
                yield key, place, element
        else:
            yield key, None, value


# -- columns into an index -------------------------------------------------------------------------------------


def _index(
    path: str,
    images: Images,
    objects: Objects,
    categories: Categories,
    problems: list[Problem],
    min_box_side: float,
) -> CocoIndex | None:
    image_ids, sizes = as_array(images.ids, np.int64), as_array(images.sizes, np.int64).reshape(-1, 2)
    name_splits = as_array(images.splits, np.int64)
    problems += [Problem(ERROR, "images", i, "id", "is there twice") for i in _repeated(image_ids)]
    ids, boxes = as_array(objects.ids, np.int64), as_array(objects.boxes, np.float64).reshape(-1, 4)
    problems += [Problem(ERROR, "annotations", i, "id", "is there twice") for i in _repeated(ids)]

    def error(rows: np.ndarray, field: str, message: str | Callable[[int], str]) -> None:
        for r in rows.tolist():
            text = message(r) if callable(message) else message
            problems.append(Problem(ERROR, "annotations", int(ids[r]), field, text))

    order = np.argsort(image_ids, kind="stable")
    image, known = _look_up(image_ids[order], as_array(objects.images, np.int64))
    image = order[image] if len(order) else image
    error(np.flatnonzero(~known), "image_id", lambda r: f"no image has the id {objects.images[r]}")
    category_ids = np.array(sorted(categories.names), np.int64)
    classes, known = _look_up(category_ids, as_array(objects.categories, np.int64))
    error(np.flatnonzero(~known), "category_id", lambda r: f"no category has the id {objects.categories[r]}")
    crowd = as_array(objects.crowd, np.int8)
    error(np.flatnonzero((crowd != 0) & (crowd != 1)), "iscrowd", lambda r: f"must be 0 or 1, not {crowd[r]}")
    finite = np.isfinite(boxes).all(axis=1)
    error(np.flatnonzero(~finite), "bbox", lambda r: f"must be finite, not {boxes[r].tolist()}")

    _check_polygons(objects, error)
    area = _check_runs(objects, ids, image, sizes, error)
    keypoint_names = _keypoint_names(categories, problems)
    keypoints = _keypoints(objects, len(keypoint_names), error)
    if any(p.kind == ERROR for p in problems):
        return None

    boxes, dropped = _clip(boxes, image, sizes, min_box_side, ids, problems)
    empty = (area == 0) & ~dropped
    problems += [
        Problem(DROPPED, "annotations", i, "segmentation", "the mask has no pixel")
        for i in ids[empty].tolist()
    ]
    rows = np.flatnonzero(~(dropped | empty))
    rows = rows[np.argsort(image[rows], kind="stable")].astype(np.int32)
    counts = np.bincount(image[rows], minlength=len(image_ids))
    return CocoIndex(
        path=path,
        class_names=tuple(categories.names[k] for k in category_ids.tolist()),
        category_ids=category_ids,
        keypoint_names=keypoint_names,
        image_ids=image_ids,
        sizes=sizes.astype(np.int32),
        names=np.frombuffer(images.names, np.uint8),
        name_splits=name_splits,
        starts=np.concatenate([[0], np.cumsum(counts)]),
        rows=rows,
        ids=ids,
        boxes=boxes,
        classes=classes.astype(np.int32),
        crowd=crowd == 1,
        decimals=objects.points.settle(),
        point_splits=as_array(objects.point_splits, np.int64),
        polygon_splits=as_array(objects.polygon_splits, np.int64),
        runs=np.frombuffer(objects.runs, np.uint8),
        run_splits=as_array(objects.run_splits, np.int64),
        keypoints=keypoints,
    )


def _repeated(ids: np.ndarray) -> list[int]:
    distinct, counts = np.unique(ids, return_counts=True)
    return distinct[counts > 1].tolist()


def _look_up(table: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(place of each value in a rising table, whether it is there)."""
    if not len(table):
        return np.zeros(len(values), np.int64), np.zeros(len(values), bool)
    place = np.minimum(np.searchsorted(table, values), len(table) - 1)
    return place, table[place] == values


def _check_polygons(objects: Objects, error: Callable) -> None:
    splits, of_object = as_array(objects.point_splits, np.int64), as_array(objects.polygon_splits, np.int64)
    lengths = np.diff(splits)
    owner = np.repeat(np.arange(len(of_object) - 1), np.diff(of_object))
    first = of_object[owner]

    def rows(bad: np.ndarray, message: Callable[[int], str]) -> None:
        for p in np.flatnonzero(bad).tolist():
            error(owner[p : p + 1], "segmentation", f"polygon {p - first[p]} {message(p)}")

    odd = lengths % 2 == 1
    rows(odd, lambda p: f"has {lengths[p]} numbers; x, y, … come in pairs")
    rows(~odd & (lengths < 6), lambda p: f"has {lengths[p] // 2} points; 3 are the least")
    points = objects.points.settle()
    if points.dtype == np.float64 and not np.isfinite(points).all():
        bad = np.zeros(len(lengths), bool)
        bad[np.unique(np.searchsorted(splits, np.flatnonzero(~np.isfinite(points)), "right") - 1)] = True
        rows(bad, lambda p: "has coordinates that are NaN or infinite")


def _check_runs(
    objects: Objects, ids: np.ndarray, image: np.ndarray, sizes: np.ndarray, error: Callable
) -> np.ndarray:
    """int64 [O]: the pixels of each mask; -1 of objects without run lengths."""
    table = as_array(objects.run_sizes, np.int64).reshape(-1, 3)
    rows, own = table[:, 0], table[:, 1:]
    splits, characters = as_array(objects.run_splits, np.int64), np.frombuffer(objects.runs, np.uint8)
    area = np.full(len(ids), -1, np.int64)
    if not len(sizes):
        return area
    other = (own != sizes[image[rows]]).any(axis=1)
    for r, size in zip(rows[other].tolist(), own[other].tolist(), strict=True):
        height, width = sizes[image[r]].tolist()
        text = f"run lengths of size {size[0]}x{size[1]} (height x width) in an image of {height}x{width}"
        error(np.array([r]), "segmentation", text)
    same, own = rows[~other], own[~other].prod(axis=1)
    total = np.cumsum(splits[same + 1] - splits[same])
    first = 0
    while first < len(same):
        before = total[first - 1] if first else 0
        stop = max(first + 1, int(np.searchsorted(total, before + CHARACTERS_AT_ONCE)))
        part = same[first:stop]
        # the strings lie one after the other but for those of another size
        pieces = [characters[splits[r] : splits[r + 1]] for r in part.tolist()]
        lengths = np.concatenate([[0], np.cumsum([len(p) for p in pieces])])
        area[part], wrong = run_lengths.problems(np.concatenate(pieces), lengths, own[first:stop])
        for k, message in wrong:
            error(part[k : k + 1], "segmentation", message)
        first = stop
    return area


def _keypoint_names(categories: Categories, problems: list[Problem]) -> tuple[str, ...]:
    """The keypoints' names, which all categories that have any share."""
    several = list(categories.keypoints.items())
    for number, names in several[1:]:
        if names != several[0][1]:
            text = f"other names than category {several[0][0]} has; one model has one list of keypoints"
            problems.append(Problem(ERROR, "categories", number, "keypoints", text))
    return several[0][1] if several else ()


def _keypoints(objects: Objects, number: int, error: Callable) -> np.ndarray:
    """float32 [O, K, 3], zeros where an object has none."""
    splits = as_array(objects.keypoint_splits, np.int64)
    lengths = np.diff(splits)
    error(
        np.flatnonzero((lengths > 0) & (lengths != 3 * number)),
        "keypoints",
        lambda r: (
            f"{lengths[r]} numbers; the categories name {number} keypoints, so {3 * number} are expected"
        ),
    )
    if not number or ((lengths > 0) & (lengths != 3 * number)).any():
        return np.zeros((len(lengths), number, 3), np.float32)
    values = as_array(objects.keypoints, np.float32).reshape(-1, number, 3)
    present = np.flatnonzero(lengths)
    legal = np.isfinite(values).all(axis=(1, 2))
    error(present[~legal], "keypoints", "are NaN or infinite")
    legal &= np.isin(values[..., 2], (0, 1, 2)).all(axis=1)
    error(present[~legal & np.isfinite(values).all(axis=(1, 2))], "keypoints", "visibility must be 0, 1 or 2")
    if len(present) == len(lengths):
        return values
    keypoints = np.zeros((len(lengths), number, 3), np.float32)
    keypoints[present] = values
    return keypoints


def _clip(
    boxes: np.ndarray,
    image: np.ndarray,
    sizes: np.ndarray,
    min_box_side: float,
    ids: np.ndarray,
    problems: list[Problem],
) -> tuple[np.ndarray, np.ndarray]:
    """COCO's boxes as x1, y1, x2, y2 within their images, float64 [O, 4], and which of them are of no use, bool [O].

    image: int [O], of each box its row in `sizes`.
    """
    clipped, useless = np.empty_like(boxes), np.zeros(len(boxes), bool)
    for first in range(0, len(boxes), BOXES_AT_ONCE):
        part = slice(first, first + BOXES_AT_ONCE)
        own = sizes[image[part]]
        clipped[part], useless[part] = _clip_part(boxes[part], own, min_box_side, ids[part], problems)
    return clipped, useless


def _clip_part(
    boxes: np.ndarray, sizes: np.ndarray, min_box_side: float, ids: np.ndarray, problems: list[Problem]
) -> tuple[np.ndarray, np.ndarray]:
    """COCO's boxes as x1, y1, x2, y2 within their images, and which of them are of no use."""
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    limit = sizes[:, ::-1].astype(np.float64)
    clipped = np.concatenate([np.clip(corners[:, :2], 0, limit), np.clip(corners[:, 2:], 0, limit)], axis=1)
    side = (clipped[:, 2:] - clipped[:, :2]).min(axis=1, initial=np.inf)
    flat: np.ndarray = np.any(boxes[:, 2:] <= 0, axis=1)
    outside: np.ndarray = ~flat & ((corners[:, :2] >= limit) | (corners[:, 2:] <= 0)).any(axis=1)
    tiny = ~flat & ~outside & (side < min_box_side)
    out_by = np.abs(corners - clipped).max(axis=1, initial=0)

    def tell(kind: str, chosen: np.ndarray, message: Callable[[str, str], str]) -> None:
        for r in np.flatnonzero(chosen).tolist():
            x, y, w, h = (f"{v:g}" for v in boxes[r])
            text = message(f"[{x}, {y}, {w}, {h}]", f"{sizes[r, 0]}x{sizes[r, 1]}")
            problems.append(Problem(kind, "annotations", int(ids[r]), "bbox", text))

    tell(DROPPED, flat, lambda box, _: f"{box} has no extent")
    tell(DROPPED, outside, lambda box, size: f"{box} lies outside the image of {size} (height x width)")
    tell(DROPPED, tiny, lambda box, _: f"{box} has a side of less than {min_box_side:g} pixels in the image")
    partly = ~(flat | outside | tiny) & (out_by > OUT_BY)
    tell(NOTE, partly, lambda box, size: f"{box} leaves the image of {size} (height x width): clipped to it")
    return clipped, flat | outside | tiny
