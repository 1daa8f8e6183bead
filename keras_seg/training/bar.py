"""The bar of a training run on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

from keras_seg.data.progress import is_drawn_on

SPEED_OVER = 1800.0  # seconds whose steps give the speed: several, where one takes long


class Bar:
    """Steps, their speed, the time left, the loss and what the validation last gave, in the last line of the terminal that
    is the standard error. What is printed to the terminal meanwhile appears above.

    shown: whether it is drawn. It is not unless it was asked for and standard error is a terminal; then all calls do
    nothing.
    """

    def __init__(self, start: int, steps: int, *, show: bool) -> None:
        console = Console(stderr=True)
        self.shown = show and is_drawn_on(console)
        whole = Column(no_wrap=True)  # where there is little room, the bar itself gets less
        self._progress = Progress(
            TextColumn("training"), BarColumn(),
            MofNCompleteColumn(table_column=whole), _Speed(whole), TimeRemainingColumn(table_column=whole),
            TextColumn("{task.fields[loss]}"), TextColumn("{task.fields[judged]}"),
            console=console, transient=True, disable=not self.shown, refresh_per_second=2,
            speed_estimate_period=SPEED_OVER,
            # what goes to a file stays there
            redirect_stdout=sys.stdout.isatty(),
        )  # fmt: skip
        self._task = self._progress.add_task("", total=steps, completed=start, loss="", judged="")

    def __enter__(self) -> Self:
        if self.shown:
            self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.shown:
            self._progress.stop()

    def step(self, step: int, loss: float) -> None:
        """Step number `step` is done."""
        self._progress.update(self._task, completed=step, loss=f"loss {loss:.4f}")

    def judged(self, name: str, value: float) -> None:
        """What the validation gave."""
        self._progress.update(self._task, judged=f"{name} {value:.4f}")

    @contextmanager
    def hidden(self) -> Iterator[None]:
        """The terminal is free for other bars in the block."""
        self.__exit__()
        try:
            yield
        finally:
            self.__enter__()


class _Speed(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.2f} steps/s" if task.speed else "")
