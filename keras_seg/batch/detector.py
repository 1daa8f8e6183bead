"""What a batch does with a detector: COCO JSON of images, whole or cut into overlapping tiles."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_seg.batch.folder import Failure, Folder, Image, Outcome, Shard, to_json
from keras_seg.batch.merging import Found, Window, merge, windows
from keras_seg.batch.windows import open_image
from keras_seg.data.images import to_float
from keras_seg.detect import detect, pixels_of
from keras_seg.instances import PIXEL_CENTRE, Instances
from keras_seg.ops import masks as mask_ops
from keras_seg.ops.rle import decode_rle, encode_edges, encode_mask, run_lengths

if TYPE_CHECKING:
    from keras_seg.export.loaded import Exported
    from keras_seg.models.mask_rcnn import MaskRCNN

__all__ = ["DetectorTile", "DetectorWork", "Merging", "detector_work"]

UNREADABLE = (ValueError, OSError)
ID_STEP = (
    10**7
)  # more than the objects of an image; an annotation's id is that of its image times this, plus its place


@dataclasses.dataclass(frozen=True)
class DetectorTile:
    image: Image
    window: Window
    result: str

    @property
    def key(self) -> str:
        return f"{self.image.key}-y{self.window[0]}-x{self.window[1]}"


@dataclasses.dataclass(frozen=True)
class Merging:
    """The tiles of an image, whose objects are to be joined."""

    image: Image
    size: tuple[int, int]
    tiles: tuple[DetectorTile, ...]
    result: str

    @property
    def key(self) -> str:
        return self.image.key


@dataclasses.dataclass(frozen=True)
class DetectorWork:
    """How objects are found; `detector_work` checks it. Images with a side above `tile_side` are cut into tiles."""

    class_names: tuple[str, ...]
    convention: str
    options: dict[str, Any]  # of `detect`, or of an exported model's `segment`
    tile_side: int | None
    overlap: int
    labels: bool
    value_range: tuple[float, float] | None

    def units(self, shard: Shard, folder: Folder) -> Iterator[Shard | DetectorTile | Merging | Failure]:
        """The shard, without what is too large for it; the tiles of that, and what is to be done after them."""
        if self.tile_side is None:
            yield shard
            return
        small = []
        for image in shard.images:
            try:
                height, width = open_image(image.path).shape[:2]
            except UNREADABLE as error:
                yield Failure(image, str(error), redo=(shard.result,))
                continue
            if max(height, width) <= self.tile_side:
                small.append(image)
                continue
            merging = self._merging(image, (height, width), self.tile_side)
            if not folder.has(merging.result):
                yield merging
                yield from merging.tiles
        if small:
            yield dataclasses.replace(shard, images=tuple(small))

    def run(self, model: MaskRCNN | Exported, unit: Shard | DetectorTile, folder: Folder) -> Outcome:
        return self._shard(model, unit) if isinstance(unit, Shard) else self._tile(model, unit)

    def finish(self, merging: Merging, folder: Folder) -> Outcome:
        missing = [tile for tile in merging.tiles if not folder.has(tile.result)]
        if missing:
            error = f"not merged: {len(missing)} of {len(merging.tiles)} tiles failed"
            return Outcome(merging.key, failures=(Failure(merging.image, error),))
        tiles = [(tile.window, _read_tile(folder.read(tile.result))) for tile in merging.tiles]
        found = merge(tiles, merging.size)
        annotations = [
            _annotation(one, merging.image.id, k, merging.size, self._shift) for k, one in enumerate(found)
        ]
        return Outcome(
            merging.key,
            files=((merging.result, self._coco([(merging.image, merging.size)], annotations)),),
            counts=(("images", 1), ("objects", len(found))),
        )

    @property
    def _shift(self) -> float:
        """What COCO's keypoints are less than ours (`Instances.to_coco`)."""
        return 0.0 if self.convention == "torchvision" else PIXEL_CENTRE

    def _merging(self, image: Image, size: tuple[int, int], side: int) -> Merging:
        tiles = tuple(
            DetectorTile(image, window, f"tiles/{image.name}/y{window[0]:06d}_x{window[1]:06d}.json")
            for window in windows(size, side, self.overlap)
        )
        return Merging(image, size, tiles, f"detections/{image.key}.json")

    def _find(self, model: Any, images: Any) -> Any:
        return detect(model, images, **self.options) if hasattr(model, "short_side") else model.segment(
            images, **self.options
        )  # fmt: skip

    def _shard(self, model: MaskRCNN | Exported, shard: Shard) -> Outcome:
        readable, failures = [], []

        def pixels() -> Iterator[np.ndarray]:
            for image in shard.images:
                try:
                    array = pixels_of(image.path, image.path, self.value_range)
                except UNREADABLE as error:
                    failures.append(Failure(image, str(error), redo=(shard.result,)))
                    continue
                readable.append((image, array.shape[:2]))
                yield array

        annotations, files = [], []
        for n, instances in enumerate(self._find(model, pixels())):
            image = readable[n][0]
            annotations += _annotations(instances, image.id)
            if self.labels:
                files.append((f"labels/{image.name}.tif", _label_tiff(instances)))
        files.append((shard.result, self._coco(readable, annotations)))
        counts = ("images", len(readable)), ("objects", len(annotations))
        return Outcome(shard.key, tuple(files), tuple(failures), counts)

    def _tile(self, model: MaskRCNN | Exported, tile: DetectorTile) -> Outcome:
        top, left, bottom, right = tile.window
        try:
            part = open_image(tile.image.path)[top:bottom, left:right]
            pixels = pixels_of(part, tile.image.path, self.value_range)
        except UNREADABLE as error:
            failure = Failure(tile.image, f"rows from {top}, columns from {left}: {error}")
            return Outcome(tile.key, failures=(failure,))
        found = self._find(model, pixels)
        return Outcome(
            tile.key, files=((tile.result, _tile_json(found, tile.window)),), counts=(("tiles", 1),)
        )

    def _coco(self, images: Sequence[tuple[Image, tuple[int, int]]], annotations: list[dict]) -> bytes:
        return to_json(
            {
                "images": [
                    {"id": image.id, "file_name": image.file_name, "height": height, "width": width}
                    for image, (height, width) in images
                ],
                "categories": [{"id": k, "name": name} for k, name in enumerate(self.class_names, start=1)],
                "annotations": annotations,
            }
        )


