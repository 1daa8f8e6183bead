"""Boxes that a region proposal network proposed, in a file: what a detector's second stage is trained on.

A file is an uncompressed `.npz`, read where it lies and not into memory (COCO's 118,287 images with 1000 boxes each take
2.4 GB), with

    boxes       float32 [N, 4], x1, y1, x2, y2 in pixels of the images as they are in their files
    scores      float32 [N], 0-1, falling within an image
    image_ids   int64 [I]
    splits      int64 [I + 1]: image i has the boxes splits[i] … splits[i + 1]
    about       JSON: layout, the model's name, the SHA-256 of the annotations
"""

from __future__ import annotations

import json
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import numpy as np

from keras_seg.weights.files import replacing, sha256_of

__all__ = ["Proposals", "read_proposals", "write_proposals"]

LAYOUT = 1
SHOWN = 5  # image ids in a message
AT_ONCE = 1_000_000  # boxes that are checked together
OUT_BY = 1.0  # pixels by which a box may leave its image
ARRAYS = {
    "boxes": (np.float32, 2),
    "scores": (np.float32, 1),
    "image_ids": (np.int64, 1),
    "splits": (np.int64, 1),
}
LOCAL_HEADER = 30  # bytes of a zip member's header before its name, of which the last four are the lengths of name and extra field


class Proposals:
    """The boxes of a file by image. name: for messages. model: that made them. annotations: the SHA-256 of the file that
    names the images."""

    def __init__(
        self,
        boxes: np.ndarray,
        scores: np.ndarray,
        image_ids: np.ndarray,
        splits: np.ndarray,
        *,
        name: str = "proposals",
        model: str = "",
        annotations: str = "",
    ) -> None:
        """Arrays as in a file (see the module). ValueError: lengths that differ, boxes that are not finite or without
        extent, scores outside 0-1, an image given twice."""
        self.boxes, self.scores, self.image_ids, self.splits = boxes, scores, image_ids, splits
        self.name, self.model, self.annotations = name, model, annotations
        self._check()
        self._places = {int(k): place for place, k in enumerate(image_ids)}

    def __len__(self) -> int:
        """Images."""
        return len(self.image_ids)

    def of(self, image_id: int) -> tuple[np.ndarray, np.ndarray]:
        """The boxes float32 [P, 4] and scores [P] of an image; KeyError: there is no such image."""
        place = self._places[image_id]
        part = slice(int(self.splits[place]), int(self.splits[place + 1]))
        return np.asarray(self.boxes[part]), np.asarray(self.scores[part])

    def check_made_for(self, annotations: str | Path) -> None:
        """ValueError unless these were made for this file of annotations, as its checksum tells."""
        found = sha256_of(annotations)
        if found != self.annotations:
            raise ValueError(
                f"{self.name}: was made for other annotations (SHA-256 {self.annotations[:12] or 'unknown'}…) than "
                f"{annotations} ({found[:12]}…); {self._hint(annotations)}"
            )

    def check_images(self, image_ids: np.ndarray, sizes: np.ndarray, source: str) -> None:
        """ValueError unless there are proposals for all images int64 [I] of a source, and within their sizes [I, 2] (height,
        width)."""
        missing = [k for k in image_ids.tolist() if k not in self._places]
        if missing:
            shown = ", ".join(map(str, missing[:SHOWN])) + (", …" if len(missing) > SHOWN else "")
            raise ValueError(
                f"{self.name}: has no proposals for {len(missing)} of the {len(image_ids)} images of {source} (ids "
                f"{shown}); {self._hint(source)}"
            )
        for k, (height, width) in zip(image_ids.tolist(), sizes.tolist(), strict=True):
            boxes, _ = self.of(k)
            limit = np.array([width, height]) + OUT_BY
            if len(boxes) and (boxes.min() < -OUT_BY or (boxes[:, 2:].max(0) > limit).any()):
                raise ValueError(
                    f"{self.name}: image {k} of {source} has {height}x{width} pixels (height x width), and a proposal lies "
                    f"outside; {self._hint(source)}"
                )

    def _hint(self, source: str | Path) -> str:
        return f"make them anew: keras-seg proposals {self.model or 'MODEL'} --data {source}"

    def _check(self) -> None:
        splits, number = self.splits, len(self.boxes)
        sound = (
            self.boxes.ndim == 2
            and self.boxes.shape[1] == 4
            and self.scores.shape == (number,)
            and splits.shape == (len(self.image_ids) + 1,)
            and splits[0] == 0
            and splits[-1] == number
            and (np.diff(splits) >= 0).all()
        )
        if not sound:
            raise ValueError(
                f"{self.name}: arrays that do not fit together: boxes {self.boxes.shape}, scores {self.scores.shape}, "
                f"image_ids {self.image_ids.shape}, splits {splits.shape} up to {splits[-1] if len(splits) else None}"
            )
        ids, counts = np.unique(self.image_ids, return_counts=True)
        if (counts > 1).any():
            raise ValueError(f"{self.name}: has image {ids[counts > 1][0]} twice")
        for first in range(0, number, AT_ONCE):
            boxes, scores = self.boxes[first : first + AT_ONCE], self.scores[first : first + AT_ONCE]
            with np.errstate(invalid="ignore"):
                right = np.isfinite(boxes).all(1) & (boxes[:, 2:] > boxes[:, :2]).all(1)
                right &= (scores >= 0) & (scores <= 1)
            if not right.all():
                wrong = int(np.flatnonzero(~right)[0])
                image = self.image_ids[np.searchsorted(splits, first + wrong, "right") - 1]
                raise ValueError(
                    f"{self.name}: image {image} has the box {boxes[wrong].tolist()} with score {scores[wrong]}; boxes are "
                    "finite, with x1 < x2 and y1 < y2, scores 0-1"
                )


