"""What the browser page is told of a model, and what `export.browser` refuses: without Node and without a browser."""

from __future__ import annotations

import importlib
import json
import zlib

import keras
import numpy as np
import pytest
from detector_files import TINY
from PIL import Image

import keras_seg
from keras_seg import models
from keras_seg.export import browser_model
from keras_seg.export.browser_model import check_picture, input_size
from keras_seg.export.tflite import tflite
from keras_seg.instances import Instances
from keras_seg.segment import segment

browser = importlib.import_module(
    "keras_seg.export.browser"
)  # `keras_seg.export.browser` is the function of that name


@pytest.fixture(scope="module")
def unet():
    keras.utils.set_random_seed(0)
    return models.unet(
        1,
        2,
        depth=2,
        base_channels=4,
        padding="same",
        rotations=7,
        class_names=["membrane", "cell"],
        name="small",
    )


@pytest.fixture(scope="module")
def detector():
    keras.utils.set_random_seed(3)
    return models.mask_rcnn(2, class_names=["a", "b"], **{**TINY, "scale": 1.5})


def test_a_unets_page_has_some_of_pythons_probabilities_to_check_itself_by(unet, tmp_path):
    content = tflite(unet, tmp_path / "u.tflite", height=64, width=64).read_bytes()
    entry = browser_model.describe(unet, (64, 64), content, None)
    check = entry.pop("check")
    expected = segment(unet, check_picture(64, 64, 1), rotations=1).ravel()
    assert check["step"] % 2 == 1 and 700 <= len(check["probabilities"]) <= 900
    assert np.std(check["probabilities"][::2]) > 1e-3
    np.testing.assert_allclose(check["probabilities"], expected[:: check["step"]], atol=2e-5)
    assert entry == {
        "name": "small", "summary": "Segmentation by small", "license": "", "classes": ["membrane", "cell"], "threshold": 0.5, "input": [64, 64],
        "kind": "unet", "border": 24, "multiple": 4, "versions": 7, "object_class": 1,
    }  # fmt: skip


def test_a_detectors_page_has_the_best_of_pythons_objects(detector, tmp_path):
    size = input_size(detector, 64, 96)
    content = tflite(detector, tmp_path / "d.tflite", height=64, width=96).read_bytes()
    entry = browser_model.describe(detector, size, content, "dynamic")
    check = entry["check"]
    image, sides = check_picture(64, 96, 3)[None].astype(np.float32), np.float32([[64, 96]])
    found = {k: v.numpy()[0] for k, v in detector({"image": image, "size": sides}, training=False).items()}
    assert check["count"] == found["num_detections"] > 0
    assert len(check["objects"]) == min(check["count"], browser_model.MOST_ANSWERS)
    for one in check["objects"]:
        n = np.abs(found["boxes"] - one["box"]).max(1).argmin()
        np.testing.assert_allclose(found["boxes"][n], one["box"], atol=0.02)
        np.testing.assert_allclose(found["scores"][n], one["score"], atol=2e-4)
        np.testing.assert_allclose(found["masks"][n].mean(), one["mask"], atol=1e-3)
    assert check["tolerances"] == browser_model.TOLERANCES[True]
    assert (entry["kind"], entry["scale"], entry["convention"]) == ("detector", 1.5, "detectron2")
    assert entry["fill"] == [124, 116, 104] and entry["input"] == [64, 96]


def test_the_picture_of_the_check_is_the_same_everywhere():
    picture = check_picture(240, 250, 3)
    assert picture.shape == (240, 250, 3) and (picture == picture[..., :1]).all()
    assert zlib.crc32(picture.tobytes()) == 1932071198
    assert 0.1 < (picture > 80).mean() < 0.5


def test_inputs(unet, detector):
    assert input_size(detector, None, None) == (384, 384)
    assert input_size(unet, None, None) == (512, 512)
    assert input_size(unet, 64, 68) == (64, 68)
    for side in (48, 63):
        with pytest.raises(
            ValueError, match=f"small: an input of {side} x {side} pixels; sides must be at least 52"
        ):
            input_size(unet, side, side)


def test_numbers_of_a_page_are_compared_with_objects_of_python():
    probabilities = np.zeros((3, 4, 4), np.float32)
    probabilities[:, :, 1:] = 1
    boxes = np.array([[0, 0, 8, 8], [10, 10, 18, 18], [2, 12, 8, 18]], np.float32)
    expected = Instances(boxes, np.array([0.9, 0.8, 0.2]), np.zeros(3, int), (20, 20), probabilities)
    found = [
        {"box": [*box], "score": float(score), "class": 0, "segmentation": runs(mask)}
        for box, score, mask in zip(boxes + 0.25, expected.scores - 0.125, expected.masks, strict=True)
    ]
    same = browser.objects_differ(expected, found)
    assert same == {
        "objects": 2,
        "without counterpart": 0,
        "boxes": 0.25,
        "scores": pytest.approx(0.125),
        "masks": 0.0,
    }
    found[1]["segmentation"] = runs(expected.masks[1] & (np.arange(20) < 16))
    assert browser.objects_differ(expected, found)["masks"] == pytest.approx(1 - 4 / 6, abs=0.2)
    assert browser.objects_differ(expected, [])["without counterpart"] == 2


