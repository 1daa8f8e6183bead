"""Model Garden's checkpoints: a small network with its objects, built here, computes what keras_seg's does with its
weights."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import tensorflow as tf

from keras_seg.heads import box_head, box_predictor
from keras_seg.models import mask_rcnn
from keras_seg.ops.anchors import grid_anchors
from keras_seg.weights import garden
from keras_seg.weights.assign import assign

BLOCKS = (3, 4, 6, 3)  # ResNet-50
WIDTH, CHANNELS, FEATURES, CLASSES = 2, 6, 7, 3
ARGUMENTS = {
    **garden.ARGUMENTS,
    "backbone": "resnet50",
    "classes": CLASSES,
    "width": WIDTH,
    "fpn_channels": CHANNELS,
    "box_head_channels": FEATURES,
    "mask_channels": 4,
}


class Linear(tf.Module):
    """A convolution or a dense layer: its variables under Keras's names."""

    def __init__(self, *shape, bias=True, name=None):
        super().__init__(name=name)
        random = np.random.default_rng(sum(shape) + len(name or ""))
        outputs = shape[-2] if name == "transposed" else shape[-1]
        scale = np.sqrt(2 / np.prod(shape[:-1]))
        self.kernel = tf.Variable(
            random.normal(0, scale, shape), dtype=tf.float32, name=f"{self.name}/kernel"
        )
        if bias:
            self.bias = tf.Variable(
                random.normal(0, 0.2, outputs), dtype=tf.float32, name=f"{self.name}/bias"
            )

    def __call__(self, x, stride=1):
        if self.kernel.shape.rank == 2:
            x = x @ self.kernel
        else:
            x = tf.nn.conv2d(x, self.kernel, stride, "SAME")
        return x + self.bias if hasattr(self, "bias") else x


class Norm(tf.Module):
    def __init__(self, channels, seed, name=None):
        super().__init__(name=name)
        random = np.random.default_rng(seed)
        for variable in ("gamma", "beta", "moving_mean", "moving_variance"):
            low, high = (0.5, 1.5) if variable in ("gamma", "moving_variance") else (-0.3, 0.3)
            values = random.uniform(low, high, channels)
            setattr(self, variable, tf.Variable(values, dtype=tf.float32, name=f"{self.name}/{variable}"))

    def __call__(self, x):
        return (x - self.moving_mean) * self.gamma * tf.math.rsqrt(self.moving_variance + 1e-4) + self.beta


class Block(tf.Module):
    """official/vision/modeling/layers/nn_blocks.py's BottleneckBlock."""

    def __init__(self, inputs, width, projection):
        super().__init__()
        self._conv1, self._norm1 = Linear(1, 1, inputs, width, bias=False), Norm(width, inputs)
        self._conv2, self._norm2 = Linear(3, 3, width, width, bias=False), Norm(width, inputs + 1)
        self._conv3, self._norm3 = Linear(1, 1, width, 4 * width, bias=False), Norm(4 * width, inputs + 2)
        if projection:
            self._shortcut, self._norm0 = Linear(1, 1, inputs, 4 * width, bias=False), Norm(4 * width, 9)

    def __call__(self, x, stride):
        y = tf.nn.relu(self._norm1(self._conv1(x)))
        y = tf.nn.relu(self._norm2(self._conv2(y, stride)))
        y = self._norm3(self._conv3(y))
        return tf.nn.relu(y + (self._norm0(self._shortcut(x, stride)) if hasattr(self, "_shortcut") else x))


class Numbered(tf.Module):
    """Layers as a functional model of Keras files them: layer_with_weights-0, -1, …"""

    def __init__(self, children):
        super().__init__()
        self.children = children
        for index, child in enumerate(children):
            setattr(self, f"layer_with_weights-{index}", child)


