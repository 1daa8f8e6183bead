"""RoIAlign on TensorFlow's own operations: "gather" and "crop_and_resize" (`roi_align` says what each is for).

N RoIs, h x w bins of an RoI, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tensorflow as tf

from keras_seg.ops import roi_sampling as sampling

# Windows of pixels are rounded up to multiples of this, so that many RoIs share a size.
WINDOW = 4


@sampling.as_graph
def align(
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

    @sampling.own_gradient
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
