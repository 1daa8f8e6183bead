"""Weights files: whole or not at all, and never into the wrong network."""

from __future__ import annotations

import os
import resource

import h5py
import keras
import numpy as np
import pytest

from keras_seg.models import unet
from keras_seg.weights.files import check_sha256, load_weights, save_weights


def small(**changes):
    return unet(**{"depth": 1, "base_channels": 2, "normalization": "batch", **changes})


@pytest.fixture
def model():
    return small()


@pytest.fixture
def path(tmp_path, model):
    save_weights(model, tmp_path / "model.weights.h5")
    return tmp_path / "model.weights.h5"


def same(first, second) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(first.get_weights(), second.get_weights(), strict=True))


def test_round_trip(model, path):
    other = small()
    assert not same(other, model)
    report = load_weights(other, path)
    assert same(other, model)
    assert report.fresh == () and len(report.kept) == len(model.weights)
    assert "logits/kernel" in report.kept
    assert str(report) == f"{len(model.weights)} of {len(model.weights)} variables kept from the file"


def test_half_precision_rounds_the_kernels_only_and_halves_the_file(tmp_path):
    model = small(base_channels=16)
    save_weights(model, tmp_path / "whole.weights.h5")
    save_weights(model, tmp_path / "half.weights.h5", half=True)
    whole, half = ((tmp_path / f"{name}.weights.h5").stat().st_size for name in ("whole", "half"))
    assert half < 0.75 * whole
    other = small(base_channels=16)
    load_weights(other, tmp_path / "half.weights.h5")
    for ours, theirs in zip(other.weights, model.weights, strict=True):
        expected = np.asarray(theirs)
        rounded = expected.astype(np.float16).astype(np.float32) if expected.ndim > 1 else expected
        np.testing.assert_array_equal(np.asarray(ours), rounded)
    assert not list(tmp_path.glob(".*"))


def test_keras_reads_our_files_and_we_read_keras_files(tmp_path, model, path):
    other = small()
    other.load_weights(path)
    assert same(other, model)
    model.save_weights(tmp_path / "keras.weights.h5")
    other = small()
    load_weights(other, tmp_path / "keras.weights.h5")
    assert same(other, model)


def test_the_optimizers_state_stays_out(tmp_path, model, path):
    model.compile(optimizer=keras.optimizers.Adam())
    model.optimizer.build(model.trainable_variables)
    save_weights(model, tmp_path / "compiled.weights.h5")
    assert (tmp_path / "compiled.weights.h5").stat().st_size == path.stat().st_size


def test_layers_that_may_be_fresh_keep_their_own_values(model, path):
    other = small(classes=3)
    kernel = other.get_layer("logits").kernel.numpy()
    report = load_weights(other, path, may_be_fresh=["logits"])
    assert report.fresh == ("logits/kernel", "logits/bias")
    assert str(report).endswith("variables kept from the file; new: logits/kernel, logits/bias")
    np.testing.assert_array_equal(other.get_layer("logits").kernel, kernel)
    np.testing.assert_array_equal(other.get_layer("enc1_conv1").kernel, model.get_layer("enc1_conv1").kernel)


def test_layers_that_may_be_fresh_are_read_where_they_fit(model, path):
    other = small()
    assert load_weights(other, path, may_be_fresh=["logits"]).fresh == ()
    assert same(other, model)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"classes": 3}, r"logits/kernel is \[1, 1, 2, 2\] in the file and \[1, 1, 2, 3\] in the model"),
        (
            {"input_channels": 3},
            r"enc1_conv1/kernel is \[3, 3, 1, 2\] in the file and \[3, 3, 3, 2\] in the model",
        ),
        ({"normalization": None}, r"missing bottom_conv1/bias \[4\]; .* and \d+ more"),
        ({"depth": 2}, r"missing dec2_conv1/kernel \[3, 3, 8, 4\]"),
    ],
)
def test_weights_of_another_network_are_refused_and_change_nothing(path, changes, message):
    other = small(**changes)
    before = other.get_weights()
    with pytest.raises(
        ValueError, match=rf"model\.weights\.h5: weights of another network than 'unet': .*{message}"
    ):
        load_weights(other, path)
    assert all(np.array_equal(a, b) for a, b in zip(other.get_weights(), before, strict=True))


def test_left_over_variables_are_named(tmp_path):
    save_weights(small(depth=2), tmp_path / "deep.weights.h5")
    with pytest.raises(ValueError, match=r"unknown dec2_conv1/0 \[3, 3, 8, 4\]"):
        load_weights(
            small(base_channels=2),
            tmp_path / "deep.weights.h5",
            may_be_fresh=[v.name for v in small().layers],
        )


def test_a_missing_file(tmp_path, model):
    with pytest.raises(FileNotFoundError, match="none.weights.h5: no such weights file"):
        load_weights(model, tmp_path / "none.weights.h5")


@pytest.mark.parametrize("content", [b"", b"not HDF5 at all", None])
def test_a_corrupt_file(model, path, content):
    path.write_bytes(path.read_bytes()[:3000] if content is None else content)
    with pytest.raises(
        ValueError, match=r"model\.weights\.h5: corrupt, truncated, or no weights file of Keras 3"
    ):
        load_weights(model, path)


@pytest.mark.parametrize(
    "entries", [{"weights": np.zeros(3)}, {"layers/conv2d": np.zeros(3)}, {"layers/a/vars/0": 1.0}]
)
def test_a_foreign_hdf5_file(tmp_path, model, entries):
    with h5py.File(tmp_path / "foreign.weights.h5", "w") as file:
        for name, value in entries.items():
            file[name] = value
    with pytest.raises(ValueError, match=r"foreign\.weights\.h5: .*Keras 3"):
        load_weights(model, tmp_path / "foreign.weights.h5")


def test_another_ending_is_refused(tmp_path, model):
    with pytest.raises(ValueError, match=r"model\.h5: a weights file's name must end in \.weights\.h5"):
        save_weights(model, tmp_path / "model.h5")


@pytest.mark.parametrize("share", [0.1, 0.99])
def test_a_full_disk_leaves_the_previous_file_intact(model, path, share):
    before = path.read_bytes()
    model.get_layer("logits").bias.assign([1.0, 2.0])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(share * len(before)), hard))  # stands in for the full disk
    try:
        with pytest.raises(
            OSError, match=r"could not write .*model\.weights\.h5 .* the file that was there is untouched"
        ):
            save_weights(model, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before and os.listdir(path.parent) == [path.name]


def test_a_write_cut_off_leaves_the_previous_file_intact(model, path, monkeypatch):
    before = path.read_bytes()

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)  # the last moment at which the old file is still there
    with pytest.raises(KeyboardInterrupt):
        save_weights(model, path)
    assert path.read_bytes() == before and os.listdir(path.parent) == [path.name]


def test_sha256(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, appendix B.1
    check_sha256(tmp_path / "abc", known)
    with pytest.raises(
        ValueError, match=f"abc: damaged or exchanged: its sha256 is {known}, the recipe says 0000"
    ):
        check_sha256(tmp_path / "abc", "0" * 64)
    with pytest.raises(FileNotFoundError, match="none: no such weights file"):
        check_sha256(tmp_path / "none", known)
