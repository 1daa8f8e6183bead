"""Other annotations as COCO JSON: label images, LabelMe's files, VIA's projects."""

from __future__ import annotations

import base64
import io
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import tifffile
from PIL import Image
from scipy import ndimage

from keras_seg.data.detection_items import open_picture
from keras_seg.data.images import read_image, read_mask, read_stack
from keras_seg.data.progress import track
from keras_seg.ops.rle import encode_edges, encode_mask

__all__ = ["Converted", "from_label_images", "from_labelme", "from_via", "label_annotations"]

SUFFIXES = (".png", ".tif", ".tiff", ".jpg", ".jpeg")
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


# -- label images ----------------------------------------------------------------------------------------------


def from_label_images(
    images: str | Path,
    labels: str | Path,
    output: str | Path,
    *,
    class_name: str = "object",
    label_suffix: str = "",
    overwrite: bool = False,
) -> Converted:
    """COCO JSON of images whose objects are given by numbers: 0 background, k > 0 an object.

    images, labels: folders whose files pair by their names (but for the ending, and `label_suffix` after a label's
    name), or two TIFF stacks. A stack's pages become TIFF files in a folder beside `output`, named like it. Labels are
    PNG or TIFF. overwrite: whether files that exist are replaced.

    Raises FileNotFoundError, FileExistsError, or ValueError: images without labels and labels without an image (all are
    named), sizes that differ, labels below 0, with fractions, or colours.
    """
    images, labels, output = Path(images), Path(labels), _output(output, overwrite)
    if images.is_dir() and labels.is_dir():
        pairs = [
            (
                name.name,
                lambda path=name: read_image(path).shape[:2],
                lambda path=label: read_mask(path),
                str(label),
            )
            for name, label in _pairs(images, labels, label_suffix)
        ]
    else:
        pairs = _stack_pages(images, labels, output, overwrite)
    records, annotations = [], []
    for number, (name, size, read, label_name) in enumerate(track(pairs, "Converting labels"), start=1):
        label, (height, width) = read(), size()
        if label.shape != (height, width):
            raise ValueError(
                f"{label_name}: {label.shape[0]}x{label.shape[1]} pixels (height x width), its image {name} has "
                f"{height}x{width}"
            )
        records.append({"id": number, "file_name": name, "height": height, "width": width})
        annotations += label_annotations(label, number, len(annotations) + 1, name=label_name)
    return _write(output, records, annotations, [class_name])


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
    annotations = []
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


def _pairs(images: Path, labels: Path, label_suffix: str) -> list[tuple[Path, Path]]:
    pictures, masks = _by_stem(images), _by_stem(labels)
    if images.resolve() == labels.resolve():
        if not label_suffix:
            raise ValueError(
                f"{images}: images and labels in one folder are told apart by label_suffix, which is empty"
            )
        pictures = {stem: path for stem, path in pictures.items() if not stem.endswith(label_suffix)}
        masks = {stem: path for stem, path in masks.items() if stem.endswith(label_suffix)}
    wanted = {stem + label_suffix for stem in pictures}
    problems = [
        f"{path}: no labels {stem}{label_suffix}.*"
        for stem, path in pictures.items()
        if stem + label_suffix not in masks
    ]
    problems += [f"{path}: no image of that name" for stem, path in masks.items() if stem not in wanted]
    if problems:
        listed = "\n  ".join(sorted(problems))
        raise ValueError(f"{images} and {labels} do not fit together:\n  {listed}")
    if not pictures:
        raise ValueError(f"{images}: no images ({', '.join(SUFFIXES)})")
    return [(path, masks[stem + label_suffix]) for stem, path in pictures.items()]


