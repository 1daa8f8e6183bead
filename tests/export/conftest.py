"""What tests of SavedModels share: the one that a module exports, as its fixture `exported`, loaded once."""

from __future__ import annotations

import pytest

from keras_seg.export import load


@pytest.fixture(scope="module")
def loaded(exported):
    return load(exported)


@pytest.fixture(scope="module")
def signatures(loaded):
    return loaded.signatures
