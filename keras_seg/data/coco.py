"""COCO annotations and a folder of images as a dataset of batches for detectors."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keras_seg.data.annotated_image import AnnotatedImage
from keras_seg.data.coco_entries import DROPPED, Problem
from keras_seg.data.coco_index import CocoIndex, read_index
from keras_seg.data.detection_geometry import DetectionAugmentation

if TYPE_CHECKING:
    import tensorflow as tf

    from keras_seg.data.proposals import Proposals

__all__ = ["CocoSource", "coco", "missing_files", "open_source"]

SHOWN = 10  # ids in a message about what was dropped


def coco(
    annotations: str | Path | Mapping[str, Any],
    images: str | Path,
    *,
    batch_size: int = 1,
    short_side: int | tuple[int, int] | None = 800,
    max_side: int | None = None,
    augment: DetectionAugmentation | bool = True,
    masks: bool | None = None,
    keypoints: bool | None = None,
    keypoint_mirror: Sequence[int] | None = None,
    keep_empty: bool = False,
    min_box_side: float = 1.0,
    multiple: int = 32,
    value_range: tuple[float, float] | None = None,
    proposals: str | Path | None = None,
    seed: int = 0,
    start: int = 0,
    repeat: bool = True,
    shuffle: bool | None = None,
    shard: tuple[int, int] = (0, 1),
    parallel: int | None = None,
    max_unreadable: int = 10,
) -> tf.data.Dataset:
    """Batches of COCO-format data, ready for a detector's training.

    Every pass goes through the images once, in a new order, images of similar shape together. Item number n depends on
    `seed` and n alone, so `start` resumes a run exactly, and parallel work changes nothing.

    Args:
        annotations: JSON file of COCO instances or person keypoints, or its content. Category ids, with whatever gaps,
            become classes 0 … K - 1 in rising order.
        images: folder that the annotations' file names are relative to. PNG, JPEG or TIFF, grey or RGB; the EXIF
            orientation is applied.
        batch_size: images a batch, of this host.
        short_side: of the resized images, pixels; (low, high): drawn anew for each image; None: images stay as they
            are.
        max_side: the most that the longer side may have, then the shorter is less; None: 1333, or short_side if that
            is more.
        augment: a `DetectionAugmentation`; True for its default, mirroring; False for none.
        masks, keypoints: whether batches have them; None: if the annotations do.
        keypoint_mirror: of each keypoint the place of the one that it becomes in a mirror; None: told by "left" and
            "right" in their names.
        keep_empty: keep images without objects (crowds alone count as none).
        min_box_side: objects are left out if a side of their box has fewer pixels in the image, in the file or after
            resizing and cropping.
        multiple: sides of a batch's images are padded to multiples of this.
        value_range: values of pixels that become 0 and 255, for images of more than 8 bits (`images.to_float`).
        proposals: file of `keras-seg proposals` with boxes that a region proposal network proposed in these images.
        seed: of everything random.
        start: number of batches to leave out at the start.
        repeat: False ends after one pass; the last batch may then be smaller.
        shuffle: None: if repeat; False keeps the order of the file, up to the grouping by shape.
        shard: (number, how many) of this host: the batches of all hosts, one after the other, are the batches of one
            host with as many times the batch size.
        parallel: threads that make images; None lets tf.data choose.
        max_unreadable: images that may turn out unreadable (or of another size than annotated) before training stops
            with an error that names them. Each is left out, with a warning; where `repeat`, the next one of the file takes
            its place.

    Returns: dictionaries of "image" uint8 [B, H, W, 3], "size" float32 [B, 2], "image_id" int64 [B], "boxes" float32
    [B, G, 4], "classes" int32 [B, G], "crowd" bool [B, G], and, as the annotations have them, of polygons, bitmaps,
    keypoints and proposals, in the form that `models.rcnn_training` documents. The dataset also has the attributes class_names,
    category_ids, keypoint_names and images (how many).

    Raises:
        FileNotFoundError: no annotations, or images that are not in the folder: all of them are named.
        ValueError: annotations that are malformed, with the id and field of each error (`keras-seg check-data` lists
            all of them); proposals for other annotations; an option outside its range. Objects that are useless are dropped, with one warning.
    """
    from keras_seg.data.detection_batches import detection_dataset

    source = open_source(annotations, images, keep_empty=keep_empty, min_box_side=min_box_side, masks=masks)
    return detection_dataset(
        source,
        batch_size=batch_size,
        short_side=short_side,
        max_side=max_side,
        augment=augment,
        masks=masks,
        keypoints=keypoints,
        keypoint_mirror=keypoint_mirror,
        min_box_side=min_box_side,
        multiple=multiple,
        value_range=value_range,
        proposals=None if proposals is None else read_for(proposals, source),
        seed=seed,
        start=start,
        repeat=repeat,
        shuffle=shuffle,
        shard=shard,
        parallel=parallel,
        max_unreadable=max_unreadable,
    )


class CocoSource:
    """The images of an index, whose files lie in a folder."""

    def __init__(self, index: CocoIndex, folder: Path) -> None:
        self.index, self.folder, self.name = index, folder, index.path
        self.sizes, self.image_ids = index.sizes, index.image_ids
        self.class_names, self.category_ids = index.class_names, index.category_ids
        self.keypoint_names = index.keypoint_names
        single = index.rows[~index.crowd[index.rows]]
        self.bitmaps = bool(index.has_runs(single).any())
        self.polygons = bool(index.has_polygons(single).any())

    def read(self, i: int) -> AnnotatedImage:
        return self.index.annotated(i, self.folder)


def read_for(path: str | Path, source: CocoSource) -> Proposals:
    """The proposals of a file; ValueError or FileNotFoundError if there are none, or they are for other annotations."""
    from keras_seg.data.proposals import read_proposals

    found = read_proposals(path)
    if Path(source.name).is_file():  # else the annotations were given as what a file holds
        found.check_made_for(source.name)
    return found


def open_source(
    annotations: str | Path | Mapping[str, Any],
    images: str | Path,
    *,
    keep_empty: bool = False,
    min_box_side: float = 1.0,
    masks: bool | None = None,
) -> CocoSource:
    """The annotations, checked, with the folder of their images; arguments and errors as of `coco`."""
    folder = Path(images)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of images")
    index, problems = _read_with_progress(annotations, min_box_side)
    if dropped := [p for p in problems if p.kind == DROPPED]:
        warnings.warn(dropped_message(index.path, dropped), stacklevel=3)
    if missing := missing_files(index, folder):
        listed = "\n  ".join(missing)
        raise FileNotFoundError(
            f"{index.path}: {len(missing)} of {len(index)} images are not in {folder}:\n  {listed}"
        )
    source = CocoSource(index if keep_empty else index.keep(index.with_objects()), folder)
    if masks is None:
        masks = source.bitmaps or source.polygons
    if masks:
        bare = index.ids[index.objects_without_masks()].tolist()
        if bare:
            ids = ", ".join(map(str, bare[:SHOWN])) + (", …" if len(bare) > SHOWN else "")
            raise ValueError(
                f"{index.path}: {len(bare)} of {len(index.rows)} annotations have no segmentation (ids {ids}): mend "
                f"them, "
                "or train boxes only with masks=False"
            )
    return source


def dropped_message(path: str, dropped: Sequence[Problem]) -> str:
    """How many annotations were dropped, and the ids of some."""
    ids = ", ".join(str(p.id) for p in dropped[:SHOWN]) + (", …" if len(dropped) > SHOWN else "")
    return (
        f"{path}: {len(dropped)} annotations are dropped (ids {ids}); the first: {dropped[0].message}. "
        "keras-seg check-data lists all"
    )


def missing_files(index: CocoIndex, folder: Path) -> list[str]:
    """The file names of images that are not in the folder, each of whose own folders is listed once."""
    listings: dict[str, set[str]] = {}
    missing = []
    for i in range(len(index)):
        name = index.file_name(i)
        parent, base = os.path.split(os.path.join(folder, name))
        if parent not in listings:
            listings[parent] = set(os.listdir(parent)) if os.path.isdir(parent) else set()
        if base not in listings[parent]:
            missing.append(name)
    return missing


def _read_with_progress(
    annotations: str | Path | Mapping[str, Any], min_box_side: float
) -> tuple[CocoIndex, list[Problem]]:
    from keras_seg.data.progress import bytes_read

    if isinstance(annotations, Mapping):
        return read_index(annotations, min_box_side=min_box_side)
    with bytes_read(Path(annotations), "Reading annotations") as advance:
        return read_index(annotations, min_box_side=min_box_side, on_bytes=advance)
