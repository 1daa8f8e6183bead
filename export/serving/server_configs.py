"""TensorFlow Serving's configuration files, read by the server's own protocol definitions.

`ModelServerConfig` comes with the package tensorflow-serving-api. `BatchingParameters` (session_bundle_config.proto) and
`MonitoringConfig` (monitoring_config.proto) do not: their fields are declared here, by the names that the server knows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from google.protobuf import (
    descriptor_pb2,
    descriptor_pool,
    message,
    message_factory,
    text_format,
    wrappers_pb2,
)
from tensorflow_serving.config import model_server_config_pb2

FIELD = descriptor_pb2.FieldDescriptorProto
INTEGER, TEXT = ".google.protobuf.Int64Value", ".google.protobuf.StringValue"
BATCHING = (
    ("max_batch_size", INTEGER),
    ("batch_timeout_micros", INTEGER),
    ("max_enqueued_batches", INTEGER),
    ("num_batch_threads", INTEGER),
    ("thread_pool_name", TEXT),
    ("allowed_batch_sizes", [FIELD.TYPE_INT64]),
    ("pad_variable_length_inputs", FIELD.TYPE_BOOL),
)
PROMETHEUS = (("enable", FIELD.TYPE_BOOL), ("path", FIELD.TYPE_STRING))
MONITORING = (("prometheus_config", ".tensorflow.serving.PrometheusConfig"),)


def read_models(path: str | Path) -> model_server_config_pb2.ModelServerConfig:
    """`--model_config_file`: which models and versions are served, from where.

    Raises ValueError, which names the file and the line, for what the server would not read either.
    """
    return _read(path, model_server_config_pb2.ModelServerConfig())


def read_batching(path: str | Path) -> Any:
    """`--batching_parameters_file`: how requests are joined. Raises ValueError as `read_models`, and for batch sizes that
    the server refuses when it starts."""
    parameters = _read(path, _message("BatchingParameters"))
    sizes = list(parameters.allowed_batch_sizes)
    if sizes and (sizes != sorted(set(sizes)) or sizes[-1] != parameters.max_batch_size.value):
        raise ValueError(f"{path}: allowed_batch_sizes must increase and end in max_batch_size, got {sizes}")
    return parameters


def read_monitoring(path: str | Path) -> Any:
    """`--monitoring_config_file`: where Prometheus fetches the server's figures. Raises ValueError as `read_models`."""
    return _read(path, _message("MonitoringConfig"))


def _read(path: str | Path, into: message.Message) -> Any:
    try:
        return text_format.Parse(Path(path).read_text(), into)
    except text_format.ParseError as error:
        raise ValueError(f"{path}:{error}") from None


def _message(name: str) -> message.Message:
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    file = descriptor_pb2.FileDescriptorProto(
        name="configs.proto",
        package="tensorflow.serving",
        syntax="proto3",
        dependency=[wrappers_pb2.DESCRIPTOR.name],
    )
    for owner, fields in (
        ("BatchingParameters", BATCHING),
        ("PrometheusConfig", PROMETHEUS),
        ("MonitoringConfig", MONITORING),
    ):
        declared = file.message_type.add(name=owner)
        for number, (field, kind) in enumerate(fields, start=1):
            label = FIELD.LABEL_REPEATED if isinstance(kind, list) else FIELD.LABEL_OPTIONAL
            kind = kind[0] if isinstance(kind, list) else kind
            typed = {"type_name": kind} if isinstance(kind, str) else {"type": kind}
            declared.field.add(name=field, number=number, label=label, **typed)
    pool.AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"tensorflow.serving.{name}"))()
