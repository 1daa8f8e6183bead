"""How many images a model server answers in a second, and how long a client waits: latency percentiles as a table.

    python load_generator.py maskrcnn_nuclei cells.png --clients 1,4,16 --images-per-request 1,4
    python load_generator.py maskrcnn_nuclei cells.png --rate 5,10,20

With --clients, so many clients each send the next request as soon as they have an answer: it shows the most that the server
can do. With --rate, requests leave at so many a second whether or not earlier ones are answered, as from many independent
users, and a latency counts from when the request was due: it shows the waiting. Every setting first sends a few requests
that are not counted, and ends after --requests or --seconds, whichever is first.
"""

from __future__ import annotations

import argparse
import collections
import itertools
import math
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent import futures
from pathlib import Path
from typing import NamedTuple

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2

METHOD = "/tensorflow.serving.PredictionService/Predict"
PERCENTILES = (50, 90, 95, 99)
UNCOUNTED = 2  # requests of each client
MOST_WAITING = 256  # requests under --rate; beyond these the server has fallen behind for good


class Result(NamedTuple):
    """Of each answered request the seconds it took; of the others the gRPC status; seconds of the whole."""

    latencies: list[float]
    errors: collections.Counter[str]
    seconds: float


def prepare(
    files: Sequence[bytes],
    model: str,
    *,
    signature: str = "encoded_images",
    label: str = "",
    images_per_request: int = 1,
) -> list[bytes]:
    """Requests as bytes, one for each file to begin with, in which the files take turns.

    signature: "encoded_images" sends the files, "serving_default" their pixels (of one size in a request). Raises ValueError
    for a file that is no image, or images of different sizes in one request.
    """
    requests = []
    for first in range(len(files)):
        chosen = [files[(first + n) % len(files)] for n in range(images_per_request)]
        request = predict_pb2.PredictRequest()
        request.model_spec.name, request.model_spec.signature_name = model, signature
        if label:
            request.model_spec.version_label = label
        if signature == "encoded_images":
            request.inputs["image_bytes"].CopyFrom(tf.make_tensor_proto(chosen, tf.string))
        else:
            request.inputs["images"].CopyFrom(tf.make_tensor_proto(_pixels(chosen)))
        requests.append(request.SerializeToString())
    return requests


def closed_loop(
    send: Callable[[bytes], object], requests: Sequence[bytes], clients: int, count: int, seconds: float
) -> Result:
    """Clients that each wait for an answer before they ask again."""
    numbers = itertools.count()
    latencies: list[float] = []
    errors: collections.Counter[str] = collections.Counter()
    lock = threading.Lock()

    def client() -> None:
        while (number := next(numbers)) < count and time.perf_counter() < end:
            _timed(send, requests[number % len(requests)], time.perf_counter(), latencies, errors, lock)

    start = time.perf_counter()
    end = start + seconds
    with futures.ThreadPoolExecutor(clients) as pool:
        for done in [pool.submit(client) for _ in range(clients)]:
            done.result()
    return Result(latencies, errors, time.perf_counter() - start)


def open_loop(
    send: Callable[[bytes], object], requests: Sequence[bytes], rate: float, count: int, seconds: float
) -> Result:
    """Requests at `rate` a second, evenly spaced, whatever becomes of them."""
    latencies: list[float] = []
    errors: collections.Counter[str] = collections.Counter()
    lock = threading.Lock()
    start = time.perf_counter()
    with futures.ThreadPoolExecutor(MOST_WAITING) as pool:
        for number in range(min(count, math.ceil(rate * seconds))):
            due = start + number / rate
            time.sleep(max(0.0, due - time.perf_counter()))
            pool.submit(_timed, send, requests[number % len(requests)], due, latencies, errors, lock)
    return Result(latencies, errors, time.perf_counter() - start)


