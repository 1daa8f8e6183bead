"""RoIAlign (He et al. 2017, Section 3), RoIWarp, and their use on the levels of a feature pyramid.

N boxes, h x w bins of a box, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import tensorflow as tf

from keras_seg.ops import roi_pool as pooling
from keras_seg.ops import roi_sampling as sampling
from keras_seg.ops.native import library, operation
from keras_seg.ops.roi_pool import roi_pool

__all__ = ["assign_levels", "multilevel_roi_align", "portable", "roi_align", "roi_pool", "roi_warp"]

IMPLEMENTATIONS = ("auto", "crop_and_resize", "custom", "gather")
POOLS = ("average", "max")
OPERATIONS = ("align", "pool", "warp")
MOST_SAMPLES = 4096  # a bin and axis, of the compiled operation
# Windows of pixels are rounded up to multiples of this, so that many RoIs share a size.
WINDOW = 4


_portable: ContextVar[bool] = ContextVar("portable", default=False)


@contextmanager
def portable() -> Iterator[None]:
    """Inside, TensorFlow's own operations take the compiled one's place, in layers that ask for it too.

    For graphs that run where keras_seg is not, such as a SavedModel's: trace them inside. "gather" stays "gather".
    Holds for the present thread.
    """
    token = _portable.set(True)
    try:
        yield
    finally:
        _portable.reset(token)


def roi_align(
    features: tf.Tensor,
    boxes: tf.Tensor,
    box_indices: tf.Tensor,
    output_size: int | tuple[int, int],
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool = True,
    pool: str = "average",
    implementation: str = "auto",
) -> tf.Tensor:
    """Features of each bin, read without any rounding of coordinates: the mean of bilinear samples.

    Args:
        features: [B, H, W, C], floating point.
        boxes: [N, 4] as (x1, y1, x2, y2), image pixels, continuous: pixel i covers [i, i + 1).
        box_indices: integers [N], each box's image in the batch.
        output_size: bins of a box: a number, or (height, width).
        spatial_scale: feature pixels an image pixel, 1/16 for a stride of 16.
        sampling_ratio: samples a bin along each axis; 0: as many as the bin has feature pixels, rounded up, for each
            box and axis.
        aligned: False: without the shift by half a pixel, and a box is at least one feature pixel wide and high
            (torchvision's models).
        pool: "average", or "max" (Table 2c of the paper).
        implementation: "custom": the compiled operation (docs/native_op.md), which is built on first use where no
            wheel brought it; "crop_and_resize": `tf.image.crop_and_resize`; "gather": reads pixels and multiplies
            matrices, with built-in TensorFlow Lite operators alone where the sampling ratio is fixed; "auto":
            "custom", or "gather" under XLA, or, where the compiled operation cannot be had, "crop_and_resize" with one
            warning that says why. `portable` and the environment variable KERAS_SEG_NATIVE=off rule "custom" out.

    Samples up to one feature pixel outside the map count as on its border, those beyond as 0. All implementations do
    so for boxes of any size, and agree to the rounding of coordinates.

    Returns: [N, h, w, C] of the features' dtype, computed in float32. A box without extent has no sample where the
    ratio is 0, and gives 0, unless `aligned` is False; so does an inverted box, which is read backwards where the ratio
    is fixed. A box with a NaN or an infinity gives 0. The gradient goes to the features alone, and does not depend on
    the implementation: that of `tf.image.crop_and_resize` is not used (its threads lose sums on a processor).

    Works in graph mode with dynamic sizes; under XLA with "gather", a fixed ratio and static shapes. Memory beside
    inputs and result: some MB with "custom", else about 100 MB, more only if a single box needs it.

    Raises:
        ValueError: for wrong ranks, an unknown number of channels, a bad output size, scale, ratio or name;
            implementation="custom" under XLA, or with more than 4096 samples.
        RuntimeError: implementation="custom" cannot be had, or KERAS_SEG_NATIVE is "require" and it cannot; says why.
        tf.errors.InvalidArgumentError: a box's image does not exist.
    """
    size = sampling.check("roi_align", [features], boxes, box_indices, output_size)
    scale = sampling.check_scale("roi_align", spatial_scale)
    implementation = _check("roi_align", sampling_ratio, pool, implementation)
    boxes, box_indices = sampling.as_boxes(boxes, box_indices)
    if implementation == "custom":
        return _compiled([features], boxes, box_indices, None, size, [scale], sampling_ratio, aligned, pool)
    place = _extent(boxes * scale, aligned)
    result = _align([features], None, place, box_indices, size, sampling_ratio, pool, implementation)
    return tf.cast(result, features.dtype)


def roi_warp(
    features: tf.Tensor,
    boxes: tf.Tensor,
    box_indices: tf.Tensor,
    output_size: int | tuple[int, int],
    spatial_scale: float,
    sampling_ratio: int = 0,
    pool: str = "average",
    implementation: str = "auto",
) -> tf.Tensor:
    """RoIWarp (Dai et al. 2016) as Mask R-CNN compares with it: bilinear samples in a box rounded as RoIPool's is.

    The box covers the whole pixels that `roi_pool` gives it, at least one; inside it, all is as in `roi_align`, whose
    arguments, results and errors these are.
    """
    size = sampling.check("roi_warp", [features], boxes, box_indices, output_size)
    scale = sampling.check_scale("roi_warp", spatial_scale)
    implementation = _check("roi_warp", sampling_ratio, pool, implementation)
    boxes, box_indices = sampling.as_boxes(boxes, box_indices)
    if implementation == "custom":
        whole = _warped_boxes(boxes * scale)
        return _compiled([features], whole, box_indices, None, size, [1.0], sampling_ratio, True, pool)
    place = _warped(boxes * scale)
    result = _align([features], None, place, box_indices, size, sampling_ratio, pool, implementation)
    return tf.cast(result, features.dtype)


def assign_levels(
    boxes: tf.Tensor,
    min_level: int,
    max_level: int,
    canonical_size: float = 224.0,
    canonical_level: int = 4,
) -> tf.Tensor:
    """The pyramid level of each box: floor(4 + log2(√area / 224)), within the levels (Lin et al. 2017, equation 1).

    boxes: [N, 4], image pixels. A box of exactly 112, 224 or 448 pixels starts a new level; empty and inverted boxes
    and those with NaN go to the lowest. Works under XLA. Returns int32 [N].
    """
    if not 0 <= min_level <= max_level:
        raise ValueError(f"assign_levels: needs 0 <= min_level <= max_level, got {min_level} and {max_level}")
    boxes = sampling.to_float32(boxes)
    extent = tf.maximum(boxes[:, 2:] - boxes[:, :2], 0)
    area = extent[:, 0] * extent[:, 1]
    # Compared with squares of powers of two: exact, where a logarithm is not.
    starts = [
        (canonical_size * 2.0 ** (k - canonical_level)) ** 2 for k in range(min_level + 1, max_level + 1)
    ]
    above = tf.cast(area[:, None] >= tf.constant(starts, tf.float32, [1, len(starts)]), tf.int32)
    return min_level + tf.reduce_sum(above, axis=1)


def multilevel_roi_align(
    features: Sequence[tf.Tensor],
    boxes: tf.Tensor,
    box_indices: tf.Tensor,
    output_size: int | tuple[int, int],
    strides: Sequence[int],
    sampling_ratio: int,
    aligned: bool = True,
    pool: str = "average",
    operation: str = "align",
    implementation: str = "auto",
) -> tf.Tensor:
    """RoIAlign, RoIPool or RoIWarp of each box on the pyramid level of its size (`assign_levels`).

    Args:
        features: a [B, H, W, C] for each level, finest first, all with the same B and C; one alone takes all boxes.
        strides: their strides, each twice the one before: image pixels a feature pixel, powers of two.
        operation: "align", "pool" or "warp"; "pool" needs no sampling ratio, pool, aligned nor implementation.

    The other arguments, limits and errors are those of `roi_align`.

    Returns: [N, h, w, C] in the order of the boxes.
    """
    name = "multilevel_roi_align"
    size = sampling.check(name, features, boxes, box_indices, output_size)
    if operation not in OPERATIONS:
        raise ValueError(f"{name}: operation must be one of {', '.join(OPERATIONS)}, got {operation!r}")
    implementation = _check(name, sampling_ratio, pool, implementation, used=operation != "pool")
    min_level = round(math.log2(strides[0])) if strides and strides[0] >= 1 else 0
    if list(strides) != [2 ** (min_level + k) for k in range(len(features))]:
        raise ValueError(
            f"{name}: needs a stride for each of the {len(features)} feature maps, powers of two that double from "
            f"one to the next, got {list(strides)}"
        )
    boxes, box_indices = sampling.as_boxes(boxes, box_indices)
    levels = assign_levels(boxes, min_level, min_level + len(features) - 1) - min_level
    scales = [1 / stride for stride in strides]
    if implementation == "custom" and operation == "align":
        return _compiled(features, boxes, box_indices, levels, size, scales, sampling_ratio, aligned, pool)
    scaled = boxes * tf.gather(tf.constant(scales, tf.float32), levels)[:, None]
    if implementation == "custom" and operation == "warp":
        ones = [1.0] * len(scales)
        return _compiled(
            features, _warped_boxes(scaled), box_indices, levels, size, ones, sampling_ratio, True, pool
        )
    if operation == "pool":
        result = pooling.pool_levels(features, levels, scaled, box_indices, size)
    else:
        place = _warped(scaled) if operation == "warp" else _extent(scaled, aligned)
        result = _align(features, levels, place, box_indices, size, sampling_ratio, pool, implementation)
    return tf.cast(result, features[0].dtype)


def _check(name: str, sampling_ratio: int, pool: str, implementation: str, used: bool = True) -> str:
    """The implementation to use; where it is not `used`, the compiled one is not looked for."""
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"{name}: implementation must be one of {', '.join(IMPLEMENTATIONS)}, got {implementation!r}"
        )
    if pool not in POOLS:
        raise ValueError(f"{name}: pool must be one of {', '.join(POOLS)}, got {pool!r}")
    if not isinstance(sampling_ratio, int) or sampling_ratio < 0:
        raise ValueError(
            f"{name}: sampling_ratio must be a whole number of samples, or 0 for as many as a bin has pixels, "
            f"got {sampling_ratio!r}"
        )
    if implementation in ("crop_and_resize", "gather") or not used:
        return implementation
    return _choose(name, sampling_ratio, required=implementation == "custom")


def _choose(name: str, sampling_ratio: int, required: bool) -> str:
    """What "custom" (required) or "auto" stands for, here and now."""
    if _portable.get():
        return "crop_and_resize"
    if _under_xla():
        if required:
            raise ValueError(
                f'{name}: implementation="custom" does not work under XLA (jit_compile=True); use "auto" or "gather"'
            )
        return "gather"
    if sampling_ratio > MOST_SAMPLES:
        if required:
            raise ValueError(
                f'{name}: implementation="custom" takes at most {MOST_SAMPLES} samples, got sampling_ratio='
                f"{sampling_ratio}"
            )
        return "crop_and_resize"
    if required:
        try:
            library.get()
        except library.Unavailable as error:
            raise RuntimeError(
                f'{name}: implementation="custom" cannot be had: {error}. Use "auto" to do without; `keras-seg doctor` '
                "tells more"
            ) from error
        return "custom"
    return "custom" if library.usable() else "crop_and_resize"


def _under_xla() -> bool:
    """Whether a function is being traced that XLA will compile."""
    from tensorflow.python.ops import control_flow_util

    return not tf.executing_eagerly() and control_flow_util.GraphOrParentsInXlaContext(
        tf.compat.v1.get_default_graph()
    )


def _compiled(features: Sequence[tf.Tensor], boxes: tf.Tensor, *arguments: object) -> tf.Tensor:
    """`native.operation.roi_align`, which gives [N, h, w, C] of the features' dtype."""
    return operation.roi_align([tf.convert_to_tensor(level) for level in features], boxes, *arguments)


def _extent(boxes: tf.Tensor, aligned: bool) -> tuple[tf.Tensor, tf.Tensor]:
    """Where boxes [N, 4] in feature pixels start, and how far they go: float32 [N, 2] (y, x), pixel centres at i."""
    finite = tf.reduce_all(tf.abs(boxes) < sampling.FARTHEST, axis=1, keepdims=True)
    shifted = boxes - (0.5 if aligned else 0.0)
    start, end = shifted[:, 1::-1], shifted[:, :1:-1]
    extent = end - start if aligned else tf.maximum(end - start, 1)
    return tf.where(finite, start, sampling.OUTSIDE), tf.where(finite, extent, 0)


def _warped(boxes: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """As `_extent`, of the pixels that RoIPool rounds boxes to."""
    first, extent = pooling.quantise(boxes)
    return first - 0.5, extent


def _warped_boxes(boxes: tf.Tensor) -> tf.Tensor:
    """The whole pixels of `_warped` as boxes [N, 4] whose extent, taken as aligned, is the same."""
    first, extent = pooling.quantise(boxes)
    return tf.concat([first[:, ::-1], (first + extent)[:, ::-1]], 1)


@sampling.as_graph
def _align(
    features: Sequence[tf.Tensor],
    levels: tf.Tensor | None,
    place: tuple[tf.Tensor, tf.Tensor],
    box_indices: tf.Tensor,
    output_size: tuple[int, int],
    sampling_ratio: int,
    pool: str,
    implementation: str,
) -> tf.Tensor:
    """float32 [N, h, w, C]."""
    places = sampling.regions(features, levels, box_indices, place, output_size, sampling_ratio)

    def gathered(features: Sequence[tf.Tensor]) -> tf.Tensor:
        source = sampling.table(features)
        if sampling_ratio:
            return _by_samples(source, places, output_size, sampling_ratio, pool)
        return (_by_bins if pool == "max" else _by_windows)(source, places, output_size)

    @tf.custom_gradient
    def cropped(*features: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], list[tf.Tensor]]]:
        def gradient(upstream: tf.Tensor) -> list[tf.Tensor]:
            # Not crop_and_resize's own: on a processor its threads add to the same pixel without a lock, and sums
            # get lost.
            with tf.GradientTape() as tape:
                tape.watch(features)
                result = gathered(features)
            return tape.gradient(result, features, upstream)

        return _by_crop(features, levels, places, box_indices, output_size, pool), gradient

    return cropped(*features) if implementation == "crop_and_resize" else gathered(features)