class Backbone(Numbered):
    def __init__(self):
        blocks = [
            Block(4 * width if block else max(WIDTH, 2 * width) if stage else WIDTH, width, block == 0)
            for stage, count in enumerate(BLOCKS)
            for block, width in enumerate([WIDTH * 2**stage] * count)
        ]
        super().__init__([Linear(7, 7, 3, WIDTH, bias=False), Norm(WIDTH, 0), *blocks])

    def __call__(self, image):
        stem, norm, *blocks = self.children
        x = tf.nn.max_pool2d(tf.nn.relu(norm(stem(image, 2))), 3, 2, "SAME")
        maps = []
        for index, block in enumerate(blocks):
            starts = hasattr(block, "_shortcut")
            if starts and index:
                maps.append(x)
            x = block(x, 2 if starts and index else 1)
        return [*maps, x]


class Pyramid(Numbered):
    """official/vision/modeling/decoders/fpn.py; the children's order is Keras's, and no help."""

    def __init__(self):
        lateral = [
            Linear(1, 1, 4 * WIDTH * 2 ** (k - 2), CHANNELS, name=f"lateral_{k}") for k in (5, 4, 3, 2)
        ]
        after = [Linear(3, 3, CHANNELS, CHANNELS, name=f"post_hoc_{k}") for k in (5, 2, 3, 4)]
        norms = [Norm(CHANNELS, k, name=f"norm_{k}") for k in (2, 3, 4, 5, 6)]
        super().__init__([*lateral, *after, Linear(3, 3, CHANNELS, CHANNELS, name="coarser_6"), *norms])
        for index, linear in enumerate(after):  # unlike one another
            linear.kernel.assign(linear.kernel * (1 + index))

    def __call__(self, maps):
        named = {child.name: child for child in self.children}
        outputs, above = {}, None
        for level in (5, 4, 3, 2):
            x = named[f"lateral_{level}"](maps[level - 2])
            above = x if above is None else x + tf.repeat(tf.repeat(above, 2, 1), 2, 2)
            outputs[level] = named[f"post_hoc_{level}"](above)
        outputs[6] = named["coarser_6"](outputs[5], 2)
        return [named[f"norm_{level}"](outputs[level]) for level in (2, 3, 4, 5, 6)]


class Rpn(tf.Module):
    """official/vision/modeling/heads/dense_prediction_heads.py's RPNHead."""

    def __init__(self):
        super().__init__()
        self._convs = [Linear(3, 3, CHANNELS, CHANNELS)]
        self._norms = [[Norm(CHANNELS, 10 + level)] for level in range(5)]
        self._classifier, self._box_regressor = Linear(1, 1, CHANNELS, 3), Linear(1, 1, CHANNELS, 12)

    def __call__(self, maps):
        hidden = [tf.nn.relu(norm(self._convs[0](x))) for x, (norm,) in zip(maps, self._norms, strict=True)]
        return [self._classifier(x) for x in hidden], [self._box_regressor(x) for x in hidden]


class Heads(tf.Module):
    """official/vision/modeling/heads/instance_heads.py's DetectionHead, or MaskHead."""

    def __init__(self, masks, convs=4, fcs=1, agnostic=False):
        super().__init__()
        filters, self.masks = 4 if masks else CHANNELS, masks
        sizes = [CHANNELS, *[filters] * convs]
        self._convs = [Linear(3, 3, *pair) for pair in itertools.pairwise(sizes)]
        self._conv_norms = [Norm(filters, 20 + index) for index in range(convs)]
        if masks:
            self._deconv, self._deconv_bn = Linear(2, 2, 4, 4, name="transposed"), Norm(4, 30)
            self._mask_regressor = Linear(1, 1, 4, CLASSES + 1)
            return
        self._fcs = [Linear(FEATURES if index else 49 * CHANNELS, FEATURES) for index in range(fcs)]
        self._fc_norms = [Norm(FEATURES, 40 + index) for index in range(fcs)]
        self._classifier = Linear(FEATURES, CLASSES + 1)
        self._box_regressor = Linear(FEATURES, 4 if agnostic else 4 * (CLASSES + 1))

    def __call__(self, x):
        for convolution, norm in zip(self._convs, self._conv_norms, strict=True):
            x = tf.nn.relu(norm(convolution(x)))
        if self.masks:
            shape = [len(x), 28, 28, 4]
            x = tf.nn.conv2d_transpose(x, self._deconv.kernel, shape, 2, "VALID") + self._deconv.bias
            return self._mask_regressor(tf.nn.relu(self._deconv_bn(x)))
        x = tf.reshape(x, [len(x), -1])
        for dense, norm in zip(self._fcs, self._fc_norms, strict=True):
            x = tf.nn.relu(norm(dense(x)))
        return self._classifier(x), self._box_regressor(x)


