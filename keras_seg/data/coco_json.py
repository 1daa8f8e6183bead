"""Writing COCO JSON: images, objects as polygons or masks, and what the readers of other annotations share."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from keras_seg.data.detection_items import open_picture
from keras_seg.ops.rle import encode_edges, encode_mask
from keras_seg.weights.files import replacing

SHOWN = 10
CIRCLE_POINTS = 64  # corners of the polygon that stands for a circle or an ellipse


@dataclass
class Converted:
    """What a conversion wrote: the file, how many images and annotations, and what could not be taken, one line
    each."""

    path: Path
    images: int
    annotations: int
    left_out: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        text = f"{self.path}: {self.images} images, {self.annotations} annotations"
        if self.left_out:
            more = f"\n  and {len(self.left_out) - SHOWN} more" if len(self.left_out) > SHOWN else ""
            text += f"\nleft out, {len(self.left_out)}:\n  " + "\n  ".join(self.left_out[:SHOWN]) + more
        return text


class Collected:
    """Images and objects of named classes on their way into a COCO file."""

    def __init__(self, class_names: Sequence[str] | None) -> None:
        self.class_names = class_names
        self.records: list[dict] = []
        self.objects: list[tuple[str, dict]] = []
        self.left_out: list[str] = []
        self.missing: list[str] = []

    def add_image(self, name: str, size: tuple[int, int], path: Path) -> None:
        if not path.is_file():
            self.missing.append(str(path))
        record = {
            "id": len(self.records) + 1,
            "file_name": name,
            "height": int(size[0]),
            "width": int(size[1]),
        }
        self.records.append(record)

    def add_object(self, label: str, outlines: Sequence[list[float] | np.ndarray], where: str) -> None:
        """An object of the image added last: polygons, or masks, or both (then a mask)."""
        if self.class_names is not None and label not in self.class_names:
            raise ValueError(f"{where}: label {label!r} is none of the classes {', '.join(self.class_names)}")
        image = self.records[-1]
        for polygon in outlines:
            if isinstance(polygon, list) and (len(polygon) < 6 or not np.isfinite(polygon).all()):
                raise ValueError(
                    f"{where}: a polygon of {len(polygon) // 2} points; 3 are the least, all finite"
                )
        annotation = {"id": len(self.objects) + 1, "image_id": image["id"], "iscrowd": 0}
        if all(isinstance(polygon, list) for polygon in outlines):
            corners = [np.reshape(polygon, (-1, 2)) for polygon in outlines]
            low, high = np.concatenate(corners).min(axis=0), np.concatenate(corners).max(axis=0)
            annotation["segmentation"] = [list(polygon) for polygon in outlines]
            annotation["area"] = float(sum(_area(c) for c in corners))
            annotation["bbox"] = [*low.tolist(), *(high - low).tolist()]
        elif image["file_name"] and image["height"]:
            mask = np.zeros((image["height"], image["width"]), bool)
            for outline in outlines:
                mask |= outline if isinstance(outline, np.ndarray) else _fill(outline, mask.shape)
            if not mask.any():
                self.left_out.append(f"{where}: its mask has no pixel in the image")
                return
            (annotation,) = [
                {**a, **annotation} for a in label_annotations(mask.astype(np.uint8), image["id"], 1)
            ]
            annotation["segmentation"] = encode_mask(mask)
        self.objects.append((label, annotation))

    def write(self, output: Path) -> Converted:
        if self.missing:
            listed = "\n  ".join(self.missing)
            raise FileNotFoundError(
                f"{len(self.missing)} of {len(self.records)} images are missing:\n  {listed}"
            )
        names = list(self.class_names or sorted({label for label, _ in self.objects}))
        number = {name: place for place, name in enumerate(names, start=1)}
        annotations = [{**a, "category_id": number[label]} for label, a in self.objects]
        converted = write(output, self.records, annotations, names)
        converted.left_out = self.left_out
        return converted


def label_annotations(
    label: np.ndarray, image_id: int, first_id: int, *, category_id: int = 1, name: str = "label"
) -> list[dict[str, Any]]:
    """COCO annotations of a label image [H, W], in the order of its numbers. ValueError begins with `name`."""
    if label.dtype.kind == "f":
        whole = np.isfinite(label) & (label == np.rint(label))
        if not whole.all():
            raise ValueError(f"{name}: {int((~whole).sum())} labels are no whole numbers")
        label = label.astype(np.int64)
    if label.size and int(label.min()) < 0:
        raise ValueError(
            f"{name}: the label {int(label.min())}; labels are 0 for the background, else above 0"
        )
    numbers, ranks = np.unique(label, return_inverse=True)
    ranks = ranks.reshape(label.shape).astype(np.int32)
    if numbers.size and numbers[0] != 0:  # every pixel belongs to an object
        numbers, ranks = np.concatenate([[0], numbers]), ranks + 1
    columns = ranks.ravel(order="F")
    starts = np.concatenate([[0], np.flatnonzero(columns[1:] != columns[:-1]) + 1])
    stops = np.append(starts[1:], columns.size)
    of_run = columns[starts]
    order = np.argsort(of_run, kind="stable")
    splits = np.searchsorted(of_run[order], np.arange(len(numbers) + 1))
    areas = np.bincount(columns, minlength=len(numbers))
    annotations: list[dict[str, Any]] = []
    for rank, (rows, across) in enumerate(ndimage.find_objects(ranks), start=1):
        runs = order[splits[rank] : splits[rank + 1]]
        edges = np.stack([starts[runs], stops[runs]], axis=1).ravel()
        annotations.append(
            {
                "id": first_id + len(annotations),
                "image_id": image_id,
                "category_id": category_id,
                "bbox": [across.start, rows.start, across.stop - across.start, rows.stop - rows.start],
                "area": int(areas[rank]),
                "iscrowd": 0,
                "segmentation": encode_edges(edges, label.shape),
            }
        )
    return annotations


def checked_output(path: str | Path, overwrite: bool) -> Path:
    """The path of a result. ValueError: another ending than .json; FileExistsError."""
    path = Path(path)
    if path.suffix != ".json":
        raise ValueError(f"{path}: the output must end in .json")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path}: exists already; overwrite=True (--overwrite) replaces it")
    return path


def write(path: Path, records: list[dict], annotations: list[dict], names: Sequence[str]) -> Converted:
    """COCO JSON of images, annotations and the names of the categories, whose ids are their places from 1."""
    categories = [{"id": place, "name": name} for place, name in enumerate(names, start=1)]
    content = {"images": records, "categories": categories, "annotations": annotations}
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content))
    return Converted(path, len(records), len(annotations))


def load_json(path: Path) -> Any:
    """FileNotFoundError, or ValueError: not JSON."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error})") from error
    except RecursionError:
        raise ValueError(f"{path}: brackets nested too deeply for annotations") from None


