"""Where a detector errs: pictures of the images with most errors first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

# Of outlines; told apart with any kind of colour vision (Okabe and Ito 2008)
RIGHT, MISSED, FALSE = (0, 158, 115), (213, 94, 0), (86, 180, 233)


class Errors(NamedTuple):
    """right: [n, 2], pairs of what was found and what is there, places in the arrays given. false, missed: places
    of those without a counterpart."""

    right: np.ndarray
    false: np.ndarray
    missed: np.ndarray

    @property
    def wrong(self) -> int:
        return len(self.false) + len(self.missed)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall; 1 where nothing is and nothing was found."""
        return 2 * len(self.right) / (2 * len(self.right) + self.wrong) if self.wrong else 1.0


class Judged(NamedTuple):
    """An image of COCO annotations: its id and file, the results that count (the surest first) and the objects that
    are there, which of them are right, and the overlap of each pair that is, float [n]."""

    image_id: int
    file_name: str
    found: list[dict[str, Any]]
    there: list[dict[str, Any]]
    errors: Errors
    overlaps: np.ndarray


def judge(
    found: Sequence[Mapping[str, Any]] | str | Path,
    annotations: Mapping[str, Any] | str | Path,
    *,
    iou_type: str = "segm",
    score_threshold: float = 0.5,
    iou: float = 0.5,
) -> list[Judged]:
    """Every image of COCO annotations with its errors: that with the lowest F1 first, of equal ones that with most
    errors.

    found: COCO results, `evaluate.results` or a JSON file. iou_type: what overlaps, masks ("segm") or boxes ("bbox").
    score_threshold, iou: what counts as found, and as right. Crowds neither match nor count. ValueError for malformed
    annotations and results.
    """
    from keras_seg.metrics import coco_data

    truth = coco_data.read_annotations(annotations, iou_type)
    results = coco_data.read_results(found, truth, iou_type)
    of_images: dict[int, tuple[list, list]] = {image: ([], []) for image in truth.images}
    for one in sorted(results, key=lambda one: -one["score"]):
        if one["score"] >= score_threshold:
            of_images[one["image_id"]][0].append(one)
    for one in truth.objects:
        if not one["iscrowd"]:
            of_images[one["image_id"]][1].append(one)
    field = "segmentation" if iou_type == "segm" else "bbox"
    judged = []
    for image, (sure, there) in of_images.items():
        shapes = [one[field] for one in sure], [one[field] for one in there]
        categories = [np.array([one["category_id"] for one in objects], int) for objects in (sure, there)]
        errors, overlaps = _matched(*shapes, iou, categories[0][:, None] == categories[1][None])
        judged.append(
            Judged(image, truth.images[image].get("file_name", str(image)), sure, there, errors, overlaps)
        )
    return sorted(judged, key=lambda one: (one.errors.f1, -one.errors.wrong, one.image_id))


def match(found: np.ndarray, truth: np.ndarray, iou: float = 0.5, same: np.ndarray | None = None) -> Errors:
    """Which objects are right, as COCO matches them: in the order of `found`, each takes what overlaps it most of
    what is left.

    found: bool [N, H, W], the surest first. truth: bool [M, H, W]. iou: the least intersection over union. same:
    bool [N, M], which are of one class; None: all. ValueError for masks of other images.
    """
    if found.shape[1:] != truth.shape[1:]:
        raise ValueError(
            f"masks of other sizes: {list(found.shape[1:])} found, {list(truth.shape[1:])} there"
        )
    from keras_seg.ops.rle import encode_mask

    return _matched([encode_mask(mask) for mask in found], [encode_mask(mask) for mask in truth], iou, same)[
        0
    ]


