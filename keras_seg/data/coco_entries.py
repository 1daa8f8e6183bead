"""The entries of a COCO annotations file as columns of numbers, each checked for its types as it comes."""

from __future__ import annotations

from array import array
from typing import Any, NamedTuple, cast

import numpy as np

from keras_seg.data import run_lengths

__all__ = ["DROPPED", "ERROR", "NOTE", "Categories", "Images", "Objects", "Problem", "as_array", "short"]

ERROR, DROPPED, NOTE = "error", "dropped", "note"


class Problem(NamedTuple):
    """kind: "error", "dropped" or "note". section: "images", "annotations" or "categories". id: of the entry, or its
    place "number 3" where it has none. field, message: what is wrong."""

    kind: str
    section: str
    id: int | str | None
    field: str
    message: str

    def __str__(self) -> str:
        one = {"images": "image", "annotations": "annotation", "categories": "category"}.get(
            self.section, self.section
        )
        return f"{one}{'' if self.id is None else f' {self.id}'}: {self.field}: {self.message}"


class Images:
    def __init__(self, problems: list[Problem]) -> None:
        self.problems = problems
        self.ids, self.sizes, self.names, self.splits = array("q"), array("q"), bytearray(), array("q", [0])

    def add(self, image: dict, place: int) -> None:
        name = _identity(image, place)
        fields: list[Any] = [_integer(image, field) for field in ("id", "height", "width")]
        file_name: Any = image.get("file_name")
        wrong = [(f, m) for f, m in zip(("id", "height", "width"), fields, strict=True) if isinstance(m, str)]
        if not wrong:
            wrong = [
                (f, f"must be 1 or more, not {v}")
                for f, v in zip(("height", "width"), fields[1:], strict=True)
                if v < 1
            ]
        if not (isinstance(file_name, str) and file_name):
            wrong.append(("file_name", _expected("a name", image, "file_name")))
        self.problems += [Problem(ERROR, "images", name, *w) for w in wrong]
        if not wrong:
            self.ids.append(fields[0])
            self.sizes.extend(fields[1:])
            self.names += file_name.encode("utf-8", "surrogatepass")
            self.splits.append(len(self.names))


class Categories:
    def __init__(self, problems: list[Problem]) -> None:
        self.problems = problems
        self.names: dict[int, str] = {}
        self.keypoints: dict[int, tuple[str, ...]] = {}

    def add(self, category: dict, place: int) -> None:
        entry = _identity(category, place)
        number: Any = _integer(category, "id")
        name: Any = category.get("name")
        keypoints: Any = category.get("keypoints", [])
        wrong = []
        if isinstance(number, str):
            wrong.append(("id", number))
        elif number in self.names:
            wrong.append(("id", "is there twice"))
        if not (isinstance(name, str) and name):
            wrong.append(("name", _expected("a name", category, "name")))
        if not (isinstance(keypoints, list) and all(isinstance(k, str) for k in keypoints)):
            wrong.append(("keypoints", _expected("a list of names", category, "keypoints")))
        self.problems += [Problem(ERROR, "categories", entry, *w) for w in wrong]
        if not wrong:
            self.names[number] = name
            if keypoints:
                self.keypoints[number] = tuple(keypoints)


class _Decimals:
    """float64 numbers that are kept as whole hundredths, int32, as long as nothing is lost: COCO's have two decimals,
    and their nearest float64 is what hundredths / 100 gives."""

    AT_ONCE = 2**16

    def __init__(self) -> None:
        self.fresh = array("d")
        self.kept: Any = array("i")
        self.typecode = "i"

    def __len__(self) -> int:
        return len(self.kept) + len(self.fresh)

    def settle(self) -> np.ndarray:
        """All so far, int32 hundredths or float64."""
        if len(self.fresh):
            values, self.fresh = as_array(self.fresh, np.float64), array("d")
            if self.typecode == "i":
                hundredths = np.rint(values * 100)
                if (hundredths / 100 == values).all() and (np.abs(hundredths) < 2**31).all():  # not so of NaN
                    self.kept.frombytes(hundredths.astype(np.int32).view(np.uint8))
                    return as_array(self.kept, np.int32)
                self.typecode, self.kept = "d", array("d", (as_array(self.kept, np.int32) / 100).tobytes())
            self.kept.frombytes(values.view(np.uint8))
        return as_array(self.kept, cast(Any, np.dtype(self.typecode)))


