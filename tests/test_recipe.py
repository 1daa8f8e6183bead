"""Recipes: what they hold, and what is said about a wrong one."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from keras_seg.recipe import Augmentation, WeightMap, load_recipe
from keras_seg.recipe_models import MaskRCNNModel, UNetModel

ZOO = Path(__file__).resolve().parent.parent / "zoo"
MINIMAL = {
    "schema": 1,
    "name": "small",
    "summary": "A small one.",
    "model": {"builder": "unet"},
    "data": {"reader": "isbi", "train_slices": "0-3", "validation_slices": [4], "tile": 188},
    "training": {"steps": 10, "optimizer": {"name": "sgd", "learning_rate": 0.01}},
}


@pytest.mark.parametrize("path", sorted(ZOO.rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_of_the_zoo(path):
    recipe = load_recipe(path)
    assert recipe.name == path.stem and recipe.path == path
    if recipe.training:
        if "nobody trained it here" in recipe.note.lower():
            assert recipe.expect is None and not recipe.has_weights
        else:
            assert recipe.expect is not None and recipe.training.select.metric == recipe.expect.metric
    else:
        assert recipe.note.startswith("Follows ") or "small" in recipe.name
    if recipe.published:
        assert recipe.published.box_ap and recipe.published.licence
        assert (recipe.published.mask_ap is not None) == recipe.model.masks
        assert (recipe.published.keypoint_ap is not None) == (recipe.model.keypoints > 0)
    again = load_recipe(recipe.model_dump(mode="json", by_alias=True))
    assert again.model_dump() == recipe.model_dump() and again.path is None


def test_the_papers_recipe_is_the_papers_network():
    recipe = load_recipe(ZOO / "unet_em_paper.yaml")
    model, data, optimizer = recipe.model, recipe.data, recipe.training.optimizer
    assert (model.depth, model.base_channels, model.padding, model.normalization) == (4, 64, "valid", None)
    assert (data.tile, data.batch_size, optimizer.name, optimizer.momentum) == (572, 1, "sgd", 0.99)
    assert (data.augmentation.elastic_sigma, data.augmentation.elastic_grid) == (10, 3)
    assert (data.weight_map.w0, data.weight_map.sigma, model.rotations) == (10, 5, 7)


def test_fields_are_the_arguments_they_fill():
    from keras_seg.data import augment
    from keras_seg.losses import weight_map
    from keras_seg.models import mask_rcnn, unet

    def defaults(function):
        return {name: p.default for name, p in inspect.signature(function).parameters.items()}

    arguments = defaults(unet)
    del arguments["name"]
    assert UNetModel(builder="unet").arguments() == arguments
    arguments = defaults(mask_rcnn)
    del arguments["name"]
    assert MaskRCNNModel(builder="mask_rcnn").arguments() == arguments
    assert Augmentation().model_dump() == dataclasses.asdict(augment.Augmentation())
    arguments = defaults(weight_map)
    del arguments["labels"]
    assert WeightMap().model_dump() == arguments


def test_class_names_give_the_number_of_classes():
    recipe = load_recipe({**MINIMAL, "model": {"builder": "unet", "class_names": ["a", "b", "c"]}})
    assert recipe.model.classes == 3


DETECTOR = {"schema": 1, "name": "small", "summary": "A small one.", "model": {"builder": "mask_rcnn"}}


def test_lists_of_names_by_their_name():
    model = {"builder": "mask_rcnn", "class_names": "coco", "keypoint_names": "coco_keypoints"}
    recipe = load_recipe({**DETECTOR, "model": model})
    assert recipe.model.classes == 80 and recipe.model.class_names[-1] == "toothbrush"
    assert recipe.model.keypoints == 17 and recipe.model.keypoint_names[0] == "nose"
    assert load_recipe({**DETECTOR, "model": {**model, "class_names": "coco_ids"}}).model.classes == 90
    with pytest.raises(
        ValueError, match="model.class_names: got 'cocoo'; must be a list of names, or one of coco"
    ):
        load_recipe({**DETECTOR, "model": {**model, "class_names": "cocoo"}})
    fewer = recipe.override({"model.keypoint_names": ["tip", "base"]})
    assert fewer.model.keypoints == 2 and fewer.model.classes == 80
    assert "class_names [person, bicycle, car, ..., toothbrush]" in str(recipe)


def test_a_detectors_recipe_says_nothing_of_training_or_all_of_it():
    assert load_recipe(DETECTOR).training is None
    with pytest.raises(ValueError, match="^recipe: data: missing$"):
        load_recipe({**DETECTOR, "training": MINIMAL["training"]})


PUBLISHED = {
    "url": "https://example.org/x.pkl",
    "format": "detectron2",
    "licence": "CC0",
    "trained_on": "COCO",
}


def test_published_weights_are_on_the_card():
    recipe = load_recipe({**DETECTOR, "published": {**PUBLISHED, "box_ap": 41.0}})
    assert recipe.has_weights and not load_recipe(DETECTOR).has_weights
    assert "published url https://example.org/x.pkl, format detectron2, licence CC0" in str(recipe)
    weights = {"file": "small.weights.h5", "sha256": "a" * 64}
    with pytest.raises(ValueError, match="weights of its own or published ones, not both"):
        load_recipe({**DETECTOR, "published": PUBLISHED, "weights": weights})
    with pytest.raises(ValueError, match="published.url: got 'ftp://x'"):
        load_recipe({**DETECTOR, "published": {**PUBLISHED, "url": "ftp://x"}})


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)).map(sorted), min_size=1, max_size=4))
def test_slices_are_read_as_they_are_written(ranges):
    expected = [i for first, last in ranges for i in range(first, last + 1)]
    data = {
        **MINIMAL["data"],
        "train_slices": ", ".join(f"{a}-{b}" for a, b in ranges),
        "validation_slices": [],
    }
    if len(set(expected)) < len(expected):
        with pytest.raises(ValueError, match=r"data\.train_slices: .* names a slice twice"):
            load_recipe({**MINIMAL, "data": data})
    else:
        assert load_recipe({**MINIMAL, "data": data}).data.train_slices == tuple(expected)


@pytest.mark.parametrize(
    "written, read", [(3, (3,)), ("7", (7,)), ([1, "4-6"], (1, 4, 5, 6)), ("2,0", (2, 0))]
)
def test_slices_in_other_forms(written, read):
    data = {**MINIMAL["data"], "train_slices": written, "validation_slices": ""}
    assert load_recipe({**MINIMAL, "data": data}).data.train_slices == read


WRONG = {
    "model.paddng": ("same", 'unknown field; did you mean "padding"? (fields here: class_names, builder'),
    "model.padding": ("sme", "got 'sme'; allowed: 'valid' or 'same'; did you mean \"same\"?"),
    "model.builder": (
        "maskrcnn",
        "got 'maskrcnn'; allowed: 'unet', 'mask_rcnn'; did you mean \"mask_rcnn\"?",
    ),
    "model.normalization": ("btch", "got 'btch'; allowed: 'batch' or 'group'; did you mean \"batch\"?"),
    "model.depth": (0, "got 0; input should be greater than or equal to 1"),
    "model.dropout": (1.0, "got 1.0; input should be less than 1"),
    "model.rotations": (9, "got 9; input should be less than or equal to 8"),
    "model.base_channels": (True, "got True; a yes/no value is not allowed here"),
    "data.reader": (
        "isbl",
        "got 'isbl'; allowed: 'isbi', 'cell_tracking', 'folder', 'coco'; did you mean \"isbi\"?",
    ),
    "data.tile": ("big", "got 'big'; input should be a valid integer"),
    "data.train_slices": ("0-x", "got '0-x'; must be slice numbers"),
    "data.validation_slices": ("5-4", "got '5-4'; must be slice numbers"),
    "data.augmentation.elastic_sgma": (1, 'unknown field; did you mean "elastic_sigma"?'),
    "data.augmentation.contrast": (2, "got 2; input should be less than or equal to 1"),
    "data.weight_map.sigma": (0, "got 0; input should be greater than 0"),
    "training.steps": (-1, "got -1; input should be greater than 0"),
    "training.optimizer.momentum": (1, "got 1; input should be less than 1"),
    "training.optimizer.learning_rate": (float("nan"), "got nan; input should be a finite number"),
    "training.optimizer.name": ("adm", "got 'adm'; allowed: 'sgd', 'adam'; did you mean \"adam\"?"),
    "training.select.metric": ("rand_eror", 'did you mean "rand_error"?'),
    "weights": (
        {"file": "../x.weights.h5", "sha256": "0" * 64},
        "got '../x.weights.h5'; string should match",
    ),
    "schema": (2, "got 2; allowed: 1"),
    "modell": ({}, 'unknown field; did you mean "model"?'),
}


@pytest.mark.parametrize("field", WRONG)
def test_a_wrong_field_is_named_with_what_is_allowed(tmp_path, field):
    value, message = WRONG[field]
    fields = yaml.safe_load(yaml.safe_dump(MINIMAL))
    *parents, name = field.split(".")
    block = fields
    for parent in parents:
        block = block.setdefault(parent, {})
    block[name] = value
    path = tmp_path / "wrong.yaml"
    path.write_text(yaml.safe_dump(fields))
    with pytest.raises(ValueError) as error:
        load_recipe(path)
    assert str(error.value).startswith(f"{path}: {field}") and message in str(error.value)
    assert "\n" not in str(error.value)


CONTRADICTIONS = {
    "model: classes is 3, but class_names has 2: a, b": {"model.classes": 3, "model.class_names": ["a", "b"]},
    "model: class_names has a name twice: a, a": {"model.class_names": ["a", "a"]},
    'model: activation "softmax" needs at least 2 classes': {"model.classes": 1},
    "data: train_slices and validation_slices share [2, 3]": {"data.validation_slices": "2-5"},
    "training: schedule.warmup_steps is 11, more than steps, 10": {"training.schedule.warmup_steps": 11},
    "training.optimizer.momentum: unknown field (fields here: learning_rate, weight_decay, average, clip_norm, accumulate, name)": {
        "training.optimizer": {"name": "adam", "learning_rate": 0.01, "momentum": 0.9}
    },
    "data: train_sequences and validation_sequences share ['01']": {
        "data": {
            "reader": "cell_tracking",
            "tile": 188,
            "train_sequences": ["01"],
            "validation_sequences": ["01"],
        }
    },
    "data: validation_images and validation_masks go together": {
        "data": {
            "reader": "folder",
            "tile": 188,
            "classes": {"a": 0, "b": 1},
            "validation_images": "validation",
        }
    },
}


@pytest.mark.parametrize("message", CONTRADICTIONS)
def test_fields_that_contradict_each_other(message):
    with pytest.raises(ValueError) as error:
        load_recipe(MINIMAL).override(CONTRADICTIONS[message])
    assert message in str(error.value)


def test_missing_fields_are_named():
    with pytest.raises(ValueError, match="^recipe: name: missing; summary: missing$"):
        load_recipe({name: MINIMAL[name] for name in MINIMAL if name not in ("summary", "name")})
    with pytest.raises(ValueError, match="^recipe: training: missing$"):
        load_recipe({name: MINIMAL[name] for name in MINIMAL if name != "training"})
    with pytest.raises(ValueError, match=r"data\.reader: missing"):
        load_recipe({**MINIMAL, "data": {"tile": 188}})


@pytest.mark.parametrize(
    "content, message",
    [
        (b"model: [unet", "not a YAML file: .*line 1"),
        (b"\xff\xfe\x00", "not a YAML file"),
        (b"", "got None; input should be a valid dictionary"),
        (b"just words", "got 'just words'; input should be a valid dictionary"),
    ],
)
def test_a_file_that_is_no_recipe(tmp_path, content, message):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_recipe(path)


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.yaml: no such recipe file"):
        load_recipe(tmp_path / "none.yaml")


def test_override_changes_what_it_names_and_nothing_else():
    recipe = load_recipe(MINIMAL)
    other = recipe.override({"training.steps": 20, "training.schedule.warmup_steps": 5, "data.tile": 284})
    assert (other.training.steps, other.training.schedule.warmup_steps, other.data.tile) == (20, 5, 284)
    assert other.model == recipe.model and other.training.optimizer == recipe.training.optimizer
    assert recipe.training.steps == 10


def test_override_keeps_names_and_number_of_classes_together():
    recipe = load_recipe(MINIMAL).override({"model.class_names": ["membrane", "cell"]})
    assert recipe.override({"model.class_names": ["a", "b", "c"]}).model.classes == 3
    assert recipe.override({"model.classes": 3}).model.class_names is None
    assert recipe.override({"model.classes": 2}).model.class_names == ["membrane", "cell"]


def test_a_recipe_does_not_change_under_the_hand():
    with pytest.raises(ValidationError, match="frozen"):
        load_recipe(MINIMAL).training.steps = 5


def test_the_card_tells_what_a_reader_needs():
    result = {
        "metric": "rand_error",
        "value": 0.0504,
        "data": "slices 20-24",
        "command": "keras-seg evaluate small",
    }
    more = {
        "note": "Only an example.",
        "results": [result],
        "expect": {"metric": "rand_error", "value": 0.05, "tolerance": 0.01},
        "weights": {"file": "small.weights.h5", "sha256": "a" * 64},
    }
    card = str(load_recipe({**MINIMAL, **more}))
    for part in (
        "small\nA small one.",
        "train_slices 0-3",
        "small.weights.h5, sha256 aaaa",
        "rand_error 0.0504 on slices 20-24 (keras-seg evaluate small)",
        "rand_error 0.05 ± 0.01",
        "Only an example.",
    ):
        assert part in card
    other = load_recipe({**MINIMAL, "model": {"builder": "unet", "class_names": ["a", "b", "c"]}})
    assert "none are published" in str(other) and "class_names [a, b, c]" in str(other)
