"""Warping of a label towards a proposal without change of topology, and what remains (Jain et al. 2010).

Interiors are 4-connected and membranes 8-connected; beyond the image's border everything is membrane.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from scipy import ndimage

# Classes of the pixels that still differ after warping: what the proposal does to the label's cells there.
MERGE, SPLIT, HOLE_ADDITION, OBJECT_DELETION, OBJECT_ADDITION, HOLE_DELETION = 1, 2, 4, 8, 16, 32

_WINDOW_RADIUS = 20
_OUTSIDE = -1

# The neighbours of a pixel as (row, column), clockwise from the north; bit k of a ring code says that
# neighbour k is interior.
RING = ((-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1))


def _crossings(code: int) -> int:
    """Yokoi's crossing number of a ring code: how many pieces of interior the pixel holds together."""
    ring = [code >> k & 1 for k in (*range(8), 0)]
    return sum(ring[k] and not (ring[k + 1] and ring[k + 2]) for k in (0, 2, 4, 6))


def _runs(code: int) -> int:
    """Pieces of interior in the ring alone, 4-connected."""
    ring = [code >> k & 1 for k in (*range(8), 0)]
    return sum(here and not following for here, following in pairwise(ring))


_CROSSINGS = np.array([_crossings(code) for code in range(256)])
_RUNS = np.array([_runs(code) for code in range(256)])

# By ring code, whether flipping the pixel changes no topology: exactly one 4-connected piece of interior in
# the ring touches the pixel by an edge, and the ring holds exactly one 8-connected piece of membrane.
SIMPLE_POINTS = tuple(bool(crossings == 1) for crossings in _CROSSINGS)


def warp(label: np.ndarray, proposal: np.ndarray, distance: np.ndarray) -> np.ndarray:
    """Flip simple points of `label` that differ from `proposal` until none is left that does.

    Sweeps visit the differing pixels by descending distance, equal ones column by column; a pixel that is
    simple when it is visited is flipped at once. Sweeps go on until one flips nothing.

    Args:
        label, proposal: bool [H, W], True = interior.
        distance: float [H, W], how far the proposal's probability is from the threshold; compared as float32.

    Returns:
        bool [H, W]: the warped label, homotopic to `label`.
    """
    # Columns first, so that a stable sort of flat positions breaks ties as the definition does. A list of
    # ring codes is kept up to date: few pixels flip, so this beats anything that works on whole arrays.
    columns_first = np.pad(label.T, 1)
    stride = columns_first.shape[1]
    codes = _ring_codes(columns_first).ravel().tolist()
    differing = np.flatnonzero(np.pad((label != proposal).T, 1))
    distances = np.pad(distance.T.astype(np.float32), 1).ravel()[differing]
    pending = differing[np.argsort(-distances, kind="stable")].tolist()
    n, ne, e, se, s, sw, w, nw = (row * stride + column for row, column in RING)
    while True:
        kept = []
        for i in pending:
            if SIMPLE_POINTS[codes[i]]:  # its neighbours see it at the opposite place in their ring
                codes[i + n] ^= 16
                codes[i + ne] ^= 32
                codes[i + e] ^= 64
                codes[i + se] ^= 128
                codes[i + s] ^= 1
                codes[i + sw] ^= 2
                codes[i + w] ^= 4
                codes[i + nw] ^= 8
            else:
                kept.append(i)
        if len(kept) == len(pending):
            break
        pending = kept
    left = np.zeros(columns_first.size, bool)
    left[pending] = True
    return proposal ^ left.reshape(columns_first.shape)[1:-1, 1:-1].T


def mismatch_classes(warped: np.ndarray, proposal: np.ndarray) -> np.ndarray:
    """What kind of error each pixel is that differs after warping, each judged alone.

    Decided by the cells (4-connected components of `warped`, 0 = membrane) among the 8 neighbours inside the
    image: for a membrane pixel none, one, or several cells; for an interior pixel the same, except that one
    whose neighbours are of one cell and membrane may still be all that holds the cell together: it is a split
    if, without it, they are of several cells within the 41 x 41 pixels around it.

    Args:
        warped, proposal: bool [H, W].

    Returns:
        uint8 [H, W]: 0 where they agree, else one of MERGE, SPLIT, HOLE_ADDITION, OBJECT_DELETION,
        OBJECT_ADDITION, HOLE_DELETION.
    """
    rows, columns = np.nonzero(warped != proposal)
    around = _ring_values(np.pad(ndimage.label(warped)[0], 1, constant_values=_OUTSIDE), rows, columns)
    around.sort(0)
    ids = 1 + (around[1:] != around[:-1]).sum(0) - (around[0] == _OUTSIDE)
    interior = warped[rows, columns]
    alone, enclosed, torn = around[-1] <= 0, (ids == 1) & (around[-1] > 0), ids >= 3
    classes = np.where(
        interior,
        np.select([alone, enclosed, torn], [OBJECT_DELETION, HOLE_ADDITION, SPLIT], HOLE_DELETION),
        np.select([alone, enclosed, torn], [OBJECT_ADDITION, HOLE_DELETION, MERGE], HOLE_ADDITION),
    )
    unsure = np.flatnonzero(interior & ~(alone | enclosed | torn))
    classes[unsure[_holds_together(warped, rows[unsure], columns[unsure])]] = SPLIT
    result = np.zeros(warped.shape, np.uint8)
    result[rows, columns] = classes
    return result


def _holds_together(warped: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Which of these interior pixels, once membrane, leave neighbours of several cells in the window around.

    Not those whose interior neighbours touch each other around the pixel. Surely those at which pieces of
    interior meet between pieces of membrane that are connected elsewhere: these close a curve through the
    pixel, which separates the interior on its two sides. The window, which is slow, is for the rest.
    """
    codes = _ring_codes(warped)[rows, columns]
    padded = np.pad(warped, 1)
    membranes = _ring_values(ndimage.label(~padded, np.ones((3, 3)))[0], rows, columns)
    one_membrane = ((membranes == 0) | (membranes == membranes.max(0))).all(0)
    holds = (_CROSSINGS[codes] >= 2) & one_membrane
    r = _WINDOW_RADIUS
    padded = np.pad(warped, r)
    for k in np.flatnonzero(~holds & (_RUNS[codes] >= 2)):
        window = padded[rows[k] : rows[k] + 2 * r + 1, columns[k] : columns[k] + 2 * r + 1].copy()
        window[r, r] = False
        holds[k] = np.unique(ndimage.label(window)[0][r - 1 : r + 2, r - 1 : r + 2]).size > 2
    return holds


def _ring_values(padded: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Values [8, P] around pixels of an image that was padded by one on all sides."""
    return np.array([padded[1 + rows + row, 1 + columns + column] for row, column in RING])


def _ring_codes(interior: np.ndarray) -> np.ndarray:
    """The ring code of each pixel of `interior` [H, W], uint8; beyond the border lies membrane."""
    height, width = interior.shape
    padded = np.pad(interior, 1).astype(np.uint8)
    codes = np.zeros((height, width), np.uint8)
    for k, (row, column) in enumerate(RING):
        codes |= padded[1 + row : 1 + row + height, 1 + column : 1 + column + width] << k
    return codes