def _matched(
    found: Sequence[Any], truth: Sequence[Any], iou: float, same: np.ndarray | None
) -> tuple[Errors, np.ndarray]:
    """`match` of run lengths, since a mask for each object of a large image would be some GB, or of boxes [x, y,
    width, height]; and the overlap of each pair."""
    from pycocotools import mask as coco

    # of nothing it gives a list
    overlap = np.reshape(coco.iou(found, truth, [0] * len(truth)), [len(found), len(truth)])
    overlap = overlap if same is None else np.where(same, overlap, -1)
    pairs, left = [], np.ones(len(truth), bool)
    for n, row in enumerate(overlap):
        row = np.where(left, row, -1)
        if left.any() and row.max() >= iou:
            pairs.append((n, int(row.argmax())))
            left[pairs[-1][1]] = False
    right = np.array(pairs, int).reshape(-1, 2)
    errors = Errors(right, np.setdiff1d(np.arange(len(found)), right[:, 0]), np.flatnonzero(left))
    return errors, overlap[right[:, 0], right[:, 1]]


def draw_errors(image: Any, found: np.ndarray, truth: np.ndarray, errors: Errors) -> Image.Image:
    """The image with outlines: what was found and is right in green, what was missed in red-orange, what is false
    in blue.

    image: as in `visualize.picture`; found, truth: bool [N, H, W] and [M, H, W] of its size, errors: of `match`.
    """
    from PIL import Image
    from scipy import ndimage

    from keras_seg import visualize

    drawn = np.array(visualize.picture(image))
    outlined = (
        (found[errors.right[:, 0]], RIGHT),
        (truth[errors.missed], MISSED),
        (found[errors.false], FALSE),
    )
    for masks, colour in outlined:
        for mask in masks:
            drawn[mask & ~ndimage.binary_erosion(mask)] = colour
    return Image.fromarray(drawn)


def write_error_pictures(
    found: Sequence[Mapping[str, Any]] | str | Path,
    annotations: Mapping[str, Any] | str | Path,
    images: str | Path,
    folder: str | Path,
    *,
    count: int = 8,
    score_threshold: float = 0.5,
    iou: float = 0.5,
    value_range: tuple[float, float] | None = None,
) -> dict[Path, Errors]:
    """Draws the `count` images with the lowest F1 to PNGs in a folder, the worst first: {file: its errors}.

    Args:
        found: COCO results with masks, `evaluate.results` or a JSON file.
        annotations: COCO annotations with masks. Crowds neither match nor count.
        images: the folder that the annotations' file names are relative to.
        folder: made if missing; files are named "01_…png", "02_…png" by rank and image.
        score_threshold, iou: what counts as found, and as right.
        value_range: the values that are drawn black and white, see `data.images.to_float`.

    Raises ValueError for malformed annotations and results, FileNotFoundError for an image that is not there.
    """
    judged = judge(found, annotations, score_threshold=score_threshold, iou=iou)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written = {}
    for rank, one in enumerate(judged[:count], start=1):
        path = folder / f"{rank:02d}_{Path(one.file_name).stem}.png"
        picture = picture_of(Path(images) / one.file_name, value_range)
        draw_errors(picture, *_masks(one.found, one.there), one.errors).save(path)
        written[path] = one.errors
    return written


def picture_of(file: Path, value_range: tuple[float, float] | None) -> Image.Image:
    """An image file as a detector sees it, RGB."""
    from keras_seg import visualize
    from keras_seg.detect import pixels_of

    return visualize.picture(pixels_of(file, str(file), value_range))


def _masks(
    found: Sequence[Mapping[str, Any]], there: Sequence[Mapping[str, Any]]
) -> tuple[np.ndarray, np.ndarray]:
    """Of an image, bool [N, H, W] and [M, H, W]."""
    from keras_seg.ops.rle import decode_rle

    height, width = next((one["segmentation"]["size"] for one in (*found, *there)), (1, 1))
    masks_found, masks_there = (
        np.array([decode_rle(one["segmentation"]) for one in objects], bool).reshape(-1, height, width)
        for objects in (found, there)
    )
    return masks_found, masks_there
