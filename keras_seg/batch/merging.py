"""Objects found in overlapping tiles, joined to those of the whole image.

An object near a tile's inner border is seen by several tiles, by some of them in part. Two of them agree on it if, in
the strip that both see, its masks (boxes, of a detector without masks) overlap by half of their union. Of what agrees,
the view is taken that no border cuts; where all are cut, their union. A part that another tile shows with all that lies
around it does not count: that tile knows better.

y, x, h, w: pixels of the whole image; a window is (top, left, bottom, right).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

__all__ = ["Found", "Window", "merge", "windows"]

AGREE = 0.5  # least intersection over union in the strip
AT_BORDER = 2.0  # pixels; a box that ends so near to an inner border of its tile is taken to be cut by it

Window = tuple[int, int, int, int]


@dataclass(frozen=True)
class Found:
    """An object that a tile shows.

    box: x1, y1, x2, y2. mask: bool [h, w] with its upper left corner at `corner` (y, x); None of a detector without
    masks. keypoints: float [K, 3] of x, y, score, or None.
    """

    box: tuple[float, float, float, float]
    score: float
    category: int
    corner: tuple[int, int] = (0, 0)
    mask: np.ndarray | None = None
    keypoints: np.ndarray | None = None


def windows(size: tuple[int, int], side: int, overlap: int) -> list[Window]:
    """Tiles of `side` pixels that cover an image (H, W) and overlap by at least `overlap`, row by row.

    All have the same size: the last of a row or column is moved inwards. ValueError: overlap not within 0 to side - 1.
    """
    if not 0 <= overlap < side:
        raise ValueError(
            f"batch: overlap must be 0 or more and less than the tile's side {side}, got {overlap}"
        )
    starts = [[*range(0, max(length - side, 0), side - overlap), max(length - side, 0)] for length in size]
    height, width = size
    return [
        (top, left, min(top + side, height), min(left + side, width))
        for top, left in itertools.product(*starts)
    ]


def merge(tiles: Sequence[tuple[Window, Sequence[Found]]], size: tuple[int, int]) -> list[Found]:
    """The objects of an image (H, W) from those of its tiles, in the order of `windows`, by falling score."""
    places = [(n, k) for n, (_, found) in enumerate(tiles) for k in range(len(found))]
    borders = [_inner_borders(window, size) for window, _ in tiles]
    cut = {(n, k): _touches(tiles[n][1][k].box, borders[n]) for n, k in places}
    neighbours = list(_neighbours([window for window, _ in tiles]))
    dropped: set[tuple[int, int]] = set()
    for a, b in neighbours:
        for this, other in ((a, b), (b, a)):
            # A part whose place the other tile shows with what lies around: it knows better what is there.
            dropped |= {
                (this, k)
                for k, found in enumerate(tiles[this][1])
                if cut[this, k]
                and _inside(found.box, tiles[other][0])
                and not _touches(found.box, borders[other])
            }
    groups = {place: place for place in places}
    for a, b in neighbours:
        kept = [[k for k in range(len(tiles[n][1])) if (n, k) not in dropped] for n in (a, b)]
        for k, j in _agreeing(tiles[a], tiles[b], kept):
            groups[_root(groups, (b, j))] = _root(groups, (a, k))
    members: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for place in places:
        if place not in dropped:
            members.setdefault(_root(groups, place), []).append(place)
    merged = []
    for group in members.values():
        whole = [place for place in group if not cut[place]]
        views = [tiles[n][1][k] for n, k in whole or group]
        best = max(views, key=lambda found: found.score)
        merged.append(best if whole or len(views) == 1 else _union(views, best))
    return sorted(merged, key=lambda found: -found.score)


def _neighbours(tiles: Sequence[Window]) -> Iterator[tuple[int, int]]:
    """Pairs of tiles that overlap."""
    for a, first in enumerate(tiles):
        for b in range(a + 1, len(tiles)):
            if tiles[b][0] >= first[2]:  # and so do all that come after
                break
            if _intersection(first, tiles[b]) is not None:
                yield a, b


def _agreeing(
    a: tuple[Window, Sequence[Found]], b: tuple[Window, Sequence[Found]], kept: Sequence[Sequence[int]]
) -> list[tuple[int, int]]:
    """Pairs (k, j) of objects of two tiles, each in one pair at most, the best overlaps first. kept: which count."""
    (a_window, a_found), (b_window, b_found) = a, b
    if (strip := _intersection(a_window, b_window)) is None:
        return []
    near = [
        [k for k in chosen if _meets(found[k].box, strip)]
        for found, chosen in zip((a_found, b_found), kept, strict=True)
    ]
    overlaps = []
    for k, j in itertools.product(*near):
        if a_found[k].category == b_found[j].category:
            overlap = _overlap(a_found[k], b_found[j], strip)
            if overlap >= AGREE:
                overlaps.append((-overlap, k, j))
    taken_a, taken_b, pairs = set(), set(), []
    for _, k, j in sorted(overlaps):
        if k not in taken_a and j not in taken_b:
            taken_a.add(k)
            taken_b.add(j)
            pairs.append((k, j))
    return pairs


def _overlap(a: Found, b: Found, strip: Window) -> float:
    """Intersection over union of what of two objects lies in the strip."""
    if a.mask is None or b.mask is None:
        first, second = (_clipped(found.box, strip) for found in (a, b))
        common = _area(_clipped(first, (second[1], second[0], second[3], second[2])))
        union = _area(first) + _area(second) - common
        return common / union if union > 0 else 0.0
    masks = (a.mask, a.corner), (b.mask, b.corner)
    extents = [(y, x, y + mask.shape[0], x + mask.shape[1]) for mask, (y, x) in masks]
    both = _intersection(*extents)
    both = both and _intersection(both, strip)
    if both is None:
        return 0.0
    first_part, second_part = (_part(mask, corner, both) for mask, corner in masks)
    common = int((first_part & second_part).sum())
    counts = [int(_part(mask, corner, strip).sum()) for mask, corner in masks]
    return common / (sum(counts) - common) if common else 0.0


def _part(mask: np.ndarray, corner: tuple[int, int], window: Window) -> np.ndarray:
    """What of a mask lies in the window, a view."""
    (y, x), (top, left, bottom, right) = corner, window
    return mask[max(top - y, 0) : max(bottom - y, 0), max(left - x, 0) : max(right - x, 0)]


def _union(views: Sequence[Found], best: Found) -> Found:
    boxes = np.array([found.box for found in views])
    box = (*boxes[:, :2].min(axis=0).tolist(), *boxes[:, 2:].max(axis=0).tolist())
    if best.mask is None:
        return replace(best, box=box)
    masks = [(found.mask, found.corner) for found in views if found.mask is not None]
    top, left = (min(corner[axis] for _, corner in masks) for axis in (0, 1))
    bottom, right = (max(corner[axis] + mask.shape[axis] for mask, corner in masks) for axis in (0, 1))
    mask = np.zeros((bottom - top, right - left), bool)
    for part, (y, x) in masks:
        mask[y - top : y - top + part.shape[0], x - left : x - left + part.shape[1]] |= part
    return replace(best, box=box, corner=(top, left), mask=mask)


def _inner_borders(window: Window, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Where the window ends within the image: top, left, bottom, right; infinite where it does not."""
    top, left, bottom, right = window
    return (
        top if top > 0 else -np.inf,
        left if left > 0 else -np.inf,
        bottom if bottom < size[0] else np.inf,
        right if right < size[1] else np.inf,
    )


