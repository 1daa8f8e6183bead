"""What feeds the training: `weight_map` against one distance transform a cell, and tiles per second of tf.data."""

from __future__ import annotations

import statistics
import time

import numpy as np
from scipy import ndimage

from keras_seg.data.sample import Sample
from keras_seg.data.tiles import tile_dataset
from keras_seg.losses import weight_map

SIDE, CELLS = 512, 200
TILES = ((256, 256), (572, 388))  # side of the input, side of the labels


def measure(rounds: int = 5, tiles: int = 40) -> dict:
    """{"weight_map": seconds of both and their ratio, "tiles": [{"tile", "output_tile", "per_second"}]}."""
    labels = cells()
    return {
        "weight_map": measure_weight_map(labels, rounds),
        "tiles": [measure_tiles(*sides, tiles, labels) for sides in TILES],
    }


def cells(side: int = SIDE, count: int = CELLS) -> np.ndarray:
    """A labelled image, int32 [side, side], with `count` cells: the parts of a plane nearest to random points,
    as far as they are within some pixels of them."""
    random = np.random.default_rng(0)
    seeds = np.zeros((side, side), np.int32)
    places = random.choice(side * side, count, replace=False)
    seeds.flat[places] = np.arange(1, count + 1)
    distance, (rows, columns) = ndimage.distance_transform_edt(seeds == 0, return_indices=True)
    return np.where(distance < side / np.sqrt(count) / 2, seeds[rows, columns], 0)


def direct_weight_map(labels: np.ndarray, w0: float = 10.0, sigma: float = 5.0) -> np.ndarray:
    """Equation 2 by one distance transform of the whole image a cell."""
    distances = [ndimage.distance_transform_edt(labels != cell) for cell in range(1, labels.max() + 1)]
    first, second = np.partition(np.stack(distances), 1, axis=0)[:2]
    counts = np.bincount((labels > 0).ravel())
    balance = labels.size / (2 * counts)
    return balance[(labels > 0).astype(int)] + w0 * np.exp(-((first + second) ** 2) / (2 * sigma**2))


def measure_weight_map(labels: np.ndarray, rounds: int) -> dict:
    ours, direct = [], []
    for _ in range(rounds):
        began = time.perf_counter()
        weights = weight_map(labels)
        ours.append(time.perf_counter() - began)
        began = time.perf_counter()
        expected = direct_weight_map(labels)
        direct.append(time.perf_counter() - began)
    if not np.array_equal(weights, expected.astype(np.float32)):
        raise RuntimeError(
            f"weight_map differs by {np.abs(weights - expected).max():.1e} from the direct computation"
        )
    ratio = statistics.median(b / a for a, b in zip(ours, direct, strict=True))
    return {"seconds": statistics.median(ours), "direct_seconds": statistics.median(direct), "ratio": ratio}


def measure_tiles(tile: int, output_tile: int, count: int, labels: np.ndarray) -> dict:
    """Tiles per second with all augmentations, from an image of the labels' size, after a first few."""
    image = np.random.default_rng(0).uniform(0, 255, (*labels.shape, 1)).astype(np.float32)
    sample = Sample("random", image, (labels > 0).astype(np.int32), weight_map(labels), labels)
    batches = iter(tile_dataset([sample], tile=tile, output_tile=output_tile))
    for _ in range(8):
        next(batches)
    began = time.perf_counter()
    for _ in range(count):
        next(batches)
    return {"tile": tile, "output_tile": output_tile, "per_second": count / (time.perf_counter() - began)}


def report(results: dict) -> str:
    """The figures as Markdown."""
    weights = results["weight_map"]
    tiles = "; ".join(
        f"{row['tile']} px (labels {row['output_tile']} px): {row['per_second']:.1f}"
        for row in results["tiles"]
    )
    return (
        f"`weight_map`, {CELLS} cells on {SIDE}x{SIDE}: {weights['seconds']:.3f} s; one distance transform a cell "
        f"{weights['direct_seconds']:.2f} s: {weights['ratio']:.1f}x, equal in every pixel.\n\n"
        f"Augmented tiles per second: {tiles}."
    )
