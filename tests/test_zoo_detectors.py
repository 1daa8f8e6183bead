"""Detectors by name: published weights, other classes, ImageNet, files of other libraries."""

from __future__ import annotations

import logging
import multiprocessing
import os

import numpy as np
import pytest
from detector_files import URL, write_detectron2, write_recipe

from keras_seg import zoo
from keras_seg.weights import DownloadFailed, garden, matterport, save_weights
from keras_seg.weights.assign import variables

DETECTORS = [name for name in zoo.list() if zoo.show(name).model.builder == "mask_rcnn"]
# building a network of 100 layers takes seconds; these stand for the others, which differ from them in arguments only
BUILT = ["maskrcnn_r50_c4", "keypointrcnn_r50_fpn_torchvision", "ablations/maskrcnn_r50_fpn_mlp3"]


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A cache of its own, and no network."""
    monkeypatch.setenv("KERAS_SEG_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("KERAS_SEG_OFFLINE", "1")
    return tmp_path / "home"


@pytest.fixture
def recipe(home, tmp_path):
    """The recipe of a small detector, its published file downloaded already."""
    write_detectron2(home / "downloads" / URL.rsplit("/")[-1])
    return write_recipe(tmp_path / "tiny.yaml")


def test_the_zoo_has_the_family():
    structures = {(zoo.show(name).model.backbone, zoo.show(name).model.structure) for name in DETECTORS}
    assert {("resnet50", s) for s in ("fpn", "c4", "dc5", "c5")} <= structures
    assert {("resnext101_32x8d", "fpn"), ("resnext101_64x4d", "fpn"), ("resnet18", "fpn")} <= structures
    assert {"maskrcnn_r101_fpn", "keypoint_maskrcnn_r50_fpn", "fasterrcnn_r101_c4"} <= set(DETECTORS)
    ablations = [zoo.show(name).model for name in DETECTORS if name.startswith("ablations/")]
    assert {model.roi for model in ablations} == {"align", "pool", "warp"}
    assert {model.mask_head for model in ablations} == {"conv", "mlp2", "mlp3"}
    assert {model.mask_loss for model in ablations} == {"sigmoid", "softmax"}


@pytest.mark.parametrize(
    ("name", "reader"), [("maskrcnn_r101_fpn_matterport", matterport), ("maskrcnn_r50_fpn_garden", garden)]
)
def test_recipes_for_other_libraries_have_what_their_readers_say(name, reader):
    block = zoo.show(name).model
    assert {field: getattr(block, field) for field in reader.ARGUMENTS} == reader.ARGUMENTS


@pytest.mark.parametrize("name", BUILT)
def test_recipes_build(name):
    model, block = zoo.load(name, weights=None), zoo.show(name).model
    assert model.name == zoo.show(name).name and model.loaded is None
    assert model.class_names == block.class_names and model.structure == block.structure
    assert ("mask_head" in model.parts, "keypoint_head" in model.parts) == (block.masks, block.keypoints > 0)


def test_published_weights_are_converted_once(recipe, home):
    first = zoo.load(recipe)
    assert first.loaded.fresh == () and len(first.loaded.kept) == len(variables(first.parts))
    (converted,) = (home / "converted").glob("*.npz")
    os.utime(converted, (converted.stat().st_atime, converted.stat().st_mtime + 100))
    written = converted.stat().st_mtime
    second = zoo.load(recipe)
    assert converted.stat().st_mtime == written
    for a, b in zip(first.weights, second.weights, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_damaged_conversion_is_made_again(recipe, home):
    expected = zoo.load(recipe).weights
    (converted,) = (home / "converted").glob("*.npz")
    converted.write_bytes(converted.read_bytes()[:1000])
    for a, b in zip(zoo.load(recipe).weights, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def load_it(recipe, results) -> None:
    results.put(zoo.load(recipe).loaded.fresh)


def test_processes_that_load_at_once_share_the_cache(recipe, home):
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [context.Process(target=load_it, args=(recipe, results)) for _ in range(2)]
    for process in processes:
        process.start()
    found = [results.get(timeout=300) for _ in processes]
    for process in processes:
        process.join()
    assert found == [(), ()] and [process.exitcode for process in processes] == [0, 0]
    kept = [path for path in home.rglob("*") if path.is_file() and path.suffix != ".lock"]
    assert sorted(path.suffix for path in kept) == [".npz", ".pkl", ".sha256"]


def test_without_a_network_the_file_is_named(home, tmp_path, monkeypatch):
    recipe = write_recipe(tmp_path / "tiny.yaml")
    wanted = home / "downloads" / "model_final_abc123.pkl"
    with pytest.raises(FileNotFoundError, match="KERAS_SEG_OFFLINE") as error:
        zoo.load(recipe)
    assert str(wanted) in str(error.value) and "weights=None" in str(error.value)
    monkeypatch.delenv("KERAS_SEG_OFFLINE")
    refused = write_recipe(tmp_path / "refused.yaml", url="https://127.0.0.1:1/model_final_abc123.pkl")
    with pytest.raises(DownloadFailed, match="weights=None") as error:
        zoo.load(refused)
    assert str(wanted) in str(error.value)


def test_another_file_than_the_published_one_is_refused(recipe, tmp_path):
    other = write_recipe(tmp_path / "other.yaml", sha256="0" * 64)
    with pytest.raises(
        ValueError, match="damaged or exchanged: its sha256 is .*, that of the recipe is 0000"
    ):
        zoo.load(other)


def test_other_classes_start_fresh_heads_and_say_so(recipe, caplog):
    model = zoo.load(recipe, class_names=["cat", "dog"])
    assert model.classes == 2 and model.class_names == ["cat", "dog"]
    assert {name.rpartition("/")[0] for name in model.loaded.fresh} == {
        "box_predictor/cls_score", "box_predictor/bbox_pred", "mask_head/predictor",
    }  # fmt: skip
    (record,) = (r for r in caplog.records if r.levelno == logging.WARNING)
    assert "variables kept from the file; new: box_predictor/cls_score/kernel" in record.getMessage()
    own = variables(zoo.load(recipe).parts)
    for name, variable in variables(model.parts).items():
        if name not in model.loaded.fresh:
            np.testing.assert_array_equal(variable, own[name], err_msg=name)
    assert zoo.load(recipe, class_names=["x", "y", "z"]).loaded.fresh == ()


def test_a_branch_may_be_left_out_or_added(recipe):
    without = zoo.load(recipe, masks=False)
    assert "mask_head" not in without.parts and without.loaded.fresh == ()
    assert all(name.startswith("mask_head/") for name in without.loaded.unused) and without.loaded.unused
    people = zoo.load(recipe, keypoints=5, keypoint_channels=8)
    assert {name.split("/")[0] for name in people.loaded.fresh} == {"keypoint_head"}


def test_overrides_that_contradict_each_other(recipe):
    with pytest.raises(ValueError, match="classes is 4, but class_names has 2: a, b"):
        zoo.load(recipe, classes=4, class_names=["a", "b"])
    with pytest.raises(ValueError, match="class_agnostic_masks=True, but masks=False"):
        zoo.load(recipe, weights=None, masks=False, class_agnostic_masks=True)
    with pytest.raises(ValueError, match="the keypoint branch needs structure"):
        zoo.load(recipe, weights=None, structure="c4", keypoints=3)
    with pytest.raises(ValueError, match=r'tiny\.yaml: model\.clases: unknown field; did you mean "classes"'):
        zoo.load(recipe, clases=3)


def test_another_network_does_not_take_the_weights(recipe):
    with pytest.raises(
        ValueError, match=r"example.org.*: weights of another network than this one: missing backbone/"
    ):
        zoo.load(recipe, backbone="resnet34")


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(
        FileNotFoundError, match="no model 'maskrcn_r101_fpn'.*did you mean \"maskrcnn_r101_fpn\""
    ):
        zoo.load("maskrcn_r101_fpn")


def test_a_model_without_published_weights_says_so():
    with pytest.raises(ValueError, match="maskrcnn_r50_c5 has no pretrained weights .*maskrcnn_r50_fpn"):
        zoo.load("maskrcnn_r50_c5")


def test_own_weights_of_a_detector(recipe, tmp_path):
    model = zoo.load(recipe)
    path = tmp_path / "mine.weights.h5"
    save_weights(model, path)
    again = zoo.load(recipe, weights=path)
    for a, b in zip(model.weights, again.weights, strict=True):
        np.testing.assert_array_equal(a, b)
    fitted = zoo.load(recipe, weights=path, class_names=["cat"])
    assert {name.split("/")[0] for name in fitted.loaded.fresh} == {"box_predictor", "mask_head"}
    with pytest.raises(ValueError, match="missing backbone/res2_2_conv1/kernel"):
        zoo.load(recipe, weights=path, backbone="resnet34")


def test_files_of_other_libraries(recipe, home, tmp_path):
    path = home / "downloads" / "model_final_abc123.pkl"
    assert zoo.load(recipe, weights=path).loaded.fresh == ()
    with pytest.raises(ValueError, match=r"notes\.txt: weights of which format\? .*\.pkl \(detectron2\)"):
        zoo.load(recipe, weights=tmp_path / "notes.txt")
    with pytest.raises(FileNotFoundError, match="absent.pkl"):
        zoo.load(recipe, weights=tmp_path / "absent.pkl")


def test_imagenet_weights_need_a_network_that_has_them(recipe, home):
    with pytest.raises(
        ValueError, match="no ImageNet weights for backbone 'resnet18', width 4; keras.applications has"
    ):
        zoo.load(recipe, weights="imagenet")
    with pytest.raises(FileNotFoundError, match="resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5"):
        zoo.load("maskrcnn_r50_fpn", weights="imagenet")
