"""TensorFlow Serving's REST interface: JSON to tensors, a model's answer to JSON."""

from __future__ import annotations

import base64
import binascii
import http.server
import json
import re
import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from google.protobuf import json_format
from grpc import StatusCode
from served_models import Models, RequestError
from tensorflow_serving.apis import model_pb2

PATH = re.compile(r"/v1/models/([^/:]+)(?:/(versions|labels)/([^/:]+))?(:predict|/metadata)?")
HTTP = {
    StatusCode.OK: 200,
    StatusCode.INVALID_ARGUMENT: 400,
    StatusCode.OUT_OF_RANGE: 400,
    StatusCode.FAILED_PRECONDITION: 400,
    StatusCode.NOT_FOUND: 404,
    StatusCode.UNIMPLEMENTED: 501,
    StatusCode.UNAVAILABLE: 503,
    StatusCode.RESOURCE_EXHAUSTED: 503,
}
SECONDS = 30  # without a byte from the client


def tensors_of(body: Mapping[str, Any], specs: Mapping[str, tf.TensorSpec]) -> dict[str, tf.Tensor]:
    """The tensors of a :predict request in rows ("instances") or columns ("inputs").

    Raises RequestError (INVALID_ARGUMENT) for what does not fit the signature: other numbers than the type can hold, ragged
    lists, text that is no base64.
    """
    forms = [form for form in ("instances", "inputs") if form in body]
    if len(forms) != 1:
        raise RequestError(StatusCode.INVALID_ARGUMENT, 'the request needs either "instances" or "inputs"')
    given = body[forms[0]]
    if forms[0] == "instances":
        if not isinstance(given, list) or not given:
            raise RequestError(
                StatusCode.INVALID_ARGUMENT, '"instances" must be a list with one entry or more'
            )
        # without names, or with them; an object with the one key "b64" is a value
        if all(isinstance(row, dict) and "b64" not in row for row in given):
            names = {name for row in given for name in row}
            given = {name: [row.get(name) for row in given] for name in names}
    if not isinstance(given, dict) or "b64" in given:
        given = dict.fromkeys(list(specs)[:1], given)
    return {
        name: _tensor(name, value, specs[name]) if name in specs else value for name, value in given.items()
    }


