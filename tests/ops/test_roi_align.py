"""RoIAlign and RoIWarp: against reference outputs, against a plain computation, and at their limits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_seg.ops import roi_sampling
from keras_seg.ops.roi_align import assign_levels, multilevel_roi_align, roi_align, roi_pool, roi_warp

IMPLEMENTATIONS = ["crop_and_resize", "gather", "custom"]
# Features are of size 1. Sample positions are float32 numbers up to 80, here and in the reference: off by some 1e-5
# pixels, times the features' slope, which is up to 5 a pixel in noise.
TOLERANCE = 1e-4


def channels_last(array: np.ndarray) -> np.ndarray:
    return np.moveaxis(array, 1, -1)


def direct(features, boxes, indices, output_size, scale, ratio, aligned=True, pool="average"):
    """RoIAlign, sample by sample."""
    result = np.zeros((len(boxes), *output_size, features.shape[-1]), np.float32)
    for n, (box, index) in enumerate(zip(boxes, indices, strict=True)):
        x1, y1, x2, y2 = box.astype(np.float32) * np.float32(scale) - np.float32(0.5 if aligned else 0)
        extent = [y2 - y1, x2 - x1] if aligned else [max(y2 - y1, 1), max(x2 - x1, 1)]
        bins = [np.float32(e) / np.float32(o) for e, o in zip(extent, output_size, strict=True)]
        ky, kx = (ratio or max(math.ceil(b), 0) for b in bins)
        if ky * kx == 0:
            continue
        for h, w in np.ndindex(*output_size):
            samples = [
                bilinear(
                    features[index],
                    y1 + np.float32(h) * bins[0] + np.float32(i + 0.5) * bins[0] / np.float32(ky),
                    x1 + np.float32(w) * bins[1] + np.float32(j + 0.5) * bins[1] / np.float32(kx),
                )
                for i, j in np.ndindex(ky, kx)
            ]
            result[n, h, w] = np.mean(samples, 0) if pool == "average" else np.max(samples, 0)
    return result


def bilinear(image: np.ndarray, y: float, x: float) -> np.ndarray:
    height, width, channels = image.shape
    if not (-1 <= y <= height and -1 <= x <= width):
        return np.zeros(channels)
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    y, x = y - top, x - left
    return (1 - y) * ((1 - x) * image[top, left] + x * image[top, right]) + y * (
        (1 - x) * image[bottom, left] + x * image[bottom, right]
    )


def random_case(seed: int, height: int, width: int, scale: float, number: int = 5):
    """Features of two images, boxes of all kinds but inverted ones, and their images."""
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((2, height, width, 3)).astype(np.float32)
    corners = rng.uniform(-0.5, 1.2, (number, 2)) * [width, height] / scale
    extents = rng.uniform(0, 1.5, (number, 2)) ** 2 * [width, height] / scale
    boxes = np.concatenate([corners, corners + extents], 1).astype(np.float32)
    return features, boxes, rng.integers(0, 2, number).astype(np.int32)


# --- reference outputs ---


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("stride", [4, 8, 16, 32])
def test_equals_torchvision_and_its_gradient(shared, stride, implementation):
    golden = np.load(shared / "golden" / "ops" / "roi_align.npz")
    boxes, indices = golden["rois"][:, 1:], golden["rois"][:, 0]
    features = tf.constant(channels_last(golden[f"stride{stride}.features"]))
    for size in (7, 14):
        for mode in ("aligned_sr0", "aligned_sr2", "legacy_sr0", "legacy_sr2"):
            key = f"stride{stride}.pool{size}.{mode}"
            with tf.GradientTape() as tape:
                tape.watch(features)
                result = roi_align(
                    features, boxes, indices, size, 1 / stride, int(mode[-1]), mode.startswith("aligned"),
                    implementation=implementation,
                )  # fmt: skip
            np.testing.assert_allclose(
                result, channels_last(golden[f"{key}.output"]), rtol=0, atol=TOLERANCE, err_msg=key
            )
            if f"{key}.grad_features" in golden:
                gradient = tape.gradient(result, features, channels_last(golden[f"pool{size}.upstream"]))
                expected = channels_last(golden[f"{key}.grad_features"])
                np.testing.assert_allclose(gradient, expected, rtol=0, atol=2 * TOLERANCE, err_msg=key)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_equals_detectron2s_pooler(shared, implementation):
    golden = np.load(shared / "golden" / "ops" / "roi_pooler_fpn.npz")
    strides = [4, 8, 16, 32]
    features = [channels_last(golden[f"features.stride{stride}"]) for stride in strides]
    boxes = np.concatenate([golden["boxes.image0"], golden["boxes.image1"]])
    indices = np.repeat([0, 1], len(boxes) // 2)
    for size, ratio in ((7, 0), (7, 2), (14, 0), (14, 2)):
        result = multilevel_roi_align(
            features, boxes, indices, size, strides, ratio, implementation=implementation
        )
        expected = channels_last(golden[f"pool{size}.sr{ratio}.output"])
        np.testing.assert_allclose(result, expected, rtol=0, atol=TOLERANCE)


def test_levels_equal_detectron2s(shared):
    golden = np.load(shared / "golden" / "ops" / "fpn_levels.npz")
    np.testing.assert_array_equal(assign_levels(golden["boxes"], 2, 5), golden["levels_2_5"])
    compiled = tf.function(lambda boxes: assign_levels(boxes, 2, 5), jit_compile=True)
    np.testing.assert_array_equal(compiled(golden["boxes"]), golden["levels_2_5"])


# --- by hand, and against the plain computation ---


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_half_a_pixel_on_a_ramp(implementation):
    # Feature (y, x) is x, and pixel x's centre lies at x + 0.5: at stride 1 the position p reads p - 0.5.
    ramp = np.tile(np.arange(5, dtype=np.float32)[None, None, :, None], (1, 5, 1, 1))
    for aligned, expected in ((True, [1.0, 2.0, 3.0]), (False, [1.5, 2.5, 3.5])):
        result = roi_align(ramp, [[1.0, 1, 4, 4]], [0], 3, 1.0, 2, aligned, implementation=implementation)
        np.testing.assert_allclose(result[0, :, :, 0], [expected] * 3, rtol=1e-6)


@pytest.mark.parametrize(
    ("output_size", "ratio", "aligned", "pool"),
    [((2, 3), 0, True, "average"), ((2, 3), 0, False, "max"), ((3, 1), 3, True, "max"), ((1, 2), 2, False, "average")],
)  # fmt: skip
@settings(max_examples=6, deadline=None)
@given(
    seed=st.integers(0, 10**6), height=st.integers(1, 9), width=st.integers(1, 9),
    scale=st.sampled_from([1.0, 0.25, 1 / 16, 0.3]),
)  # fmt: skip
def test_equals_the_plain_computation(output_size, ratio, aligned, pool, seed, height, width, scale):
    features, boxes, indices = random_case(seed, height, width, scale)
    expected = direct(features, boxes, indices, output_size, scale, ratio, aligned, pool)
    for implementation in IMPLEMENTATIONS:
        result = roi_align(features, boxes, indices, output_size, scale, ratio, aligned, pool, implementation)
        np.testing.assert_allclose(result, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("pool", ["average", "max"])
@pytest.mark.parametrize("ratio", [0, 2])
def test_gradients_are_those_of_the_values(ratio, pool):
    features, boxes, indices = random_case(3, 7, 8, 0.25)
    features = tf.constant(features)
    direction = np.random.default_rng(4).standard_normal(features.shape).astype(np.float32)
    gradients = []
    for implementation in IMPLEMENTATIONS:

        def run(values, implementation=implementation):
            return roi_align(values, boxes, indices, 3, 0.25, ratio, True, pool, implementation)

        upstream = np.random.default_rng(5).standard_normal([len(boxes), 3, 3, 3]).astype(np.float32)
        with tf.GradientTape() as tape:
            tape.watch(features)
            result = run(features)
        gradients.append(tape.gradient(result, features, upstream).numpy())
        # the step is small enough that no maximum changes its place; float32 leaves 3 digits
        step = 1e-3
        change = np.sum((run(features + step * direction) - run(features - step * direction)) * upstream) / (
            2 * step
        )
        np.testing.assert_allclose(np.sum(gradients[-1] * direction), change, rtol=1e-2, atol=2e-2)
    for gradient in gradients[1:]:
        np.testing.assert_allclose(gradient, gradients[0], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_the_gradient_loses_nothing_where_many_boxes_meet(implementation):
    rng = np.random.default_rng(2)
    features = tf.constant(rng.standard_normal([1, 20, 30, 4]), tf.float32)
    corners, ends = rng.uniform(0, 8, (200, 2)), rng.uniform(10, 20, (200, 2))
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(features)
        result = roi_align(
            features, np.concatenate([corners, ends], 1), [0] * 200, 14, 1.0, 0, implementation=implementation
        )
    for _ in range(5):
        # every box's weights add up to its number of bins
        total = tf.reduce_sum(tape.gradient(result, features), [0, 1, 2])
        np.testing.assert_allclose(total, [200 * 14 * 14] * 4, rtol=1e-5)


def test_in_many_steps_as_in_one(monkeypatch):
    features, boxes, indices = random_case(6, 9, 9, 0.25, number=5)
    cases = [
        (0, "average", "crop_and_resize"), (0, "average", "gather"), (0, "max", "gather"), (2, "average", "gather")
    ]  # fmt: skip

    def run():
        results = []
        for ratio, pool, implementation in cases:
            values = tf.constant(features)
            # a function of its own: an earlier trace would keep its budget
            align = tf.function(
                lambda v, r=ratio, p=pool, i=implementation: roi_align(
                    v, boxes, indices, 3, 0.25, r, True, p, i
                )
            )
            with tf.GradientTape() as tape:
                tape.watch(values)
                result = align(values)
            results += [result.numpy(), tape.gradient(result, values).numpy()]
        return results

    whole = run()
    monkeypatch.setattr(roi_sampling, "BUDGET", 900)  # two boxes' samples of 3 channels at ratio 2, or less
    for one, many in zip(whole, run(), strict=True):
        np.testing.assert_allclose(one, many, rtol=0, atol=1e-5)


# --- odd boxes ---


@pytest.mark.parametrize("pool", ["average", "max"])
@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_odd_boxes(ratio, implementation, pool):
    features = tf.fill([1, 6, 6, 2], -3.0)
    boxes = [
        [4, 4, 4, 4],  # no extent
        [4, 4, 4, 12],  # no width
        [-90, -90, -60, -60],  # outside
        [16, 16, 8, 8],  # inverted
        [np.nan, 0, 8, 8],
        [0, 0, np.inf, 8],
        [0, 0, 24, 24],  # the whole map
        [1e8, 1e8, 2e8, 2e8],
    ]
    with tf.GradientTape() as tape:
        tape.watch(features)
        result = roi_align(features, boxes, [0] * 8, 2, 0.25, ratio, True, pool, implementation)
    values = result.numpy().reshape(8, -1)
    expected = np.array([-3 if ratio else 0, -3 if ratio else 0, 0, -3 if ratio else 0, 0, 0, -3, 0])
    np.testing.assert_allclose(values, np.repeat(expected[:, None], values.shape[1], 1), atol=1e-5)
    read = np.count_nonzero(expected)
    np.testing.assert_allclose(tf.reduce_sum(tape.gradient(result, features)), read * 8, rtol=1e-5)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_box_far_larger_than_the_map(implementation):
    # 60 samples a bin and axis, of which about 4 lie on the map or its border
    features = np.ones((1, 8, 8, 1), np.float32)
    box = [[4.0 - 60, 4 - 60, 4 + 60, 4 + 60]]
    result = roi_align(features, box, [0], 2, 1.0, 0, implementation=implementation)
    expected = direct(features, np.float32(box), [0], (2, 2), 1.0, 0)
    np.testing.assert_allclose(result, expected, rtol=1e-5)
    most = roi_align(-features, box, [0], 2, 1.0, 0, True, "max", implementation)
    np.testing.assert_array_equal(most, np.zeros([1, 2, 2, 1]))  # the samples outside are 0, and greater


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("ratio", [0, 2])
def test_no_boxes_and_sizes_known_late(ratio, implementation):
    specification = (
        tf.TensorSpec([None, None, None, 3]), tf.TensorSpec([None, None, None, 3]), tf.TensorSpec([None, 4]),
        tf.TensorSpec([None], tf.int64),
    )  # fmt: skip

    @tf.function(input_signature=specification)
    def run(fine, coarse, boxes, indices):
        with tf.GradientTape() as tape:
            tape.watch([fine, coarse])
            result = multilevel_roi_align(
                [fine, coarse], boxes, indices, 2, [4, 8], ratio, implementation=implementation
            )
        return result, tape.gradient(result, [fine, coarse])

    fine, coarse = np.ones((2, 8, 9, 3), np.float32), np.ones((2, 4, 5, 3), np.float32)
    result, gradients = run(fine, coarse, np.zeros((0, 4), np.float32), np.zeros(0, np.int64))
    assert result.shape == (0, 2, 2, 3)
    assert not any(np.any(gradient) for gradient in gradients)
    result, gradients = run(fine, coarse, np.float32([[0, 0, 20, 20], [8, 8, 16, 24]]), [1, 0])
    np.testing.assert_allclose(result, np.ones([2, 2, 2, 3]), rtol=1e-5)
    np.testing.assert_allclose(sum(tf.reduce_sum(g) for g in gradients), 24, rtol=1e-5)
    # and where the absence is known while the graph is built
    assert roi_align(fine, np.zeros((0, 4)), [], 2, 0.25, ratio, implementation=implementation).shape == (
        0,
        2,
        2,
        3,
    )


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("ratio", [0, 2])
def test_any_number_of_boxes_call_after_call(ratio, implementation):
    # eager calls share a graph, which becomes one for any number of boxes after some
    features, boxes, indices = random_case(11, 6, 7, 0.25, number=5)
    whole = roi_align(features, boxes, indices, 2, 0.25, ratio, implementation=implementation)
    for number in (4, 1, 3, 2, 0, 5):
        some = roi_align(
            features, boxes[:number], indices[:number], 2, 0.25, ratio, implementation=implementation
        )
        np.testing.assert_allclose(some, whole[:number], atol=1e-5)


# --- precision, compilers ---


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16])
def test_half_precision_is_computed_in_float32(dtype, implementation):
    features, boxes, indices = random_case(8, 9, 8, 0.25)
    features = tf.cast(features, dtype)
    with tf.GradientTape() as tape:
        tape.watch(features)
        result = roi_align(features, boxes, indices, 2, 0.25, 0, implementation=implementation)
    assert result.dtype == dtype
    assert tape.gradient(result, features).dtype == dtype
    exact = roi_align(
        tf.cast(features, tf.float32), boxes, indices, 2, 0.25, 0, implementation=implementation
    )
    # one rounding, of the result: half a unit in its last place
    rounding = {tf.float16: 2**-11, tf.bfloat16: 2**-8}[dtype]
    np.testing.assert_allclose(tf.cast(result, tf.float32), exact, rtol=rounding, atol=1e-6)


@pytest.mark.parametrize(("operation", "pool"), [("align", "average"), ("align", "max"), ("warp", "average")])
def test_under_xla_with_gather_and_a_fixed_ratio(operation, pool):
    features, boxes, indices = random_case(9, 8, 8, 0.25)
    coarse = features[:, ::2, ::2]

    def run(features, coarse):
        levels = [features, coarse]
        with tf.GradientTape() as tape:
            tape.watch(levels)
            result = multilevel_roi_align(
                levels,
                8 * boxes,
                indices,
                2,
                [32, 64],
                2,
                pool=pool,
                operation=operation,
                implementation="gather",
            )
        return result, *tape.gradient(result, levels)

    compiled = tf.function(run, jit_compile=True)(features, coarse)
    for one, other in zip(compiled, run(tf.constant(features), tf.constant(coarse)), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=TOLERANCE)


@pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated")
def test_tensorflow_lite_built_in_operators_with_gather_and_a_fixed_ratio(monkeypatch):
    monkeypatch.setattr(roi_sampling, "BUDGET", 600)  # several steps
    features, boxes, indices = random_case(10, 8, 8, 0.25)

    class Align(tf.Module):
        @tf.function(
            input_signature=[
                tf.TensorSpec([2, 8, 8, 3]),
                tf.TensorSpec([None, 4]),
                tf.TensorSpec([None], tf.int32),
            ]
        )
        def run(self, features, boxes, indices):
            return {"average": self.align(features, boxes, indices, "average")}

        def align(self, features, boxes, indices, pool):
            return roi_align(features, boxes, indices, 2, 0.25, 2, True, pool, "gather")

    module = Align()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([module.run.get_concrete_function()], module)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    runner = tf.lite.Interpreter(model_content=converter.convert()).get_signature_runner()
    result = runner(features=features, boxes=boxes, indices=indices)["average"]
    expected = direct(features, boxes, indices, (2, 2), 0.25, 2)
    np.testing.assert_allclose(result, expected, rtol=0, atol=TOLERANCE)


# --- several levels, and what else is pooled ---


@pytest.mark.parametrize("operation", ["align", "pool", "warp"])
def test_each_box_on_its_level_and_in_its_place(operation):
    rng = np.random.default_rng(11)
    strides = [32, 64]
    features = [rng.standard_normal((2, 512 // s, 512 // s, 3)).astype(np.float32) for s in strides]
    sides = np.array(
        [100.0, 460, 447, 300, 448, 20]
    )  # level 5 or, from 448, level 6: one above the canonical 4
    corners = rng.uniform(0, 30, (6, 2))
    boxes = np.concatenate([corners, corners + sides[:, None] * [2, 2]], 1).astype(np.float32)
    indices = np.array([0, 1, 1, 0, 0, 1])
    levels = assign_levels(boxes, 5, 6).numpy()
    np.testing.assert_array_equal(levels, np.where(sides >= 448, 6, 5))
    result = multilevel_roi_align(features, boxes, indices, (2, 3), strides, 0, operation=operation).numpy()
    for n, level in enumerate(levels):
        one = slice(n, n + 1)
        arguments = features[level - 5], boxes[one], indices[one], (2, 3), 0.5**level
        expected = {
            "align": lambda a: roi_align(*a, 0), "pool": lambda a: roi_pool(*a), "warp": lambda a: roi_warp(*a)
        }[operation](arguments)  # fmt: skip
        np.testing.assert_allclose(result[one], expected, rtol=0, atol=1e-5)


def test_one_level_takes_all_boxes():
    features, boxes, indices = random_case(12, 8, 8, 1 / 16)
    result = multilevel_roi_align([features], boxes, indices, 2, [16], 2)
    np.testing.assert_allclose(result, roi_align(features, boxes, indices, 2, 1 / 16, 2), atol=1e-6)


def test_levels_of_odd_boxes():
    boxes = [[0, 0, 0, 0], [500, 500, 0, 0], [np.nan, 0, 500, 500], [0, 0, np.inf, 500], [0, 0, 112, 448]]
    np.testing.assert_array_equal(assign_levels(boxes, 2, 5), [2, 2, 2, 5, 4])
    np.testing.assert_array_equal(assign_levels(boxes, 3, 3), [3] * 5)
    assert assign_levels(np.zeros((0, 4)), 2, 5).shape == (0,)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_warp_reads_the_rounded_box_bilinearly(implementation):
    # 3.4 and 9.8 at stride 2 round to the pixels 2 and 5: 4 pixels in 2 bins of 2 x 2 whole pixels
    rng = np.random.default_rng(13)
    features = rng.standard_normal((1, 8, 8, 2)).astype(np.float32)
    box = [[3.4, 3.4, 9.8, 9.8]]
    for pool, of in (("average", np.mean), ("max", np.max)):
        result = roi_warp(features, box, [0], 2, 0.5, 0, pool, implementation)
        expected = of(features[0, 2:6, 2:6].reshape(2, 2, 2, 2, 2), axis=(1, 3))
        np.testing.assert_allclose(result[0], expected, atol=1e-5)
    assert not np.any(roi_warp(features, [[np.nan] * 4], [0], 2, 0.5, implementation=implementation))


# --- bad arguments ---

FEATURES, BOXES = np.zeros((1, 4, 4, 2), np.float32), np.zeros((3, 4), np.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": FEATURES[0]}, r"features must be \[B, H, W, C\]"),
        ({"features": FEATURES[:, :0]}, r"features must be .*no empty axis, got \(1, 0, 4, 2\)"),
        ({"features": FEATURES.astype(np.int32)}, "features must be floating point"),
        ({"boxes": BOXES[0]}, r"boxes must be \[N, 4\], got \(4,\)"),
        ({"boxes": BOXES[:, :3]}, r"boxes must be \[N, 4\], got \(3, 3\)"),
        ({"box_indices": [[0], [0], [0]]}, r"box_indices must be \[N\], got \(3, 1\)"),
        ({"output_size": 0}, "output_size must be a positive number"),
        ({"output_size": (7, 7, 7)}, "output_size must be a positive number"),
        ({"spatial_scale": 0.0}, "spatial_scale must be positive"),
        ({"spatial_scale": math.nan}, "spatial_scale must be positive"),
        ({"sampling_ratio": -1}, "sampling_ratio must be a whole number"),
        ({"sampling_ratio": 1.5}, "sampling_ratio must be a whole number"),
        ({"pool": "sum"}, "pool must be one of average, max, got 'sum'"),
        (
            {"implementation": "fast"},
            "implementation must be one of auto, crop_and_resize, custom, gather, got 'fast'",
        ),
    ],
)
def test_bad_arguments(change, message):
    good = {
        "features": FEATURES, "boxes": BOXES, "box_indices": [0, 0, 0], "output_size": 7, "spatial_scale": 0.25,
        "sampling_ratio": 0,
    }  # fmt: skip
    for operation in (roi_align, roi_warp):
        with pytest.raises(ValueError, match=f"{operation.__name__}: {message}"):
            operation(**good | change)


def test_boxes_and_indices_must_be_as_many():
    with pytest.raises(ValueError, match="roi_align: 3 boxes and 2 box_indices"):
        roi_align(FEATURES, BOXES, [0, 0], 7, 0.25, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": []}, "at least one feature map"),
        ({"features": [FEATURES, FEATURES[..., :1]]}, "same channels on all levels"),
        ({"strides": [4]}, r"a stride for each of the 2 feature maps.*got \[4\]"),
        ({"strides": [4, 16]}, r"that double from one to the next, got \[4, 16\]"),
        ({"strides": [3, 6]}, r"powers of two"),
        ({"operation": "crop"}, "operation must be one of align, pool, warp, got 'crop'"),
    ],
)
def test_bad_levels(change, message):
    good = {
        "features": [FEATURES, FEATURES], "boxes": BOXES, "box_indices": [0, 0, 0], "output_size": 7,
        "strides": [4, 8], "sampling_ratio": 0,
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        multilevel_roi_align(**good | change)
    with pytest.raises(ValueError, match="min_level <= max_level, got 5 and 2"):
        assign_levels(BOXES, 5, 2)
