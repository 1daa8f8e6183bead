"""A detector, or what one found, scored on COCO annotations: `keras-seg evaluate`.

What finds objects is any function from an image's path to `Instances`: `segment` with a model, an exported model, an
ensemble. `metrics.coco` has the scores themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_seg.data.progress import track
from keras_seg.instances import Instances
from keras_seg.metrics import coco, coco_data

if TYPE_CHECKING:
    from keras_seg.export.loaded import Exported
    from keras_seg.models.mask_rcnn import MaskRCNN

__all__ = ["detections", "finder", "results", "score"]


def finder(
    model: MaskRCNN | Exported,
    *,
    max_detections: int = 100,
    flip: bool = False,
    short_sides: Sequence[int] | None = None,
    precision: str = "float32",
    value_range: tuple[float, float] | None = None,
) -> Callable[[Any], Any]:
    """A detector, or one that `export.load` gives, as a function from an image to its `Instances`, or from a list
    of images to a list.

    All that the model finds counts, whatever the score (its own threshold, often 0.05, comes first). flip,
    short_sides: see the image mirrored and at these sizes (`tta.augmented_detector`), which is for float32 alone.
    precision: as of `segment`. An exported detector has its own size and precision: ValueError for other ones.
    value_range: the values of image files that become 0 and 255, see `data.images.to_float`.
    """
    if value_range is not None:
        find = finder(
            model, max_detections=max_detections, flip=flip, short_sides=short_sides, precision=precision
        )
        return _in_range(find, value_range)
    import keras

    from keras_seg.detect import detect
    from keras_seg.tta import augmented_detector

    if not isinstance(model, keras.Model):
        if flip or short_sides is not None or precision != "float32":
            raise ValueError("evaluate: an exported model has one size and precision and is not mirrored")
        return lambda image: model.segment(image, score_threshold=0.0, max_detections=max_detections)
    if not flip and short_sides is None:
        return lambda image: detect(
            model, image, score_threshold=0.0, max_detections=max_detections, precision=precision,
            batch_size=len(image) if isinstance(image, list) else 1,
        )  # fmt: skip
    if precision != "float32":
        raise ValueError("evaluate: precision goes without flip and short_sides, whose votes are float32")
    find = augmented_detector(model, flip=flip, short_sides=short_sides, max_detections=max_detections)
    return lambda image: [find(one) for one in image] if isinstance(image, list) else find(image)


def _in_range(find: Callable[[Any], Any], value_range: tuple[float, float]) -> Callable[[Any], Any]:
    """`find` of image files, given their pixels in 8 bits."""
    from keras_seg.detect import pixels_of

    def pixels(path: Path) -> np.ndarray:
        return pixels_of(path, str(path), value_range)

    return lambda image: find([pixels(path) for path in image] if isinstance(image, list) else pixels(image))


def detections(
    find: Callable[[Any], Any],
    annotations: str | Path | Mapping[str, Any],
    images: str | Path,
    *,
    image_ids: Sequence[int] | None = None,
    batch_size: int = 1,
) -> Iterator[tuple[int, Instances]]:
    """What `find` finds in each image of COCO annotations, as pairs (image id, Instances), with a progress bar.

    Args:
        find: called with an image's path; with batch_size above 1, with a list of them, for a list of Instances.
        annotations: COCO annotations, a JSON file or what it holds.
        images: the folder that the annotations' file names are relative to.
        image_ids: these images alone.
        batch_size: images of similar proportions go together, since they are padded to the largest.

    Raises, before the first image is read:
        FileNotFoundError: no such folder, or files that are not there: all are counted, the first five named.
        ValueError: malformed annotations, an unknown image id, a batch size that is not positive.
    """
    truth = coco_data.read_annotations(annotations, "bbox")
    return _detections(find, truth, images, image_ids, batch_size)


def results(
    find: Callable[[Any], Any],
    annotations: str | Path | Mapping[str, Any],
    images: str | Path,
    *,
    batch_size: int = 1,
) -> list[dict[str, Any]]:
    """`detections` as COCO results; arguments and errors as there."""
    truth = coco_data.read_annotations(annotations, "bbox")
    return [
        result
        for image_id, instances in _detections(find, truth, images, None, batch_size)
        for result in coco_data.to_results(image_id, instances, truth)
    ]


def score(
    found: Sequence[Mapping[str, Any]],
    annotations: Mapping[str, Any],
    iou_types: Sequence[str] | None = None,
    **options: Any,
) -> dict[str, coco.Score]:
    """`metrics.coco.score` for several kinds of overlap.

    found: COCO results. annotations: what their JSON file holds. iou_types: None: all that both results and
    annotations have, boxes if there is no result. options: of `metrics.coco.score`.
    """
    kinds = list(iou_types or coco_data.kinds(found, annotations) or ["bbox"])
    return {kind: coco.score(annotations, found, kind, **options) for kind in kinds}


def _detections(
    find: Callable[[Any], Any],
    truth: coco_data.Truth,
    images: str | Path,
    image_ids: Sequence[int] | None,
    batch_size: int,
) -> Iterator[tuple[int, Instances]]:
    if batch_size < 1:
        raise ValueError(f"evaluate: batch_size must be positive, got {batch_size!r}")
    wanted = list(truth.images) if image_ids is None else list(image_ids)
    if unknown := [k for k in wanted if k not in truth.images]:
        raise ValueError(f"{truth.name}: has no image {unknown[0]}")
    files = _files(truth, wanted, Path(images))
    if batch_size > 1:
        wanted.sort(key=lambda k: _proportion(truth.images[k]))
    batches = [wanted[first : first + batch_size] for first in range(0, len(wanted), batch_size)]
    return _found(find, batches, files, batch_size)


def _found(
    find: Callable[[Any], Any], batches: list[list[int]], files: dict[int, Path], batch_size: int
) -> Iterator[tuple[int, Instances]]:
    for batch in track(batches, "evaluating"):
        paths = [files[k] for k in batch]
        yield from zip(batch, find(paths) if batch_size > 1 else [find(paths[0])], strict=True)


def _files(truth: coco_data.Truth, wanted: list[int], folder: Path) -> dict[int, Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of images")
    files = {}
    for k in wanted:
        name = truth.images[k].get("file_name")
        if not isinstance(name, str) or not name:
            raise ValueError(f"{truth.name}: image {k} needs a file_name, got {name!r}")
        files[k] = folder / name
    absent = [str(path.relative_to(folder)) for path in files.values() if not path.is_file()]
    if absent:
        more = ", ..." if len(absent) > coco_data.SHOWN else ""
        raise FileNotFoundError(
            f"{folder}: {len(absent)} of {len(files)} images of {truth.name} are not there: "
            f"{', '.join(absent[: coco_data.SHOWN])}{more}"
        )
    return files


def _proportion(image: Mapping[str, Any]) -> tuple[float, float]:
    height, width = (float(image.get(side) or 0) for side in ("height", "width"))
    return (height / width if width else 0.0, height)