def percentiles(latencies: Sequence[float]) -> list[float]:
    """Milliseconds within which 50, 90, 95 and 99 of 100 requests were answered (nearest rank), and the longest."""
    if not latencies:
        return [math.nan] * (len(PERCENTILES) + 1)
    ranked = sorted(latencies)
    ranks = [math.ceil(percentile / 100 * len(ranked)) for percentile in PERCENTILES]
    return [1000 * ranked[rank - 1] for rank in ranks] + [1000 * ranked[-1]]


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parse(arguments)
    try:
        files = [path.read_bytes() for path in options.images]
        batches = {
            images: prepare(
                files,
                options.model,
                signature=options.signature,
                label=options.label,
                images_per_request=images,
            )
            for images in options.images_per_request
        }
    except (OSError, ValueError) as error:
        sys.exit(f"load_generator: {error}")
    print("| load | images a request | answers | errors | images/s | p50 ms | p90 | p95 | p99 | max |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    with grpc.insecure_channel(options.server, options=[("grpc.max_receive_message_length", -1)]) as channel:
        call = channel.unary_unary(METHOD)  # bytes to bytes: what is measured is the server
        send = lambda request: call(request, timeout=options.timeout)
        for images, requests in batches.items():
            for load in options.rate or options.clients:
                clients = 1 if options.rate else load
                closed_loop(send, requests, clients, clients * UNCOUNTED, options.seconds)
                if options.rate:
                    result = open_loop(send, requests, load, options.requests, options.seconds)
                else:
                    result = closed_loop(send, requests, load, options.requests, options.seconds)
                _print_row(f"{load:g} a second" if options.rate else f"{load} clients", images, result)
                if not result.latencies:
                    sys.exit(f"load_generator: no answer from {options.server}: {_counts(result.errors)}")


def _timed(send, request, begin, latencies, errors, lock) -> None:
    try:
        send(request)
    except grpc.RpcError as error:
        with lock:
            errors[error.code().name] += 1
    else:
        with lock:
            latencies.append(time.perf_counter() - begin)


def _pixels(files: Sequence[bytes]) -> np.ndarray:
    try:
        images = [tf.io.decode_image(file, channels=3, expand_animations=False).numpy() for file in files]
    except tf.errors.InvalidArgumentError as error:
        raise ValueError(f"an image cannot be read: {error.message}") from error
    if len({image.shape for image in images}) > 1:
        raise ValueError(
            "images of one size go into a request of serving_default; use --signature encoded_images"
        )
    return np.stack(images)


def _print_row(load: str, images: int, result: Result) -> None:
    times = " | ".join(f"{value:.0f}" for value in percentiles(result.latencies))
    rate = images * len(result.latencies) / result.seconds
    print(
        f"| {load} | {images} | {len(result.latencies)} | {_counts(result.errors) or 0} | {rate:.1f} | {times} |",
        flush=True,
    )


def _counts(errors: collections.Counter[str]) -> str:
    return ", ".join(f"{count} {code}" for code, count in sorted(errors.items()))


def _positive(kind: type) -> Callable[[str], list]:
    def numbers(text: str) -> list:
        values = [kind(value) for value in text.split(",")]
        if min(values) <= 0:
            raise argparse.ArgumentTypeError(f"takes positive numbers, got {text}")
        return values

    return numbers


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("images", nargs="+", type=Path, help="JPEG or PNG files, which take turns")
    parser.add_argument("--server", default="localhost:8500", help="a server of your own")
    parser.add_argument(
        "--signature", choices=["encoded_images", "serving_default"], default="encoded_images"
    )
    parser.add_argument("--label", default="", help="of the model's version; none: the newest")
    parser.add_argument("--clients", type=_positive(int), default=[1, 4], metavar="N,N,...")
    parser.add_argument(
        "--rate", type=_positive(float), metavar="R,R,...", help="requests a second, in place of --clients"
    )
    parser.add_argument("--images-per-request", type=_positive(int), default=[1], metavar="N,N,...")
    parser.add_argument("--requests", type=int, default=200, help="at most, of each setting")
    parser.add_argument("--seconds", type=float, default=30, help="at most, of each setting")
    parser.add_argument(
        "--timeout", type=float, default=120, help="seconds until a request counts as an error"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
