"""Detectors through `keras_seg.segment`: every kind of image, batches, filters, messages."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import keras_seg
from keras_seg.inference import compiled
from keras_seg.models import mask_rcnn


@pytest.fixture(scope="module")
def model():
    tf.keras.utils.set_random_seed(0)
    return mask_rcnn(
        3, class_names=["a", "b", "c"], backbone="resnet18", width=4, fpn_channels=8, box_head_channels=16,
        mask_channels=8, proposals=40, detections=10, score_threshold=0.0, short_side=64, max_side=96,
    )  # fmt: skip


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (50, 70, 3), np.uint8)


def same(a, b) -> bool:
    return (
        len(a) == len(b)
        and np.allclose(a.boxes, b.boxes, atol=1e-3)
        and np.allclose(a.scores, b.scores, atol=1e-5)
    )


def test_objects_of_an_image(model, photo):
    found = keras_seg.segment(model, photo, score_threshold=0.0)
    assert len(found) == 10 and found.image_size == (50, 70)
    assert found.masks.shape == (10, 50, 70) and found.masks.dtype == bool
    assert (found.boxes >= 0).all() and (found.boxes[:, 2] <= 70).all() and (found.boxes[:, 3] <= 50).all()
    assert (np.diff(found.scores) <= 0).all()
    assert len(keras_seg.segment(model, photo, score_threshold=0.0, max_detections=4)) == 4
    only = keras_seg.segment(model, photo, score_threshold=0.0, classes=["b"])
    assert set(only.names) <= {"b"}
    assert len(keras_seg.segment(model, photo, score_threshold=0.999)) == 0


def test_a_list_equals_each_image_alone(model, photo):
    images = [photo, photo[:, ::-1], photo[::-1]]
    alone = [keras_seg.segment(model, image, score_threshold=0.0) for image in images]
    for batch_size in (1, 2, 3):
        together = keras_seg.segment(model, images, score_threshold=0.0, batch_size=batch_size)
        assert all(same(a, b) for a, b in zip(alone, together, strict=True))
    assert keras_seg.segment(model, []) == []


def test_a_stream_of_images_of_varied_size_in_order(model, photo):
    images = [photo, photo[:20], photo[:, :30], photo[::-1], photo[5:, ::-1], photo[:, 10:], photo[:25]]
    alone = keras_seg.segment(model, images, score_threshold=0.0)
    taken = []
    stream = keras_seg.segment(
        model, (taken.append(n) or image for n, image in enumerate(images)), score_threshold=0.0
    )
    assert taken == []  # nothing is read before it is asked for
    assert same(next(stream), alone[0]) and taken == [0]
    assert all(same(a, b) for a, b in zip(alone[1:], stream, strict=True))
    # together they are padded to the largest, which changes what is seen at their borders
    together = list(keras_seg.segment(model, iter(images), score_threshold=0.0, batch_size=2))
    assert [found.image_size for found in together] == [image.shape[:2] for image in images]
    assert compiled(model)._call.experimental_get_tracing_count() == 1


def test_a_model_with_a_scale_sees_images_at_that_scale(model, photo):
    scaled = mask_rcnn(**{**model.arguments, "scale": 1.5})
    scaled.set_weights(model.get_weights())
    large = np.asarray(Image.fromarray(photo).resize((105, 75), Image.Resampling.BILINEAR))
    expected = keras_seg.segment(model, large, score_threshold=0.0, short_side=75, max_side=200)
    found = keras_seg.segment(scaled, photo, score_threshold=0.0)
    np.testing.assert_allclose(found.boxes * 1.5, expected.boxes, atol=1e-2)
    # a size that is asked for counts
    assert same(
        keras_seg.segment(scaled, photo, score_threshold=0.0, short_side=32),
        keras_seg.segment(model, photo, score_threshold=0.0, short_side=32),
    )


def test_kinds_of_images(model, photo, tmp_path):
    expected = keras_seg.segment(model, photo, score_threshold=0.0)
    alpha = np.dstack([photo, np.full(photo.shape[:2], 9, np.uint8)])
    Image.fromarray(photo).save(tmp_path / "photo.png")
    turned = Image.fromarray(np.rot90(photo))  # orientation 6: to be turned by 90 degrees clockwise
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.png", exif=exif)
    kinds = [
        alpha, photo.astype(np.float32), photo.astype(np.uint16) * 257, Image.fromarray(photo), Image.fromarray(alpha),
        tmp_path / "photo.png", str(tmp_path / "photo.png"), tmp_path / "turned.png", Image.open(tmp_path / "turned.png"),
    ]  # fmt: skip
    for kind in kinds:
        assert same(keras_seg.segment(model, kind, score_threshold=0.0), expected), kind
    grey = photo[..., 0]
    three = keras_seg.segment(model, np.repeat(grey[..., None], 3, -1), score_threshold=0.0)
    for kind in (grey, grey[..., None], Image.fromarray(grey)):
        assert same(keras_seg.segment(model, kind, score_threshold=0.0), three)


def test_other_sizes(model, photo):
    small = keras_seg.segment(model, photo, score_threshold=0.0, short_side=32)
    assert small.image_size == (50, 70) and len(small)
    assert not same(small, keras_seg.segment(model, photo, score_threshold=0.0))


def test_images_of_one_colour_and_of_one_pixel_or_line(model):
    for value in (np.uint8(0), np.uint16(0), np.float32(7)):
        for shape in ((40, 60, 3), (1, 1, 3), (1, 500, 3), (3000, 1)):
            found = keras_seg.segment(model, np.full(shape, value), score_threshold=0.0)
            assert found.image_size == shape[:2] and np.isfinite(found.boxes).all()
            assert (found.boxes >= 0).all() and (found.boxes <= [shape[1], shape[0]] * 2).all()
            assert found.masks.shape == (len(found), *shape[:2])


@pytest.mark.parametrize(
    ("image", "options", "error", "message"),
    [
        (np.zeros((4, 5, 2), np.uint8), {}, ValueError, r"image 0: shape \[4, 5, 2\]; an image is"),
        (np.zeros((0, 5, 3), np.uint8), {}, ValueError, r"image 0: shape \[0, 5, 3\]"),
        (np.full((4, 4, 3), np.nan, np.float32), {}, ValueError, "image 0: .*NaN"),
        (
            [np.zeros((4, 4, 3), np.uint8), np.float32([[[np.nan, 1, 2]]])],
            {"batch_size": 2},
            ValueError,
            "image 1: 1 of 3 pixel values are NaN",
        ),
        (np.zeros((4, 4, 3), np.int64), {}, ValueError, "image 0: int64 pixels; images are uint8"),
        ("missing.png", {}, FileNotFoundError, "missing.png"),
        (np.zeros((4, 4, 3), np.uint8), {"batch_size": 0}, ValueError, "batch_size must be positive, got 0"),
        (
            np.zeros((4, 4, 3), np.uint8),
            {"short_side": 0},
            ValueError,
            "short_side and max_side must be positive",
        ),
        (
            np.zeros((4, 4, 3), np.uint8),
            {"precision": "half"},
            ValueError,
            "precision must be one of 'float32', 'bfloat16', got 'half'",
        ),
        (np.zeros((4, 4, 3), np.uint8), {"classes": ["d"]}, ValueError, "d"),
        (np.zeros((4, 4, 3), np.uint8), {"tile": 3}, TypeError, "tile"),
    ],
)
def test_wrong_input_is_named(model, image, options, error, message):
    with pytest.raises(error, match=message):
        keras_seg.segment(model, image, **options)


def test_group_normalization_sees_one_image_at_a_time():
    """In a batch its statistics would count the padding of the smaller image."""
    model = mask_rcnn(
        1, backbone="resnet18", width=4, fpn_channels=8, normalization="group", scale=1.0, proposals=10,
        score_threshold=0.0,
    )  # fmt: skip
    random = np.random.default_rng(0)
    images = [random.integers(0, 256, (side, 64, 3), np.uint8) for side in (32, 96)]
    alone = [keras_seg.segment(model, image, score_threshold=0.0) for image in images]
    together = keras_seg.segment(model, images, score_threshold=0.0, batch_size=2)
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one.scores, other.scores)
        np.testing.assert_array_equal(one.boxes, other.boxes)
