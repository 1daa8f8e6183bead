"""A folder of images in, a folder of results out: the batch from its first image to its summary."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import inspect
import json
import logging
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keras_seg import image_files
from keras_seg.batch.folder import Folder, Image, Shard

if TYPE_CHECKING:
    from keras_seg.batch.pipeline import ModelSource

__all__ = ["Summary", "results", "run"]

# Beam's own DirectRunner may fetch another runner's program first; this is what it falls back to.
LOCAL_RUNNER = "FnApiRunner"
LOCAL_RUNNERS = (LOCAL_RUNNER, "DirectRunner")
GLANCE = 2.0  # seconds between looks at what is finished


@dataclasses.dataclass(frozen=True)
class Summary:
    """images: how many were given. failed: what could not be done, {"image_id", "file_name", "error"} by image.
    counters: the pipeline's, of this run alone; {} where the runner does not tell them."""

    output: Path
    images: int
    failed: list[dict[str, Any]]
    counters: dict[str, int]

    def __str__(self) -> str:
        bad = len({failure["image_id"] for failure in self.failed})
        text = f"{self.output}: {self.images - bad} of {self.images} images"
        return text + (f"; {bad} failed, see {self.output / 'errors'}" if bad else "")


def run(
    model: str | Path,
    images: str | Path | Iterable[str | Path],
    output: str | Path,
    *,
    weights: str = "pretrained",
    shard_size: int = 16,
    runner: str = LOCAL_RUNNER,
    pipeline_options: Sequence[str] = (),
    progress: bool | None = None,
    **options: Any,
) -> Summary:
    """Segment many images by a pipeline of Apache Beam, on one machine or many (docs/scale_out.md).

    Started again, after a kill too, it does what is not done yet and what failed, and ends with the same files.

    Args:
        model: a name of the zoo, a recipe's YAML file, or the folder of a SavedModel that `export.saved_model` wrote.
        images: folders, files or patterns, as `image_files.find` takes them. Workers read them at the same paths.
        output: folder for the results, new or of the same batch, the same for all workers. `batch.folder` says what
            is in it.
        weights: as `zoo.load` takes them.
        shard_size: images that a detector's JSON file holds, which are done again if a worker dies among them.
        runner: a name that Beam knows. pipeline_options: Beam's, as on its command line, "--direct_num_workers=4" say.
        progress: draw a progress bar on stderr; None: if it is a terminal.
        options: of `unet_work` for a U-Net, of `detector_work` for a detector.

    Raises:
        ModuleNotFoundError: without Apache Beam: pip install 'keras_seg[beam]'.
        FileNotFoundError: no such model or images. ValueError: a wrong option, or an output folder of another batch.
        BlockingIOError: another run is writing to the folder.
        OSError: a result cannot be written, or the pipeline failed. Images that cannot be read raise nothing: they
            are in the summary.
    """
    pipeline = _pipeline_module()
    if shard_size < 1:
        raise ValueError(f"batch: shard_size must be positive, got {shard_size!r}")
    source = pipeline.ModelSource(_absolute_model(model), _absolute_weights(weights))
    source = dataclasses.replace(source, sha256=_fingerprint(source))
    listed = _listed(images, output)
    folder = Folder(str(Path(output).absolute()))
    work = _work(source, options)
    plan = {
        "keras_seg": _version(),
        "model": dataclasses.asdict(source),
        "options": {**dataclasses.asdict(work), "shard_size": shard_size},
        "images": [dataclasses.asdict(image) for image in listed],
    }
    shards = [
        Shard(n, tuple(listed[first : first + shard_size]))
        for n, first in enumerate(range(0, len(listed), shard_size))
    ]
    with folder.begun(plan):
        folder.remove_unfinished()
        folder.forget_errors()
        with _progress(folder, progress):
            counters = _run_pipeline(pipeline, source, work, folder, shards, runner, pipeline_options)
        failed = folder.errors()
        if not failed:
            shutil.rmtree(Path(folder.path, "tiles"), ignore_errors=True)  # merged by now
    return Summary(Path(output), len(listed), failed, counters)


def results(output: str | Path) -> Iterator[dict[str, Any]]:
    """What a detector's batch found, as COCO annotations with scores, shard by shard: results for `metrics.coco`.

    FileNotFoundError: no folder of a batch.
    """
    if not Path(output, "batch.json").is_file():
        raise FileNotFoundError(f"{output}: not the output folder of a batch")
    for path in sorted(Path(output, "detections").glob("*.json")):
        yield from json.loads(path.read_bytes())["annotations"]


def _pipeline_module() -> Any:
    try:
        from keras_seg.batch import pipeline
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "apache_beam":
            raise
        raise ModuleNotFoundError("a batch needs Apache Beam: pip install 'keras_seg[beam]'") from error
    return pipeline


