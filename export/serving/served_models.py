"""The models that a models.config names, loaded from their SavedModels and run as TensorFlow Serving runs them.

What a person sees is the server's: names of signatures and tensors, labels of versions, which status answers which mistake.
Models run in sessions, as the server's do: calls of TensorFlow's functions from Python would keep the message of each error for
ever (some 800 bytes, in 2.21). Batches are formed by TensorFlow's own scheduler, the one that the server uses.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from grpc import StatusCode
from tensorflow.core.framework import tensor_pb2, types_pb2
from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2
from tensorflow_serving.apis import model_pb2, predict_pb2, prediction_log_pb2
from tensorflow_serving.config import model_server_config_pb2

WARM_UP = Path("assets.extra/tf_serving_warmup_requests")
MOST_WARM_UPS = 1000  # the server refuses more
STRING_BYTES = 24  # of an empty string in a tensor (tensorflow::tstring)
STATUS = {
    tf.errors.InvalidArgumentError: StatusCode.INVALID_ARGUMENT,
    tf.errors.FailedPreconditionError: StatusCode.FAILED_PRECONDITION,
    tf.errors.NotFoundError: StatusCode.NOT_FOUND,
    tf.errors.OutOfRangeError: StatusCode.OUT_OF_RANGE,
    tf.errors.ResourceExhaustedError: StatusCode.RESOURCE_EXHAUSTED,
    tf.errors.UnavailableError: StatusCode.UNAVAILABLE,
    tf.errors.UnimplementedError: StatusCode.UNIMPLEMENTED,
}


class RequestError(Exception):
    """A request that cannot be answered: `status` and a message for who sent it."""

    def __init__(self, status: StatusCode, message: str) -> None:
        super().__init__(message)
        self.status = status


class ServedModel:
    """One version of a model.

    batching: BatchingParameters, or None: each request by itself. most_bytes: of a tensor in a request; one of a few bytes can
    ask for one of any size, filled with one value, which TensorFlow Serving makes.
    """

    def __init__(self, path: Path, *, batching: Any = None, most_bytes: int = 2**28) -> None:
        self.path, self.version = path, int(path.name)
        self.most_bytes = most_bytes
        with tf.Graph().as_default():
            signatures = tf.saved_model.load(str(path)).signatures
            session = tf.compat.v1.Session()
            self._functions = {name: _Function(each, batching, session) for name, each in signatures.items()}
            session.run([v.initializer for each in signatures.values() for v in each.graph.variables])

    @property
    def signatures(self) -> dict[str, dict[str, tf.TensorSpec]]:
        """Of each signature the inputs by name."""
        return {name: function.inputs for name, function in self._functions.items()}

    def signature_definitions(self) -> dict[str, meta_graph_pb2.SignatureDef]:
        """What GetModelMetadata answers, as the SavedModel's file has it."""
        saved = saved_model_pb2.SavedModel.FromString((self.path / "saved_model.pb").read_bytes())
        return dict(saved.meta_graphs[0].signature_def)

    def inputs(self, signature: str) -> dict[str, tf.TensorSpec]:
        """A signature's inputs by name; "" is serving_default. Raises RequestError (INVALID_ARGUMENT)."""
        return self._function(signature).inputs

    def predict(self, request: predict_pb2.PredictRequest) -> dict[str, np.ndarray]:
        """Answer a request. Raises RequestError for one that is wrong, or that the model fails on."""
        signature = request.model_spec.signature_name
        function = self._function(signature)
        known = {
            name: self._decode(name, request.inputs[name], function)
            for name in function.inputs
            if name in request.inputs
        }
        # names that the signature has not go along, for `run` to refuse
        outputs = self.run(signature, {**dict.fromkeys(request.inputs), **known})
        unknown = set(request.output_filter) - set(outputs)
        if unknown:
            raise RequestError(
                StatusCode.INVALID_ARGUMENT,
                f"no such outputs: {sorted(unknown)}; there are {sorted(outputs)}",
            )
        return {name: outputs[name] for name in request.output_filter or outputs}

    def run(self, signature: str, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Run a signature on tensors by name. Raises RequestError."""
        function = self._function(signature)
        if set(inputs) != set(function.inputs):
            raise RequestError(
                StatusCode.INVALID_ARGUMENT, f"takes inputs {sorted(function.inputs)}, got {sorted(inputs)}"
            )
        for name, spec in function.inputs.items():
            if not spec.shape.is_compatible_with(inputs[name].shape):
                raise RequestError(
                    StatusCode.INVALID_ARGUMENT, f"{name}: takes shape {spec.shape}, got {inputs[name].shape}"
                )
        try:
            return function(inputs)
        except tf.errors.OpError as error:
            status = next(
                (code for kind, code in STATUS.items() if isinstance(error, kind)), StatusCode.INTERNAL
            )
            raise RequestError(status, error.message) from error

    def warm_up(self) -> int:
        """Run the requests that came with the model, as the server does when it loads one. Returns how many.

        Raises ValueError for a file that the server would not load, or a request that fails.
        """
        requests = warm_up_requests(self.path)
        for number, request in enumerate(requests):
            try:
                self.predict(request)
            except RequestError as error:
                raise ValueError(f"{self.path / WARM_UP}: request {number} fails: {error}") from error
        return len(requests)

    def _function(self, signature: str) -> _Function:
        try:
            return self._functions[signature or "serving_default"]
        except KeyError:
            known = sorted(self._functions)
            raise RequestError(
                StatusCode.INVALID_ARGUMENT, f"no signature {signature!r}; there are {known}"
            ) from None

    def _decode(self, name: str, proto: tensor_pb2.TensorProto, function: _Function) -> np.ndarray:
        spec = function.inputs[name]
        if proto.dtype != spec.dtype.as_datatype_enum:
            given = (
                types_pb2.DataType.Name(proto.dtype)
                if proto.dtype in types_pb2.DataType.values()
                else proto.dtype
            )
            raise RequestError(StatusCode.INVALID_ARGUMENT, f"{name}: takes {spec.dtype.name}, got {given}")
        shape = [dimension.size for dimension in proto.tensor_shape.dim]
        count = math.prod(shape)
        size = count * (STRING_BYTES if spec.dtype == tf.string else spec.dtype.size)
        if size > self.most_bytes:
            raise RequestError(
                StatusCode.RESOURCE_EXHAUSTED,
                f"{name}: a tensor of {size} bytes; at most {self.most_bytes} are taken",
            )
        try:
            return function.parse[name](proto.SerializeToString())
        except tf.errors.InvalidArgumentError as error:
            raise RequestError(StatusCode.INVALID_ARGUMENT, f"{name}: {error.message}") from error


class Models:
    """All models of a ModelServerConfig.

    folder: stands for /models, where the configuration has them. Raises FileNotFoundError for a model that is not there,
    ValueError for a configuration or a warm-up that the server would refuse.
    """

    def __init__(
        self,
        config: model_server_config_pb2.ModelServerConfig,
        folder: Path,
        *,
        batching: Any = None,
        most_bytes: int = 2**28,
        report: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._versions: dict[str, dict[int, ServedModel]] = {}
        self._labels: dict[str, dict[str, int]] = {}
        for model in config.model_config_list.config:
            base = folder / Path(model.base_path).relative_to("/models")
            versions = {}
            for number in _wanted(model, base):
                start = time.perf_counter()
                served = ServedModel(base / str(number), batching=batching, most_bytes=most_bytes)
                warm = served.warm_up()
                versions[number] = served
                report(
                    f"{model.name} version {number}: {time.perf_counter() - start:.1f} s, {warm} warm-up requests"
                )
            labels = dict(model.version_labels)
            for label, number in labels.items():
                if number not in versions:
                    raise ValueError(
                        f"{model.name}: label {label!r} is version {number}, which is not served"
                    )
            self._versions[model.name], self._labels[model.name] = versions, labels

    def find(self, spec: model_pb2.ModelSpec) -> ServedModel:
        """The version that a request names; the newest if it names none. Raises RequestError (NOT_FOUND)."""
        versions = self.versions(spec.name)
        choice = spec.WhichOneof("version_choice")
        if choice == "version_label":
            number = self._labels[spec.name].get(spec.version_label)
        else:
            number = spec.version.value if choice == "version" else max(versions)
        if number not in versions:
            asked = repr(spec.version_label) if choice == "version_label" else number
            raise RequestError(
                StatusCode.NOT_FOUND, f"{spec.name} has no version {asked}; it has {sorted(versions)}"
            )
        return versions[number]

    def versions(self, name: str) -> dict[int, ServedModel]:
        """All versions of a model by number. Raises RequestError (NOT_FOUND)."""
        try:
            return self._versions[name]
        except KeyError:
            raise RequestError(
                StatusCode.NOT_FOUND, f"no model {name!r}; there are {sorted(self._versions)}"
            ) from None


def warm_up_requests(path: Path) -> list[predict_pb2.PredictRequest]:
    """The requests for warming up that a SavedModel brings, [] without any. Raises ValueError for unreadable ones."""
    file = path / WARM_UP
    if not file.exists():
        return []
    try:
        records = [record.numpy() for record in tf.data.TFRecordDataset(str(file))]
    except tf.errors.DataLossError as error:
        raise ValueError(f"{file}: is no whole TFRecord file: {error.message}") from error
    if len(records) > MOST_WARM_UPS:
        raise ValueError(f"{file}: holds {len(records)} requests; the server takes at most {MOST_WARM_UPS}")
    logs = [prediction_log_pb2.PredictionLog.FromString(record) for record in records]
    if any(log.WhichOneof("log_type") != "predict_log" for log in logs):
        raise ValueError(f"{file}: holds something else than predict_log")
    return [log.predict_log.request for log in logs]


class _Function:
    """A signature in the graph of a session. If there are parameters for that, its calls are joined to batches.

    Attributes:
        inputs: name to specification.
        parse: name to what makes an array of a serialized TensorProto.
    """

    def __init__(self, function: Any, batching: Any, session: tf.compat.v1.Session) -> None:
        self.inputs: dict[str, tf.TensorSpec] = dict(function.structured_input_signature[1])
        self.parse = {name: _parser(spec.dtype, session) for name, spec in self.inputs.items()}
        self._names = sorted(function.structured_outputs)
        places = {
            name: tf.compat.v1.placeholder(spec.dtype, spec.shape) for name, spec in self.inputs.items()
        }
        if batching is None:
            outputs = _values(function(**places))
        else:
            ((argument, place),) = places.items()
            outputs = tf.nondifferentiable_batch_function(
                num_batch_threads=batching.num_batch_threads.value,
                max_batch_size=batching.max_batch_size.value,
                batch_timeout_micros=batching.batch_timeout_micros.value,
                allowed_batch_sizes=list(batching.allowed_batch_sizes) or None,
                max_enqueued_batches=batching.max_enqueued_batches.value,
                enable_large_batch_splitting=False,
            )(lambda tensor: _values(function(**{argument: tensor})))(place)
        self._call = session.make_callable(outputs, list(places.values()))

    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        return dict(
            zip(self._names, self._call(*(np.asarray(inputs[name]) for name in self.inputs)), strict=True)
        )


def _values(outputs: dict[str, tf.Tensor]) -> list[tf.Tensor]:
    return [outputs[name] for name in sorted(outputs)]


def _parser(dtype: tf.DType, session: tf.compat.v1.Session) -> Callable[[bytes], np.ndarray]:
    serialized = tf.compat.v1.placeholder(tf.string, [])
    parse = session.make_callable(tf.io.parse_tensor(serialized, dtype), [serialized])
    return lambda proto: np.asarray(parse(proto), dtype.as_numpy_dtype)


def _wanted(model: model_server_config_pb2.ModelConfig, base: Path) -> list[int]:
    there = (
        sorted(int(entry.name) for entry in base.iterdir() if entry.name.isdigit()) if base.is_dir() else []
    )
    policy = model.model_version_policy
    if policy.HasField("specific"):
        wanted = list(policy.specific.versions)
        if set(wanted) <= set(there) and wanted:
            return wanted
        raise FileNotFoundError(f"{base}: should have the versions {wanted} of {model.name}, has {there}")
    if not there:
        raise FileNotFoundError(f"{base}: has no version of {model.name} (a folder named by a number)")
    return there if policy.HasField("all") else there[-(policy.latest.num_versions or 1) :]
