"""`export.tflite`: the model's numbers from built-in operators, smaller files, metadata, and errors before any work."""

from __future__ import annotations

import io
import json
import re
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
import tifffile
from PIL import Image

from keras_seg import models
from keras_seg.export import tflite_metadata
from keras_seg.export.tflite import tflite
from keras_seg.export.tflite_images import padding, representative_images
from keras_seg.segment import segment

interpreter = pytest.importorskip("ai_edge_litert.interpreter", reason="needs ai-edge-litert")

# Pixels near one, else random networks give scores that are all the same.
TINY = {
    "backbone": "resnet18", "width": 8, "fpn_channels": 16, "box_head_channels": 32, "mask_channels": 16, "proposals": 40,
    "detections": 8, "score_threshold": 0.0, "short_side": 64, "max_side": 96, "pixel_std": (60, 60, 60),
    "anchor_sizes": (8, 16, 32, 64, 128),
}  # fmt: skip


def runner(path):
    return interpreter.Interpreter(model_path=str(path)).get_signature_runner()


def operators(path) -> set[str]:
    from tensorflow.lite.python import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(bytearray(path.read_bytes()))
    names = {number: name for name, number in vars(schema.BuiltinOperator).items()}
    return {names[max(code.builtinCode, code.deprecatedBuiltinCode)] for code in model.operatorCodes}


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def unet(**arguments):
    keras.utils.set_random_seed(0)
    return models.unet(**{"depth": 2, "base_channels": 8, "padding": "same", **arguments})


def detector(classes=3, **arguments):
    keras.utils.set_random_seed(0)
    model = models.mask_rcnn(classes, **{**TINY, **arguments})
    for layer in () if model.rpn_only else ("cls_score", "bbox_pred"):
        # as small as they start, all boxes would score the same
        kernel = model.parts["box_predictor"].get_layer(layer).kernel
        kernel.assign(kernel * 50)
    return model


def called(model, images, size=None):
    size = tf.constant([size or images.shape[1:3]], tf.float32)
    outputs = model({"image": tf.constant(images, tf.float32), "size": size}, training=False)
    return {name: value.numpy() for name, value in outputs.items()}


def compare(found, expected, boxes=0.01, scores=1e-4, masks=1e-3):
    """As sets: each expected detection is found, with its numbers within these tolerances."""
    assert {name: value.shape for name, value in found.items()} == {k: v.shape for k, v in expected.items()}
    count = expected["num_detections"][0]
    assert found["num_detections"][0] == count > 3
    assert len(np.unique(expected["scores"][0, :count].round(3))) > 3  # a comparison that says something
    for n in range(count):
        same = found["classes"][0, :count] == expected["classes"][0, n]
        distance = np.abs(found["boxes"][0, :count] - expected["boxes"][0, n]).max(-1)
        distance = distance + 1e3 * np.abs(found["scores"][0, :count] - expected["scores"][0, n])
        m = np.where(same, distance, np.inf).argmin()
        assert same[m] and np.abs(found["boxes"][0, m] - expected["boxes"][0, n]).max() <= boxes
        assert abs(found["scores"][0, m] - expected["scores"][0, n]) <= scores
        if "masks" in expected:
            assert np.abs(found["masks"][0, m] - expected["masks"][0, n]).max() <= masks
        if "keypoints" in expected:
            np.testing.assert_allclose(
                found["keypoints"][0, m], expected["keypoints"][0, n], atol=boxes, rtol=1e-3
            )
    for name in ("boxes", "scores", "classes", "masks", "keypoints"):
        assert name not in found or not found[name][0, count:].any()


# --- U-Nets ---


