"""Bars on a terminal: of items, of bytes, of work without an end in sight, and of one inside the other."""

from __future__ import annotations

import sys
import time

import pytest

from keras_seg.data import progress


@pytest.fixture
def at_once(monkeypatch):
    monkeypatch.setattr(progress, "PATIENCE", 0.0)


def test_items_and_bytes_have_a_bar_once_they_are_slow(terminal, at_once, tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"12345")
    with terminal:
        assert list(progress.track("abc", "reading")) == ["a", "b", "c"]
        with progress.bytes_read(file, "unpacking") as advance:
            advance(5)
    assert "reading" in terminal.written and "unpacking" in terminal.written
    assert not any(terminal.seen) and terminal.has_cursor


def test_what_is_quick_has_none(terminal):
    with terminal:
        list(progress.track("abc", "reading"))
    assert "reading" not in terminal.written


def test_work_moves_a_bar_above_those_of_its_parts(terminal):
    with terminal:
        with progress.working("exporting"):
            print("a line")
            for _ in progress.track("ab", "calibrating"):
                time.sleep(0.15)  # it is drawn ten times a second
            with progress.working("a part"):
                pass
        print("done")
    assert "exporting" in terminal.written and "calibrating" in terminal.written
    assert [line for line in terminal.seen if line] == ["a line", "done"] and terminal.has_cursor


def test_a_failure_leaves_the_terminal_as_it_was(terminal):
    with terminal:
        with pytest.raises(OSError, match="full"), progress.working("exporting"):
            raise OSError("full")
        list(progress.track("abc", "reading"))
    assert not any(terminal.seen) and terminal.has_cursor and "reading" not in terminal.written


def test_nothing_is_drawn_into_a_file(capsys, at_once, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    with progress.working("exporting"):
        list(progress.track("abc", "reading"))
    assert not sys.stderr.isatty() and capsys.readouterr().err == ""