def _touches(box: Sequence[float], borders: Sequence[float]) -> bool:
    x1, y1, x2, y2 = box
    top, left, bottom, right = borders
    return y1 < top + AT_BORDER or x1 < left + AT_BORDER or y2 > bottom - AT_BORDER or x2 > right - AT_BORDER


def _inside(box: Sequence[float], window: Window) -> bool:
    x1, y1, x2, y2 = box
    top, left, bottom, right = window
    return top <= y1 and left <= x1 and y2 <= bottom and x2 <= right


def _meets(box: Sequence[float], window: Window) -> bool:
    return _area(_clipped(box, window)) > 0


def _clipped(box: Sequence[float], window: Sequence[float]) -> tuple[float, float, float, float]:
    top, left, bottom, right = window
    return max(box[0], left), max(box[1], top), min(box[2], right), min(box[3], bottom)


def _area(box: Sequence[float]) -> float:
    return max(box[2] - box[0], 0) * max(box[3] - box[1], 0)


def _intersection(a: Window, b: Window) -> Window | None:
    top, left, bottom, right = max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])
    return (top, left, bottom, right) if top < bottom and left < right else None


def _root(groups: dict, place: tuple[int, int]) -> tuple[int, int]:
    while groups[place] != place:
        place = groups[place]
    return place
