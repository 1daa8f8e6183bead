"""The copy for inference computes what the model does, from the model's own weights."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_seg.backbones.resnet import FrozenBatchNormalization
from keras_seg.inference import Fused, for_inference
from keras_seg.models import mask_rcnn, unet

# Of a probability: float32 sums in another order, and Winograd's rounding, about twice a direct convolution's. Up to
# 2.1e-5 was seen, depending on the number of threads.
PROBABILITY = 5e-5


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def unsettle(model: keras.Model) -> None:
    """Away from the start, where statistics and biases are neutral."""
    random = np.random.default_rng(0)
    for variable in model.weights:
        if "kernel" not in variable.path and "seed" not in variable.path:
            variable.assign(random.uniform(0.5, 1.5, variable.shape))


def kinds(model: keras.Model) -> list[str]:
    return [type(layer).__name__ for layer in model.layers[1:]]


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("normalization", [None, "batch", "group"])
def test_same_probabilities(padding, normalization):
    model = unet(depth=2, base_channels=64, padding=padding, normalization=normalization)
    unsettle(model)
    fast = for_inference(model)
    by_winograd = [
        layer.convolution.name for layer in fast.layers if isinstance(layer, Fused) and layer.by_winograd
    ]
    assert (
        len(by_winograd) == 9 and "enc1_conv1" not in by_winograd
    )  # all but the first and the last convolution
    image = np.random.default_rng(0).uniform(0, 255, (1, 60, 76, 1)).astype(np.float32)
    np.testing.assert_allclose(fast(image), model(image), atol=PROBABILITY)


def test_changed_weights_are_taken_over_at_once():
    model = unet(depth=1, base_channels=64, padding="same", normalization="batch")
    fast = for_inference(model)
    image = np.random.default_rng(0).uniform(0, 255, (1, 16, 16, 1)).astype(np.float32)
    call = tf.function(lambda x: fast(x))
    before = call(image).numpy()
    kernel = model.get_layer("bottom_conv2").kernel
    kernel.assign(numbers(*kernel.shape, seed=1) * 0.03)
    model.get_layer("bottom_norm1").moving_mean.assign(numbers(128))
    after = call(image).numpy()
    assert np.abs(after - before).max() > 1e-3
    np.testing.assert_allclose(after, model(image), atol=PROBABILITY)


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 1},
        {"kernel_size": 3},
        {"kernel_size": 3, "groups": 2},
        {"kernel_size": 3, "dilation_rate": 2},
        {"kernel_size": 3, "strides": 2},
        {"kernel_size": (3, 5), "padding": "same"},
        {"kernel_size": 3, "activation": "sigmoid", "use_bias": False},
    ],
)
@pytest.mark.parametrize("frozen", [True, False])
def test_kinds_of_convolutions(options, frozen):
    image = keras.Input((None, None, 64))
    norm = FrozenBatchNormalization() if frozen else keras.layers.BatchNormalization(scale=False)
    model = keras.Model(image, keras.layers.ReLU()(norm(keras.layers.Conv2D(64, **options)(image))))
    unsettle(model)
    fast = for_inference(model)
    # what follows an activation cannot be drawn into the convolution
    fused = ["Fused"] if "activation" not in options else ["Fused", type(norm).__name__, "ReLU"]
    assert kinds(fast) == fused
    only_winograd = options == {"kernel_size": 3}
    assert fast.layers[1].by_winograd == (only_winograd or "activation" in options)
    x = numbers(2, 11, 14, 64)
    np.testing.assert_allclose(fast(x), model(x), atol=PROBABILITY)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_grouped_convolutions_are_tensorflows_own(precision):
    """Compiled by XLA, as Keras has them, they would be slow, and stay so in an exported file."""
    image = keras.Input((None, None, 8))
    model = keras.Model(image, keras.layers.Conv2D(8, 3, groups=4)(image))
    fast = for_inference(model, precision)
    signature = [tf.TensorSpec([None, None, None, 8])]
    graph = tf.function(lambda x: fast(x), input_signature=signature).get_concrete_function().graph
    text = str(graph.as_graph_def())
    assert "Conv2D" in text and "_XlaMustCompile" not in text
    plain = tf.function(lambda x: model(x), input_signature=signature).get_concrete_function().graph
    assert "_XlaMustCompile" in str(plain.as_graph_def())


GROUPED = """
import keras, numpy as np, tensorflow as tf
from keras_seg.backbones.resnet import FrozenBatchNormalization
from keras_seg.export.folding import folded
from keras_seg.inference import compiled

