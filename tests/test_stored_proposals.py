"""An RPN of its own, its proposals in a file, and a detector's second stage trained and judged on them."""

from __future__ import annotations

import json

import keras
import numpy as np
import pytest
import tifffile
import yaml
from PIL import Image
from square_files import recipe

from keras_seg import stored_proposals, zoo
from keras_seg.data import coco
from keras_seg.data.proposals import read_proposals
from keras_seg.detect import pixels_of
from keras_seg.metrics.proposals import average_recall
from keras_seg.training import loop, train
from keras_seg.training.detectors import plan, score
from keras_seg.weights import save_weights

pytestmark = pytest.mark.usefixtures("graphs_as_traced", "loaded_once")
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


@pytest.fixture(scope="module")
def dark_squares(squares, tmp_path_factory):
    """The same pictures as a camera of 16 bits has them that uses the values from 100 to 1120."""
    folder = tmp_path_factory.mktemp("dark_squares")
    for part in ("train", "validation"):
        content = json.loads((squares / f"{part}.json").read_text())
        (folder / part).mkdir()
        for image in content["images"]:
            pixels = np.asarray(Image.open(squares / part / image["file_name"])).astype(np.uint16)
            image["file_name"] = f"{image['id']}.tif"
            tifffile.imwrite(folder / part / image["file_name"], 100 + 4 * pixels, photometric="rgb")
        (folder / f"{part}.json").write_text(json.dumps(content))
    return folder


def test_the_recipes_value_range_holds_for_proposals_and_for_what_is_trained_on_them(
    squares, dark_squares, tmp_path, run
):
    """Pictures of 16 bits in their range give what the same pictures of 8 bits give, each time."""
    ranges = {squares: None, dark_squares: (100.0, 1120.0)}
    changes = {folder: {"data.value_range": values} for folder, values in ranges.items()}
    rpn_recipe = recipe().override({**RPN, "model.proposals": 10})
    keras.utils.set_random_seed(0)
    rpn, weights = zoo.load(rpn_recipe, None), tmp_path / "rpn.weights.h5"
    save_weights(rpn, weights)
    stored = {}
    for folder, values in ranges.items():
        for part in ("train", "validation"):
            there = folder / f"{part}.json", folder / part
            stored_proposals.store(rpn, *there, folder / f"{part}.npz", batch_size=2, value_range=values)
        one_by_one = as_file(rpn_recipe.override(changes[folder]), tmp_path / f"{folder.name}.yaml")
        on = (one_by_one, "--weights", weights, "--data", there[0], "--images", there[1])
        assert run("proposals", *on, "-o", tmp_path / f"{folder.name}.npz")[0] == 0
        stored[folder] = [
            *(proposals.of(k) for k in (1, 2) for proposals in (
                read_proposals(folder / "validation.npz"), read_proposals(tmp_path / f"{folder.name}.npz")
            )),
            stored_proposals.recall(rpn, *there, value_range=values),
            json.loads(run("evaluate", *on, "--json")[1]),
            score(rpn, *there, value_range=values),
        ]  # fmt: skip
    assert_same(*stored.values())
    dark = dark_squares / "validation.json", dark_squares / "validation"
    stored_proposals.store(rpn, *dark, tmp_path / "without.npz")
    assert not np.allclose(
        read_proposals(tmp_path / "without.npz").of(1)[1], stored[squares][0][1], atol=1e-4
    )

    keras.utils.set_random_seed(0)
    on_stored = recipe().override({**STORED, "name": "tiny_on_stored"})
    detector, weights = zoo.load(on_stored, None), tmp_path / "detector.weights.h5"
    save_weights(detector, weights)
    found = {}
    for folder, values in ranges.items():
        own = on_stored.override(changes[folder])
        there, file = (folder / "validation.json", folder / "validation"), folder / "validation.npz"
        planned = plan(detector, own, folder)
        batch = next(iter(planned.batches(0)))
        command = ("evaluate", as_file(own, tmp_path / f"{folder.name}.yaml"), "--weights", weights, "--json")
        status, said, _ = run(*command, "--data", there[0], "--images", there[1], "--proposals", file)
        assert status == 0
        found[folder] = [
            {name: batch[name].numpy() for name in ("image", "proposals", "boxes")},
            planned.evaluate(detector),
            json.loads(said),
            [
                {name: one[name] for name in ("image_id", "category_id", "bbox", "score")}
                for one in stored_proposals.results(
                    detector, read_proposals(file), *there, value_range=values
                )
            ],
        ]
    assert_same(*found.values())
    assert found[squares][-1]

    plain = coco(
        *dark, batch_size=1, augment=False, short_side=96, repeat=False, value_range=ranges[dark_squares]
    )
    for batch in plain:
        file = dark[1] / f"{int(batch['image_id'][0])}.tif"
        seen = pixels_of(file, file.name, ranges[dark_squares])  # what inference sees
        np.testing.assert_array_equal(batch["image"][0], seen)


def assert_same(first, second):
    """Equal but for rounding, all the way down."""
    assert type(first) is type(second)
    if isinstance(first, (list, tuple)):
        for one, other in zip(first, second, strict=True):
            assert_same(one, other)
    elif isinstance(first, dict):
        assert first.keys() == second.keys()
        for name in first:
            assert_same(first[name], second[name])
    else:
        np.testing.assert_allclose(first, second, rtol=1e-4, atol=1e-4)


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
