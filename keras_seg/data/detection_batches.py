"""Annotated images to batches for a detector: which images make up which batch, and the `tf.data` around it.

Which image stands where, and how it is varied, depends on the seed and its number alone. So a run resumes exactly,
work in parallel changes nothing, and hosts agree without talking to each other.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
import warnings
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol

import numpy as np
from PIL import Image

from keras_seg.data.annotated_image import AnnotatedImage
from keras_seg.data.detection_geometry import NO_AUGMENTATION, DetectionAugmentation
from keras_seg.data.detection_items import ItemOptions, make_item, mirrored_keypoints
from keras_seg.data.proposals import Proposals

if TYPE_CHECKING:
    import tensorflow as tf

__all__ = ["Source", "TooManyUnreadable", "detection_dataset", "epoch_order"]

# Images of the same class of width over height share a batch: below 0.6, 0.84, 1.19, 1.68, and above.
ASPECTS = 2.0 ** np.array([-0.75, -0.25, 0.25, 0.75])
MAX_SIDE = 1333
BLOCKS_A_THREAD, MOST_BLOCKS = 16, 512  # of Pillow's memory, a MB each
PADDING = {"classes": -1, "polygon_objects": -1}  # zero for the others
TYPES = {
    "image": ("uint8", (None, None, 3)),
    "size": ("float32", (2,)),
    "image_id": ("int64", ()),
    "boxes": ("float32", (None, 4)),
    "classes": ("int32", (None,)),
    "crowd": ("bool", (None,)),
}
BITMAPS = {"mask_pixels": ("uint8", (None,)), "mask_windows": ("int32", (None, 5))}
PROPOSALS = {"proposals": ("float32", (None, 4))}
POLYGONS = {
    "polygon_points": ("float64", (None, 2)),
    "polygon_lengths": ("int32", (None,)),
    "polygon_objects": ("int32", (None,)),
}


class TooManyUnreadable(ValueError):
    """More images than allowed could not be read."""


class Source(Protocol):
    """Where annotated images come from. name: for messages. sizes: int32 [I, 2], height and width of each image.
    image_ids: int64 [I]. bitmaps, polygons: whether an object that is no crowd has run lengths, polygons."""

    name: str
    sizes: np.ndarray
    image_ids: np.ndarray
    class_names: tuple[str, ...]
    category_ids: np.ndarray
    keypoint_names: tuple[str, ...]
    bitmaps: bool
    polygons: bool

    def read(self, i: int) -> AnnotatedImage: ...


def detection_dataset(
    source: Source,
    *,
    batch_size: int = 1,
    short_side: int | tuple[int, int] | None = 800,
    max_side: int | None = None,
    augment: DetectionAugmentation | bool = True,
    masks: bool | None = None,
    keypoints: bool | None = None,
    keypoint_mirror: Sequence[int] | None = None,
    min_box_side: float = 1.0,
    multiple: int = 32,
    value_range: tuple[float, float] | None = None,
    proposals: Proposals | None = None,
    seed: int = 0,
    start: int = 0,
    repeat: bool = True,
    shuffle: bool | None = None,
    shard: tuple[int, int] = (0, 1),
    parallel: int | None = None,
    max_unreadable: int = 10,
) -> tf.data.Dataset:
    """Batches of a source's images; `data.coco` describes arguments and result.

    proposals: of its images, which then are in the batches.
    """
    import tensorflow as tf

    from keras_seg.ops.native import resize

    options = (
        augment
        if isinstance(augment, DetectionAugmentation)
        else DetectionAugmentation()
        if augment
        else NO_AUGMENTATION
    )
    max_side = _check(
        source, batch_size, short_side, max_side, options, multiple, start, shard, max_unreadable
    )
    with_masks = source.bitmaps or source.polygons if masks is None else masks
    with_keypoints = bool(source.keypoint_names) if keypoints is None else keypoints
    if with_masks and not (source.bitmaps or source.polygons):
        raise ValueError(f"{source.name}: masks are asked for, but no annotation has a segmentation")
    if with_keypoints and not source.keypoint_names:
        raise ValueError(f"{source.name}: keypoints are asked for, but no category names any")
    mirror: Sequence[int] = ()
    if with_keypoints:
        mirrors = options.flip > 0 or options.turns
        mirror = _mirror(source.keypoint_names, keypoint_mirror, mirrors)
    item = ItemOptions(
        short_side=short_side,
        max_side=max_side,
        augment=options,
        multiple=multiple,
        min_box_side=min_box_side,
        bitmaps=with_masks and source.bitmaps,
        polygons=with_masks and source.polygons,
        keypoint_mirror=mirror,
        value_range=value_range,
    )
    types = dict(TYPES)
    types |= BITMAPS if item.bitmaps else {}
    types |= POLYGONS if item.polygons else {}
    types |= {"keypoints": ("float32", (None, len(mirror), 3))} if with_keypoints else {}
    if proposals is not None:
        types |= PROPOSALS
        proposals.check_images(source.image_ids, source.sizes, source.name)
    shuffle = repeat if shuffle is None else shuffle
    order = _Order(source, options, batch_size, shard, seed, repeat, shuffle)
    maker = _Maker(source, item, order, seed, max_unreadable, proposals)

    keep_memory(parallel or os.cpu_count() or 1)
    resize.available()  # built now rather than in a thread of TensorFlow's

    def make(number: tf.Tensor) -> dict[str, tf.Tensor]:
        made = tf.numpy_function(
            maker.make,
            [number, list(types)],
            [tf.bool, *(tf.as_dtype(t) for t, _ in types.values())],
            stateful=False,
        )
        entries = {n: tf.ensure_shape(v, types[n][1]) for n, v in zip(types, made[1:], strict=True)}
        return {**entries, "readable": tf.ensure_shape(made[0], ())}

    stop = np.iinfo(np.int64).max if repeat else maker.order.items
    dataset = tf.data.Dataset.range(start * batch_size, stop)
    dataset = dataset.map(make, num_parallel_calls=parallel or tf.data.AUTOTUNE, deterministic=True)
    dataset = dataset.filter(lambda entries: entries["readable"])
    dataset = dataset.map(lambda entries: {name: entries[name] for name in types})
    dataset = dataset.padded_batch(
        batch_size,
        padded_shapes={name: shape for name, (_, shape) in types.items()},
        padding_values={
            name: tf.constant(PADDING.get(name, 0), t) if t != "bool" else False
            for name, (t, _) in types.items()
        },
        drop_remainder=repeat,
    ).prefetch(2)
    dataset.class_names, dataset.category_ids = source.class_names, source.category_ids
    dataset.keypoint_names, dataset.images = source.keypoint_names, len(source.sizes)
    return dataset


def keep_memory(threads: int) -> None:
    """Let Pillow, in the whole process, keep the memory of images that are done, some MB a thread, for the next ones.

    Fresh memory from the operating system takes a third of the time in which an image is decoded and resized.
    """
    blocks = min(BLOCKS_A_THREAD * threads, MOST_BLOCKS)
    if Image.core.get_blocks_max() < blocks:
        Image.core.set_blocks_max(blocks)


def epoch_order(
    ratios: np.ndarray, batch: int, seed: int, epoch: int, *, shuffle: bool, complete: bool
) -> np.ndarray:
    """The images of one pass, batch after batch: int64 [n].

    ratios: float [I], width over height of each image; images of similar ratio share a batch, the few that are left
    over of each kind make mixed ones. complete: leave out the last images (fewer than a batch, others in each pass)
    that fill none; of fewer images than a batch, take some again instead.
    """
    images = len(ratios)
    order = np.random.default_rng([seed, epoch]).permutation(images) if shuffle else np.arange(images)
    kinds = np.searchsorted(ASPECTS, ratios[order])
    whole, rest = [], []
    for kind in np.unique(kinds):
        members = order[kinds == kind]
        full = len(members) // batch * batch
        whole.append(members[:full].reshape(-1, batch))
        rest.append(members[full:])
    left = np.concatenate(rest)
    if complete and images < batch:
        left = np.resize(left, batch)
    full = len(left) // batch * batch
    batches = np.concatenate([*whole, left[:full].reshape(-1, batch)])
    if shuffle:
        batches = np.random.default_rng([seed, epoch, 1]).permutation(batches)
    return batches.ravel() if complete else np.concatenate([batches.ravel(), left[full:]])


class _Order:
    """Which image is item number n of a host, and the number of that item among those of all hosts."""

    def __init__(
        self,
        source: Source,
        options: DetectionAugmentation,
        batch_size: int,
        shard: tuple[int, int],
        seed: int,
        repeat: bool,
        shuffle: bool,
    ) -> None:
        sizes = source.sizes.astype(np.float64)
        # of one size when they come out of the crop, or turned at random
        ratios = (
            np.ones(len(sizes)) if options.large_scale_jitter or options.turns else sizes[:, 1] / sizes[:, 0]
        )
        self.batch, (self.shard, shards), self.repeat = batch_size, shard, repeat
        self.together = batch_size * shards
        images = len(sizes)
        self.per_epoch = max(images // self.together, 1) * self.together if repeat else images
        # of one host, in one pass: its part of all whole batches and of the last one
        whole, rest = divmod(images, self.together)
        self.items = whole * batch_size + int(np.clip(rest - self.shard * batch_size, 0, batch_size))
        self.epoch = lru_cache(2)(
            lambda epoch: epoch_order(ratios, self.together, seed, epoch, shuffle=shuffle, complete=repeat)
        )

    def __call__(self, n: int) -> tuple[int, int]:
        number = n // self.batch * self.together + self.shard * self.batch + n % self.batch
        epoch, place = divmod(number, self.per_epoch)
        return int(self.epoch(epoch)[place]), number


class _Calls:
    """The calls of this module from TensorFlow's threads.

    TensorFlow waits for a running call when it shuts a pipeline down, and for ever if that call in turn waits for Python:
    when Python ends, its threads get no further, and some of TensorFlow's methods do not let go of Python while they wait.
    So before either, calls are refused, and waited for until no more come: the datasets' buffers are then full.
    """

    QUIET, LONGEST = 0.5, 20.0  # seconds without a call that count as no more; seconds to wait at most

    def __init__(self) -> None:
        self.lock, self.running, self.last, self.refused = threading.Lock(), 0, 0.0, False

    def __enter__(self) -> None:
        with self.lock:
            self.last = time.monotonic()
            if self.refused:
                raise RuntimeError("the datasets of this process are being shut down")
            self.running += 1

    def __exit__(self, *exception: object) -> None:
        with self.lock:
            self.last = time.monotonic()
            self.running -= 1

    def refuse(self) -> None:
        with self.lock:
            self.refused = True
            known = self.last > 0
        begun = self.last = time.monotonic()
        while known and time.monotonic() - begun < self.LONGEST:
            with self.lock:
                if not self.running and time.monotonic() - self.last > self.QUIET:
                    return
            time.sleep(self.QUIET / 10)

    def admit(self) -> None:
        self.refused = False


CALLS = _Calls()
atexit.register(CALLS.refuse)


class _Maker:
    """Items by number. An image that cannot be read is left out in a single pass, and else replaced by the next of the
    file, so that the numbers of the others stay."""

    def __init__(
        self,
        source: Source,
        options: ItemOptions,
        order: _Order,
        seed: int,
        max_unreadable: int,
        proposals: Proposals | None = None,
    ) -> None:
        self.source, self.options, self.order, self.seed = source, options, order, seed
        self.max_unreadable, self.proposals = max_unreadable, proposals
        self.unreadable: dict[int, str] = {}
        self.lock = threading.Lock()

    def make(self, n: np.ndarray, names: np.ndarray) -> list[np.ndarray]:
        with CALLS:
            return self._make(n, names)

    def _make(self, n: np.ndarray, names: np.ndarray) -> list[np.ndarray]:
        first, number = self.order(int(n))
        fields = [name.decode() for name in names.tolist()]
        images = len(self.source.sizes)
        for offset in range(images if self.order.repeat else 1):
            i = (first + offset) % images
            if i in self.unreadable:
                continue
            try:
                annotated = self.source.read(i)
                boxes = None if self.proposals is None else self.proposals.of(annotated.image_id)[0]
                random = np.random.default_rng([self.seed, 2, number])
                entries = make_item(annotated, self.options, random, boxes)
                return [np.asarray(True), *(entries[name] for name in fields)]
            except (OSError, ValueError) as error:
                self.report(i, str(error))
        if self.order.repeat:
            raise TooManyUnreadable(f"{self.source.name}: none of its {images} images can be read")
        return [np.asarray(False), *self.nothing(fields)]

    def report(self, i: int, message: str) -> None:
        with self.lock:
            known = i in self.unreadable
            self.unreadable.setdefault(i, message)
            if len(self.unreadable) > self.max_unreadable:
                listed = "\n  ".join(self.unreadable.values())
                raise TooManyUnreadable(
                    f"{self.source.name}: {len(self.unreadable)} images cannot be used, max_unreadable is "
                    f"{self.max_unreadable}:\n  {listed}"
                )
        if not known:
            count = f"number {len(self.unreadable)} of at most {self.max_unreadable}"
            warnings.warn(f"left out, {count}: {message}", stacklevel=2)

    def nothing(self, names: Sequence[str]) -> list[np.ndarray]:
        shapes = {
            **TYPES,
            **BITMAPS,
            **POLYGONS,
            **PROPOSALS,
            "keypoints": ("float32", (0, len(self.options.keypoint_mirror), 3)),
        }
        return [np.zeros([side or 0 for side in shapes[name][1]], shapes[name][0]) for name in names]


def _mirror(names: Sequence[str], given: Sequence[int] | None, mirrors: bool) -> list[int]:
    if given is not None:
        if sorted(given) != list(range(len(names))) or any(given[given[k]] != k for k in range(len(names))):
            raise ValueError(
                f"keypoint_mirror: must give each of {len(names)} keypoints the place of its counterpart, got "
                f"{list(given)}"
            )
        return list(given)
    return mirrored_keypoints(names) if mirrors else list(range(len(names)))


def _check(
    source: Source,
    batch_size: int,
    short_side: int | tuple[int, int] | None,
    max_side: int | None,
    options: DetectionAugmentation,
    multiple: int,
    start: int,
    shard: tuple[int, int],
    max_unreadable: int,
) -> int:
    """The max_side, after the checks."""
    if not len(source.sizes):
        raise ValueError(
            f"{source.name}: no images to make batches of (keep_empty=True keeps those without objects)"
        )
    if batch_size < 1 or multiple < 1 or start < 0 or max_unreadable < 0:
        raise ValueError(
            "batch_size and multiple must be positive, start and max_unreadable not negative, got "
            f"{batch_size}, {multiple}, {start} and {max_unreadable}"
        )
    if not 0 <= shard[0] < shard[1]:
        raise ValueError(f"shard: must be (number, how many) with 0 <= number < how many, got {tuple(shard)}")
    if short_side is None:
        return MAX_SIDE
    low, high = (short_side, short_side) if isinstance(short_side, int) else short_side
    max_side = max(MAX_SIDE, high) if max_side is None else max_side
    if not 0 < low <= high <= max_side:
        raise ValueError(
            f"short_side: must be a number or (low, high), positive and at most max_side, got {short_side} and "
            f"{max_side}"
        )
    if low != high and options == NO_AUGMENTATION:
        raise ValueError(f"short_side: a range, {short_side}, but augment=False: give one number")
    return max_side