def runs(mask):
    flat = np.concatenate([[0], mask.ravel(order="F"), [2]])
    changes = np.flatnonzero(np.diff(flat)) if flat[1] == 0 else np.r_[0, np.flatnonzero(np.diff(flat))]
    return {"size": [*mask.shape], "counts": np.diff(np.r_[0, changes]).tolist()}


def test_what_is_not_overwritten(unet, tmp_path):
    (tmp_path / "notes.txt").write_text("years of work")
    (tmp_path / "page.html").write_text("another page")
    page = tmp_path / "page"
    page.mkdir()
    (page / "worker.js").write_text("")
    (page / "models.json").write_text(json.dumps([{"name": "small"}, {"name": "other"}]))
    for path, options, message in (
        (tmp_path, {}, "holds something else than a page; give another path"),
        (tmp_path, {"overwrite": True}, "holds something else than a page; give another path"),
        (tmp_path / "notes.txt", {"overwrite": True}, "notes.txt: is a file; a page is a folder"),
        (tmp_path / "page.html", {}, "page.html: is there already; give another path, or overwrite=True"),
        (page, {}, "page: offers small already; overwrite=True replaces it"),
    ):
        with pytest.raises(FileExistsError, match=message):
            keras_seg.export.browser(unet, path, **options)
    assert (tmp_path / "notes.txt").read_text() == "years of work"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["notes.txt", "page", "page.html"]


def test_what_is_missing_is_named_before_the_work(unet, tmp_path, monkeypatch):
    monkeypatch.setattr(browser, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CHROMIUM", raising=False)
    with pytest.raises(
        browser.NotInstalled, match="node is not on the PATH, and bundles the page: install Node 20"
    ):
        keras_seg.export.browser(unet, tmp_path / "page")
    with pytest.raises(browser.NotInstalled, match="Chromium is not there, in which the page is tried"):
        browser.chromium_program()
    monkeypatch.setenv("CHROMIUM", "/nowhere/chromium")
    with pytest.raises(browser.NotInstalled, match="/nowhere/chromium is not there"):
        browser.chromium_program()
    program(tmp_path / "npm", "echo no network >&2; exit 1")
    program(tmp_path / "node", "echo v18.3.0")
    with pytest.raises(browser.NotInstalled, match="node is v18.3.0: install Node 20"):
        keras_seg.export.browser(unet, tmp_path / "page")
    program(tmp_path / "node", "echo v22.1.0")
    with pytest.raises(browser.NotInstalled, match="npm could not fetch the page's packages .*: no network"):
        keras_seg.export.browser(unet, tmp_path / "page")
    monkeypatch.setenv("KERAS_SEG_OFFLINE", "1")
    with pytest.raises(browser.NotInstalled, match="KERAS_SEG_OFFLINE is set and npm's cache lacks them"):
        keras_seg.export.browser(unet, tmp_path / "page")
    assert not (tmp_path / "page").exists()
    assert not [path for path in (tmp_path / "cache" / "browser").iterdir() if path.is_dir()]


def program(path, script):
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_wrong_options(unet, tmp_path):
    with pytest.raises(ValueError, match="quantize must be one of None, 'float16', 'dynamic', got 'int8'"):
        keras_seg.export.browser(unet, tmp_path / "page", quantize="int8")
    with pytest.raises(TypeError, match="takes a model of keras_seg.models, got str"):
        keras_seg.export.browser("unet", tmp_path / "page")
    with pytest.raises(ValueError, match="pair takes 2 channels, and pictures have 1 or 3"):
        keras_seg.export.browser(models.unet(2, 2, depth=1, name="pair"), tmp_path / "page")
    with pytest.raises(FileNotFoundError, match="absent.png"):
        keras_seg.export.browser(unet, tmp_path / "page", example=tmp_path / "absent.png")
    assert not list(tmp_path.iterdir())


def test_images_as_the_page_takes_them(unet, detector, tmp_path):
    deep = np.uint16([[0, 65535], [257, 32896]])
    assert browser.pixels_for_page(unet, deep)[..., 0].tolist() == [[0, 255], [1, 128]]
    Image.fromarray(np.uint8([[5, 6]])).save(tmp_path / "grey.png")
    assert browser.pixels_for_page(unet, tmp_path / "grey.png").tolist() == [[[5], [6]]]
    assert browser.pixels_for_page(detector, tmp_path / "grey.png").tolist() == [[[5] * 3, [6] * 3]]