@pytest.fixture(scope="module")
def theirs():
    return {
        "backbone": Backbone(),
        "decoder": Pyramid(),
        "rpn_head": Rpn(),
        "detection_head": [Heads(masks=False)],
        "mask_head": Heads(masks=True),
    }


def save(path, objects):
    """As its trainer does: the parts, and steps and an optimizer beside."""
    optimizer = tf.Module()
    optimizer.momentum = tf.Variable(0.9)
    checkpoint = tf.train.Checkpoint(**objects, optimizer=optimizer, global_step=tf.Variable(3))
    return checkpoint.save(str(path / "ckpt"))


@pytest.fixture(scope="module")
def ours(theirs, tmp_path_factory):
    prefix = save(tmp_path_factory.mktemp("garden"), theirs)
    model = mask_rcnn(**ARGUMENTS)
    assign(model.parts, garden.read(prefix), prefix)
    return model


def assert_close(actual, expected):
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape and expected.std() > 1e-3
    assert np.abs(actual - expected).max() < 1e-4 * expected.std()


def test_backbone_pyramid_and_proposals(theirs, ours):
    image = np.random.default_rng(1).normal(size=(1, 128, 192, 3)).astype(np.float32)
    expected = theirs["backbone"](image)
    maps = ours.parts["backbone"](image)
    pyramid, expected_pyramid = ours.parts["fpn"](maps), theirs["decoder"](expected)
    for actual, map_ in zip([*maps, *pyramid], [*expected, *expected_pyramid], strict=True):
        assert_close(actual, map_)
    logits, deltas = ours.parts["rpn"](pyramid)
    expected_logits, expected_deltas = theirs["rpn_head"](expected_pyramid)
    for level in range(5):
        # theirs: ratios 0.5, 1, 2 of width to height, the tallest first; ours: of height to width, the widest first
        assert_close(logits[level], expected_logits[level][..., ::-1])
        shape = expected_deltas[level].shape
        yx = np.reshape(expected_deltas[level], (*shape[:3], 3, 4))[..., ::-1, :]
        assert_close(deltas[level], yx[..., [1, 0, 3, 2]].reshape(shape))


