"""Many images segmented into a folder, by the function and by `keras-seg segment`."""

from __future__ import annotations

import json
from pathlib import Path

import keras
import numpy as np
import pytest
import roifile
import tifffile
import yaml
from detector_files import TINY, write_recipe
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.mask import decode

from keras_seg import models, segment, segment_files, zoo
from keras_seg.detect import detect
from keras_seg.findings import Segmented, window_rle
from keras_seg.ops.rle import encode_mask
from keras_seg.result_files import write_labels
from keras_seg.segment import instances
from keras_seg.weights.files import save_weights

UNET = {"depth": 1, "base_channels": 2, "padding": "same", "class_names": ["membrane", "cell"]}
TRAINED = {
    "data": {"reader": "isbi", "train_slices": 0, "tile": 32},
    "training": {"steps": 1, "optimizer": {"name": "adam", "learning_rate": 0.01}},
}


@pytest.fixture(scope="module")
def unet():
    keras.utils.set_random_seed(2)
    return models.unet(1, name="small", **UNET)


@pytest.fixture(scope="module")
def detector():
    keras.utils.set_random_seed(3)
    return models.mask_rcnn(3, class_names=["a", "b", "c"], name="tiny", **TINY)


@pytest.fixture(scope="module")
def weights(tmp_path_factory, unet, detector) -> Path:
    """A folder with recipes of both models, and their weights."""
    folder = tmp_path_factory.mktemp("models")
    fields = {
        "schema": 1,
        "name": "small",
        "summary": "For a test.",
        "model": {"builder": "unet", **UNET},
        **TRAINED,
    }
    (folder / "small.yaml").write_text(yaml.safe_dump(fields))
    write_recipe(folder / "tiny.yaml")
    for model in (unet, detector):
        save_weights(model, folder / f"{model.name}.weights.h5")
    return folder


@pytest.fixture
def images(tmp_path, monkeypatch) -> Path:
    """The folder "in": two images of one name in two folders, one that is none, and a stack of 16 bits."""
    random = np.random.default_rng(0)
    for name, size in (("a/1.png", (40, 56)), ("b/1.png", (48, 40))):
        (tmp_path / "in" / name).parent.mkdir(parents=True)
        Image.fromarray(random.integers(0, 256, (*size, 3), np.uint8)).save(tmp_path / "in" / name)
    (tmp_path / "in/b/broken.png").write_bytes(b"\x89PNG no more")
    stack = random.integers(0, 65536, (3, 36, 44), np.uint16)
    tifffile.imwrite(tmp_path / "in/b/stack.tif", stack, photometric="minisblack")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "in"


def files_in(folder: Path) -> list[str]:
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())


def test_a_detector_and_everything_it_can_keep(detector, images):
    kinds = ("overlay", "labels", "coco", "rois")
    batch = segment_files.segment_files(detector, ["in/a", "in/b"], "out", save=kinds, score_threshold=0.0)
    assert [Path(image.file).name for image in batch.images] == ["1.png", "1.png", "stack.tif"]
    assert list(batch.failed) == [Path("in/b/broken.png")]
    assert "truncated or damaged" in batch.failed[Path("in/b/broken.png")] or "not an image" in str(
        batch.failed
    )
    assert files_in(Path("out")) == [
        "coco/a/1.json", "coco/b/1.json", "coco/stack.json", "coco_images.json", "coco_results.json",
        "labels/a/1.tif", "labels/b/1.tif", "labels/stack.tif",
        "overlay/a/1.png", "overlay/b/1.png",
        "overlay/stack_slices/0001.png", "overlay/stack_slices/0002.png", "overlay/stack_slices/0003.png",
        "rois/a/1.zip", "rois/b/1.zip", "rois/stack.zip", "segment.jsonl",
    ]  # fmt: skip

    found = detect(detector, "in/a/1.png", score_threshold=0.0)
    np.testing.assert_array_equal(tifffile.imread("out/labels/a/1.tif"), found.to_labels())
    regions = roifile.roiread("out/rois/a/1.zip")
    assert [region.name for region in regions] == [
        f"{number:04d}-{name}"
        for number, (name, mask) in enumerate(zip(found.names, found.masks), start=1)
        if mask.any()
    ]
    truth = COCO("out/coco_images.json")
    assert [(i["id"], i["file_name"], i.get("slice")) for i in truth.dataset["images"]] == [
        (1, "a/1.png", None), (2, "b/1.png", None),
        (3, "b/stack.tif", 1), (4, "b/stack.tif", 2), (5, "b/stack.tif", 3),
    ]  # fmt: skip
    results = truth.loadRes("out/coco_results.json")
    of_first = results.loadAnns(results.getAnnIds(imgIds=[1]))
    np.testing.assert_array_equal([decode(one["segmentation"]) for one in of_first], found.masks)
    assert {c["name"] for c in results.loadCats(results.getCatIds())} == {"a", "b", "c"}

    stack = tifffile.TiffFile("out/labels/stack.tif")
    assert stack.is_imagej and stack.imagej_metadata["slices"] == 3 and stack.asarray().dtype == np.uint16
    positions = {region.position for region in roifile.roiread("out/rois/stack.zip")}
    assert positions <= {1, 2, 3} and len(positions) > 1


