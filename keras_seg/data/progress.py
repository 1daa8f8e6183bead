"""A progress bar for work that turns out to be slow."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.progress import Progress

Item = TypeVar("Item")
PATIENCE = 2.0  # seconds of silence before the bar appears


def is_drawn_on(console: Console) -> bool:
    """Whether bars are drawn on standard error: on a terminal that can move its cursor."""
    # rich takes a file for a terminal if the environment's FORCE_COLOR says so
    return sys.stderr.isatty() and not console.is_dumb_terminal


def track(items: Sequence[Item], description: str) -> Iterator[Item]:
    """Yield the items, with a bar on a terminal's standard error once they take longer than two seconds."""
    console = Console(stderr=True)
    shown = is_drawn_on(console)
    bar = Progress(console=console, transient=True, disable=not shown)
    task = bar.add_task(description, total=len(items))
    begun = time.monotonic()
    try:
        for item in items:
            if time.monotonic() - begun > PATIENCE:
                bar.start()
            yield item
            bar.advance(task)
    finally:
        if shown:
            bar.stop()


@contextlib.contextmanager
def bytes_read(path: Path, description: str) -> Iterator[Callable[[int], None]]:
    """A function to tell how many more bytes of a file were read; the bar is as of `track`."""
    console = Console(stderr=True)
    shown = is_drawn_on(console)
    bar = Progress(console=console, transient=True, disable=not shown)
    task = bar.add_task(description, total=path.stat().st_size if path.is_file() else None)
    begun = time.monotonic()

    def advance(count: int) -> None:
        if time.monotonic() - begun > PATIENCE:
            bar.start()
        bar.advance(task, count)

    try:
        yield advance
    finally:
        if shown:
            bar.stop()
