"""Pictures: what is drawn where, in which colours, at which size."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from keras_seg.visualize import colours, overlay_instances, picture, probability_panel, side_by_side


def test_picture_keeps_what_is_0_to_255():
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    expected = np.repeat(grey[..., None], 3, axis=-1)
    alpha = np.dstack((expected, np.zeros_like(grey)))
    for image in (grey, grey[..., None], expected, alpha, grey.astype(float), Image.fromarray(grey)):
        np.testing.assert_array_equal(np.asarray(picture(image)), expected)


def test_picture_stretches_16_bit_and_takes_files(tmp_path):
    image = np.array([[1000, 1051, 1255]], np.uint16)
    np.testing.assert_array_equal(np.asarray(picture(image))[..., 0], [[0, 51, 255]])
    assert np.asarray(picture(np.full((2, 2), 1000, np.uint16))).max() == 0
    np.testing.assert_array_equal(np.asarray(picture(np.array([[True, False]])))[..., 0], [[255, 0]])
    Image.new("RGBA", (3, 2), (10, 20, 30, 255)).save(tmp_path / "colour.png")
    assert picture(tmp_path / "colour.png").getpixel((0, 0)) == (10, 20, 30)
    assert picture(Image.open(tmp_path / "colour.png")).getpixel((0, 0)) == (10, 20, 30)


def test_probability_is_grey():
    panel = probability_panel(np.array([[0.0, 0.5, 1.0]]))
    np.testing.assert_array_equal(np.asarray(panel), [[0, 128, 255]])


def test_colours_are_stable_and_distinct():
    table = colours(np.arange(1, 22)).astype(int)
    distance = np.abs(table[:, None] - table[None]).sum(-1) + 1000 * np.eye(21, dtype=int)
    assert distance.min() > 30
    # labels that follow each other, as neighbours often do, differ more
    assert min(distance[i, (i + 1) % 21] for i in range(21)) > 80
    np.testing.assert_array_equal(colours(np.array([[3, 24]]))[0, 0], colours(np.array(3)))
    np.testing.assert_array_equal(colours(np.array([3, 24]))[0], colours(np.array([3, 24]))[1])


def test_overlay_colours_objects_alone():
    image = np.full((4, 6), 100, np.uint8)
    labels = np.zeros((4, 6), int)
    labels[1, 1], labels[2, 4] = 1, 9
    drawn = np.asarray(overlay_instances(image, labels, alpha=0.25))
    assert drawn[0, 0].tolist() == [100, 100, 100]
    for k, where in ((1, (1, 1)), (9, (2, 4))):
        np.testing.assert_array_equal(drawn[where], np.rint(75 + 0.25 * colours(np.array(k))))
    np.testing.assert_array_equal(np.asarray(overlay_instances(image, labels, alpha=0))[..., 0], image)


def test_a_line_parts_objects_that_touch():
    labels = np.array([[1, 1, 22, 22], [1, 1, 22, 22], [0, 0, 0, 0], [3, 3, 3, 3]])  # 1 and 22 share a colour
    drawn = np.asarray(overlay_instances(np.full((4, 4), 100, np.uint8), labels))
    black = (drawn == 0).all(axis=-1)
    assert black[:2, 1].all() and black.sum() == 2


@pytest.mark.parametrize("shape", [(5, 7), (512, 512), (3000, 1000), (1, 200)])
def test_panels_are_legible_at_any_size(shape):
    panels = [("one", np.full(shape, 90, np.uint8)), ("two", np.full(shape, 200, np.uint8))]
    sheet = np.asarray(side_by_side(panels))[..., 0]
    side = min(max(320, max(shape)), 1024)
    height, width = (max(1, round(length * side / max(shape))) for length in shape)
    for value in (90, 200):
        # the title is anti-aliased: look at rows that are mostly panel
        rows, columns = np.nonzero(sheet == value)
        assert np.unique(rows, return_counts=True)[1].max() >= width
        assert np.unique(columns, return_counts=True)[1].max() >= height
    assert (sheet[: min(30, sheet.shape[0])] < 60).any()  # black titles above


def test_long_titles_do_not_run_into_each_other():
    image = np.full((30, 30), 128, np.uint8)
    long = "a title that is far too long for a panel of three hundred and twenty pixels"
    wide = side_by_side([(long, image), ("next", image)])
    assert wide.width > side_by_side([("short", image), ("next", image)]).width
    gap = np.asarray(wide)[:, wide.width - 320 - 2 * 8 : wide.width - 320 - 8]
    assert (gap == 255).all()


BAD = {
    "channels": (
        lambda: picture(np.zeros((4, 4, 2))),
        r"one image, \[H, W\], \[H, W, 3\] or \[H, W, 4\], got shape \[4, 4, 2\]",
    ),
    "float": (lambda: picture(np.full((4, 4), 300.0)), "must lie within 0-255"),
    "nan": (lambda: picture(np.full((4, 4), np.nan)), "not be NaN"),
    "classes": (
        lambda: probability_panel(np.zeros((4, 4, 2))),
        r"one class, \[H, W\], got shape \[4, 4, 2\]",
    ),
    "probability": (lambda: probability_panel(np.full((4, 4), 255)), "must lie within 0-1"),
    "size": (
        lambda: overlay_instances(np.zeros((4, 4), np.uint8), np.zeros((4, 5), int)),
        r"labels must be integers \[4, 4\] as the image, got int64 \[4, 5\]",
    ),
    "type": (lambda: overlay_instances(np.zeros((4, 4), np.uint8), np.zeros((4, 4))), "must be integers"),
    "alpha": (
        lambda: overlay_instances(np.eye(4) * 9, np.eye(4, dtype=int), alpha=2),
        "alpha must be within 0-1, got 2",
    ),
    "none": (lambda: side_by_side([]), "needs at least one"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    call, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        call()