def test_a_unet_and_everything_it_can_keep(unet, images):
    batch = segment_files.segment_files(
        unet,
        "in/b/stack.tif",
        "out",
        save=["overlay", "labels", "coco", "rois", "probabilities"],
        pixel_threshold=0.45,
    )
    expected = segment(unet, "in/b/stack.tif")[..., 1]
    np.testing.assert_allclose(tifffile.imread("out/probabilities/stack.tif"), expected, atol=1e-6)
    labels = tifffile.imread("out/labels/stack.tif")
    for found, probability in zip(labels, expected, strict=True):
        np.testing.assert_array_equal(found, instances(probability, 0.45))
    count = sum(int(found.max()) for found in labels)
    assert batch.objects == count > 0 and len(roifile.roiread("out/rois/stack.zip")) == count
    results = COCO("out/coco_images.json").loadRes("out/coco_results.json")
    assert len(results.anns) == count
    first = results.loadAnns(results.getAnnIds(imgIds=[1]))[0]
    np.testing.assert_array_equal(decode(first["segmentation"]).astype(bool), labels[0] == 1)
    assert first["score"] == pytest.approx(expected[0][labels[0] == 1].mean(), abs=1e-6)
    assert first["category_id"] == 2 and results.loadCats(2)[0]["name"] == "cell"


def test_a_batch_that_was_stopped_goes_on(unet, images, monkeypatch):
    whole = segment_files.segment_files(unet, ["in/a", "in/b"], "whole", save=["labels"])
    looked, look = [], segment_files.look

    def stopping(model, file, **options):
        if len(looked) == 1:
            raise KeyboardInterrupt
        looked.append(file)
        return look(model, file, **options)

    monkeypatch.setattr(segment_files, "look", stopping)
    with pytest.raises(KeyboardInterrupt):
        segment_files.segment_files(unet, ["in/a", "in/b"], "out", save=["labels"])
    with Path("out/segment.jsonl").open("a") as file:
        file.write('{"file": "half a li')  # as a sudden end leaves it
    monkeypatch.setattr(segment_files, "look", lambda m, f, **o: looked.append(f) or look(m, f, **o))
    batch = segment_files.segment_files(unet, ["in/a", "in/b"], "out", save=["labels"])
    assert batch.resumed == 1 and [str(file) for file in looked] == [
        "in/a/1.png", "in/b/1.png", "in/b/broken.png", "in/b/stack.tif",
    ]  # fmt: skip
    assert files_in(Path("out/labels")) == files_in(Path("whole/labels"))
    for name in files_in(Path("out/labels")):
        np.testing.assert_array_equal(
            tifffile.imread(f"out/labels/{name}"), tifffile.imread(f"whole/labels/{name}")
        )
    assert batch.objects == whole.objects

    # what is lost, changed, or wanted in another form is done again; what has failed too
    looked.clear()
    Path("out/labels/stack.tif").unlink()
    Image.fromarray(np.tile(np.uint8([0, 255]), (30, 20))).save("in/b/1.png")
    segment_files.segment_files(unet, ["in/a", "in/b"], "out", save=["labels"])
    assert [file.name for file in looked] == ["1.png", "broken.png", "stack.tif"]
    assert tifffile.imread("out/labels/b/1.tif").shape == (30, 40)
    looked.clear()
    segment_files.segment_files(unet, "in/a", "out", save=["labels", "overlay"])
    assert [str(file) for file in looked] == ["in/a/1.png"] and Path("out/overlay/a/1.png").is_file()
    # a name stays, and a new file gets another
    segment_files.segment_files(unet, "in/b/1.png", "out", save=["labels"])
    assert not Path("out/labels/1.tif").exists()