def detector_work(
    model: Any,
    *,
    score_threshold: float = 0.5,
    max_detections: int = 100,
    classes: Sequence[int | str] | None = None,
    batch_size: int = 1,
    precision: str = "float32",
    tile_side: int | None = None,
    overlap: int = 128,
    labels: bool = False,
    value_range: tuple[float, float] | None = None,
) -> DetectorWork:
    """The work of a detector, a `models.mask_rcnn` or one that `export.load` gives.

    score_threshold, max_detections, classes, batch_size, precision: as `detect` takes them; max_detections is of a tile
    where there are tiles. An exported model has no batch_size and precision. tile_side: cut images with a longer side
    into tiles of so many pixels; None: every image is seen whole. overlap: pixels that two tiles share at least, more
    than the largest objects measure if no object is to be put together out of parts. labels: write label images too;
    not with tiles. value_range: the values that become 0 and 255, see `data.images.to_float`.

    ValueError: an option outside its range.
    """
    from keras_seg.inference import check_precision

    names = model.class_names or [f"class {k}" for k in range(_class_count(model))]
    options: dict[str, Any] = {"score_threshold": score_threshold, "max_detections": max_detections}
    options["classes"] = None if classes is None else tuple(classes)
    if hasattr(model, "short_side"):
        check_precision(precision)
        options |= {"batch_size": batch_size, "precision": precision}
    elif batch_size != 1 or precision != "float32":
        raise ValueError("batch: an exported model has its own batch_size and precision; leave them out")
    if value_range is not None:
        value_range = (float(value_range[0]), float(value_range[1]))
        to_float(np.array(value_range), value_range, "batch")  # raises
    if batch_size < 1:
        raise ValueError(f"batch: batch_size must be positive, got {batch_size!r}")
    if tile_side is not None:
        windows((1, 1), tile_side, overlap)  # raises
    if labels and tile_side is not None:
        raise ValueError("batch: labels are of images that are seen whole; leave tile_side out")
    if labels and not _has_masks(model):
        raise ValueError("batch: labels need a model with masks")
    nothing = np.zeros(0)
    empty = Instances(nothing.reshape(0, 4), nothing, nothing, (1, 1), class_names=names)
    empty.filter(score_threshold, classes, max_detections)  # raises for an unknown class
    return DetectorWork(tuple(names), model.convention, options, tile_side, overlap, labels, value_range)


