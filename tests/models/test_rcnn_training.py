"""A detector's training: every variant learns, samples are reproducible, bad batches are named."""

from __future__ import annotations

import functools
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_seg.models import MaskRCNN, mask_rcnn, rcnn_training
from keras_seg.training import checkpoint

TINY = {
    "backbone": "resnet18", "width": 16, "fpn_channels": 16, "box_head_channels": 32, "mask_channels": 16,
    "keypoint_channels": 16, "normalization": "group",
}  # fmt: skip
FEW = {"rpn_samples": 32, "region_samples": 16, "proposals": 60, "pre_nms_proposals": 100}
KEYPOINTS = 3


def tiny(options: dict | None = None, **changes) -> MaskRCNN:
    keras.utils.set_random_seed(1)
    model = mask_rcnn(2, **{**TINY, **changes})
    model.configure_training(**{**FEW, **(options or {})})
    model.compile(optimizer=keras.optimizers.SGD(0.01, momentum=0.9, global_clipnorm=10.0))
    return model


@functools.cache
def ready() -> MaskRCNN:
    """One for all tests that leave it as it is, with all branches."""
    return tiny(keypoints=KEYPOINTS)


def objects(sizes=((64, 96), (50, 70)), counts=(3, 1), seed: int = 0) -> dict[str, np.ndarray]:
    """Ellipses of two classes, by colour, on grey; the bitmaps in windows, the middle and two ends as keypoints."""
    random = np.random.default_rng(seed)
    batch, places = len(sizes), max(counts)
    image = np.full((batch, 64, 96, 3), 90, np.uint8)
    boxes, classes = np.zeros((batch, places, 4), np.float32), np.full((batch, places), -1, np.int32)
    windows, keypoints = np.zeros((batch, places, 5), np.int32), np.zeros((batch, places, KEYPOINTS, 3))
    pixels = []
    for row, ((height, width), count) in enumerate(zip(sizes, counts, strict=True)):
        start, parts = 0, [np.zeros(0, bool)]
        for entry in range(count):
            h, w = random.integers(18, 34, 2)
            y, x, kind = random.integers(0, height - h + 1), random.integers(0, width - w + 1), entry % 2
            rows, columns = np.mgrid[:h, :w]
            inside = ((rows + 0.5) / h - 0.5) ** 2 + ((columns + 0.5) / w - 0.5) ** 2 < 0.25
            image[row, y : y + h, x : x + w][inside] = [[220, 40, 60], [30, 60, 230]][kind]
            boxes[row, entry], classes[row, entry] = (x, y, x + w, y + h), kind
            windows[row, entry] = start, y, x, h, w
            start += h * w
            parts.append(inside.ravel())
            keypoints[row, entry, :, 0] = x + w * np.array([0.5, 0.1, 0.9])
            keypoints[row, entry, :, 1] = y + h / 2
            keypoints[row, entry, :, 2] = 2, 1, entry % 2
        pixels.append(np.concatenate(parts))
    longest = max(map(len, pixels))
    return {
        "image": image,
        "size": np.array(sizes, np.float32),
        "boxes": boxes,
        "classes": classes,
        "mask_pixels": np.stack([np.pad(p, (0, longest - len(p))) for p in pixels]).astype(np.uint8),
        "mask_windows": windows,
        "keypoints": keypoints.astype(np.float32),
        "image_id": np.arange(batch),
    }


def numbers(terms: dict[str, tf.Tensor]) -> dict[str, float]:
    return {name: float(value) for name, value in terms.items()}


