"""The compiled RoIAlign as a function with a gradient."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from keras_seg.ops.native import library


def roi_align(
    features: Sequence[tf.Tensor],
    boxes: tf.Tensor,
    box_indices: tf.Tensor,
    levels: tf.Tensor | None,
    output_size: tuple[int, int],
    scales: Sequence[float],
    sampling_ratio: int,
    aligned: bool,
    pool: str,
) -> tf.Tensor:
    """`ops.roi_align` of each box on its level; the arguments must be checked, but for values in tensors.

    Args:
        features: a [B, H, W, C] for each level, float32, bfloat16 or float16; float64 is computed in float32.
        boxes: float32 [N, 4], image pixels. box_indices: int32 [N].
        levels: int32 [N], each box's place in `features`; None: all 0.
        scales: feature pixels an image pixel, of each level.

    Returns: [N, h, w, C] of the features' dtype.

    Raises:
        library.Unavailable: there is no compiled operation; says why.
        tf.errors.InvalidArgumentError: a box's image or level does not exist (on a processor; on a GPU such a box
            gives NaN), or more than 4096 samples a bin.
    """
    operations = library.get().operations
    dtype = features[0].dtype
    if dtype == tf.float64:
        features = [tf.cast(level, tf.float32) for level in features]
    pooled = operations.keras_seg_roi_align(
        features=features,
        boxes=boxes,
        box_indices=box_indices,
        box_levels=tf.zeros_like(box_indices) if levels is None else levels,
        scales=list(scales),
        output_height=output_size[0],
        output_width=output_size[1],
        sampling_ratio=sampling_ratio,
        aligned=aligned,
        pool=pool,
        deterministic=_deterministic(),
    )
    return tf.cast(pooled, dtype)


def _deterministic() -> bool:
    """A processor's gradient is the same in each run anyway; a GPU's is slower so."""
    from tensorflow.python.framework import config

    return config.is_op_determinism_enabled()


ATTRIBUTES = (
    "scales", "output_height", "output_width", "sampling_ratio", "aligned", "pool", "deterministic",
)  # fmt: skip


@tf.RegisterGradient("KerasSegRoiAlign")
def _gradient(operation: tf.Operation, upstream: tf.Tensor) -> list[tf.Tensor | None]:
    count = operation.get_attr("levels")
    boxes, box_indices, box_levels = operation.inputs[count:]
    gradients = library.get().operations.keras_seg_roi_align_grad(
        features=list(operation.inputs[:count]),
        boxes=boxes,
        box_indices=box_indices,
        box_levels=box_levels,
        upstream=upstream,
        **{name: operation.get_attr(name) for name in ATTRIBUTES},
    )
    return [*gradients, None, None, None]
