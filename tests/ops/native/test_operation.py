"""The compiled RoIAlign as a TensorFlow operation: against the portable ones, at its limits, and where it is used."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_seg.models.rcnn_layers import PoolRegions
from keras_seg.ops import roi_align as module
from keras_seg.ops.native import library
from keras_seg.ops.roi_align import multilevel_roi_align, portable, roi_align, roi_warp

# Positions of samples are float32 numbers up to some 100; features of size 1 change by up to 5 a pixel.
TOLERANCE = 1e-4
# of a result of size 1 to 4, where the portable result is rounded the other way
ROUNDING = {tf.float32: 0, tf.bfloat16: 2**-6, tf.float16: 2**-9}


@pytest.fixture(scope="module", autouse=True)
def compiled():
    try:
        return library.get()
    except library.Unavailable as error:
        pytest.skip(f"needs the compiled operation: {error}")


def run(
    features, boxes, indices, strides, ratio, aligned, pool, implementation, size=(3, 2), operation="align"
):
    """Result and gradients, as float32 arrays."""
    features = [tf.constant(level) for level in features]
    with tf.GradientTape() as tape:
        tape.watch(features)
        result = multilevel_roi_align(
            features, boxes, indices, size, strides, ratio, aligned, pool, operation, implementation
        )
        weights = tf.cast(tf.reshape(tf.range(tf.size(result)) % 7 - 3, result.shape), result.dtype)
        loss = tf.reduce_sum(tf.cast(result * weights, tf.float32))
    gradients = tape.gradient(loss, features, unconnected_gradients="zero")
    assert all(gradient.dtype == level.dtype for gradient, level in zip(gradients, features, strict=True))
    return [np.asarray(tf.cast(value, tf.float32)) for value in (result, *gradients)]


# --- against the portable implementations ---


@settings(max_examples=8, deadline=None)
@given(
    # few of what the portable implementations compile anew for
    seed=st.integers(0, 10**6), height=st.integers(2, 13), width=st.integers(2, 13), channels=st.sampled_from([3, 37]),
    number=st.integers(0, 6), first_stride=st.sampled_from([1, 4]), ratio=st.sampled_from([0, 2]),
    aligned=st.booleans(), dtype=st.sampled_from(list(ROUNDING)), operation=st.sampled_from(["align", "warp"]),
)  # fmt: skip
def test_equals_the_portable_implementations(
    seed, height, width, channels, number, first_stride, ratio, aligned, dtype, operation
):
    rng = np.random.default_rng(seed)
    shapes = [(2, height, width, channels), (2, -(-height // 2), -(-width // 2), channels)]
    features = [tf.cast(rng.uniform(-1, 1, shape), dtype) for shape in shapes]
    # on the finer map or, from 448 pixels at a stride of 4, on the coarser: the strides choose the level
    corners = rng.uniform(-2, 12, (number, 2)) * first_stride
    extents = rng.uniform(-0.1, 1, (number, 2)) * rng.choice([3, 15, 600], (number, 1)) * first_stride
    boxes = np.concatenate([corners, corners + extents], 1).astype(np.float32)
    indices = rng.integers(0, 2, number).astype(np.int32)
    strides = [first_stride, 2 * first_stride]
    pool = "average"
    found = run(features, boxes, indices, strides, ratio, aligned, pool, "custom", operation=operation)
    for other in ("gather", "crop_and_resize"):
        expected = run(features, boxes, indices, strides, ratio, aligned, pool, other, operation=operation)
        for one, two in zip(found, expected, strict=True):
            scale = max(1, np.abs(two).max(initial=0))  # a pixel's gradient adds up over bins and boxes
            np.testing.assert_allclose(
                one, two, rtol=0, atol=scale * (TOLERANCE + ROUNDING[dtype]), err_msg=other
            )


@pytest.mark.parametrize("ratio", [0, 2])
def test_the_maximum_equals_the_portable_one(ratio):
    rng = np.random.default_rng(3)
    features = [rng.standard_normal((2, 12, 15, 37)).astype(np.float32)]
    corners = rng.uniform(-4, 40, (8, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(0, 50, (8, 2))], 1).astype(np.float32)
    indices = rng.integers(0, 2, 8).astype(np.int32)
    found = run(features, boxes, indices, [4], ratio, True, "max", "custom")
    for one, two in zip(found, run(features, boxes, indices, [4], ratio, True, "max", "gather"), strict=True):
        np.testing.assert_allclose(one, two, rtol=0, atol=TOLERANCE)


def test_float64_is_computed_in_float32():
    features = np.random.default_rng(0).standard_normal((1, 5, 5, 2))
    result = roi_align(features, [[0.0, 0, 4, 4]], [0], 2, 1.0, 2, implementation="custom")
    assert result.dtype == tf.float64
    expected = roi_align(features, [[0.0, 0, 4, 4]], [0], 2, 1.0, 2, implementation="gather")
    np.testing.assert_allclose(result, expected, atol=1e-6)


def test_a_nan_among_the_features_shows():
    features = np.zeros((1, 4, 4, 20), np.float32)
    features[0, 1, 1, 3] = np.nan
    for pool in ("average", "max"):
        result = roi_align(features, [[0.0, 0, 4, 4]], [0], 1, 1.0, 2, True, pool, "custom")
        np.testing.assert_array_equal(np.isnan(result[0, 0, 0]), np.arange(20) == 3)


def test_a_box_far_larger_than_the_map_takes_no_longer():
    # 10^8 samples a bin and axis, of which a dozen lie on the map: one by one they would take hours
    features = np.ones((1, 8, 8, 3), np.float32)
    boxes = np.float32([[-1e8, -1e8, 1e8, 1e8], [-9e8, 0, 9e8, 8], [1e8, 1e8, 9e8, 9e8]])
    for pool in ("average", "max"):
        result, gradient = run([features], boxes, [0, 0, 0], [1], 0, True, pool, "custom")
        assert np.all((result >= 0) & (result <= 1)) and np.all(np.isfinite(gradient))


# --- the same in each run ---


@pytest.mark.parametrize("pool", ["average", "max"])
def test_the_gradient_is_the_same_to_the_bit(pool):
    rng = np.random.default_rng(1)
    features = rng.standard_normal((2, 40, 60, 70)).astype(np.float32)
    corners = rng.uniform(0, 30, (60, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(1, 30, (60, 2))], 1).astype(np.float32)
    indices = rng.integers(0, 2, 60).astype(np.int32)
    first = run([features], boxes, indices, [1], 0, True, pool, "custom", (7, 7))
    for _ in range(4):
        for one, two in zip(
            run([features], boxes, indices, [1], 0, True, pool, "custom", (7, 7)), first, strict=True
        ):
            np.testing.assert_array_equal(one, two)


# --- bad arguments, at the operation itself ---

GOOD = {
    "features": [np.ones((2, 4, 5, 3), np.float32), np.ones((2, 2, 3, 3), np.float32)],
    "boxes": np.float32([[0, 0, 4, 4], [1, 1, 3, 3]]), "box_indices": [0, 1], "box_levels": [0, 1],
    "scales": [1.0, 0.5], "output_height": 2, "output_width": 2, "sampling_ratio": 2, "aligned": True, "pool": "average",
}  # fmt: skip
BAD = [
    ({"box_indices": [0, 2]}, r"box_indices\[1\] is 2, but the features have the images 0 to 1"),
    ({"box_indices": [-1, 0]}, r"box_indices\[0\] is -1"),
    ({"box_levels": [0, 2]}, r"box_levels\[1\] is 2, but the levels are 0 to 1"),
    ({"box_levels": [-5, 0]}, r"box_levels\[0\] is -5"),
    ({"box_indices": [0]}, r"box_indices must be \[2\]"),
    ({"box_levels": [[0], [1]]}, r"box_levels must be \[2\]"),
    ({"boxes": np.zeros((2, 5), np.float32)}, r"boxes must be \[N, 4\], got \[2,5\]"),
    ({"boxes": np.zeros(4, np.float32)}, r"boxes must be \[N, 4\]"),
    ({"features": [GOOD["features"][0][0]] * 2}, r"features of level 0 must be \[B, H, W, C\]"),
    (
        {"features": [GOOD["features"][0], np.ones((2, 0, 3, 3), np.float32)]},
        "level 1 must be .*no empty axis",
    ),
    (
        {"features": [GOOD["features"][0], np.ones((2, 2, 3, 4), np.float32)]},
        "levels 0 and 1 differ in batch or chan",
    ),
    (
        {"features": [GOOD["features"][0], np.ones((1, 2, 3, 3), np.float32)]},
        "levels 0 and 1 differ in batch or chan",
    ),
    ({"scales": [1.0]}, "2 feature maps and 1 scales"),
    ({"scales": [1.0, float("nan")]}, "scales must be positive, got nan"),
    ({"scales": [1.0, 0.0]}, "scales must be positive, got 0"),
    ({"output_height": 0}, "output_height"),
    ({"sampling_ratio": -1}, "sampling_ratio"),
    ({"sampling_ratio": 5000}, "sampling_ratio must be at most 4096, got 5000"),
    ({"pool": "sum"}, "pool"),
    ({"output_height": 2**31 - 1, "output_width": 2**31 - 1}, ".*"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_bad_arguments_of_the_operation(compiled, change, message):
    arguments = GOOD | change
    errors = (tf.errors.InvalidArgumentError, tf.errors.ResourceExhaustedError, ValueError)
    with tf.device("CPU"), pytest.raises(errors, match=message):
        compiled.operations.keras_seg_roi_align(**arguments)
    upstream = np.ones((2, 2, 2, 3), np.float32)
    with tf.device("CPU"), pytest.raises(errors, match=message):
        compiled.operations.keras_seg_roi_align_grad(**arguments, upstream=upstream)


def test_an_upstream_of_another_shape(compiled):
    with pytest.raises(
        tf.errors.InvalidArgumentError, match=r"upstream must be \[2,2,2,3\], got \[2,2,2,4\]"
    ):
        compiled.operations.keras_seg_roi_align_grad(**GOOD, upstream=np.ones((2, 2, 2, 4), np.float32))


def test_shapes_are_checked_while_a_graph_is_built(compiled):
    def build(**change):
        @tf.function
        def function():
            return compiled.operations.keras_seg_roi_align(**GOOD | change)

        return function.get_concrete_function().output_shapes

    assert build() == (2, 2, 2, 3)
    for change in (
        {"boxes": np.zeros((2, 3), np.float32)},
        {"box_indices": [0]},
        {"features": [np.ones((4, 4, 3), np.float32)] * 2},
    ):
        with pytest.raises(ValueError):
            build(**change)


def test_what_the_public_function_says_of_boxes_without_an_image():
    features = np.ones((2, 4, 4, 1), np.float32)
    with tf.device("CPU"), pytest.raises(tf.errors.InvalidArgumentError, match=r"box_indices\[0\] is 2"):
        roi_align(features, [[0.0, 0, 4, 4]], [2], 2, 1.0, 0, implementation="custom")
    with pytest.raises(ValueError, match="takes at most 4096 samples, got sampling_ratio=5000"):
        roi_align(features, [[0.0, 0, 4, 4]], [0], 2, 1.0, 5000, implementation="custom")


# --- where it is used ---


def operations_of(function, *arguments) -> set[str]:
    graph = tf.function(function).get_concrete_function(*arguments).graph
    nodes = list(graph.as_graph_def().node)
    for inner in graph.as_graph_def().library.function:
        nodes += inner.node_def
    return {node.op for node in nodes}


FEATURES = np.random.default_rng(5).standard_normal((1, 8, 8, 3)).astype(np.float32)
BOX, IMAGE = np.float32([[1, 1, 6, 7]]), np.int32([0])


def test_auto_is_the_compiled_one_unless_told_otherwise(monkeypatch):
    def align(implementation="auto"):
        return lambda: roi_align(FEATURES, BOX, IMAGE, 2, 1.0, 2, implementation=implementation)

    assert "KerasSegRoiAlign" in operations_of(align())
    assert "KerasSegRoiAlign" in operations_of(lambda: roi_warp(FEATURES, BOX, IMAGE, 2, 1.0))
    for implementation in ("auto", "custom"):
        with portable():
            found = operations_of(align(implementation))
        assert "KerasSegRoiAlign" not in found and "CropAndResize" in found
    assert "KerasSegRoiAlign" in operations_of(align())
    monkeypatch.setenv("KERAS_SEG_NATIVE", "off")
    assert "CropAndResize" in operations_of(align())
    with pytest.raises(
        RuntimeError, match="cannot be had: the environment variable KERAS_SEG_NATIVE is 'off'"
    ):
        align("custom")()


def test_under_xla_auto_gathers_and_custom_says_so():
    expected = roi_align(FEATURES, BOX, IMAGE, 2, 1.0, 2, implementation="custom")
    compiled = tf.function(lambda values: roi_align(values, BOX, IMAGE, 2, 1.0, 2), jit_compile=True)
    np.testing.assert_allclose(compiled(FEATURES), expected, atol=TOLERANCE)
    with pytest.raises(ValueError, match=r"does not work under XLA \(jit_compile=True\)"):
        tf.function(
            lambda values: roi_align(values, BOX, IMAGE, 2, 1.0, 2, implementation="custom"), jit_compile=True
        )(FEATURES)


def test_a_saved_model_holds_no_compiled_operation_if_traced_as_portable(tmp_path):
    class Pool(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3])])
        def __call__(self, features):
            return roi_align(features, BOX, IMAGE, 2, 1.0, 2)

    pool = Pool()
    with portable():
        tf.saved_model.save(pool, tmp_path / "saved")
    content = (tmp_path / "saved" / "saved_model.pb").read_bytes()
    assert b"CropAndResize" in content and b"KerasSegRoiAlign" not in content


@pytest.mark.parametrize("implementation", ["auto", "custom"])
def test_in_a_keras_model_saved_and_loaded(tmp_path, implementation):
    features = keras.Input((8, 8, 3))
    boxes, images = keras.Input(batch_shape=(None, 4)), keras.Input(batch_shape=(None,), dtype="int32")
    pooled = PoolRegions(2, [4], implementation=implementation)([features], boxes, images)
    model = keras.Model([features, boxes, images], pooled)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    expected = roi_align(FEATURES, BOX, IMAGE, 2, 0.25, 0, implementation="gather")
    np.testing.assert_allclose(loaded([FEATURES, BOX, IMAGE]), expected, atol=TOLERANCE)
    assert (
        next(layer for layer in loaded.layers if isinstance(layer, PoolRegions)).implementation
        == implementation
    )


TWO_DEVICES = """
import numpy as np, tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from keras_seg.ops.roi_align import roi_align
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
with strategy.scope():
    features = tf.Variable(np.random.default_rng(0).standard_normal((2, 8, 8, 3)).astype(np.float32))

