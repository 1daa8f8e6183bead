"""What every test shares: TensorFlow kept quiet, and the path to the shared data and golden files."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # before anything imports TensorFlow

import pytest

CHECKOUT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder `shared` beside the checkout (or $KERAS_SEG_SHARED): `data/` and `golden/`.

    A test that asks for it is skipped where the folder is absent; with KERAS_SEG_REQUIRE_SHARED=1 it fails
    instead.
    """
    path = Path(os.environ.get("KERAS_SEG_SHARED") or CHECKOUT.parent / "shared")
    if not path.is_dir():
        reason = f"needs the shared data folder, and {path} is not one: set KERAS_SEG_SHARED to where it lies"
        if os.environ.get("KERAS_SEG_REQUIRE_SHARED") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return path


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    """A data folder for detectors: COCO annotations and images "train" (6) and "validation" (2)."""
    from square_files import write_squares

    folder = tmp_path_factory.mktemp("squares")
    write_squares(folder, "train", 6, 0)
    write_squares(folder, "validation", 2, 1)
    return folder


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs `keras-seg ARGUMENTS` and returns its exit status, its output and its error output."""

    from keras_seg import cli

    def command(*arguments) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["keras-seg", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return stop.value.code, *capsys.readouterr()

    return command
