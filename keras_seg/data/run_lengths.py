"""COCO run lengths of many objects at once: from characters to runs, and from runs to the pixels around an object.

`ops.rle` has the coding of one mask; here an image's objects are decoded together, since a loop over 400 nuclei in
Python would take longer than everything else that is done with their image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from keras_seg.ops.rle import BITS, LONGEST, MORE, OFFSET, to_string

__all__ = ["Windows", "counts", "problems", "to_characters", "windows"]


class Windows(NamedTuple):
    """The pixels of N masks within their own bounding boxes.

    bounds: int64 [N, 4], y1, x1, y2, x2 (exclusive), pixels; all 0 for an empty mask. starts: int64 [N + 1], of each
    mask in `pixels`, uint8 of 0 and 1, column by column.
    """

    bounds: np.ndarray
    starts: np.ndarray
    pixels: np.ndarray

    def bitmap(self, k: int) -> np.ndarray:
        """uint8 [y2 - y1, x2 - x1] of mask k."""
        y1, x1, y2, x2 = self.bounds[k].tolist()
        return self.pixels[self.starts[k] : self.starts[k + 1]].reshape(x2 - x1, y2 - y1).T


def counts(characters: np.ndarray, splits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The run lengths of N masks: (int64 [R], splits int64 [N + 1] of them).

    characters: uint8 [C], the strings of all masks one after the other; splits: int64 [N + 1], mask k has characters
    splits[k] ... splits[k + 1]. Only of strings in which `problems` finds nothing.
    """
    bits = characters.astype(np.int64) - OFFSET
    last = (bits & MORE) == 0
    ends = np.flatnonzero(last)
    begins = np.concatenate([[0], ends[:-1] + 1]) if len(ends) else ends
    number = np.repeat(np.arange(len(ends)), ends - begins + 1)
    place = np.arange(len(number)) - begins[number]
    parts = (bits[: len(number)] & (MORE - 1)) << np.minimum(BITS * place, 62)
    values = np.add.reduceat(parts, begins) if len(begins) else parts
    negative = bits[ends] & (MORE >> 1) != 0
    values[negative] -= np.int64(1) << np.minimum(BITS * (ends - begins + 1)[negative], 62)
    run_splits = np.concatenate([[0], np.cumsum(last)])[splits]
    # From a mask's fourth number on, each is the difference to the one before the last: two interleaved sums, each
    # begun anew at every mask. The first number of a mask stands by itself.
    mask = np.repeat(np.arange(len(splits) - 1), np.diff(run_splits))
    within = np.arange(len(values)) - run_splits[mask]
    for parity in (0, 1):
        chosen = np.flatnonzero((within % 2 == parity) & (within > 0))
        if len(chosen):
            sums = np.cumsum(values[chosen])
            first = np.concatenate([[True], mask[chosen[1:]] != mask[chosen[:-1]]])
            before = np.concatenate([[0], sums[:-1]])[first]
            values[chosen] = sums - np.repeat(before, np.diff(np.append(np.flatnonzero(first), len(chosen))))
    return values, run_splits


