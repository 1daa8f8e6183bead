"""The batch as a pipeline of Apache Beam, for any of its runners.

    shards -> units of work that are not done -> RunInference -> files -> what needs all tiles of an image

Files are written as soon as a unit is computed, not at the end: a run that is killed loses the units in progress alone.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam.metrics import Metrics
from apache_beam.ml.inference.base import ModelHandler, RunInference

from keras_seg.batch.detector import DetectorTile, DetectorWork, Merging
from keras_seg.batch.folder import Failure, Folder, Outcome, Shard
from keras_seg.batch.unet import Joining, Tile, UNetWork

__all__ = ["COUNTERS", "ModelSource", "Segment", "SegmentHandler"]

COUNTERS = "keras_seg"  # their namespace
Unit = Shard | Tile | DetectorTile


@dataclass(frozen=True)
class ModelSource:
    """A name of the zoo or a recipe's file, with weights as `zoo.load` takes them; or the folder of a SavedModel.

    sha256: of what these are now.
    """

    name: str
    weights: str = "pretrained"
    sha256: str = ""

    @property
    def is_export(self) -> bool:
        return Path(self.name).is_dir()

    def load(self) -> Any:
        """The model; a process keeps the last one, so that a local run has what it was started with."""
        return _load(self)


@functools.lru_cache(maxsize=1)
def _load(source: ModelSource) -> Any:
    if source.is_export:
        from keras_seg import export

        return export.load(source.name)
    from keras_seg import zoo

    return zoo.load(source.name, source.weights)


class SegmentHandler(ModelHandler[Unit, Outcome, Any]):
    """Loads the model once a process, and makes an `Outcome` of each unit of work."""

    def __init__(self, source: ModelSource, work: UNetWork | DetectorWork, folder: Folder) -> None:
        super().__init__(min_batch_size=1, max_batch_size=1)
        self._source, self._folder = source, folder
        self._work: Any = work  # which makes its own kind of units

    def load_model(self) -> Any:
        return self._source.load()

    def run_inference(
        self, batch: Sequence[Unit], model: Any, inference_args: dict[str, Any] | None = None
    ) -> Iterable[Outcome]:
        return [self._work.run(model, unit, self._folder) for unit in batch]

    def get_metrics_namespace(self) -> str:
        return COUNTERS


class Segment(beam.PTransform):
    """Shards in; out come the failures, each after it was written to the folder."""

    def __init__(self, source: ModelSource, work: UNetWork | DetectorWork, folder: Folder) -> None:
        super().__init__()
        self._source, self._work, self._folder = source, work, folder

    def expand(self, shards: beam.PCollection[Shard]) -> beam.PCollection[Failure]:
        work, folder = self._work, self._folder
        planned = shards | "Plan" >> beam.ParDo(_Plan(work, folder)).with_outputs(
            "after", "failures", main="units"
        )
        computed = (
            planned.units
            | "Spread" >> beam.Reshuffle()
            | "Segment" >> RunInference(SegmentHandler(self._source, work, folder))
            | "Write" >> beam.ParDo(_Write(folder)).with_outputs("failures", main="done")
        )
        # An image is finished once the last of its tiles is written: grouping waits for all of them.
        finished = (
            {"after": planned.after, "done": computed.done}
            | "Wait" >> beam.CoGroupByKey()
            | "Finish" >> beam.ParDo(_Finish(work, folder))
            | "WriteFinished" >> beam.ParDo(_Write(folder)).with_outputs("failures", main="done")
        )
        return (planned.failures, computed.failures, finished.failures) | beam.Flatten()


class _Plan(beam.DoFn):
    def __init__(self, work: UNetWork | DetectorWork, folder: Folder) -> None:
        self._work, self._folder = work, folder
        self._done_before = Metrics.counter(COUNTERS, "units_done_before")
        self._failed = Metrics.counter(COUNTERS, "failures")

    def process(self, shard: Shard) -> Iterator[Any]:
        for unit in self._work.units(shard, self._folder):
            if isinstance(unit, Failure):
                self._failed.inc()
                self._folder.keep(Outcome(unit.image.key, failures=(unit,)))
                yield beam.pvalue.TaggedOutput("failures", unit)
            elif self._folder.has(unit.result):
                self._done_before.inc()
            elif isinstance(unit, Joining | Merging):
                yield beam.pvalue.TaggedOutput("after", (unit.key, unit))
            else:
                yield unit


class _Write(beam.DoFn):
    def __init__(self, folder: Folder) -> None:
        self._folder = folder

    def process(self, outcome: Outcome) -> Iterator[Any]:
        self._folder.keep(outcome)
        counts = [*outcome.counts, ("failures", len(outcome.failures)), ("units", 1)]
        for name, count in counts:
            Metrics.counter(COUNTERS, name).inc(count)
        for failure in outcome.failures:
            yield beam.pvalue.TaggedOutput("failures", failure)
        # image-000001-z0-y0-x0 -> image-000001
        yield "-".join(outcome.key.split("-")[:2]), outcome.key


class _Finish(beam.DoFn):
    def __init__(self, work: UNetWork | DetectorWork, folder: Folder) -> None:
        self._work, self._folder = work, folder

    def process(self, grouped: tuple[str, dict[str, Iterable[Any]]]) -> Iterator[Outcome]:
        for unit in grouped[1]["after"]:
            yield self._work.finish(unit, self._folder)