image = keras.Input((None, None, 16))
grouped = keras.layers.Conv2D(32, 3, groups=4, padding="same")(image)
model = keras.Model(image, keras.layers.ReLU()(FrozenBatchNormalization()(grouped)))
x = np.random.default_rng(0).normal(size=(2, 11, 14, 16)).astype(np.float32)
copy = folded(model)
exported = tf.function(lambda x: copy(x), input_signature=[tf.TensorSpec(model.input.shape)])
expected = model(x)
for found, tolerance in ((compiled(model)(x), 1e-4), (exported(x), 1e-4), (compiled(model, "bfloat16")(x), 0.1)):
    np.testing.assert_allclose(tf.cast(found, tf.float32), expected, atol=tolerance)
"""


@pytest.mark.parametrize("onednn", ["0", "1"])
def test_grouped_convolutions_run_with_onednn_and_without(onednn):
    """TensorFlow turns oneDNN on by the processor's instructions, and has other operations where it is off."""
    done = subprocess.run(
        [sys.executable, "-c", GROUPED],
        env={**os.environ, "TF_ENABLE_ONEDNN_OPTS": onednn},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_what_others_use_too_stays():
    image = keras.Input((None, None, 3))
    between = keras.layers.Conv2D(4, 3, padding="same")(image)
    normal = FrozenBatchNormalization()(between)
    model = keras.Model(image, [between, keras.layers.ReLU()(normal), keras.layers.Add()([normal, between])])
    unsettle(model)
    x = numbers(1, 9, 9, 3)
    for found, expected in zip(for_inference(model)(x), model(x), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_other_layers_and_types_are_left_alone():
    image = keras.Input((None, None, 4))
    x = keras.layers.Conv2D(4, 3, dtype="mixed_float16")(image)
    x = keras.layers.ReLU(max_value=1.0)(keras.layers.Conv2DTranspose(4, 2)(x))
    x = keras.layers.GroupNormalization(2)(keras.layers.DepthwiseConv2D(3)(x))
    model = keras.Model(image, x)
    assert kinds(for_inference(model)) == kinds(model)


@pytest.mark.parametrize("structure", ["fpn", "c4"])
def test_a_detector(structure):
    keras.utils.set_random_seed(0)
    model = mask_rcnn(
        3, backbone="resnet18" if structure == "fpn" else "resnet50", structure=structure, width=8, fpn_channels=64,
        mask_channels=64, box_head_channels=16, proposals=20, detections=5, score_threshold=0.0,
    )  # fmt: skip
    unsettle(model)
    fast = for_inference(model)
    backbone = [layer for layer in fast.get_layer("backbone").layers if isinstance(layer, Fused)]
    assert len(backbone) == (20 if structure == "fpn" else 43)  # all of their convolutions
    assert "FrozenBatchNormalization" not in kinds(fast.get_layer("backbone"))
    inputs = {
        "image": np.random.default_rng(0).uniform(0, 255, (2, 64, 96, 3)),
        "size": np.array([[64, 90], [50, 96]]),
    }
    inputs = {name: tf.constant(value, tf.float32) for name, value in inputs.items()}
    expected, found = model(inputs), fast(inputs)
    assert expected.keys() == found.keys()
    tolerances = {"boxes": 1e-2, "masks": 1e-3}  # boxes in pixels; what is pooled from them follows
    for name in expected:
        atol = tolerances.get(name, 1e-4)
        np.testing.assert_allclose(found[name], expected[name], atol=atol, err_msg=name)


def test_the_model_is_not_kept_alive():
    model = unet(depth=1, base_channels=4)
    alive, fast = weakref.ref(model), for_inference(model)
    del model
    gc.collect()
    assert alive() is None and fast.output_shape[-1] == 2
