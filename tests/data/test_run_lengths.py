"""COCO run lengths of many masks at once, against the coding of one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from keras_seg.data import run_lengths
from keras_seg.ops.rle import encode_mask


@st.composite
def masks(draw) -> np.ndarray:
    shape = draw(st.integers(0, 5)), draw(st.integers(1, 12)), draw(st.integers(1, 12))
    return draw(npst.arrays(bool, shape))


def joined(strings: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    return np.frombuffer(b"".join(strings), np.uint8), np.cumsum([0, *map(len, strings)])


@settings(max_examples=100, deadline=None)
@given(masks=masks())
def test_windows_and_areas_are_those_of_the_masks(masks):
    characters, splits = joined([encode_mask(mask)["counts"].encode() for mask in masks])
    areas, wrong = run_lengths.problems(
        characters, splits, np.full(len(masks), masks[0].size if len(masks) else 0)
    )
    assert not wrong and areas.tolist() == [int(mask.sum()) for mask in masks]
    windows = run_lengths.windows(characters, splits, masks.shape[1])
    for k, mask in enumerate(masks):
        y1, x1, y2, x2 = windows.bounds[k]
        bitmap = windows.bitmap(k)
        np.testing.assert_array_equal(bitmap, mask[y1:y2, x1:x2])
        assert bitmap.sum() == mask.sum()
        if mask.any():  # the tightest window
            assert all(edge.any() for edge in (bitmap[0], bitmap[-1], bitmap[:, 0], bitmap[:, -1]))


@settings(max_examples=100, deadline=None)
@given(runs=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=12))
def test_runs_to_characters_and_back(runs):
    text = run_lengths.to_characters(runs)
    characters, splits = joined([text, text])
    found, run_splits = run_lengths.counts(characters, splits)
    assert found.tolist() == runs * 2 and run_splits.tolist() == [0, len(runs), 2 * len(runs)]


def test_a_run_that_no_image_has_is_refused():
    with pytest.raises(ValueError, match="a run below 0 or longer than any image"):
        run_lengths.to_characters([5, -1])


@settings(max_examples=150, deadline=None)
@given(strings=st.lists(st.binary(max_size=14), max_size=4))
def test_any_bytes_are_told_or_are_run_lengths(strings):
    characters, splits = joined(strings)
    pixels = np.full(len(strings), 50)
    areas, wrong = run_lengths.problems(characters, splits, pixels)
    bad = dict(wrong)
    for k, string in enumerate(strings):
        if k not in bad:
            runs, _ = run_lengths.counts(*joined([string]))
            assert runs.sum() == 50 and runs.min() >= 0 and areas[k] == runs[1::2].sum()