def _by_stem(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in SUFFIXES:
            continue
        if path.stem in found:
            raise ValueError(f"{path} and {found[path.stem].name}: the same name but for the ending")
        found[path.stem] = path
    return found


def _stack_pages(images: Path, labels: Path, output: Path, overwrite: bool) -> list[tuple]:
    for path, other in ((images, labels), (labels, images)):
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file or folder")
        if path.is_dir() != other.is_dir():
            raise ValueError(f"{images} and {labels}: give two folders or two stacks")
    pages, masks = read_stack(images), read_stack(labels)
    if len(pages) != len(masks) or masks.ndim != 3:
        raise ValueError(
            f"{labels}: labels of shape {list(masks.shape)} for images of shape {list(pages.shape)}; one grey page an "
            f"image"
        )
    folder = output.with_suffix("")
    if folder.exists() and not overwrite:
        raise FileExistsError(
            f"{folder}: the folder for the pages exists already; overwrite=True (--overwrite) writes into it"
        )
    folder.mkdir(parents=True, exist_ok=True)
    for number, page in enumerate(pages):
        photometric = "rgb" if page.ndim == 3 else "minisblack"
        tifffile.imwrite(folder / f"{number:05d}.tif", page, photometric=photometric)
    return [
        (f"{n:05d}.tif", lambda page=page: page.shape[:2], lambda mask=mask: mask, f"{labels}, page {n}")
        for n, (page, mask) in enumerate(zip(pages, masks, strict=True))
    ]


# -- LabelMe ---------------------------------------------------------------------------------------------------


def from_labelme(
    folder: str | Path,
    output: str | Path,
    *,
    class_names: Sequence[str] | None = None,
    overwrite: bool = False,
) -> Converted:
    """COCO JSON of LabelMe's JSON files in a folder (and below), whose images lie where `imagePath` says.

    Polygons, rectangles, circles and masks become objects; those with one label and one group_id make up one object.
    Points
    and lines have no area: they are left out, and told. File names are relative to `folder`. class_names: the classes
    in their order; None: all labels in alphabetic order. overwrite: whether a file that exists is replaced.

    Raises FileNotFoundError (images that are missing, all of them), FileExistsError, or ValueError: no LabelMe files,
    malformed ones (file and shape are named), labels that are no class.
    """
    folder, output = Path(folder), _output(output, overwrite)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    files = [path for path in sorted(folder.rglob("*.json")) if path.resolve() != output.resolve()]
    collected = _Collected(class_names)
    foreign = []
    for path in track(files, "Reading LabelMe files"):
        content = _load(path)
        if not (isinstance(content, dict) and isinstance(content.get("shapes"), list)):
            foreign.append(path)
            continue
        image = path.parent / PurePosixPath(
            str(content.get("imagePath") or f"{path.stem}.jpg").replace("\\", "/")
        )
        size = content.get("imageHeight"), content.get("imageWidth")
        if not all(isinstance(side, int) and side > 0 for side in size):
            size = _image_size(image) if image.is_file() else (0, 0)
        collected.add_image(os.path.relpath(image, folder).replace(os.sep, "/"), size, image)
        groups: dict[tuple, list] = {}
        for k, shape in enumerate(content["shapes"]):
            where = f"{path}: shape {k}"
            if not (isinstance(shape, dict) and isinstance(shape.get("label"), str)):
                found = str(shape)[:60]
                raise ValueError(f"{where}: must have a label, got {found}")  # noqa: TRY004 -- a file's content
            outline = _labelme_outline(shape, size, where)
            if outline is None:
                collected.left_out.append(
                    f"{where}: a {shape.get('shape_type')} ({shape['label']}) has no area"
                )
                continue
            group = shape.get("group_id")
            groups.setdefault((shape["label"], k if group is None else ("group", group)), []).append(
                (where, outline)
            )
        for (label, _), outlines in groups.items():
            collected.add_object(label, [o for _, o in outlines], outlines[0][0])
    if not collected.records:
        raise ValueError(
            f"{folder}: no LabelMe files (.json with shapes)"
            + (f", as {foreign[0]} is none" if foreign else "")
        )
    collected.left_out += [f"{path}: not of LabelMe" for path in foreign]
    return collected.write(output)


def _labelme_outline(
    shape: Mapping[str, Any], size: tuple[int, int], where: str
) -> list[float] | np.ndarray | None:
    """A polygon [x, y, …], a mask bool [H, W], or None of a shape without area."""
    kind = shape.get("shape_type") or "polygon"
    if kind in ("point", "line", "linestrip", "points"):
        return None
    points = _numbers(shape.get("points"), where, "points")
    points = points.reshape(-1, 2) if points.size % 2 == 0 else points.reshape(-1, 1)
    if kind == "polygon":
        return points.ravel().tolist()
    if points.shape != (2, 2):
        raise ValueError(f"{where}: points: a {kind} has two points, got {points.tolist()}")
    (x1, y1), (x2, y2) = points.tolist()
    if kind == "rectangle":
        return [x1, y1, x2, y1, x2, y2, x1, y2]
    if kind == "circle":
        return _ellipse(x1, y1, math.hypot(x2 - x1, y2 - y1), math.hypot(x2 - x1, y2 - y1), 0.0)
    if kind == "mask":
        try:
            part = np.asarray(Image.open(io.BytesIO(base64.b64decode(shape["mask"])))) > 0
        except (KeyError, TypeError, ValueError, OSError) as error:
            raise ValueError(f"{where}: mask: not a picture in base64 ({error})") from error
        mask = np.zeros(size, bool)
        y, x = round(min(y1, y2)), round(min(x1, x2))
        window = mask[max(y, 0) : y + part.shape[0], max(x, 0) : x + part.shape[1]]
        window |= part[max(-y, 0) :, max(-x, 0) :][: window.shape[0], : window.shape[1]]
        return mask
    raise ValueError(f"{where}: shape_type: {kind!r} is not known")


# -- VIA -------------------------------------------------------------------------------------------------------


def from_via(
    project: str | Path,
    images: str | Path,
    output: str | Path,
    *,
    attribute: str | None = None,
    class_names: Sequence[str] | None = None,
    overwrite: bool = False,
) -> Converted:
    """COCO JSON of a project or an annotation export (JSON) of VIA, the VGG Image Annotator, versions 1 and 2.

    images: folder of the images, which tell their sizes. attribute: the region attribute that holds the class; None:
    the only one that there is, or, where there is none, the one class "object". Polygons, rectangles, circles and
    ellipses become objects; points and polylines are left out, and told. class_names, overwrite and errors as of
    `from_labelme`.
    """
    project, images, output = Path(project), Path(images), _output(output, overwrite)
    content = _load(project)
    entries = content.get("_via_img_metadata", content) if isinstance(content, dict) else None
    if not (
        isinstance(entries, dict)
        and entries
        and all(isinstance(e, dict) and "regions" in e for e in entries.values())
    ):
        raise ValueError(f"{project}: no project or JSON export of VIA (version 1 or 2)")
    regions = {key: _regions(entry) for key, entry in entries.items()}
    if attribute is None:
        attribute = _only_attribute(project, regions.values())
    collected = _Collected(class_names)
    for key, entry in track(list(entries.items()), "Reading VIA's regions"):
        name = str(entry.get("filename") or key)
        image = images / name
        size = _image_size(image) if image.is_file() else (0, 0)
        collected.add_image(name, size, image)
        for k, region in regions[key]:
            where = f"{project}: {name}, region {k}"
            shape = region.get("shape_attributes") if isinstance(region, dict) else None
            if not (isinstance(shape, dict) and shape):
                raise ValueError(f"{where}: has no shape_attributes")
            outline = _via_outline(shape, where)
            if outline is None:
                collected.left_out.append(f"{where}: a {shape.get('name')} has no area")
                continue
            collected.add_object(_via_class(region, attribute, where), [outline], where)
    return collected.write(output)


def _regions(entry: Mapping[str, Any]) -> list[tuple[Any, Any]]:
    regions = entry["regions"] or []
    return list(regions.items()) if isinstance(regions, dict) else list(enumerate(regions))


def _only_attribute(project: Path, regions: Iterable[Sequence[tuple[Any, Any]]]) -> str | None:
    names = {
        n
        for of_image in regions
        for _, r in of_image
        if isinstance(r, dict)
        for n in r.get("region_attributes") or {}
    }
    if len(names) > 1:
        raise ValueError(
            f"{project}: regions have the attributes {', '.join(sorted(names))}: say which is the class (attribute)"
        )
    return names.pop() if names else None


def _via_class(region: Mapping[str, Any], attribute: str | None, where: str) -> str:
    if attribute is None:
        return "object"
    value = (region.get("region_attributes") or {}).get(attribute)
    if isinstance(value, dict):  # check boxes
        chosen = [name for name, on in value.items() if on]
        value = chosen[0] if len(chosen) == 1 else None
    if not (isinstance(value, str) and value.strip()):
        raise ValueError(f"{where}: region_attributes: {attribute} must name one class, got {value!r}")
    return value.strip()


def _via_outline(shape: Mapping[str, Any], where: str) -> list[float] | None:
    kind = shape.get("name")

    def values(*names: str) -> list[float]:
        return [float(_numbers(shape.get(name), where, name).reshape(())) for name in names]

    if kind in ("point", "polyline"):
        return None
    if kind == "polygon":
        x, y = (_numbers(shape.get(name), where, name) for name in ("all_points_x", "all_points_y"))
        if x.shape != y.shape:
            raise ValueError(f"{where}: {x.size} all_points_x and {y.size} all_points_y")
        return np.stack([x, y], axis=-1).ravel().tolist()
    if kind == "rect":
        x, y, width, height = values("x", "y", "width", "height")
        return [x, y, x + width, y, x + width, y + height, x, y + height]
    if kind == "circle":
        x, y, radius = values("cx", "cy", "r")
        return _ellipse(x, y, radius, radius, 0.0)
    if kind == "ellipse":
        x, y, a, b = values("cx", "cy", "rx", "ry")
        return _ellipse(x, y, a, b, values("theta")[0] if "theta" in shape else 0.0)
    raise ValueError(f"{where}: shape_attributes: name {kind!r} is not known")


# -- what they share -------------------------------------------------------------------------------------------


class _Collected:
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
        converted = _write(output, self.records, annotations, names)
        converted.left_out = self.left_out
        return converted


def _output(path: str | Path, overwrite: bool) -> Path:
    path = Path(path)
    if path.suffix != ".json":
        raise ValueError(f"{path}: the output must end in .json")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path}: exists already; overwrite=True (--overwrite) replaces it")
    return path


def _write(path: Path, records: list[dict], annotations: list[dict], names: Sequence[str]) -> Converted:
    categories = [{"id": place, "name": name} for place, name in enumerate(names, start=1)]
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.unfinished-{os.getpid()}")
    try:
        unfinished.write_text(
            json.dumps({"images": records, "categories": categories, "annotations": annotations})
        )
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return Converted(path, len(records), len(annotations))


def _load(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error})") from error


def _image_size(path: Path) -> tuple[int, int]:
    """(height, width), upright."""
    picture = open_picture(path, str(path))
    return picture.height, picture.width


def _numbers(value: Any, where: str, name: str) -> np.ndarray:
    try:
        numbers = np.array(value, np.float64)
    except (TypeError, ValueError):
        numbers = np.array(np.nan)
    if value is None or not np.isfinite(numbers).all():
        raise ValueError(f"{where}: {name}: must be finite numbers, got {str(value)[:60]}")
    return numbers


def _ellipse(x: float, y: float, a: float, b: float, angle: float) -> list[float]:
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
