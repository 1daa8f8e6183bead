"""Anchors, on Detectron2's and torchvision's numbers."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from keras_seg.ops.anchors import cell_anchors, grid_anchors


@pytest.mark.parametrize("case", ["fpn", "c4", "fpn_offset_half"])
def test_anchors_are_detectron2s(shared, case):
    golden = np.load(shared / "golden/ops/anchors.npz")
    for level, sizes in enumerate(golden[f"{case}.sizes"]):
        cell = cell_anchors(sizes.tolist(), golden[f"{case}.ratios"][0].tolist())
        np.testing.assert_allclose(cell, golden[f"{case}.level{level}.cell_anchors"], atol=1e-4)
        stride, offset = int(golden[f"{case}.strides"][level]), float(golden[f"{case}.offset"])
        found = tf.function(grid_anchors)(cell, *golden[f"{case}.grids"][level].tolist(), stride, offset)
        np.testing.assert_allclose(found, golden[f"{case}.level{level}.anchors"], atol=1e-3)


def test_anchors_are_torchvisions(shared):
    golden = np.load(shared / "golden/ops/anchors.npz")
    every = []
    for level, size in enumerate((32, 64, 128, 256, 512)):
        cell = cell_anchors([size], [0.5, 1, 2], rounded=True)
        np.testing.assert_array_equal(cell, golden[f"torchvision.level{level}.cell_anchors"])
        # torchvision's steps are the image's sides divided by the map's, rounded down: 7 across at the second level
        grid = golden["torchvision.grids"][level].tolist()
        steps = tuple(int(side) // n for side, n in zip(golden["torchvision.image_size"], grid, strict=True))
        every.append(grid_anchors(cell, *grid, steps))
    np.testing.assert_array_equal(np.concatenate(every), golden["torchvision.anchors_all_levels"])


def test_under_xla():
    cell = cell_anchors([32, 64], [0.5, 1])
    compiled = tf.function(lambda: grid_anchors(cell, 3, 4, 8, 0.5), jit_compile=True)
    np.testing.assert_array_equal(compiled(), grid_anchors(cell, 3, 4, 8, 0.5))


@pytest.mark.parametrize("sizes, ratios", [([0], [1]), ([32], [-1, 1])])
def test_sizes_and_ratios_must_be_positive(sizes, ratios):
    with pytest.raises(ValueError, match="cell_anchors: sizes and ratios must be positive"):
        cell_anchors(sizes, ratios)


def test_an_empty_map_has_no_anchors():
    assert grid_anchors(cell_anchors([32], [1]), 0, 5, 16).shape == (0, 4)
