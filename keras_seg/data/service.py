"""Batches made in one process and used in others: `tf.data` service around the datasets of this package.

Their images are decoded and augmented by Python functions, which a plain remote worker of `tf.data` service cannot
run. So dispatcher and worker live in the process that made the dataset (`serve`), and consumers anywhere read from it
(`receive`). For more than one machine that makes batches, serve shards of the data and interleave them
(docs/coco_data.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tensorflow as tf

__all__ = ["Service", "receive", "serve"]

DATASET_ID = "keras_seg"


@dataclass(frozen=True)
class Service:
    """address: what consumers give to `receive`, as "grpc://host:5000". The service ends with `stop`."""

    address: str
    dispatcher: Any
    worker: Any

    def stop(self) -> None:
        """End the service. Datasets of this process that are read meanwhile, in other threads, fail."""
        from keras_seg.data.detection_batches import CALLS

        CALLS.refuse()
        try:
            self.worker._stop()
            self.dispatcher._stop()
        finally:
            CALLS.admit()

    def join(self) -> None:
        """Serve until the process ends."""
        self.dispatcher.join()


def serve(dataset: tf.data.Dataset, *, port: int = 0, host: str = "localhost") -> Service:
    """Offer a dataset's batches to other processes.

    port: of the dispatcher; 0 takes a free one. host: this machine's name, as consumers know it. Whoever reaches the
    port can read the data and run graphs here: only open it to machines that you trust.
    """
    import tensorflow as tf

    service = tf.data.experimental.service
    dispatcher = service.DispatchServer(service.DispatcherConfig(port=port, protocol="grpc"))
    protocol, _, bound = dispatcher.target.partition("://")
    number = bound.rpartition(":")[2]
    worker = service.WorkerServer(
        service.WorkerConfig(dispatcher_address=bound, worker_address=f"{host}:%port%", protocol=protocol)
    )
    address = f"{protocol}://{host}:{number}"
    service.register_dataset(address, dataset, dataset_id=DATASET_ID)
    return Service(address, dispatcher, worker)


def receive(address: str, element_spec: Any, *, in_order: bool = True) -> tf.data.Dataset:
    """The batches that `serve` offers at an address.

    element_spec: the served dataset's, `dataset.element_spec`. in_order: in the served order, of one consumer alone
    the same batches as without service; False may be faster. Several consumers each get all batches.
    """
    import tensorflow as tf

    service = tf.data.experimental.service
    return service.from_dataset_id(
        service.ShardingPolicy.OFF,
        address,
        DATASET_ID,
        element_spec=element_spec,
        max_outstanding_requests=1 if in_order else None,
    )
