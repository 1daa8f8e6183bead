"""Mean intersection over union, worked by hand."""

import numpy as np
import pytest

from keras_seg.metrics.iou import mean_iou


def test_by_hand():
    label = [np.array([[0, 0, 1, -1]]), np.array([[1], [1]])]
    found = [np.array([[0, 1, 1, 0]]), np.array([[1], [0]])]
    # class 0: 1 of {0, 0, found 0}: 1/3; class 1: 2 of 4; class 2 nowhere
    assert mean_iou(found, label, 3) == pytest.approx((1 / 3 + 2 / 4) / 2)


@pytest.mark.parametrize(
    ("found", "label", "message"),
    [
        (
            [np.zeros((2, 2), int)],
            [np.zeros((2, 3), int)],
            r"image 0: prediction \(2, 2\) and label \(2, 3\)",
        ),
        ([np.full((2, 2), 5)], [np.zeros((2, 2), int)], "prediction has classes outside 0 … 1"),
        ([np.zeros((2, 2), int)], [np.full((2, 2), 7)], "label has classes outside 0 … 1"),
        ([np.zeros((2, 2), int)], [np.full((2, 2), -1)], "no annotated pixel"),
    ],
)
def test_wrong_input(found, label, message):
    with pytest.raises(ValueError, match=message):
        mean_iou(found, label, 2)