def image_size(path: Path) -> tuple[int, int]:
    """(height, width), upright."""
    picture = open_picture(path, str(path))
    return picture.height, picture.width


def finite_numbers(value: Any, where: str, name: str) -> np.ndarray:
    """float64; ValueError, beginning with `where` and `name`, for what are no finite numbers."""
    try:
        numbers = np.array(value, np.float64)
    except (TypeError, ValueError):
        numbers = np.array(np.nan)
    if value is None or not np.isfinite(numbers).all():
        raise ValueError(f"{where}: {name}: must be finite numbers, got {str(value)[:60]}")
    return numbers


def ellipse(x: float, y: float, a: float, b: float, angle: float) -> list[float]:
    """A polygon [x, y, …] for one with half axes a and b around (x, y)."""
    t = np.linspace(0, 2 * np.pi, CIRCLE_POINTS, endpoint=False)
    along, across = a * np.cos(t), b * np.sin(t)
    turned = (
        along * math.cos(angle) - across * math.sin(angle),
        along * math.sin(angle) + across * math.cos(angle),
    )
    return np.round(np.stack([x + turned[0], y + turned[1]], axis=1).ravel(), 3).tolist()


def _area(corners: np.ndarray) -> float:
    """Of a polygon [n, 2], by the shoelace formula."""
    x, y = corners.T
    return abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))) / 2


def _fill(polygon: Sequence[float], size: tuple[int, int]) -> np.ndarray:
    from pycocotools import mask as coco

    return coco.decode(coco.merge(coco.frPyObjects([list(polygon)], *size))).astype(bool)
