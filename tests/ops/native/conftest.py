"""A fresh Python for what is decided once in a process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest


@pytest.fixture
def python() -> Callable[..., subprocess.CompletedProcess]:
    """python(program, **environment) runs a program, which must end well."""

    def run(program: str, **environment: str) -> subprocess.CompletedProcess:
        variables = {k: v for k, v in os.environ.items() if k != "KERAS_SEG_NATIVE"} | environment
        done = subprocess.run(
            [sys.executable, "-c", program], check=False, capture_output=True, text=True, env=variables
        )
        assert done.returncode == 0, done.stderr
        return done

    return run