def test_other_settings_are_noticed(unet, images):
    segment_files.segment_files(unet, "in/a", "out", save=["labels"])
    with pytest.raises(
        FileExistsError, match=r"other settings \(pixel threshold 0.5, now 0.6\): give another folder"
    ):
        segment_files.segment_files(unet, "in/a", "out", save=["labels"], pixel_threshold=0.6)
    other = models.unet(1, name="small", **UNET)
    with pytest.raises(FileExistsError, match=r"other settings \(weights '[0-9a-f]+', now"):
        segment_files.segment_files(other, "in/a", "out", save=["labels"])
    batch = segment_files.segment_files(other, "in/a", "out", save=["labels"], overwrite=True)
    assert batch.resumed == 0 and len(batch.images) == 1
    Path("out/segment.jsonl").write_text("{}\nno JSON\n")
    with pytest.raises(ValueError, match=r"segment.jsonl: damaged .*with overwrite"):
        segment_files.segment_files(other, "in/a", "out", save=["labels"])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"save": ["labels", "mask"]},
            ValueError,
            "'mask' is none of overlay, labels, coco, rois, probabilities",
        ),
        ({"save": []}, ValueError, "save: names nothing"),
        ({"class_index": 2}, ValueError, "class 2: small has the classes 0 to 1"),
        ({"inputs": "in/none.png"}, FileNotFoundError, "in/none.png: no such file"),
        ({"output": "in/a/1.png"}, FileExistsError, "in/a/1.png: a file, and the results of several images"),
    ],
)
def test_messages_before_the_first_image(unet, images, options, error, message):
    with pytest.raises(error, match=message):
        segment_files.segment_files(unet, **{"inputs": "in/a", "output": "out", **options})
    assert not Path("out").exists()


def test_a_detector_gives_no_probabilities(detector, images):
    with pytest.raises(ValueError, match="tiny gives no probabilities; it gives overlay, labels, coco, rois"):
        segment_files.segment_files(detector, "in/a", "out", save=["probabilities"])


def test_a_disk_that_is_full_stops_all(unet, images, monkeypatch):
    def full(path, stack):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("keras_seg.result_files.write_tiff", full)
    with pytest.raises(OSError, match="No space left"):
        segment_files.segment_files(unet, ["in/a", "in/b"], "out", save=["labels"])


def test_value_range_is_that_of_the_pixels(unet, detector, images):
    stack = tifffile.imread("in/b/stack.tif")
    (first, *_) = segment_files.look(unet, "in/b/stack.tif", value_range=(0, 4095))
    expected = segment(unet, stack[..., None], value_range=(0, 4095))[0, ..., 1]
    np.testing.assert_allclose(first.probability, expected, atol=1e-6)
    (first, *_) = segment_files.look(detector, "in/b/stack.tif", value_range=(0, 4095), score_threshold=0.0)
    scaled = np.rint(np.clip(stack[0] / 4095 * 255, 0, 255)).astype(np.uint8)
    np.testing.assert_allclose(
        first.instances.boxes, detect(detector, scaled, score_threshold=0.0).boxes, atol=1e-4
    )


def test_labels_of_many_objects_have_32_bits(tmp_path):
    write_labels(tmp_path / "few.tif", [np.array([[0, 65535]], np.int32)])
    write_labels(tmp_path / "many.tif", [np.array([[0, 65536]], np.int32)])
    assert tifffile.imread(tmp_path / "few.tif").dtype == np.uint16
    many = tifffile.imread(tmp_path / "many.tif")
    assert many.dtype == np.uint32 and many.tolist() == [[0, 65536]]


@pytest.mark.parametrize("seed", range(10))
def test_run_lengths_of_a_window(seed):
    random = np.random.default_rng(seed)
    size = tuple(random.integers(3, 9, 2).tolist())
    mask = random.random(size) < random.random()
    mask[:, :2] = True  # runs that go on from column to column
    assert window_rle(slice(0, size[0]), slice(0, size[1]), mask, size) == encode_mask(mask)
    whole = np.zeros((12, 12), bool)
    whole[2 : 2 + size[0], 3 : 3 + size[1]] = mask
    assert window_rle(slice(2, 2 + size[0]), slice(3, 3 + size[1]), mask, (12, 12)) == encode_mask(whole)


