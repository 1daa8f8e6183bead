"""keras.applications' ResNets: the same features from the same weights, through the files that Keras writes."""

from __future__ import annotations

import hashlib

import h5py
import keras
import numpy as np
import pytest

from keras_seg.backbones import res5_head, resnet
from keras_seg.weights import keras_applications
from keras_seg.weights.assign import assign

STAGES = ("res2", "res3", "res4", "res5")
# by both names that Keras has given its layers
STEM = {
    "conv1_conv": {"kernel": (7, 7, 3, 64), "bias": (64,)},
    "conv1_bn": {name: (64,) for name in ("gamma", "beta", "moving_mean", "moving_variance")},
}


def randomize(model):
    """Values with which features neither vanish nor explode, and to which every variable matters."""
    random = np.random.default_rng(0)
    for variable in model.weights:
        if variable.name in ("gamma", "moving_variance"):
            variable.assign(random.uniform(0.5, 1.5, variable.shape))
        elif variable.name == "kernel":
            variable.assign(
                random.normal(0, np.sqrt(1 / np.prod(variable.shape[:-1])), variable.shape),
            )
        else:
            variable.assign(random.normal(0, 0.2, variable.shape))
    return model


@pytest.fixture(scope="module")
def theirs():
    return randomize(keras.applications.ResNet50(weights=None, include_top=False, input_shape=(64, 64, 3)))


@pytest.fixture(scope="module")
def saved(theirs, tmp_path_factory):
    path = tmp_path_factory.mktemp("keras") / "resnet50.h5"
    theirs.save(path)
    return path


@pytest.fixture
def image():
    """RGB, 0-255."""
    return np.random.default_rng(1).uniform(0, 255, (1, 64, 64, 3)).astype(np.float32)


def write(path, layers):
    """The layout of the published files: weights alone, at the root."""
    with h5py.File(path, "w") as file:
        names = [name.encode() for name in layers]
        # long lists of names are split
        file.attrs["layer_names0"], file.attrs["layer_names1"] = names[:1], names[1:]
        for name, variables in layers.items():
            group = file.create_group(name)
            group.attrs["weight_names"] = [f"{name}/{variable}:0".encode() for variable in variables]
            for variable, array in variables.items():
                group.create_dataset(f"{name}/{variable}:0", data=array)
    return path


def layers_of(model):
    return {
        layer.name: {variable.name: np.asarray(variable) for variable in layer.weights}
        for layer in model.layers
        if layer.weights
    }


def test_the_same_features(theirs, saved, image):
    features = keras.Model(
        theirs.inputs, [theirs.get_layer(f"conv{k}_block{n}_out").output for k, n in zip((2, 3, 4, 5), (3, 4, 6, 3))]
    )  # fmt: skip
    expected = features.predict_on_batch(keras.applications.resnet.preprocess_input(image.copy()))
    ours = resnet("resnet50")
    assign({"backbone": ours}, keras_applications.read("resnet50", saved), saved)
    maps = ours.predict_on_batch(image - np.array(keras_applications.PIXEL_MEAN, np.float32))
    for stage, mine, their in zip(STAGES, maps, expected, strict=True):
        assert np.abs(mine - their).max() < 1e-4 * their.std(), stage
        assert their.std() > 0.1


def test_c4_has_its_last_stage_apart(saved):
    arrays = keras_applications.read("resnet50", saved, res5_as_head=True)
    assign({"backbone": resnet("resnet50", outputs=["res4"]), "res5": res5_head("resnet50")}, arrays, saved)
    whole = keras_applications.read("resnet50", saved)
    np.testing.assert_array_equal(arrays["res5/res5_2_conv3/kernel"], whole["backbone/res5_2_conv3/kernel"])


