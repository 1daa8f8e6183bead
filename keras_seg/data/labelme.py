"""LabelMe's files as COCO JSON."""

from __future__ import annotations

import base64
import io
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

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

__all__ = ["from_labelme"]


def from_labelme(
    folder: str | Path,
    output: str | Path,
    *,
    class_names: Sequence[str] | None = None,
    overwrite: bool = False,
) -> Converted:
    """COCO JSON of LabelMe's JSON files in a folder (and below), whose images lie where `imagePath` says.

    Polygons, rectangles, circles and masks become objects; those with one label and one group_id make up one object.
    Points and lines have no area: they are left out, and told. File names are relative to `folder`. class_names: the
    classes in their order; None: all labels in alphabetic order. overwrite: whether a file that exists is replaced.

    Raises FileNotFoundError (images that are missing, all of them), FileExistsError, or ValueError: no LabelMe files,
    malformed ones (file and shape are named), labels that are no class.
    """
    folder, output = Path(folder), checked_output(output, overwrite)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    files = [path for path in sorted(folder.rglob("*.json")) if path.resolve() != output.resolve()]
    collected = Collected(class_names)
    foreign = []
    for path in track(files, "Reading LabelMe files"):
        content = load_json(path)
        if not (isinstance(content, dict) and isinstance(content.get("shapes"), list)):
            foreign.append(path)
            continue
        image = path.parent / PurePosixPath(
            str(content.get("imagePath") or f"{path.stem}.jpg").replace("\\", "/")
        )
        size: Any = content.get("imageHeight"), content.get("imageWidth")
        if not all(isinstance(side, int) and side > 0 for side in size):
            size = image_size(image) if image.is_file() else (0, 0)
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
            if not (group is None or isinstance(group, int | str)):
                raise ValueError(f"{where}: group_id: must be a number, a text or null, got {group!r:.60}")
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
    points = finite_numbers(shape.get("points"), where, "points")
    points = points.reshape(-1, 2) if points.size % 2 == 0 else points.reshape(-1, 1)
    if kind == "polygon":
        return points.ravel().tolist()
    if points.shape != (2, 2):
        raise ValueError(f"{where}: points: a {kind} has two points, got {points.tolist()}")
    (x1, y1), (x2, y2) = points.tolist()
    if kind == "rectangle":
        return [x1, y1, x2, y1, x2, y2, x1, y2]
    if kind == "circle":
        return ellipse(x1, y1, math.hypot(x2 - x1, y2 - y1), math.hypot(x2 - x1, y2 - y1), 0.0)
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
