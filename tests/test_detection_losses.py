"""The detection losses, on Detectron2's and torchvision's values and gradients, and where there is nothing to learn."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from keras_seg.losses import box_losses, keypoint_loss, mask_loss, rpn_losses
from keras_seg.ops.boxes import encode
from keras_seg.ops.keypoints import keypoint_targets

# float32 sums of a few hundred terms in another order; seen: 2e-7 of the value, gradients 1e-7
VALUE, GRADIENT = {"rtol": 2e-6}, {"rtol": 1e-5, "atol": 2e-7}
BOX_WEIGHTS = (10, 10, 5, 5)


@pytest.fixture(scope="module")
def golden(shared):
    return np.load(shared / "golden/ops/losses.npz")


@pytest.fixture(scope="module")
def torchvision(shared):
    return np.load(shared / "golden/ops/torchvision_conventions.npz")


def value_and_gradients(function, *inputs):
    """Losses (a scalar or several) as NumPy, and the gradient of their sum, in graph mode with unknown sizes."""
    inputs = [tf.constant(x) for x in inputs]

    @tf.function(input_signature=[tf.TensorSpec([None, *x.shape[1:]], x.dtype) for x in inputs])
    def run(*inputs):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            losses = function(*inputs)
            total = tf.add_n(tf.nest.flatten(losses))
        return losses, tape.gradient(total, inputs)

    losses, gradients = run(*inputs)
    return tf.nest.map_structure(lambda x: x.numpy(), losses), [g.numpy() for g in gradients]


def rpn_inputs(golden):
    """Levels joined: logits [2, A], deltas [2, A, 4], labels, targets (not finite where nothing is matched)."""
    anchors = np.concatenate([golden[f"rpn.level{k}.anchors"] for k in (0, 1)])
    logits, deltas = (
        np.concatenate([golden[f"rpn.level{k}.{name}"] for k in (0, 1)], 1)
        for name in ("objectness_logits", "anchor_deltas")
    )
    targets = encode(tf.constant(anchors), tf.constant(golden["rpn.matched_gt_boxes"]))
    targets = tf.where(golden["rpn.labels"][..., None] == 1, targets, np.nan)
    return logits, deltas, golden["rpn.labels"], targets


@pytest.mark.parametrize("case, beta", [("rpn", 0.0), ("rpn_beta_1_9", 1 / 9)])
def test_proposal_losses_are_detectron2s(golden, case, beta):
    logits, deltas, labels, targets = rpn_inputs(golden)
    (objectness, box), gradients = value_and_gradients(
        lambda logits, deltas: rpn_losses(
            logits, deltas, labels, targets, 2.0 * golden["rpn.batch_size_per_image"], beta
        ),
        logits,
        deltas,
    )
    np.testing.assert_allclose(objectness, golden[f"{case}.loss_rpn_cls"], **VALUE)
    np.testing.assert_allclose(box, golden[f"{case}.loss_rpn_loc"], **VALUE)
    for gradient, name in zip(gradients, ("objectness_logits", "anchor_deltas"), strict=True):
        expected = np.concatenate([golden[f"{case}.level{k}.grad_{name}"] for k in (0, 1)], 1)
        np.testing.assert_allclose(gradient, expected, **GRADIENT)


def test_proposal_losses_are_torchvisions(golden, torchvision):
    logits, deltas, labels, targets = rpn_inputs(golden)
    (objectness, box), gradients = value_and_gradients(
        lambda logits, deltas: rpn_losses(logits, deltas, labels, targets, (labels >= 0).sum(), 1 / 9),
        logits,
        deltas,
    )
    np.testing.assert_allclose(objectness, torchvision["rpn.loss_objectness"], **VALUE)
    np.testing.assert_allclose(box, torchvision["rpn.loss_rpn_box_reg"], **VALUE)
    np.testing.assert_allclose(gradients[0].reshape(-1, 1), torchvision["rpn.grad_objectness"], **GRADIENT)
    np.testing.assert_allclose(gradients[1].reshape(-1, 4), torchvision["rpn.grad_deltas"], **GRADIENT)


@pytest.mark.parametrize("case, beta", [("box", 0.0), ("box_beta_1", 1.0)])
def test_box_losses_are_detectron2s(golden, case, beta):
    classes = golden["box.gt_classes"]
    targets = encode(
        tf.constant(golden["box.proposal_boxes"]), tf.constant(golden["box.gt_boxes"]), BOX_WEIGHTS
    )
    targets = tf.where(classes[:, None] < 5, targets, np.nan)
    (class_loss, box), (logits_gradient, deltas_gradient) = value_and_gradients(
        lambda logits, deltas: box_losses(logits, deltas, classes, targets, beta=beta),
        golden["box.cls_logits"],
        golden["box.deltas"],
    )
    np.testing.assert_allclose(class_loss, golden[f"{case}.loss_cls"], **VALUE)
    np.testing.assert_allclose(box, golden[f"{case}.loss_box_reg"], **VALUE)
    np.testing.assert_allclose(logits_gradient, golden[f"{case}.grad_cls_logits"], **GRADIENT)
    np.testing.assert_allclose(deltas_gradient, golden[f"{case}.grad_deltas"], **GRADIENT)


def test_box_losses_are_torchvisions(torchvision):
    # torchvision's background is class 0, ours the last; its background has deltas too, which nothing looks at
    classes = torchvision["box.gt_classes"]
    classes = np.where(classes == 0, 5, classes - 1)
    targets = encode(
        tf.constant(torchvision["box.proposal_boxes"]), tf.constant(torchvision["box.gt_boxes"]), BOX_WEIGHTS
    )
    np.testing.assert_allclose(targets, torchvision["box.regression_targets"], rtol=1e-5, atol=1e-5)
    (class_loss, box), (logits_gradient, deltas_gradient) = value_and_gradients(
        lambda logits, deltas: box_losses(
            logits, deltas, classes, torchvision["box.regression_targets"], beta=1 / 9
        ),
        np.roll(torchvision["box.cls_logits"], -1, 1),
        torchvision["box.deltas"][:, 4:],
    )
    np.testing.assert_allclose(class_loss, torchvision["box.loss_classifier"], **VALUE)
    np.testing.assert_allclose(box, torchvision["box.loss_box_reg"], **VALUE)
    np.testing.assert_allclose(
        logits_gradient, np.roll(torchvision["box.grad_cls_logits"], -1, 1), **GRADIENT
    )
    np.testing.assert_allclose(deltas_gradient, torchvision["box.grad_deltas"][:, 4:], **GRADIENT)


def test_one_box_for_all_classes(golden):
    deltas = golden["box.deltas"][:, :4]
    targets = np.zeros((40, 4), np.float32)
    _, shared_box = box_losses(golden["box.cls_logits"], deltas, golden["box.gt_classes"], targets)
    _, each = box_losses(golden["box.cls_logits"], np.tile(deltas, 5), golden["box.gt_classes"], targets)
    foreground = golden["box.gt_classes"] < 5
    np.testing.assert_allclose(shared_box, np.abs(deltas[foreground]).sum() / 40, rtol=1e-5)
    np.testing.assert_allclose(shared_box, each, rtol=1e-6)


def test_mask_loss_is_detectron2s(golden):
    logits = golden["mask.logits"].transpose(0, 2, 3, 1)
    loss, (gradient,) = value_and_gradients(
        lambda logits: mask_loss(logits, golden["mask.targets"], golden["mask.gt_classes"]), logits
    )
    np.testing.assert_allclose(loss, golden["mask.loss"], **VALUE)
    np.testing.assert_allclose(gradient.transpose(0, 3, 1, 2), golden["mask.grad_logits"], **GRADIENT)


def test_one_mask_for_all_classes(golden):
    logits, targets = golden["mask.logits"].transpose(0, 2, 3, 1), golden["mask.targets"]
    first = mask_loss(logits, targets, np.zeros(6, np.int32))
    np.testing.assert_allclose(mask_loss(logits[..., :1], targets, golden["mask.gt_classes"]), first)


def test_softmax_masks_by_hand():
    # one region of one row of two pixels, two classes and the background; the left pixel is of class 1
    logits = np.array([[[[0.1, 0.7, -0.2], [1.0, 2.0, 0.5]]]], np.float32)
    p = np.exp(logits[0, 0]) / np.exp(logits[0, 0]).sum(-1, keepdims=True)
    found = mask_loss(logits, np.array([[[True, False]]]), np.array([1]), activation="softmax")
    np.testing.assert_allclose(found, -(np.log(p[0, 1]) + np.log(p[1, 2])) / 2, rtol=1e-6)


@pytest.mark.parametrize("case, normalizer", [("visible", None), ("fixed_7.5", 7.5)])
def test_keypoint_loss_is_detectron2s(golden, case, normalizer):
    boxes, keypoints = tf.constant(golden["keypoint.boxes"]), tf.constant(golden["keypoint.keypoints"])
    indices, valid = keypoint_targets(keypoints, boxes, 56)
    loss, (gradient,) = value_and_gradients(
        lambda logits: keypoint_loss(logits, indices, valid, normalizer),
        golden["keypoint.logits"].transpose(0, 2, 3, 1),
    )
    np.testing.assert_allclose(loss, golden[f"keypoint.{case}.loss"], **VALUE)
    np.testing.assert_allclose(
        gradient.transpose(0, 3, 1, 2), golden[f"keypoint.{case}.grad_logits"], **GRADIENT
    )


def losses_of(rows, classes, **inputs):
    """All losses of `rows` regions, two classes, from random inputs that are cut to size."""
    random = np.random.default_rng(0)

    def draw(*shape):
        return tf.constant(random.normal(size=(6, *shape))[:rows], tf.float32)

    class_logits, deltas, targets = draw(3), draw(8), draw(4)
    masks, truth = draw(4, 4, 2), draw(4, 4) > 0
    heatmaps, places = draw(4, 4, 5), tf.zeros([rows, 5], tf.int32)
    classes = tf.constant(classes, tf.int32)
    labels = tf.where(classes < 0, -1, tf.cast(classes < 2, tf.int32))
    visible = tf.tile(classes[:, None] >= 0, [1, 5])
    return [
        *rpn_losses(class_logits[:, 0], targets, labels, targets * 0, inputs.get("normalizer", 0)),
        *box_losses(class_logits, deltas, classes, targets),
        mask_loss(masks, truth, classes),
        keypoint_loss(heatmaps, places, visible),
    ]


@pytest.mark.parametrize("rows", [0, 4])
def test_nothing_to_learn_from_costs_nothing(rows):
    np.testing.assert_array_equal(losses_of(rows, [-1] * rows), np.zeros(6))


def test_rows_that_do_not_count_change_nothing():
    padded = losses_of(6, [0, 1, 0, 1, -1, -1], normalizer=4)
    np.testing.assert_allclose(padded, losses_of(4, [0, 1, 0, 1], normalizer=4), rtol=1e-6)
    assert all(loss > 0 for loss in padded)


def test_half_precision_is_computed_in_full(golden):
    logits = tf.cast(golden["mask.logits"].transpose(0, 2, 3, 1), tf.float16)
    loss = mask_loss(logits, golden["mask.targets"], golden["mask.gt_classes"])
    assert loss.dtype == tf.float32
    np.testing.assert_allclose(loss, golden["mask.loss"], rtol=1e-3)


def test_unknown_activation():
    with pytest.raises(ValueError, match="mask_loss: activation must be 'sigmoid' or 'softmax', got 'relu'"):
        mask_loss(tf.zeros([1, 2, 2, 1]), tf.zeros([1, 2, 2]), tf.zeros([1], tf.int32), activation="relu")


def test_under_xla():
    eager = losses_of(5, [0, 1, 2, 1, -1], normalizer=4)
    compiled = tf.function(lambda: losses_of(5, [0, 1, 2, 1, -1], normalizer=4), jit_compile=True)()
    np.testing.assert_allclose(compiled, eager, rtol=1e-5)
