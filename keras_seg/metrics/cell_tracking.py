"""SEG, the segmentation score of the Cell Tracking Challenge.

M. Maška et al., "A benchmark for comparison of cell tracking algorithms", Bioinformatics 30, 2014.
V. Ulman et al., "An objective comparison of cell-tracking algorithms", Nature Methods 14, 2017.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def seg(
    prediction: np.ndarray | Sequence[np.ndarray], reference: np.ndarray | Sequence[np.ndarray]
) -> dict[str, Any]:
    """Mean Jaccard index of the reference's objects, over all frames together. 1 is best.

    A reference object R is matched by the predicted object S that covers more than half of it,
    |R ∩ S| > 0.5 |R|; there is at most one. Its Jaccard index is J = |R ∩ S| / |R ∪ S|, or 0 without a match.
    So an exact half is no match, one S can match several R that it merges, predicted objects that match
    nothing cost nothing (a partially annotated reference is fine), and the ids themselves play no role.

    Args:
        prediction, reference: instance ids, any integer type, 0 = background: [N, H, W], one frame [H, W], or
            a sequence of frames [H, W], which may differ in size.

    Returns:
        `SEG`: the mean of J over all reference objects of all frames (not the mean of the frames' means);
        `n_ref` and `n_matched`: how many reference objects there are, and how many have a match;
        `frames`: for each frame a dictionary of `seg` (mean J of this frame; 0.0 if it has no reference
        objects, and then of no weight in `SEG`), `n_ref`, `n_pred`, and `matches`, a list of (reference id,
        predicted id, J).

    Raises:
        ValueError: different numbers or sizes of frames, ids that are negative or no integers, or a reference
            without any object, for which SEG has no value.
    """
    predicted, references = _frames(prediction, "prediction"), _frames(reference, "reference")
    if len(predicted) != len(references):
        raise ValueError(f"prediction has {len(predicted)} frames and reference {len(references)}")
    frames: list[dict[str, Any]] = []
    for number, (found, truth) in enumerate(zip(predicted, references)):
        if found.shape != truth.shape:
            raise ValueError(f"frame {number}: prediction has shape {found.shape}, reference {truth.shape}")
        frames.append(_frame_score(found, truth))
    objects = sum(frame["n_ref"] for frame in frames)
    if objects == 0:
        raise ValueError("reference has no objects in any frame: SEG has no value")
    overlaps = [jaccard for frame in frames for *_, jaccard in frame["matches"]]
    return {"SEG": sum(overlaps) / objects, "n_ref": objects, "n_matched": len(overlaps), "frames": frames}


def _frame_score(prediction: np.ndarray, reference: np.ndarray) -> dict[str, Any]:
    reference_ids, rows, reference_sizes = _objects(reference)
    predicted_ids, columns, predicted_sizes = _objects(prediction)
    pairs, shared = np.unique(rows * len(predicted_ids) + columns, return_counts=True)
    matches = []
    for pair, intersection in zip(pairs.tolist(), shared.tolist()):
        row, column = divmod(pair, len(predicted_ids))
        if reference_ids[row] and predicted_ids[column] and 2 * intersection > reference_sizes[row]:
            union = reference_sizes[row] + predicted_sizes[column] - intersection
            matches.append((reference_ids[row], predicted_ids[column], intersection / union))
    objects = np.count_nonzero(reference_ids)
    return {
        "seg": sum(jaccard for *_, jaccard in matches) / objects if objects else 0.0,
        "n_ref": objects,
        "n_pred": np.count_nonzero(predicted_ids),
        "matches": matches,
    }


def _objects(frame: np.ndarray) -> tuple[list[int], np.ndarray, list[int]]:
    """The ids that occur (0 included), the place of each pixel's id among them, and their sizes in pixels."""
    ids, places, sizes = np.unique(frame.ravel(), return_inverse=True, return_counts=True)
    return ids.tolist(), places, sizes.tolist()


def _frames(stack: np.ndarray | Sequence[np.ndarray], name: str) -> list[np.ndarray]:
    """The frames of a stack, checked."""
    several = [stack] if isinstance(stack, np.ndarray) and stack.ndim == 2 else stack
    frames = [np.asarray(frame) for frame in several]
    for number, frame in enumerate(frames):
        where = f"{name}, frame {number}"
        if frame.ndim != 2:
            raise ValueError(f"{where}: must be [H, W], but has shape {frame.shape}")
        if frame.dtype.kind not in "iu":
            raise ValueError(f"{where}: must hold integer ids of objects, not {frame.dtype}")
        if frame.size and frame.min() < 0:
            raise ValueError(f"{where}: holds the id {frame.min()}; objects are positive, background is 0")
    return frames
