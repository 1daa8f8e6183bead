"""A detector from the pixels of an image to boxes in these pixels, as TensorFlow functions for a SavedModel."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import tensorflow as tf

from keras_seg.export import resizing
from keras_seg.export.decoding import as_rgb, checked, decode
from keras_seg.export.folding import folded
from keras_seg.export.pasting import paste, to_bits

if TYPE_CHECKING:
    from keras_seg.models.mask_rcnn import MaskRCNN

MASKS = ("probabilities", "pasted", "bits")
Outputs = dict[str, tf.Tensor]


def signatures(
    model: MaskRCNN, masks: str, most_pixels: int, *, winograd: bool = True
) -> dict[str, tf.types.experimental.ConcreteFunction]:
    """The functions of `export.saved_model`'s signatures. Call it within `roi_align.portable`."""
    network = folded(model, winograd=winograd)
    pixels = tf.TensorSpec([None, None, None, 3], tf.uint8, name="images")
    files = tf.TensorSpec([None], tf.string, name="image_bytes")
    finish = _finish(model, masks)

    def find_in_pixels(images: tf.Tensor) -> Outputs:
        """Images of one size. Masks as probabilities."""
        original = tf.shape(images)[1:3]
        size = resizing.resized_size(
            original[0],
            original[1],
            short_side=model.short_side,
            max_side=model.max_side,
            scale=model.scale,
            convention=model.convention,
        )
        resized = resizing.resize(images, size, model.convention)
        missing = [-side % model.size_divisor for side in size]
        padded = tf.pad(resized, [[0, 0], [0, missing[0]], [0, missing[1]], [0, 0]])
        sizes = tf.repeat(tf.cast([size], tf.float32), tf.shape(images)[0], 0)
        found = network({"image": padded, "size": sizes}, training=False)
        return _in_pixels(found, original, tf.stack(size))

    find = tf.function(find_in_pixels, [pixels], autograph=False).get_concrete_function()

    @tf.function(input_signature=[pixels], autograph=False)
    def serving_default(images: tf.Tensor) -> Outputs:
        images = checked(images, most_pixels)
        batch, height, width = tf.unstack(tf.shape(images)[:3])
        sizes = tf.repeat([[height, width]], batch, 0)
        return finish(find(images), sizes)

    @tf.function(input_signature=[files], autograph=False)
    def encoded_images(image_bytes: tf.Tensor) -> Outputs:
        """One image at a time: what is found in one does not depend on the others, whose padding it would share."""
        count = tf.size(image_bytes)

        def one(n: tf.Tensor, sizes: tf.TensorArray, found: dict[str, tf.TensorArray]):
            image = tf.cast(tf.round(as_rgb(decode(image_bytes[n], most_pixels))), tf.uint8)
            outputs = find(image[None])
            found = {name: array.write(n, outputs[name][0]) for name, array in found.items()}
            return n + 1, sizes.write(n, tf.shape(image)[:2]), found

        some = tf.debugging.Assert(count > 0, ["image_bytes: there are none"])
        with tf.control_dependencies([some]):
            arrays = {
                name: tf.TensorArray(spec.dtype, count, element_shape=spec.shape[1:])
                for name, spec in find.structured_outputs.items()
            }
            sizes = tf.TensorArray(tf.int32, count, element_shape=[2])
            _, sizes, arrays = tf.while_loop(
                lambda n, *_: n < count, one, (0, sizes, arrays), parallel_iterations=1
            )
        return finish({name: array.stack() for name, array in arrays.items()}, sizes.stack())

    return {
        "serving_default": serving_default.get_concrete_function(),
        "encoded_images": encoded_images.get_concrete_function(),
    }


def _in_pixels(found: Outputs, original: tf.Tensor, size: tf.Tensor) -> Outputs:
    """What a network found in images that were resized from `original` to `size`, in pixels of the former."""
    ratio = tf.cast(tf.cast(original, tf.float64) / tf.cast(size, tf.float64), tf.float32)[::-1]  # x, y
    limits = tf.cast(tf.tile(original[::-1], [2]), tf.float32)
    outputs = {**found, "boxes": tf.clip_by_value(found["boxes"] * tf.tile(ratio, [2]), 0.0, limits)}
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
