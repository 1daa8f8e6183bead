"""Objects of overlapping tiles joined: if each tile is seen as it is, the objects of the image come back."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import ndimage

from keras_seg.batch.merging import Found, merge, windows


def label_image(seed: int) -> np.ndarray:
    """Discs of several sizes, a ring, and a worm longer than any tile."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:230, :310]
    labels = np.zeros(rows.shape, np.int32)
    for k in range(1, 60):
        y, x, radius = random.uniform(0, 230), random.uniform(0, 310), random.uniform(3, 14)
        disc = (rows - y) ** 2 + (columns - x) ** 2 < radius**2
        if not labels[ndimage.binary_dilation(disc, iterations=2)].any():
            labels[disc] = k
    worm = np.abs(rows - 115 - 40 * np.sin(columns / 30)) < 4
    labels[ndimage.binary_dilation(worm, iterations=3)] = 0
    labels[worm] = 99
    return labels


def seen(labels: np.ndarray, window, *, masks: bool = True) -> list[Found]:
    """What a perfect detector finds in a tile. An object in several parts there is one."""
    top, left, bottom, right = window
    tile = labels[top:bottom, left:right]
    found = []
    for k, place in enumerate(ndimage.find_objects(tile), start=1):
        if place is not None:
            rows, columns = place
            y, x = rows.start + top, columns.start + left
            box = (float(x), float(y), float(columns.stop + left), float(rows.stop + top))
            # parts are seen less surely than the whole
            score = float((tile[place] == k).sum() / (labels == k).sum()) * 0.9
            found.append(Found(box, score, 1, (y, x), tile[place] == k if masks else None))
    return found


def drawn(found: list[Found], size) -> np.ndarray:
    labels = np.zeros(size, np.int32)
    for k, one in enumerate(found, start=1):
        y, x = one.corner
        labels[y : y + one.mask.shape[0], x : x + one.mask.shape[1]][one.mask] = k
    return labels


def same_partition(a: np.ndarray, b: np.ndarray) -> bool:
    pairs = np.unique(np.stack([a.ravel(), b.ravel()]), axis=1)
    return all(len(np.unique(row)) == pairs.shape[1] for row in pairs)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("side", "overlap"), [(96, 32), (128, 30), (100, 50)])
def test_objects_of_the_image_come_back(seed, side, overlap):
    labels = label_image(seed)
    tiles = [(window, seen(labels, window)) for window in windows(labels.shape, side, overlap)]
    merged = merge(tiles, labels.shape)
    assert len(merged) == len(np.unique(labels)) - 1
    assert same_partition(drawn(merged, labels.shape), labels)
    assert [one.score for one in merged] == sorted((one.score for one in merged), reverse=True)


def test_boxes_are_joined_without_masks():
    labels = label_image(1)
    tiles = [(window, seen(labels, window, masks=False)) for window in windows(labels.shape, 128, 40)]
    boxes = {one.box for one in merge(tiles, labels.shape)}
    assert boxes == {one.box for one in seen(labels, (0, 0, *labels.shape), masks=False)}


def test_the_view_that_no_border_cuts_is_taken_with_its_score_and_keypoints():
    # two tiles, x 0-100 and 60-160; the object spans 50-90: whole in the first alone, where it is less sure
    whole = Found((50, 10, 90, 30), 0.6, 1, (10, 50), np.ones((20, 40), bool), np.array([[70.0, 20.0, 1.0]]))
    part = Found((60, 10, 90, 30), 0.9, 1, (10, 60), np.ones((20, 30), bool), np.array([[61.0, 20.0, 1.0]]))
    tiles = [((0, 0, 100, 100), [whole]), ((0, 60, 100, 160), [part])]
    assert merge(tiles, (100, 160)) == [whole]


def test_objects_of_two_classes_stay_two():
    one = Found((65, 10, 90, 30), 0.9, 1, (10, 65), np.ones((20, 25), bool))
    other = Found((65, 10, 90, 30), 0.8, 2, (10, 65), np.ones((20, 25), bool))
    assert merge([((0, 0, 100, 100), [one]), ((0, 60, 100, 160), [other])], (100, 160)) == [one, other]


def test_neighbours_that_one_tile_takes_for_one_object_are_not_joined_through_it():
    left = Found((64, 10, 79, 30), 0.9, 1, (10, 64), np.ones((20, 15), bool))
    right = Found((80, 10, 92, 30), 0.8, 1, (10, 80), np.ones((20, 12), bool))
    both = Found((64, 10, 92, 30), 0.7, 1, (10, 64), np.ones((20, 28), bool))
    merged = merge([((0, 0, 100, 100), [left, right]), ((0, 60, 100, 160), [both])], (100, 160))
    assert left in merged
    assert right in merged


def test_windows_cover_the_image_and_overlap():
    for size in [(1000, 700), (300, 256), (100, 900)]:
        covered = np.zeros(size, int)
        found = windows(size, 256, 64)
        for top, left, bottom, right in found:
            covered[top:bottom, left:right] += 1
            assert (bottom - top, right - left) == (min(256, size[0]), min(256, size[1]))
        assert covered.min() == 1
        starts = sorted({top for top, *_ in found})
        assert all(b - a <= 256 - 64 for a, b in itertools.pairwise(starts))


def test_overlap_must_be_less_than_the_side():
    with pytest.raises(
        ValueError, match="overlap must be 0 or more and less than the tile's side 64, got 64"
    ):
        windows((10, 10), 64, 64)
