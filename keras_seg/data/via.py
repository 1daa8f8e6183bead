"""Projects of VIA, the VGG Image Annotator, as COCO JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_seg.data.coco_json import (
    Collected,
    Converted,
    checked_output,
    ellipse,
    finite_numbers,
    image_size,
    load_json,
)
from keras_seg.data.progress import track

__all__ = ["from_via"]


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
    project, images, output = Path(project), Path(images), checked_output(output, overwrite)
    content = load_json(project)
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
    collected = Collected(class_names)
    for key, entry in track(list(entries.items()), "Reading VIA's regions"):
        name = str(entry.get("filename") or key)
        image = images / name
        size = image_size(image) if image.is_file() else (0, 0)
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
    names = {n for of_image in regions for _, r in of_image if isinstance(r, dict) for n in _attributes(r)}
    if len(names) > 1:
        raise ValueError(
            f"{project}: regions have the attributes {', '.join(sorted(names))}: say which is the class (attribute)"
        )
    return names.pop() if names else None


def _attributes(region: Mapping[str, Any]) -> Mapping[str, Any]:
    found = region.get("region_attributes")
    return found if isinstance(found, dict) else {}


def _via_class(region: Mapping[str, Any], attribute: str | None, where: str) -> str:
    if attribute is None:
        return "object"
    value = _attributes(region).get(attribute)
    if isinstance(value, dict):  # check boxes
        chosen = [name for name, on in value.items() if on]
        value = chosen[0] if len(chosen) == 1 else None
    if not (isinstance(value, str) and value.strip()):
        raise ValueError(f"{where}: region_attributes: {attribute} must name one class, got {value!r}")
    return value.strip()


def _via_outline(shape: Mapping[str, Any], where: str) -> list[float] | None:
    kind = shape.get("name")

    def values(*names: str) -> list[float]:
        found = [finite_numbers(shape.get(name), where, name) for name in names]
        for name, value in zip(names, found, strict=True):
            if value.size != 1:
                raise ValueError(f"{where}: {name}: must be one number, got {value.tolist()!r:.60}")
        return [float(value.item()) for value in found]

    if kind in ("point", "polyline"):
        return None
    if kind == "polygon":
        xs, ys = (finite_numbers(shape.get(name), where, name) for name in ("all_points_x", "all_points_y"))
        if xs.shape != ys.shape:
            raise ValueError(f"{where}: {xs.size} all_points_x and {ys.size} all_points_y")
        return np.stack([xs, ys], axis=-1).ravel().tolist()
    if kind == "rect":
        x, y, width, height = values("x", "y", "width", "height")
        return [x, y, x + width, y, x + width, y + height, x, y + height]
    if kind == "circle":
        x, y, radius = values("cx", "cy", "r")
        return ellipse(x, y, radius, radius, 0.0)
    if kind == "ellipse":
        x, y, a, b = values("cx", "cy", "rx", "ry")
        return ellipse(x, y, a, b, values("theta")[0] if "theta" in shape else 0.0)
    raise ValueError(f"{where}: shape_attributes: name {kind!r} is not known")
