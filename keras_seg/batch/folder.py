"""The folder that a batch writes to: what it is to hold, what is done, and what could not be done.

    batch.json          the model, its options and the images; a restart compares it
    detections/         COCO JSON, a file for each shard of images, and one for each image that was cut into tiles
    labels/             label images or tiles
    tiles/              what a detector found in each tile, until it is merged
    errors/             what failed and why, a file for each unit of work

Every file is complete or absent, and there is one once its unit of work is done.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Failure", "Folder", "Image", "Outcome", "Shard"]

FORMAT = 1
PLAN, LOCK = "batch.json", ".lock"
UNFINISHED = ".partial"  # how files that are being written end
SHOWN = 60  # characters of a value in a message


@dataclass(frozen=True)
class Image:
    """id: in COCO JSON, from 1. name: of its results. file_name: as COCO JSON has it."""

    id: int
    path: str
    file_name: str
    name: str

    @property
    def key(self) -> str:
        return f"image-{self.id:06d}"


@dataclass(frozen=True)
class Shard:
    """Images that are taken together. result: of a detector, where it goes in the output folder."""

    number: int
    images: tuple[Image, ...]

    @property
    def key(self) -> str:
        return f"shard-{self.number:06d}"

    @property
    def result(self) -> str:
        return f"detections/{self.key}.json"


@dataclass(frozen=True)
class Failure:
    """What could not be done of an image, and why. redo: results, relative to the folder, that lack it."""

    image: Image
    error: str
    redo: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What came of a unit of work. key: its name. files: (path in the folder, contents). counts: for counters."""

    key: str
    files: tuple[tuple[str, bytes], ...] = ()
    failures: tuple[Failure, ...] = ()
    counts: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Folder:
    """All machines see it at the same path."""

    path: str

    def has(self, result: str) -> bool:
        return os.path.exists(os.path.join(self.path, result))

    def read(self, result: str) -> bytes:
        return Path(self.path, result).read_bytes()

    def keep(self, outcome: Outcome) -> None:
        """Writes what failed, then the results: these say that the unit is done."""
        if outcome.failures:
            errors = [
                {"image_id": failure.image.id, "file_name": failure.image.file_name, "error": failure.error}
                for failure in outcome.failures
            ]
            redo = sorted({result for failure in outcome.failures for result in failure.redo})
            self.write(f"errors/{outcome.key}.json", to_json({"errors": errors, "redo": redo}))
        for result, content in outcome.files:
            self.write(result, content)

    def write(self, result: str, content: bytes) -> None:
        """Whole or not at all. OSError names the file."""
        with self.writing(result) as temporary:
            temporary.write_bytes(content)

    @contextlib.contextmanager
    def writing(self, result: str) -> Iterator[Path]:
        """A temporary path, which becomes that of the result if nothing is raised."""
        path = Path(self.path, result)
        path.parent.mkdir(parents=True, exist_ok=True)
        # Two machines may write the same result, as some runners try twice: each under a name of its own.
        temporary = path.with_name(f".{uuid.uuid4().hex}{UNFINISHED}")
        try:
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError as error:
            raise OSError(
                error.errno, f"could not write {path} ({error.strerror or error}); start again to go on"
            ) from error
        finally:
            temporary.unlink(missing_ok=True)

    def errors(self) -> list[dict[str, Any]]:
        """What failed, by image: {"image_id", "file_name", "error"}."""
        found = [e for path in self._error_files() for e in json.loads(path.read_bytes())["errors"]]
        return sorted(found, key=lambda e: (e["image_id"], e["error"]))

    def forget_errors(self) -> None:
        """What failed, and results that lack it, are not done any more."""
        for path in self._error_files():
            for result in json.loads(path.read_bytes())["redo"]:
                Path(self.path, result).unlink(missing_ok=True)
            path.unlink()

    def remove_unfinished(self) -> None:
        """What killed processes left of files that they were writing."""
        for path in Path(self.path).rglob(f".*{UNFINISHED}"):
            path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def begun(self, plan: dict[str, Any]) -> Iterator[None]:
        """Writes the plan, or compares it with the one that is there; no other run begins in the folder meanwhile.

        ValueError: a folder of another batch, or that holds something else. BlockingIOError: another run is in it.
        """
        folder = Path(self.path)
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / LOCK, "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # released by a kill too
            except BlockingIOError as error:
                raise BlockingIOError(error.errno, f"{folder}: another batch is writing there") from error
            wanted = json.loads(to_json({"format": FORMAT, **plan}))
            if (there := self._plan()) is None:
                if any(not path.name.startswith(".") for path in folder.iterdir()):
                    raise ValueError(
                        f"{folder}: holds files but no {PLAN}, so it is not of a batch; give an empty folder"
                    )
                self.write(PLAN, to_json(wanted))
            elif there != wanted:
                raise ValueError(
                    f"{folder}: was begun with other settings: {_difference(there, wanted)}. Give another folder, or "
                    "delete it"
                )
            yield

    def _plan(self) -> dict[str, Any] | None:
        path = Path(self.path, PLAN)
        if not path.exists():
            return None
        try:
            return json.loads(path.read_bytes())
        except ValueError as error:
            raise ValueError(f"{path}: damaged ({error}); give another folder, or delete it") from error

    def _error_files(self) -> list[Path]:
        return sorted(Path(self.path, "errors").glob("*.json"))


def to_json(content: Any) -> bytes:
    return json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()


def _difference(there: Any, wanted: Any, where: str = "") -> str:
    """The first field in which two JSON values differ, in words."""
    if isinstance(there, dict) and isinstance(wanted, dict):
        for key in {**there, **wanted}:
            if there.get(key) != wanted.get(key):
                return _difference(there.get(key), wanted.get(key), f"{where}.{key}" if where else key)
    if isinstance(there, list) and isinstance(wanted, list) and len(there) != len(wanted):
        return f"{where}: {len(there)} then, {len(wanted)} now"
    if isinstance(there, list) and isinstance(wanted, list):
        for n, (then, now) in enumerate(zip(there, wanted, strict=True)):
            if then != now:
                return _difference(then, now, f"{where}[{n}]")
    return f"{where}: {json.dumps(there)[:SHOWN]} then, {json.dumps(wanted)[:SHOWN]} now"