def answer_of(body: Mapping[str, Any], outputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The answer in the form of the request: rows or columns; an only output goes without its name."""
    columns = {name: array.tolist() for name, array in outputs.items()}
    if "inputs" in body:
        return {"outputs": columns if len(columns) > 1 else next(iter(columns.values()))}
    if len(columns) == 1:
        return {"predictions": next(iter(columns.values()))}
    return {
        "predictions": [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    }


def _tensor(name: str, value: Any, spec: tf.TensorSpec) -> tf.Tensor:
    try:
        if spec.dtype == tf.string:
            return tf.constant(_bytes(value), tf.string)
        try:
            array = np.array(value)
        except ValueError:
            raise ValueError("lists of different lengths") from None
        kinds = "iu" if spec.dtype.is_integer else "iuf"
        if array.size and array.dtype.kind not in kinds:
            raise ValueError(f"takes {spec.dtype.name}, got other values")
        if (
            spec.dtype.is_integer
            and array.size
            and not spec.dtype.min <= array.min() <= array.max() <= spec.dtype.max
        ):
            raise ValueError(f"takes {spec.dtype.name} ({spec.dtype.min} to {spec.dtype.max})")
        return tf.constant(array.astype(spec.dtype.as_numpy_dtype))
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise RequestError(StatusCode.INVALID_ARGUMENT, f"{name}: {error}") from None


def _bytes(value: Any) -> Any:
    if isinstance(value, list):
        return [_bytes(entry) for entry in value]
    if isinstance(value, dict) and list(value) == ["b64"] and isinstance(value["b64"], str):
        try:
            return base64.b64decode(value["b64"], validate=True)
        except binascii.Error as error:
            raise ValueError(f"b64: {error}") from None
    if isinstance(value, str):
        return value.encode()
    raise ValueError('takes text or {"b64": "..."}')


class RestServer:
    """Answers on 127.0.0.1 from `start` to `stop`; `port` says where. threads: requests that are worked on at once."""

    def __init__(
        self,
        port: int,
        models: Models,
        *,
        status: Callable[[Models, model_pb2.ModelSpec], Any],
        metadata: Callable[[str, Any], Any],
        counts: Any,
        metrics_path: str,
        most_bytes: int,
        threads: int,
    ) -> None:
        slots = threading.BoundedSemaphore(threads)

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = SECONDS

            def do_GET(self) -> None:
                if metrics_path and self.path == metrics_path:
                    return self._send(200, counts.text().encode(), "text/plain")
                self._answer(self._look)

            def do_POST(self) -> None:
                self._answer(self._predict)

            def log_message(self, *_: Any) -> None:
                pass

            def _look(self) -> bytes:
                spec, verb = _spec(self.path)
                if verb == "/metadata":
                    message = metadata(spec.name, models.find(spec))
                elif verb is None:
                    message = status(models, spec)
                else:
                    raise RequestError(StatusCode.INVALID_ARGUMENT, f"{verb[1:]} is asked by POST")
                return json_format.MessageToJson(message, preserving_proto_field_name=True, indent=1).encode()

            def _predict(self) -> bytes:
                body = self._body()
                spec, verb = _spec(self.path)
                if verb != ":predict":
                    raise RequestError(StatusCode.INVALID_ARGUMENT, "only :predict is asked by POST")
                model = models.find(spec)
                try:
                    try:
                        request = json.loads(body)
                    except (ValueError, RecursionError) as error:
                        raise RequestError(
                            StatusCode.INVALID_ARGUMENT, f"the body is no JSON: {error}"
                        ) from None
                    if not isinstance(request, dict) or not isinstance(
                        request.get("signature_name", ""), str
                    ):
                        raise RequestError(
                            StatusCode.INVALID_ARGUMENT, "the body must be an object; signature_name text"
                        )
                    signature = request.get("signature_name", "")
                    with slots:
                        outputs = model.run(signature, tensors_of(request, model.inputs(signature)))
                        answer = json.dumps(answer_of(request, outputs)).encode()
                except RequestError as error:
                    counts.add(spec.name, error.status)
                    raise
                counts.add(spec.name, StatusCode.OK)
                return answer

            def _body(self) -> bytes:
                length = self.headers.get("Content-Length", "")
                if not length.isdigit():
                    self.close_connection = True
                    raise RequestError(StatusCode.INVALID_ARGUMENT, "the request has no Content-Length")
                if int(length) > most_bytes:
                    self.close_connection = True  # the body stays unread
                    raise RequestError(
                        StatusCode.RESOURCE_EXHAUSTED, f"the request has more than {most_bytes} bytes"
                    )
                return self.rfile.read(int(length))

            def _answer(self, work: Callable[[], bytes]) -> None:
                try:
                    self._send(200, work())
                except RequestError as error:
                    self._send(HTTP.get(error.status, 500), json.dumps({"error": str(error)}).encode())

            def _send(self, code: int, body: bytes, kind: str = "application/json") -> None:
                self.send_response(code)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def _spec(path: str) -> tuple[model_pb2.ModelSpec, str | None]:
    match = PATH.fullmatch(path)
    if match is None:
        raise RequestError(StatusCode.NOT_FOUND, f"nothing is at {path}")
    name, kind, version, verb = match.groups()
    spec = model_pb2.ModelSpec(name=name)
    if kind == "labels":
        spec.version_label = version
    elif kind == "versions":
        if not (version.isdecimal() and len(version) < 19):
            raise RequestError(StatusCode.INVALID_ARGUMENT, f"a version is a number, got {version!r}")
        spec.version.value = int(version)
    return spec, verb