def problems(
    characters: np.ndarray, splits: np.ndarray, pixels: np.ndarray
) -> tuple[np.ndarray, list[tuple[int, str]]]:
    """What is wrong with N masks' run lengths: (area int64 [N] in pixels, [(mask, what is wrong)]).

    pixels: int64 [N], height times width of each mask's size. The area of a wrong one means nothing.
    """
    lengths = np.diff(splits)
    mask = np.repeat(np.arange(len(lengths)), lengths)
    foreign = (characters < OFFSET) | (characters >= OFFSET + 2 * MORE)
    more = (characters.astype(np.int64) - OFFSET) & MORE != 0
    # characters that go on, in a row up to each
    going = np.cumsum(more)
    going -= np.maximum.accumulate(np.where(more, 0, going))
    long = going >= LONGEST
    wrong = {int(k): "counts has characters that are not of COCO's coding" for k in np.unique(mask[foreign])}
    for k in np.unique(mask[long]).tolist():
        wrong.setdefault(k, "counts has a run longer than any image")
    for k in np.flatnonzero(lengths == 0).tolist():
        wrong.setdefault(k, "counts is empty")
    ends = splits[1:][lengths > 0] - 1
    for k in np.flatnonzero(lengths > 0)[more[ends]].tolist():
        wrong.setdefault(k, "counts is cut off")
    area = np.zeros(len(lengths), np.int64)
    good = np.setdiff1d(np.arange(len(lengths)), list(wrong))
    if len(good):
        kept = np.isin(mask, good)
        runs, run_splits = counts(characters[kept], np.concatenate([[0], np.cumsum(lengths[good])]))
        inside = (np.arange(len(runs)) - np.repeat(run_splits[:-1], np.diff(run_splits))) % 2 == 1
        total = np.add.reduceat(runs, run_splits[:-1])
        least = np.minimum.reduceat(runs, run_splits[:-1])
        area[good] = np.add.reduceat(np.where(inside, runs, 0), run_splits[:-1])
        for k in np.flatnonzero((total != pixels[good]) | (least < 0)).tolist():
            wrong[int(good[k])] = (
                f"the runs of counts add up to {total[k]} pixels, its size has {pixels[good[k]]}"
                if least[k] >= 0
                else f"counts has a run of {least[k]} pixels"
            )
    return area, sorted(wrong.items())


def to_characters(runs: Sequence[int]) -> bytes:
    """One mask's run lengths as COCO's string. ValueError: a run below 0 or longer than any image."""
    values = np.array(runs, np.int64)
    if len(values) and not (values.min() >= 0 and values.max() < 2**32):
        raise ValueError("a run below 0 or longer than any image")
    return to_string(values).encode()


def windows(characters: np.ndarray, splits: np.ndarray, height: int) -> Windows:
    """The pixels of N masks of images `height` pixels high. Arguments as of `counts`. Time and memory go with the
    windows' areas, not with the image."""
    runs, run_splits = counts(characters, splits)
    number = len(splits) - 1
    mask = np.repeat(np.arange(number), np.diff(run_splits))
    stops = np.cumsum(runs)
    stops -= np.concatenate([[0], stops])[run_splits[:-1]][mask]
    inside = ((np.arange(len(runs)) - run_splits[mask]) % 2 == 1) & (runs > 0)
    mask, stop = mask[inside], stops[inside]
    start = stop - runs[inside]
    # a run over several columns, cut at their ends
    column = start // height
    pieces = (stop - 1) // height - column + 1
    piece = np.arange(pieces.sum()) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    mask, column = np.repeat(mask, pieces), np.repeat(column, pieces) + piece
    low = np.maximum(np.repeat(start, pieces), column * height) - column * height
    high = np.minimum(np.repeat(stop, pieces), (column + 1) * height) - column * height
    bounds = np.zeros((number, 4), np.int64)
    present, first = np.unique(mask, return_index=True)  # the pieces are in the order of masks
    if len(present):
        for side, reduce, values in (
            (0, np.minimum, low), (1, np.minimum, column), (2, np.maximum, high), (3, np.maximum, column + 1),
        ):  # fmt: skip
            bounds[present, side] = reduce.reduceat(values, first)
    tall = bounds[:, 2] - bounds[:, 0]
    starts = np.concatenate([[0], np.cumsum(tall * (bounds[:, 3] - bounds[:, 1]))])
    base = starts[mask] + (column - bounds[mask, 1]) * tall[mask] - bounds[mask, 0]
    steps = np.zeros(starts[-1] + 1, np.int8)
    np.add.at(steps, base + low, 1)
    np.add.at(steps, base + high, -1)
    return Windows(bounds, starts, np.cumsum(steps[:-1], dtype=np.int8).view(np.uint8))
