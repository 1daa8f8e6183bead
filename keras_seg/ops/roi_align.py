"""RoIAlign (He et al. 2017, Section 3), RoIWarp, and their use on the levels of a feature pyramid.

N boxes, h x w bins of a box, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import tensorflow as tf

from keras_seg.ops import roi_implementations as implementations
from keras_seg.ops import roi_pool as pooling
from keras_seg.ops import roi_sampling as sampling
from keras_seg.ops.native import library, operation
from keras_seg.ops.roi_pool import roi_pool

__all__ = ["assign_levels", "multilevel_roi_align", "portable", "roi_align", "roi_pool", "roi_warp"]

IMPLEMENTATIONS = ("auto", "crop_and_resize", "custom", "gather")
POOLS = ("average", "max")
OPERATIONS = ("align", "pool", "warp")
MOST_SAMPLES = 4096  # a bin and axis, of the compiled operation


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
    result = implementations.align(
        [features], None, place, box_indices, size, sampling_ratio, pool, implementation
    )
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
    result = implementations.align(
        [features], None, place, box_indices, size, sampling_ratio, pool, implementation
    )
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
        result = implementations.align(
            features, levels, place, box_indices, size, sampling_ratio, pool, implementation
        )
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


def _compiled(features: Sequence[tf.Tensor], boxes: tf.Tensor, *arguments: Any) -> tf.Tensor:
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
