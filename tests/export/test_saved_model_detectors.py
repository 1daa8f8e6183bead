"""`export.saved_model` of detectors: what `segment` finds, in pixels of the given image."""

from __future__ import annotations

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import keras_seg
from keras_seg.export import load, saved_model
from keras_seg.models import mask_rcnn

SMALL = {
    "backbone": "resnet18", "width": 8, "mask_channels": 8, "keypoint_channels": 8, "detections": 12, "proposals": 40,
    "pre_nms_proposals": 40, "score_threshold": 0.0, "short_side": 64, "max_side": 96,
}  # fmt: skip
PYRAMID = {"fpn_channels": 8, "anchor_sizes": [8, 16, 32, 64, 128], "box_head_channels": 16}
TORCHVISION = {
    "stride_in_1x1": False, "anchors_rounded": True, "roi_sampling": 2, "roi_aligned": False, "normalization": "batch",
    "convention": "torchvision",
}  # fmt: skip


def detector(**arguments):
    return mask_rcnn(3, **{**SMALL, **(PYRAMID if "structure" not in arguments else {}), **arguments})


@pytest.fixture(scope="module")
def model():
    """Like maskrcnn_nuclei: its scale, and group normalisation."""
    return detector(normalization="group", scale=1.5, class_names=["a", "b", "c"], name="small")


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    return saved_model(model, tmp_path_factory.mktemp("serving") / "1")


def pictures(*shape, seed=1):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def file_of(image, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind)
    return buffer.getvalue()


def same(outputs, image, expected):
    """Compares a signature's outputs for an image of the batch with Instances of all detections."""
    found = {name: value[image].numpy() for name, value in outputs.items()}
    count = found.pop("num_detections")
    assert count == len(expected) > 0
    assert found.pop("image_sizes").tolist() == list(expected.image_size)
    np.testing.assert_allclose(found["boxes"][:count], expected.boxes, atol=1e-2)
    np.testing.assert_allclose(found["scores"][:count], expected.scores, atol=1e-4)
    np.testing.assert_array_equal(found["classes"][:count], expected.classes)
    if expected.mask_probabilities is not None:
        np.testing.assert_allclose(found["masks"][:count], expected.mask_probabilities, atol=1e-4)
    if expected.keypoints is not None:
        np.testing.assert_allclose(found["keypoints"][:count, :, :2], expected.keypoints[..., :2], atol=1e-2)
    for values in found.values():
        assert not values[count:].any()


def test_images_of_one_size(model, exported):
    signature = tf.saved_model.load(str(exported)).signatures["serving_default"]
    for shape in ((2, 40, 60), (1, 70, 33)):
        images = pictures(*shape, 3)
        outputs = signature(images=tf.constant(images))
        for n, image in enumerate(images):
            same(outputs, n, keras_seg.segment(model, image, score_threshold=0.0))


def test_files_of_any_size(model, exported):
    images = [pictures(40, 60, 3), pictures(70, 33, 3), pictures(20, 20)]
    encoded = tf.saved_model.load(str(exported)).signatures["encoded_images"]
    outputs = encoded(image_bytes=tf.constant([file_of(image) for image in images]))
    for n, image in enumerate(images):
        same(outputs, n, keras_seg.segment(model, image, score_threshold=0.0))


def test_loaded_in_python(model, exported):
    loaded = load(exported)
    assert loaded.is_detector and loaded.class_names == ["a", "b", "c"]
    images = [pictures(40, 60, 3), pictures(70, 33, 3)]
    options = {"score_threshold": 0.2, "max_detections": 5, "classes": ["a", "c"]}
    for found, expected in zip(
        loaded.segment(images, **options), keras_seg.segment(model, images, **options), strict=True
    ):
        np.testing.assert_allclose(found.boxes, expected.boxes, atol=1e-2)
        np.testing.assert_array_equal(found.masks, expected.masks)
        assert found.names == expected.names
    assert len(next(loaded.segment(iter(images)))) == len(keras_seg.segment(model, images[0]))
