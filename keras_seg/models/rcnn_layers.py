"""The steps of a Mask R-CNN between its networks, as Keras layers: regions are data, so these are not convolutions.

Regions of a batch travel as one flat list [N, …] with the image that each belongs to; results as [B, D, …] with zeros
after each image's last.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import layers

from keras_seg.ops.anchors import cell_anchors, grid_anchors
from keras_seg.ops.boxes import decode
from keras_seg.ops.detections import select_detections
from keras_seg.ops.keypoints import decode_heatmaps
from keras_seg.ops.proposals import select_proposals
from keras_seg.ops.roi_align import multilevel_roi_align


class _Configured(layers.Layer):
    """A layer whose configuration is its keyword arguments, kept as attributes."""

    def __init__(self, options: dict[str, Any], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._options = options
        for name, value in options.items():
            setattr(self, name, value)

    def get_config(self) -> dict:
        return {**super().get_config(), **self._options}


@keras.saving.register_keras_serializable("keras_seg")
class NormalizePixels(_Configured):
    """(pixels - mean) / std within each image's true size, and 0 in its padding.

    multiple: of which the padded sides must be multiples.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], multiple: int = 1, **kwargs: Any) -> None:
        options = {"mean": list(mean), "std": list(std), "multiple": multiple}
        super().__init__(options, **{"autocast": False, **kwargs})

    def call(self, image: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
        """image: [B, H, W, 3], RGB, 0-255; size: [B, 2], true height and width. Returns [B, H, W, 3].

        InvalidArgumentError: padded sides that are no multiples; a size larger than the padded image, or another number
        of sizes than of images; pixels that are not finite, whose images (of the batch) are named. What the padding
        holds does not matter.
        """
        batch, padded = tf.shape(image)[0], tf.shape(image)[1:3]
        size = tf.cast(size, tf.int32)
        multiples = "Mask R-CNN: images must be padded, at the bottom and at the right, to multiples of"
        true_sizes = (
            "Mask R-CNN: `size` must be each image's true height and width, within the padded image. Got"
        )
        fits = tf.reduce_all((size <= padded) & (size > 0)) & (tf.shape(size)[0] == batch)
        checks = [
            tf.debugging.Assert(
                tf.reduce_all(padded % self.multiple == 0), [multiples, self.multiple, "Got", padded]
            ),
            tf.debugging.Assert(fits, [true_sizes, size, "for images of shape", tf.shape(image)]),
        ]
        with tf.control_dependencies(checks):
            inside = (
                tf.sequence_mask(size[:, 0], padded[0])[:, :, None]
                & tf.sequence_mask(size[:, 1], padded[1])[:, None]
            )
        normal = tf.where(inside[..., None], (tf.cast(image, tf.float32) - self.mean) / self.std, 0)
        finite = tf.reduce_all(tf.math.is_finite(normal), (1, 2, 3))
        message = "Mask R-CNN: pixels that are NaN or infinite, in these images of the batch, counted from 0:"
        check = tf.debugging.Assert(tf.reduce_all(finite), [message, tf.where(~finite)[:, 0]])
        with tf.control_dependencies([check]):
            return tf.cast(tf.identity(normal), self.compute_dtype)


@keras.saving.register_keras_serializable("keras_seg")
class SelectProposals(_Configured):
    """Anchors and `ops.proposals.select_proposals`.

    rounded: anchors as torchvision rounds them, to whole pixels; and so are the steps between them, the padded image's
    side over the map's: they differ from the strides where a map's side was odd before it was halved.
    """

    def __init__(
        self,
        sizes: Sequence[Sequence[float]],
        ratios: Sequence[float],
        strides: Sequence[int],
        rounded: bool,
        pre_nms: int,
        post_nms: int,
        nms_threshold: float,
        min_size: float,
        offset: float = 0.0,
        **kwargs: Any,
    ) -> None:
        options = {
            key: value for key, value in locals().items() if key not in ("self", "kwargs", "__class__")
        }
        super().__init__(options, **{"dtype": "float32", **kwargs})

    def anchors(self, logits: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """float32 [H_l * W_l * A, 4] for each level's logits [B, H_l, W_l, A]."""
        cells = [cell_anchors(sizes, self.ratios, self.rounded) for sizes in self.sizes]
        sides = [tf.shape(level)[1:3] for level in logits]
        padded = sides[0] * self.strides[0]
        anchors = []
        for cell, side, stride in zip(cells, sides, self.strides, strict=True):
            step = tuple(tf.unstack(padded // side)) if self.rounded else stride
            anchors.append(grid_anchors(cell, side[0], side[1], step, self.offset))
        return anchors

    def compute_output_spec(
        self,
        logits: Sequence[keras.KerasTensor],
        deltas: Sequence[keras.KerasTensor],
        size: keras.KerasTensor,
    ) -> tuple[keras.KerasTensor, keras.KerasTensor]:
        """Said, so that Keras need not trace `call` while a model is built."""
        return keras.KerasTensor((None, self.post_nms, 4), "float32"), keras.KerasTensor((None,), "int32")

    def call(
        self, logits: Sequence[tf.Tensor], deltas: Sequence[tf.Tensor], size: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """logits, deltas: [B, H_l, W_l, A] and [B, H_l, W_l, 4A] a level. Returns boxes [B, P, 4], count int32 [B]."""
        boxes, _, count = self.select(logits, deltas, size, self.pre_nms, self.post_nms)
        return boxes, count

    def select(
        self,
        logits: Sequence[tf.Tensor],
        deltas: Sequence[tf.Tensor],
        size: tf.Tensor,
        pre_nms: int,
        post_nms: int,
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """`call` with other numbers of boxes, as in training; boxes [B, P, 4], logits [B, P], count [B]."""
        batch = tf.shape(size)[0]
        return select_proposals(
            [tf.reshape(level, [batch, -1]) for level in logits],
            [tf.reshape(level, [batch, -1, 4]) for level in deltas],
            self.anchors(logits),
            tf.cast(size, tf.float32),
            pre_nms=pre_nms,
            post_nms=post_nms,
            nms_threshold=self.nms_threshold,
            min_size=self.min_size,
        )


@keras.saving.register_keras_serializable("keras_seg")
class ProposalsAsDetections(SelectProposals):
    """Proposals in the form of detections, of a model that is nothing but an RPN: all of class 0."""

    def compute_output_spec(
        self,
        logits: Sequence[keras.KerasTensor],
        deltas: Sequence[keras.KerasTensor],
        size: keras.KerasTensor,
    ) -> tuple[keras.KerasTensor, ...]:
        boxes, count = super().compute_output_spec(logits, deltas, size)
        flat = boxes.shape[:2]
        return boxes, keras.KerasTensor(flat, "float32"), keras.KerasTensor(flat, "int32"), count

    def call(  # type: ignore[override]  # two more
        self, logits: Sequence[tf.Tensor], deltas: Sequence[tf.Tensor], size: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
        """As `SelectProposals`. Returns boxes [B, P, 4], scores [B, P], classes int32 [B, P], count int32 [B]."""
        boxes, found, count = self.select(logits, deltas, size, self.pre_nms, self.post_nms)
        there = tf.sequence_mask(count, self.post_nms)
        return boxes, tf.where(there, tf.sigmoid(found), 0), tf.zeros_like(found, tf.int32), count


@keras.saving.register_keras_serializable("keras_seg")
class Regions(layers.Layer):
    """The true boxes of a batch as one list, and never an empty one.

    Convolutions fail on empty batches, so an image [B = 0 boxes] gives one region of no extent at its end; `Scatter`
    drops it.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"autocast": False, **kwargs})  # boxes are float32 in mixed precision too

    def call(self, boxes: tf.Tensor, count: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """boxes: [B, P, 4]; count: [B]. Returns boxes [N + 1, 4] and images int32 [N + 1]: by image, then one more."""
        there = tf.sequence_mask(count, tf.shape(boxes)[1])
        images = tf.cast(tf.where(there)[:, 0], tf.int32)
        return (
            tf.concat([tf.boolean_mask(boxes, there), tf.zeros([1, 4])], 0),
            tf.concat([images, tf.zeros([1], tf.int32)], 0),
        )


@keras.saving.register_keras_serializable("keras_seg")
class PoolRegions(_Configured):
    """`ops.roi_align.multilevel_roi_align`, of features in any precision and boxes in float32."""

    def __init__(
        self,
        output_size: int,
        strides: Sequence[int],
        sampling_ratio: int = 0,
        aligned: bool = True,
        pool: str = "average",
        operation: str = "align",
        implementation: str = "auto",
        **kwargs: Any,
    ) -> None:
        options = {
            key: value for key, value in locals().items() if key not in ("self", "kwargs", "__class__")
        }
        super().__init__(options, **{"autocast": False, **kwargs})

    def compute_output_spec(
        self, features: Sequence[keras.KerasTensor], boxes: keras.KerasTensor, images: keras.KerasTensor
    ) -> keras.KerasTensor:
        """Said, so that Keras need not trace `call`, which takes longer than all other layers together."""
        side = self.output_size
        return keras.KerasTensor((None, side, side, features[0].shape[-1]), features[0].dtype)

    def call(self, features: Sequence[tf.Tensor], boxes: tf.Tensor, images: tf.Tensor) -> tf.Tensor:
        """features: [B, H_l, W_l, C] a level; boxes: [N, 4]; images: int32 [N]. Returns [N, s, s, C]."""
        return multilevel_roi_align(
            list(features),
            boxes,
            images,
            self.output_size,
            self.strides,
            self.sampling_ratio,
            aligned=self.aligned,
            pool=self.pool,
            operation=self.operation,
            implementation=self.implementation,
        )


@keras.saving.register_keras_serializable("keras_seg")
class Scatter(layers.Layer):
    """Undoes `Regions` for what was computed for each region."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"autocast": False, **kwargs})

    def call(self, values: tf.Tensor, boxes: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
        """values: [N + 1, …]; boxes: [B, P, 4], for their number; count: [B]. Returns [B, P, …], zeros after count."""
        there = tf.sequence_mask(count, tf.shape(boxes)[1])
        places = tf.where(there)
        shape = tf.concat([tf.shape(boxes, tf.int64)[:2], tf.shape(values, tf.int64)[1:]], 0)
        return tf.ensure_shape(
            tf.scatter_nd(places, values[:-1], shape), [None, boxes.shape[1], *values.shape[1:]]
        )


@keras.saving.register_keras_serializable("keras_seg")
class SelectDetections(_Configured):
    """`ops.detections.select_detections` of decoded boxes and class probabilities."""

    def __init__(
        self,
        box_weights: Sequence[float],
        score_threshold: float,
        nms_threshold: float,
        max_detections: int,
        min_size: float,
        **kwargs: Any,
    ) -> None:
        options = {
            key: value for key, value in locals().items() if key not in ("self", "kwargs", "__class__")
        }
        super().__init__(options, **{"dtype": "float32", **kwargs})

    def call(
        self, logits: tf.Tensor, deltas: tf.Tensor, proposals: tf.Tensor, count: tf.Tensor, size: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
        """logits: [B, P, K + 1], background last; deltas: [B, P, 4K or 4]; proposals: [B, P, 4]; count: [B].

        Returns boxes [B, D, 4], scores [B, D], classes int32 [B, D], their number int32 [B].
        """
        shape = tf.shape(proposals)
        boxes = decode(
            tf.reshape(deltas, [shape[0], shape[1], deltas.shape[-1] // 4, 4]),
            proposals[:, :, None],
            self.box_weights,
        )
        boxes, scores, classes, number = select_detections(
            boxes,
            tf.nn.softmax(logits)[..., :-1],
            count,
            tf.cast(size, tf.float32),
            score_threshold=self.score_threshold,
            nms_threshold=self.nms_threshold,
            max_detections=self.max_detections,
            min_size=self.min_size,
        )
        most = self.max_detections
        return (
            tf.ensure_shape(boxes, [None, most, 4]),
            tf.ensure_shape(scores, [None, most]),
            tf.ensure_shape(classes, [None, most]),
            number,
        )


@keras.saving.register_keras_serializable("keras_seg")
class ClassMasks(_Configured):
    """Mask probabilities of each region's own class."""

    def __init__(self, loss: str = "sigmoid", **kwargs: Any) -> None:
        super().__init__({"loss": loss}, **{"dtype": "float32", **kwargs})

    def call(self, logits: tf.Tensor, classes: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
        """logits: [N + 1, m, m, K], or one class-agnostic mask; classes: int32 [B, D]; count: [B].

        Returns float32 [N + 1, m, m].
        """
        probabilities = tf.nn.softmax(logits) if self.loss == "softmax" else tf.sigmoid(logits)
        if logits.shape[-1] == 1:
            return probabilities[..., 0]
        own = tf.boolean_mask(classes, tf.sequence_mask(count, tf.shape(classes)[1]))
        own = tf.concat([own, [0]], 0)
        return tf.gather(tf.transpose(probabilities, [0, 3, 1, 2]), own, batch_dims=1)


@keras.saving.register_keras_serializable("keras_seg")
class DecodeKeypoints(_Configured):
    """`ops.keypoints.decode_heatmaps`."""

    def __init__(self, score: str = "probability", **kwargs: Any) -> None:
        super().__init__({"score": score}, **{"dtype": "float32", **kwargs})

    def call(self, logits: tf.Tensor, boxes: tf.Tensor) -> tf.Tensor:
        """logits: [N, m, m, K]; boxes: [N, 4]. Returns float32 [N, K, 3]: x, y, score."""
        return tf.ensure_shape(decode_heatmaps(logits, boxes, score=self.score), [None, logits.shape[-1], 3])
