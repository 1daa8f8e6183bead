"""`export.saved_model`: the same numbers, at any legal size, and never a half-written folder."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from keras_seg.export import saved_model
from keras_seg.models.unet import unet


@pytest.fixture(scope="module")
def model():
    return unet(2, 3, depth=2, base_channels=2, padding="same", normalization="batch")


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    return saved_model(model, tmp_path_factory.mktemp("serving") / "unet" / "1")


def serve(path):
    return tf.saved_model.load(str(path)).signatures["serving_default"]


@pytest.mark.parametrize("shape", [(1, 8, 12), (3, 64, 32)])
def test_same_numbers_at_any_size(model, exported, shape):
    image = np.random.default_rng(1).uniform(0, 255, (*shape, 2)).astype(np.float32)
    output = serve(exported)(image=tf.constant(image))
    assert list(output) == ["probabilities"]
    np.testing.assert_allclose(output["probabilities"], model(image), atol=1e-5)


def test_a_valid_network_too(tmp_path):
    model = unet(depth=1, base_channels=2)
    image = np.random.default_rng(1).uniform(0, 255, (1, 40, 60, 1)).astype(np.float32)
    output = serve(saved_model(model, tmp_path / "1"))(image=tf.constant(image))["probabilities"]
    assert output.shape == (1, model.output_size(40), model.output_size(60), 2)
    np.testing.assert_allclose(output, model(image), atol=1e-5)


def test_signature(exported):
    signature = serve(exported)
    (spec,) = signature.structured_input_signature[1].values()
    assert (spec.name, spec.dtype, spec.shape.as_list()) == ("image", tf.float32, [None, None, None, 2])
    assert signature.structured_outputs["probabilities"].dtype == tf.float32


def test_an_illegal_size_is_refused_by_the_exported_graph(exported):
    with pytest.raises(tf.errors.InvalidArgumentError, match="illegal tile"):
        serve(exported)(image=tf.zeros([1, 10, 12, 2]))


def test_the_folder_is_all_that_is_left_and_readable(exported):
    assert [entry.name for entry in exported.parent.iterdir()] == ["1"]
    reference = exported.parent / "reference"
    reference.mkdir()
    assert exported.stat().st_mode == reference.stat().st_mode  # not that of a private temporary folder
    reference.rmdir()


def test_different_numbers_are_refused(model, tmp_path, monkeypatch):
    def other(path):
        broken = unet(2, 3, depth=2, base_channels=2, padding="same")
        result = lambda image: {"probabilities": broken(image)}
        return type("Loaded", (), {"signatures": {"serving_default": result}})

    monkeypatch.setattr("tensorflow.saved_model.load", other)
    with pytest.raises(
        RuntimeError, match="reloaded model differs from the Keras model by .* nothing was written"
    ):
        saved_model(model, tmp_path / "1")
    assert not list(tmp_path.iterdir())


def test_weights_that_are_not_numbers_are_refused(tmp_path):
    model = unet(depth=1, base_channels=2, padding="same")
    model.get_layer("logits").bias.assign([np.nan, 0])
    with pytest.raises(RuntimeError, match="by nan"):
        saved_model(model, tmp_path / "1")
    assert not list(tmp_path.iterdir())


def test_overwriting(model, tmp_path):
    path = tmp_path / "1"
    path.mkdir()
    saved_model(model, path)  # empty folders are taken
    with pytest.raises(FileExistsError, match="is not empty; give another path, or overwrite=True"):
        saved_model(model, path)
    other = unet(2, 3, depth=1, base_channels=2, padding="same")
    saved_model(other, path, overwrite=True)
    image = np.random.default_rng(1).uniform(0, 255, (1, 8, 8, 2)).astype(np.float32)
    np.testing.assert_allclose(
        serve(path)(image=tf.constant(image))["probabilities"], other(image), atol=1e-5
    )
    assert [entry.name for entry in tmp_path.iterdir()] == ["1"]


def test_other_folders_and_files_are_never_overwritten(model, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="holds something else than a SavedModel"):
        saved_model(model, tmp_path, overwrite=True)
    with pytest.raises(FileExistsError, match="thesis.txt: is a file"):
        saved_model(model, tmp_path / "thesis.txt", overwrite=True)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_other_models_are_refused(tmp_path):
    with pytest.raises(TypeError, match="takes a U-Net of keras_seg.models.unet, got str"):
        saved_model("unet", tmp_path / "1")