def _class_count(model: Any) -> int:
    return model.classes if hasattr(model, "classes") else model.about["classes"]


def _has_masks(model: Any) -> bool:
    return bool(model.about["masks"]) if hasattr(model, "about") else "mask_head" in model.parts


def _annotations(instances: Instances, image_id: int) -> list[dict[str, Any]]:
    """COCO annotations with scores."""
    annotations = instances.to_coco(image_id)
    for k, annotation in enumerate(annotations):
        _complete(annotation, image_id, k)
    return annotations


def _complete(annotation: dict[str, Any], image_id: int, k: int) -> None:
    area = annotation["bbox"][2] * annotation["bbox"][3]
    if "segmentation" in annotation:
        area = int(run_lengths(annotation["segmentation"])[1::2].sum())
    annotation |= {"id": image_id * ID_STEP + k, "area": area, "iscrowd": 0}


def _annotation(found: Found, image_id: int, k: int, size: tuple[int, int], shift: float) -> dict[str, Any]:
    x1, y1, x2, y2 = found.box
    annotation: dict[str, Any] = {"image_id": image_id, "category_id": found.category}
    annotation |= {"bbox": [x1, y1, x2 - x1, y2 - y1], "score": found.score}
    if found.mask is not None:
        annotation["segmentation"] = _encode_window(found.mask, found.corner, size)
    if found.keypoints is not None:
        annotation["keypoints"] = (found.keypoints - [shift, shift, 0]).ravel().tolist()
    _complete(annotation, image_id, k)
    return annotation


def _encode_window(mask: np.ndarray, corner: tuple[int, int], size: tuple[int, int]) -> dict[str, Any]:
    """The run lengths in an image (H, W) of a mask [h, w] whose upper left pixel is `corner`; the image is not made."""
    columns = np.zeros((mask.shape[1], mask.shape[0] + 2), bool)
    columns[:, 1:-1] = mask.T
    column, change = np.nonzero(columns[:, 1:] != columns[:, :-1])
    edges = (column + corner[1]) * size[0] + change + corner[0]
    # a run that reaches the lower end of a column and goes on at the upper end of the next one is one run
    joined = np.flatnonzero(edges[1:-1:2] == edges[2::2]) * 2 + 1
    return encode_edges(np.delete(edges, [*joined, *(joined + 1)]), size)


def _tile_json(found: Instances, window: Window) -> bytes:
    """The objects of a tile in pixels of the image; masks as run lengths of what surrounds them."""
    top, left = window[:2]
    objects: list[dict[str, Any]] = []
    for box, score, category in zip(
        found.boxes.tolist(), found.scores.tolist(), (found.classes + 1).tolist(), strict=True
    ):
        moved = [box[0] + left, box[1] + top, box[2] + left, box[3] + top]
        objects.append({"box": moved, "score": score, "category": category})
    if found.mask_probabilities is not None:
        masks = mask_ops.windows(
            found.mask_probabilities, found.boxes, found.image_size, found.mask_threshold, found.convention
        )
        for one, (rows, columns, inside) in zip(objects, masks, strict=True):
            one |= {"corner": [rows.start + top, columns.start + left], "mask": encode_mask(inside)}
    if found.keypoints is not None:
        for one, keypoints in zip(objects, found.keypoints.astype(np.float64), strict=True):
            one["keypoints"] = (keypoints + [left, top, 0]).tolist()
    return to_json(objects)


def _read_tile(content: bytes) -> list[Found]:
    return [
        Found(
            tuple(one["box"]),
            one["score"],
            one["category"],
            tuple(one.get("corner", (0, 0))),
            decode_rle(one["mask"]) if "mask" in one else None,
            np.array(one["keypoints"]) if "keypoints" in one else None,
        )
        for one in json.loads(content)
    ]


def _label_tiff(instances: Instances) -> bytes:
    import tifffile

    file = io.BytesIO()
    tifffile.imwrite(file, instances.to_labels(), photometric="minisblack", compression="deflate")
    return file.getvalue()
