"""The U-Net builder: architecture, tile arithmetic, initialisation, serialisation, parity with the reference."""

import importlib.util
import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_seg.inference import for_inference
from keras_seg.losses import weighted_crossentropy
from keras_seg.models import UNet, unet

# Largest difference allowed, as a share of the largest logit (float32 sums in another order give about 2e-5).
PARITY = 1e-4


def image(*shape, seed=0):
    return np.random.default_rng(seed).uniform(0, 255, shape).astype(np.float32)


def test_the_network_of_figure_1():
    model = unet()
    assert model.output_size(572) == 388
    assert model.compute_output_shape((1, 572, 572, 1)) == (1, 388, 388, 2)
    convolutions = [layer for layer in model.layers if "Conv2D" in type(layer).__name__]
    assert len(convolutions) == 23
    assert [model.get_layer(f"enc{k}_conv1").filters for k in (1, 2, 3, 4)] == [64, 128, 256, 512]
    assert model.get_layer("bottom_conv2").filters == 1024
    assert model.count_params() == 31_030_658


def test_crops_are_those_of_the_paper():
    model = unet(base_channels=2)
    crops = {level: model.get_layer(f"dec{level}_crop").cropping[0][0] for level in (4, 3, 2, 1)}
    assert crops == {4: 4, 3: 16, 2: 40, 1: 88}


def test_initial_weights_are_gaussian_and_not_truncated():
    keras.utils.set_random_seed(0)
    model = unet(base_channels=16)
    for name, incoming in {
        "bottom_conv2": 9 * 256,
        "enc3_conv1": 9 * 32,
        "dec3_up": 128,
        "dec1_conv1": 9 * 32,
    }.items():
        kernel = np.asarray(model.get_layer(name).kernel).ravel()
        scale = np.sqrt(2 / incoming)
        assert kernel.std() == pytest.approx(scale, rel=0.05), name
        # 4.6 % of a Gaussian lie beyond 2 sigma; a truncated one has none there
        assert np.mean(np.abs(kernel) > 2 * scale) == pytest.approx(0.0455, abs=0.01), name


