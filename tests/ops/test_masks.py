"""Mask pasting, COCO run lengths and mask targets: by hand, against a slow loop, and against the references' outputs."""

from __future__ import annotations

import json
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco

from keras_seg.ops import masks
from keras_seg.ops.rle import decode_rle, encode_mask

SIDES = st.integers(1, 30)
CORNERS = st.floats(-20, 50, width=32)


def unpack(packed: np.ndarray, height: int, width: int) -> np.ndarray:
    return np.unpackbits(packed, axis=1)[:, : height * width].reshape(-1, height, width).astype(bool)


def random_case(seed: int, n: int = 3, m: int = 5):
    """Probabilities [n, m, m] and boxes of all sorts around a 20 x 30 image, some of them inverted or outside."""
    random = np.random.default_rng(seed)
    boxes = random.uniform(-8, 34, (n, 4)).astype(np.float32)
    boxes[: n - 1, 2:] = boxes[: n - 1, :2] + random.uniform(0, 30, (n - 1, 2)).astype(np.float32)
    return random.uniform(size=(n, m, m)).astype(np.float32), boxes, (20, 30)


def surface(mask: np.ndarray, y: float, x: float) -> float:
    """Bilinear value at (y, x) in cells, cell k's centre at k, zero beyond the outermost ones: the slow definition."""
    total = 0.0
    for i in range(int(np.floor(y)), int(np.floor(y)) + 2):
        for j in range(int(np.floor(x)), int(np.floor(x)) + 2):
            if 0 <= i < len(mask) and 0 <= j < len(mask):
                total += mask[i, j] * (1 - abs(y - i)) * (1 - abs(x - j))
    return total


def paste_slowly(mask: np.ndarray, box: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    x1, y1, x2, y2 = map(float, box)
    pasted, m = np.zeros(size), len(mask)
    if x2 > x1 and y2 > y1:
        for row in range(max(0, int(np.floor(y1)) - 1), min(size[0], int(np.ceil(y2)) + 1)):
            for column in range(max(0, int(np.floor(x1)) - 1), min(size[1], int(np.ceil(x2)) + 1)):
                y = (row + 0.5 - y1) / (y2 - y1) * m - 0.5
                x = (column + 0.5 - x1) / (x2 - x1) * m - 0.5
                pasted[row, column] = surface(mask, y, x)
    return pasted


def test_paste_by_hand():
    """A mask of one cell, 1: over a box of 4 x 2 pixels its surface is a tent, 1 in the middle, 1/2 at the edges."""
    pasted = masks.paste_soft(np.ones((1, 1, 1)), [[1, 1, 5, 3]], (4, 6))
    along_x, along_y = [3 / 8, 5 / 8, 7 / 8, 7 / 8, 5 / 8, 3 / 8], [1 / 4, 3 / 4, 3 / 4, 1 / 4]
    np.testing.assert_allclose(pasted[0], np.outer(along_y, along_x), atol=1e-6)
    inside = masks.paste(np.ones((1, 1, 1)), [[1, 1, 5, 3]], (4, 6))
    np.testing.assert_array_equal(inside[0], np.outer(along_y, along_x) >= 0.5)


def test_paste_keeps_a_value_that_equals_the_threshold():
    """A mask of ones is 1/2 at the edges of its box: a pixel whose centre lies there is inside."""
    for low, high in ((1.5, 8.5), (0.5, 3.5), (2.5, 9.5)):
        box = [[low, low, high, high]]
        inside = masks.paste(np.ones((1, 7, 7)), box, (11, 11))[0]
        expected = np.zeros(11, bool)
        expected[int(low) : int(high) + 1] = True
        # at the corners the surface is 1/4
        np.testing.assert_array_equal(inside[5 if low > 1 else 2], expected)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 9))
def test_paste_matches_the_slow_loop(seed: int, m: int):
    probabilities, boxes, size = random_case(seed, m=m)
    slow = np.stack([paste_slowly(*each, size) for each in zip(probabilities, boxes, strict=True)])
    soft = masks.paste_soft(probabilities, boxes, size)
    np.testing.assert_allclose(soft, slow, atol=1e-4)  # the weights are float32
    for threshold in (0.3, 0.5):
        hard = masks.paste(probabilities, boxes, size, threshold)
        clear = np.abs(slow - threshold) > 1e-4
        np.testing.assert_array_equal(hard[clear], (slow >= threshold)[clear])