@pytest.mark.parametrize(
    "changes",
    [
        {"keypoints": KEYPOINTS},
        {"structure": "c4"},
        {"structure": "dc5"},
        {"structure": "c5", "roi": "pool"},
        {"masks": False},
        {"masks": False, "keypoints": KEYPOINTS},
        {"roi": "warp", "mask_loss": "softmax"},
        {"roi_pooling": "max", "class_agnostic_masks": True, "class_agnostic_boxes": True},
        {"mask_head": "mlp2", "rpn_convs": 2, "convention": "torchvision", "anchors_rounded": True},
        {"mask_head": "conv_norm", "box_head": "conv_fc", "fpn_normalization": "batch"},
        {"rpn_shared": False, "fpn_top": "conv", "anchor_offset": 0.5, "mask_head": "mlp3"},
    ],
    ids=str,
)
def test_every_variant_learns(changes):
    model, batch = tiny(**changes), objects()
    if model.keypoints == 0:
        del batch["keypoints"]

    def losses() -> dict[str, float]:
        return numbers(model.compute_losses(batch, training=True, seed=[0, 0]))

    before = losses()
    for _ in range(3):
        assert np.isfinite([*numbers(model.optimize(batch)).values()]).all()
    after = losses()
    expected = {"loss_rpn_class", "loss_rpn_box", "loss_class", "loss_box"}
    expected |= {
        name for name, part in (("loss_mask", model.masks), ("loss_keypoint", model.keypoints)) if part
    }
    assert before.keys() == expected | {"loss"}
    assert after["loss"] < before["loss"], (before, after)
    assert before["loss"] == pytest.approx(sum(before[name] for name in expected), rel=1e-5)


def test_given_proposals_take_the_place_of_the_rpn():
    """Its own proposals, given, give the heads' losses; the RPN has none and no gradient."""
    model, batch = tiny(), objects()
    del batch["keypoints"]
    own = numbers(model.compute_losses(batch))
    layer, options = model.get_layer("proposals"), model.training_options
    inputs = {name: tf.cast(batch[name], tf.float32) for name in ("image", "size")}
    *outputs, size = keras.Model(model.input, tf.nest.flatten(layer.input))(inputs)
    logits, deltas = outputs[: len(outputs) // 2], outputs[len(outputs) // 2 :]
    boxes, _, _ = layer.select(logits, deltas, size, options.pre_nms_proposals, options.proposals)
    with tf.GradientTape() as tape:
        given = model.compute_losses({**batch, "proposals": boxes})
    assert given.keys() == {"loss", "loss_class", "loss_box", "loss_mask"}
    found = numbers(given)
    assert {name: found[name] for name in found if name != "loss"} == pytest.approx(
        {name: own[name] for name in found if name != "loss"}, rel=1e-5
    )
    assert all(g is None for g in tape.gradient(given["loss"], model.parts["rpn"].trainable_variables))
    # nothing but the objects' own boxes is left to train on, and places without extent are none
    nothing = numbers(model.compute_losses({**batch, "proposals": np.zeros((2, 3, 4), np.float32)}))
    none = numbers(model.compute_losses({**batch, "proposals": np.zeros((2, 0, 4), np.float32)}))
    assert nothing == pytest.approx(none) and np.isfinite([*none.values()]).all()
    wrong = np.full((2, 1, 4), np.nan, np.float32)
    with pytest.raises(tf.errors.InvalidArgumentError, match="proposals must be finite"):
        model.compute_losses({**batch, "proposals": wrong})


def test_the_second_stage_alone_finds_what_the_whole_model_finds():
    model, batch = ready(), objects()
    inputs = {name: tf.cast(batch[name], tf.float32) for name in ("image", "size")}
    boxes, count = keras.Model(model.input, model.get_layer("proposals").output)(inputs)
    found = model.second_stage()({**inputs, "proposals": boxes, "num_proposals": count})
    whole = model(inputs)
    assert found.keys() == whole.keys()
    for name, value in whole.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("structure", ["fpn", "c4"])
def test_an_rpn_alone(structure):
    keras.utils.set_random_seed(1)
    model = mask_rcnn(1, **{**TINY, "structure": structure, "masks": False, "rpn_only": True})
    model.configure_training(**FEW)
    model.compile(optimizer=keras.optimizers.SGD(0.01, momentum=0.9, global_clipnorm=10.0))
    assert set(model.parts) == {"backbone", "rpn"} | ({"fpn"} if structure == "fpn" else set())
    batch = {
        name: value for name, value in objects().items() if name in ("image", "size", "boxes", "classes")
    }
    before = numbers(model.compute_losses(batch, seed=[0, 0]))
    assert before.keys() == {"loss", "loss_rpn_class", "loss_rpn_box"}  # of two classes, which count as one
    for _ in range(3):
        model.optimize(batch)
    assert numbers(model.compute_losses(batch, seed=[0, 0]))["loss"] < before["loss"]
    found = model({name: tf.cast(batch[name], tf.float32) for name in ("image", "size")})
    number = found["num_detections"].numpy()
    for row, count in enumerate(number):
        scores, boxes = found["scores"][row].numpy(), found["boxes"][row].numpy()
        assert 0 < count <= model.proposals and (np.diff(scores[:count]) <= 0).all()
        assert ((scores[:count] > 0) & (scores[:count] < 1)).all() and not scores[count:].any()
        assert (boxes[:count, 2:] > boxes[:count, :2]).all() and not boxes[count:].any()
    assert not found["classes"].numpy().any()
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(model))
    assert again.rpn_only and again.output_shape == model.output_shape
    with pytest.raises(ValueError, match="rpn_only=True, so there is no second stage"):
        model.second_stage()
    with pytest.raises(ValueError, match="nothing but an RPN, which makes proposals; the batch has some"):
        model.compute_losses({**batch, "proposals": np.zeros((2, 1, 4), np.float32)})