@pytest.mark.parametrize("size", ["188", "572"])
def test_parity_with_the_reference_network(shared, size):
    spec = importlib.util.spec_from_file_location("golden_weights", shared / "golden/weights.py")
    golden = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(golden)
    shapes, scale = golden.load_params(shared / "golden/unet/params.json")
    model = unet()
    gradients_of = {}
    for name, value in golden.fill_all(shapes, scale).items():
        layer, leaf = name.rsplit(".", 1)
        layer = model.get_layer("logits" if layer == "head" else layer.replace(".", "_"))
        variable = layer.kernel if leaf == "weight" else layer.bias
        # both kinds of kernel: the reference's first two axes are the last two here, in reverse order
        variable.assign(value.transpose(2, 3, 1, 0) if leaf == "weight" else value)
        gradients_of[name] = variable
    expected = np.load(shared / f"golden/unet/isbi_slice0_{size}.npz")
    batch = {"image": expected["input_u8"].reshape(1, int(size), int(size), 1).astype(np.float32)}

    outputs = {"logits": model.get_layer("logits").output}
    outputs |= {
        k: model.get_layer(f"{k}_relu2").output for k in ("enc1", "enc2", "enc3", "bottom", "dec4", "dec1")
    }
    found = {
        k: v.numpy()[0].transpose(2, 0, 1)
        for k, v in keras.Model(model.input, outputs)(batch["image"]).items()
    }
    for name, value in found.items():
        c, y, x = expected.get(f"{name}.stride", (1, 4, 4) if size == "572" else (1, 1, 1))
        sample = expected[f"{name}.sample"].reshape(value[::c, ::y, ::x].shape)
        np.testing.assert_allclose(
            value[::c, ::y, ::x], sample, atol=PARITY * np.abs(value).max(), rtol=0, err_msg=name
        )

    # what `segment` runs, where convolutions are computed differently
    fast = for_inference(model)
    logits = found["logits"].astype(np.float64)
    expected_probabilities = (np.exp(logits) / np.exp(logits).sum(0)).transpose(1, 2, 0)
    np.testing.assert_allclose(fast(batch["image"])[0], expected_probabilities, atol=PARITY, rtol=0)

    side = model.output_size(int(size))
    batch["label"] = (
        np.unpackbits(expected["target_packed"])[: side**2].reshape(1, side, side).astype(np.int32)
    )
    loss = weighted_crossentropy(batch["label"], found["logits"].transpose(1, 2, 0)[None])
    assert float(loss) == pytest.approx(float(expected["loss"]), rel=1e-4)
    if size == "188":
        with tf.GradientTape() as tape:
            loss = model.compute_losses(batch)["loss"]
        variables = [gradients_of[str(name)].value for name in expected["grad.names"]]
        norms = [float(tf.norm(gradient)) for gradient in tape.gradient(loss, variables)]
        np.testing.assert_allclose(norms, expected["grad.norms"], rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("normalization", [None, "batch", "group"])
def test_any_number_of_channels_and_classes(padding, normalization):
    model = unet(3, 5, depth=2, base_channels=4, padding=padding, normalization=normalization)
    size = model.legal_sizes(60)[1]
    probabilities = model(image(2, size, size + 4, 3)).numpy()
    assert probabilities.shape == (2, model.output_size(size), model.output_size(size + 4), 5)
    np.testing.assert_allclose(probabilities.sum(-1), 1, atol=1e-5)


def test_sigmoid_classes_are_independent():
    model = unet(1, 3, depth=1, base_channels=4, padding="same", activation="sigmoid")
    probabilities = model(image(1, 8, 8, 1)).numpy()
    logits = keras.Model(model.input, model.get_layer("logits").output)(image(1, 8, 8, 1)).numpy()
    np.testing.assert_allclose(probabilities, 1 / (1 + np.exp(-logits)), atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 800), depth=st.integers(1, 4), padding=st.sampled_from(["valid", "same"]))
def test_legal_sizes_are_the_nearest_at_which_every_pooling_sees_an_even_side(size, depth, padding):
    def legal(side):
        for _ in range(depth):
            side -= 4 if padding == "valid" else 0
            if side <= 0 or side % 2:
                return False
            side //= 2
        side -= 4 if padding == "valid" else 0
        for _ in range(depth):
            side = 2 * side - (4 if padding == "valid" else 0)
        return side > 0

    model = MODELS.setdefault((depth, padding), unet(depth=depth, base_channels=1, padding=padding))
    below, above = model.legal_sizes(size)
    candidates = [side for side in range(1, 1200) if legal(side)]
    assert above == min(side for side in candidates if side >= size)
    assert below == max((side for side in candidates if side <= size), default=None)


MODELS: dict[tuple[int, str], UNet] = {}


def test_an_illegal_tile_names_the_nearest_legal_ones():
    model = unet(base_channels=1)
    with pytest.raises(ValueError, match="570 is no legal tile height; nearest legal: 556 or 572"):
        model.output_size(570)
    with pytest.raises(ValueError, match="570 is no legal tile width; nearest legal: 556 or 572"):
        model(image(1, 572, 570, 1))
    with pytest.raises(ValueError, match=r"100 is no legal tile height; nearest legal: 188 \(the smallest\)"):
        model.check_size(100, 188)
    with pytest.raises(ValueError, match="40 is no legal tile height; nearest legal: 32 or 48"):
        unet(base_channels=1, padding="same").check_size(40, 48)


def test_a_graph_of_unknown_size_refuses_illegal_tiles_when_it_runs():
    model = unet(depth=2, base_channels=2)
    call = tf.function(model, input_signature=[tf.TensorSpec((None, None, None, 1))])
    assert call(image(1, 60, 60, 1)).shape == (1, 20, 20, 2)
    with pytest.raises(tf.errors.InvalidArgumentError, match="illegal tile"):
        call(image(1, 61, 60, 1))


