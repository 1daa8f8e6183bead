"""A progress bar for work that turns out to be slow."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import Progress

Item = TypeVar("Item")
PATIENCE = 2.0  # seconds of silence before the bar appears


def track(items: Sequence[Item], description: str) -> Iterator[Item]:
    """Yield the items, with a bar on a terminal's standard error once they take longer than two seconds."""
    console = Console(stderr=True)
    bar = Progress(console=console, transient=True, disable=not console.is_terminal)
    task = bar.add_task(description, total=len(items))
    begun = time.monotonic()
    try:
        for item in items:
            if time.monotonic() - begun > PATIENCE:
                bar.start()
            yield item
            bar.advance(task)
    finally:
        bar.stop()
