"""Matterport's files: a small network with its layers, built here, computes what keras_seg's does with its weights."""

from __future__ import annotations

import h5py
import keras
import numpy as np
import pytest
from keras import layers

from keras_seg.models import mask_rcnn
from keras_seg.weights import matterport
from keras_seg.weights.assign import assign

BLOCKS = {2: "abc", 3: "abcd", 4: "abcdef", 5: "abc"}  # ResNet-50
WIDTH, CHANNELS, RPN, FEATURES, CLASSES = 2, 6, 5, 7, 3
ARGUMENTS = {
    **matterport.ARGUMENTS,
    "backbone": "resnet50",
    "classes": CLASSES,
    "width": WIDTH,
    "fpn_channels": CHANNELS,
    "rpn_channels": RPN,
    "box_head_channels": FEATURES,
    "mask_channels": 4,
}


def backbone():
    """Mask_RCNN/mrcnn/model.py's resnet_graph and pyramid, narrower."""

    def unit(x, stage, block, place, filters, kernel, stride=1, relu=True):
        convolution = layers.Conv2D(
            filters, kernel, stride, padding="same" if kernel > 1 else "valid", name=f"res{stage}{block}_branch{place}"
        )  # fmt: skip
        x = layers.BatchNormalization(name=f"bn{stage}{block}_branch{place}")(convolution(x))
        return layers.ReLU()(x) if relu else x

    image = keras.Input((None, None, 3))
    x = layers.Conv2D(WIDTH, 7, 2, name="conv1")(layers.ZeroPadding2D(3)(image))
    x = layers.ReLU()(layers.BatchNormalization(name="bn_conv1")(x))
    x = layers.MaxPooling2D(3, 2, padding="same")(x)
    maps = []
    for stage, blocks in BLOCKS.items():
        width = WIDTH * 2 ** (stage - 2)
        for block in blocks:
            stride = 2 if block == "a" and stage > 2 else 1
            y = unit(x, stage, block, "2a", width, 1, stride)
            y = unit(y, stage, block, "2b", width, 3)
            y = unit(y, stage, block, "2c", 4 * width, 1, relu=False)
            if block == "a":
                x = unit(x, stage, block, "1", 4 * width, 1, stride, relu=False)
            x = layers.ReLU()(layers.Add()([x, y]))
        maps.append(x)
    outputs, above = [], None
    for level in (5, 4, 3, 2):
        lateral = layers.Conv2D(CHANNELS, 1, name=f"fpn_c{level}p{level}")(maps[level - 2])
        above = lateral if above is None else layers.Add()([lateral, layers.UpSampling2D()(above)])
        outputs.insert(0, layers.Conv2D(CHANNELS, 3, padding="same", name=f"fpn_p{level}")(above))
    outputs.append(layers.MaxPooling2D(1, 2)(outputs[-1]))
    return keras.Model(image, [*maps, *outputs])


def rpn():
    """Logits (background, object) and deltas (dy, dx, log dh, log dw) of 3 anchors."""
    feature = keras.Input((None, None, CHANNELS))
    x = layers.Conv2D(RPN, 3, padding="same", activation="relu", name="rpn_conv_shared")(feature)
    outputs = [layers.Conv2D(6, 1, name="rpn_class_raw")(x), layers.Conv2D(12, 1, name="rpn_bbox_pred")(x)]
    return keras.Model(feature, outputs, name="rpn_model")


def box_head():
    region = keras.Input((7, 7, CHANNELS))
    x = layers.BatchNormalization(name="mrcnn_class_bn1")(
        layers.Conv2D(FEATURES, 7, name="mrcnn_class_conv1")(region)
    )
    x = layers.BatchNormalization(name="mrcnn_class_bn2")(
        layers.Conv2D(FEATURES, 1, name="mrcnn_class_conv2")(layers.ReLU()(x))
    )
    x = layers.Flatten()(layers.ReLU()(x))
    logits = layers.Dense(CLASSES + 1, name="mrcnn_class_logits")(x)
    return keras.Model(region, [logits, layers.Dense(4 * (CLASSES + 1), name="mrcnn_bbox_fc")(x)])