def test_one_graph_for_all_sizes_and_numbers():
    model = ready()
    signature = {
        name: tf.TensorSpec([None] * value.ndim, value.dtype)
        if name in ("mask_pixels", "classes", "image_id")
        else tf.TensorSpec([None, *[None] * (value.ndim - 2), value.shape[-1]], value.dtype)
        for name, value in objects().items()
    }
    compute = tf.function(
        lambda batch: model.compute_losses(batch), input_signature=[signature], autograph=False
    )
    batch = objects()
    cut = {name: value[:1] for name, value in objects(counts=(0, 0)).items()} | {
        "image": batch["image"][:1, :32, :64], "size": np.array([[30.0, 60]], np.float32)
    }  # fmt: skip
    for given in (batch, cut):
        found = numbers(compute({name: tf.constant(value) for name, value in given.items()}))
        assert found == pytest.approx(numbers(model.compute_losses(given)), rel=1e-3, abs=1e-5)
    assert compute.experimental_get_tracing_count() == 1


def test_fit_evaluate_and_their_names():
    model, batch = tiny(masks=False, structure="dc5"), objects()
    assert not model.supports_jit  # Keras asks where there is a GPU
    dataset = tf.data.Dataset.from_tensors(
        {name: batch[name] for name in ("image", "size", "boxes", "classes")}
    )
    history = model.fit(
        dataset.repeat(4), epochs=2, steps_per_epoch=2, validation_data=dataset, verbose=0
    ).history
    names = {"loss", "loss_rpn_class", "loss_rpn_box", "loss_class", "loss_box"}
    assert history.keys() == names | {f"val_{name}" for name in names}
    assert history["val_loss"][1] < history["val_loss"][0]
    again = model.evaluate(dataset, verbose=0, return_dict=True)
    assert again == pytest.approx({name: history[f"val_{name}"][-1] for name in names}, rel=1e-4)


