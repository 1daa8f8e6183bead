"""Outlines of masks, and regions of interest as ImageJ reads them."""

from __future__ import annotations

import builtins
import zipfile

import numpy as np
import pytest
import roifile
from scipy import ndimage

from keras_seg.rois import Region, outlines, write_rois


def area(line: np.ndarray) -> float:
    """By the shoelace formula; positive clockwise, since y points down."""
    x, y = line.T
    return (x * np.roll(y, -1) - y * np.roll(x, -1)).sum() / 2


def test_the_outline_of_a_square_by_hand():
    mask = np.zeros((4, 5), bool)
    mask[1:3, 1:4] = True
    (line,) = outlines(mask)
    assert line.tolist() == [[1, 1], [4, 1], [4, 3], [1, 3]]


@pytest.mark.parametrize("seed", range(40))
def test_lines_enclose_what_is_inside(seed):
    random = np.random.default_rng(seed)
    mask = random.random(random.integers(1, 14, 2)) < random.random()
    areas = [area(line) for line in outlines(mask)]
    assert sum(areas) == mask.sum()
    objects = ndimage.label(mask)[1]
    outside = ndimage.label(np.pad(~mask, 1, constant_values=True), structure=np.ones((3, 3)))[1]
    assert sum(a > 0 for a in areas) == objects and sum(a < 0 for a in areas) == outside - 1
    for line in outlines(mask):  # corners alone: each turns by a right angle
        steps = np.diff(np.concatenate([line, line[:1]]), axis=0)
        assert ((steps != 0).sum(axis=1) == 1).all()
        assert ((steps[:, 0] != 0) != (np.roll(steps, 1, axis=0)[:, 0] != 0)).all()


def test_outlines_takes_one_mask():
    with pytest.raises(ValueError, match=r"takes one mask, bool \[H, W\], got int64 \[2, 2\]"):
        outlines(np.zeros((2, 2), np.int64))


def test_a_zip_that_imagej_opens(tmp_path):
    ring = np.ones((5, 5), bool)
    ring[2, 2] = False
    square = np.ones((3, 2), bool)
    first = [Region(1, "nucleus", 0.75, slice(10, 13), slice(20, 22), square)]
    second = [Region(1, "cell/a", 0.5, slice(0, 5), slice(0, 5), ring)]
    write_rois(tmp_path / "stack.zip", [first, second])
    with zipfile.ZipFile(tmp_path / "stack.zip") as file:
        assert file.namelist() == ["0001-0001-nucleus.roi", "0002-0001-cell_a.roi"]
    plain, composite = roifile.roiread(tmp_path / "stack.zip")
    assert (plain.name, plain.position, plain.props) == ("0001-0001-nucleus", 1, "score: 0.7500\n")
    assert plain.roitype == roifile.ROI_TYPE.TRACED
    assert (plain.top, plain.left, plain.bottom, plain.right) == (10, 20, 13, 22)
    assert plain.coordinates().tolist() == [[20, 10], [22, 10], [22, 13], [20, 13]]
    assert composite.position == 2 and composite.composite
    lines = [
        np.array(line)[:-1] if (line[0] == line[-1]).all() else line
        for line in composite.coordinates(multi=True)
    ]
    assert sorted(area(line) for line in lines) == [-1, 25]

    write_rois(tmp_path / "image.zip", [first])
    (alone,) = roifile.roiread(tmp_path / "image.zip")
    assert (alone.name, alone.position) == ("0001-nucleus", 0)
    write_rois(tmp_path / "none.zip", [[]])
    assert zipfile.ZipFile(tmp_path / "none.zip").namelist() == []


def test_without_the_package(tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *rest, **more):
        if name == "roifile":
            raise ModuleNotFoundError("No module named 'roifile'")
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'keras_seg\[imagej\]'"):
        write_rois(tmp_path / "a.zip", [])
