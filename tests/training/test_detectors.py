"""Training a detector from a recipe, on a few synthetic images."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import tensorflow as tf
from square_files import SIDE, recipe

from keras_seg.recipe import load_recipe
from keras_seg.training import NonFiniteLoss, detectors, loop, train


def test_a_run_learns_judges_and_writes_its_files(squares, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "LOG_EVERY", 10)
    lines = []
    model = train(recipe(60), squares, tmp_path, say=lines.append)
    assert "6 images to train on, 2 to validate; 60 steps" in lines[0]
    with open(tmp_path / loop.HISTORY, newline="") as file:
        rows = list(csv.DictReader(file))
    losses = [float(row["loss"]) for row in rows if row["loss"]]
    assert losses[-1] < 0.7 * losses[0]
    judged = {name: float(value) for name, value in rows[-1].items() if value}
    assert {"val_loss", "val_loss_mask", "bbox_AP", "bbox_AP50", "segm_AP", "segm_AP75"} < set(judged)
    assert judged["bbox_AP50"] > 0.2
    again = detectors.score(model, squares / "validation.json", squares / "validation")
    assert again["segm_AP"] == pytest.approx(judged["segm_AP"], abs=1e-6)
    assert (tmp_path / loop.BEST).exists()
    (events,) = (tmp_path / loop.BOARD).iterdir()
    shown = {}
    for event in tf.compat.v1.train.summary_iterator(str(events)):
        shown |= {value.tag: tf.make_ndarray(value.tensor) for value in event.summary.value}
    assert shown["segm_AP"] == pytest.approx(judged["segm_AP"], abs=1e-6) and "loss_rpn_box" in shown
    assert tf.io.decode_png(shown["1"][2]).shape == (SIDE, SIDE, 3)


def test_a_resumed_run_has_the_losses_of_one_that_never_stopped(squares, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "LOG_EVERY", 1)
    for name, parts in (("whole", [4]), ("parts", [2, 4])):
        for steps in parts:
            data = {"data.validation_annotations": None, "data.validation_images": None}
            own = recipe(4).override(data)
            train(own, squares, tmp_path / name, steps=steps, resume=True, say=lambda line: None)
    whole, parts = ((tmp_path / name / loop.HISTORY).read_text() for name in ("whole", "parts"))
    assert whole == parts


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


def test_what_does_not_fit_is_refused_before_training(squares, tmp_path):
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