def test_fit_on_two_devices():
    """In a process of its own: the devices of a process are fixed once TensorFlow has begun."""
    script = """
        import sys
        import numpy as np, tensorflow as tf
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
        sys.path.insert(0, "tests/models")
        from test_rcnn_training import objects, tiny
        strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
        with strategy.scope():
            model = tiny(structure="dc5")
        batch = objects()
        del batch["keypoints"]
        dataset = tf.data.Dataset.from_tensor_slices(batch).repeat().batch(2)
        history = model.fit(dataset, epochs=2, steps_per_epoch=2, verbose=0).history
        assert history["loss"][1] < history["loss"][0], history
        variable = model.trainable_variables[0].value
        copies = strategy.experimental_local_results(variable)
        assert len(copies) == 2
        np.testing.assert_array_equal(copies[0], copies[1])
        print("two devices")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False
    )
    assert "two devices" in done.stdout, done.stderr[-3000:]


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision(policy):
    full = numbers(tiny().compute_losses(objects(), seed=[0, 0]))
    keras.config.set_dtype_policy(policy)
    try:
        model = tiny()
    finally:
        keras.config.set_dtype_policy("float32")
    terms = model.compute_losses(objects(), seed=[0, 0])
    assert {value.dtype for value in terms.values()} == {tf.float32}
    # other proposals survive, so only the RPN's losses see the same samples
    for name in ("loss_rpn_class", "loss_rpn_box"):
        assert float(terms[name]) == pytest.approx(full[name], rel=0.03)
    before = [v.numpy() for v in model.trainable_variables]
    assert np.isfinite([*numbers(model.optimize(objects())).values()]).all()
    assert any(np.any(a != v.numpy()) for a, v in zip(before, model.trainable_variables, strict=True))
    assert all(np.isfinite(v.numpy()).all() for v in model.trainable_variables)


@pytest.mark.parametrize("kind", ["no object", "no place", "all crowd"])
def test_images_without_an_object(kind):
    model, batch = ready(), objects()
    if kind == "no object":
        batch["classes"][:] = -1
        batch["boxes"][:] = np.nan  # what a place without an object holds does not matter
    elif kind == "no place":
        batch |= {name: batch[name][:, :0] for name in ("boxes", "classes", "mask_windows", "keypoints")}
    else:
        batch["crowd"] = np.ones(batch["classes"].shape, bool)
    with tf.GradientTape() as tape:
        terms = model.compute_losses(batch, training=True)
    gradients = tape.gradient(terms["loss"], model.trainable_variables)
    found = numbers(terms)
    assert found["loss_rpn_class"] > 0 and found["loss_class"] > 0
    for name in ("loss_rpn_box", "loss_box", "loss_mask", "loss_keypoint"):
        assert found[name] == 0
    assert all(np.isfinite(tf.convert_to_tensor(g)).all() for g in gradients if g is not None)


def test_a_crowd_is_no_object():
    model, batch = ready(), objects()
    without = {**batch, "classes": np.where(np.arange(3) == 1, -1, batch["classes"])}
    crowd = {**batch, "crowd": np.array([[False, True, False]] * 2)}
    assert numbers(model.compute_losses(crowd)) == numbers(model.compute_losses(without))
    assert numbers(model.compute_losses(crowd)) != numbers(model.compute_losses(batch))


def test_polygons_say_what_bitmaps_say():
    """Rectangles, whose bitmaps and polygons are the same; objects may also be given half and half."""
    model, batch = ready(), objects()
    batch["mask_pixels"][:] = 1
    corners = batch["boxes"][..., [0, 1, 2, 1, 2, 3, 0, 3]].astype(np.float64).reshape(2, -1, 2)
    there = batch["classes"] >= 0
    polygons = {
        "polygon_points": corners,
        "polygon_lengths": np.where(there, 4, 0),
        "polygon_objects": np.where(there, np.arange(3), -1),
    }
    bare = {name: value for name, value in batch.items() if not name.startswith("mask_")}
    expected = numbers(model.compute_losses(batch))["loss_mask"]
    # pycocotools draws a polygon's border by a rule of its own
    assert numbers(model.compute_losses(bare | polygons))["loss_mask"] == pytest.approx(expected, rel=0.02)
    first = {**polygons, "polygon_lengths": np.where(np.arange(3) == 0, polygons["polygon_lengths"], 0)}
    some = {**batch, "mask_windows": batch["mask_windows"] * (np.arange(3) > 0)[:, None]}
    mixed = numbers(model.compute_losses(some | first))["loss_mask"]
    assert mixed == pytest.approx(expected, rel=0.02)
    assert mixed != numbers(model.compute_losses(some))["loss_mask"]


def test_the_rpn_at_samples_is_the_rpn_everywhere(monkeypatch):
    """Values and gradients, at the maps' borders too."""
    model = ready()
    random = np.random.default_rng(0)
    maps = [tf.constant(random.normal(size=(2, 16 >> k, 24 >> k, 16)), tf.float32) for k in range(4)]
    total = sum(level.shape[1] * level.shape[2] * 3 for level in maps)
    indices = tf.constant(random.integers(0, total, (2, 300)), tf.int32)
    weights = tf.constant(random.normal(size=(2, 300, 5)), tf.float32)
    results = []
    for convs in (1, None):  # None: no head that is evaluated at samples alone
        monkeypatch.setattr(model, "rpn_convs", convs)
        with tf.GradientTape() as tape:
            tape.watch(maps)
            logits, deltas = rcnn_training.outputs_at(model, maps, indices)
            loss = tf.reduce_sum(tf.concat([logits[..., None], deltas], -1) * weights)
        variables = model.parts["rpn"].trainable_variables
        results.append([logits, deltas, *tape.gradient(loss, [*maps, *variables])])
    for sampled, everywhere in zip(*results, strict=True):
        np.testing.assert_allclose(sampled, everywhere, rtol=1e-4, atol=1e-4)


