"""From annotated images to batches of augmented tiles."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from keras_seg.data.augment import (
    NO_AUGMENTATION,
    Augmentation,
    random_coordinates,
    sample_bicubic,
    sample_nearest,
    vary_grey_values,
)
from keras_seg.data.sample import Sample


def tile_dataset(
    samples: Sequence[Sample],
    *,
    tile: int,
    output_tile: int | None = None,
    batch_size: int = 1,
    augment: Augmentation | bool = True,
    seed: int = 0,
    start: int = 0,
    repeat: bool = True,
    shard: tuple[int, int] = (0, 1),
    parallel: int | None = None,
) -> tf.data.Dataset:
    """Batches of tiles, each from a random place of a random image, ready for `UNet.fit`.

    Every pass goes through the images once, in a new order. Tile number n depends on `seed` and n alone, so `start`
    resumes a run exactly, and parallel work changes nothing.

    Args:
        samples: annotated images; all with the same number of channels.
        tile: side of the network's input, pixels.
        output_tile: side of its output (388 for 572 with valid convolutions); labels and weights are the centre of
            that size. None: the same as `tile`.
        batch_size: tiles a batch.
        augment: an `Augmentation`; True for its defaults, False for none (centred tiles).
        seed: of everything random.
        start: number of batches to leave out at the start.
        repeat: False ends after one pass; the last batch may then be smaller.
        shard: (number, how many) of this host: of `how many` batches that follow each other, the one it gets. Together the
            hosts have the batches of one host with a `batch_size` so many times as large.
        parallel: threads that make tiles; None lets tf.data choose.

    Returns: dictionaries of "image" float32 [B, tile, tile, C], 0-255, "label" int32 [B, o, o], -1 = ignore,
    "weight" float32 [B, o, o] and "sample" int32 [B], the index in `samples` of the image that a tile is taken from.

    Raises:
        ValueError: for no samples, unequal channels, an image smaller than half a tile, or an illegal tile.
    """
    output_tile = tile if output_tile is None else output_tile
    options = augment if isinstance(augment, Augmentation) else Augmentation() if augment else NO_AUGMENTATION
    channels = _check(samples, tile, output_tile, batch_size, shard)
    host, hosts = shard
    margin = (tile - output_tile) // 2

    def load(index: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        sample = samples[int(index)]
        return sample.image, sample.label, sample.weight

    def make(n: tf.Tensor) -> dict[str, tf.Tensor]:
        number = (n // batch_size * hosts + host) * batch_size + n % batch_size
        epoch, place = number // len(samples), number % len(samples)
        order = tf.random.experimental.stateless_shuffle(tf.range(len(samples)), seed=tf.stack([seed, epoch]))
        image, label, weight = tf.numpy_function(
            load, [order[place]], (tf.float32, tf.int32, tf.float32), stateful=False
        )
        image, label, weight = (
            tf.ensure_shape(image, (None, None, channels)),
            tf.ensure_shape(label, (None, None)),
            tf.ensure_shape(weight, (None, None)),
        )
        geometry, grey = tf.unstack(
            tf.random.experimental.stateless_split(tf.stack([seed + 1, number]), 2), axis=0
        )
        height, width = tf.shape(label)[0], tf.shape(label)[1]
        coordinates = random_coordinates(height, width, tile, geometry, options)
        inner = coordinates[margin : margin + output_tile, margin : margin + output_tile]
        sample_image = sample_bicubic if options.interpolation == "bicubic" else sample_nearest
        return {
            "image": vary_grey_values(sample_image(image, coordinates), grey, options),
            "label": sample_nearest(label, inner),
            "weight": sample_nearest(weight, inner),
            "sample": order[place],
        }

    whole, rest = divmod(len(samples), batch_size * hosts)
    once = whole * batch_size + int(np.clip(rest - host * batch_size, 0, batch_size))
    stop = np.iinfo(np.int64).max if repeat else once
    dataset = tf.data.Dataset.range(start * batch_size, stop)
    dataset = dataset.map(make, num_parallel_calls=parallel or tf.data.AUTOTUNE, deterministic=True)
    return dataset.batch(batch_size, drop_remainder=repeat).prefetch(2)


def _check(
    samples: Sequence[Sample], tile: int, output_tile: int, batch_size: int, shard: tuple[int, int]
) -> int:
    """The number of channels, after the checks."""
    if not len(samples):
        raise ValueError("tile_dataset: no samples")
    if batch_size < 1 or tile < 1:
        raise ValueError(f"tile_dataset: batch_size and tile must be positive, got {batch_size} and {tile}")
    if not 0 <= shard[0] < shard[1]:
        raise ValueError(
            f"tile_dataset: shard must be (number, how many) with 0 <= number < how many, got {tuple(shard)}"
        )
    if not 0 < output_tile <= tile or (tile - output_tile) % 2:
        raise ValueError(
            f"tile_dataset: output_tile must be at most tile and differ from it by an even number of pixels, "
            f"got {output_tile} and {tile}"
        )
    channels = samples[0].image.shape[2]
    for sample in samples:
        height, width, own = sample.image.shape
        if own != channels:
            raise ValueError(f"{sample.name}: {own} channels, but {samples[0].name} has {channels}")
        if min(height, width) < output_tile:
            raise ValueError(
                f"{sample.name}: {height}x{width} pixels, smaller than the labelled part of a tile "
                f"({output_tile}x{output_tile}); choose a smaller tile"
            )
    return channels