class Objects:
    """Annotations as they come; a field's type is checked by the array that takes it."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = problems
        self.ids, self.images, self.categories = array("q"), array("q"), array("q")
        self.crowd, self.boxes = array("b"), array("d")
        self.points, self.point_splits, self.polygon_splits = _Decimals(), array("q", [0]), array("q", [0])
        self.runs, self.run_splits, self.run_sizes = bytearray(), array("q", [0]), array("q")
        self.keypoints, self.keypoint_splits = array("f"), array("q", [0])

    def add(self, annotation: dict, place: int) -> None:
        if wrong := self._add(annotation):
            self.problems += [Problem(ERROR, "annotations", _identity(annotation, place), *w) for w in wrong]

    def _add(self, annotation: dict) -> list[tuple[str, str]]:
        if len(self.points.fresh) > _Decimals.AT_ONCE:
            self.points.settle()
        points, settled = self.points.fresh, len(self.points.kept)
        columns: tuple[Any, ...] = (
            self.ids, self.images, self.categories, self.crowd, self.boxes, points, self.point_splits,
            self.polygon_splits, self.runs, self.run_splits, self.run_sizes, self.keypoints, self.keypoint_splits,
        )  # fmt: skip
        lengths = None
        try:
            number, image, category = annotation["id"], annotation["image_id"], annotation["category_id"]
            x, y, width, height = annotation["bbox"]
            shape = annotation.get("segmentation")
            keypoints = annotation.get("keypoints")
            lengths = [len(column) for column in columns]
            self.ids.append(number)
            self.images.append(image)
            self.categories.append(category)
            self.crowd.append(annotation.get("iscrowd", 0))
            self.boxes.extend((x, y, width, height))
            if shape:
                if type(shape) is list:
                    for polygon in shape:
                        points.fromlist(polygon)
                        self.point_splits.append(settled + len(points))
                else:
                    self._add_runs(shape)
            if keypoints:
                self.keypoints.fromlist(keypoints)
            self.polygon_splits.append(len(self.point_splits) - 1)
            self.run_splits.append(len(self.runs))
            self.keypoint_splits.append(len(self.keypoints))
            return []
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
            for column, length in zip(columns, lengths or (), strict=False):
                del column[length:]
            return _wrong_fields(annotation) or [("entry", f"cannot be read ({error})")]

    def _add_runs(self, shape: dict) -> None:
        height, width = shape["size"]
        counts = shape["counts"]
        self.run_sizes.extend((len(self.ids) - 1, height, width))
        if isinstance(counts, str):
            self.runs += counts.encode("ascii", "replace")
        elif isinstance(counts, bytes):
            self.runs += counts
        else:
            self.runs += run_lengths.to_characters(array("q", counts))


def _wrong_fields(annotation: dict) -> list[tuple[str, str]]:
    """What `Objects` could not take, told field by field."""
    wrong = [
        (f, m) for f in ("id", "image_id", "category_id") if isinstance(m := _integer(annotation, f), str)
    ]
    if annotation.get("iscrowd", 0) not in (0, 1):
        wrong.append(("iscrowd", _expected("0 or 1", annotation, "iscrowd")))
    box = annotation.get("bbox")
    if not (isinstance(box, list | tuple) and len(box) == 4 and all(map(_is_number, box))):
        wrong.append(("bbox", _expected("[x, y, width, height]", annotation, "bbox")))
    shape = annotation.get("segmentation")
    if isinstance(shape, list):
        for k, polygon in enumerate(shape):
            if not (isinstance(polygon, list) and all(map(_is_number, polygon))):
                wrong.append(
                    ("segmentation", f"polygon {k} must be a list of numbers x, y, …, not {short(polygon)}")
                )
                break
    elif isinstance(shape, dict):
        size, counts = shape.get("size"), shape.get("counts")
        if not (isinstance(size, list | tuple) and len(size) == 2 and all(isinstance(s, int) for s in size)):
            wrong.append(("segmentation", f"size must be [height, width], not {short(size)}"))
        if not (
            isinstance(counts, str | bytes)
            or (isinstance(counts, list | tuple) and all(isinstance(c, int) for c in counts))
        ):
            wrong.append(
                ("segmentation", f"counts must be run lengths, a string or a list, not {short(counts)}")
            )
        elif not isinstance(counts, str | bytes) and not all(0 <= c < 2**32 for c in counts):
            wrong.append(("segmentation", "counts has a run below 0 or longer than any image"))
    elif shape is not None:
        wrong.append(("segmentation", f"polygons or run lengths expected, not {short(shape)}"))
    keypoints = annotation.get("keypoints")
    if keypoints is not None and not (isinstance(keypoints, list) and all(map(_is_number, keypoints))):
        wrong.append(("keypoints", _expected("a list of x, y, visibility", annotation, "keypoints")))
    return wrong


def _integer(entry: dict, field: str) -> int | str:
    """The field's value, or what is wrong with it."""
    value = entry.get(field)
    if isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63:
        return value
    return _expected("a whole number", entry, field)


def _expected(what: str, entry: dict, field: str) -> str:
    return f"must be {what}, not {short(entry[field])}" if field in entry else f"is missing; must be {what}"


def _identity(entry: dict, place: int) -> int | str:
    value = entry.get("id")
    return value if isinstance(value, int) and not isinstance(value, bool) else f"number {place} of the list"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def as_array(values: array, dtype: type) -> np.ndarray:
    """A view, nothing is copied."""
    return np.frombuffer(values, dtype) if len(values) else np.zeros(0, dtype)
