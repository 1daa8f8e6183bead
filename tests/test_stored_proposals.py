"""An RPN of its own, its proposals in a file, and a detector's second stage trained and judged on them."""

from __future__ import annotations

import json

import keras
import numpy as np
import pytest
import yaml
from square_files import recipe

from keras_seg import stored_proposals, zoo
from keras_seg.data.proposals import read_proposals
from keras_seg.metrics.proposals import average_recall
from keras_seg.training import loop, train

RPN = {
    "name": "tiny_rpn", "model.class_names": ["object"], "model.masks": False, "model.rpn_only": True,
    "training.select": {"metric": "AR100", "mode": "max"},
}  # fmt: skip
STORED = {"data.proposals": "train.npz", "data.validation_proposals": "validation.npz"}


def as_file(tiny, path):
    path.write_text(yaml.safe_dump(json.loads(tiny.model_dump_json(by_alias=True, exclude_unset=True))))
    return path


def test_from_an_rpn_to_a_detector(squares, tmp_path, monkeypatch, run):
    """The RPN learns to propose; the detector learns on what is stored, and its own RPN does not change."""
    monkeypatch.setattr(loop, "LOG_EVERY", 10)
    truth, images = squares / "validation.json", squares / "validation"
    rpn_recipe, lines = recipe(40).override(RPN), []
    rpn = train(rpn_recipe, squares, tmp_path / "rpn", say=lines.append)
    assert set(rpn.parts) == {"backbone", "fpn", "rpn"}
    judged = [line for line in lines if "AR100" in line][-1]
    assert all(name in judged for name in ("AR300", "AR1000", "ARm", "val_loss_rpn_box"))
    assert not any("loss_mask" in line or "loss_class" in line for line in lines)

    the_rpn = (as_file(rpn_recipe, tmp_path / "rpn.yaml"), "--weights", tmp_path / "rpn" / loop.BEST)
    on = ("--data", truth, "--images", images)
    status, said, _ = run("proposals", *the_rpn, *on, "-o", squares / "validation.npz")
    assert status == 0 and "validation.npz: " in said
    stored_proposals.store(
        rpn, squares / "train.json", squares / "train", squares / "train.npz", batch_size=2
    )
    stored = read_proposals(squares / "validation.npz")
    figures = average_recall(truth, [(k, *stored.of(k)) for k in stored.image_ids.tolist()])
    assert figures["AR100"] > 0.3
    # found two by two while it was trained, one by one here
    assert float(judged.partition("AR100 ")[2].split()[0]) == pytest.approx(figures["AR100"], abs=0.03)
    status, said, _ = run("evaluate", *the_rpn, *on, "--json")
    assert json.loads(said) == pytest.approx(figures, abs=1e-6)

    on_stored = recipe(40).override({**STORED, "name": "tiny_on_stored"})
    lines.clear()
    detector = train(on_stored, squares, tmp_path / "detector", say=lines.append)
    assert any("loss_mask" in line for line in lines) and not any("loss_rpn" in line for line in lines)
    keras.utils.set_random_seed(on_stored.training.seed)
    fresh = zoo.load(on_stored, None)
    for before, after in zip(fresh.parts["rpn"].weights, detector.parts["rpn"].weights, strict=True):
        np.testing.assert_array_equal(before, after)
    the_detector = (as_file(on_stored, tmp_path / "d.yaml"), "--weights", tmp_path / "detector" / loop.BEST)
    evaluate = ("evaluate", *the_detector, *on)
    status, said, _ = run(*evaluate, "--proposals", squares / "validation.npz", "--json")
    scores = json.loads(said)
    assert scores["bbox"]["AP50"] > 0.2 and scores["segm"]["AP50"] > 0.2
    (best,) = [line for line in lines if "(best)" in line]
    assert f"bbox_AP50 {scores['bbox']['AP50']:.4f}" in best

    status, _, error = run(*evaluate)
    assert status == 2 and "its own RPN not at all, so it needs those of another one" in error
    status, _, error = run(*evaluate, "--proposals", squares / "train.npz")
    assert status == 2 and "train.npz: was made for other annotations" in error
    status, _, error = run(*evaluate, "--proposals", squares / "validation.npz", "--flip")
    assert status == 2 and "--proposals goes with neither --flip" in error
    with pytest.raises(ValueError, match="train.npz: was made for other annotations"):
        train(on_stored.override({"data.validation_proposals": "train.npz"}), squares, tmp_path / "x")


def test_what_contradicts_itself_is_refused(squares, tmp_path, run):
    for field, file in STORED.items():
        with pytest.raises(ValueError, match="validation_annotations and validation_proposals go together"):
            recipe().override({field: file})
    with pytest.raises(ValueError, match=r"data.proposals: the model is nothing but an RPN \(rpn_only\)"):
        recipe().override({**RPN, **STORED})
    with pytest.raises(ValueError, match=r"rpn_only=True.*but classes=2, masks=True: give classes=1"):
        zoo.load(recipe().override({"model.rpn_only": True}), None)
    detector = as_file(recipe(), tmp_path / "r.yaml")
    status, _, error = run("proposals", detector, "--data", squares / "train.json", "-o", tmp_path / "p.npz")
    assert status == 2 and "an RPN alone: model.rpn_only: true" in error
    (tmp_path / "found.json").write_text("[]")
    status, _, error = run(
        "evaluate", tmp_path / "found.json", "--data", squares / "train.json", "--proposals", "p.npz"
    )
    assert status == 2 and "--proposals is for a model; these are results" in error
    absent = {field: f"absent/{file}" for field, file in STORED.items()}
    with pytest.raises(FileNotFoundError, match="train.npz: no such file; keras-seg proposals writes it"):
        train(recipe().override(absent), squares, tmp_path / "run")


def test_the_zoo_has_both_steps():
    first, second = zoo.show("rpn_r50_fpn"), zoo.show("ablations/maskrcnn_r50_fpn_stored_proposals")
    assert first.model.rpn_only and first.training.select.metric == "AR1000"
    assert second.data.proposals and second.data.annotations == first.data.annotations