@pytest.mark.parametrize("name", ["mask_probs", "mask14_probs"])
def test_paste_is_detectron2s(shared, name):
    """Not a pixel differs: no value lies within 2e-4 of the threshold."""
    golden = np.load(shared / "golden/ops/paste_masks.npz")
    size = tuple(golden["image_size"])
    packed = golden["masks_packed" if name == "mask_probs" else "mask14_packed"]
    pasted = masks.paste(golden[name], golden["boxes"], size)
    np.testing.assert_array_equal(pasted, unpack(packed, *size))


def test_paste_soft_is_detectron2s(shared):
    golden = np.load(shared / "golden/ops/paste_masks.npz")
    soft = masks.paste_soft(golden["mask_probs"], golden["boxes"], golden["image_size"])
    # the reference stores trunc(255 * value), which rounding may move by one
    assert np.abs((255 * soft).astype(int) - golden["soft_u8"]).max() <= 1


def test_paste_is_torchvisions(shared):
    golden = np.load(shared / "golden/ops/paste_masks.npz")
    other = np.load(shared / "golden/ops/torchvision_conventions.npz")
    arguments = golden["mask_probs"], golden["boxes"], tuple(golden["image_size"])
    pasted = masks.paste(*arguments, convention="torchvision")
    np.testing.assert_array_equal(pasted, unpack(other["paste.packed"], *golden["image_size"]))
    soft = masks.paste_soft(*arguments, convention="torchvision")
    np.testing.assert_allclose(soft[:, ::3, ::3], other["paste.soft.sample"], atol=1e-5)


@pytest.mark.parametrize("convention", masks.CONVENTIONS)
@pytest.mark.parametrize(
    "box",
    [
        [-50, -50, -20, -20],  # outside
        [100, 100, 120, 130],
        [9, 9, 3, 3],  # inverted
        [np.nan, 0, 5, 5],
        [0, 0, np.inf, 5],
    ],
)
def test_boxes_without_a_pixel(box, convention):
    assert not masks.paste(np.ones((1, 4, 4)), [box], (20, 20), convention=convention).any()
    assert not masks.paste_soft(np.ones((1, 4, 4)), [box], (20, 20), convention).any()
    (rle,) = masks.encode_rle(np.ones((1, 4, 4)), [box], (20, 20), convention=convention)
    assert not decode_rle(rle).any()


def test_boxes_of_no_extent():
    """Nothing with Detectron2's convention; torchvision's whole-pixel boxes are at least one pixel wide."""
    boxes = [[5, 5, 5, 9], [5, 5, 5, 5]]
    assert not masks.paste(np.ones((2, 4, 4)), boxes, (20, 20)).any()
    wide = masks.paste(np.ones((2, 4, 4)), boxes, (20, 20), convention="torchvision")
    assert [np.flatnonzero(mask.any(axis=0)).tolist() for mask in wide] == [[5], [5]]


@pytest.mark.parametrize("convention", masks.CONVENTIONS)
def test_no_masks_and_no_image(convention):
    nothing = np.zeros((0, 28, 28)), np.zeros((0, 4))
    assert masks.paste(*nothing, (5, 6), convention=convention).shape == (0, 5, 6)
    assert masks.paste_soft(*nothing, (5, 6), convention).shape == (0, 5, 6)
    assert masks.encode_rle(*nothing, (5, 6), convention=convention) == []
    assert masks.paste(np.ones((1, 2, 2)), [[0, 0, 3, 3]], (0, 6), convention=convention).shape == (1, 0, 6)


@pytest.mark.filterwarnings("error")
def test_probabilities_that_are_not_finite_count_as_zero():
    probabilities = np.ones((1, 4, 4))
    probabilities[0, 1] = 0
    expected = masks.paste(probabilities, [[2, 2, 9, 9]], (12, 12))
    for value in (np.nan, np.inf, -np.inf):
        probabilities[0, 1] = value
        np.testing.assert_array_equal(masks.paste(probabilities, [[2, 2, 9, 9]], (12, 12)), expected)


# -- run lengths -----------------------------------------------------------------------------------------------


