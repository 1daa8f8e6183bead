"""A detector over the images of COCO annotations, by the functions and by `keras-seg evaluate`; test-time augmentation."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from detector_files import TINY, write_recipe
from PIL import Image

from keras_seg import evaluate, models, zoo
from keras_seg.detect import detect
from keras_seg.instances import Instances
from keras_seg.metrics import coco
from keras_seg.tta import _merged, _mirrored_keypoints, _turned_back, augmented_detector

SIZES = ((40, 60), (64, 48), (40, 60))  # height, width


@pytest.fixture(scope="module")
def model():
    import keras

    keras.utils.set_random_seed(3)
    return models.mask_rcnn(3, class_names=["a", "b", "c"], **TINY)


@pytest.fixture(scope="module")
def data(tmp_path_factory, model) -> Path:
    """A folder with images, COCO annotations of what the model finds in them, and a recipe."""
    folder = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(0)
    (folder / "images").mkdir()
    images, annotations = [], []
    for number, (height, width) in enumerate(SIZES, start=1):
        pixels = random.integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"images/{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": height, "width": width})
        for found in detect(model, pixels, score_threshold=0.0).to_coco(number, [30, 10, 20]):
            x, y, w, h = found["bbox"]
            annotations.append({
                "id": len(annotations), "image_id": number, "category_id": found["category_id"], "iscrowd": 0,
                "bbox": found["bbox"], "area": w * h, "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
            })  # fmt: skip
    categories = [{"id": k, "name": name} for k, name in ((10, "b"), (20, "c"), (30, "a"))]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(content))
    write_recipe(folder / "tiny.yaml")
    return folder


def test_a_model_finds_what_it_found(model, data):
    """The annotations are its own detections, so that the score is perfect; in batches nearly so."""
    find = evaluate.finder(model)
    pairs = evaluate.detections(find, data / "annotations.json", data / "images")
    assert coco.evaluate(data / "annotations.json", pairs, "bbox")["AP"] == pytest.approx(1)
    batches = list(evaluate.detections(find, data / "annotations.json", data / "images", batch_size=2))
    assert [k for k, _ in batches] == [1, 3, 2]  # by proportions
    assert coco.evaluate(data / "annotations.json", batches, "bbox")["AP50"] > 0.9
    some = list(evaluate.detections(find, data / "annotations.json", data / "images", image_ids=[2]))
    assert [k for k, _ in some] == [2]


def test_any_function_of_an_image_will_do(data):
    annotations = json.loads((data / "annotations.json").read_text())

    def find(path: Path) -> Instances:
        height, width = SIZES[int(path.stem) - 1]
        nothing = np.zeros((0, 4))
        return Instances(nothing, nothing[:, 0], nothing[:, 0], (height, width), class_names=["a"])

    pairs = evaluate.detections(find, annotations, data / "images")
    with pytest.warns(UserWarning, match="there are no results"):
        assert coco.evaluate(annotations, pairs, "bbox")["AP"] == 0


def test_messages_before_the_first_image(data, tmp_path):
    annotations = json.loads((data / "annotations.json").read_text())
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder of images"):
        evaluate.detections(None, annotations, tmp_path / "nowhere")
    (tmp_path / "2.png").touch()
    with pytest.raises(FileNotFoundError, match=r"2 of 3 images of annotations are not there: 1.png, 3.png"):
        evaluate.detections(None, annotations, tmp_path)
    with pytest.raises(ValueError, match="annotations: has no image 8"):
        evaluate.detections(None, annotations, tmp_path, image_ids=[2, 8])
    with pytest.raises(ValueError, match="batch_size must be positive, got 0"):
        evaluate.detections(None, annotations, tmp_path, batch_size=0)
    annotations["images"][0].pop("file_name")
    with pytest.raises(ValueError, match="image 1 needs a file_name, got None"):
        evaluate.detections(None, annotations, data / "images")


# -- test-time augmentation ------------------------------------------------------------------------------------


def photograph(seed: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (48, 64, 3), np.uint8)


def test_one_view_is_the_model_itself(model):
    plain = detect(model, photograph(), score_threshold=0.0)
    seen = augmented_detector(model, flip=False)(photograph())
    assert len(seen) == len(plain) > 0
    np.testing.assert_allclose(seen.boxes, plain.boxes, atol=1e-3)
    np.testing.assert_array_equal(seen.classes, plain.classes)
    np.testing.assert_allclose(seen.mask_probabilities, plain.mask_probabilities, atol=1e-4)


def test_a_mirrored_image_gives_the_mirrored_result(model):
    find = augmented_detector(model, flip=True, max_detections=4)
    here, there = find(photograph()), find(np.ascontiguousarray(photograph()[:, ::-1]))
    assert len(here) == 4
    np.testing.assert_allclose(here.scores, there.scores, atol=1e-4)
    np.testing.assert_allclose(
        here.boxes[:, [0, 1, 2, 3]],
        64 * np.float32([1, 0, 1, 0]) + there.boxes[:, [2, 1, 0, 3]] * [-1, 1, -1, 1],
        atol=1e-2,
    )
    np.testing.assert_allclose(here.mask_probabilities, there.mask_probabilities[:, :, ::-1], atol=1e-3)


def test_masks_are_the_mean_of_the_views(model):
    """At two sizes: each size alone, given the same boxes, would see the two whose mean it is."""
    both = augmented_detector(model, flip=False, short_sides=[48, 80])(photograph())
    one = [augmented_detector(model, flip=False, short_sides=[s])(photograph()) for s in (48, 80)]
    for index in range(len(both)):
        # a box that remains is one of those of a view
        distances = [np.abs(o.boxes - both.boxes[index]).max(axis=1).min() for o in one]
        assert min(distances) < 1e-3
    assert both.scores.max() == pytest.approx(max(o.scores.max() for o in one), abs=1e-5)


def test_views_are_merged_within_classes():
    boxes = np.float32([[0, 0, 10, 10], [20, 20, 30, 30]])
    first = Instances(
        boxes, np.float32([0.6, 0.9]), np.int32([0, 1]), (40, 40), keypoints=np.zeros((2, 1, 3))
    )
    second = dataclasses.replace(
        first, boxes=boxes + np.float32(0.5), scores=np.float32([0.8, 0.5]), classes=np.int32([0, 0]),
        keypoints=np.ones((2, 1, 3)),
    )  # fmt: skip
    merged = _merged([first, second], 0.5, 10)
    np.testing.assert_allclose(merged.scores, [0.9, 0.8, 0.5])
    np.testing.assert_array_equal(merged.classes, [1, 0, 0])
    np.testing.assert_array_equal(merged.boxes, [boxes[1], boxes[0] + 0.5, boxes[1] + 0.5])
    np.testing.assert_array_equal(merged.keypoints[:, 0, 0], [0, 1, 1])
    assert len(_merged([first, second], 0.5, 2)) == 2


def test_keypoints_of_a_mirrored_image():
    """A person at x = 2 to 12 of 40 pixels, seen in a mirror at 28 to 38."""
    named = SimpleNamespace(keypoint_names=["nose", "left_eye", "right_eye"])
    keypoints = np.float32([[[30, 5, 0.9], [29, 4, 0.8], [33, 4, 0.7]]])
    seen = Instances([[28, 0, 38, 20]], [1], [0], (20, 40), keypoints=keypoints)
    found = _turned_back(seen, _mirrored_keypoints(named))
    np.testing.assert_array_equal(found.boxes, [[2, 0, 12, 20]])
    np.testing.assert_allclose(found.keypoints, [[[10, 5, 0.9], [7, 4, 0.7], [11, 4, 0.8]]])


def test_keypoints_need_names_to_be_mirrored():
    nameless = SimpleNamespace(name="x", keypoints=3, keypoint_names=None, short_side=64)
    with pytest.raises(ValueError, match="x has 3 keypoints without names; to mirror them"):
        augmented_detector(nameless)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"short_sides": []}, r"short_sides are positive integers up to max_side=4000, got \[\]"),
        ({"short_sides": [0]}, r"got \[0\]"),
        ({"short_sides": [900], "max_side": 800}, "up to max_side=800"),
        ({"max_detections": 0}, "max_detections must be positive, got 0"),
    ],
)
def test_messages_of_augmentation(model, options, message):
    with pytest.raises(ValueError, match=message):
        augmented_detector(model, **options)


# -- the command -----------------------------------------------------------------------------------------------


def arguments(data: Path, *more) -> list:
    return [
        "evaluate",
        data / "tiny.yaml",
        "--data",
        data / "annotations.json",
        "--images",
        data / "images",
        *more,
    ]


@pytest.fixture
def overrides(model, monkeypatch) -> list[dict]:
    """Loading gives the model that is there, traced already; returns the overrides with which it was loaded."""
    seen = []
    monkeypatch.setattr(zoo, "load", lambda recipe, weights, **more: seen.append(more) or model)
    return seen


def test_a_value_range_is_that_of_the_files(model, tmp_path):
    pixels = photograph()
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 4).save(tmp_path / "dark.png")
    expected = detect(model, pixels[..., :1], score_threshold=0.0)
    find = evaluate.finder(model, value_range=(0, 1020))
    for found in (find(tmp_path / "dark.png"), *find([tmp_path / "dark.png"])):
        np.testing.assert_allclose(found.boxes, expected.boxes, atol=1e-4)


def test_precision_goes_without_augmentation(model):
    with pytest.raises(ValueError, match="precision goes without flip and short_sides"):
        evaluate.finder(model, flip=True, precision="bfloat16")


def test_command_scores_a_model_and_its_results(run, data, tmp_path, overrides):
    results = tmp_path / "results.json"
    wanted = ("--results", results, "--curves", tmp_path / "curves.png", "--pictures", tmp_path / "errors")
    status, out, _ = run(*arguments(data, *wanted))
    assert min(path.name for path in (tmp_path / "errors").iterdir()).startswith("01_")
    assert status == 0 and overrides == [{}]
    lines = [line.split() for line in out.splitlines() if line]
    assert lines[0][:2] == ["AP", "AP50"] and lines[1][:3] == ["all", "(bbox)", "100.00"]
    assert [line[0] for line in lines[2:5]] == ["b", "c", "a"] and ["all", "(segm)"] == lines[6][:2]
    assert {path.name for path in tmp_path.glob("*.png")} == {"curves-bbox.png", "curves-segm.png"}
    status, out, _ = run("evaluate", results, "--data", data / "annotations.json", "--json")
    again = json.loads(out)
    expected = coco.evaluate(data / "annotations.json", results, "segm")
    assert status == 0 and list(again) == ["bbox", "segm"]
    assert {k: v for k, v in again["segm"].items() if k != "per_class"} == expected
    assert set(again["segm"]["per_class"]) == {"a", "b", "c"}


def test_command_with_augmentation_and_more_detections(run, data, overrides):
    more = ("--flip", "--scales", "64,80", "--max-detections", 12, "--iou-type", "bbox", "--json")
    status, out, error = run(*arguments(data, *more))
    assert status == 0, error
    assert overrides == [{"detections": 12}]
    figures = json.loads(out)["bbox"]
    assert "AR12" in figures and 0 < figures["AP50"] <= 1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--scales", "64,big"), "--scales 64,big: must be shorter sides in pixels, as in 640,800"),
        (("--scales", "0"), "short_sides are positive integers"),
        (("--iou-type", "keypoints"), "annotation 0 (image 1): keypoints take x, y and one more number each"),
        (("--iou-type", "masks"), "iou_type must be one of 'bbox', 'segm', 'keypoints', got 'masks'"),
        (("--images", "nowhere"), "nowhere: no such folder of images"),
        (("--data", "."), "--data .: a detector is scored on COCO annotations, a .json file"),
        (("--data", "none.json"), "none.json: no such file of annotations"),
    ],
)
def test_messages_of_the_command(run, data, overrides, more, message):
    status, _, error = run(*arguments(data, *more))
    assert status == 2 and message in error, error


def test_results_that_are_no_results(run, data, tmp_path):
    wrong = tmp_path / "wrong.json"
    wrong.write_text('[{"image_id": 1}]')
    status, _, error = run("evaluate", wrong, "--data", data / "annotations.json")
    assert status == 2 and "result 0: category_id None is not among the annotations' 10, 20, 30" in error
    wrong.write_text("[]")
    status, out, error = run("evaluate", wrong, "--data", data / "annotations.json")
    assert status == 0 and "bbox: there are no results" in error and "0.00" in out
    status, _, error = run("evaluate", tmp_path, "--data", data / "annotations.json")
    assert status == 2 and "not a SavedModel; its folder holds saved_model.pb" in error
