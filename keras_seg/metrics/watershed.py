"""Thinning of membranes to lines, by the watershed that V_rand and V_info are defined with."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

_NEVER, _NOT_YET = -1, np.iinfo(np.int64).max


def thin_membranes(interior: np.ndarray) -> np.ndarray:
    """Grow the cells of a binary image into its membranes until one-pixel lines are left between them.

    Every 4-connected cell is a basin. Membrane pixels are flooded first in, first out, beginning with those
    at the cells in column by column order; a pixel queues its neighbours west, north, east, south. When its
    turn comes, a pixel joins the basin that touches it by an edge, or becomes a line if several do (or none,
    only lines). An image without any cell is one basin.

    The queue's order depends on the shape of the cells alone, and a pixel's outcome on its neighbours that
    had their turn before. So the queue is worked off a ring of equal distance to the cells at a time: the
    outcome of all its pixels is guessed, and again from the previous guess until nothing changes, which is
    where going one by one ends as well.

    Args:
        interior: bool [H, W].

    Returns:
        int32 [H, W]: basins 1, 2, ... in the order in which a column by column scan meets their cells; 0 on
        lines.
    """
    columns_first = np.pad(interior.T, 1)
    labelled, cells = ndimage.label(columns_first)
    if cells == 0:
        return np.ones(interior.shape, np.int32)
    stride = columns_first.shape[1]
    directions = np.array([[-stride], [-1], [stride], [1]])

    turns: np.ndarray = np.full(columns_first.shape, _NEVER)
    turns[1:-1, 1:-1][~interior.T] = _NOT_YET
    turns = turns.ravel()
    basins = labelled.ravel()  # 0 where not reached as well as on lines: neither has a say

    ring = np.flatnonzero(turns == _NOT_YET)
    ring = ring[basins[ring + directions].any(0)]
    turns[ring] = np.arange(ring.size)
    start = 0
    while ring.size:
        around = ring + directions
        turns_around = turns[around]
        before = turns_around < turns[ring]
        basins[ring] = _only_basin(basins[around] * before)
        unsure = (before & (turns_around >= start)).any(0)  # neighbours in the ring come first
        pixels, around_pixels, before_pixels = ring[unsure], around[:, unsure], before[:, unsure]
        while (basins[pixels] != (outcome := _only_basin(basins[around_pixels] * before_pixels))).any():
            basins[pixels] = outcome
        start += around.size
        found = around.T[turns_around.T == _NOT_YET]  # a pixel found by several is queued by the first
        order = np.arange(start, start + found.size)
        turns[found[::-1]] = order[::-1]
        ring = found[turns[found] == order]
    return labelled[1:-1, 1:-1].T


def _only_basin(seen: np.ndarray) -> np.ndarray:
    """The one basin that each column of `seen` [4, P] names; 0, which names none, if several or none."""
    highest = seen.max(0)
    return np.where(((seen == highest) | (seen == 0)).all(0), highest, 0)