def test_samples_follow_the_seed(tmp_path):
    model, batch = tiny(masks=False), objects()
    compute = functools.partial(model.compute_losses, batch)
    assert numbers(compute()) == numbers(compute())  # validations can be compared
    assert numbers(compute(seed=[3, 4])) == numbers(compute(seed=[3, 4])) != numbers(compute(seed=[3, 5]))
    model.optimizer.build(model.trainable_variables)
    checkpoint.save(tmp_path / "now.npz", model, {})
    drawn = [numbers(compute(training=True)) for _ in range(3)]
    assert drawn[0] != drawn[1] != drawn[2]
    checkpoint.restore(tmp_path / "now.npz", model)
    assert [numbers(compute(training=True)) for _ in range(3)] == drawn


def test_options_have_their_effect():
    model, batch = tiny(masks=False), objects()
    plain = numbers(model.compute_losses(batch))
    model.configure_training(**FEW, loss_weights={"loss_box": 3.0, "loss_rpn_class": 0})
    changed = numbers(model.compute_losses(batch))
    assert changed["loss_box"] == pytest.approx(3 * plain["loss_box"])
    assert changed["loss_rpn_class"] == 0 and changed["loss_class"] == plain["loss_class"]
    for options, name in [
        ({"rpn_beta": 1.0}, "loss_rpn_box"),
        ({"box_beta": 1.0}, "loss_box"),
        ({"rpn_normalizer": "sampled", "rpn_samples": 3000}, "loss_rpn_class"),
        ({"rpn_thresholds": (0.1, 0.2)}, "loss_rpn_class"),
        ({"region_threshold": 0.9}, "loss_class"),
        ({"region_positive_fraction": 1.0}, "loss_class"),
    ]:
        model.configure_training(**{**FEW, **options})
        assert numbers(model.compute_losses(batch))[name] != plain[name], options


def test_defaults_are_the_reference_s():
    """Detectron2's Base-RCNN-FPN, -C4 and Base-Keypoint-RCNN-FPN; torchvision's detectors."""
    arguments = {"convention": "detectron2", "structure": "fpn", "keypoints": 0}
    found = {
        name: rcnn_training.training_options({**arguments, **changes})
        for name, changes in {
            "fpn": {}, "c4": {"structure": "c4"}, "keypoint": {"keypoints": 17}, "tv": {"convention": "torchvision"},
        }.items()
    }  # fmt: skip
    numbers_of = {name: (o.pre_nms_proposals, o.proposals) for name, o in found.items()}
    assert numbers_of == {
        "fpn": (2000, 1000),
        "c4": (12000, 2000),
        "keypoint": (2000, 1500),
        "tv": (2000, 2000),
    }
    assert {name: (o.rpn_beta, o.box_beta) for name, o in found.items()} == {
        "fpn": (0, 0), "c4": (0, 0), "keypoint": (0, 0.5), "tv": (1 / 9, 1 / 9)
    }  # fmt: skip


def test_options_are_saved_with_the_model(tmp_path):
    model = tiny({"loss_weights": {"loss_box": 2.0}, "rpn_thresholds": (0.2, 0.6)}, masks=False)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.training_options == model.training_options and loaded.training_options.rpn_samples == 32
    assert loaded.get_config() == model.get_config()
    assert "training" not in mask_rcnn(2, **TINY).get_config()


def test_weight_decay_is_of_kernels_alone():
    model, batch = tiny(masks=False), objects()
    model.compile(optimizer=keras.optimizers.SGD(1.0))
    model.configure_training(**FEW, weight_decay=0.125, loss_weights=dict.fromkeys(rcnn_training.LOSSES, 0.0))
    before = [v.numpy() for v in model.trainable_variables]
    assert float(model.optimize(batch)["loss"]) == 0
    for old, variable in zip(before, model.trainable_variables, strict=True):
        kept = 0.875 if variable.name == "kernel" else 1.0
        np.testing.assert_allclose(variable.numpy(), old * kept, rtol=1e-5, atol=1e-7, err_msg=variable.path)


