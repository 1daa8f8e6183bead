"""Training in two steps, as in the paper's ablations (He et al. 2017, Section 3.1): a region proposal network of its own
proposes boxes, which are stored, and a detector's second stage is trained and judged on them.

`data.proposals` has the file, `metrics.proposals` the recall.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_seg import evaluate
from keras_seg.data.progress import track
from keras_seg.data.proposals import Proposals, write_proposals
from keras_seg.metrics import coco_data
from keras_seg.metrics.proposals import average_recall
from keras_seg.weights.files import sha256_of

if TYPE_CHECKING:
    from keras_seg.models.mask_rcnn import MaskRCNN

__all__ = ["recall", "results", "store"]


def store(
    model: MaskRCNN,
    annotations: str | Path,
    images: str | Path,
    output: str | Path,
    *,
    count: int | None = None,
    batch_size: int = 1,
    value_range: tuple[float, float] | None = None,
) -> int:
    """Write what an RPN proposes in each image of COCO annotations to the file `output`, and return the number of boxes.

    count: the best so many of an image; None: all that the model gives, its argument `proposals`. value_range: the values
    of image files that become 0 and 255, see `data.images.to_float`. The file appears when it is complete. Raises as
    `proposed`, ValueError: `output` does not end in .npz, OSError: it cannot be written.
    """
    found = proposed(model, annotations, images, count=count, batch_size=batch_size, value_range=value_range)
    return write_proposals(output, found, model=model.name, annotations=sha256_of(annotations))


def recall(
    model: MaskRCNN,
    annotations: str | Path | Mapping[str, Any],
    images: str | Path,
    *,
    batch_size: int = 1,
    value_range: tuple[float, float] | None = None,
) -> dict[str, float]:
    """The average recall of what an RPN proposes, as `metrics.proposals.average_recall`. value_range: as of `store`."""
    content, _ = coco_data.load(annotations, "annotations")
    found = proposed(model, content, images, batch_size=batch_size, value_range=value_range)
    return average_recall(content, found)


def proposed(
    model: MaskRCNN,
    annotations: str | Path | Mapping[str, Any],
    images: str | Path,
    *,
    count: int | None = None,
    batch_size: int = 1,
    value_range: tuple[float, float] | None = None,
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """(image id, boxes [P, 4] in pixels of the file, scores [P]) of each image, with a progress bar. value_range: as of
    `store`.

    Raises, before the first image is read, ValueError: the model is not an RPN alone (`rpn_only`), or count is not
    positive; and as `evaluate.detections`.
    """
    if not model.rpn_only:
        raise ValueError(
            f"{model.name}: is a detector; proposals come from a model that is an RPN alone: model.rpn_only: true"
        )
    most = model.proposals if count is None else count
    if most < 1:
        raise ValueError(f"proposals: count must be positive, got {count}")
    find = evaluate.finder(model, max_detections=most, value_range=value_range)
    found = evaluate.detections(find, annotations, images, batch_size=batch_size)
    return ((image_id, one.boxes, one.scores) for image_id, one in found)


def results(
    model: MaskRCNN,
    proposals: Proposals,
    annotations: str | Path | Mapping[str, Any],
    images: str | Path,
    *,
    value_range: tuple[float, float] | None = None,
) -> list[dict[str, Any]]:
    """What a detector's second stage finds in regions that were proposed and stored, as COCO results. Of an image the best
    proposals are taken, as many as the model's own RPN gives. value_range: as of `store`.

    Raises, before the first image is read, ValueError: proposals for other annotations; and as `evaluate.results`.
    """
    from keras_seg import detect
    from keras_seg.data.resize import resize
    from keras_seg.inference import Compiled

    if isinstance(annotations, (str, Path)):
        proposals.check_made_for(annotations)
    truth = coco_data.read_annotations(annotations, "bbox")
    files = evaluate._files(truth, list(truth.images), Path(images))
    proposals.check_images(np.array([*files], np.int64), _sizes(truth), truth.name)
    compute = Compiled(model.second_stage())
    found = []
    for image_id in track([*files], "evaluating"):
        pixels = detect.pixels_of(files[image_id], str(files[image_id]), value_range)
        size = detect.resized_size(model, *pixels.shape[:2])
        inputs = detect.batch_of(model, [resize(pixels, size, model.convention)])
        boxes = proposals.of(image_id)[0][: model.proposals]
        scale = np.array([size[1] / pixels.shape[1], size[0] / pixels.shape[0]] * 2, np.float32)
        padded = np.zeros((1, model.proposals, 4), np.float32)
        padded[0, : len(boxes)] = boxes * scale
        inputs |= {"proposals": padded, "num_proposals": np.array([len(boxes)], np.int32)}
        outputs = {name: value.numpy()[0] for name, value in compute(inputs).items()}
        instances = detect.instances_of(model, outputs, pixels.shape[:2], size)
        found += coco_data.to_results(image_id, instances, truth)
    return found


def _sizes(truth: coco_data.Truth) -> np.ndarray:
    """int64 [I, 2]: height and width; without any in the annotations, as large as can be."""
    largest = np.iinfo(np.int32).max
    return np.array(
        [[image.get(side) or largest for side in ("height", "width")] for image in truth.images.values()],
        np.int64,
    ).reshape(-1, 2)