def test_encode_rle_by_hand():
    """Two columns of three rows, the lowest pixel of the first and the whole second: 2 outside, 4 inside."""
    assert encode_mask(np.array([[0, 1], [0, 1], [1, 1]], bool)) == {"size": [3, 2], "counts": "24"}


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(masks.CONVENTIONS), st.sampled_from([0.1, 0.5, 1.0]))
def test_encode_rle_is_pycocotools_of_the_pasted_mask(seed, convention, threshold):
    probabilities, boxes, size = random_case(seed, n=4, m=1 + seed % 7)
    probabilities[0] = seed % 2  # all inside, or nothing
    boxes[1] = [-100, -100, 100, 100]  # all columns full height
    probabilities[1] = np.round(probabilities[1])
    pasted = masks.paste(probabilities, boxes, size, threshold, convention)
    encoded = masks.encode_rle(probabilities, boxes, size, threshold, convention)
    for rle, mask in zip(encoded, pasted, strict=True):
        reference = coco.encode(np.asfortranarray(mask, np.uint8))
        assert rle == {"size": list(size), "counts": reference["counts"].decode()}


@settings(max_examples=40, deadline=None)
@given(arrays(bool, st.tuples(SIDES, SIDES)))
def test_run_lengths_of_any_mask(mask):
    rle = encode_mask(mask)
    assert rle["counts"] == coco.encode(np.asfortranarray(mask, np.uint8))["counts"].decode()
    for counts in (rle["counts"], rle["counts"].encode()):
        decoded = decode_rle({"size": rle["size"], "counts": counts})
        np.testing.assert_array_equal(decoded, mask)
    assert decoded.flags.c_contiguous


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 2**20), min_size=1, max_size=9))
def test_long_runs(runs):
    """Runs of several characters, and differences of both signs, by an image one column wide."""
    mask = np.repeat(np.arange(len(runs)) % 2 == 1, runs)[:, None]
    assert encode_mask(mask)["counts"] == coco.encode(np.asfortranarray(mask, np.uint8))["counts"].decode()
    np.testing.assert_array_equal(decode_rle(encode_mask(mask)), mask)


def test_uncompressed_run_lengths():
    np.testing.assert_array_equal(
        decode_rle({"size": [2, 2], "counts": [1, 2, 1]}), [[False, True], [True, False]]
    )


@pytest.mark.parametrize("name", ["nuclei/instances_val.json", "pennfudan/instances_val.json"])
def test_run_lengths_of_annotations(shared, name):
    annotations = json.loads((shared / "data" / name).read_text())["annotations"]
    for annotation in annotations[::29]:
        rle = annotation["segmentation"]
        mask = decode_rle(rle)
        np.testing.assert_array_equal(mask, coco.decode(rle))
        assert encode_mask(mask)["counts"] == rle["counts"]


