"""A small model server that speaks TensorFlow Serving's protocols, to try clients and models where Docker is not.

    python local_server.py --models_folder models --model_config_file models.config

gRPC: Predict, GetModelMetadata, GetModelStatus. REST: status, metadata, :predict, and the counts of requests at the path of
monitoring.config. It answers this machine alone. For tests and for measuring, not for production: it is Python, loads
nothing anew, and its status messages are its own.
"""

from __future__ import annotations

import argparse
import collections
import os
import signal
import sys
import threading
from concurrent import futures
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # as docker-compose.yml

import grpc
import server_configs
import tensorflow as tf
from google.protobuf.message import DecodeError
from rest_api import RestServer
from served_models import Models, RequestError
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

AVAILABLE = get_model_status_pb2.ModelVersionStatus.AVAILABLE


class Counts:
    """How many requests each model had, by the status of the answer."""

    def __init__(self) -> None:
        self._counts: collections.Counter[tuple[str, str]] = collections.Counter()
        self._lock = threading.Lock()

    def add(self, model: str, status: grpc.StatusCode) -> None:
        with self._lock:
            self._counts[model, status.name] += 1

    def text(self) -> str:
        """As Prometheus reads it."""
        with self._lock:
            counts = sorted(self._counts.items())
        lines = ["# TYPE :tensorflow:serving:request_count counter"]
        for (model, status), count in counts:
            lines.append(
                f':tensorflow:serving:request_count{{model_name="{model}",status="{status}"}} {count}'
            )
        return "\n".join(lines) + "\n"


class PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    def __init__(self, models: Models, counts: Counts) -> None:
        self._models, self._counts = models, counts

    def Predict(self, request: predict_pb2.PredictRequest, context: Any) -> predict_pb2.PredictResponse:
        try:
            model = self._models.find(request.model_spec)
        except RequestError as error:  # not counted: anybody may ask for any name
            context.abort(error.status, str(error))
        try:
            outputs = model.predict(request)
        except RequestError as error:
            self._counts.add(request.model_spec.name, error.status)
            context.abort(error.status, str(error))
        response = predict_pb2.PredictResponse()
        response.model_spec.CopyFrom(request.model_spec)
        response.model_spec.version.value = model.version
        for name, tensor in outputs.items():
            response.outputs[name].CopyFrom(tf.make_tensor_proto(tensor))
        self._counts.add(request.model_spec.name, grpc.StatusCode.OK)
        return response

    def GetModelMetadata(self, request: Any, context: Any) -> Any:
        try:
            model = self._models.find(request.model_spec)
        except RequestError as error:
            context.abort(error.status, str(error))
        return metadata(request.model_spec.name, model)


class ModelService(model_service_pb2_grpc.ModelServiceServicer):
    def __init__(self, models: Models) -> None:
        self._models = models

    def GetModelStatus(self, request: Any, context: Any) -> Any:
        try:
            return status(self._models, request.model_spec)
        except RequestError as error:
            context.abort(error.status, str(error))


class Reading(grpc.ServerInterceptor):
    """Refuses requests that are no messages. gRPC would too, but keeps 16 kB of each for ever (1.85)."""

    def intercept_service(self, continuation: Any, details: grpc.HandlerCallDetails) -> Any:
        handler = continuation(details)
        if handler is None or handler.unary_unary is None:
            return handler

        def answer(content: bytes, context: grpc.ServicerContext) -> Any:
            try:
                request = handler.request_deserializer(content)
            except DecodeError as error:
                context.abort(grpc.StatusCode.INTERNAL, f"the request is no message of this method: {error}")
            return handler.unary_unary(request, context)

        return grpc.unary_unary_rpc_method_handler(answer, response_serializer=handler.response_serializer)


def metadata(name: str, model: Any) -> get_model_metadata_pb2.GetModelMetadataResponse:
    response = get_model_metadata_pb2.GetModelMetadataResponse()
    response.model_spec.name, response.model_spec.version.value = name, model.version
    signatures = get_model_metadata_pb2.SignatureDefMap(signature_def=model.signature_definitions())
    response.metadata["signature_def"].Pack(signatures)
    return response


def status(models: Models, spec: Any) -> get_model_status_pb2.GetModelStatusResponse:
    one = spec.WhichOneof("version_choice") is not None
    numbers = [models.find(spec).version] if one else sorted(models.versions(spec.name), reverse=True)
    response = get_model_status_pb2.GetModelStatusResponse()
    for number in numbers:
        response.model_version_status.add(version=number, state=AVAILABLE)
    return response


def start(
    models: Models,
    *,
    port: int = 0,
    rest_port: int = 0,
    metrics_path: str = "",
    most_bytes: int = 2**28,
    threads: int = 16,
) -> tuple[grpc.Server, RestServer, int]:
    """Serve models on this machine's own address; port 0 takes any that is free.

    threads: requests that are worked on at once; others wait. Returns the gRPC server, the REST server and the gRPC port.
    Raises OSError for a port that is taken.
    """
    counts = Counts()
    options = [
        ("grpc.max_receive_message_length", most_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.so_reuseport", 0),
    ]
    pool = futures.ThreadPoolExecutor(threads)
    server = grpc.server(pool, options=options, interceptors=[Reading()])
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
        PredictionService(models, counts), server
    )
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(ModelService(models), server)
    try:
        port = server.add_insecure_port(f"127.0.0.1:{port}")
    except RuntimeError:
        raise OSError(f"port {port} is taken; give another --port") from None
    rest = RestServer(
        rest_port,
        models,
        status=status,
        metadata=metadata,
        counts=counts,
        metrics_path=metrics_path,
        most_bytes=most_bytes,
        threads=threads,
    )
    server.start()
    rest.start()
    return server, rest, port


def main(arguments: list[str] | None = None) -> None:
    options = _parse(arguments)
    try:
        config = server_configs.read_models(options.model_config_file)
        batching = (
            server_configs.read_batching(options.batching_parameters_file)
            if options.enable_batching
            else None
        )
        monitoring = server_configs.read_monitoring(options.monitoring_config_file).prometheus_config
        most_bytes = options.max_request_megabytes * 10**6
        models = Models(config, options.models_folder, batching=batching, most_bytes=most_bytes, report=_say)
        server, rest, port = start(
            models,
            port=options.port,
            rest_port=options.rest_api_port,
            metrics_path=monitoring.path if monitoring.enable else "",
            most_bytes=most_bytes,
        )
    except (OSError, ValueError) as error:
        sys.exit(f"local_server: {error}")
    _say(f"gRPC at 127.0.0.1:{port}, REST at http://127.0.0.1:{rest.port}")
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: server.stop(grace=1))
    server.wait_for_termination()
    rest.stop()


def _say(line: str) -> None:
    print(line, flush=True)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--models_folder", type=Path, default=here / "models", help="stands for /models of the configuration"
    )
    parser.add_argument("--model_config_file", type=Path, default=here / "models.config")
    parser.add_argument(
        "--enable_batching", action="store_true", help="join requests by --batching_parameters_file"
    )
    parser.add_argument("--batching_parameters_file", type=Path, default=here / "batching.config")
    parser.add_argument("--monitoring_config_file", type=Path, default=here / "monitoring.config")
    parser.add_argument("--port", type=int, default=8500, help="of gRPC; 0: any that is free")
    parser.add_argument("--rest_api_port", type=int, default=8501, help="of REST; 0: any that is free")
    parser.add_argument(
        "--max_request_megabytes", type=int, default=256, help="of a request, and of a tensor in it"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
