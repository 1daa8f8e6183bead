"""What `metrics.coco` compares: annotations and results in COCO's format, read and checked.

pycocotools checks little: it counts an object with id 0 as never found, makes a rectangle of a result without a mask,
leaves out a category that it does not know. Here these are errors that name the file and the object, or do not matter.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

from keras_seg.data.run_lengths import problems
from keras_seg.instances import Instances
from keras_seg.ops.rle import run_lengths

__all__ = [
    "IOU_TYPES",
    "Truth",
    "class_categories",
    "kinds",
    "load",
    "read_annotations",
    "read_results",
    "to_results",
]

IOU_TYPES = ("bbox", "segm", "keypoints")
# what a result of each kind must have
FIELDS = {"bbox": "bbox", "segm": "segmentation", "keypoints": "keypoints"}
SHOWN = 5  # of a list of ids in a message
MASKS_AT_ONCE = 2000  # some MB
MOST_PIXELS = 2**32  # pycocotools counts runs in 32 bits


@dataclass(frozen=True)
class Truth:
    """Checked annotations.

    images: {image id: its record}; categories: {category id: its name}, by rising id; objects: COCO annotations with
    the fields that an evaluation takes, masks as compressed run lengths and ids from 1; name: the file's, in messages.
    """

    images: dict[int, dict[str, Any]]
    categories: dict[int, str]
    objects: list[dict[str, Any]]
    name: str


def read_annotations(source: str | Path | Mapping[str, Any], iou_type: str) -> Truth:
    """Read COCO instances or person-keypoints annotations.

    source: a JSON file, or what it holds. iou_type: one of IOU_TYPES, what they are for: objects need a bbox, for "segm" a
    segmentation (polygons or run lengths), for "keypoints" those; of a file whose categories have keypoints in part, the
    others are left out. An absent area is that of the mask or the box, an absent iscrowd 0.

    Raises FileNotFoundError; TypeError; ValueError, naming the file and the object's id: no JSON, absent or malformed fields, an
    id that occurs twice, an image or a category that is not there, run lengths of another size than the image's.
    """
    if iou_type not in IOU_TYPES:
        raise ValueError(f"iou_type must be one of {', '.join(map(repr, IOU_TYPES))}, got {iou_type!r}")
    data, name = load(source, "annotations")
    if not isinstance(data, Mapping):
        raise ValueError(  # noqa: TRY004 -- a file's content
            f"{name}: annotations are an object with images, annotations and categories; {_kind(data)}"
        )
    for field in ("images", "annotations", "categories"):
        if not isinstance(data.get(field), list):
            raise ValueError(  # noqa: TRY004
                f'{name}: annotations need a list "{field}"; {_kind(data.get(field))}'
            )
    images = _by_id(data["images"], "image", name)
    for number, image in images.items():
        _check_size(image, f"{name}: image {number}")
    categories = {
        k: str(c.get("name", k)) for k, c in sorted(_by_id(data["categories"], "category", name).items())
    }
    _by_id(data["annotations"], "annotation", name)
    annotations = data["annotations"]
    if iou_type == "keypoints":
        with_keypoints = {a.get("category_id") for a in annotations if a.get("keypoints")}
        annotations = [a for a in annotations if a.get("category_id") in with_keypoints or not with_keypoints]
        categories = {k: v for k, v in categories.items() if k in with_keypoints} or categories
    objects, masks = [], _Masks()
    for number, annotation in enumerate(annotations, start=1):
        where = f"{name}: annotation {annotation['id']} (image {annotation.get('image_id')})"
        _check_place(annotation, images, categories, where)
        objects.append({"id": number, **_object(annotation, images, iou_type, where, masks)})
    masks.check()
    return Truth(images, categories, objects, name)


def read_results(
    source: str | Path | Iterable[Mapping[str, Any]] | Iterable[tuple[int, Instances]],
    truth: Truth,
    iou_type: str,
    category_ids: Sequence[int | None] | None = None,
) -> list[dict[str, Any]]:
    """Read detections.

    source: a JSON file of COCO results, a list of them, or pairs of an image's id and the `Instances` found in it.
    category_ids: of `Instances`, the category of each class, None: to leave out; default: `class_categories`.

    Returns COCO results with the fields that an evaluation takes, each with the area that pycocotools gives it: of its
    bbox if it has one, else of its mask or around its keypoints.

    Raises FileNotFoundError; ValueError, naming the file and the result's place in it: no JSON, results of another kind
    than `iou_type`, an image or a category that the annotations do not have, numbers that are not finite.
    """
    data, name = load(source, "results")
    if isinstance(data, (Mapping, str)) or not isinstance(data, Iterable):
        raise ValueError(f"{name}: results are a list of detections; {_kind(data)}")  # noqa: TRY004
    results: list[dict[str, Any]] = []
    seen: set[int] = set()
    masks = _Masks()
    for place, entry in enumerate(data):
        where = f"{name}: result {place}"
        if isinstance(entry, Mapping):
            results.append(_result(entry, truth, iou_type, where, masks))
            continue
        if not (isinstance(entry, Sequence) and len(entry) == 2 and isinstance(entry[1], Instances)):
            raise ValueError(
                f"{where}: takes a dictionary in COCO's format, or a pair (image id, Instances); {_kind(entry)}"
            )
        image_id, instances = entry
        where = f"{name}: image {image_id}"
        if image_id in seen:
            raise ValueError(f"{where}: occurs twice; give all its Instances at once")
        seen.add(image_id)
        for one in to_results(image_id, instances, truth, category_ids, where):
            results.append(_result(one, truth, iou_type, where, masks))
    masks.check()
    return results


def class_categories(class_names: Sequence[str] | None, categories: Mapping[int, str]) -> list[int | None]:
    """The category of each class of a model: the one of the same name, or None.

    Without class_names: class k is the category with the k-th smallest id. One class and one category belong together,
    whatever their names. ValueError: no class has a category, or two categories have a class's name.
    """
    if class_names is None or len(class_names) == len(categories) == 1:
        return list(categories)
    found: list[int | None] = []
    for name in class_names:
        ids = [k for k, category in categories.items() if category == name]
        if len(ids) > 1:
            raise ValueError(f"the categories {_listed(ids)} are all called {name!r}: give category_ids")
        found.append(ids[0] if ids else None)
    if not any(k is not None for k in found):
        raise ValueError(
            f"no category has the name of a class: the classes are {_listed(class_names)}, the categories "
            f"{_listed(categories.values())}: give category_ids, the category of each class"
        )
    return found


def to_results(
    image_id: Any,
    instances: Instances,
    truth: Truth,
    category_ids: Sequence[int | None] | None = None,
    where: str = "results",
) -> list[dict[str, Any]]:
    """The Instances of an image as COCO results, without the classes that have no category.

    category_ids: of each class; None: `class_categories`. where: what messages begin with. ValueError: an image that
    the annotations do not have or say to be of another size; a class without an entry.
    """
    if image_id not in truth.images:
        raise ValueError(f"{where}: {_not_there(image_id, 'image', truth.images)}")
    size = tuple(truth.images[image_id].get(side) for side in ("height", "width"))
    if None not in size and size != instances.image_size:
        raise ValueError(
            f"{where}: the Instances are of an image of {instances.image_size[0]} x {instances.image_size[1]} pixels "
            f"(height x width), the annotations say {size[0]} x {size[1]}"
        )
    if category_ids is None:
        category_ids = class_categories(instances.class_names, truth.categories)
    known = [k for k, category in enumerate(category_ids) if category is not None]
    if len(instances) and instances.class_names is None and instances.classes.max() >= len(category_ids):
        raise ValueError(
            f"{where}: class {instances.classes.max()} has no category, there are {len(category_ids)}: give category_ids"
        )
    kept = instances[np.isin(instances.classes, known)]
    return kept.to_coco(image_id, [-1 if k is None else k for k in category_ids])


def kinds(results: Sequence[Mapping[str, Any]], annotations: Mapping[str, Any]) -> list[str]:
    """Which of IOU_TYPES the first result has and the annotations have too."""
    if not results or not isinstance(results[0], Mapping):
        return []
    objects = [a for a in annotations.get("annotations", ()) if isinstance(a, Mapping)]
    return [
        kind for kind, field in FIELDS.items() if results[0].get(field) and any(a.get(field) for a in objects)
    ]


def load(source: Any, what: str) -> tuple[Any, str]:
    """(what a JSON file holds, or the source itself; its name in messages). FileNotFoundError; ValueError: no JSON."""
    if not isinstance(source, (str, Path)):
        if not isinstance(source, Iterable):
            raise TypeError(f"{what}: takes a path or what a JSON file holds; {_kind(source)}")
        return source, what
    path = Path(source)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of {what}")
    try:
        return json.loads(path.read_text(encoding="utf-8")), str(path)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}: not JSON: {error.msg} (line {error.lineno}, column {error.colno})"
        ) from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not JSON: not a text file ({error.reason})") from None
    except RecursionError:
        raise ValueError(f"{path}: brackets nested too deeply for {what}") from None


def _by_id(records: list[Any], what: str, name: str) -> dict[int, Any]:
    found: dict[int, Any] = {}
    for place, record in enumerate(records):
        if not isinstance(record, Mapping) or not _is_integer(record.get("id")):
            got = _kind(record) if not isinstance(record, Mapping) else f"id is {record.get('id')!r}"
            raise ValueError(f"{name}: {what} number {place} of the list needs an integer id; {got}")
        if record["id"] in found:
            raise ValueError(f"{name}: two of the {what} records have the id {record['id']}")
        found[record["id"]] = record
    return found


def _check_size(image: Mapping[str, Any], where: str) -> None:
    """Height and width may be absent: not all that is evaluated needs them."""
    sides = {side: image[side] for side in ("height", "width") if image.get(side) is not None}
    for side, value in sides.items():
        if not (_is_integer(value) and value > 0):
            raise ValueError(f"{where}: {side} must be a positive integer, got {value!r}")
    if math.prod(sides.values()) >= MOST_PIXELS:
        raise ValueError(
            f"{where}: {' x '.join(map(str, sides.values()))} pixels, more than run lengths can count"
        )


def _check_place(record: Mapping[str, Any], images: Mapping, categories: Mapping, where: str) -> None:
    for field, what, known in (("image_id", "image", images), ("category_id", "category", categories)):
        value = record.get(field)
        if not _is_integer(value) or value not in known:
            raise ValueError(f"{where}: {_not_there(value, what, known)}")


def _object(
    annotation: Mapping[str, Any], images: Mapping, iou_type: str, where: str, masks: _Masks
) -> dict[str, Any]:
    """What an evaluation takes of an annotation."""
    found = {
        "image_id": annotation["image_id"],
        "category_id": annotation["category_id"],
        "iscrowd": int(bool(annotation.get("iscrowd", 0))),
        "bbox": _box(annotation.get("bbox"), where),
    }
    area = annotation.get("area")
    segmentation = annotation.get("segmentation")
    if iou_type == "segm" or (area is None and segmentation):
        found["segmentation"] = _mask(segmentation, images[annotation["image_id"]], where, masks)
    if area is None:
        masks.check()
        area = _mask_area(found["segmentation"]) if segmentation else found["bbox"][2] * found["bbox"][3]
    found["area"] = _number(area, "area", where)
    if iou_type == "keypoints":
        found["keypoints"] = _keypoints(annotation.get("keypoints"), where)
        found["num_keypoints"] = annotation.get("num_keypoints", np.count_nonzero(found["keypoints"][2::3]))
    return found


def _result(
    entry: Mapping[str, Any], truth: Truth, iou_type: str, where: str, masks: _Masks
) -> dict[str, Any]:
    """What an evaluation takes of a result."""
    _check_place(entry, truth.images, truth.categories, where)
    where = f"{where} (image {entry['image_id']})"
    has = [kind for kind, field in FIELDS.items() if entry.get(field)]
    # a mask has a box
    if iou_type not in has and not (iou_type == "bbox" and "segm" in has):
        raise ValueError(
            f'{where}: no "{FIELDS[iou_type]}", which an evaluation of {iou_type!r} needs; these results are for '
            f"{' and '.join(map(repr, has)) or 'none'}"
        )
    found = {key: entry[key] for key in ("image_id", "category_id")}
    found["score"] = _number(entry.get("score"), "score", where)
    box = _box(entry["bbox"], where) if entry.get("bbox") else None
    if iou_type == "segm" or (iou_type == "bbox" and box is None):
        found["segmentation"] = _mask(entry["segmentation"], truth.images[entry["image_id"]], where, masks)
    if iou_type == "keypoints":
        found["keypoints"] = _keypoints(entry["keypoints"], where)
    if box is None and "segmentation" in found:
        from pycocotools import mask as coco

        masks.check()
        box = coco.toBbox(found["segmentation"]).tolist()
        found["area"] = _mask_area(found["segmentation"])
    elif box is None:
        x, y = found["keypoints"][0::3], found["keypoints"][1::3]
        box = [min(x), min(y), max(x) - min(x), max(y) - min(y)]
    found["bbox"] = box
    found.setdefault("area", box[2] * box[3])
    return found


class _Masks:
    """Compressed run lengths that are still to be checked: many at once take a fraction of the time."""

    def __init__(self) -> None:
        self.waiting: list[tuple[dict[str, Any], str]] = []

    def add(self, rle: dict[str, Any], where: str) -> None:
        self.waiting.append((rle, where))
        if len(self.waiting) == MASKS_AT_ONCE:
            self.check()

    def check(self) -> None:
        """ValueError, naming the object, if one of them is malformed."""
        if not self.waiting:
            return
        texts = [
            rle["counts"].encode() if isinstance(rle["counts"], str) else rle["counts"]
            for rle, _ in self.waiting
        ]
        pixels = np.array([math.prod(rle["size"]) for rle, _ in self.waiting], np.int64)
        splits = np.cumsum([0, *map(len, texts)])
        _, wrong = problems(np.frombuffer(b"".join(texts), np.uint8), splits, pixels)
        for place, what in wrong[:1]:
            rle, where = self.waiting[place]
            try:
                run_lengths(rle)  # its message says more
            except ValueError as error:
                what = str(error)
            raise ValueError(f"{where}: segmentation: {what}")
        self.waiting.clear()


def _mask(segmentation: Any, image: Mapping[str, Any], where: str, masks: _Masks) -> dict[str, Any]:
    """Polygons or run lengths as compressed run lengths; given ones wait in `masks` for their check."""
    from pycocotools import mask as coco

    size = [image.get("height"), image.get("width")]
    if isinstance(segmentation, Mapping):
        return _given_run_lengths(segmentation, size, where, masks)
    if not isinstance(segmentation, list) or not segmentation:
        raise ValueError(
            f"{where}: segmentation takes a list of polygons, or run lengths; {_kind(segmentation)}"
        )
    if None in size:
        raise ValueError(f"{where}: polygons need the image's height and width, and it has none")
    for polygon in segmentation:
        legal = isinstance(polygon, list) and len(polygon) >= 6 and len(polygon) % 2 == 0
        if not legal or not all(map(_is_finite, polygon)):
            raise ValueError(
                f"{where}: a polygon takes x, y of at least 3 points, all finite; {_kind(polygon)}"
            )
    return coco.merge(coco.frPyObjects(segmentation, *size))


def _given_run_lengths(
    segmentation: Mapping[str, Any], size: list[int | None], where: str, masks: _Masks
) -> dict[str, Any]:
    from pycocotools import mask as coco

    given: Any = segmentation.get("size")
    counts: Any = segmentation.get("counts")
    compressed = isinstance(counts, (str, bytes))
    whole = isinstance(given, Sequence) and len(given) == 2 and all(_is_integer(s) and s > 0 for s in given)
    if not (compressed and whole):
        try:
            run_lengths(segmentation)
        except ValueError as error:
            raise ValueError(f"{where}: segmentation: {error}") from None
    given = [int(side) for side in given]
    if None not in size and given != size:
        raise ValueError(
            f"{where}: segmentation of {given[0]} x {given[1]} pixels (height x width), the image has "
            f"{size[0]} x {size[1]}"
        )
    if not compressed:
        return coco.frPyObjects({"size": given, "counts": list(counts)}, *given)
    found = {"size": given, "counts": counts}
    masks.add(found, where)
    return found


def _mask_area(rle: Mapping[str, Any]) -> float:
    from pycocotools import mask as coco

    return float(coco.area(rle))


def _box(box: Any, where: str) -> list[float]:
    legal = isinstance(box, Sequence) and len(box) == 4 and all(map(_is_finite, box))
    if not legal or box[2] < 0 or box[3] < 0:
        raise ValueError(
            f"{where}: bbox takes x, y, width, height in pixels, finite and not negative in size, got {box!r}"
        )
    return [float(value) for value in box]


def _keypoints(keypoints: Any, where: str) -> list[float]:
    legal = isinstance(keypoints, Sequence) and len(keypoints) % 3 == 0 and all(map(_is_finite, keypoints))
    if not legal or not keypoints:
        raise ValueError(
            f"{where}: keypoints take x, y and one more number each, all finite; {_kind(keypoints)}"
        )
    return list(keypoints)


def _number(value: Any, field: str, where: str) -> float:
    if not _is_finite(value):
        raise ValueError(f"{where}: {field} must be a finite number, got {value!r}")
    return float(value)


def _is_finite(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _is_integer(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _not_there(value: Any, what: str, known: Iterable[int]) -> str:
    return f"{what}_id {value!r} is not among the annotations' {_listed(known)}"


def _listed(values: Iterable[Any]) -> str:
    values = list(values)
    more = f", ... ({len(values)} in all)" if len(values) > SHOWN else ""
    return f"{', '.join(map(repr, values[:SHOWN])) or 'none'}{more}"


def _kind(value: Any) -> str:
    text = repr(value)
    return f"got {type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"
