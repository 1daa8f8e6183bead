"""`keras-seg export`, and `keras-seg evaluate` of what it wrote."""

from __future__ import annotations

import json
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from detector_files import TINY
from PIL import Image

from keras_seg import export, models, zoo
from keras_seg.export import comparison
from keras_seg.instances import Instances
from keras_seg.weights import save_weights

pytestmark = pytest.mark.usefixtures("graphs_as_traced", "loaded_once")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Recipes and weights of a detector and a U-Net, and three images with annotations."""
    folder = tmp_path_factory.mktemp("models")
    keras.utils.set_random_seed(3)
    detector = {"builder": "mask_rcnn", "class_names": ["a", "b"], **TINY}
    network = {
        "builder": "unet", "input_channels": 1, "class_names": ["no", "yes"], "depth": 2, "base_channels": 4,
        "padding": "same", "dropout": 0.0,
    }  # fmt: skip
    for name, block, model in (
        ("detector", detector, models.mask_rcnn(2, class_names=["a", "b"], **TINY)),
        ("network", network, models.unet(1, 2, depth=2, base_channels=4, padding="same")),
    ):
        recipe = {"schema": 1, "name": name, "summary": "for a test", "model": block}
        if name == "network":
            recipe["data"] = {
                "reader": "folder",
                "classes": {"no": 0, "yes": 255},
                "validation_images": "v",
                "validation_masks": "m",
                "tile": 64,
                "batch_size": 1,
            }
            recipe["training"] = {
                "steps": 1,
                "optimizer": {"name": "adam", "learning_rate": 1e-3},
                "select": {"metric": "mean_iou", "mode": "max"},
            }
        (folder / f"{name}.yaml").write_text(json.dumps(recipe))
        save_weights(model, folder / f"{name}.weights.h5")
    images, annotations = [], []
    random = np.random.default_rng(0)
    for k, (height, width) in enumerate([(40, 60), (64, 48), (50, 50)], start=1):
        Image.fromarray(random.integers(0, 256, (height, width, 3), np.uint8)).save(folder / f"{k}.png")
        images.append({"id": k, "file_name": f"{k}.png", "height": height, "width": width})
        annotations.append(
            {"id": k, "image_id": k, "category_id": 1, "iscrowd": 0, "bbox": [5, 5, 20, 30], "area": 600,
             "segmentation": [[5, 5, 25, 5, 25, 35, 5, 35]]}
        )  # fmt: skip
    categories = [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(content))
    return folder


def given(folder, name: str) -> tuple:
    return folder / f"{name}.yaml", "--weights", folder / f"{name}.weights.h5"


def test_a_saved_model_is_checked_and_scores_as_its_model(run, folder, tmp_path):
    name, *weights = given(folder, "detector")
    status, out, _ = run("export", name, tmp_path / "1", *weights, "--check", "--image", folder / "1.png")
    assert status == 0
    assert re.search(r"objects +[1-9].*without counterpart +0.* boxes +\S+ px.*masks", out, re.DOTALL)
    options = "--data", folder / "annotations.json", "--json", "--iou-type", "bbox"
    status, own, _ = run("evaluate", name, *weights, *options)
    assert status == 0
    status, exported, _ = run("evaluate", tmp_path / "1", *options)
    assert status == 0
    assert json.loads(exported)["bbox"]["AR100"] == pytest.approx(json.loads(own)["bbox"]["AR100"], abs=1e-6)
    # the same images in 16 bits, of which the values 0 to 1020 are used
    for images in ("grey", "dark"):
        (tmp_path / images).mkdir()
    for file in folder.glob("?.png"):
        pixels = np.asarray(Image.open(file)).mean(-1).astype(np.uint16)
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "grey" / file.name)
        Image.fromarray(pixels * 4).save(tmp_path / "dark" / file.name)
    found = {}
    for images, more in (("grey", ()), ("dark", ("--value-range", 0, 1020)), ("dark", ())):
        results = tmp_path / "found.json"
        wanted = "--images", tmp_path / images, "--results", results, "--report", tmp_path / "page"
        assert run("evaluate", tmp_path / "1", *options, *wanted, *more)[0] == 0
        shown = np.asarray(Image.open(tmp_path / "page/images/0001_image.jpg"))
        found[images, more] = results.read_text(), shown
    expected, same, other = found.values()
    assert same[0] == expected[0] != other[0]
    np.testing.assert_array_equal(same[1], expected[1])
    assert other[1].mean() < 10 < expected[1].mean()
    assert run("export", name, tmp_path / "1", *weights)[0] == 2
    for more, message in (
        (("--flip",), "an exported model has one size"),
        (("--max-detections", "9"), "gives 5 detections an image, not 9"),
    ):
        status, _, error = run("evaluate", tmp_path / "1", *options, *more)
        assert status == 2 and message in error


@pytest.mark.parametrize("masks", ["pasted", "bits"])
def test_pasted_masks_are_checked_and_limits_are_those_asked_for(run, folder, tmp_path, masks):
    name, *weights = given(folder, "detector")
    limits = "--most-pixels", 60 * 60, "--most-images", 3, "--most-request-pixels", 8000
    status, out, error = run(
        "export", name, tmp_path / "1", *weights, "--masks", masks, *limits, "--for-gpu", "--check"
    )
    assert status == 0, error
    assert re.search(r"objects +[1-9].* pasted masks +\S", out, re.DOTALL)
    about = json.loads((tmp_path / "1/assets/keras_seg.json").read_text())
    assert (about["most_pixels"], about["most_images"], about["most_request_pixels"]) == (3600, 3, 8000)
    exported = export.load(tmp_path / "1")
    with pytest.raises(tf.errors.InvalidArgumentError, match="more than 3600 pixels an image"):
        exported.outputs(np.zeros((64, 64, 3), np.uint8))
    # masks of something else are found out
    save_weights(models.mask_rcnn(2, class_names=["a", "b"], **TINY), tmp_path / "other.weights.h5")
    other = zoo.load(folder / "detector.yaml", tmp_path / "other.weights.h5")
    compared = comparison.saved_model_differences(other, tmp_path / "1", folder / "1.png")
    assert comparison.exceeded(compared, comparison.SAVED_MODEL)


@pytest.mark.parametrize("format", ["savedmodel", "tflite"])
def test_a_unet_is_checked(run, folder, tmp_path, format):
    name, *weights = given(folder, "network")
    status, out, error = run("export", name, tmp_path / "out", *weights, "--format", format, "--check")
    assert status == 0, error
    assert re.search(r"probabilities +\d", out)
    status, _, error = run("evaluate", tmp_path / "out", "--data", folder / "annotations.json")
    assert status == 2 and ("holds a U-Net" if format == "savedmodel" else "out") in error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--quantize", "int8"], "--quantize is not for --format savedmodel"),
        (["--format", "tflite", "--masks", "bits"], "--masks is not for --format tflite"),
        (["--format", "browser", "--masks", "bits"], "--masks is not for --format browser"),
        (["--format", "browser", "--representative", "r"], "--representative is not for --format browser"),
        (["--format", "tflite", "--example", "a.png"], "--example is not for --format tflite"),
        (["--format", "browser", "--credit", "me"], "--credit is for --example"),
        (["--format", "browser", "--quantize", "int8"], "quantize must be one of None, 'float16', 'dynamic'"),
        (["--format", "tflite", "--most-images", "2"], "--most-images is not for --format tflite"),
        (["--format", "browser", "--for-gpu"], "--for-gpu is not for --format browser"),
        (["--most-pixels", "99", "--most-request-pixels", "9"], "most_pixels=99 of an image are more than"),
        (["--image", "a.png"], "--image is for --check"),
        (["--masks", "none"], "masks must be"),
    ],
)
def test_options_that_do_not_go_together(run, folder, tmp_path, options, message):
    name, *weights = given(folder, "detector")
    status, _, error = run("export", name, tmp_path / "out", *weights, *options)
    assert status == 2 and message in error and not (tmp_path / "out").exists()


def test_differences_count_what_has_no_counterpart():
    boxes = np.array([[0, 0, 10, 10], [20, 20, 40, 40], [50, 50, 60, 60]], np.float32)
    one = Instances(boxes, np.array([0.9, 0.8, 0.1]), np.array([0, 1, 0]), (64, 64))
    other = Instances(boxes[:2] + 0.25, np.array([0.7, 0.8]), np.array([0, 0]), (64, 64))
    found = comparison.differences(one, other)
    assert found == {"objects": 2, "without counterpart": 1, "boxes": 0.25, "scores": pytest.approx(0.2)}
    assert comparison.exceeded(found, comparison.TFLITE) == ["scores", "without counterpart"]
    assert comparison.exceeded(comparison.differences(one, one), comparison.SAVED_MODEL) == []