@tf.function
def step():
    def replica():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(roi_align(features, [[1.0, 1, 6, 7]], [1], 2, 1.0, 0, implementation="custom"))
        return loss, tape.gradient(loss, features, unconnected_gradients="zero")
    return strategy.run(replica)

loss, gradient = step()
assert strategy.num_replicas_in_sync == 2
for values in strategy.experimental_local_results(gradient):
    np.testing.assert_allclose(tf.reduce_sum(values), 4 * 3, rtol=1e-5)
print("two devices")
"""


def test_under_a_mirrored_strategy(python):
    assert python(TWO_DEVICES).stdout.splitlines()[-1] == "two devices"


DETERMINISM = """
import tensorflow as tf
from keras_seg.ops.roi_align import roi_align
tf.keras.utils.set_random_seed(0)
tf.config.experimental.enable_op_determinism()
align = tf.function(lambda f: roi_align(f, [[0.0, 0, 4, 4]], [0], 2, 1.0, 0, implementation="custom"))
graph = align.get_concrete_function(tf.ones([1, 8, 8, 3])).graph
(node,) = [node for node in graph.as_graph_def().node if node.op == "KerasSegRoiAlign"]
print(node.attr["deterministic"].b)
"""


def test_determinism_is_asked_of_the_operation(python):
    assert python(DETERMINISM).stdout.splitlines()[-1] == "True"


# --- on a GPU ---


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("pool", ["average", "max"])
@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("dtype", list(ROUNDING))
def test_the_cuda_kernels_equal_the_processors(compiled, dtype, ratio, pool, deterministic):
    if not tf.config.list_logical_devices("GPU"):
        pytest.skip("needs a GPU")
    if not compiled.cuda:
        pytest.skip(f"needs the CUDA kernels: {compiled.note}")
    rng = np.random.default_rng(6)
    features = [tf.cast(rng.uniform(-1, 1, shape), dtype) for shape in ((2, 30, 40, 70), (2, 15, 20, 70))]
    corners = rng.uniform(-10, 120, (50, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(-5, 100, (50, 2))], 1).astype(np.float32)
    boxes[0] = np.nan
    arguments = {
        "features": features, "boxes": boxes, "box_indices": rng.integers(0, 2, 50).astype(np.int32),
        "box_levels": rng.integers(0, 2, 50).astype(np.int32), "scales": [0.25, 0.125], "output_height": 7,
        "output_width": 6, "sampling_ratio": ratio, "aligned": True, "pool": pool, "deterministic": deterministic,
    }  # fmt: skip
    upstream = tf.cast(rng.uniform(-1, 1, (50, 7, 6, 70)), dtype)
    results = {}
    for device in ("CPU", "GPU"):
        with tf.device(device):
            pooled = compiled.operations.keras_seg_roi_align(**arguments)
            gradients = compiled.operations.keras_seg_roi_align_grad(**arguments, upstream=upstream)
            if deterministic:
                again = compiled.operations.keras_seg_roi_align_grad(**arguments, upstream=upstream)
                for one, two in zip(gradients, again, strict=True):
                    np.testing.assert_array_equal(tf.cast(one, tf.float32), tf.cast(two, tf.float32))
        results[device] = [np.asarray(tf.cast(value, tf.float32)) for value in (pooled, *gradients)]
    for one, two in zip(results["CPU"], results["GPU"], strict=True):
        scale = max(1, np.abs(one).max())
        np.testing.assert_allclose(one, two, rtol=0, atol=scale * (TOLERANCE + ROUNDING[dtype]))


def test_a_box_without_an_image_gives_nan_on_a_gpu(compiled):
    if not tf.config.list_logical_devices("GPU") or not compiled.cuda:
        pytest.skip("needs a GPU and the CUDA kernels")
    with tf.device("GPU"):
        result = roi_align(FEATURES, BOX, np.int32([1]), 2, 1.0, 2, implementation="custom")
    assert np.all(np.isnan(result))


def test_the_names_of_implementations_are_documented():
    for name in module.IMPLEMENTATIONS:
        assert f'"{name}"' in roi_align.__doc__