def test_a_class_without_a_name():
    seen = Segmented.of(np.zeros((2, 2, 1), np.uint8), np.float32([[0.9, 0], [0, 0.8]]), 1, None, 0.5)
    assert len(seen) == 2 and [region.class_name for region in seen.regions()] == ["class 1", "class 1"]


# -- the command -----------------------------------------------------------------------------------------------


def test_command_keeps_a_folder(run, weights, images):
    line = (
        "segment",
        weights / "small.yaml",
        "in/a",
        "in/b/*.tif",
        "-o",
        "out",
        "--save",
        "labels,coco",
        "--json",
    )
    line = (*line, "--weights", weights / "small.weights.h5", "--class", "cell")
    status, out, error = run(*line)
    about = json.loads(out)
    assert (status, error) == (0, "") and about["failed"] == [] and about["resumed"] == 0
    assert [Path(one["file"]).name for one in about["images"]] == ["1.png", "stack.tif"]
    for one in about["images"]:
        assert all(Path(file).is_file() for files in one["results"].values() for file in files)
    status, out, _ = run(*line)
    assert status == 0 and json.loads(out)["resumed"] == 2

    status, out, error = run(*line[:2], "in/b", "in/a", *line[4:8], *line[9:])
    assert status == 1 and out.startswith("out: 3 images (5 slices), 2 of them done before; ")
    first, named = error.splitlines()
    assert first == "keras-seg: 1 of 4 images failed:" and named.startswith("  in/b/broken.png: ")

    status, out, error = run(*line, "--pixel-threshold", 0.7)
    assert (
        status == 2
        and out == ""
        and "out: holds results of other settings" in error
        and error.count("\n") == 1
    )
    assert run(*line, "--pixel-threshold", 0.7, "--overwrite")[0] == 0


def test_command_that_is_stopped(run, weights, images, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(segment_files, "look", stop)
    status, out, error = run(
        "segment", weights / "small.yaml", "in/a", "-o", "out", "--weights", weights / "small.weights.h5"
    )
    assert (status, out) == (130, ""), error
    assert "the same command goes on with what is not yet in out" in error


def test_command_writes_one_file(run, weights, images):
    unet = ("segment", weights / "small.yaml", "in/b/stack.tif", "--weights", weights / "small.weights.h5")
    status, out, _ = run(*unet, "-o", "cells.zip", "--pixel-threshold", 0.45, "--json")
    about = json.loads(out)
    assert status == 0 and len(roifile.roiread("cells.zip")) == about["objects"] > 0 and about["slices"] == 3
    assert run(*unet, "-o", "cells.json", "--pixel-threshold", 0.45)[0] == 0
    assert len(json.loads(Path("cells.json").read_text())) == about["objects"]
    assert run(*unet, "-o", "cells.tif")[0] == 0
    assert tifffile.imread("cells.tif").shape == (3, 36, 44) and tifffile.TiffFile("cells.tif").is_imagej

    tiny = (
        "segment",
        weights / "tiny.yaml",
        "--weights",
        weights / "tiny.weights.h5",
        "--score-threshold",
        0,
    )
    assert run(*tiny, "in/b/stack.tif", "-o", "objects.tif")[0] == 0
    assert tifffile.imread("objects.tif").shape == (3, 36, 44)
    status, _, error = run(*tiny, "in/b/stack.tif", "-o", "objects.png")
    assert status == 2 and "a .png holds one image, and these are 3; give a folder" in error
    status, _, error = run(*tiny, "in/a", "in/b/1.png", "-o", "objects.png")
    assert status == 2 and "objects.png: one file, and these are 2 images: give a folder" in error


def test_command_takes_the_recipes_value_range(run, weights, images):
    recipe = yaml.safe_load((weights / "small.yaml").read_text())
    recipe["data"]["value_range"] = [0, 4095]
    Path("ranged.yaml").write_text(yaml.safe_dump(recipe))
    line = ("segment", "ranged.yaml", "in/b/stack.tif", "--weights", weights / "small.weights.h5")
    assert run(*line, "-o", "own.tif")[0] == run(*line, "-o", "other.tif", "--value-range", 0, 65535)[0] == 0
    model = zoo.load("ranged.yaml", weights / "small.weights.h5")
    for file, high in (("own.tif", 4095), ("other.tif", 65535)):
        expected = segment(model, "in/b/stack.tif", value_range=(0, high))[..., 1]
        np.testing.assert_allclose(tifffile.imread(file), expected, atol=1e-6)
