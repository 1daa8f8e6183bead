"""One training run on several devices or hosts: who takes part, a step of all of them, and what only one of them does.

Every replica (a device of a worker) computes the losses and gradients of its own batch. Both are averaged over all
replicas, and each worker makes the same update of its own copy of the variables.
"""

from __future__ import annotations

import functools
import json
import os
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any, NamedTuple

import keras
import tensorflow as tf

Batch = dict[str, tf.Tensor]
HINT = "it looks like " + json.dumps(
    {"cluster": {"worker": ["host1:12345", "host2:12345"]}, "task": {"type": "worker", "index": 0}}
)
LOST = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.InternalError,
)


class WorkerLost(ConnectionError):
    """Another worker of the run is gone."""


class Hosts(NamedTuple):
    """The workers of a run. strategy: what holds them together. number: of this one, the first, 0, being the chief.
    count: of all workers."""

    strategy: tf.distribute.Strategy
    number: int = 0
    count: int = 1  # type: ignore[assignment]  # a named tuple's count() is not used

    @property
    def chief(self) -> bool:
        """Whether this one judges, writes and tells."""
        return self.number == 0

    @property
    def replicas(self) -> int:
        """Devices of this worker that train."""
        return self.strategy.num_replicas_in_sync // self.count

    @property
    def shard(self) -> tuple[int, int]:
        """(number, how many), as the data sets take it."""
        return self.number, self.count


def hosts_of(strategy: tf.distribute.Strategy | None = None, say: Callable[[str], None] = print) -> Hosts:
    """The workers of a strategy; None: of those that the environment variable TF_CONFIG lists, or this process alone.

    With several workers it returns once all of them have called it. TensorFlow wants it called before anything else
    is computed in the process.

    Raises:
        ValueError: TF_CONFIG is no description of a cluster of workers with this process in it; called in a scope.
    """
    if tf.distribute.in_cross_replica_context():
        raise ValueError("train: is called in a strategy's scope; call it outside, with strategy=")
    if strategy is not None:
        resolver = getattr(strategy, "cluster_resolver", None)
        if resolver is None or not resolver.task_type:
            return Hosts(strategy)
        addresses = resolver.cluster_spec().as_dict()
        chiefs, workers = (len(addresses.get(kind, ())) for kind in ("chief", "worker"))
        return Hosts(strategy, resolver.task_id + chiefs * (resolver.task_type != "chief"), chiefs + workers)
    addresses, number = read_cluster(os.environ.get("TF_CONFIG", ""))
    if len(addresses) < 2:
        return Hosts(tf.distribute.get_strategy())
    say(f"worker {number} of {len(addresses)}, {addresses[number]}; waiting for {_others(addresses, number)}")
    return Hosts(tf.distribute.MultiWorkerMirroredStrategy(), number, len(addresses))


def read_cluster(config: str) -> tuple[list[str], int]:
    """TF_CONFIG's workers, as "host:port", the chief first, and the place of this process among them; ([], 0) if empty.

    ValueError names what is wrong.
    """
    if not config.strip():
        return [], 0
    try:
        content = json.loads(config)
    except json.JSONDecodeError as error:
        raise ValueError(f"TF_CONFIG: no JSON ({error}); {HINT}") from None
    cluster, task = (content.get(k) if isinstance(content, dict) else None for k in ("cluster", "task"))
    if not isinstance(cluster, dict) or not isinstance(task, dict):
        raise ValueError(f'TF_CONFIG: needs "cluster" and "task", both objects; {HINT}')  # noqa: TRY004
    if unknown := cluster.keys() - {"chief", "worker"}:
        raise ValueError(
            f"TF_CONFIG: cluster.{min(unknown)}: only workers, and a chief among them, train here; {HINT}"
        )
    addresses: list[str] = []
    first: dict[str, int] = {}
    for kind in ("chief", "worker"):
        first[kind] = len(addresses)
        listed = cluster.get(kind, [])
        if not isinstance(listed, list):
            raise ValueError(f"TF_CONFIG: cluster.{kind} must be a list of addresses; {HINT}")  # noqa: TRY004
        addresses += listed
    for address in addresses:
        port = address.rpartition(":")[2] if isinstance(address, str) else ""
        if not port.isdecimal() or not 0 < int(port) < 65536 or not address.rpartition(":")[0]:
            raise ValueError(f"TF_CONFIG: {address!r} is no address; it must be host:port; {HINT}")
    if repeated := {address for address in addresses if addresses.count(address) > 1}:
        raise ValueError(f"TF_CONFIG: {min(repeated)} is there twice; each worker needs its own address")
    role, index = task.get("type"), task.get("index")
    own = cluster.get(role, []) if isinstance(role, str) else []
    if not own or isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(own):
        raise ValueError(
            f"TF_CONFIG: task is {role!r} number {index!r}, which is not in the cluster "
            f"({', '.join(f'{len(cluster[k])} of type {k}' for k in cluster) or 'empty'}, counted from 0)"
        )
    return addresses, first[str(role)] + index