def mask_head():
    region = x = keras.Input((14, 14, CHANNELS))
    for index in range(1, 5):
        x = layers.Conv2D(4, 3, padding="same", name=f"mrcnn_mask_conv{index}")(x)
        x = layers.ReLU()(layers.BatchNormalization(name=f"mrcnn_mask_bn{index}")(x))
    x = layers.Conv2DTranspose(4, 2, 2, activation="relu", name="mrcnn_mask_deconv")(x)
    return keras.Model(region, layers.Conv2D(CLASSES + 1, 1, activation="sigmoid", name="mrcnn_mask")(x))


def randomize(model):
    random = np.random.default_rng(0)
    for variable in model.weights:
        if variable.name in ("gamma", "moving_variance"):
            variable.assign(random.uniform(0.5, 1.5, variable.shape))
        elif variable.name == "kernel":
            variable.assign(random.normal(0, np.sqrt(2 / np.prod(variable.shape[:-1])), variable.shape))
        else:
            variable.assign(random.normal(0, 0.2, variable.shape))
    return model


@pytest.fixture(scope="module")
def theirs():
    parts = {"backbone": backbone(), "rpn": rpn(), "box_head": box_head(), "mask_head": mask_head()}
    return {name: randomize(model) for name, model in parts.items()}


def content(theirs):
    """{group: {weight: array}}, as Keras 2 wrote it: the RPN is a model, and thus one group."""
    groups = {"input_image": {}}
    for name, model in theirs.items():
        for layer in model.layers:
            weights = {f"{layer.name}/{variable.name}:0": np.asarray(variable) for variable in layer.weights}
            groups.setdefault("rpn_model" if name == "rpn" else layer.name, {}).update(weights)
    return groups


def write(path, groups):
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [name.encode() for name in groups]
        file.attrs["backend"], file.attrs["keras_version"] = b"tensorflow", b"2.0.8"
        for name, weights in groups.items():
            group = file.create_group(name)
            group.attrs["weight_names"] = [weight.encode() for weight in weights]
            for weight, array in weights.items():
                group.create_dataset(weight, data=array)
    return path


@pytest.fixture(scope="module")
def ours(theirs, tmp_path_factory):
    path = write(tmp_path_factory.mktemp("matterport") / "mask_rcnn_small.h5", content(theirs))
    model = mask_rcnn(**ARGUMENTS)
    assign(model.parts, matterport.read(path), path)
    return model.parts


def assert_close(actual, expected):
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape and expected.std() > 1e-3
    assert np.abs(actual - expected).max() < 1e-4 * expected.std()


def test_backbone_and_pyramid(theirs, ours):
    image = np.random.default_rng(1).uniform(-120, 130, (1, 128, 192, 3)).astype(np.float32)
    expected = theirs["backbone"].predict_on_batch(image)
    maps = ours["backbone"].predict_on_batch(image)
    for actual, map_ in zip([*maps, *ours["fpn"].predict_on_batch(maps)], expected, strict=True):
        assert_close(actual, map_)


def test_proposals(theirs, ours):
    feature = np.random.default_rng(2).normal(size=(1, 4, 5, CHANNELS)).astype(np.float32)
    classes, deltas = theirs["rpn"].predict_on_batch(feature)
    logits, our_deltas = ours["rpn"].predict_on_batch(feature)
    # theirs: ratios 0.5, 1, 2 of width to height, the tallest first; ours: of height to width, the widest first
    probabilities = np.asarray(keras.ops.softmax(classes.reshape(1, 4, 5, 3, 2)))[..., ::-1, 1]
    assert_close(1 / (1 + np.exp(-logits)), probabilities)
    dy, dx, dh, dw = np.moveaxis(deltas.reshape(1, 4, 5, 3, 4)[..., ::-1, :], -1, 0)
    expected = np.stack([0.1 * dx, 0.1 * dy, 0.2 * dw, 0.2 * dh], -1)
    assert_close(our_deltas.reshape(1, 4, 5, 3, 4), expected)


