"""A terminal that remembers what was written to it, and shows what a person would see."""

from __future__ import annotations

import os
import re
import sys
import termios
import threading
import tty
from typing import Self

PARTS = re.compile(r"\x1b\[[?\d;]*[A-Za-z]|[\r\n]|[^\x1b\r\n]+")
WIDTH = 120


class Terminal:
    """In its block it is this process's standard output and standard error; after it, `written` and `seen` are complete."""

    def __init__(self) -> None:
        self._ours, theirs = os.openpty()
        termios.tcsetwinsize(theirs, (24, WIDTH))
        tty.setraw(theirs)  # a line feed stays one
        self._file = os.fdopen(theirs, "w", encoding="utf-8")
        self._received: list[bytes] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                some = os.read(self._ours, 65536)
            except OSError:  # Linux's way to say that the other end is closed
                return
            if not some:
                return
            self._received.append(some)

    def __enter__(self) -> Self:
        self._before = sys.stdout, sys.stderr
        sys.stdout = sys.stderr = self._file
        return self

    def __exit__(self, *error: object) -> None:
        sys.stdout, sys.stderr = self._before
        self._file.close()
        self._reader.join()
        os.close(self._ours)

    @property
    def written(self) -> str:
        """All of it, with its control sequences."""
        return b"".join(self._received).decode()

    @property
    def has_cursor(self) -> bool:
        """Whether the cursor is there in the end."""
        return self.written.rfind("\x1b[?25h") >= self.written.rfind("\x1b[?25l")

    @property
    def seen(self) -> list[str]:
        """The lines on the screen in the end."""
        lines, row, column = [""], 0, 0
        for part in PARTS.findall(self.written):
            if part == "\n":
                row, column = row + 1, 0
                lines += [""] * (row + 1 - len(lines))
            elif part == "\r":
                column = 0
            elif part == "\x1b[2K":
                lines[row] = ""
            elif part.startswith("\x1b") and part.endswith("A"):
                row -= int(part[2:-1] or 1)
                assert row >= 0
            elif part.startswith("\x1b"):
                assert part[-1] in "mhl", f"another control sequence: {part!r}"  # colours, the cursor
            else:
                lines[row] = lines[row][:column].ljust(column) + part + lines[row][column + len(part) :]
                column += len(part)
                assert len(lines[row]) <= WIDTH, "a line that does not fit"
        return [line.rstrip() for line in lines]