@pytest.mark.parametrize(
    "arguments",
    [{"normalization": "batch"}, {"padding": "valid", "depth": 1, "classes": 3}, {"normalization": "group", "depth": 1, "input_channels": 3}],
    ids=["same", "valid", "group"],
)  # fmt: skip
def test_a_unet_of_any_fixed_size_gives_what_segment_gives(tmp_path, arguments):
    model = unet(**arguments)
    path = tflite(model, tmp_path / "unet.tflite", height=37, width=50)
    image = noise(1, 37, 50, model.input_channels)
    found = runner(path)(images=image)
    assert list(found) == ["probabilities"] and found["probabilities"].dtype == np.float32
    # one tile, since group normalisation takes its statistics from it
    np.testing.assert_allclose(found["probabilities"], segment(model, image, rotations=1), atol=1e-5)
    assert [entry.name for entry in tmp_path.iterdir()] == ["unet.tflite"]


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_a_resizable_unet(tmp_path, padding):
    model = unet(padding=padding, depth=1, normalization="batch")
    path = tflite(model, tmp_path / "unet.tflite")
    about = tflite_metadata.read(path.read_bytes())
    taken, run = about["input"], runner(path)
    assert taken["shape"] == [1, None, None, 1]
    for steps in ((0, 0), (5, 9), (2, 1)):
        height, width = (taken["least"] + n * taken["multiple"] for n in steps)
        image = noise(1, height, width, 1)
        expected = segment(model, image, rotations=1)
        np.testing.assert_allclose(run(images=image)["probabilities"], expected, atol=1e-5)


def test_a_unet_in_each_precision(tmp_path):
    model = unet(normalization="batch")
    images = [noise(64, 64, seed=seed) for seed in range(3)]
    image = noise(1, 64, 64, 1, seed=5)
    expected, sizes = segment(model, image, rotations=1), {}
    for quantize, tolerance in ((None, 1e-5), ("float16", 2e-3), ("dynamic", 0.06), ("int8", 0.06)):
        given = {"representative": images} if quantize == "int8" else {}
        path = tflite(model, tmp_path / f"{quantize}.tflite", quantize=quantize, height=64, width=64, **given)
        difference = np.abs(runner(path)(images=image)["probabilities"] - expected)
        assert difference.max() <= tolerance, quantize
        sizes[quantize] = path.stat().st_size
        assert tflite_metadata.read(path.read_bytes())["quantize"] == quantize
    assert sizes[None] > sizes["float16"] > max(sizes["dynamic"], sizes["int8"])
    details = interpreter.Interpreter(model_path=str(tmp_path / "int8.tflite")).get_tensor_details()
    kernels = [
        d for d in details if d["dtype"] is np.int8 and len(d["quantization_parameters"]["scales"]) > 1
    ]
    assert len(kernels) == 12  # all convolutions but the last, each by output channel


# --- detectors ---


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    model = detector(class_names=["nucleus", "cell", "vessel"], normalization="batch")
    return model, tflite(model, tmp_path_factory.mktemp("tflite") / "detector.tflite", height=64, width=96)


def test_a_detector_gives_the_models_detections(exported):
    model, path = exported
    run = runner(path)
    for seed in (1, 2):
        image = noise(1, 64, 96, 3, seed=seed)
        compare(run(images=image), called(model, image))


def test_padding_is_no_part_of_the_image(exported):
    model, path = exported
    image = noise(1, 64, 96, 3, seed=3)
    image[:, 50:] = image[:, :, 70:] = padding(model)
    expected, whole = called(model, image, (50, 70)), called(model, image)
    assert whole["boxes"].max() > 70 > expected["boxes"][0, :, 2].max() - 1e-3
    compare(runner(path)(images=image), expected)
    empty = np.broadcast_to(np.uint8(padding(model)), image.shape)
    assert np.isfinite(runner(path)(images=empty)["scores"]).all()


def test_a_detector_has_built_in_operators_alone(exported):
    names = operators(exported[1])
    assert {"CONV_2D", "NON_MAX_SUPPRESSION_V4", "TOPK_V2", "GATHER"} <= names and "CUSTOM" not in names


@pytest.mark.parametrize(
    "arguments",
    [
        {"structure": "c4", "anchor_sizes": (16, 32), "class_agnostic_boxes": True, "proposals": 12, "roi_sampling": 2},
        {"structure": "dc5", "anchor_sizes": (16, 32), "masks": False, "keypoints": 4, "keypoint_channels": 8,
         "detections": 4, "proposals": 12, "normalization": "group"},
        {"rpn_only": True, "masks": False, "classes": 1},
    ],
    ids=["c4", "keypoints", "rpn"],
)  # fmt: skip
def test_other_kinds_of_detectors(tmp_path, arguments):
    model = detector(**arguments)
    path = tflite(model, tmp_path / "detector.tflite", height=64, width=64)
    image = noise(1, 64, 64, 3)
    compare(runner(path)(images=image), called(model, image))
    assert "CUSTOM" not in operators(path)


