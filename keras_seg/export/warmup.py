"""Requests that TensorFlow Serving runs when it loads a model, so that the first real one does not wait for TensorFlow to
optimise the graph: `assets.extra/tf_serving_warmup_requests`, a TFRecord file of `tensorflow.serving.PredictionLog`.

These messages are written by the few fields that matter (tensorflow_serving/apis: prediction_log.proto, predict.proto,
model.proto), so that TensorFlow Serving's package is not needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import tensorflow as tf

FILE = "assets.extra/tf_serving_warmup_requests"
GREY = 128


def write(
    path: Path,
    name: str,
    signatures: Mapping[str, tf.types.experimental.ConcreteFunction],
    sizes: Sequence[tuple[int, int]],
) -> None:
    """One request for each signature and image size (height, width), a grey image, into a SavedModel's folder.

    name: the model's on the server. No sizes, no file.
    """
    if not sizes:
        return
    file = path / FILE
    file.parent.mkdir()
    with tf.io.TFRecordWriter(str(file)) as writer:
        for signature, function in signatures.items():
            (spec,) = function.structured_input_signature[0]
            for size in sizes:
                writer.write(_prediction_log(name, signature, spec.name, _grey(spec, size)))


def _grey(spec: tf.TensorSpec, size: tuple[int, int]) -> tf.compat.v1.TensorProto:
    """One image for a signature's argument: pixels, or a file."""
    if spec.dtype == tf.string:
        image = tf.io.encode_png(tf.fill([*size, 3], tf.constant(GREY, tf.uint8)))
        return tf.make_tensor_proto([image.numpy()], tf.string)
    # one number stands for all
    return tf.make_tensor_proto(GREY, spec.dtype, [1, *size, spec.shape[-1]])


def _prediction_log(name: str, signature: str, argument: str, value: tf.compat.v1.TensorProto) -> bytes:
    entry = _field(1, argument.encode()) + _field(2, value.SerializeToString())
    model = _field(1, name.encode()) + _field(3, signature.encode())
    request = _field(1, model) + _field(2, entry)  # PredictRequest: model_spec, inputs
    return _field(6, _field(1, request))  # PredictionLog.predict_log: PredictLog.request


def _field(number: int, content: bytes) -> bytes:
    """A field of variable length in Protocol Buffers' wire format."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    groups = []
    while value >= 0x80:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*groups, value])
