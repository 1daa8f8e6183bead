"""Random deformations of a training tile, as TensorFlow operations: one resampling for all the geometry.

Everything is drawn from stateless generators, so a tile depends on its seed alone (Ronneberger et al. 2015, Section
3.1: shift, rotation, elastic deformation, grey values).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import tensorflow as tf

# Keys' cubic kernel parameter, the one usually called "bicubic" (Keys 1981).
KEYS_A = -0.5


@dataclass(frozen=True)
class Augmentation:
    """What is varied from tile to tile. The defaults are the paper's, where it gives a number.

    elastic_sigma: standard deviation, in pixels, of the displacements of the 3x3 grid; 0 turns it off.
    elastic_grid: nodes of the grid along a side.
    rotation: by "any" angle; by "right_angles", which interpolate nothing; "none".
    flips: mirror with probability 1/2.
    shift: take the tile from a random place, mirrored borders included; otherwise from the centre.
    scale: zoom by a factor drawn log-uniformly between 1 / (1 + scale) and 1 + scale.
    brightness: grey values move by up to this many of 255.
    contrast: contrast changes by a factor between 1 - contrast and 1 + contrast, around the tile's mean.
    gamma: the image is raised to a power between 1 / (1 + gamma) and 1 + gamma, on a 0-1 scale.
    noise: standard deviation of the Gaussian noise, in grey values, drawn between 0 and this.
    interpolation: of the image, "bicubic"; or "nearest", which moves pixels by up to half a pixel but keeps the
        noise of the microscope as it is, where interpolation smooths it and later images look unlike those
        trained on. Labels and weights are always the nearest.
    """

    elastic_sigma: float = 10.0
    elastic_grid: int = 3
    rotation: Literal["any", "right_angles", "none"] = "any"
    flips: bool = True
    shift: bool = True
    scale: float = 0.0
    brightness: float = 20.0
    contrast: float = 0.2
    gamma: float = 0.0
    noise: float = 0.0
    interpolation: Literal["bicubic", "nearest"] = "bicubic"


NO_AUGMENTATION = Augmentation(0.0, 3, "none", False, False, 0.0, 0.0, 0.0, 0.0, 0.0)


def elastic_displacement(nodes: tf.Tensor, size: int) -> tf.Tensor:
    """Bicubic interpolation of a coarse grid of displacements to every pixel of a tile (Section 3.1).

    nodes: float32 [g, g, 2], displacements in pixels (y, x); the outer nodes lie on the tile's corner pixels.
    Returns float32 [size, size, 2].
    """
    basis = tf.constant(_bicubic_basis(nodes.shape[0], size))
    return tf.einsum("yi,ijc,xj->yxc", basis, nodes, basis)


def random_coordinates(
    height: tf.Tensor, width: tf.Tensor, size: int, seed: tf.Tensor, options: Augmentation
) -> tf.Tensor:
    """Where in an image [height, width] each pixel of a random tile is taken from.

    Returns float32 [size, size, 2], pixel coordinates (y, x); those beyond the image mean its mirrored continuation.
    """
    seeds = tf.unstack(tf.random.experimental.stateless_split(seed, 5), axis=0)
    steps = tf.range(size, dtype=tf.float32) - (size - 1) / 2
    offsets = tf.stack(tf.meshgrid(steps, steps, indexing="ij"), axis=-1)
    if options.elastic_sigma > 0:
        shape = (options.elastic_grid, options.elastic_grid, 2)
        nodes = tf.random.stateless_normal(shape, seeds[0], stddev=options.elastic_sigma)
        offsets += elastic_displacement(nodes, size)
    if options.flips:
        mirror = tf.cast(tf.random.stateless_uniform((), seeds[1]) < 0.5, tf.float32)
        offsets *= tf.stack([1.0, 1 - 2 * mirror])
    if options.rotation != "none":
        if options.rotation == "right_angles":
            # whole numbers, where the cosine of a rounded pi/2 would move every pixel by a little
            turn = tf.random.stateless_uniform((), seeds[2], 0, 4, tf.int32)
            cos, sin = (tf.cast(tf.gather(c, turn), tf.float32) for c in ([1, 0, -1, 0], [0, 1, 0, -1]))
        else:
            angle = tf.random.stateless_uniform((), seeds[2], 0, 2 * np.pi)
            cos, sin = tf.cos(angle), tf.sin(angle)
        offsets = tf.linalg.matvec(tf.stack([tf.stack([cos, -sin]), tf.stack([sin, cos])]), offsets)
    if options.scale > 0:
        limit = np.log1p(options.scale)
        offsets *= tf.exp(tf.random.stateless_uniform((), seeds[3], -limit, limit))
    sides = tf.cast(tf.stack([height, width]), tf.float32)
    centre = (sides - 1) * (tf.random.stateless_uniform((2,), seeds[4]) if options.shift else 0.5)
    # on whole pixels, so that a tile which is only shifted is not blurred
    centre = tf.floor(centre) + (0.5 if size % 2 == 0 else 0.0)
    return offsets + centre


def sample_nearest(image: tf.Tensor, coordinates: tf.Tensor) -> tf.Tensor:
    """The nearest pixel at each coordinate, borders mirrored: labels stay labels. [H, W, …] to [h, w, …]."""
    height, width = tf.shape(image)[0], tf.shape(image)[1]
    nearest = tf.cast(tf.round(coordinates), tf.int32)
    y, x = _mirror(nearest[..., 0], height), _mirror(nearest[..., 1], width)
    flat = tf.reshape(image, tf.concat([[height * width], tf.shape(image)[2:]], 0))
    return tf.gather(flat, y * width + x)


def sample_bicubic(image: tf.Tensor, coordinates: tf.Tensor) -> tf.Tensor:
    """Bicubic interpolation (Keys 1981, a = -1/2) at each coordinate, borders mirrored.

    image: float32 [H, W, C]; coordinates: float32 [h, w, 2] (y, x). Returns float32 [h, w, C]. On whole-pixel
    coordinates it returns the pixels themselves.
    """
    height, width = tf.shape(image)[0], tf.shape(image)[1]
    flat = tf.reshape(image, [height * width, image.shape[2]])
    base = tf.floor(coordinates)
    fraction = coordinates - base
    base = tf.cast(base, tf.int32)
    weights_y, weights_x = _cubic_weights(fraction[..., 0]), _cubic_weights(fraction[..., 1])
    columns = [_mirror(base[..., 1] + k - 1, width) for k in range(4)]
    result = 0.0
    for k in range(4):
        row = _mirror(base[..., 0] + k - 1, height) * width
        along = sum(tf.gather(flat, row + columns[j]) * weights_x[j][..., None] for j in range(4))
        result += along * weights_y[k][..., None]
    return result


def vary_grey_values(image: tf.Tensor, seed: tf.Tensor, options: Augmentation) -> tf.Tensor:
    """Brightness, contrast, gamma and noise, kept within 0-255. image: float32 [h, w, C], 0-255."""
    seeds = tf.unstack(tf.random.experimental.stateless_split(seed, 5), axis=0)
    if options.gamma > 0:
        limit = np.log1p(options.gamma)
        power = tf.exp(tf.random.stateless_uniform((), seeds[0], -limit, limit))
        image = 255 * tf.pow(tf.clip_by_value(image / 255, 0, 1), power)
    if options.contrast > 0:
        factor = tf.random.stateless_uniform((), seeds[1], 1 - options.contrast, 1 + options.contrast)
        mean = tf.reduce_mean(image)
        image = (image - mean) * factor + mean
    if options.brightness > 0:
        image += tf.random.stateless_uniform((), seeds[2], -options.brightness, options.brightness)
    if options.noise > 0:
        strength = tf.random.stateless_uniform((), seeds[3], 0, options.noise)
        image += tf.random.stateless_normal(tf.shape(image), seeds[4]) * strength
    return tf.clip_by_value(image, 0, 255)


def _mirror(index: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """Index into an axis continued by mirroring at its outer pixels, as often as needed (NumPy's "reflect")."""
    period = tf.maximum(2 * (size - 1), 1)
    index = tf.math.floormod(index, period)
    return tf.minimum(index, period - index)


def _cubic_weights(t: tf.Tensor) -> list[tf.Tensor]:
    """Keys' weights of the pixels at -1, 0, 1, 2 for a fraction t in [0, 1)."""
    a = KEYS_A
    u = 1 - t
    return [
        a * t * u * u,
        ((a + 2) * t - (a + 3)) * t * t + 1,
        ((a + 2) * u - (a + 3)) * u * u + 1,
        a * u * t * t,
    ]


def _bicubic_basis(nodes: int, size: int) -> np.ndarray:
    """float32 [size, nodes]: how much of each node's value a pixel gets; the edge nodes are repeated outwards."""
    position = np.linspace(0, nodes - 1, size) if size > 1 else np.zeros(1)
    basis = np.zeros((size, nodes), np.float32)
    for offset in range(-1, 3):
        base = np.floor(position).astype(int)
        distance = np.abs(position - (base + offset))
        a = KEYS_A
        near = (a + 2) * distance**3 - (a + 3) * distance**2 + 1
        far = a * (distance**3 - 5 * distance**2 + 8 * distance - 4)
        weight = np.where(distance <= 1, near, np.where(distance < 2, far, 0))
        np.add.at(basis, (np.arange(size), np.clip(base + offset, 0, nodes - 1)), weight)
    return basis
