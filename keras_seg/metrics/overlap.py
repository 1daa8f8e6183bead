"""Agreement of two partitions of an image: the Rand and information F-scores of Arganda-Carreras et al. 2015.

Both are *foreground restricted*: pixels outside the reference's segments do not count. A pixel inside a
reference segment that the proposal leaves without a segment (id 0) counts as a segment of its own.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import ndimage


class Overlap(NamedTuple):
    """How many pixels reference segment i >= 1 and proposed segment j share (counts in pixels)."""

    joint: np.ndarray  # int64 [P]: the non-zero n_ij with j >= 1
    reference: np.ndarray  # int64 [I]: a_i, size of each reference segment
    proposal: np.ndarray  # int64 [J]: b_j, size of each proposed segment within the reference's segments
    unassigned: int  # z: pixels of reference segments that the proposal gives id 0


class Counts(NamedTuple):
    """True positives, false positives and false negatives; adds up over slices."""

    tp: int
    fp: int
    fn: int

    def __add__(self, other: Counts) -> Counts:  # type: ignore[override]  # a tuple's would join them
        return Counts(self.tp + other.tp, self.fp + other.fp, self.fn + other.fn)


def components(mask: np.ndarray) -> np.ndarray:
    """4-connected components of `mask` bool [H, W] as int32 ids from 1; 0 outside."""
    return ndimage.label(mask)[0]


def overlap(reference: np.ndarray, proposal: np.ndarray) -> Overlap:
    """Contingency table of two id images, int [H, W]; id 0 of `reference` is left out."""
    inside = reference > 0
    rows, columns = reference[inside], proposal[inside]
    ids = int(columns.max(initial=0)) + 1
    pairs, sizes = np.unique(rows.astype(np.int64) * ids + columns, return_counts=True)
    assigned = pairs % ids > 0
    return Overlap(
        joint=sizes[assigned],
        reference=np.bincount(rows)[1:],
        proposal=np.bincount(columns)[1:],
        unassigned=int(sizes[~assigned].sum()),
    )


def rand_counts(table: Overlap) -> Counts:
    """Counts over all n² ordered pairs of pixels: true positives share a segment in both partitions."""
    together = int((table.joint**2).sum()) + table.unassigned
    in_proposal = int((table.proposal**2).sum()) + table.unassigned
    in_reference = int((table.reference**2).sum())
    return Counts(together, in_proposal - together, in_reference - together)


def f_score(counts: Counts) -> float:
    """Harmonic mean of precision (1 without false positives) and recall (1 without false negatives)."""
    precision = counts.tp / (counts.tp + counts.fp) if counts.fp else 1.0
    recall = counts.tp / (counts.tp + counts.fn) if counts.fn else 1.0
    return _harmonic_mean(precision, recall)


def information_f_score(table: Overlap) -> float:
    """Harmonic mean of the shares of the two partitions' entropies that the other one explains."""
    total = int(table.reference.sum())

    def entropy(sizes: np.ndarray, singletons: int = 0) -> float:
        shares = sizes[sizes > 0] / total
        return singletons / total * np.log(total) - float((shares * np.log(shares)).sum())

    reference = entropy(table.reference)
    proposal = entropy(table.proposal, table.unassigned)
    joint = entropy(table.joint, table.unassigned)
    mutual = min(max(reference + proposal - joint, 0.0), reference, proposal)  # but for rounding it is within
    if proposal == 0:
        precision, recall = 1.0, 0.0
    elif reference == 0:
        precision, recall = 0.0, 1.0
    else:
        precision, recall = mutual / reference, mutual / proposal
    return _harmonic_mean(precision, recall)


def _harmonic_mean(precision: float, recall: float) -> float:
    total = precision + recall
    return 2 * precision * recall / total if total else 0.0
