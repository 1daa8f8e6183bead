"""Warm-up requests are TensorFlow Serving's own messages, and the exported model answers them."""

from __future__ import annotations

import pytest
import tensorflow as tf

from keras_seg.export import saved_model, warmup
from keras_seg.models.unet import unet


@pytest.fixture(scope="module")
def model():
    return unet(3, depth=1, base_channels=2, padding="same", name="small")


def test_requests_are_read_back_and_answered(model, tmp_path):
    logs = pytest.importorskip(
        "tensorflow_serving.apis.prediction_log_pb2", reason="needs tensorflow-serving-api"
    )
    sizes = [(16, 20), (300, 9)]
    path = saved_model(model, tmp_path / "1", warmup_sizes=sizes)
    records = [*tf.data.TFRecordDataset(str(path / warmup.FILE)).as_numpy_iterator()]
    signatures = tf.saved_model.load(str(path)).signatures
    answered = []
    for record in records:
        log = logs.PredictionLog.FromString(record)
        assert log.SerializeToString() == record  # nothing in it is unknown
        request = log.predict_log.request
        assert request.model_spec.name == "small"
        inputs = {name: tf.constant(tf.make_ndarray(value)) for name, value in request.inputs.items()}
        outputs = signatures[request.model_spec.signature_name](**inputs)
        answered.append((request.model_spec.signature_name, tuple(outputs["probabilities"].shape[:3])))
    assert sorted(answered) == sorted((signature, (1, *size)) for signature in signatures for size in sizes)


def test_sizes(model, tmp_path):
    count = lambda path: sum(1 for _ in tf.data.TFRecordDataset(str(path / warmup.FILE)))
    assert count(saved_model(model, tmp_path / "1")) == 3  # one each signature
    assert not (saved_model(model, tmp_path / "2", warmup_sizes=()) / warmup.FILE).exists()
    with pytest.raises(ValueError, match=r"warmup_sizes are pairs of \(height, width\), got \(0, 5\)"):
        saved_model(model, tmp_path / "3", warmup_sizes=[(0, 5)])
