"""The EXIF orientation of a JPEG, which says how the camera was held, read and applied by TensorFlow operations."""

from __future__ import annotations

import tensorflow as tf

# How much of a file is looked through; EXIF is within its first 64 kB segment or behind another one of the sort.
SEARCHED = 2**17
APP1, LENGTHS = 0xE1, 2  # the marker of EXIF's segment; bytes of a segment's length, which counts itself
EXIF = tuple(b"Exif\0\0")
TAG, SHORT, ENTRY = 0x0112, 3, 12  # of TIFF: Orientation, its type, bytes of an entry
# orientation: whether rows and columns change places and then, whether it is mirrored upside down and left to right
TRANSPOSED, UPSIDE_DOWN, MIRRORED = (5, 6, 7, 8), (3, 4, 7, 8), (2, 3, 6, 7)


def orientation(contents: tf.Tensor) -> tf.Tensor:
    """The orientation that a JPEG file, a scalar string, gives, int32 1 to 8 (EXIF 2.3, tag 0x0112); 1 without one."""
    data = tf.io.decode_raw(tf.strings.substr(contents, 0, SEARCHED), tf.uint8)
    # what lies beyond is zero, so that no place is outside
    data = tf.cast(tf.pad(data, [[0, SEARCHED]]), tf.int32)

    def number(place: tf.Tensor, count: int, big: tf.Tensor) -> tf.Tensor:
        """Of `count` bytes at each place, the first of which counts most if `big`."""
        place = tf.clip_by_value(place, 0, SEARCHED)
        taken = tf.stack([tf.gather(data, place + k) for k in range(count)], -1)
        powers = tf.constant([256**k for k in range(count)], tf.int32)
        return tf.reduce_sum(taken * tf.where(big, powers[::-1], powers), -1)

    def is_exif(place: tf.Tensor) -> tf.Tensor:
        body = place + 2 + LENGTHS
        return (data[place + 1] == APP1) & tf.reduce_all(data[body : body + len(EXIF)] == EXIF)

    def goes_on(place: tf.Tensor) -> tf.Tensor:
        # segments 0xE0 to 0xFE come before the image
        is_segment = (data[place] == 0xFF) & (data[place + 1] >= 0xC0) & (data[place + 1] != 0xDA)
        return (place < SEARCHED - 16) & is_segment & ~is_exif(place)

    def behind(place: tf.Tensor) -> tuple[tf.Tensor]:
        return (place + 2 + tf.maximum(number(place + 2, LENGTHS, tf.constant(True)), LENGTHS),)

    (place,) = tf.while_loop(goes_on, behind, (tf.constant(2),), parallel_iterations=1)
    place = tf.minimum(place, SEARCHED)
    tiff = place + 2 + LENGTHS + len(EXIF)
    big = data[tiff] == ord("M")
    directory = tiff + number(tiff + 4, 4, big)
    entries = directory + 2 + ENTRY * tf.range(number(directory, 2, big))
    is_it = (number(entries, 2, big) == TAG) & (number(entries + 2, 2, big) == SHORT)
    found = tf.reduce_max(tf.concat([[0], tf.where(is_it, number(entries + 8, 2, big), 0)], 0))
    return tf.where(is_exif(place) & (found >= 1) & (found <= 8), found, 1)


def upright(image: tf.Tensor, found: tf.Tensor) -> tf.Tensor:
    """The image [H, W, C] as it was seen; found: of `orientation`."""
    image = tf.cond(_any_of(TRANSPOSED, found), lambda: tf.transpose(image, [1, 0, 2]), lambda: image)
    image = tf.cond(_any_of(UPSIDE_DOWN, found), lambda: image[::-1], lambda: image)
    return tf.cond(_any_of(MIRRORED, found), lambda: image[:, ::-1], lambda: image)


def upright_size(size: tf.Tensor, found: tf.Tensor) -> tf.Tensor:
    """Height and width, int32 [2], of what `upright` gives for an image of these."""
    return tf.where(_any_of(TRANSPOSED, found), tf.reverse(size, [0]), size)


def _any_of(kinds: tuple[int, ...], found: tf.Tensor) -> tf.Tensor:
    return tf.reduce_any(found == kinds)
