"""Scores of the ISBI 2012 challenge: segmentation of neuronal structures in electron microscopy stacks.

Each score compares the probability of *cell interior* with labels, slice by slice in two dimensions. The
probability is binarised as `p > t` at each t of `THRESHOLDS`, and the best figure over all thresholds (one
threshold for the whole stack) is the score. Thresholds, binarisation and averaging are those of the
challenge's own evaluation script. Interiors are 4-connected, membranes 8-connected.

    pixel_error         error  1 - F-score of interior pixels; the pixel error that the challenge ranks
    pixel_disagreement  error  fraction of wrong pixels; in the challenge's text, but not ranked
    rand_error          error  1 - F-score of pairs of pixels in the same cell
    warping_error       error  pixels that split or merge cells, per pixel of the stack
    v_rand              score  F-score of pairs of pixels, once membranes are thinned to lines
    v_info              score  F-score of information, once membranes are thinned to lines

Errors are best at 0, scores at 1. `1 - rand_error` and `v_rand` are different figures and must not be
compared: papers before 2015 (U-Net's: warping error 0.00035, Rand error 0.0382, pixel error 0.0611) give the
errors, later ones the scores.

I. Arganda-Carreras et al., "Crowdsourcing the creation of image segmentation algorithms for connectomics",
Frontiers in Neuroanatomy 9:142, 2015 (Rand and information scores, border thinning). V. Jain et al.,
"Boundary learning by optimization with topological constraints", CVPR 2010 (warping error).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from keras_seg.metrics.overlap import Counts, components, f_score, information_f_score, overlap, rand_counts
from keras_seg.metrics.warping import MERGE, SPLIT, mismatch_classes, warp
from keras_seg.metrics.watershed import thin_membranes

METRICS = ("pixel_error", "pixel_disagreement", "rand_error", "warping_error", "v_rand", "v_info")

# Summed up in double precision as the challenge's program does: 0.30000000000000004 is one of them, and the
# last is a hair below 1, so that a probability of exactly 1 is interior at all of them. The warping error
# leaves out the last.
THRESHOLDS = tuple(np.cumsum([0.0] + [0.1] * 10).tolist())

_TOLERANCE = 1e-5  # how far averaged probabilities may stray out of 0-1 by rounding


class Score(float):
    """A score: a float that remembers where it came from.

    `threshold` is where it was reached (the first of equals); `curve` holds the figure at each of
    `THRESHOLDS` (all but the last for the warping error).
    """

    threshold: float
    curve: tuple[float, ...]

    @classmethod
    def lowest(cls, curve: Sequence[float]) -> Score:
        """The smallest figure of a curve of errors."""
        return cls._at(int(np.argmin(curve)), curve)

    @classmethod
    def highest(cls, curve: Sequence[float]) -> Score:
        """The largest figure of a curve of scores."""
        return cls._at(int(np.argmax(curve)), curve)

    @classmethod
    def _at(cls, index: int, curve: Sequence[float]) -> Score:
        score = cls(curve[index])
        score.threshold = THRESHOLDS[index]
        score.curve = tuple(float(value) for value in curve)
        return score


def pixel_error(probability: np.ndarray, labels: np.ndarray) -> Score:
    """The official pixel error: 1 - the best F-score of interior pixels, counted over the whole stack.

    Not the fraction of wrong pixels, which is `pixel_disagreement`: with 78 % interior and small errors this
    one is near 0.64 of it. For arguments and errors see `evaluate`.
    """
    return _scores(probability, labels, ("pixel_error",))["pixel_error"]


def pixel_disagreement(probability: np.ndarray, labels: np.ndarray) -> Score:
    """The smallest fraction of pixels whose binarised value differs from the label.

    The challenge's text describes this figure too ("squared Euclidean distance"), and papers often give it as
    "pixel error", but the challenge ranks `pixel_error`. For arguments and errors see `evaluate`.
    """
    return _scores(probability, labels, ("pixel_disagreement",))["pixel_disagreement"]


def rand_error(probability: np.ndarray, labels: np.ndarray) -> Score:
    """The foreground-restricted Rand error: 1 - the best F-score of pairs of pixels in the same cell.

    Of all pairs of a slice's label-interior pixels, those that lie in one cell of the label and in one of the
    proposal are true positives: precision falls with merged cells, recall with split ones. Interior that the
    proposal calls membrane counts as cells of one pixel each. Pairs are summed over the slices before the
    F-score is taken. This is the Rand error of the challenge's table and of the U-Net paper; it is not 1 -
    Rand index. Arganda-Carreras et al. 2015 (Rand scoring). For arguments and errors see `evaluate`.
    """
    return _scores(probability, labels, ("rand_error",))["rand_error"]


def warping_error(probability: np.ndarray, labels: np.ndarray) -> Score:
    """The least fraction of the stack's pixels, over the thresholds 0 to 0.9, that split or merge cells.

    The label is warped towards the binarised proposal: pixels whose flip changes no topology are flipped
    until none is left. What differs then is an error of topology, and of these the pixels count that split a
    cell or merge cells. Lost and invented cells and holes do not count, so a proposal of membrane alone
    scores well: read it together with `rand_error`. Jain et al. 2010, in the "splits and mergers" form that
    the challenge ranks. For arguments and errors see `evaluate`.
    """
    return _scores(probability, labels, ("warping_error",))["warping_error"]


def v_rand(probability: np.ndarray, labels: np.ndarray) -> Score:
    """The best Rand F-score after thinning the proposal's membranes to lines, mean over slices. 1 is best.

    It replaced the Rand error in the challenge's table, because it does not depend on the width of the
    membranes: V_rand of Arganda-Carreras et al. 2015 (foreground-restricted Rand scoring after border
    thinning). For arguments and errors see `evaluate`.
    """
    return _scores(probability, labels, ("v_rand",))["v_rand"]


def v_info(probability: np.ndarray, labels: np.ndarray) -> Score:
    """The best information F-score after thinning membranes to lines, mean over slices. 1 is best.

    The harmonic mean of the shares of the label's and of the proposal's entropy that the other explains;
    where one of them is a single cell there is nothing to explain, and it is 0. V_info of Arganda-Carreras et
    al. 2015 (foreground-restricted information theoretic scoring after border thinning). For arguments and
    errors see `evaluate`.
    """
    return _scores(probability, labels, ("v_info",))["v_info"]


def evaluate(
    probability: np.ndarray, labels: np.ndarray, metrics: str | Sequence[str] = METRICS
) -> dict[str, float]:
    """Scores of a stack, and the thresholds at which they are reached.

    Args:
        probability: probability of a cell's *interior*, [N, H, W] or [H, W], 0 to 1; compared as float32, as
            the challenge's program does. A binary segmentation (bool or 0/1) will do as well.
        labels: bool, 0/1 or 0/255 of the same shape, 0 = membrane.
        metrics: which of `METRICS` to compute; those left out cost no time.

    Returns:
        `{"rand_error": 0.05, "rand_error_threshold": 0.4, ...}` in the order of `metrics`.

    Raises:
        ValueError: shapes that differ or are no stack's, no pixels, a probability that is not finite or not
            from 0 to 1, other values in labels, labels without interior where a score compares cells, an
            unknown metric.
    """
    wanted = (metrics,) if isinstance(metrics, str) else tuple(metrics)
    unknown = [name for name in wanted if name not in METRICS]
    if unknown:
        raise ValueError(f"unknown metric {', '.join(map(repr, unknown))}: choose from {', '.join(METRICS)}")
    scores = _scores(probability, labels, wanted)
    result = {}
    for name in wanted:
        result[name] = float(scores[name])
        result[f"{name}_threshold"] = scores[name].threshold
    return result


def _scores(probability: np.ndarray, labels: np.ndarray, wanted: Sequence[str]) -> dict[str, Score]:
    """The scores wanted by name, and those that fall out on the way."""
    proposal, interior = _checked_probability(probability), _checked_labels(labels)
    if proposal.shape != interior.shape:
        hint = ": give the interior's class alone" if proposal.ndim == interior.ndim + 1 else ""
        raise ValueError(f"probability has shape {proposal.shape} and labels {interior.shape}{hint}")
    if proposal.ndim == 2:
        proposal, interior = proposal[None], interior[None]
    if proposal.ndim != 3:
        raise ValueError(f"probability and labels must be [N, H, W] or [H, W], not {proposal.shape}")
    scores: dict[str, Score] = {}
    if not {"pixel_error", "pixel_disagreement"}.isdisjoint(wanted):
        scores |= _pixel_scores(proposal, interior)
    if "rand_error" in wanted:
        scores |= _rand_scores(proposal, interior)
    if "warping_error" in wanted:
        scores |= _warping_scores(proposal, interior)
    if not {"v_rand", "v_info"}.isdisjoint(wanted):
        scores |= _thinned_scores(proposal, interior)
    return scores


def _pixel_scores(proposal: np.ndarray, interior: np.ndarray) -> dict[str, Score]:
    positives = np.count_nonzero(interior)
    f_scores, disagreements = [], []
    for threshold in THRESHOLDS:
        binary = proposal > threshold
        tp = np.count_nonzero(binary & interior)
        counts = Counts(int(tp), fp=int(np.count_nonzero(binary) - tp), fn=int(positives - tp))
        f_scores.append(f_score(counts))
        disagreements.append((counts.fp + counts.fn) / interior.size)
    return {
        "pixel_error": Score.lowest([1 - f for f in f_scores]),
        "pixel_disagreement": Score.lowest(disagreements),
    }


def _rand_scores(proposal: np.ndarray, interior: np.ndarray) -> dict[str, Score]:
    if not interior.any():
        raise ValueError("labels hold no interior: rand_error compares cells, and there are none")
    totals = [Counts(0, 0, 0)] * len(THRESHOLDS)
    for image, label in zip(proposal, interior):
        cells = components(label)
        for k, threshold in enumerate(THRESHOLDS):
            totals[k] += rand_counts(overlap(cells, components(image > threshold)))
    return {"rand_error": Score.lowest([1 - f_score(total) for total in totals])}


def _thinned_scores(proposal: np.ndarray, interior: np.ndarray) -> dict[str, Score]:
    empty = np.flatnonzero(~interior.any(axis=(1, 2))).tolist()
    if empty:
        raise ValueError(f"labels hold no interior in slice {empty[0]}: v_rand and v_info need some")
    rand, information = np.zeros((2, len(interior), len(THRESHOLDS)))
    for n, (image, label) in enumerate(zip(proposal, interior)):
        cells = components(label)
        for k, threshold in enumerate(THRESHOLDS):
            table = overlap(cells, thin_membranes(image > threshold))
            rand[n, k] = f_score(rand_counts(table))
            information[n, k] = information_f_score(table)
    return {"v_rand": Score.highest(rand.mean(0)), "v_info": Score.highest(information.mean(0))}


def _warping_scores(proposal: np.ndarray, interior: np.ndarray) -> dict[str, Score]:
    thresholds = THRESHOLDS[:-1]
    errors = np.zeros(len(thresholds))
    for image, label in zip(proposal, interior):
        for k, threshold in enumerate(thresholds):
            binary = image > threshold
            classes = mismatch_classes(warp(label, binary, np.abs(image - threshold)), binary)
            errors[k] += np.count_nonzero((classes == SPLIT) | (classes == MERGE))
    return {"warping_error": Score.lowest((errors / interior.size).tolist())}


def _checked_probability(probability: np.ndarray) -> np.ndarray:
    """As float64 that went through float32, which decides on which side of a threshold a value lies."""
    probability = _numbers(probability, "probability")
    finite = np.isfinite(probability)
    if not finite.all():
        first = tuple(np.argwhere(~finite)[0].tolist())
        raise ValueError(f"probability is not finite at {np.count_nonzero(~finite)} pixels, first at {first}")
    low, high = probability.min(), probability.max()
    if low < -_TOLERANCE or high > 1 + _TOLERANCE:
        eight_bit = low >= 0 and high <= 255
        hint = "divide 8-bit values by 255" if eight_bit else "apply softmax or sigmoid to logits"
        raise ValueError(f"probability must be from 0 to 1, but is from {low:g} to {high:g}: {hint}")
    return np.clip(probability.astype(np.float32), 0, 1).astype(np.float64)


def _checked_labels(labels: np.ndarray) -> np.ndarray:
    """As bool, True = interior."""
    labels = _numbers(labels, "labels")
    values = np.unique(labels).astype(np.float64)
    if not (np.isin(values, (0, 1)).all() or np.isin(values, (0, 255)).all()):
        found = ", ".join(f"{value:g}" for value in values[:5]) + (", ..." if values.size > 5 else "")
        raise ValueError(f"labels must be 0 (membrane) and 1 or 255 (interior), but hold {found}")
    return labels != 0


def _numbers(values: np.ndarray, name: str) -> np.ndarray:
    values = np.asarray(values)
    if values.dtype.kind not in "biuf":
        raise ValueError(f"{name} must hold numbers, not {values.dtype}")
    if values.size == 0:
        raise ValueError(f"{name} is empty: its shape is {values.shape}")
    return values
