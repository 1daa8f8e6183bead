"""Training a detector from a recipe, on a few synthetic images."""

from __future__ import annotations

import csv
import shutil

import numpy as np
import pytest
import tensorflow as tf
from square_files import SIDE, recipe

from keras_seg import zoo
from keras_seg.recipe import load_recipe
from keras_seg.training import NonFiniteLoss, detectors, loop, train

pytestmark = pytest.mark.usefixtures("graphs_as_traced")
WITHOUT_VALIDATION = {"data.validation_annotations": None, "data.validation_images": None}


@pytest.fixture(scope="module")
def logging_each_tenth():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "LOG_EVERY", 10)
        yield


@pytest.fixture(scope="module")
def undisturbed(squares, tmp_path_factory, logging_each_tenth):
    """A run of 60 steps: (its model, what it said, its folder, a copy of this that was made between its two checkpoints)."""
    folder = tmp_path_factory.mktemp("runs")
    lines = []

    def say(line: str) -> None:
        lines.append(line)
        if line.startswith("step 30/"):
            shutil.copytree(folder / "whole", folder / "stopped")

    model = train(recipe(60, checkpoint_every=25), squares, folder / "whole", say=say)
    return model, lines, folder / "whole", folder / "stopped"


def rows_of(folder) -> list[dict[str, str]]:
    with open(folder / loop.HISTORY, newline="") as file:
        return [{name: value for name, value in row.items() if value} for row in csv.DictReader(file)]


def test_a_run_learns_judges_and_writes_its_files(squares, undisturbed):
    model, lines, folder, _ = undisturbed
    assert "6 images to train on, 2 to validate; 60 steps" in lines[0]
    rows = rows_of(folder)
    losses = [float(row["loss"]) for row in rows if "loss" in row]
    assert losses[-1] < 0.7 * losses[0]
    judged = {name: float(value) for name, value in rows[-1].items()}
    assert {"val_loss", "val_loss_mask", "bbox_AP", "bbox_AP50", "segm_AP", "segm_AP75"} < set(judged)
    assert judged["bbox_AP50"] > 0.2
    again = detectors.score(model, squares / "validation.json", squares / "validation")
    assert again["segm_AP"] == pytest.approx(judged["segm_AP"], abs=1e-6)
    assert (folder / loop.BEST).exists()
    (events,) = (folder / loop.BOARD).iterdir()
    shown = {}
    for event in tf.compat.v1.train.summary_iterator(str(events)):
        shown |= {value.tag: tf.make_ndarray(value.tensor) for value in event.summary.value}
    assert shown["segm_AP"] == pytest.approx(judged["segm_AP"], abs=1e-6) and "loss_rpn_box" in shown
    assert tf.io.decode_png(shown["1"][2]).shape == (SIDE, SIDE, 3)


def test_a_resumed_run_has_the_losses_of_one_that_never_stopped(squares, undisturbed):
    _, _, whole, stopped = undisturbed
    lines = []
    own = recipe(60, checkpoint_every=25).override(WITHOUT_VALIDATION)
    train(own, squares, stopped, steps=40, resume=True, say=lines.append)
    assert "resumed at step 25 of 40" in lines
    resumed = rows_of(stopped)
    assert [row["step"] for row in resumed] == ["10", "20", "30", "40"] and resumed == rows_of(whole)[:4]


def test_options_reach_the_model_and_its_optimizer(squares, tmp_path):
    options = {
        "optimizer": {"name": "sgd", "learning_rate": 0.02, "momentum": 0.9, "weight_decay": 1e-4, "accumulate": 2},
        "schedule": {"warmup_steps": 1, "drop_steps": [3], "reference_batch": 16}, "freeze": 2,
    }  # fmt: skip
    kept = {}

    def look(model, *arguments, **others):
        kept["model"] = model
        raise InterruptedError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "run", look)
        with pytest.raises(InterruptedError):
            train(recipe(8, **options), squares, tmp_path)
    model = kept["model"]
    assert model.training_options.weight_decay == 1e-4 and model.training_options.region_samples == 32
    frozen = {layer.name for layer in model.parts["backbone"].layers if layer.weights and not layer.trainable}
    assert frozen and all(name.startswith(("stem", "res2")) for name in frozen)
    assert model.optimizer.gradient_accumulation_steps == 2 and not model.optimizer.weight_decay
    # 4 images an update instead of 16
    rates = [float(model.optimizer._learning_rate(step)) for step in (0, 1, 3)]
    np.testing.assert_allclose(rates, [0.005, 0.005, 0.0005], rtol=1e-5)


def test_a_loss_that_is_not_finite_stops_with_the_images(squares, tmp_path):
    with pytest.raises(
        NonFiniteLoss, match=r"loss = .* in the batch from image \d, image \d; lower the learning"
    ):
        train(
            recipe(40, optimizer={"name": "sgd", "learning_rate": 1e12}),
            squares,
            tmp_path,
            say=lambda line: None,
        )
    (file,) = tmp_path.glob("not_finite_at_step_*.npz")
    with np.load(file) as kept:
        assert {"image", "boxes", "image_id", "terms/loss_mask"} < set(kept)


@pytest.fixture
def one_model(monkeypatch):
    """One for all recipes with the same model, which is enough for those that are refused before training."""
    made, load = {}, zoo.load

    def once(recipe, weights):
        key = recipe.model.model_dump_json()
        if key not in made:
            made[key] = load(recipe, weights)
        return made[key]

    monkeypatch.setattr(zoo, "load", once)


def test_what_does_not_fit_is_refused_before_training(squares, tmp_path, one_model):
    with pytest.raises(
        ValueError, match=r"train.json: has 2 categories \(square, disc\), the model 3 classes"
    ):
        train(recipe().override({"model.class_names": ["a", "b", "c"]}), squares, tmp_path)
    with pytest.raises(ValueError, match="no option 'region_sample'"):
        train(recipe(detector={"region_sample": 3}), squares, tmp_path)
    with pytest.raises(ValueError, match="two files; to train on both, join them"):
        train(recipe(), squares, tmp_path, all_data=True)
    with pytest.raises(FileNotFoundError, match="nothing_here"):
        train(recipe().override({"data.images": "nothing_here"}), squares, tmp_path)
    with pytest.raises(ValueError, match="data.reader: 'coco' is not for the builder 'unet'"):
        load_recipe({**recipe().model_dump(by_alias=True), "model": {"builder": "unet"}})
    with pytest.raises(ValueError, match="validation_annotations and validation_images go together"):
        recipe().override({"data.validation_images": None})