def test_published_layout_old_names_and_another_epsilon(theirs, saved, tmp_path):
    def old(name):
        if not name.startswith("conv1"):
            stage, block, place, kind = name[4], int(name.split("block")[1][0]), *name.split("_")[2:]
            branch = "1" if place == "0" else f"2{'abc'[int(place) - 1]}"
            return f"{'bn' if kind == 'bn' else 'res'}{stage}{'abcdef'[block - 1]}_branch{branch}"
        return {"conv1_conv": "conv1", "conv1_bn": "bn_conv1"}[name]

    expected = keras_applications.read("resnet50", saved)
    layers = layers_of(theirs)
    path = write(tmp_path / "notop.h5", {old(name): variables for name, variables in layers.items()})
    arrays = keras_applications.read("resnet50", path)
    assert arrays.keys() == expected.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, expected[name])
    other = keras_applications.read("resnet50", path, norm_eps=1e-3)
    name = "backbone/res3_1_conv2_norm/moving_variance"
    np.testing.assert_allclose(
        other[name] + 1e-3, layers["conv3_block2_2_bn"]["moving_variance"] + 1.001e-5, 1e-6
    )


def test_imagenet_weights_are_verified(saved, monkeypatch):
    """Keras publishes an MD5."""
    asked = []
    monkeypatch.setattr(keras_applications, "fetch", lambda url: asked.append(url) or saved)
    with pytest.raises(ValueError, match="resnet50.h5: damaged or exchanged: its md5 is .* delete it"):
        keras_applications.read("resnet50")
    assert asked == [keras_applications.URL.format("resnet50")] and asked[0].endswith("kernels_notop.h5")
    digest = hashlib.md5(saved.read_bytes()).hexdigest()
    monkeypatch.setitem(keras_applications.MD5, "resnet50", digest)
    assert keras_applications.read("resnet50").keys() == keras_applications.read("resnet50", saved).keys()


def test_bad_files(saved, tmp_path):
    with pytest.raises(
        ValueError, match="no 'resnet18' backbone for keras_seg: resnet50, resnet101, resnet152"
    ):
        keras_applications.read("resnet18", saved)
    with pytest.raises(ValueError, match="no weights of resnet101: it lacks res4_10_conv1"):
        keras_applications.read("resnet101", saved)
    with pytest.raises(FileNotFoundError, match="absent.h5: no such weights file"):
        keras_applications.read("resnet50", tmp_path / "absent.h5")
    cut = tmp_path / "cut.h5"
    cut.write_bytes(saved.read_bytes()[:100_000])
    with pytest.raises(ValueError, match="cut.h5: truncated, damaged, or no HDF5 file"):
        keras_applications.read("resnet50", cut)
    foreign = tmp_path / "foreign.h5"
    with h5py.File(foreign, "w") as file:
        file.create_dataset("images", data=np.zeros(3))
    with pytest.raises(
        ValueError, match="foreign.h5: an HDF5 file, but without the layer names of Keras 2's"
    ):
        keras_applications.read("resnet50", foreign)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"conv1_bn": None}, "lacks the batch normalisation after conv1_conv"),
        ({"conv1_conv": {"kernel": (7, 7, 3, 64)}}, "lacks conv1_conv/bias"),
        (
            {"conv1_conv": {"kernel": (7, 7, 3, 64), "bias": (9,)}},
            r"conv1_conv/bias is \[9\], and conv1_conv/kernel \[",
        ),
        (
            {"conv1_bn": {**STEM["conv1_bn"], "gamma": (32,)}},
            r"conv1_bn/gamma is \[32\], and conv1_conv has 64 channels",
        ),
        ({}, "no weights of resnet50: it lacks res2_0_conv1, "),
    ],
)
def test_layers_that_do_not_fit(tmp_path, change, message):
    layers = {
        name: {variable: np.zeros(shape, np.float32) for variable, shape in variables.items()}
        for name, variables in {**STEM, **change}.items()
        if variables
    }
    with pytest.raises(ValueError, match=f"stem.h5: {message}"):
        keras_applications.read("resnet50", write(tmp_path / "stem.h5", layers))