def test_boxes(theirs, ours):
    region = np.random.default_rng(3).normal(size=(4, 7, 7, CHANNELS)).astype(np.float32)
    logits, deltas = theirs["box_head"].predict_on_batch(region)
    our_logits, our_deltas = ours["box_predictor"].predict_on_batch(ours["box_head"].predict_on_batch(region))
    assert_close(our_logits, logits[:, [1, 2, 3, 0]])
    assert_close(our_deltas, deltas.reshape(4, -1, 4)[:, 1:, [1, 0, 3, 2]].reshape(4, -1))


def test_masks(theirs, ours):
    region = np.random.default_rng(4).normal(size=(2, 14, 14, CHANNELS)).astype(np.float32)
    masks = 1 / (1 + np.exp(-ours["mask_head"].predict_on_batch(region)))
    assert_close(masks, theirs["mask_head"].predict_on_batch(region)[..., 1:])


def test_differences_are_told(theirs, tmp_path, caplog):
    matterport.read(write(tmp_path / "model.h5", content(theirs)))
    assert (
        "model.h5: what differs from Matterport's own inference: RoIs are sampled at the centres"
        in caplog.text
    )
    assert all(sentence in caplog.text for sentence in matterport.DIFFERENCES)


def test_a_second_model_of_a_session(theirs, tmp_path):
    """TensorFlow 1 then numbered the scopes, also those within the RPN; later versions keep the anchors."""
    groups = {
        name: {weight.replace("/", "_1/"): array for weight, array in weights.items()}
        for name, weights in content(theirs).items()
    }
    again = matterport.read(
        write(tmp_path / "second.h5", {**groups, "anchors": {"anchors/Variable:0": np.zeros(4)}})
    )
    expected = matterport.read(write(tmp_path / "first.h5", content(theirs)))
    assert again.keys() == expected.keys()
    for name, array in again.items():
        np.testing.assert_array_equal(array, expected[name])


@pytest.mark.parametrize(
    ("group", "weights", "message"),
    [
        ("mrcnn_class_bn1", None, "lacks mrcnn_class_bn1/gamma, mrcnn_class_bn1/beta, "),
        ("bn3b_branch2a", None, "lacks the batch normalisation after res3b_branch2a"),
        (
            "dense_9",
            {"kernel": (2, 2)},
            "no weights of a Matterport Mask R-CNN known here: it also holds dense_9",
        ),
        (
            "mrcnn_bbox_fc",
            {"kernel": (7, 15), "bias": (15,)},
            "mrcnn_bbox_fc has 15 outputs, which is no multiple of 4",
        ),
        (
            "mrcnn_mask_bn2",
            {name: (9,) for name in ("gamma", "beta", "moving_mean", "moving_variance")},
            r"mrcnn_mask_bn2/gamma is \[9\], and mrcnn_mask_conv2 has 4 channels",
        ),
        ("fpn_p3", {"kernel": (3, 3, 6, 6)}, "lacks fpn_p3/bias"),
    ],
)
def test_files_that_do_not_fit(theirs, tmp_path, group, weights, message):
    groups = content(theirs)
    groups.pop(group, None)
    if weights:
        groups[group] = {f"{group}/{name}:0": np.ones(shape, np.float32) for name, shape in weights.items()}
    with pytest.raises(ValueError, match=f"model.h5: {message}"):
        matterport.read(write(tmp_path / "model.h5", groups))


def test_missing_layers_are_named_by_the_model(theirs, ours, tmp_path):
    groups = content(theirs)
    del groups["fpn_p4"]
    path = write(tmp_path / "model.h5", groups)
    with pytest.raises(ValueError, match=r"model.h5: .*missing fpn/fpn_output4/bias \[6\]"):
        assign(ours, matterport.read(path), path)


def test_no_file_and_half_a_file(theirs, tmp_path):
    with pytest.raises(FileNotFoundError, match="absent.h5: no such weights file"):
        matterport.read(tmp_path / "absent.h5")
    path = write(tmp_path / "model.h5", content(theirs))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match="model.h5: truncated, damaged, or no HDF5 file"):
        matterport.read(path)
