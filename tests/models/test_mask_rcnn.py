"""The builder: structures, branches, ablations, saving, freezing, precision, messages."""

from __future__ import annotations

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_seg.models import MaskRCNN, mask_rcnn

TINY = {
    "backbone": "resnet18", "width": 4, "fpn_channels": 8, "box_head_channels": 16, "mask_channels": 8,
    "keypoint_channels": 8, "proposals": 30, "detections": 6, "score_threshold": 0.0,
}  # fmt: skip


def tiny(**changes) -> MaskRCNN:
    keras.utils.set_random_seed(1)
    return mask_rcnn(3, **{**TINY, **changes})


@functools.cache
def ready(structure: str = "fpn") -> MaskRCNN:
    """One for all tests that leave it as it is."""
    return tiny(structure=structure, keypoints=0 if structure == "c4" else 2, class_names=["a", "b", "c"])


@functools.cache
def compiled(structure: str = "fpn"):
    """Its graph, for inputs of any size."""
    model = ready(structure)
    signature = {"image": tf.TensorSpec([None, None, None, 3]), "size": tf.TensorSpec([None, 2])}
    return tf.function(lambda batch: model(batch), input_signature=[signature])


def inputs(count: int = 2, height: int = 64, width: int = 96) -> dict[str, tf.Tensor]:
    image = tf.random.stateless_uniform((count, height, width, 3), [3, 4], 0, 255)
    return {"image": image, "size": tf.constant([[height, width]] * count, tf.float32)}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"structure": "c4"},
        {"structure": "dc5"},
        {"structure": "c5"},
        {"masks": False},
        {"masks": False, "keypoints": 5},
        {"keypoints": 5},
        {"roi": "pool", "structure": "c5"},
        {"roi": "warp"},
        {"roi_pooling": "max"},
        {"roi_sampling": 2, "roi_aligned": False},
        {"mask_loss": "softmax"},
        {"class_agnostic_masks": True, "class_agnostic_boxes": True},
        {"mask_head": "mlp2"},
        {"mask_head": "mlp3"},
        {
            "mask_head": "conv_norm",
            "box_head": "conv_fc",
            "rpn_convs": 2,
            "fpn_normalization": "batch",
            "normalization": "batch",
        },
    ],
    ids=str,
)
def test_every_variant_predicts(changes):
    model = tiny(**changes)
    found = model(inputs())
    side = 14 if changes.get("structure") == "c4" else 28
    shapes = {"boxes": [2, 6, 4], "scores": [2, 6], "classes": [2, 6], "num_detections": [2]}
    if changes.get("masks", True):
        shapes["masks"] = [2, 6, side, side]
    if "keypoints" in changes:
        shapes["keypoints"] = [2, 6, 5, 3]
    assert {name: value.shape.as_list() for name, value in found.items()} == shapes
    assert found["classes"].dtype == found["num_detections"].dtype == tf.int32
    assert all(np.isfinite(value).all() for value in found.values())
    if "masks" in found:
        assert 0 <= found["masks"].numpy().min() and found["masks"].numpy().max() <= 1


@pytest.mark.parametrize("structure", ["fpn", "c4"])
def test_a_batch_is_each_image_alone(structure):
    batch = inputs(3)
    batch["size"] = tf.constant([[64.0, 96], [50, 70], [33, 96]])  # padded to the same
    model = tiny(structure=structure)
    for variable in model.weights:
        # else a network without training is so sure of everything that rounding alone tells its scores apart
        if variable.path.endswith(("conv2_norm/gamma", "conv3_norm/gamma")):
            variable.assign(tf.fill(variable.shape, 0.2))
    together = model(batch)
    for row in range(3):
        alone = model({name: value[row : row + 1] for name, value in batch.items()})
        for name, value in alone.items():
            np.testing.assert_allclose(value[0], together[name][row], atol=1e-3, err_msg=name)


def test_padding_does_not_matter_beyond_the_true_size():
    model, batch = compiled(), inputs(1)
    size = tf.constant([[50.0, 70.0]])
    noise = tf.random.stateless_uniform(batch["image"].shape, [1, 2], 0, 255)
    inside = (tf.range(64) < 50)[None, :, None, None] & (tf.range(96) < 70)[None, None, :, None]
    fills = (0.0, noise, np.nan)
    found = [model({"image": tf.where(inside, batch["image"], fill), "size": size}) for fill in fills]
    for name in found[0]:
        np.testing.assert_array_equal(found[0][name], found[1][name])
        np.testing.assert_array_equal(found[0][name], found[2][name])
    assert found[0]["boxes"].numpy()[..., 2].max() <= 70


