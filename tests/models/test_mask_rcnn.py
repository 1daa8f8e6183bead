"""The builder: structures, branches, ablations, saving, freezing, precision, messages."""

from __future__ import annotations

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


def test_a_batch_is_each_image_alone():
    model, batch = tiny(keypoints=5), inputs(3)
    together = model(batch)
    for row in range(3):
        alone = model({name: value[row : row + 1] for name, value in batch.items()})
        for name, value in alone.items():
            np.testing.assert_allclose(value[0], together[name][row], atol=1e-3, err_msg=name)


def test_padding_does_not_matter_beyond_the_true_size():
    model, batch = tiny(), inputs(1)
    size = tf.constant([[50.0, 70.0]])
    noise = tf.random.stateless_uniform(batch["image"].shape, [1, 2], 0, 255)
    inside = (tf.range(64) < 50)[None, :, None, None] & (tf.range(96) < 70)[None, None, :, None]
    found = [model({"image": tf.where(inside, batch["image"], fill), "size": size}) for fill in (0.0, noise)]
    for name in found[0]:
        np.testing.assert_array_equal(found[0][name], found[1][name])
    assert found[0]["boxes"].numpy()[..., 2].max() <= 70


@pytest.mark.parametrize("structure", ["fpn", "c4"])
def test_no_detections(structure):
    found = tiny(structure=structure, score_threshold=1.0, keypoints=0 if structure == "c4" else 5)(inputs())
    assert found["num_detections"].numpy().tolist() == [0, 0]
    assert all(not np.any(value) for value in found.values())


def test_graph_mode_with_any_size():
    model = tiny()
    calls = []

    @tf.function(
        input_signature=[
            {"image": tf.TensorSpec([None, None, None, 3]), "size": tf.TensorSpec([None, 2])},
        ]
    )
    def predict(batch):
        calls.append(1)
        return model(batch)

    for shape in ((1, 64, 64), (2, 32, 96)):
        batch = inputs(*shape)
        for name, value in model(batch).items():
            np.testing.assert_allclose(predict(batch)[name], value, atol=1e-3)
    assert len(calls) == 1


def test_saved_and_loaded(tmp_path):
    model = tiny(keypoints=2, class_names=["a", "b", "c"])
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


def test_mixed_precision():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        found = tiny()(inputs())
    finally:
        keras.config.set_dtype_policy("float32")
    assert {value.dtype for value in found.values()} == {tf.float32, tf.int32}
    assert int(found["num_detections"][0]) > 0


def test_a_size_beyond_the_image_is_refused():
    batch = inputs(1)
    with pytest.raises(
        tf.errors.InvalidArgumentError, match="true height and width, within the padded image"
    ):
        tiny()({**batch, "size": tf.constant([[65.0, 96.0]])})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backbone": "resnet51"}, "backbone must be one of .*got 'resnet51'"),
        ({"structure": "fpn2"}, "structure must be one of 'fpn', 'c4', 'dc5', 'c5', got 'fpn2'"),
        ({"classes": 0}, "classes must be a positive integer, got 0"),
        ({"class_names": ["a"]}, "1 class_names for 3"),
        ({"keypoints": 2, "keypoint_names": ["a"]}, "1 keypoint_names for 2"),
        ({"short_side": 900, "max_side": 800}, "short_side=900 is longer than max_side=800"),
        ({"masks": False, "class_agnostic_masks": True}, "class_agnostic_masks=True, but masks=False"),
        ({"class_agnostic_masks": True, "mask_loss": "softmax"}, "needs class-specific masks"),
        ({"structure": "c4", "keypoints": 3}, "the keypoint branch needs structure"),
        ({"structure": "c4", "box_head": "conv_fc"}, "'c4' has its own heads, so box_head cannot be chosen"),
        ({"mask_head": "fc"}, "mask_head must be one of"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        mask_rcnn(**{"classes": 3, **TINY, **arguments})