# --- "gather", any ratio, average ---


def _by_windows(source: tf.Tensor, places: sampling.Regions, output_size: tuple[int, int]) -> tf.Tensor:
    """Each RoI's window of pixels times the mean weights of the samples, which separate into those of y and x."""
    channels = source.shape[-1]
    (first_y, count_y), (first_x, count_x) = _window(places.y), _window(places.x)

    def step(source: tf.Tensor, rois: tf.Tensor, key: tf.Tensor) -> tf.Tensor:
        here = places.take(rois)
        weights, indices = [], []
        for axis, first, count, bins in (
            (here.y, first_y, key // sampling.KEY, output_size[0]),
            (here.x, first_x, key % sampling.KEY, output_size[1]),
        ):
            taps = tf.gather(first, rois)[:, None] + tf.range(tf.cast(count, tf.float32))
            weights.append(_mean_weights(axis, taps, bins))
            # beyond the map a pixel has no weight
            indices.append(tf.cast(tf.minimum(taps, axis.length[:, None] - 1), tf.int32))
        return sampling.combine(sampling.pixels(source, here, *indices), *weights)

    chunks = sampling.chunks_by_key(
        count_y * sampling.KEY + count_x,
        lambda key: (
            tf.cast(key // sampling.KEY, tf.float32) * tf.cast(key % sampling.KEY * channels, tf.float32)
        ),
    )
    return sampling.in_chunks(source, step, chunks, [sampling.sizes(places.base)[0], *output_size, channels])


def _window(axis: sampling.Axis) -> tuple[tf.Tensor, tf.Tensor]:
    """The first pixel that the samples of a RoI read, float32 [N], and how many, int32 [N]."""
    half = sampling.divide(axis.bin, axis.ratio) / 2
    low, high = (
        tf.floor(tf.clip_by_value(position, 0.0, axis.length - 1))
        for position in (axis.start + half, axis.start + axis.size - half)
    )
    count = tf.cast(tf.minimum(high + 2, axis.length) - low, tf.int32)
    return low, WINDOW * tf.maximum(-(-count // WINDOW), 1)


def _mean_weights(axis: sampling.Axis, taps: tf.Tensor, bins: int) -> tf.Tensor:
    """What each pixel contributes to the mean of each bin's samples. taps: pixels, float32 [n, T]. [n, bins, T]."""
    start, _, size, ratio, length = (values[:, None, None, None] for values in axis)
    spacing = tf.where(ratio > 0, sampling.divide(size, ratio), 1)
    start += sampling.bin_numbers(bins)[:, None, None] * size
    taps = taps[:, None, :, None]
    # Samples are more than half a pixel apart (or the only one of their bin), so that at most 5 lie between a pixel's
    # two neighbours; one more guards against rounding.
    first = tf.math.ceil((taps - 1 - start) / spacing - 0.5) - 1
    number = tf.clip_by_value(first, 0.0, ratio) + sampling.bin_numbers(6)
    position = start + sampling.divide((number + 0.5) * size, ratio)
    counts = (number < ratio) & (position >= -1) & (position <= length)
    weight = tf.maximum(1 - tf.abs(tf.clip_by_value(position, 0.0, length - 1) - taps), 0)
    return tf.reduce_sum(tf.where(counts, weight, 0), -1) / tf.maximum(ratio[..., 0], 1)


# --- "gather", fixed ratio ---


def _by_samples(
    source: tf.Tensor,
    places: sampling.Regions,
    output_size: tuple[int, int],
    ratio: int,
    pool: str,
) -> tf.Tensor:
    """The four neighbours of each sample; all shapes are static where the number of boxes is."""
    (height, width), channels = output_size, source.shape[-1]
    number = sampling.sizes(places.base)[0]
    if isinstance(number, int) and number == 0:  # known while the graph is built
        return tf.zeros([0, height, width, channels])
    chunks, padded = sampling.chunks_of_equal_size(number, 4 * ratio**2 * height * width * channels)
    places = places.pad(padded)

    def step(source: tf.Tensor, rois: tf.Tensor, _: tf.Tensor) -> tf.Tensor:
        here = places.take(rois)
        weights, indices = [], []
        for axis, bins in zip(here[:2], output_size, strict=True):
            pairs, pair_weights = sampling.neighbours(axis, _positions(axis, bins, ratio))
            shape = [sampling.sizes(pairs)[0], 2 * ratio * bins]
            flat = tf.reshape(pair_weights, shape)
            mean = pool == "average"
            weights.append(
                sampling.spread(flat / ratio, bins) if mean else sampling.spread(flat, bins * ratio)
            )
            indices.append(tf.reshape(pairs, shape))
        values = sampling.combine(sampling.pixels(source, here, *indices), *weights)
        if pool == "average":
            return values
        values = sampling.first_maximum(tf.reshape(values, [-1, ratio, width * ratio * channels]))
        values = sampling.first_maximum(tf.reshape(values, [-1, ratio, channels]))
        return tf.reshape(values, [-1, height, width, channels])

    return sampling.in_chunks(source, step, chunks, [padded, height, width, channels])[:number]


def _positions(axis: sampling.Axis, bins: int, ratio: int) -> tf.Tensor:
    """Of all samples of a RoI. float32 [n, bins * ratio]."""
    start, _, size, number, _ = (values[:, None, None] for values in axis)
    start += sampling.bin_numbers(bins)[:, None] * size
    positions = start + sampling.divide((sampling.bin_numbers(ratio) + 0.5) * size, number)
    return tf.reshape(positions, [-1, bins * ratio])


# --- bin by bin: "crop_and_resize", and "gather" for the maximum of any ratio ---


def _by_bins(source: tf.Tensor, places: sampling.Regions, output_size: tuple[int, int]) -> tf.Tensor:
    y, x = (_span(axis, bins) for axis, bins in zip(places[:2], output_size, strict=True))

    def maximum(source: tf.Tensor, bins: sampling.Bins) -> tf.Tensor:
        here = places.take(bins.roi)
        weights, indices = [], []
        for axis, first, spacing, count in zip(here[:2], *bins[1:], strict=True):
            numbers = tf.range(tf.cast(count, tf.float32))
            pairs, pair_weights = sampling.neighbours(axis, first[:, None] + numbers * spacing[:, None])
            weights.append(sampling.spread(tf.reshape(pair_weights, [-1, 2 * count]), count))
            indices.append(tf.reshape(pairs, [-1, 2 * count]))
        values = sampling.combine(sampling.pixels(source, here, *indices), *weights)
        return _pooled(values, here, bins, "max")

    return sampling.in_bins(source, y, x, maximum, cost=4 * source.shape[-1])


def _by_crop(
    features: Sequence[tf.Tensor],
    levels: tf.Tensor | None,
    places: sampling.Regions,
    box_indices: tf.Tensor,
    output_size: tuple[int, int],
    pool: str,
) -> tf.Tensor:
    if levels is None:
        return _crop_level(features[0], places, box_indices, output_size, pool)
    members = [tf.where(levels == level)[:, 0] for level in range(len(features))]
    results = [
        _crop_level(level, places.take(rois), tf.gather(box_indices, rois), output_size, pool)
        for level, rois in zip(features, members, strict=True)
    ]
    order = tf.cast(tf.concat(members, 0), tf.int32)
    return tf.gather(tf.concat(results, 0), tf.math.invert_permutation(order))


def _crop_level(
    features: tf.Tensor,
    places: sampling.Regions,
    box_indices: tf.Tensor,
    output_size: tuple[int, int],
    pool: str,
) -> tf.Tensor:
    # The border is repeated once for the samples up to one pixel outside, and once more so that rounding moves none
    # of them out. Samples farther out are left out here, and counted in `_pooled`.
    border, channels = 2, features.shape[-1]
    padded = tf.cast(features, tf.float32)
    for axis in (1, 2):
        last = sampling.sizes(padded)[axis] - 1
        edges = tf.gather(padded, [0] * border, axis=axis), tf.gather(padded, [last] * border, axis=axis)
        padded = tf.concat([edges[0], padded, edges[1]], axis)
    y, x = (_span(axis, bins) for axis, bins in zip(places[:2], output_size, strict=True))

    def crop(source: tf.Tensor, bins: sampling.Bins) -> tf.Tensor:
        here = places.take(bins.roi)
        starts, ends = [], []
        for axis, first, spacing, count in zip(here[:2], *bins[1:], strict=True):
            scale = 1 / (axis.length + 2 * border - 1)
            last = first + tf.cast(count - 1, tf.float32) * spacing
            starts.append((first + border) * scale)
            ends.append((last + border) * scale)
        values = tf.image.crop_and_resize(
            source, tf.stack(starts + ends, 1), tf.gather(box_indices, bins.roi), tf.stack(bins.counts)
        )
        return _pooled(values, here, bins, pool)

    return sampling.in_bins(padded, y, x, crop, cost=channels)


def _span(axis: sampling.Axis, bins: int) -> sampling.Span:
    """Of every bin the samples that are not farther outside the map than one pixel."""
    start, _, size, ratio, length = (values[:, None] for values in axis)
    start += sampling.bin_numbers(bins) * size
    spacing = sampling.divide(size, ratio)
    divisor = tf.where(spacing == 0, 1e-30, spacing)

    def inside(number: tf.Tensor) -> tf.Tensor:
        position = start + sampling.divide((number + 0.5) * size, ratio)
        return (position >= -1) & (position <= length)

    edges = (-1 - start) / divisor - 0.5, (length - start) / divisor - 0.5
    first = tf.clip_by_value(tf.math.ceil(tf.minimum(*edges)), 0.0, ratio)
    last = tf.clip_by_value(tf.floor(tf.maximum(*edges)), -1.0, ratio - 1)
    # The quotient may be rounded across a sample that lies on the limit itself.
    first = tf.where((first > 0) & inside(first - 1), first - 1, tf.where(inside(first), first, first + 1))
    last = tf.where((last < ratio - 1) & inside(last + 1), last + 1, tf.where(inside(last), last, last - 1))
    count = tf.cast(tf.maximum(last - first + 1, 0), tf.int32)
    return sampling.Span(start + (first + 0.5) * spacing, spacing + tf.zeros_like(start), count)


def _pooled(values: tf.Tensor, here: sampling.Regions, bins: sampling.Bins, pool: str) -> tf.Tensor:
    """values: the samples that count, [n, y, x, C]; the others are 0. Returns [n, C]."""
    ratio = (here.y.ratio * here.x.ratio)[:, None]
    if pool == "average":
        return tf.reduce_sum(values, [1, 2]) / ratio
    maximum = sampling.first_maximum(tf.reshape(values, [sampling.sizes(values)[0], -1, values.shape[-1]]))
    some_are_0 = tf.cast(tf.reduce_prod(bins.counts), tf.float32) < ratio
    return tf.where(some_are_0, tf.maximum(maximum, 0), maximum)