def optimizing(model: keras.Model, hosts: Hosts, spec: dict[str, tf.TensorSpec]) -> Callable[..., Batch]:
    """What makes one step of a model, compiled in the scope of `hosts.strategy` and with an optimizer that is built.

    Called with the batches of this worker's replicas, one for each, on all workers at once; returns the losses, means over
    all replicas. spec: of a batch, with None where sizes vary. It is traced once: each trace counts up the names of what
    workers exchange, and must happen on all of them.
    """
    strategy, variables = hosts.strategy, model.trainable_variables

    def replica(batches: list[Batch]) -> tuple[Batch, list[tf.Tensor]]:
        context = tf.distribute.get_replica_context()
        place = (
            tf.get_static_value(context.replica_id_in_sync_group) % hosts.replicas
            if hosts.replicas > 1
            else 0
        )
        terms, gradients = model.gradients(batches[place])
        return (
            context.all_reduce(tf.distribute.ReduceOp.MEAN, terms),
            context.all_reduce(tf.distribute.ReduceOp.SUM, gradients),
        )

    @tf.function(input_signature=[[spec] * hosts.replicas])
    def step(batches: list[Batch]) -> Batch:
        found = strategy.run(replica, (batches,))
        # all replicas have the same by now
        terms, gradients = tf.nest.map_structure(
            lambda value: strategy.experimental_local_results(value)[0], found
        )
        # Out of the replicas' context: within, Keras clips each replica's own gradients and sums them up only then
        model.optimizer.apply_gradients(zip(gradients, variables, strict=True))
        return terms

    return step


def together(batches: tf.data.Dataset, hosts: Hosts) -> Iterator[list[Batch]]:
    """A worker's batches, as many at a time as it has replicas."""
    iterator = iter(batches)
    while len(own := [*islice(iterator, hosts.replicas)]) == hosts.replicas:
        yield own


def part_seeds(model: keras.Model, hosts: Hosts) -> None:
    """Gives each replica random numbers of its own, for drop-out say. The chief's first keeps those that it has, so that
    its checkpoint is one of the run."""
    for variable in model.variables:
        if "seed_generator" not in variable.path or not isinstance(
            variable.value, tf.distribute.DistributedValues
        ):
            continue
        for k, own in enumerate(hosts.strategy.experimental_local_results(variable.value)):
            own.assign(own + tf.cast([hosts.number * hosts.replicas + k, 0], own.dtype))


def check_same(hosts: Hosts, **values: Any) -> None:
    """Waits for all workers, and raises a ValueError on each unless they all give the same values."""
    if hosts.count == 1:
        return
    sums = [zlib.crc32(repr(value).encode()) for value in values.values()]
    with watching(hosts, f"waiting for all workers, to compare {', '.join(values)}"):
        found = _gathering(hosts.strategy)(tf.constant(sums, tf.int64)).numpy()
    for k, (name, value) in enumerate(values.items()):
        if (found[:, k] != sums[k]).any() or len(set(found[:, k])) > 1:
            here = f", which is {value} on worker {hosts.number}" if len(str(value)) < 100 else ""
            raise ValueError(
                f"the workers do not agree on {name}{here}: all need the same "
                "command, the same data, and one output folder that they share"
            )


@functools.cache  # each trace counts up names, as in `optimizing`
def _gathering(strategy: tf.distribute.Strategy) -> Callable[[tf.Tensor], tf.Tensor]:
    """Replicas' vectors int64 [N] -> int64 [replicas, N], on each."""

    def replica(own: tf.Tensor) -> tf.Tensor:
        return tf.distribute.get_replica_context().all_gather(own[None], 0)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.int64)])
    def gather(own: tf.Tensor) -> tf.Tensor:
        return strategy.experimental_local_results(strategy.run(replica, (own,)))[0]

    return gather


def wait(hosts: Hosts) -> None:
    """Until all workers are here."""
    check_same(hosts, **{"where they are": "the end"})


@contextmanager
def watching(hosts: Hosts, when: str) -> Iterator[None]:
    """What TensorFlow says if a worker stops answering, in words. WorkerLost: one did."""
    try:
        yield
    except LOST as error:
        if hosts.count == 1:
            raise
        told = re.search("Collective ops .*|.*[Cc]oordination.*", str(error.message))
        if isinstance(error, tf.errors.InternalError) and not told:
            raise
        reason = told[0] if told else str(error.message).strip().partition("\n")[0]
        raise WorkerLost(
            f"{when}: another of the {hosts.count} workers is gone ({reason}). Its own output says why. Start all "
            "workers again, with --resume, to go on from the last checkpoint"
        ) from error


def _others(addresses: list[str], number: int) -> str:
    return ", ".join(address for k, address in enumerate(addresses) if k != number)
