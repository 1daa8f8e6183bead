"""From a name to a model with weights."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

import numpy as np
import pytest
import yaml

from keras_seg import zoo
from keras_seg.weights.files import save_weights

SMALL = {
    "schema": 1,
    "name": "small",
    "summary": "A small one.",
    "model": {"builder": "unet", "class_names": ["membrane", "cell"], "depth": 1, "base_channels": 2},
    "data": {"reader": "isbi", "train_slices": 0, "tile": 188},
    "training": {"steps": 10, "optimizer": {"name": "sgd", "learning_rate": 0.01}},
}


@pytest.fixture
def recipe(tmp_path) -> Path:
    """A small recipe whose weights lie beside it."""
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(SMALL))
    save_weights(zoo.load(path, weights=None), tmp_path / "small.weights.h5")
    digest = hashlib.sha256((tmp_path / "small.weights.h5").read_bytes()).hexdigest()
    path.write_text(yaml.safe_dump({**SMALL, "weights": {"file": "small.weights.h5", "sha256": digest}}))
    return path


def kernel(model, layer: str) -> np.ndarray:
    return model.get_layer(layer).kernel.numpy()


def test_the_zoo_has_the_recipes_of_the_paper():
    assert {"unet_em_paper", "unet_isbi2012", "unet_phc_u373", "unet_dic_hela"} <= set(zoo.list())
    assert list(zoo.list()) == sorted(zoo.list())


def test_every_shipped_weights_file_is_the_one_that_its_recipe_names():
    from keras_seg.weights.files import check_sha256

    recipes = [zoo.show(name) for name in zoo.list()]
    for recipe in recipes:
        if recipe.weights:
            check_sha256(recipe.weights_path, recipe.weights.sha256)
    shipped = {path.name for path in zoo.show("unet_isbi2012").path.parent.rglob("*.weights.h5")}
    assert shipped == {recipe.weights.file for recipe in recipes if recipe.weights}


def test_show_gives_a_recipe_that_prints_as_a_card(recipe):
    assert str(zoo.show("unet_em_paper")).startswith("unet_em_paper\nU-Net as published")
    assert zoo.show(recipe) == zoo.show(str(recipe))


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(
        FileNotFoundError, match="no model 'unet_isbi' in the zoo; did you mean \"unet_isbi2012\""
    ):
        zoo.show("unet_isbi")
    with pytest.raises(
        FileNotFoundError,
        match=r"no model 'qqq' in the zoo \(models: fasterrcnn_r101_c4, .*unet_dic_hela, unet_em_paper",
    ):
        zoo.load("qqq")
    with pytest.raises(FileNotFoundError, match=r"mine\.yaml: no such recipe file"):
        zoo.load("mine.yaml")


def test_pretrained_weights_are_the_recipes(recipe):
    first, second = zoo.load(recipe), zoo.load(zoo.show(recipe))
    np.testing.assert_array_equal(kernel(first, "logits"), kernel(second, "logits"))
    assert first.name == "small" and first.class_names == ["membrane", "cell"]
    assert first.loaded.fresh == () and len(first.loaded.kept) == len(first.weights)
    # a quick look that it is a model too: depth 1, valid padding loses 8 pixels a side
    assert first(np.zeros((1, 32, 32, 1), np.float32)).shape == (1, 16, 16, 2)


def test_weights_none_are_fresh(recipe):
    model = zoo.load(recipe, weights=None)
    assert model.loaded is None
    assert not np.array_equal(kernel(model, "logits"), kernel(zoo.load(recipe), "logits"))


def test_weights_from_a_file(recipe, tmp_path):
    model = zoo.load(recipe, weights=None)
    save_weights(model, tmp_path / "mine.weights.h5")
    again = zoo.load(recipe, weights=tmp_path / "mine.weights.h5")
    np.testing.assert_array_equal(kernel(model, "logits"), kernel(again, "logits"))
    with pytest.raises(FileNotFoundError, match=r"none\.weights\.h5: no such weights file"):
        zoo.load(recipe, weights="none.weights.h5")


def test_no_pretrained_weights_says_so_and_offers_the_alternatives():
    with pytest.raises(ValueError, match="^unet_phc_u373 has no pretrained weights .*PhC-U373") as error:
        zoo.load("unet_phc_u373")
    assert "weights=None" in str(error.value) and ".weights.h5 file" in str(error.value)
    with_weights = [name for name in zoo.list() if zoo.show(name).has_weights]
    assert all(name in str(error.value) for name in with_weights)


def test_imagenet_weights_are_explained(recipe):
    with pytest.raises(
        ValueError, match="weights='imagenet' means those of a backbone, and a U-Net has none"
    ):
        zoo.load(recipe, weights="imagenet")


def test_damaged_weights_are_refused(recipe):
    path = recipe.with_name("small.weights.h5")
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(ValueError, match=r"small\.weights\.h5: damaged or exchanged"):
        zoo.load(recipe)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"small\.weights\.h5: no such weights file"):
        zoo.load(recipe)


@pytest.mark.parametrize("overrides", [{"class_names": ["a", "b", "c"]}, {"classes": 3}])
def test_another_number_of_classes_starts_a_fresh_head_and_says_so(recipe, overrides, caplog):
    model = zoo.load(recipe, **overrides)
    assert model.classes == 3 and model.class_names == overrides.get("class_names")
    assert model.loaded.fresh == ("logits/kernel", "logits/bias")
    np.testing.assert_array_equal(kernel(model, "enc1_conv1"), kernel(zoo.load(recipe), "enc1_conv1"))
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().endswith("variables kept from the file; new: logits/kernel, logits/bias")


def test_renamed_classes_keep_their_weights(recipe, caplog):
    model = zoo.load(recipe, class_names=["background", "nucleus"])
    assert model.loaded.fresh == () and not caplog.records
    assert model.class_names == ["background", "nucleus"]


def test_other_input_channels_start_a_fresh_first_layer(recipe):
    assert zoo.load(recipe, input_channels=3).loaded.fresh == ("enc1_conv1/kernel", "enc1_conv1/bias")


def test_a_fitting_file_fills_an_overridden_head(recipe, tmp_path):
    save_weights(zoo.load(recipe, weights=None, classes=3), tmp_path / "three.weights.h5")
    assert zoo.load(recipe, weights=tmp_path / "three.weights.h5", classes=3).loaded.fresh == ()
    with pytest.raises(
        ValueError, match=r"logits/kernel is \[1, 1, 2, 3\] in the file and \[1, 1, 2, 2\] in the model"
    ):
        zoo.load(recipe, weights=tmp_path / "three.weights.h5")


def test_another_network_does_not_take_the_weights(recipe):
    with pytest.raises(ValueError, match="weights of another network than 'small'"):
        zoo.load(recipe, base_channels=4)
    assert zoo.load(recipe, weights=None, base_channels=4).count_params() > zoo.load(recipe).count_params()


def test_what_does_not_change_the_weights_may_be_overridden(recipe):
    model = zoo.load(recipe, padding="same", dropout=0.0, tile=64, rotations=8)
    assert (model.padding, model.tile, model.rotations, model.loaded.fresh) == ("same", 64, 8, ())


def test_wrong_and_contradictory_overrides(recipe):
    with pytest.raises(
        ValueError, match=r"small\.yaml: model\.clases: unknown field; did you mean \"classes\""
    ):
        zoo.load(recipe, clases=3)
    with pytest.raises(ValueError, match="classes is 3, but class_names has 2: a, b"):
        zoo.load(recipe, classes=3, class_names=["a", "b"])