@pytest.mark.parametrize("structure", ["fpn", "c4"])
@pytest.mark.parametrize(
    ("layer", "field", "value"), [("detections", "score_threshold", 1.0), ("proposals", "min_size", 1e6)]
)
def test_no_detections_and_no_proposals(monkeypatch, structure, layer, field, value):
    model = ready(structure)
    monkeypatch.setattr(model.get_layer(layer), field, value)
    found = model(inputs())
    assert found["num_detections"].numpy().tolist() == [0, 0]
    assert all(not np.any(value) for value in found.values())


def test_an_image_with_and_two_without_detections(monkeypatch):
    """Results stay in their row."""
    model, batch = ready(), inputs(3)
    monkeypatch.setattr(model.get_layer("proposals"), "min_size", 40.0)
    # no box of 40 pixels fits the first and the last
    found = model(batch | {"size": tf.constant([[30.0, 30], [64, 96], [39, 39]])})
    assert (found["num_detections"].numpy() > 0).tolist() == [False, True, False]
    assert [np.any(value[0]) or np.any(value[2]) for value in found.values()] == [False] * len(found)


def test_weights_that_are_not_finite_detect_nothing():
    model = tiny()
    kernel = model.parts["backbone"].get_layer("stem_conv1").kernel
    kernel.assign(np.full(kernel.shape, np.nan))
    found = model(inputs())
    assert found["num_detections"].numpy().tolist() == [0, 0]
    assert all(np.isfinite(value).all() for value in found.values())


@pytest.mark.parametrize("structure", ["c4", "dc5", "c5"])
def test_any_size_without_a_pyramid(structure):
    model = ready(structure)
    for height, width in ((1, 1), (1, 90), (37, 53)):
        found = model(inputs(1, height, width))
        boxes = found["boxes"].numpy()[0, : int(found["num_detections"][0])]
        assert (boxes >= 0).all() and (boxes <= [width, height, width, height]).all()
        assert all(np.isfinite(value).all() for value in found.values())


def test_graph_mode_with_any_size():
    for shape in ((1, 64, 64), (2, 32, 96)):
        batch = inputs(*shape)
        for name, value in ready()(batch).items():
            np.testing.assert_allclose(compiled()(batch)[name], value, atol=1e-3)
    assert compiled().experimental_get_tracing_count() == 1


def test_saved_and_loaded(tmp_path):
    model = ready()
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert isinstance(loaded, MaskRCNN) and loaded.class_names == ["a", "b", "c"]
    assert loaded.get_config() == model.get_config()
    for name, value in model(inputs()).items():
        np.testing.assert_array_equal(loaded(inputs())[name], value)


def test_parts_are_frozen_one_by_one(capsys):
    model = tiny()
    assert list(model.parts) == ["backbone", "fpn", "rpn", "box_head", "box_predictor", "mask_head"]
    before = len(model.trainable_weights)
    model.parts["fpn"].trainable = False
    assert len(model.trainable_weights) == before - len(model.parts["fpn"].weights)
    model.summary()
    assert "box_predictor" in capsys.readouterr().out


@pytest.mark.parametrize("structure", ["fpn", "c4"])
def test_mixed_precision(structure):
    """Coordinates are float32 all the way: bfloat16 knows 352 and 354, and none between."""
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        found = tiny(structure=structure)(inputs(1, 64, 384) | {"size": tf.constant([[64.0, 353]])})
    finally:
        keras.config.set_dtype_policy("float32")
    assert {value.dtype for value in found.values()} == {tf.float32, tf.int32}
    boxes = found["boxes"][0, : int(found["num_detections"][0])]
    assert 0 < len(boxes) and boxes.numpy().max() <= 353
    assert np.any(boxes != tf.cast(tf.cast(boxes, tf.bfloat16), tf.float32))


@pytest.mark.parametrize("kind", [np.uint8, np.int64, np.float64, np.float16])
def test_pixels_of_any_number_type(kind):
    model, batch = ready(), inputs(1)
    whole = tf.round(batch["image"])
    expected = model({**batch, "image": whole})
    for name, value in model({**batch, "image": tf.cast(whole, kind)}).items():
        np.testing.assert_array_equal(value, expected[name])