def test_anchors(ours):
    """Their centres are half a stride from the border; at 64 pixels: 2 by 2 of stride 32 and size 256."""
    logits = [np.zeros((1, 64 // stride, 64 // stride, 3), np.float32) for stride in (4, 8, 16, 32, 64)]
    anchors = ours.get_layer("proposals").anchors(logits)[3]
    w, h = 256 * np.sqrt(2), 256 / np.sqrt(2)
    cell = np.array([[-w, -h, w, h], [-256, -256, 256, 256], [-h, -w, h, w]], np.float32) / 2
    np.testing.assert_allclose(anchors, grid_anchors(cell, 2, 2, 32) + 16, atol=1e-4)
    np.testing.assert_allclose(anchors[1], [16 - 128, 16 - 128, 16 + 128, 16 + 128])


def test_boxes_and_masks(theirs, ours):
    random = np.random.default_rng(3)
    region = random.normal(size=(4, 7, 7, CHANNELS)).astype(np.float32)
    logits, deltas = theirs["detection_head"][0](region)
    our_logits, our_deltas = ours.parts["box_predictor"](ours.parts["box_head"](region))
    assert_close(our_logits, np.asarray(logits)[:, [1, 2, 3, 0]])
    assert_close(our_deltas, np.reshape(deltas, (4, -1, 4))[:, 1:, [1, 0, 3, 2]].reshape(4, -1))
    region = random.normal(size=(2, 14, 14, CHANNELS)).astype(np.float32)
    assert_close(ours.parts["mask_head"](region), theirs["mask_head"](region)[..., 1:])


def test_saved_as_a_model_or_found_by_its_folder(theirs, ours, tmp_path, caplog):
    model = tf.Module()
    for name, part in theirs.items():
        setattr(model, name, part)
    prefix = tf.train.Checkpoint(model=model).save(str(tmp_path / "ckpt"))
    for path in (prefix, f"{prefix}.index", tmp_path):
        arrays = garden.read(path)
        np.testing.assert_array_equal(arrays["rpn/conv_p4/bias"], ours.parts["rpn"].get_layer("conv_p4").bias)
    assert "ckpt-1: what differs from Model Garden's own inference: RoIs are pooled" in caplog.text


def test_other_heads(theirs, tmp_path):
    """Two dense layers, one box for all classes, no masks, and the head of before there were cascades."""
    head = Heads(masks=False, convs=0, fcs=2, agnostic=True)
    parts = {**theirs, "detection_head": head}
    del parts["mask_head"]
    arrays = garden.read(save(tmp_path, parts))
    assert not any(name.startswith("mask_head") for name in arrays)
    ours = {
        "box_head": box_head(CHANNELS, channels=FEATURES),
        "box_predictor": box_predictor(FEATURES, CLASSES, class_agnostic=True),
    }
    assign(ours, {name: array for name, array in arrays.items() if name.startswith("box_")}, tmp_path)
    region = np.random.default_rng(5).normal(size=(2, 7, 7, CHANNELS)).astype(np.float32)
    logits, deltas = ours["box_predictor"](ours["box_head"](region))
    expected_logits, expected_deltas = head(region)
    assert_close(logits, np.roll(expected_logits, -1, axis=1))
    assert_close(deltas, np.asarray(expected_deltas)[:, [1, 0, 3, 2]])


def change(theirs, part, **attributes):
    """The checkpoint's objects with other ones in a part."""
    copy = tf.Module()
    for name, value in {**vars(theirs[part]), **attributes}.items():
        if (
            not name.startswith(("_self_", "_tf_", "_name", "_scope"))
            and value is not None
            and name != "children"
        ):
            setattr(copy, name, value)
    return {**theirs, part: copy}


@pytest.mark.parametrize(
    ("part", "attributes", "message"),
    [
        ("rpn_head", {"_classifier": None}, "lacks rpn_head/_classifier/kernel, rpn_head/_classifier/bias"),
        (
            "mask_head",
            {"_squeeze": Linear(1, 1)},
            "no weights of a Model Garden Mask R-CNN known here: .* mask_head/_sq",
        ),
        (
            "rpn_head",
            {"_box_regressor": Linear(1, 1, CHANNELS, 10)},
            "rpn_head/_box_regressor has 10 outputs, .* of 4",
        ),
        (
            "mask_head",
            {"_deconv_bn": Norm(5, 0)},
            r"mask_head/_deconv_bn/gamma is \[5\], and mask_head/_deconv has 4 channels",
        ),
    ],
)
def test_checkpoints_that_do_not_fit(theirs, tmp_path, part, attributes, message):
    prefix = save(tmp_path, change(theirs, part, **attributes))
    with pytest.raises(ValueError, match=f"ckpt-1: {message}"):
        garden.read(prefix)


def test_no_checkpoint_and_half_of_one(theirs, tmp_path):
    with pytest.raises(FileNotFoundError, match="absent.index: no such TensorFlow checkpoint"):
        garden.read(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match="a folder without a TensorFlow checkpoint"):
        garden.read(tmp_path)
    prefix = tf.train.Checkpoint(weights=tf.Variable([1.0])).save(str(tmp_path / "foreign"))
    with pytest.raises(
        ValueError, match="foreign-1: a checkpoint, but no object-based one .* with backbone, decoder"
    ):
        garden.read(prefix)
    save(tmp_path, theirs)
    for file in (tmp_path / "ckpt-1.data-00000-of-00001", tmp_path / "ckpt-1.index"):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        with pytest.raises(ValueError, match="ckpt-1: truncated, damaged, or no TensorFlow checkpoint"):
            garden.read(tmp_path / "ckpt-1")