def test_pixels_farther_from_a_pixel_than_the_context_have_no_influence():
    for padding in ("valid", "same"):
        model = unet(depth=2, base_channels=4, padding=padding)
        side = model.legal_sizes(140)[1]
        before = image(1, side, side, 1)
        after = before.copy()
        middle = model.output_size(side) // 2
        row = middle + model.margin  # of the input, for that of the output
        after[:, row + model.context + 1 :] = 0
        after[:, : row - model.context] = 255
        same = model(before).numpy()[:, middle], model(after).numpy()[:, middle]
        np.testing.assert_array_equal(*same)
        after[:, row - 3] = 0
        assert np.any(model(after).numpy()[:, middle] != same[0])


def test_pixels_farther_from_a_tile_than_the_context_have_no_influence():
    model = unet(depth=3, base_channels=4, padding="same")
    assert model.context == 48
    assert unet(depth=4, base_channels=1, padding="same").context == 96
    before, (top, bottom) = image(1, 160, 160, 1), (64, 96)
    expected = model(before).numpy()[:, top:bottom]
    after = before.copy()
    after[:, bottom + model.context :] = 0
    after[:, : top - model.context] = 255
    np.testing.assert_array_equal(model(after).numpy()[:, top:bottom], expected)
    after[:, : top - model.context + 8] = 255
    assert np.any(model(after).numpy()[:, top:bottom] != expected)


def test_keras_file_keeps_arguments_and_numbers(tmp_path):
    arguments = {
        "input_channels": 3,
        "classes": 3,
        "depth": 2,
        "base_channels": 4,
        "padding": "same",
        "normalization": "batch",
        "dropout": 0.25,
        "activation": "sigmoid",
        "class_names": ["a", "b", "c"],
        "tile": 32,
        "rotations": 7,
        "name": "mine",
    }
    model = unet(**arguments)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert isinstance(again, UNet)
    assert again.get_config() == arguments
    np.testing.assert_array_equal(model(image(1, 16, 16, 3)), again(image(1, 16, 16, 3)))


def test_config_holds_every_argument():
    assert set(unet(base_channels=1).get_config()) == set(inspect.signature(unet).parameters)
    assert set(inspect.signature(UNet).parameters) == set(inspect.signature(unet).parameters)


def test_fit_reduces_the_loss_and_validates():
    keras.utils.set_random_seed(0)
    model = unet(depth=2, base_channels=4, padding="same", normalization="batch", dropout=0.0)
    x = image(4, 32, 32, 1)
    batch = {
        "image": x,
        "label": (x[..., 0] > 127).astype(np.int32),
        "weight": np.ones((4, 32, 32), np.float32),
    }
    dataset = tf.data.Dataset.from_tensors(batch)
    model.compile(optimizer=keras.optimizers.Adam(0.01))
    history = model.fit(
        dataset.repeat(40), epochs=2, steps_per_epoch=20, validation_data=dataset, verbose=0
    ).history
    assert history["loss"][1] < history["loss"][0]
    assert set(history) == {"loss", "val_loss"}


def test_mixed_precision_gives_float32_probabilities():
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = unet(depth=1, base_channels=4, padding="same")
        assert model.get_layer("enc1_conv1").compute_dtype == "bfloat16"
        assert model(image(1, 8, 8, 1)).dtype == tf.float32
    finally:
        keras.config.set_dtype_policy(policy)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"padding": "full"}, "padding must be one of 'valid', 'same', got 'full'"),
        ({"normalization": "layer"}, "normalization must be one of None, 'batch', 'group'"),
        ({"activation": "relu"}, "activation must be one of"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"depth": 0}, "depth must be a positive integer, got 0"),
        ({"input_channels": 1.5}, "input_channels must be a positive integer, got 1.5"),
        ({"classes": 1}, "soft-max needs classes >= 2"),
        ({"class_names": ["a"]}, "1 class_names for classes=2"),
        ({"tile": 390}, "nearest legal: 572 or 588"),
        ({"rotations": 9}, "rotations must be an integer from 1 to 8, got 9"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        unet(base_channels=1, **arguments)
