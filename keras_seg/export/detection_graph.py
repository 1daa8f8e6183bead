"""A detector from the pixels of an image to boxes in these pixels, as TensorFlow functions for a SavedModel."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import tensorflow as tf

from keras_seg.export import decoding, limits, resizing
from keras_seg.export.decoding import as_rgb, decode
from keras_seg.export.folding import folded
from keras_seg.export.limits import Limits
from keras_seg.export.pasting import paste, to_bits

if TYPE_CHECKING:
    from keras_seg.models.mask_rcnn import MaskRCNN

MASKS = ("probabilities", "pasted", "bits")
# Pixels of images that go through the network at once, if it is not one: memory does not grow with the batch. A processor is filled
# by little, and TensorFlow without oneDNN takes 1.7 times as long for an image where maps are large (export/serving/README.md).
AT_ONCE, AT_ONCE_ON_GPU = 2**18, 2**22
Outputs = dict[str, tf.Tensor]


def signatures(
    model: MaskRCNN, masks: str, most: Limits, *, winograd: bool = True
) -> dict[str, tf.types.experimental.ConcreteFunction]:
    """The functions of `export.saved_model`'s signatures. Call it within `roi_align.portable`. winograd: for a processor."""
    network = folded(model, winograd=winograd)
    pixels = tf.TensorSpec([None, None, None, 3], tf.uint8, name="images")
    files = tf.TensorSpec([None], tf.string, name="image_bytes")
    finish = _finish(model, masks)

    def seen_size(height: tf.Tensor, width: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return resizing.resized_size(
            height,
            width,
            short_side=model.short_side,
            max_side=model.max_side,
            scale=model.scale,
            convention=model.convention,
        )

    def find_in_pixels(images: tf.Tensor) -> Outputs:
        """Images of one size. Masks as probabilities."""
        original = tf.shape(images)[1:3]
        size = seen_size(original[0], original[1])
        resized = resizing.resize(images, size, model.convention)
        missing = [-side % model.size_divisor for side in size]
        padded = tf.pad(resized, [[0, 0], [0, missing[0]], [0, missing[1]], [0, 0]])
        sizes = tf.repeat(tf.cast([size], tf.float32), tf.shape(images)[0], 0)
        found = network({"image": padded, "size": sizes}, training=False)
        return _in_pixels(found, original, tf.stack(size))

    find = tf.function(find_in_pixels, [pixels], autograph=False).get_concrete_function()

    @tf.function(input_signature=[pixels], autograph=False)
    def serving_default(images: tf.Tensor) -> Outputs:
        images = limits.checked(images, most)
        batch, height, width = tf.unstack(tf.shape(images)[:3])
        seen = [-(-side // model.size_divisor) * model.size_divisor for side in seen_size(height, width)]
        at_once = AT_ONCE if winograd else AT_ONCE_ON_GPU
        found = _in_parts(find, images, tf.maximum(at_once // (seen[0] * seen[1]), 1))
        return finish(found, tf.repeat([[height, width]], batch, 0))

    @tf.function(input_signature=[files], autograph=False)
    def encoded_images(image_bytes: tf.Tensor) -> Outputs:
        """One image at a time: what is found in one does not depend on the others, whose padding it would share."""
        image_bytes, sizes = decoding.checked(image_bytes, most, padded=masks != "probabilities")

        def one(contents: tf.Tensor) -> Outputs:
            image = tf.cast(tf.round(as_rgb(decode(contents))), tf.uint8)
            return {name: value[0] for name, value in find(image[None]).items()}

        specs = {
            name: tf.TensorSpec(spec.shape[1:], spec.dtype) for name, spec in find.structured_outputs.items()
        }
        return finish(tf.map_fn(one, image_bytes, parallel_iterations=1, fn_output_signature=specs), sizes)

    return {
        "serving_default": serving_default.get_concrete_function(),
        "encoded_images": encoded_images.get_concrete_function(),
    }


def _in_parts(find: tf.types.experimental.ConcreteFunction, images: tf.Tensor, size: tf.Tensor) -> Outputs:
    """find(images), so many of them at a time."""
    batch = tf.shape(images)[0]
    parts = -(-batch // size)

    def part(n: tf.Tensor, done: dict[str, tf.TensorArray]) -> tuple[tf.Tensor, dict[str, tf.TensorArray]]:
        found = find(images[n * size : (n + 1) * size])
        return n + 1, {name: array.write(n, found[name]) for name, array in done.items()}

    done = {
        name: tf.TensorArray(spec.dtype, parts, element_shape=spec.shape, infer_shape=False)
        for name, spec in find.structured_outputs.items()
    }
    _, done = tf.while_loop(lambda n, _: n < parts, part, (0, done), parallel_iterations=1)
    return {name: array.concat() for name, array in done.items()}


def _in_pixels(found: Outputs, original: tf.Tensor, size: tf.Tensor) -> Outputs:
    """What a network found in images that were resized from `original` to `size`, in pixels of the former."""
    ratio = tf.cast(tf.cast(original, tf.float64) / tf.cast(size, tf.float64), tf.float32)
    ratio = tf.reverse(ratio, [0])  # x, y
    most = tf.cast(tf.tile(tf.reverse(original, [0]), [2]), tf.float32)
    outputs = {**found, "boxes": tf.clip_by_value(found["boxes"] * tf.tile(ratio, [2]), 0.0, most)}
    if "keypoints" in found:
        outputs["keypoints"] = found["keypoints"] * tf.concat([ratio, [1.0]], 0)
    return outputs


def _finish(model: MaskRCNN, masks: str) -> Callable[[Outputs, tf.Tensor], Outputs]:
    """What makes of the outputs and the images' sizes, int32 [B, 2], the outputs of a signature."""

    def finish(found: Outputs, sizes: tf.Tensor) -> Outputs:
        outputs = {**found, "image_sizes": sizes}
        if "masks" in found and masks != "probabilities":
            arguments = found["masks"], found["boxes"], found["num_detections"], sizes
            outputs["masks"] = (paste if masks == "pasted" else to_bits)(*arguments, model.convention)
        return outputs

    return finish
