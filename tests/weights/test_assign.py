"""Arrays into a model's parts: all, or none."""

from __future__ import annotations

import numpy as np
import pytest

from keras_seg.backbones import resnet
from keras_seg.heads import rpn_head
from keras_seg.weights.assign import assign, variables


def test_all_variables_are_set():
    parts = {"rpn": rpn_head(9, 2)}
    arrays = {
        name: np.full(v.shape, place, np.float32) for place, (name, v) in enumerate(variables(parts).items())
    }
    assert sorted(arrays) == [
        "rpn/anchor_deltas/bias", "rpn/anchor_deltas/kernel", "rpn/conv/bias", "rpn/conv/kernel",
        "rpn/objectness_logits/bias", "rpn/objectness_logits/kernel",
    ]  # fmt: skip
    assert sorted(assign(parts, arrays, "model.pkl").kept) == sorted(arrays)
    for name, variable in variables(parts).items():
        np.testing.assert_array_equal(variable, arrays[name])


def test_weights_of_another_network_change_nothing():
    parts = {"backbone": resnet("resnet18", width=4), "rpn": rpn_head(9, 2)}
    before = [np.array(v) for v in parts["rpn"].weights]
    good = {name: np.ones(v.shape, np.float32) for name, v in variables(parts).items()}
    wrong = {"rpn/conv/kernel": good["rpn/conv/kernel"], "fpn/fpn_lateral2/bias": np.zeros(4)}
    with pytest.raises(
        ValueError,
        match=r"model.pkl: weights of another network than this one: missing backbone/.*and \d+ more",
    ):
        assign(parts, wrong, "model.pkl")
    with pytest.raises(
        ValueError, match=r"rpn/conv/kernel is \[1, 1, 9, 9\] in the file and \[3, 3, 9, 9\] in the model"
    ):
        assign(parts, {**good, "rpn/conv/kernel": np.zeros((1, 1, 9, 9))}, "model.pkl")
    assert all(np.array_equal(a, b) for a, b in zip(before, parts["rpn"].weights, strict=True))