def test_frozen_stages():
    model = tiny(normalization="batch")
    model.freeze(2)
    backbone = model.parts["backbone"]
    names = {layer.name.partition("_")[0] for layer in backbone.layers if layer.trainable_weights}
    assert names == {"res3", "res4", "res5"}
    stem = backbone.get_layer("stem_conv1_norm").moving_mean.numpy()
    batch = objects()
    frozen = backbone.get_layer("res2_0_conv1").kernel.numpy()
    model.optimize(batch)
    np.testing.assert_array_equal(backbone.get_layer("res2_0_conv1").kernel, frozen)
    np.testing.assert_array_equal(backbone.get_layer("stem_conv1_norm").moving_mean, stem)
    model.freeze(0)
    assert len(backbone.trainable_weights) > 0 and backbone.get_layer("stem_conv1").trainable
    model.freeze(5)
    assert not backbone.trainable_weights
    with pytest.raises(ValueError, match="freeze: stages must be 0 to 5, got 6"):
        model.freeze(6)


@pytest.mark.parametrize(
    ("name", "place", "value", "message"),
    [
        ("boxes", (1, 0, 2), np.nan, r"(?s)boxes must be finite, with x1 < x2.*counted from 0:.*1,? 0.*nan"),
        ("boxes", (0, 2, 2), 0.0, r"(?s)boxes must be finite, with x1 < x2 and y1 < y2.*0,? 2"),
        ("boxes", (0, 1, 0), np.inf, r"(?s)boxes must be finite.*0,? 1.*inf"),
        ("classes", (0, 1), 2, r"(?s)classes must be 0 to 1, or -1 where there is no object.*0,? 1.*2"),
        ("classes", (1, 2), -2, r"(?s)classes must be 0 to 1.*1,? 2.*-2"),
    ],
)
def test_wrong_objects_are_named(name, place, value, message):
    batch = objects()
    batch[name][place] = value
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        ready().compute_losses(batch)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"boxes": None}, "the batch lacks boxes; it has classes, image, "),
        ({"keypoints": None}, "the batch lacks keypoints"),
        ({"mask_windows": None}, "the batch lacks mask_windows"),
        (
            {"mask_windows": None, "mask_pixels": None},
            "no masks: give mask_pixels and mask_windows, or polygon_points",
        ),
        ({"classes": np.zeros((2, 3, 1), int)}, r"classes must have 2 axes, got shape \(2, 3, 1\)"),
        ({"boxes": np.zeros((2, 3, 5), np.float32)}, "the last axis of boxes must be 4"),
        ({"keypoints": np.zeros((2, 3, 4, 3), np.float32)}, "has 3 keypoints, the batch 4"),
    ],
)
def test_wrong_batches_are_named(changes, message):
    batch = {name: value for name, value in (objects() | changes).items() if value is not None}
    with pytest.raises(ValueError, match=message):
        ready().compute_losses(batch)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rpn_sample": 3}, "no option 'rpn_sample'; there are box_beta, "),
        ({"rpn_samples": 0}, "rpn_samples must be a positive integer, got 0"),
        (
            {"region_positive_fraction": 0.0},
            "region_positive_fraction must be above 0 and at most 1, got 0.0",
        ),
        ({"rpn_thresholds": (0.7, 0.3)}, r"rpn_thresholds must be two rising overlaps, got \[0.7, 0.3\]"),
        ({"box_beta": -1.0}, "box_beta must be at least 0, got -1.0"),
        ({"rpn_normalizer": "all"}, "rpn_normalizer must be 'wanted' or 'sampled', got 'all'"),
        ({"loss_weights": {"mask": 1.0}}, "loss_weights has 'mask'; the losses are loss_rpn_class, "),
        ({"loss_weights": {"loss_mask": -1.0}}, "the weight of loss_mask must be at least 0, got -1.0"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        rcnn_training.training_options(
            {"convention": "detectron2", "structure": "fpn", "keypoints": 0}, **options
        )