def write_proposals(
    path: str | Path,
    found: Iterable[tuple[int, np.ndarray, np.ndarray]],
    *,
    model: str = "",
    annotations: str = "",
) -> int:
    """Write the boxes [P, 4] and scores [P] of images, as triples with the image's id, and return the number of boxes.

    Boxes without extent are left out. The file appears when it is complete. model, annotations: as of `Proposals`.
    ValueError: a name that does not end in .npz. OSError: it cannot be written.
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise ValueError(f"{path}: a file of proposals must end in .npz")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent}: no such folder for {path.name}")
    ids, counts, number = [], [0], 0
    with replacing(path) as temporary, tempfile.TemporaryFile(dir=path.parent) as gathered:
        for image_id, boxes, scores in found:
            rows = np.concatenate([boxes, np.reshape(scores, [-1, 1])], 1).astype(np.float32)
            rows = rows[(rows[:, 2:4] > rows[:, :2]).all(1)]
            gathered.write(rows.tobytes())
            ids.append(image_id)
            number += len(rows)
            counts.append(number)
        gathered.flush()
        rows = (
            np.memmap(gathered, np.float32, "r", shape=(number, 5))
            if number
            else np.zeros((0, 5), np.float32)
        )
        about = json.dumps({"layout": LAYOUT, "model": model, "annotations": annotations})
        with open(temporary, "wb") as file:
            np.savez(
                file, about=about, boxes=rows[:, :4], scores=rows[:, 4],
                image_ids=np.array(ids, np.int64), splits=np.array(counts, np.int64),
            )  # fmt: skip
    return number


def read_proposals(path: str | Path) -> Proposals:
    """The proposals of a file that `write_proposals` made; the boxes stay in the file.

    Raises FileNotFoundError, or ValueError: not such a file, damaged, of another layout, and as `Proposals`.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; keras-seg proposals writes it")
    try:
        with np.load(path, allow_pickle=False) as file:
            about = json.loads(str(file["about"]))
            small = {name: file[name] for name in ("image_ids", "splits")}
        layout, model, annotations = (about[key] for key in ("layout", "model", "annotations"))
        arrays = {**small, **{name: _in_place(path, name) for name in ("boxes", "scores")}}
        wrong = [
            f"{name} is {arrays[name].dtype} with {arrays[name].ndim} axes"
            for name, (dtype, axes) in ARRAYS.items()
            if arrays[name].dtype != dtype or arrays[name].ndim != axes
        ]
        if wrong:
            raise ValueError(", ".join(wrong))
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: not a file of proposals, or damaged ({error})") from error
    if layout != LAYOUT:
        raise ValueError(f"{path}: written with layout {layout}, this version reads {LAYOUT}: make it anew")
    return Proposals(**arrays, name=str(path), model=str(model), annotations=str(annotations))


def _in_place(path: Path, name: str) -> np.ndarray:
    """An array of an uncompressed .npz, mapped from the file."""
    with zipfile.ZipFile(path) as archive:
        member = archive.getinfo(f"{name}.npy")
    if member.compress_type != zipfile.ZIP_STORED:
        with np.load(path, allow_pickle=False) as file:
            return file[name]
    with open(path, "rb") as file:
        file.seek(member.header_offset)
        header = file.read(LOCAL_HEADER)
        file.seek(sum(int.from_bytes(header[k : k + 2], "little") for k in (26, 28)), 1)
        version = np.lib.format.read_magic(file)
        read = (
            np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )
        shape, column_major, dtype = read(file)
        if not np.prod(shape):
            return np.zeros(shape, dtype)
        order: str = "F" if column_major else "C"
        return np.memmap(path, dtype, "r", offset=file.tell(), shape=shape, order=cast(Any, order))