def test_a_detector_in_int8(tmp_path, exported):
    model, path = exported
    images = [noise(60, 90, 3, seed=seed) for seed in range(3)]
    small = tflite(
        model, tmp_path / "int8.tflite", quantize="int8", height=64, width=96, representative=images
    )
    assert small.stat().st_size < 0.7 * path.stat().st_size
    image = noise(1, 64, 96, 3, seed=7)
    found, expected = runner(small)(images=image), called(model, image)
    # of random weights: detections change places, but not what they are like
    assert abs(found["scores"].mean() - expected["scores"].mean()) <= 0.05
    assert found["boxes"].min() >= 0 and (found["boxes"].max(axis=(0, 1)) <= [96, 64, 96, 64]).all()


# --- metadata ---


def test_metadata(exported):
    content = exported[1].read_bytes()
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.read("labels.txt").decode().split() == ["nucleus", "cell", "vessel"]
        about = json.loads(archive.read("keras_seg.json"))
    assert about == tflite_metadata.read(content)
    assert about["name"] == "mask_rcnn" and about["class_names"] == ["nucleus", "cell", "vessel"]
    assert about["input"]["shape"] == [1, 64, 96, 3] and about["input"]["padding"] == [124, 116, 104]
    assert about["input"]["resize"] == {
        "short_side": 64,
        "max_side": 96,
        "scale": None,
        "convention": "detectron2",
    }
    assert about["outputs"]["boxes"]["shape"] == [1, 8, 4]
    assert about["recipe"]["model"]["backbone"] == "resnet18"


def test_metadata_where_phone_applications_look_for_it(exported):
    from tensorflow.lite.python import schema_py_generated as schema

    model = schema.Model.GetRootAs(exported[1].read_bytes())
    entries = {
        model.Metadata(n).Name().decode(): model.Metadata(n).Buffer() for n in range(model.MetadataLength())
    }
    packed = model.Buffers(entries["TFLITE_METADATA"]).DataAsNumpy().tobytes()
    assert packed[4:8] == b"M001"
    for text in (b"mask_rcnn", b"labels.txt", b"num_detections", b"images"):
        assert text in packed
    # constants lie where processors load vectors from
    start = np.frombuffer(model._tab.Bytes, np.uint8).ctypes.data
    arrays = [model.Buffers(n) for n in range(model.BuffersLength())]
    places = {(buffer.DataAsNumpy().ctypes.data - start) % 16 for buffer in arrays if buffer.DataLength()}
    assert places == {0}


def test_files_of_others_have_no_metadata():
    with pytest.raises(ValueError, match=re.escape("has no keras_seg.json inside")):
        tflite_metadata.read(b"something else")


