"""`export.saved_model` of detectors: what `segment` finds, in pixels of the given image."""

from __future__ import annotations

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import keras_seg
from keras_seg.export import detection_graph, folding, load, metadata, saved_model
from keras_seg.export.limits import limits_of
from keras_seg.models import mask_rcnn

pytestmark = pytest.mark.usefixtures("graphs_as_traced")
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
    """With batches that go through the network in parts from small ones on, of 64 x 64 pixels two by two."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(detection_graph, "AT_ONCE", 2 * 64 * 64)
        return saved_model(model, tmp_path_factory.mktemp("serving") / "1")


def pictures(*shape, seed=1):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def file_of(image, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind)
    return buffer.getvalue()


def in_order_of(boxes, classes, expected):
    """The Instances, each where its box and class are: rounding may exchange two whose scores are equal up to it, which
    those of a network without training can be."""
    others = classes[:, None] != expected.classes
    order = np.where(others, np.inf, np.abs(boxes[:, None] - expected.boxes).max(-1)).argmin(1)
    assert sorted(order) == list(range(len(expected)))
    return expected[order]


def same(outputs, image, expected, masks=True):
    """Compares a signature's outputs for an image of the batch with Instances of all detections, and returns these in the
    order of the outputs."""
    found = {name: value[image].numpy() for name, value in outputs.items()}
    count = found.pop("num_detections")
    assert count == len(expected) > 0
    assert found.pop("image_sizes").tolist() == list(expected.image_size)
    expected = in_order_of(found["boxes"][:count], found["classes"][:count], expected)
    np.testing.assert_allclose(found["boxes"][:count], expected.boxes, atol=1e-2)
    np.testing.assert_allclose(found["scores"][:count], expected.scores, atol=1e-4)
    np.testing.assert_array_equal(found["classes"][:count], expected.classes)
    if expected.mask_probabilities is not None and masks:
        np.testing.assert_allclose(found["masks"][:count], expected.mask_probabilities, atol=1e-4)
    if expected.keypoints is not None:
        np.testing.assert_allclose(found["keypoints"][:count, :, :2], expected.keypoints[..., :2], atol=1e-2)
    for values in found.values():
        assert not values[count:].any()
    return expected


# one image at a time; all at once; two by two, and the last one
@pytest.mark.parametrize("shape", [(2, 40, 60), (1, 70, 33), (5, 30, 40)])
def test_images_of_one_size(model, signatures, shape):
    images = pictures(*shape, 3)
    outputs = signatures["serving_default"](images=tf.constant(images))
    for n, image in enumerate(images):
        same(outputs, n, keras_seg.segment(model, image, score_threshold=0.0))


def test_files_of_any_size(model, signatures):
    images = [pictures(40, 60, 3), pictures(70, 33, 3), pictures(20, 20)]
    outputs = signatures["encoded_images"](image_bytes=tf.constant([file_of(image) for image in images]))
    for n, image in enumerate(images):
        same(outputs, n, keras_seg.segment(model, image, score_threshold=0.0))


def test_loaded_in_python(model, loaded):
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


@pytest.fixture(scope="module")
def with_pasted_masks(tmp_path_factory):
    """A model in torchvision's convention, and its SavedModel: an image of 3000 pixels, a request of 8400."""
    model = detector(**TORCHVISION, keypoints=2, structure="c5", anchor_sizes=[16, 32], box_head_channels=16)
    path = tmp_path_factory.mktemp("serving") / "1"
    limits = {"most_pixels": 3000, "most_request_pixels": 8400}
    return model, saved_model(model, path, masks="pasted", warmup_sizes=(), **limits)


def test_pasted_masks_and_keypoints_in_torchvisions_convention(with_pasted_masks):
    model, path = with_pasted_masks
    images = [pictures(40, 60, 3), pictures(70, 33, 3)]
    encoded = tf.saved_model.load(str(path)).signatures["encoded_images"]
    outputs = encoded(image_bytes=tf.constant([file_of(image) for image in images]))
    masks = outputs.pop("masks").numpy()
    assert (masks.dtype, masks.shape) == (np.uint8, (2, 12, 70, 60))
    for n, image in enumerate(images):
        expected = keras_seg.segment(model, image, score_threshold=0.0)
        expected = same(outputs, n, expected, masks=False)
        height, width = image.shape[:2]
        different = masks[n, : len(expected), :height, :width] != expected.masks
        assert different.mean() < 1e-3  # a probability of one half may fall on either side
        assert not masks[n, :, height:].any() and not masks[n, :, :, width:].any()
    # each counts as the largest
    wide, high = file_of(pictures(10, 60, 3)), file_of(pictures(60, 10, 3))
    assert encoded(image_bytes=tf.constant([wide] * 14))["masks"].shape == (14, 12, 10, 60)
    with pytest.raises(
        tf.errors.InvalidArgumentError,
        match=r"image_bytes, each as the largest: more than 8400 pixels in a request; .* are\] \[?10800",
    ):
        encoded(image_bytes=tf.constant([wide, high, high]))
    with pytest.raises(
        ValueError, match="exported with masks='pasted'; `segment` needs masks='probabilities'"
    ):
        load(path).segment(images[0])


