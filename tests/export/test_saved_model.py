"""`export.saved_model`: the numbers of `segment`, for images of any size, and never a half-written folder."""

from __future__ import annotations

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import keras_seg
from keras_seg.export import load, saved_model
from keras_seg.models.unet import unet


@pytest.fixture(scope="module")
def model():
    return unet(
        3, 2, depth=2, base_channels=2, padding="same", normalization="batch", rotations=7, tile=16,
        class_names=["outside", "inside"], name="small",
    )  # fmt: skip


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    return saved_model(model, tmp_path_factory.mktemp("serving") / "unet" / "1")


def serve(path, signature="serving_default"):
    return tf.saved_model.load(str(path)).signatures[signature]


def pictures(*shape, seed=1):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def file_of(image, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("shape", [(1, 8, 12), (2, 33, 50), (1, 3, 70)])
def test_the_numbers_of_segment_at_any_size(model, signatures, shape):
    images = pictures(*shape, 3)
    output = signatures["serving_default"](images=tf.constant(images))
    assert list(output) == ["probabilities"]
    np.testing.assert_allclose(output["probabilities"], keras_seg.segment(model, images), atol=1e-6)


@pytest.mark.parametrize(
    "arguments",
    [
        {"padding": "valid", "rotations": 8},
        {"padding": "valid", "depth": 3, "tile": 12},  # tiles that overlap by 4 pixels
        {"padding": "same", "normalization": "group", "activation": "sigmoid"},
    ],
)
def test_other_networks_too(tmp_path, arguments):
    model = unet(**{"depth": 1, "base_channels": 2, **arguments})
    images = pictures(1, 40, 61, 1)
    output = serve(saved_model(model, tmp_path / "1"))(images=tf.constant(images))["probabilities"]
    np.testing.assert_allclose(output, keras_seg.segment(model, images), atol=1e-6)


def test_float_images(model, signatures):
    images = pictures(1, 9, 20, 3).astype(np.float32) / 3
    output = signatures["float_images"](images=tf.constant(images))["probabilities"]
    np.testing.assert_allclose(output, keras_seg.segment(model, images), atol=1e-6)
    for wrong in (np.nan, -1, 256):
        images[0, 0, 0, 0] = wrong
        with pytest.raises(tf.errors.InvalidArgumentError, match="images: must be 0-255 and not NaN"):
            signatures["float_images"](images=tf.constant(images))


def test_signatures(signatures):
    assert {*signatures} == {"serving_default", "float_images", "encoded_images"}
    (spec,) = signatures["serving_default"].structured_input_signature[1].values()
    assert (spec.name, spec.dtype, spec.shape.as_list()) == ("images", tf.uint8, [None, None, None, 3])
    output = signatures["serving_default"].structured_outputs["probabilities"]
    assert (output.dtype, output.shape.as_list()) == (tf.float32, [None, None, None, 2])


def test_the_folder_is_all_that_is_left_and_readable(exported):
    assert [entry.name for entry in exported.parent.iterdir()] == ["1"]
    reference = exported.parent / "reference"
    reference.mkdir()
    assert exported.stat().st_mode == reference.stat().st_mode  # not that of a private temporary folder
    reference.rmdir()


def test_different_numbers_are_refused(model, tmp_path, monkeypatch):
    def other(path):
        result = lambda images: {"probabilities": tf.fill([*images.shape[:3], 2], 0.5)}
        return type("Loaded", (), {"signatures": {"serving_default": result}})

    monkeypatch.setattr(tf.saved_model, "load", other)
    with pytest.raises(
        RuntimeError, match="reloaded model differs from the Keras model by .* nothing was written"
    ):
        saved_model(model, tmp_path / "1")
    assert not list(tmp_path.iterdir())


def test_weights_that_are_not_numbers_are_refused(tmp_path):
    model = unet(depth=1, base_channels=2, padding="same")
    model.get_layer("logits").bias.assign([np.nan, 0])
    with pytest.raises(RuntimeError, match="NaN or infinite, in logits/bias; nothing was written"):
        saved_model(model, tmp_path / "1")
    assert not list(tmp_path.iterdir())


def test_overwriting(tmp_path):
    model = unet(3, 2, depth=1, base_channels=2)
    path = tmp_path / "1"
    path.mkdir()
    saved_model(model, path)  # empty folders are taken
    with pytest.raises(FileExistsError, match="is not empty; give another path, or overwrite=True"):
        saved_model(model, path)
    other = unet(3, 2, depth=1, base_channels=2, padding="same")
    saved_model(other, path, overwrite=True)
    images = pictures(1, 8, 8, 3)
    np.testing.assert_allclose(
        serve(path)(images=tf.constant(images))["probabilities"], keras_seg.segment(other, images), atol=1e-6
    )
    assert [entry.name for entry in tmp_path.iterdir()] == ["1"]


def test_other_folders_and_files_are_never_overwritten(model, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="holds something else than a SavedModel"):
        saved_model(model, tmp_path, overwrite=True)
    with pytest.raises(FileExistsError, match="thesis.txt: is a file"):
        saved_model(model, tmp_path / "thesis.txt", overwrite=True)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_other_models_and_options_are_refused(model, tmp_path):
    with pytest.raises(
        TypeError, match="takes a U-Net of keras_seg.models.unet or a detector of .*, got str"
    ):
        saved_model("unet", tmp_path / "1")
    for options, message in (
        ({"masks": "rle"}, "masks must be one of 'probabilities', 'pasted', 'bits', got 'rle'"),
        ({"masks": "pasted"}, "masks='pasted', but small has no mask branch"),
        ({"most_pixels": 0}, "most_pixels must be a positive integer, got 0"),
        ({"most_images": 1.5}, "most_images must be a positive integer, got 1.5"),
        ({"most_request_pixels": -1}, "most_request_pixels must be a positive integer, got -1"),
        (
            {"most_pixels": 200, "most_request_pixels": 100},
            "most_pixels=200 of an image are more than most_request_pixels=100",
        ),
        (
            {"most_pixels": 99, "warmup_sizes": [(10, 10)]},
            r"warmup_sizes has \(10, 10\), but most_pixels is 99",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            saved_model(model, tmp_path / "1", **options)
    assert not list(tmp_path.iterdir())


def test_folders_that_cannot_be_written(model, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file/serving/1: cannot be written"):
        saved_model(model, tmp_path / "file" / "serving" / "1")


def test_files_of_images(model, signatures):
    images = pictures(2, 20, 30, 3)
    encoded = signatures["encoded_images"]
    output = encoded(image_bytes=tf.constant([file_of(image) for image in images]))["probabilities"]
    np.testing.assert_allclose(output, keras_seg.segment(model, images), atol=1e-6)
    other = file_of(pictures(20, 31, 3))
    with pytest.raises(
        tf.errors.InvalidArgumentError, match=r"must have one size; .* are\] \[\[20 30\]\s*\[20 31\]\]"
    ):
        encoded(image_bytes=tf.constant([file_of(images[0]), other]))
    with pytest.raises(tf.errors.InvalidArgumentError, match="image_bytes: there are none"):
        encoded(image_bytes=tf.constant([], tf.string))


def test_files_for_a_grey_model(tmp_path):
    model = unet(depth=1, base_channels=2, padding="same")
    encoded = serve(saved_model(model, tmp_path / "1"), "encoded_images")
    for image in (pictures(9, 14, 1), pictures(9, 14, 3)):
        output = encoded(image_bytes=tf.constant([file_of(image)]))["probabilities"][0]
        np.testing.assert_allclose(output, keras_seg.segment(model, image), atol=1e-6)


def test_empty_and_too_large_images_are_refused(tmp_path):
    path = saved_model(unet(depth=1, base_channels=2, padding="same"), tmp_path / "1", most_pixels=100)
    signatures = tf.saved_model.load(str(path)).signatures
    in_pixels = signatures["serving_default"]
    in_pixels(images=tf.zeros([1, 10, 10, 1], tf.uint8))
    for shape in ([0, 5, 5, 1], [1, 0, 5, 1]):
        with pytest.raises(tf.errors.InvalidArgumentError, match="images: there are none, or they are empty"):
            in_pixels(images=tf.zeros(shape, tf.uint8))
    with pytest.raises(tf.errors.InvalidArgumentError, match="images: more than 100 pixels an image"):
        in_pixels(images=tf.zeros([1, 10, 11, 1], tf.uint8))
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"more than 100 pixels, .*\] \[10 11\]"):
        signatures["encoded_images"](image_bytes=tf.constant([file_of(pictures(10, 11, 1))]))


def test_requests_of_too_many_images_are_refused(tmp_path):
    path = saved_model(
        unet(depth=1, base_channels=2, padding="same"), tmp_path / "1", most_images=3, most_request_pixels=200
    )
    signatures = tf.saved_model.load(str(path)).signatures
    about = load(path).about
    # by itself an image may have as many as a request
    assert [about[f"most_{what}"] for what in ("pixels", "images", "request_pixels")] == [200, 3, 200]
    for name, of in {"serving_default": tf.uint8, "float_images": tf.float32}.items():
        signatures[name](images=tf.zeros([2, 10, 10, 1], of))
        signatures[name](images=tf.zeros([3, 6, 11, 1], of))
        with pytest.raises(
            tf.errors.InvalidArgumentError, match=r"images: more than 3 in a request; .* are\] \[?300000"
        ):
            signatures[name](images=tf.zeros([300_000, 1, 1, 1], of))
        with pytest.raises(
            tf.errors.InvalidArgumentError,
            match=r"images: more than 200 pixels in a request; .* are\] \[?201",
        ):
            signatures[name](images=tf.zeros([3, 1, 67, 1], of))
    encoded = signatures["encoded_images"]
    encoded(image_bytes=tf.constant([file_of(pictures(6, 11, 1))] * 3))
    with pytest.raises(
        tf.errors.InvalidArgumentError, match=r"image_bytes: more than 3 in a request; .* are\] \[?4"
    ):
        encoded(image_bytes=tf.constant([b"not even looked at"] * 4))
    with pytest.raises(
        tf.errors.InvalidArgumentError, match="image_bytes: more than 200 pixels in a request"
    ):
        encoded(image_bytes=tf.constant([file_of(pictures(1, 67, 1))] * 3))


@pytest.mark.parametrize("most_pixels", [1, 2, 50])
def test_few_pixels_do_for_the_check_and_the_warm_up(model, tmp_path, most_pixels):
    path = saved_model(model, tmp_path / "1", most_pixels=most_pixels)
    side = int(most_pixels**0.5)
    assert serve(path)(images=tf.zeros([1, side, side, 3], tf.uint8))["probabilities"].shape == (
        1,
        side,
        side,
        2,
    )


def test_the_limits_by_default():
    from keras_seg.export.limits import limits_of

    model = unet(depth=1, base_channels=2, padding="same")
    assert limits_of(model, "probabilities") == (2**24, 64, 2**26)
    assert limits_of(model, "probabilities", 2**27) == (2**27, 64, 2**27)
    # an answer of 2**30 bytes, 400 a pixel
    many = unet(1, 100, depth=1, base_channels=2, padding="same")
    assert limits_of(many, "probabilities") == (2**30 // 400, 64, 2**30 // 400)


def test_loaded_in_python(model, loaded, tmp_path):
    assert (loaded.name, loaded.class_names, loaded.is_detector) == ("small", ["outside", "inside"], False)
    stack = (pictures(2, 20, 30).astype(np.uint16) * 257)[..., None]
    np.testing.assert_allclose(loaded.segment(stack), keras_seg.segment(model, stack), atol=1e-6)
    np.testing.assert_allclose(
        loaded.segment(stack[0], value_range=(0, 30000)),
        keras_seg.segment(model, stack[0], value_range=(0, 30000)),
        atol=1e-6,
    )
    with pytest.raises(FileNotFoundError, match="none: no such folder"):
        load(tmp_path / "none")
    with pytest.raises(ValueError, match="not a SavedModel; its folder holds saved_model.pb"):
        load(tmp_path)
    tf.saved_model.save(tf.Module(), str(tmp_path / "foreign"))
    with pytest.raises(ValueError, match="has no assets/keras_seg.json, so"):
        load(tmp_path / "foreign")