def test_encode_rle_of_a_large_image_needs_little_memory():
    """Masks that fill a 4000 x 3000 image: no intermediate comes near a map of its pixels (12 MB as bytes)."""
    random = np.random.default_rng(0)
    blobs = random.uniform(size=(5, 4, 4)).repeat(7, axis=1).repeat(7, axis=2).astype(np.float32)
    boxes = np.tile(np.float32([0.3, 0.2, 3999.4, 2999.1]), (5, 1))
    tracemalloc.start()
    encoded = masks.encode_rle(blobs, boxes, (3000, 4000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12e6
    (mask,) = masks.paste(blobs[:1], boxes[:1], (3000, 4000))
    assert encoded[0]["counts"] == coco.encode(np.asfortranarray(mask, np.uint8))["counts"].decode()


# -- targets ---------------------------------------------------------------------------------------------------


def polygons_by_instance(golden) -> list[list[np.ndarray]]:
    found: dict[int, list[np.ndarray]] = {}
    splits = golden["polygon_splits"]
    for k, instance in enumerate(golden["polygon_instance"].tolist()):
        found.setdefault(instance, []).append(golden["polygon_values"][splits[k] : splits[k + 1]])
    return [found[k] for k in sorted(found)]


@pytest.mark.parametrize("m", [28, 14])
def test_polygon_targets_are_detectron2s(shared, m):
    golden = np.load(shared / "golden/ops/mask_targets_polygon.npz")
    polygons = polygons_by_instance(golden)
    targets = masks.polygon_targets([polygons[k] for k in golden["box_instance"]], golden["boxes"], m)
    np.testing.assert_array_equal(targets, unpack(golden[f"mask_targets_{m}"], m, m))


@pytest.mark.parametrize("m", [28, 14])
def test_bitmask_targets_are_detectron2s(shared, m):
    golden = np.load(shared / "golden/ops/mask_targets_bitmask.npz")
    bitmasks = unpack(golden["bitmasks_packed"], *golden["image_size"])
    targets = masks.bitmask_targets(bitmasks, golden["boxes"], m, golden["box_instance"])
    np.testing.assert_array_equal(targets, unpack(golden[f"mask_targets_{m}"], m, m))


def test_polygon_targets_by_hand():
    """The left half of a box is the left half of the cells, whatever the box's place and proportions."""
    box = [10, 20, 30, 60]
    half = [10, 20, 20, 20, 20, 60, 10, 60]
    targets = masks.polygon_targets([[half], []], [box, box], 8)
    np.testing.assert_array_equal(targets[0], np.tile(np.arange(8) < 4, (8, 1)))
    assert not targets[1].any()


@pytest.mark.parametrize("convention", masks.CONVENTIONS)
def test_bitmask_targets_match_the_slow_loop(convention):
    """RoIAlign with ceil(extent / m) samples a cell, one bilinear look-up at a time."""
    random = np.random.default_rng(3)
    bitmasks = random.uniform(size=(4, 12, 15)) < 0.5
    boxes = np.float32([[1, 2, 13, 9], [-4, -3, 6.5, 20], [3.2, 3.3, 3.4, 3.6], [9, 1, 18, 30]])
    offset = 0.5 if convention == "detectron2" else 0.0

    def look_up(mask, y, x):
        height, width = mask.shape
        if not (-1 <= y <= height and -1 <= x <= width):
            return 0.0
        return surface_of_border(mask, min(max(y, 0), height - 1), min(max(x, 0), width - 1))

    def surface_of_border(mask, y, x):
        i, j = min(int(y), mask.shape[0] - 2), min(int(x), mask.shape[1] - 2)
        patch = mask[i : i + 2, j : j + 2].astype(float)
        return np.array([i + 1 - y, y - i]) @ patch @ np.array([j + 1 - x, x - j])

    expected = np.zeros((4, 3, 3))
    for target, mask, (x1, y1, x2, y2) in zip(expected, bitmasks, boxes - offset, strict=True):
        width, height = x2 - x1, y2 - y1
        if convention == "torchvision":
            width, height = max(width, 1), max(height, 1)
        columns, rows = int(np.ceil(width / 3)), int(np.ceil(height / 3))
        for i, j in np.ndindex(3, 3):
            target[i, j] = np.mean(
                [
                    look_up(
                        mask,
                        y1 + height / 3 * (i + (p + 0.5) / rows),
                        x1 + width / 3 * (j + (q + 0.5) / columns),
                    )
                    for p, q in np.ndindex(rows, columns)
                ]
            )
    targets = masks.bitmask_targets_soft(bitmasks, boxes, 3, convention=convention)
    np.testing.assert_allclose(targets, expected, atol=1e-5)


def test_targets_of_the_mask_losses(shared):
    """The same masks and boxes with both conventions: exact booleans, torchvision's shares to float32."""
    golden = np.load(shared / "golden/ops/losses.npz")
    other = np.load(shared / "golden/ops/torchvision_conventions.npz")
    bitmasks, boxes = unpack(golden["mask.gt_bitmasks_packed"], *golden["mask.gt_size"]), golden["mask.boxes"]
    np.testing.assert_array_equal(masks.bitmask_targets(bitmasks, boxes, 28), golden["mask.targets"])
    soft = masks.bitmask_targets_soft(bitmasks, boxes, 28, convention="torchvision")
    np.testing.assert_allclose(soft, other["mask_targets_28"], atol=1e-5)


def test_targets_of_boxes_without_extent_or_outside():
    bitmasks = np.ones((4, 10, 10), bool)
    boxes = [[5, 5, 5, 5], [50, 50, 60, 60], [8, 8, 2, 2], [np.nan, 0, 5, 5]]
    assert not masks.bitmask_targets(bitmasks, boxes, 4).any()
    assert masks.bitmask_targets(bitmasks[:0], np.zeros((0, 4)), 4).shape == (0, 4, 4)
    assert masks.polygon_targets([], np.zeros((0, 4)), 4).shape == (0, 4, 4)
    square = [0, 0, 10, 0, 10, 10, 0, 10]
    narrow = masks.polygon_targets([[square]] * 2, [[5, 5, 5, 5], [50, 50, 60, 60]], 4)
    assert narrow[0].all()
    assert not narrow[1].any()


@settings(max_examples=20, deadline=None)
@given(arrays(np.float32, 4, elements=CORNERS), st.integers(1, 9))
def test_targets_are_shares(box, m):
    bitmasks = np.ones((1, 12, 12), bool)
    share = masks.bitmask_targets_soft(bitmasks, box[None], m)
    assert share.shape == (1, m, m)
    assert share.min() >= 0
    assert share.max() <= 1 + 1e-5


# -- messages --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            (np.ones((1, 4)), np.zeros((1, 4)), (5, 5)),
            r"masks: takes probabilities \[N, m, m\], got shape \[1, 4\]",
        ),
        ((np.ones((1, 4, 3)), np.zeros((1, 4)), (5, 5)), r"masks: .* got shape \[1, 4, 3\]"),
        ((np.ones((1, 4, 4)), np.zeros((1, 5)), (5, 5)), r"boxes: takes \[N, 4\].* got shape \[1, 5\]"),
        ((np.ones((1, 4, 4)), np.zeros((2, 4)), (5, 5)), "1 masks for 2 boxes: give one a box"),
        ((np.ones((1, 4, 4)), np.zeros((1, 4)), 5), r"size: takes \(height, width\) in pixels, got 5"),
        ((np.ones((1, 4, 4)), np.zeros((1, 4)), (5, -5)), r"size: .* got \(5, -5\)"),
        ((np.ones((1, 4, 4)), np.zeros((1, 4)), (5, 5), 0), "threshold must be above 0 and at most 1, got 0"),
        (
            (np.ones((1, 4, 4)), np.zeros((1, 4)), (5, 5), 0.5, "coco"),
            "convention must be one of 'detectron2', 'torchvision', got 'coco'",
        ),
    ],
)
@pytest.mark.parametrize("function", [masks.paste, masks.encode_rle, masks.windows])
def test_messages_of_pasting(function, arguments, message):
    with pytest.raises(ValueError, match=message):
        function(*arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], np.zeros((1, 4)), 4), "polygons of 0 objects for 1 boxes"),
        (([[[1, 2, 3, 4]]], np.ones((1, 4)), 4), "at least 3 points, all finite, got 4 values"),
        (([[[1, 2, 3, 4, 5, 6, 7]]], np.ones((1, 4)), 4), "got 7 values"),
        (([[[1, 2, 3, 4, 5, np.nan]]], np.ones((1, 4)), 4), "all finite"),
        (([[]], np.zeros((1, 4)), 0), "cells a side of a target must be at least 1, got 0"),
    ],
)
def test_messages_of_polygon_targets(arguments, message):
    with pytest.raises(ValueError, match=message):
        masks.polygon_targets(*arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            (np.ones((1, 4, 4)), np.zeros((1, 4)), 4),
            r"masks: takes bool \[N, H, W\], got float64 \[1, 4, 4\]",
        ),
        ((np.ones((4, 4), bool), np.zeros((1, 4)), 4), r"got bool \[4, 4\]"),
        ((np.ones((1, 4, 4), bool), np.zeros((2, 4)), 4), "1 masks for 2 boxes: give one a box, or indices"),
    ],
)
def test_messages_of_bitmask_targets(arguments, message):
    with pytest.raises(ValueError, match=message):
        masks.bitmask_targets(*arguments)


