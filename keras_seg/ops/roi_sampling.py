"""What the RoI operations share: where samples lie, reading them from feature maps, and working in bounded memory.

N RoIs, h x w bins of an RoI, R pixels of all feature maps, C channels. Coordinates are in feature pixels with the
centre of pixel i at i.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import numpy as np
import tensorflow as tf

# Numbers that one step may hold beside inputs and result; 16 MB, little enough for a processor's outer cache.
BUDGET = 2**22
# A box with a coordinate beyond this (or NaN) is taken as lying OUTSIDE, where no sample counts.
FARTHEST, OUTSIDE = 1e9, -10.0
# A pair of counts (y, x) is one number: y * KEY + x.
KEY = 2**15


_gradients: ContextVar[bool] = ContextVar("gradients", default=True)


@contextmanager
def without_gradients() -> Iterator[None]:
    """Inside, graphs are traced for inference: a SavedModel would keep a graph of each gradient too. Holds for the present
    thread."""
    token = _gradients.set(False)
    try:
        yield
    finally:
        _gradients.reset(token)


def own_gradient(function: Callable) -> Callable:
    """`tf.custom_gradient`; inside `without_gradients`, what the function gives first."""
    differentiable = tf.custom_gradient(function)

    @functools.wraps(function)
    def call(*arguments: tf.Tensor) -> tf.Tensor:
        return differentiable(*arguments) if _gradients.get() else function(*arguments)[0]

    return call


class Axis(NamedTuple):
    """RoIs along one axis of their feature maps; float32 [N] each."""

    start: tf.Tensor
    size: tf.Tensor  # not positive: no extent, or inverted
    bin: tf.Tensor  # length of a bin
    ratio: tf.Tensor  # samples a bin, a whole number
    length: tf.Tensor  # pixels of the feature map


class Regions(NamedTuple):
    """RoIs and where their feature maps lie in a table of pixels."""

    y: Axis
    x: Axis
    base: tf.Tensor  # int32 [N]: the table's row of pixel (0, 0)

    def take(self, rows: tf.Tensor) -> Regions:
        return tf.nest.map_structure(lambda values: tf.gather(values, rows), self)

    def pad(self, number: int | tf.Tensor) -> Regions:
        """The same RoIs and, up to that number, others that lie outside of their map."""
        surplus = [[0, number - sizes(self.base)[0]]]
        y, x = (
            Axis(
                tf.pad(axis.start, surplus, constant_values=OUTSIDE),
                tf.pad(axis.size, surplus),
                tf.pad(axis.bin, surplus),
                tf.pad(axis.ratio, surplus),
                tf.pad(axis.length, surplus, constant_values=1.0),
            )
            for axis in (self.y, self.x)
        )
        return Regions(y, x, tf.pad(self.base, surplus))


class Span(NamedTuple):
    """The samples of every bin along one axis that count; [N, h] each, float32 but for count."""

    first: tf.Tensor  # position of the first of them
    spacing: tf.Tensor
    count: tf.Tensor  # int32


class Bins(NamedTuple):
    """Some bins with `counts` samples along y and x each."""

    roi: tf.Tensor  # int32 [n]
    first: tuple[tf.Tensor, tf.Tensor]  # of each axis the position of the first sample, float32 [n]
    spacing: tuple[tf.Tensor, tf.Tensor]
    counts: tuple[tf.Tensor, tf.Tensor]  # int32 scalars


class Chunks(NamedTuple):
    """A division of N items into steps: step i is about `rows(i)` int32 [n], which share the number `key(i)`."""

    count: int | tf.Tensor  # type: ignore[assignment]  # a named tuple's count() is not used
    rows: Callable[[tf.Tensor], tf.Tensor]
    key: Callable[[tf.Tensor], tf.Tensor]


# Takes a source of features, the rows of a step and their key; returns float32 [n, ...].
Step = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]


def table(features: Sequence[tf.Tensor]) -> tf.Tensor:
    """The pixels of feature maps [B, H, W, C], one map after the other: [R, C]."""
    flat = [tf.reshape(level, [-1, level.shape[-1]]) for level in features]
    return flat[0] if len(flat) == 1 else tf.concat(flat, 0)


def regions(
    features: Sequence[tf.Tensor],
    levels: tf.Tensor | None,
    box_indices: tf.Tensor,
    place: tuple[tf.Tensor, tf.Tensor],
    output_size: tuple[int, int],
    sampling_ratio: int = 0,
) -> Regions:
    """RoIs in `table(features)`.

    levels: int32 [N], of each RoI its place in `features`; None for a single map. box_indices: int32 [N].
    place: where each RoI starts, and its size: float32 [N, 2] as (y, x).
    """
    shapes = tf.stack([tf.shape(level)[:3] for level in features])  # [levels, 3]
    pixels = tf.reduce_prod(shapes, axis=1)
    if levels is None:
        levels = tf.zeros_like(box_indices)
    extent = tf.gather(shapes, levels)[:, 1:]
    base = tf.gather(tf.cumsum(pixels, exclusive=True), levels) + box_indices * extent[:, 0] * extent[:, 1]
    length = tf.cast(extent, tf.float32)
    start, size = place
    bins = divide(size, tf.constant(output_size, tf.float32))
    ratio = (
        tf.ones_like(bins) * float(sampling_ratio) if sampling_ratio else tf.maximum(tf.math.ceil(bins), 0)
    )
    y, x = (Axis(*(values[:, a] for values in (start, size, bins, ratio, length))) for a in range(2))
    return Regions(y, x, base)


def in_chunks(source: tf.Tensor, step: Step, chunks: Chunks, shape: Sequence[int | tf.Tensor]) -> tf.Tensor:
    """Every step's result, written to its rows of a float32 tensor of that shape, which is zero elsewhere.

    The gradient goes to `source` and repeats the steps, so that nothing of theirs is kept for it.
    """

    @own_gradient
    def run(source: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
        def forward(i: tf.Tensor, result: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            rows = chunks.rows(i)
            values = step(source, rows, chunks.key(i))
            return i + 1, tf.tensor_scatter_nd_update(result, rows[:, None], values)

        def gradient(upstream: tf.Tensor) -> tf.Tensor:
            def backward(i: tf.Tensor, total: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
                rows = chunks.rows(i)
                with tf.GradientTape(watch_accessed_variables=False) as tape:
                    tape.watch(source)
                    values = step(source, rows, chunks.key(i))
                return i + 1, _add(total, tape.gradient(values, source, tf.gather(upstream, rows)))

            total = tf.zeros(tf.shape(source), tf.float32)
            return tf.cast(_loop(backward, chunks.count, total), source.dtype)

        return _loop(forward, chunks.count, tf.zeros(shape, tf.float32)), gradient

    return run(source)


def _loop(body: Callable, count: int | tf.Tensor, value: tf.Tensor) -> tf.Tensor:
    """`value` after `count` rounds of body(i, value)."""
    shapes = (tf.TensorShape([]), value.shape)
    return tf.while_loop(
        lambda i, _: i < count, body, (tf.constant(0), value), shapes, parallel_iterations=2,
        maximum_iterations=count,
    )[1]  # fmt: skip


def _add(total: tf.Tensor, gradient: tf.Tensor | tf.IndexedSlices) -> tf.Tensor:
    if isinstance(gradient, tf.IndexedSlices):
        values = tf.cast(gradient.values, tf.float32)
        return tf.tensor_scatter_nd_add(total, gradient.indices[:, None], values)
    return total + tf.cast(gradient, tf.float32)


def chunks_of_equal_size(number: int | tf.Tensor, cost: int) -> tuple[Chunks, int | tf.Tensor]:
    """Steps over consecutive items that hold `cost` numbers each; and how many items those are, not below `number`.

    Shapes are static where `number` is an integer.
    """
    count = -(-number // max(1, BUDGET // cost))
    size = -(-number // (max(1, count) if isinstance(number, int) else tf.maximum(1, count)))
    return Chunks(count, lambda i: i * size + tf.range(size), lambda i: i), count * size


def chunks_by_key(keys: tf.Tensor, cost: Callable[[tf.Tensor], tf.Tensor]) -> Chunks:
    """Steps over items with equal keys. keys: int32 [N]; items with key 0 are left out.

    cost: of keys, int32 [K], the numbers that one item holds, float32 [K].
    """
    order = tf.argsort(keys)
    order = order[tf.math.count_nonzero(keys < 1, dtype=tf.int32) :]
    distinct, _, numbers = tf.unique_with_counts(tf.gather(keys, order))
    most = tf.cast(tf.clip_by_value(BUDGET / cost(distinct), 1.0, 2.0**30), tf.int32)
    pieces = -(-numbers // most)
    group = tf.repeat(tf.range(tf.size(distinct)), pieces)
    piece = tf.range(tf.size(group)) - tf.gather(tf.cumsum(pieces, exclusive=True), group)
    start = tf.gather(tf.cumsum(numbers, exclusive=True), group) + piece * tf.gather(most, group)
    stop = tf.minimum(start + tf.gather(most, group), tf.gather(tf.cumsum(numbers), group))
    return Chunks(
        tf.size(group), lambda i: order[start[i] : stop[i]], lambda i: tf.gather(distinct, group[i])
    )  # fmt: skip


def in_bins(
    source: tf.Tensor,
    y: Span,
    x: Span,
    step: Callable[[tf.Tensor, Bins], tf.Tensor],
    cost: int,
) -> tf.Tensor:
    """Every bin's result, [N, h, w, C]; 0 for bins without a sample.

    step: takes the source and bins with equal counts, returns float32 [n, C]. cost: the numbers that it holds for
    each sample.
    """
    (rois, height), width = sizes(y.count), sizes(x.count)[1]
    keys = y.count[:, :, None] * KEY + x.count[:, None]
    keys = tf.where((y.count[:, :, None] > 0) & (x.count[:, None] > 0), keys, 0)

    def of_bins(source: tf.Tensor, bins: tf.Tensor, key: tf.Tensor) -> tf.Tensor:
        roi = bins // (height * width)
        spans = (y, bins // width), (x, roi * width + bins % width)
        first, spacing = (
            tuple(tf.gather(tf.reshape(span[field], [-1]), places) for span, places in spans)
            for field in (0, 1)
        )
        return step(source, Bins(roi, first, spacing, (key // KEY, key % KEY)))

    chunks = chunks_by_key(
        tf.reshape(keys, [-1]),
        lambda key: tf.cast(key // KEY, tf.float32) * tf.cast(key % KEY * cost, tf.float32),
    )
    flat = in_chunks(source, of_bins, chunks, [rois * height * width, source.shape[-1]])
    return tf.reshape(flat, [rois, height, width, source.shape[-1]])


def pixels(source: tf.Tensor, places: Regions, rows: tf.Tensor, columns: tf.Tensor) -> tf.Tensor:
    """Pixels of each RoI's feature map. source: [R, C]; rows, columns: int32 [n, Y], [n, X]. float32 [n, Y, X, C]."""
    width = tf.cast(places.x.length, tf.int32)[:, None]
    lines = places.base[:, None] + rows * width
    return tf.cast(tf.gather(source, lines[:, :, None] + columns[:, None]), tf.float32)


