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

BLOCK, TILE = 4, 6  # side of an output block and of the tile that it is computed from
# The finite ones of the six points. These keep the rounding errors at about twice those of a direct convolution; the
# usual 0, 1, -1, 2, -2 at five times (Barabasz et al. 2020, "Error analysis and improving the accuracy of Winograd
# convolution for deep neural networks", Section 5, on how the choice matters).
POINTS = (0, 5 / 8, -5 / 8, 3 / 2, -3 / 2)
# With fewer channels, changing to and from the points costs more than the products that are saved.
NARROWEST = 64
# A band's tiles hold about this many numbers (8 MB), and are at least so many that the matrices are not too thin.
BAND, FEWEST = 2**21, 256


def _matrices() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of a tile's and of a kernel's pixels to values at the points, and of these to the block: [6, 6], [6, 3], [4, 6]."""
    points = np.array(POINTS)
    others = [np.delete(points, i) for i in range(len(points))]
    scale = [np.prod(point - rest) for point, rest in zip(points, others, strict=True)]
    # the last point is infinity: the leading coefficient
    tile = np.array([[*np.poly(rest)[::-1], 0] for rest in others] + [np.poly(points)[::-1]])
    kernel = np.vstack([np.vander(points, 3, increasing=True) / np.array(scale)[:, None], [0, 0, 1]])
    block = np.vstack([np.vander(points, BLOCK, increasing=True), [0, 0, 0, 1]]).T
    return tile.astype(np.float32), kernel.astype(np.float32), block.astype(np.float32)


TO_POINTS, KERNEL_TO_POINTS, FROM_POINTS = _matrices()
KERNEL_TO_PLACES = np.kron(KERNEL_TO_POINTS, KERNEL_TO_POINTS)  # both axes at once: [36, 9]


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
) -> tf.Tensor:
    """What `tf.nn.conv2d` with stride 1 gives, then bias and activation, for inference.

    x: float32 [B, H, W, C]; kernel: float32 [3, 3, C, K]; bias: float32 [K]; padding: "valid" or "same". Returns
    float32 [B, H - 2, W - 2, K], or [B, H, W, K].
    """
    x, kernel = tf.convert_to_tensor(x), tf.convert_to_tensor(kernel)
    return _convolve(x, kernel, bias, padding, activation)


# A function of its own, which all convolutions of a model with as many channels share: TensorFlow would optimise the
# graph of each one anew, which doubled the time of a detector's first call.
@functools.partial(tf.function, autograph=False, experimental_attributes={"_noinline": True})
def _convolve(
    x: tf.Tensor,
    kernel: tf.Tensor,
    bias: tf.Tensor | None,
    padding: str,
    activation: Callable[[tf.Tensor], tf.Tensor] | None,
) -> tf.Tensor:
    """[B, H, W, C] -> [B, h, w, K]."""
    if padding == "same":
        x = tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]])
    batch, height, width = tf.unstack(tf.shape(x)[:3])
    incoming, filters = kernel.shape[2:]
    rows, columns = -(-(height - 2) // BLOCK), -(-(width - 2) // BLOCK)  # of blocks in an image
    bands, most = _bands(batch * rows, columns, incoming)
    pixels = tf.reshape(x, [-1, incoming])
    inner = tf.range(TILE)[:, None]
    # beyond the last pixel nothing counts: the rest of a block is cut off
    across = tf.minimum(BLOCK * tf.range(columns) + inner, width - 1)
    kernels = tf.reshape(
        tf.matmul(KERNEL_TO_PLACES, tf.reshape(kernel, [9, -1])), [TILE, TILE, incoming, filters]
    )

    def band(number: tf.Tensor, done: tf.TensorArray) -> tuple[tf.Tensor, tf.TensorArray]:
        row = tf.range(number * most, tf.minimum((number + 1) * most, batch * rows))
        down = row // rows * height + tf.minimum(BLOCK * (row % rows) + inner, height - 1)
        tiles = tf.gather(pixels, down[:, None, :, None] * width + across[:, None])  # [6, 6, n, columns, C]
        halfway = tf.reshape(tf.matmul(TO_POINTS, tf.reshape(tiles, [TILE, -1])), [TILE, TILE, -1])
        blocks = []
        for place in range(TILE):
            at_points = tf.reshape(tf.matmul(TO_POINTS, halfway[place]), [TILE, -1, incoming])
            products = tf.reshape(tf.matmul(at_points, kernels[place]), [TILE, -1])
            blocks.append(tf.matmul(FROM_POINTS, products))
        y = tf.matmul(FROM_POINTS, tf.reshape(tf.stack(blocks), [TILE, -1]))
        y = tf.transpose(tf.reshape(y, [BLOCK, BLOCK, -1, columns, filters]), [2, 0, 3, 1, 4])
        y = tf.reshape(y, [-1, BLOCK, BLOCK * columns, filters])[:, :, : width - 2]
        y = y if bias is None else tf.nn.bias_add(y, bias)
        return number + 1, done.write(number, y if activation is None else activation(y))

    done = tf.TensorArray(tf.float32, bands, element_shape=[None, BLOCK, None, filters], infer_shape=False)
    _, done = tf.while_loop(lambda number, _: number < bands, band, (0, done), parallel_iterations=1)
    return tf.reshape(done.concat(), [batch, BLOCK * rows, width - 2, filters])[:, : height - 2]


def _bands(rows: tf.Tensor, columns: tf.Tensor, channels: int) -> tuple[tf.Tensor, tf.Tensor]:
    """In how many bands to take rows of tiles, at least one, and how many rows each has, about equally many."""
    tiles = max(BAND // (TILE**2 * channels), FEWEST)
    bands = tf.maximum(-(-rows // tf.maximum(tiles // tf.maximum(columns, 1), 1)), 1)
    return bands, -(-rows // bands)