# --- errors ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantize": "int4"}, "quantize must be one of None, 'float16', 'dynamic', 'int8', got 'int4'"),
        ({"quantize": "int8"}, 'quantize="int8" needs representative=, some images'),
        ({"representative": [noise(8, 8)]}, 'representative is for quantize="int8", got quantize=None'),
        ({"height": 32}, "height and width go together, got 32 and None"),
        ({"height": 32, "width": 0}, "width must be a positive integer, got 0"),
        ({"quantize": "int8", "representative": []}, "there are no images"),
        ({"quantize": "int8", "representative": [noise(8, 8, 2)]}, "representative image 0: 2 channels, but the model takes 1"),
    ],
)  # fmt: skip
def test_wrong_options(tmp_path, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        tflite(unet(depth=1), tmp_path / "unet.tflite", **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ({}, {"height": 60}, "height must be a positive multiple of 32 for mask_rcnn, got 60; the nearest is 64"),
        ({}, {"width": -32}, "width must be a positive multiple of 32 for mask_rcnn, got -32; the nearest is 32"),
        ({"roi": "pool"}, {}, "has roi='pool', whose maxima built-in operators cannot take; use select_ops=True"),
        ({"roi_pooling": "max"}, {}, "has roi_pooling='max'"),
        ({}, {"quantize": "int8", "representative": [noise(8, 8, 3)], "select_ops": True}, "select_ops=False"),
    ],
)  # fmt: skip
def test_wrong_options_of_detectors(tmp_path, arguments, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        tflite(detector(**arguments), tmp_path / "detector.tflite", **options)
    assert not list(tmp_path.iterdir())


def test_representative_images_are_those_of_the_recipe_or_of_a_folder(tmp_path):
    stack = noise(40, 30, 24)
    tifffile.imwrite(tmp_path / "train-volume.tif", stack)
    Image.fromarray(noise(30, 24)).save(tmp_path / "other.png")
    # zoo/unet_isbi2012.yaml names the volume; 32 of its slices, from the first to the last, their middle
    found = representative_images(unet(depth=1, name="unet_isbi2012"), tmp_path, 20, 20)
    assert len(found) == 32 and {(image.shape, image.dtype) for image in found} == {
        ((1, 20, 20, 1), np.dtype("uint8"))
    }
    np.testing.assert_array_equal(found[0][0, ..., 0], stack[0, 5:25, 2:22])
    np.testing.assert_array_equal(found[-1][0, ..., 0], stack[-1, 5:25, 2:22])
    # another model's recipe is unknown: all images
    assert len(representative_images(unet(depth=1, name="mine"), tmp_path, 20, 20)) == 32
    assert len(representative_images(unet(depth=1), [tmp_path / "other.png", stack[3]], 20, 20)) == 2


def test_representative_images_of_a_detector_are_resized_and_padded():
    model = detector(scale=2.0)
    image = np.full((10, 15, 3), 200, np.uint8)
    (found,) = representative_images(model, [image], 32, 64)
    assert (found[0, :20, :30] == 200).all()
    assert (found[0, 20:] == [124, 116, 104]).all() and (found[0, :, 30:] == [124, 116, 104]).all()
    (smaller,) = representative_images(model, [image], 32, 24)  # does not fit
    assert (smaller[0, :16] == 200).all() and (smaller[0, 16:] == [124, 116, 104]).all()


def test_select_ops_bring_in_other_operators(tmp_path):
    model = detector(rpn_only=True, masks=False, classes=1, detections=4, proposals=8)
    path = tflite(model, tmp_path / "flex.tflite", height=32, width=32, select_ops=True)
    assert "CUSTOM" in operators(path)
    assert tflite_metadata.read(path.read_bytes())["select_ops"]


def test_representative_folders(tmp_path):
    model = unet(depth=1)
    for folder, error, message in (
        ("absent", FileNotFoundError, "absent: no such folder of representative images"),
        ("empty", ValueError, "empty: holds no images"),
    ):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(error, match=message):
            tflite(model, tmp_path / "out" / "u.tflite", quantize="int8", representative=tmp_path / folder)
    assert not list((tmp_path / "out").iterdir())


def test_paths(tmp_path):
    model, file = unet(depth=1), tmp_path / "notes.txt"
    file.write_text("years of work")
    with pytest.raises(FileExistsError, match="is a folder; give the name of the file to write"):
        tflite(model, tmp_path)
    with pytest.raises(
        FileExistsError, match="notes.txt: is there already; give another path, or overwrite=True"
    ):
        tflite(model, file)
    with pytest.raises(OSError, match="cannot be written .* give another path"):
        tflite(model, file / "unet.tflite")
    assert file.read_text() == "years of work"
    tflite(model, file, height=20, width=20, overwrite=True)
    assert tflite_metadata.read(file.read_bytes())["task"] == "segmentation"
    assert [entry.name for entry in tmp_path.iterdir()] == ["notes.txt"]


def test_weights_that_are_not_numbers_are_refused(tmp_path):
    model = unet(depth=1)
    model.get_layer("logits").bias.assign([np.nan, 0])
    with pytest.raises(ValueError, match="gives numbers that are not finite"):
        tflite(model, tmp_path / "unet.tflite", height=20, width=20)
    assert not list(tmp_path.iterdir())


def test_other_models_are_refused(tmp_path):
    with pytest.raises(TypeError, match="takes a model of keras_seg.models, got str"):
        tflite("unet", tmp_path / "unet.tflite")
