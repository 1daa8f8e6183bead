"""3x3 convolutions with a quarter of the multiplications: Winograd's minimal filtering F(4x4, 3x3) (Lavin and Gray 2016).

An output block of 4x4 pixels is seen by a tile of 6x6. Along each axis, six numbers of the tile and three of the kernel
become the values of two polynomials at six points; their products are the values of a polynomial whose coefficients are
the four outputs. In two dimensions that makes 36 products for 16 outputs instead of 144.

Everything is a matrix product: the changes to and from values at points by 6x6 matrices, the sum over channels by one
matrix for each of the 36 places. Tiles are taken in bands that stay in a processor's cache.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import tensorflow as tf

# Of each side of an output block the finite points; the tile's side is 2 more. Those for 4 keep the rounding errors at
# about twice those of a direct convolution; the usual 0, 1, -1, 2, -2 at five times (Barabasz et al. 2020, "Error
# analysis and improving the accuracy of Winograd convolution for deep neural networks", Section 5, on how the choice
# matters). Those for 7 save a third of the products more, at errors that are small beside bfloat16's only.
POINTS = {4: (0, 5 / 8, -5 / 8, 3 / 2, -3 / 2), 7: (0, 0.45, -0.45, 0.9, -0.9, 1.4, -1.4, 2)}
BLOCK = 4
# With fewer channels, changing to and from the points costs more than the products that are saved. Of a direct
# convolution's time 0.9 with 64 channels, 0.6 with 128 and 0.4 with 256 on large maps (benchmarks/winograd.py, two cores
# with AVX-512). Maps of a thousand pixels or so gain nothing, and are too small to matter: a rule that knew the map's size
# as well changed neither maskrcnn_nuclei nor an R50-FPN by more than a hundredth.
NARROWEST = 64
# A band's tiles hold about this many numbers (8 MB), and are at least so many that the matrices are not too thin.
BAND, FEWEST = 2**21, 256


@functools.cache
def _matrices(block: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of a tile's pixels to values at the points, of a kernel's 3x3 pixels to those at pairs of points, of values at the
    points to the block: [t, t], [t * t, 9], [block, t], where t = block + 2."""
    points = np.array(POINTS[block])
    others = [np.delete(points, i) for i in range(len(points))]
    scale = [np.prod(point - rest) for point, rest in zip(points, others, strict=True)]
    # the last point is infinity: the leading coefficient
    tile = np.array([[*np.poly(rest)[::-1], 0] for rest in others] + [np.poly(points)[::-1]])
    kernel = np.vstack([np.vander(points, 3, increasing=True) / np.array(scale)[:, None], [0, 0, 1]])
    leading = np.arange(block) == block - 1
    pixels = np.vstack([np.vander(points, block, increasing=True), leading]).T
    return tile.astype(np.float32), np.kron(kernel, kernel).astype(np.float32), pixels.astype(np.float32)


def pays(incoming: int, filters: int) -> bool:
    """Whether `convolve` is faster than a direct convolution of so many channels."""
    return min(incoming, filters) >= NARROWEST


def convolve(
    x: tf.Tensor,
    kernel: tf.Tensor,
    bias: tf.Tensor | None = None,
    *,
    padding: str,
    activation: Callable[[tf.Tensor], tf.Tensor] | None = None,
    block: int = BLOCK,
) -> tf.Tensor:
    """What `tf.nn.conv2d` with stride 1 gives, then bias and activation, for inference.

    x: float32 [B, H, W, C]; kernel: float32 [3, 3, C, K]; bias: float32 [K]; padding: "valid" or "same"; block: side
    of an output block, 4 or 7 (`POINTS`). x may be bfloat16, and is the result then; all between is float32. Returns
    [B, H - 2, W - 2, K], or [B, H, W, K].
    """
    x, kernel = tf.convert_to_tensor(x), tf.convert_to_tensor(kernel)
    return _convolve(x, kernel, bias, padding, activation, block)


# A function of its own, which all convolutions of a model with as many channels share: TensorFlow would optimise the
# graph of each one anew, which doubled the time of a detector's first call.
@functools.partial(tf.function, autograph=False, experimental_attributes={"_noinline": True})
def _convolve(
    x: tf.Tensor,
    kernel: tf.Tensor,
    bias: tf.Tensor | None,
    padding: str,
    activation: Callable[[tf.Tensor], tf.Tensor] | None,
    block: int,
) -> tf.Tensor:
    """[B, H, W, C] -> [B, h, w, K]."""
    to_points, kernel_to_places, from_points = _matrices(block)
    tile = block + 2
    if padding == "same":
        x = tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]])
    batch, height, width = tf.unstack(tf.shape(x)[:3])
    incoming, filters = kernel.shape[2:]
    rows, columns = -(-(height - 2) // block), -(-(width - 2) // block)  # of blocks in an image
    bands, most = _bands(batch * rows, columns, incoming, tile)
    pixels = tf.reshape(x, [-1, incoming])
    inner = tf.range(tile)[:, None]
    # beyond the last pixel nothing counts: the rest of a block is cut off
    across = tf.minimum(block * tf.range(columns) + inner, width - 1)
    kernels = tf.reshape(
        tf.matmul(kernel_to_places, tf.reshape(kernel, [9, -1])), [tile, tile, incoming, filters]
    )

    def band(number: tf.Tensor, done: tf.TensorArray) -> tuple[tf.Tensor, tf.TensorArray]:
        row = tf.range(number * most, tf.minimum((number + 1) * most, batch * rows))
        down = row // rows * height + tf.minimum(block * (row % rows) + inner, height - 1)
        tiles = tf.gather(pixels, down[:, None, :, None] * width + across[:, None])  # [t, t, n, columns, C]
        tiles = tf.cast(tf.reshape(tiles, [tile, -1]), tf.float32)
        halfway = tf.reshape(tf.matmul(to_points, tiles), [tile, tile, -1])
        blocks = []
        for place in range(tile):
            at_points = tf.reshape(tf.matmul(to_points, halfway[place]), [tile, -1, incoming])
            products = tf.reshape(tf.matmul(at_points, kernels[place]), [tile, -1])
            blocks.append(tf.matmul(from_points, products))
        y = tf.matmul(from_points, tf.reshape(tf.stack(blocks), [tile, -1]))
        y = tf.transpose(tf.reshape(y, [block, block, -1, columns, filters]), [2, 0, 3, 1, 4])
        y = tf.reshape(y, [-1, block, block * columns, filters])[:, :, : width - 2]
        y = y if bias is None else tf.nn.bias_add(y, bias)
        y = y if activation is None else activation(y)
        return number + 1, done.write(number, tf.cast(y, x.dtype))

    done = tf.TensorArray(x.dtype, bands, element_shape=[None, block, None, filters], infer_shape=False)
    _, done = tf.while_loop(lambda number, _: number < bands, band, (0, done), parallel_iterations=1)
    return tf.reshape(done.concat(), [batch, block * rows, width - 2, filters])[:, : height - 2]


def _bands(rows: tf.Tensor, columns: tf.Tensor, channels: int, tile: int) -> tuple[tf.Tensor, tf.Tensor]:
    """In how many bands to take rows of tiles, at least one, and how many rows each has, about equally many."""
    tiles = max(BAND // (tile**2 * channels), FEWEST)
    bands = tf.maximum(-(-rows // tf.maximum(tiles // tf.maximum(columns, 1), 1)), 1)
    return bands, -(-rows // bands)