FULL = [[64.0, 96]]


@pytest.mark.parametrize(
    ("shape", "size", "error", "message"),
    [
        ((1, 64, 96, 4), FULL, ValueError, "'image' .*expected shape=.*3.*, found shape=.*4"),
        ((64, 96, 3), FULL, ValueError, "Expected shape .*but input has incompatible shape"),
        ((1, 64, 96, 3), [[64.0, 96, 3]], ValueError, "'size' .*expected shape=.*2.*, found shape=.*3"),
        ((1, 50, 96, 3), [[50.0, 96]], tf.errors.InvalidArgumentError, "(?s)to multiples of.*32.*50.*96"),
        ((1, 64, 96, 3), [[65.0, 96]], tf.errors.InvalidArgumentError, "(?s)within the padded image. Got.*65"),
        ((1, 64, 96, 3), [[0.0, 96]], tf.errors.InvalidArgumentError, "true height and width"),
        ((1, 64, 96, 3), [[np.nan, 96]], tf.errors.InvalidArgumentError, "true height and width"),
        ((1, 64, 96, 3), FULL * 2, tf.errors.InvalidArgumentError, "(?s)each image's true .*for images of shape"),
        ((1, 0, 96, 3), [[0.0, 96]], tf.errors.InvalidArgumentError, "true height and width"),
    ],
)  # fmt: skip
def test_wrong_inputs_are_named(shape, size, error, message):
    with pytest.raises(error, match=message):
        ready()({"image": tf.zeros(shape), "size": tf.constant(size)})


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_pixels_that_are_not_finite_are_refused(value):
    batch = inputs(3)
    image = batch["image"].numpy()
    image[1, 20, 30, 2] = value
    bad = {**batch, "image": tf.constant(image)}
    message = r"(?s)NaN or infinite, in these images of the batch, counted from 0:.*1"
    for predict in (ready(), compiled()):
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            predict(bad)


def test_the_networks_under_xla():
    for name, part in ready().parts.items():
        given = [tf.random.stateless_normal((2, *(64 >> place if side is None else side for side in x.shape[1:])), [1, place])
                 for place, x in enumerate(part.inputs)]  # fmt: skip
        given = given if len(given) > 1 else given[0]
        compiled = tf.nest.flatten(tf.function(part, jit_compile=True)(given))
        for found, expected in zip(compiled, tf.nest.flatten(part(given)), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4, err_msg=name)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backbone": "resnet51"}, "backbone must be one of .*got 'resnet51'"),
        ({"structure": "fpn2"}, "structure must be one of 'fpn', 'c4', 'dc5', 'c5', got 'fpn2'"),
        ({"classes": 0}, "classes must be a positive integer, got 0"),
        ({"class_names": ["a"]}, "1 class_names for 3"),
        ({"keypoints": 2, "keypoint_names": ["a"]}, "1 keypoint_names for 2"),
        ({"short_side": 900, "max_side": 800}, "short_side=900 is longer than max_side=800"),
        ({"anchor_sizes": [8, 16]}, "anchor_sizes must be positive, 5 with structure 'fpn', got"),
        (
            {"structure": "c4", "anchor_sizes": [8, -16]},
            "anchor_sizes must be positive, 5 with structure 'fpn', got",
        ),
        ({"scale": 0.0}, "scale must be positive, got 0.0"),
        ({"masks": False, "class_agnostic_masks": True}, "class_agnostic_masks=True, but masks=False"),
        ({"class_agnostic_masks": True, "mask_loss": "softmax"}, "needs class-specific masks"),
        (
            {"structure": "c4", "rpn_shared": False},
            "rpn_shared=False, fpn_top='pool' need structure 'fpn', got 'c4'",
        ),
        ({"structure": "dc5", "fpn_top": "conv"}, "fpn_top='conv' need structure 'fpn', got 'dc5'"),
        ({"structure": "c4", "keypoints": 3}, "the keypoint branch needs structure"),
        ({"structure": "c4", "box_head": "conv_fc"}, "'c4' has its own heads, so box_head cannot be chosen"),
        ({"mask_head": "fc"}, "mask_head must be one of"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        mask_rcnn(**{"classes": 3, **TINY, **arguments})
