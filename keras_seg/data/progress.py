"""Progress bars for work that turns out to be slow, on a terminal's standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.progress import Progress

Item = TypeVar("Item")
PATIENCE = 2.0  # seconds of silence before the bar appears
# That of `working`, in which others are drawn too: two would overwrite each other.
_working: list[Progress] = []


def is_drawn_on(console: Console) -> bool:
    """Whether bars are drawn on standard error: on a terminal that can move its cursor."""
    # rich takes a file for a terminal if the environment's FORCE_COLOR says so
    return sys.stderr.isatty() and not console.is_dumb_terminal


def track(items: Sequence[Item], description: str) -> Iterator[Item]:
    """Yield the items, with a bar once they take longer than two seconds."""
    with _bar(description, len(items)) as advance:
        for item in items:
            yield item
            advance(1)


@contextmanager
def bytes_read(path: Path, description: str) -> Iterator[Callable[[int], None]]:
    """A function to tell how many more bytes of a file were read; the bar is as of `track`."""
    with _bar(description, path.stat().st_size if path.is_file() else None) as advance:
        yield advance


@contextmanager
def working(description: str) -> Iterator[None]:
    """Inside, a bar that moves, for work of which nobody knows how much is left."""
    console = Console(stderr=True)
    if _working or not is_drawn_on(console):
        yield
        return
    with Progress(console=console, transient=True, redirect_stdout=sys.stdout.isatty()) as bar:
        bar.add_task(description, total=None)
        _working.append(bar)
        try:
            yield
        finally:
            _working.pop()


@contextmanager
def _bar(description: str, total: int | None) -> Iterator[Callable[[int], None]]:
    if _working:
        above = _working[-1]
        task = above.add_task(description, total=total)
        try:
            yield lambda count: above.advance(task, count)
        finally:
            above.remove_task(task)
        return
    console = Console(stderr=True)
    shown = is_drawn_on(console)
    bar = Progress(console=console, transient=True, disable=not shown)
    task = bar.add_task(description, total=total)
    begun = time.monotonic()

    def advance(count: int) -> None:
        bar.advance(task, count)
        if time.monotonic() - begun > PATIENCE:
            bar.start()

    try:
        yield advance
    finally:
        if shown:
            bar.stop()
