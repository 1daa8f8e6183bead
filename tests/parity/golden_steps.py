"""What compares one training step with Detectron2's: what is sampled from, the losses, and the gradient of every variable.

Samples are given, since random numbers differ; `first` says which ones Detectron2 was made to take. Tolerances: losses
2e-5 (5e-7 was seen between machines, and float32 sums have another order here); norms of gradients 2e-3 (7e-4 seen),
and single values that part of the variable's largest.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf
from golden_models import network_input, rule

from keras_seg.models.rcnn_training import AnchorSamples, RegionSamples, prepare
from keras_seg.ops.matching import match_boxes
from keras_seg.weights import detectron2, layouts
from keras_seg.weights.assign import variables

NAMES = {
    "loss_rpn_cls": "loss_rpn_class", "loss_rpn_loc": "loss_rpn_box", "loss_cls": "loss_class",
    "loss_box_reg": "loss_box", "loss_mask": "loss_mask", "loss_keypoint": "loss_keypoint", "total": "loss",
}  # fmt: skip


def compare_step(shared, config, model) -> None:
    """model: of this configuration, its first two stages frozen."""
    golden = dict(np.load(shared / f"golden/ops/train_step_{config}.npz"))
    batch = batch_of(shared, golden, model)
    anchors, regions = samples_of(golden, model)
    prepared = prepare(model, batch)
    sides = batch["image"].shape[1:3]
    compare_samples(model, prepared, golden, anchors, sides)

    @tf.function(autograph=False)
    def step():
        with tf.GradientTape() as tape:
            losses = model.compute_losses(batch, anchors=anchors, regions=regions)
        return losses, tape.gradient(losses["loss"], model.trainable_variables)

    losses, gradients = step()
    expected = {key.removeprefix("loss."): golden[key] for key in golden if key.startswith("loss.")}
    assert losses.keys() == {NAMES[name] for name in expected}
    for name, value in expected.items():
        np.testing.assert_allclose(losses[NAMES[name]], value, rtol=2e-5, err_msg=name)
    compare_gradients(shared, config, model, gradients, golden)


def batch_of(shared, golden, model) -> dict[str, tf.Tensor]:
    """The golden step's two images, their objects padded to the same number."""
    names, sizes = zip(
        *((str(golden[f"image{k}.name"]), golden[f"image{k}.input_size"].tolist()) for k in (0, 1)),
        strict=True,
    )
    batch = network_input(shared, names, sizes, model)
    assert list(batch["image"].shape[1:3]) == golden["batch_input_shape"][2:].tolist()
    entries = {"boxes": ("gt_boxes", 0), "classes": ("gt_classes", -1)}
    if model.masks:
        points = [golden[f"image{k}.polygon_values"].reshape(-1, 2) for k in (0, 1)]
        lengths = [np.diff(golden[f"image{k}.polygon_splits"]) // 2 for k in (0, 1)]
        batch["polygon_points"] = padded(points, 0)
        batch["polygon_lengths"] = padded(lengths, 0)
        batch["polygon_objects"] = padded([golden[f"image{k}.polygon_instance"] for k in (0, 1)], -1)
    else:
        entries["keypoints"] = ("gt_keypoints", 0)
    for entry, (key, empty) in entries.items():
        batch[entry] = padded([golden[f"image{k}.{key}"] for k in (0, 1)], empty)
    return batch


def padded(arrays: list[np.ndarray], empty: int) -> tf.Tensor:
    most = max(map(len, arrays))
    rows = [np.pad(a, [(0, most - len(a)), *[(0, 0)] * (a.ndim - 1)], constant_values=empty) for a in arrays]
    return tf.constant(np.stack(rows))


def samples_of(golden, model) -> tuple[AnchorSamples, RegionSamples]:
    """What Detectron2 sampled."""

    def of_both(key: str) -> np.ndarray:
        return np.stack([golden[f"image{k}.{key}"] for k in (0, 1)])

    indices, labels, boxes = np.zeros((2, 256), np.int32), np.zeros((2, 256), np.int32), np.zeros((2, 256, 4))
    for k in (0, 1):
        positive, negative = (golden[f"image{k}.rpn.{kind}_anchors"] for kind in ("positive", "negative"))
        indices[k] = np.concatenate([positive, negative])
        labels[k, : len(positive)] = 1
        boxes[k, : len(positive)] = golden[f"image{k}.rpn.positive_gt_boxes"]
    anchors = AnchorSamples(tf.constant(indices), tf.constant(labels), tf.constant(boxes.astype(np.float32)))
    regions = RegionSamples(
        tf.constant(of_both("roi.boxes")),
        tf.constant(of_both("roi.gt_classes").astype(np.int32)),
        tf.constant(of_both("roi.gt_index").astype(np.int32)),
    )
    return anchors, regions


def compare_samples(model, batch, golden, anchors, sides) -> None:
    """Detectron2's samples are the first of those that ours are drawn from."""
    options, layer = model.training_options, model.get_layer("proposals")
    maps = [tf.zeros([2, -(-sides[0] // s), -(-sides[1] // s), 1]) for s in layer.strides]
    grid = tf.concat(layer.anchors(maps), 0)
    assert len(grid) == golden["image0.rpn.num_anchors"]
    _, labels = match_boxes(
        batch["boxes"], batch["valid"], grid, options.rpn_thresholds, (0, -1, 1), allow_low_quality=True
    )
    for k in (0, 1):
        for kind, label in (("positive", 1), ("negative", 0)):
            wanted = golden[f"image{k}.rpn.{kind}_anchors"]
            np.testing.assert_array_equal(np.flatnonzero(labels[k] == label)[: len(wanted)], wanted)
        boxes = golden[f"image{k}.proposals.boxes"]
        assert len(boxes) == options.proposals
        truth = golden[f"image{k}.gt_boxes"]
        candidates = tf.constant(np.concatenate([boxes, truth]))
        matches, labels_ = match_boxes(
            tf.constant(truth[None]), tf.ones([1, len(truth)], tf.bool), candidates, (0.5,), (0, 1)
        )
        positive, negative = (np.flatnonzero(labels_[0] == label) for label in (1, 0))
        chosen = np.concatenate([positive[:16], negative])[:64]
        np.testing.assert_array_equal(candidates.numpy()[chosen], golden[f"image{k}.roi.boxes"])
        owned = golden[f"image{k}.roi.gt_classes"] < model.classes
        np.testing.assert_array_equal(
            matches.numpy()[0][chosen][owned], golden[f"image{k}.roi.gt_index"][owned]
        )


def compare_gradients(shared, config, model, gradients, golden) -> None:
    found = {id(v): g for v, g in zip(model.trainable_variables, gradients, strict=True)}
    own = variables(model.parts)
    found = {name: found[id(v)].numpy() for name, v in own.items() if id(v) in found}
    names = golden["grad.names"].tolist()
    assert found.keys() == {detectron2.rename(name) for name in names}
    module = rule(shared)
    shapes, _ = module.load_params(shared / "golden/detectron2" / config / "params.json")
    for place, name in enumerate(names):
        gradient = found[detectron2.rename(name)]
        if name.endswith("score_lowres.bias"):  # 0, but for rounding: it shifts all places of a heatmap alike
            assert np.linalg.norm(gradient) < 1e-4 * max(golden["grad.norms"])
            continue
        norm, largest = golden["grad.norms"][place], golden["grad.max_abs"][place]
        np.testing.assert_allclose(np.linalg.norm(gradient), norm, rtol=2e-3, err_msg=name)
        np.testing.assert_allclose(np.abs(gradient).max(), largest, rtol=5e-3, err_msg=name)
        shape = tuple(shapes[name])
        size = int(np.prod(shape))
        # where each of Detectron2's values lies in Keras's layout
        order = np.arange(size).reshape(shape)
        if name.endswith("box_head.fc1.weight"):
            order = layouts.dense_on_map(order, detectron2.BOX_SIDE)
        elif name.endswith(".weight"):
            order = layouts.kernel(order)
        flat = np.empty(size, np.float32)
        flat[order.ravel()] = gradient.ravel()
        samples = flat[:: max(1, size // 8)][:8]
        np.testing.assert_allclose(
            samples, golden["grad.samples"][place][: len(samples)], atol=5e-3 * largest, err_msg=name
        )