def test_the_limits_of_pasted_masks(with_pasted_masks):
    model, _ = with_pasted_masks
    assert limits_of(model, "pasted").request_pixels == 2**26  # 12 masks
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "detections", 100)
        assert limits_of(model, "pasted") == (2**30 // 100, 64, 2**30 // 100)
        assert limits_of(model, "bits").request_pixels == 2**26


def test_bits_are_ready_for_run_lengths(tmp_path):
    from pycocotools import mask as coco

    model = detector(structure="c4", anchor_sizes=[16, 32], roi="warp")
    signatures = tf.saved_model.load(
        str(saved_model(model, tmp_path / "1", masks="bits", warmup_sizes=()))
    ).signatures
    image = pictures(41, 59, 3)
    outputs = {
        k: v.numpy()[0] for k, v in signatures["serving_default"](images=tf.constant(image[None])).items()
    }
    expected = keras_seg.segment(model, image, score_threshold=0.0)
    assert outputs["masks"].shape == (12, -(-41 * 59 // 8))
    columns = np.unpackbits(outputs["masks"], axis=1)[: len(expected), : 41 * 59].reshape(-1, 59, 41)
    theirs = coco.encode(np.asfortranarray(columns.transpose(2, 1, 0)))
    ours = [result["segmentation"] for result in expected.to_coco(1)]
    overlap = coco.iou(theirs, ours, [0] * len(ours)).diagonal()
    assert (overlap[coco.area(ours) > 0] > 0.99).all()


@pytest.fixture(scope="module")
def rpn():
    return mask_rcnn(1, **{**SMALL, "masks": False}, rpn_only=True, structure="dc5", anchor_sizes=[16, 32])


def test_an_rpn_gives_proposals(rpn, tmp_path):
    path = saved_model(rpn, tmp_path / "1", warmup_sizes=())
    image = pictures(40, 60, 3)
    outputs = tf.saved_model.load(str(path)).signatures["serving_default"](images=tf.constant(image[None]))
    assert "masks" not in outputs and outputs["boxes"].shape == (1, 40, 4)
    same(outputs, 0, keras_seg.segment(rpn, image, score_threshold=0.0), masks=False)


@pytest.mark.parametrize("half_a_pixel", [False, True])
def test_different_detections_are_refused(rpn, tmp_path, monkeypatch, half_a_pixel):
    """Of other weights; and of the same, but with the boxes half a pixel to the right and more."""
    other = mask_rcnn(**rpn.arguments)
    if half_a_pixel:
        other.set_weights(rpn.get_weights())
        (bias,) = (v for v in other.variables if v.path.endswith("anchor_deltas/bias"))
        shift = np.array([0.5 / 16, 0, 0, 0], np.float32)  # anchors have sides of 16 and 32 pixels
        bias.assign_add(np.tile(shift, bias.shape[0] // 4))
    monkeypatch.setattr(detection_graph, "folded", lambda model, **options: folding.folded(other, **options))
    with pytest.raises(
        RuntimeError, match="finds [0-9]+% of what the Keras model finds, .* nothing was written"
    ):
        saved_model(rpn, tmp_path / "1", warmup_sizes=())
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_found_in(signatures):
    for shape in ([0, 5, 5, 3], [1, 5, 0, 3]):
        with pytest.raises(tf.errors.InvalidArgumentError, match="images: there are none, or they are empty"):
            signatures["serving_default"](images=tf.zeros(shape, tf.uint8))
    most = 2**24 * 4 // 9  # the network sees each side by the scale of 1.5
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"more than {most} pixels an image"):
        signatures["serving_default"](images=tf.zeros([1, 2, most // 2 + 1, 3], tf.uint8))
    with pytest.raises(tf.errors.InvalidArgumentError, match="image_bytes: there are none"):
        signatures["encoded_images"](image_bytes=tf.constant([], tf.string))
    with pytest.raises(tf.errors.InvalidArgumentError, match="neither a JPEG nor a PNG"):
        signatures["encoded_images"](image_bytes=tf.constant([file_of(pictures(9, 9, 3)), b"nothing"]))


def test_a_request_of_many_images_is_refused(signatures):
    most = int(2**26 / 1.5**2)
    for call, message in (
        (
            lambda: signatures["serving_default"](images=tf.zeros([65, 1, 1, 3], tf.uint8)),
            "images: more than 64 in",
        ),
        (
            lambda: signatures["encoded_images"](image_bytes=tf.constant([b""] * 65)),
            "image_bytes: more than 64 in",
        ),
        (
            lambda: signatures["serving_default"](images=tf.zeros([5, 2000, 3000, 3], tf.uint8)),
            f"images: more than {most} pixels in a request",
        ),
    ):
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            call()


def test_what_the_model_says_of_itself(model, loaded):
    about = loaded.about
    assert about["name"] == "small" and about["class_names"] == ["a", "b", "c"] and about["classes"] == 3
    assert about["keras_seg"] == keras_seg.__version__ and about["licence"] is None
    assert about["outputs"]["masks"] == {"dtype": "float32", "shape": ["B", 12, 28, 28]}
    assert about["signatures"] == ["encoded_images", "serving_default"]
    recipe = about["recipe"]["model"]
    assert recipe.pop("builder") == "mask_rcnn" and mask_rcnn(**recipe).get_config()["scale"] == 1.5


def test_the_licence_is_that_of_the_weights():
    model = detector(name="maskrcnn_r50_fpn")
    assert metadata.describe(model, {})["licence"] is None  # fresh weights
    model.loaded = "a report"
    about = metadata.describe(model, {})
    assert about["licence"] == "CC BY-SA 3.0" and about["recipe"]["published"]["format"] == "detectron2"
    assert metadata.describe(model, {}, "mine")["licence"] == "mine"
    assert metadata.describe(keras_seg.zoo.load("unet_isbi2012"), {})["licence"] == "Apache-2.0"


def test_no_more_weights_than_inference_needs(model, exported):
    """Nothing is kept twice, nor anything of training."""
    reader = tf.train.load_checkpoint(str(exported / "variables/variables"))
    sizes = [
        np.prod(shape)
        for name, shape in reader.get_variable_to_shape_map().items()
        if "CHECKPOINTABLE" not in name
    ]
    assert sum(sizes) == sum(np.prod(weight.shape) for weight in model.weights if weight.dtype == "float32")
