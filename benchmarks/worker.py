"""The worker's half of a benchmark: commands as lines of JSON on stdin, answers on stdout. Standard library only."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any


def serve(actions: dict[str, Callable[[], Any]]) -> None:
    """Answers {"do": name} with {"seconds": wall clock, "result": what the action returned} until stdin ends.

    Built in: "memory", the peak resident memory of this process in MiB, and "actions", the names of all.
    """
    actions = {"memory": peak_memory, **actions}
    actions["actions"] = lambda: list(actions)
    # Whatever a library prints goes to stderr, so that stdout holds the answers alone.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    for line in sys.stdin:
        action = actions[json.loads(line)["do"]]
        began = time.perf_counter()
        result = action()
        answer = {"seconds": time.perf_counter() - began, "result": result}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def timed(action: Callable[[], Any]) -> float:
    """Seconds, by the clock on the wall."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def peak_memory() -> float:
    """MiB, from Linux's /proc: `ru_maxrss` would begin at what the parent process, which started this one, had."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM"))