@pytest.mark.parametrize(
    ("rle", "message"),
    [
        ({"size": [2, 2]}, 'takes {"size": .* got'),
        ({"size": 4, "counts": "4"}, 'takes {"size": '),
        ("4", "takes {\"size\": .* got '4'"),
        ({"size": [2, 2], "counts": "5"}, "the runs add up to 5 pixels, .* size 2 x 2 has 4"),
        ({"size": [2, 2], "counts": [5, -1]}, "the runs add up to 4 pixels, the smallest is -1"),
        ({"size": [2, 2], "counts": "4 "}, "no COCO run lengths, or cut off: '4 '"),
        ({"size": [2, 2], "counts": "4é"}, "no COCO run lengths"),
        ({"size": [2, 2], "counts": "T"}, "cut off"),
        ({"size": [2, 2], "counts": ""}, "cut off"),
        ({"size": [2, 2], "counts": "o" * 9 + "1"}, "more than 35 bits"),
    ],
)
def test_messages_of_decode_rle(rle, message):
    with pytest.raises(ValueError, match=message):
        decode_rle(rle)


def test_messages_of_encode_mask():
    with pytest.raises(ValueError, match=r"takes one mask, bool \[H, W\], got float64 \[2, 2\]"):
        encode_mask(np.ones((2, 2)))


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=12), SIDES, SIDES)
def test_decode_rle_of_any_text_is_a_mask_or_a_value_error(text, height, width):
    try:
        mask = decode_rle({"size": [height, width], "counts": text})
    except ValueError:
        return
    assert mask.shape == (height, width)
