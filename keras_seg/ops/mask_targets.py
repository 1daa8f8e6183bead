"""What the mask head should predict for regions on objects, inside a training step.

Objects come as bitmaps in windows, or as polygons. Both give what `ops.masks` gives on the same object.

B images  G objects of an image  N regions  m cells a side of a target
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from keras_seg.ops import masks
from keras_seg.ops.roi_sampling import divide

__all__ = ["polygon_targets", "window_targets"]

LOOPS_AT_ONCE = 16  # regions whose targets are worked on at a time


def window_targets(
    pixels: tf.Tensor,
    windows: tf.Tensor,
    boxes: tf.Tensor,
    images: tf.Tensor,
    objects: tf.Tensor,
    size: tf.Tensor,
    m: int,
    convention: str = "detectron2",
) -> tf.Tensor:
    """The share of each cell that is inside the object's bitmap, float32 [N, m, m]: `masks.bitmask_targets_soft`.

    Args:
        pixels: uint8 or bool [B, L], the objects' bitmaps one after the other, row by row.
        windows: int [B, G, 5], of each object: where it starts in its image's `pixels`; y, x, height and width of the
            window of the image that it covers, in pixels. Outside it there is nothing of the object.
        boxes: float32 [N, 4], the regions, pixels.
        images, objects: int32 [N], each region's image and object; object -1 is none, and gives zeros.
        size: [B, 2], the images' true height and width.
        m: cells a side.
        convention: "detectron2", or "torchvision": see `masks.bitmask_targets_soft`.

    RoIAlign with as many samples a cell as it has pixels. Works in graph mode with any N; not under XLA. Memory is that
    of the weights, 4 * m bytes a pixel of a region's side, and of some windows. ValueError: another convention.
    """
    if convention not in masks.CONVENTIONS:
        raise ValueError(
            f"window_targets: convention must be one of {', '.join(map(repr, masks.CONVENTIONS))}, got {convention!r}"
        )
    length = tf.shape(pixels, tf.int64)[1]
    pixels = tf.reshape(tf.cast(pixels, tf.uint8), [-1])
    images, objects = tf.cast(images, tf.int32), tf.cast(objects, tf.int32)
    window = tf.gather_nd(windows, tf.stack([images, tf.maximum(objects, 0)], 1))
    window = tf.where((objects >= 0)[:, None], tf.cast(window, tf.int64), 0)
    offset, top, left, height, width = tf.unstack(window, axis=1)
    offset += tf.cast(images, tf.int64) * length
    sides = tf.cast(tf.gather(size, images), tf.float32)
    # On a processor, whatever computes the rest: this is a loop over small products.
    with tf.device("CPU:0"):
        rows, first_row, row_count, row_start = _cell_weights(
            boxes[:, 1], boxes[:, 3], sides[:, 0], top, height, m, convention
        )
        columns, first_column, column_count, column_start = _cell_weights(
            boxes[:, 0], boxes[:, 2], sides[:, 1], left, width, m, convention
        )
        start = offset + (first_row - top) * width

        def target(n: tf.Tensor) -> tf.Tensor:
            down, across = row_count[n], column_count[n]
            region = tf.reshape(tf.slice(pixels, [start[n]], [down * width[n]]), [down, width[n]])
            region = tf.slice(region, [0, first_column[n] - left[n]], [down, across])
            y = tf.reshape(tf.slice(rows, [row_start[n]], [m * down]), [m, down])
            x = tf.reshape(tf.slice(columns, [column_start[n]], [m * across]), [m, across])
            return tf.matmul(y @ tf.cast(region, tf.float32), x, transpose_b=True)

        return tf.map_fn(
            target,
            tf.range(tf.shape(boxes)[0]),
            fn_output_signature=tf.TensorSpec([m, m], tf.float32),
            parallel_iterations=1 if tf.executing_eagerly() else LOOPS_AT_ONCE,
        )


def polygon_targets(
    points: tf.Tensor,
    lengths: tf.Tensor,
    owners: tf.Tensor,
    boxes: tf.Tensor,
    images: tf.Tensor,
    objects: tf.Tensor,
    m: int,
) -> tf.Tensor:
    """The objects' polygons drawn in their regions, float32 [N, m, m] of 0 and 1: `masks.polygon_targets`.

    Args:
        points: float64 [B, V, 2], x and y of the points of all polygons of an image, one polygon after the other.
        lengths: int [B, Q], the number of points of each polygon; 0 after an image's last.
        owners: int [B, Q], the object of each polygon, from 0.
        boxes, images, objects, m: as in `window_targets`.

    Drawn by pycocotools in Python, so not in an exported graph. InvalidArgumentError (ValueError in eager code): a
    polygon of fewer than 3 points, or not finite.
    """

    def draw(
        points: np.ndarray,
        lengths: np.ndarray,
        owners: np.ndarray,
        boxes: np.ndarray,
        images: np.ndarray,
        objects: np.ndarray,
    ) -> np.ndarray:
        found: dict[tuple[int, int], list[np.ndarray]] = {}
        wanted = {
            (image, entry)
            for image, entry in zip(images.tolist(), objects.tolist(), strict=True)
            if entry >= 0
        }
        for image in {image for image, _ in wanted}:
            ends = np.cumsum(lengths[image])
            for end, count, owner in zip(ends, lengths[image], owners[image], strict=True):
                if count > 0 and (image, owner) in wanted:
                    found.setdefault((image, owner), []).append(points[image, end - count : end])
        instances = [found.get(key, []) for key in zip(images.tolist(), objects.tolist(), strict=True)]
        return masks.polygon_targets(instances, boxes, m).astype(np.float32)

    with tf.device("CPU:0"):
        targets = tf.numpy_function(draw, [points, lengths, owners, boxes, images, objects], tf.float32)
    return tf.ensure_shape(targets, [None, m, m])


def _cell_weights(
    low: tf.Tensor,
    high: tf.Tensor,
    length: tf.Tensor,
    origin: tf.Tensor,
    extent: tf.Tensor,
    cells: int,
    convention: str,
) -> tuple[tf.Tensor, ...]:
    """RoIAlign of N regions along one direction, as `masks._cell_averages` has it for one.

    low, high, length: float32 [N], of the regions and the images; origin, extent: int64 [N], of the windows. Returns the
    weights of a region's pixels, [cells, pixels] flattened, one region after the other; and int64 [N]: the first of its
    pixels, their number, and where its weights start. Only pixels in the window are among them.
    """
    offset = 0.5 if convention == "detectron2" else 0.0
    low, wide = low - offset, (high - offset) - (low - offset)
    if convention == "torchvision":
        wide = tf.maximum(wide, 1.0)
    sound = tf.math.is_finite(low) & tf.math.is_finite(wide) & (wide > 0)
    low, wide = tf.where(sound, low, 0), tf.where(sound, wide, 0)
    size = divide(wide, tf.cast(cells, tf.float32))
    samples = tf.math.ceil(size)
    # every sample of every region in one list
    number = tf.cast(samples, tf.int64) * cells
    region = tf.repeat(tf.range(tf.size(number, tf.int64)), number)
    within = tf.range(tf.size(region, tf.int64)) - tf.gather(tf.cumsum(number, exclusive=True), region)
    cell, sample = within // tf.gather(number // cells, region), within % tf.gather(number // cells, region)
    size_, samples_, length_ = (tf.gather(values, region) for values in (size, samples, length))
    position = tf.gather(low, region) + tf.cast(cell, tf.float32) * size_
    position += (tf.cast(sample, tf.float32) + 0.5) * size_ / samples_
    known = (position >= -1) & (position <= length_)
    position = tf.clip_by_value(position, 0.0, length_ - 1)
    left = tf.floor(position)
    share = position - left
    left = tf.cast(left, tf.int64)
    right = tf.minimum(left + 1, tf.cast(length_, tf.int64) - 1)
    # of the window's pixels those from a region's first sample to its last
    first = tf.math.segment_min(left, region)
    last = tf.math.segment_max(right, region)
    missing = tf.size(number, tf.int64) - tf.size(first, tf.int64)
    first, last = (tf.pad(values, [[0, missing]]) for values in (first, last))
    first = tf.maximum(first, origin)
    count = tf.maximum(tf.minimum(last + 1, origin + extent) - first, 0)
    count = tf.where(sound, count, 0)
    first = tf.where(count > 0, first, origin)
    start = tf.cumsum(count * cells, exclusive=True)
    places = []
    for pixel in (left, right):
        pixel -= tf.gather(first, region)
        inside = known & (pixel >= 0) & (pixel < tf.gather(count, region))
        place = tf.gather(start, region) + cell * tf.gather(count, region) + pixel
        places.append(tf.where(inside, place, -1))  # which the sum leaves out
    weights = tf.math.unsorted_segment_sum(
        tf.concat([1 - share, share], 0), tf.concat(places, 0), tf.reduce_sum(count) * cells
    )
    weights /= tf.repeat(tf.where(samples > 0, samples, 1), count * cells)
    return weights, first, count, start