def combine(values: tf.Tensor, over_y: tf.Tensor, over_x: tf.Tensor) -> tf.Tensor:
    """Weighted sums along both axes. values: [n, Y, X, C]; over_y: [n, h, Y]; over_x: [n, w, X]. [n, h, w, C]."""
    n, y, x, channels = sizes(values)
    rows = tf.matmul(over_y, tf.reshape(values, [n, y, x * channels]))
    return tf.matmul(over_x[:, None], tf.reshape(rows, [n, sizes(over_y)[1], x, channels]))


def sizes(values: tf.Tensor) -> list[int | tf.Tensor]:
    """Of every axis its size, an integer where it is known."""
    dynamic = tf.shape(values)
    return [dynamic[axis] if size is None else size for axis, size in enumerate(values.shape)]


def neighbours(axis: Axis, positions: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The two pixels that a sample lies between, and their weights. positions: [n, S]. int32, float32 [n, S, 2].

    A sample up to one pixel outside counts as on the border; beyond, its weights are 0.
    """
    last = axis.length[:, None] - 1
    inside = tf.cast((positions >= -1) & (positions <= axis.length[:, None]), tf.float32)
    clamped = tf.clip_by_value(positions, 0.0, last)
    low = tf.floor(clamped)
    upper = clamped - low
    pair = tf.cast(tf.stack([low, tf.minimum(low + 1, last)], -1), tf.int32)
    return pair, tf.stack([1 - upper, upper], -1) * inside[..., None]


def spread(weights: tf.Tensor, groups: int | tf.Tensor) -> tf.Tensor:
    """Weights [n, T] as rows of a matrix [n, groups, T]: row g holds the g-th part of them, and 0 elsewhere."""
    terms = sizes(weights)[1]
    owner = tf.range(terms) // (terms // groups)
    return weights[:, None] * tf.cast(tf.range(groups)[:, None] == owner, tf.float32)


@own_gradient
def first_maximum(values: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
    """The maximum over axis 1 of [n, T, C]; the gradient goes to the first value that reaches it."""

    def gradient(upstream: tf.Tensor) -> tf.Tensor:
        return tf.one_hot(tf.argmax(values, axis=1), tf.shape(values)[1], axis=1) * upstream[:, None]

    return tf.reduce_max(values, axis=1), gradient


def as_graph(function: Callable) -> Callable:
    """function(features, …), features as tensors; calls from eager code run as a graph, whose loops work in place."""

    def traced(features: Sequence[tf.Tensor], channels: int, *arguments: object) -> tf.Tensor:
        for level in features:  # whose shapes `reduce_retracing` forgets
            level.set_shape([None, None, None, channels])
        return function(features, *arguments)

    compiled = tf.function(traced, autograph=False, reduce_retracing=True)

    @functools.wraps(function)
    def call(features: Sequence[tf.Tensor], *arguments: object) -> tf.Tensor:
        features = [tf.convert_to_tensor(level) for level in features]
        if tf.executing_eagerly():
            return compiled(features, features[0].shape[-1], *arguments)
        return function(features, *arguments)

    return call


def divide(values: tf.Tensor, divisor: tf.Tensor) -> tf.Tensor:
    """The quotient, rounded once; 0 where the divisor is 0.

    TensorFlow's optimizer turns `/` by a constant into a product with the rounded reciprocal, which may move a whole
    quotient off its integer: a bin of 3 pixels would get 4 samples.
    """
    return tf.math.divide_no_nan(values, divisor)


def bin_numbers(bins: int) -> np.ndarray:
    """0, 1, …: float32 [bins]."""
    return np.arange(bins, dtype=np.float32)


def check(
    name: str,
    features: Sequence[tf.Tensor],
    boxes: tf.Tensor,
    box_indices: tf.Tensor,
    output_size: int | tuple[int, int],
) -> tuple[int, int]:
    """The bins of a box, (height, width); ValueError for what the caller `name` cannot work with."""
    if not features:
        raise ValueError(f"{name}: needs at least one feature map")
    for level in features:
        shape = getattr(level, "shape", None)
        if shape is None or len(shape) != 4 or shape[-1] is None or 0 in shape[1:]:
            raise ValueError(
                f"{name}: features must be [B, H, W, C] with a known number of channels and no empty axis, got {shape}"
            )
        if not tf.as_dtype(level.dtype).is_floating or shape[-1] != features[0].shape[-1]:
            raise ValueError(
                f"{name}: features must be floating point with the same channels on all levels, got "
                f"{shape[-1]} channels of {tf.as_dtype(level.dtype).name}"
            )
    for argument, value, shape in (("boxes", boxes, [None, 4]), ("box_indices", box_indices, [None])):
        found = tf.TensorShape(getattr(value, "shape", np.shape(value)))
        if found.rank is None or not found.is_compatible_with(shape):
            raise ValueError(f"{name}: {argument} must be [N{', 4' * (len(shape) - 1)}], got {found}")
    numbers = [getattr(value, "shape", np.shape(value))[0] for value in (boxes, box_indices)]
    if None not in numbers and numbers[0] != numbers[1]:
        raise ValueError(
            f"{name}: {numbers[0]} boxes and {numbers[1]} box_indices, but each box needs its own"
        )
    size = (output_size, output_size) if isinstance(output_size, int) else tuple(output_size)
    if len(size) != 2 or not all(isinstance(bins, int) and bins >= 1 for bins in size):
        raise ValueError(
            f"{name}: output_size must be a positive number of bins or a (height, width) of them, got {output_size!r}"
        )
    return size


def check_scale(name: str, spatial_scale: float) -> float:
    if not 0 < spatial_scale < float("inf"):
        raise ValueError(
            f"{name}: spatial_scale must be positive, 1 / stride of the features, got {spatial_scale!r}"
        )
    return spatial_scale


def to_float32(boxes: tf.Tensor) -> tf.Tensor:
    """Boxes without a gradient."""
    return tf.stop_gradient(tf.cast(boxes, tf.float32))


def as_boxes(boxes: tf.Tensor, box_indices: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """float32 [N, 4], int32 [N]."""
    return to_float32(boxes), tf.cast(box_indices, tf.int32)
