"""The compiled resize: Pillow's pixels, mirrored and padded."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from keras_seg.data.resize import shortest_edge_size
from keras_seg.ops.native import library, resize

SIDES = st.one_of(st.integers(1, 5), st.integers(1, 40), st.integers(1, 300))


@pytest.fixture(autouse=True)
def compiled():
    try:
        library.get()
    except library.Unavailable as error:
        pytest.skip(str(error))


def by_pillow(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR))


@settings(max_examples=150, deadline=None)
@given(
    old=st.tuples(SIDES, SIDES), new=st.tuples(SIDES, SIDES), border=st.tuples(st.integers(0, 70), st.integers(0, 70)),
    mirror=st.booleans(), extreme=st.booleans(), seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_pixels_are_pillows_to_the_bit(old, new, border, mirror, extreme, seed):
    assume(resize.as_pillow(old, new))
    image = np.random.default_rng(seed).integers(0, 256, (*old, 3), np.uint8)
    if extreme:
        image = np.where(image > 127, 255, 0).astype(np.uint8)
    padded = resize.resize(image, new, (new[0] + border[0], new[1] + border[1]), mirror=mirror)
    expected = by_pillow(image, new)
    np.testing.assert_array_equal(padded[: new[0], : new[1]], expected[:, ::-1] if mirror else expected)
    assert not padded[new[0] :].any() and not padded[:, new[1] :].any()


@pytest.mark.parametrize(("short", "longest"), [(64, 200), (80, 100), (20, 1000), (53, 60)])
def test_pixels_are_detectron2s(shared, short, longest):
    golden = np.load(shared / "golden/ops/resize.npz")
    image = golden["image_bgr"]
    size = shortest_edge_size(*image.shape[:2], short, longest)
    assert resize.as_pillow(image.shape[:2], size)
    np.testing.assert_array_equal(resize.resize(image, size, size), golden[f"short{short}_max{longest}"])


def test_from_a_view_and_from_one_row():
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)[::2, 5:-5]
    np.testing.assert_array_equal(resize.resize(image, (33, 71), (33, 71)), by_pillow(image.copy(), (33, 71)))
    np.testing.assert_array_equal(
        resize.resize(image[:1], (1, 7), (1, 7)), by_pillow(image[:1].copy(), (1, 7))
    )


def test_sizes_that_releases_of_pillow_resample_in_another_order_are_left_to_it():
    assert resize.as_pillow((480, 640), (800, 1067)) and resize.as_pillow((100, 100), (50, 50))
    assert not resize.as_pillow((100, 50), (20, 40))
    assert not resize.as_pillow((7, 9), (7, 9))


@pytest.mark.parametrize(
    ("image", "new", "padded", "message"),
    [
        (np.zeros((4, 5), np.uint8), (2, 2), (2, 2), r"must be uint8 \[H, W, 3\], got uint8 \[4, 5\]"),
        (np.zeros((4, 5, 3), np.float32), (2, 2), (2, 2), "got float32"),
        (np.zeros((0, 5, 3), np.uint8), (2, 2), (2, 2), "must be positive"),
        (np.zeros((4, 5, 3), np.uint8), (2, 0), (2, 2), "must be positive"),
        (np.zeros((4, 5, 3), np.uint8), (2, 3), (2, 2), "fit into the padded one"),
    ],
)
def test_bad_input(image, new, padded, message):
    with pytest.raises(ValueError, match=message):
        resize.resize(image, new, padded)