def _listed(images: Any, output: str | Path) -> list[Image]:
    files = [path.absolute() for path in image_files.find(images, outside=[Path(output)])]
    root = os.path.commonpath([path.parent for path in files])
    names = image_files.distinct_names(files)
    return [
        Image(n, str(path), path.relative_to(root).as_posix(), name)
        for n, (path, name) in enumerate(zip(files, names, strict=True), start=1)
    ]


def _work(source: ModelSource, options: dict[str, Any]) -> Any:
    model = source.load()
    work: Callable[..., Any]
    if hasattr(model, "legal_sizes") or (source.is_export and not model.is_detector):
        from keras_seg.batch.unet import unet_work

        kind, work = "U-Net", unet_work
    else:
        from keras_seg.batch.detector import detector_work

        kind, work = "detector", detector_work
    known = [name for name in inspect.signature(work).parameters if name != "model"]
    if foreign := [name for name in options if name not in known]:
        raise ValueError(
            f"batch: {foreign[0]} is no option of a {kind}, which {source.name} is; these are {', '.join(known)}"
        )
    return work(model, **options)


def _absolute_model(model: str | Path) -> str:
    is_path = Path(model).is_dir() or str(model).endswith((".yaml", ".yml"))
    return str(Path(model).absolute()) if is_path else str(model)


def _absolute_weights(weights: str | Path) -> str:
    return str(Path(weights).absolute()) if Path(weights).is_file() else str(weights)


def _version() -> str:
    from keras_seg import __version__

    return __version__


def _fingerprint(source: ModelSource) -> str:
    """SHA-256 of what the model is: a recipe and its weights, or a SavedModel's files."""
    digest = hashlib.sha256()
    if source.is_export:
        files = sorted(path for path in Path(source.name).rglob("*") if path.is_file())
    else:
        from keras_seg import zoo

        recipe = zoo.show(source.name)
        digest.update(recipe.model_dump_json().encode())
        files = [Path(source.weights)] if Path(source.weights).is_file() else []
    for path in files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _run_pipeline(
    pipeline: Any,
    source: ModelSource,
    work: Any,
    folder: Folder,
    shards: Sequence[Shard],
    runner: str,
    pipeline_options: Sequence[str],
) -> dict[str, int]:
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions

    runner = LOCAL_RUNNER if runner in LOCAL_RUNNERS else runner
    made = beam.Pipeline(runner=runner, options=PipelineOptions(list(pipeline_options)))
    _ = made | "Shards" >> beam.Create(shards) | "KerasSeg" >> pipeline.Segment(source, work, folder)
    try:
        with _without_noise():
            result = made.run()
            state = result.wait_until_finish()
    except RuntimeError as error:  # has a worker's whole traceback as its text, what went wrong at its end
        reason = str(error).strip().splitlines()[-1]
        raise OSError(f"batch: the pipeline failed: {reason}") from error
    if state not in (None, "DONE"):
        raise OSError(f"batch: the pipeline ended as {state}; start again to go on")
    try:
        found = result.metrics().query()["counters"]
    except (AttributeError, NotImplementedError, KeyError):
        return {}
    own = [counter for counter in found if counter.key.metric.namespace == pipeline.COUNTERS]
    totals: dict[str, int] = {}
    for counter in own:
        name = counter.key.metric.name
        if counter.result is not None:  # a runner need not know them
            totals[name] = totals.get(name, 0) + counter.result
    return {name: totals[name] for name in sorted(totals) if not name.startswith("num_inferences")}


@contextlib.contextmanager
def _without_noise() -> Iterator[None]:
    """Beam's module of resource usage warns wherever it cannot look at memory, at each start of a model."""

    def keep(record: logging.LogRecord) -> bool:
        return "Resource module is not available" not in record.getMessage()

    logging.getLogger().addFilter(keep)
    try:
        yield
    finally:
        logging.getLogger().removeFilter(keep)


@contextlib.contextmanager
def _progress(folder: Folder, show: bool | None) -> Iterator[None]:
    """Counts the finished files on stderr, whatever the runner."""
    if not (sys.stderr.isatty() if show is None else show):
        yield
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    over = threading.Event()
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("segmenting")

        def watch() -> None:
            while not over.wait(GLANCE):
                bar.update(task, description=f"segmenting, {_finished(folder)}")

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            over.set()
            watcher.join()


def _finished(folder: Folder) -> str:
    counts = []
    for name, what in (
        ("detections", "files of objects"),
        ("tiles", "tiles"),
        ("labels", "label files"),
        ("errors", "failures"),
    ):
        count = sum(
            not path.name.startswith(".") and path.is_file() for path in Path(folder.path, name).rglob("*")
        )
        if count:
            counts.append(f"{count} {what}")
    return ", ".join(counts) or "nothing finished yet"
