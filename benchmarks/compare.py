"""What the benchmarks share: contestants as processes that take turns, their environments, tables.

The processes take turns (A B C A B C …), so that a machine that slows down or speeds up does so for all. Before anything
is timed, their results are compared.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from keras_seg import processor

HERE = Path(__file__).resolve().parent
OURS = "keras_seg"
TOLERANCE = 1e-3  # of each compared array, relative to its largest value
MATRIX = 2048  # side of the matrices whose product gives the peak
COPY_BYTES, COPIES = 1 << 28, 9
REST = 0.3  # seconds between two turns, in which the threads of the last one stop spinning


@dataclass
class Worker:
    """A process that answers one JSON line to each JSON line (worker.py)."""

    name: str
    process: subprocess.Popen

    def ask(self, what: str) -> dict:
        self.process.stdin.write(json.dumps({"do": what}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name}: its process ended with status {self.process.wait()}; see above")
        return json.loads(line)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def environment(name: str, requirements: Sequence[str]) -> Path:
    """The Python of a peer's own environment, `benchmarks/<name>`, which is made on first use."""
    folder = HERE / name
    python, stamp = folder / "bin/python", folder / "installed"
    if not stamp.exists() or stamp.read_text() != repr(requirements):
        say(f"installing {', '.join(requirements)} into {name} (some minutes, once)")
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *requirements], check=True)
        stamp.write_text(repr(requirements))
    return python


def compare(
    task: str,
    commands: Mapping[str, Sequence[object]],
    rounds: int,
    flops: float,
    folder: Path,
    *,
    unchecked: Sequence[str] = (),
    parts: bool = True,
) -> dict:
    """One table: {"flops", "peak_flops": of a matrix product, "contestants": {name: its version and figures}}.

    commands: {name: command line of a worker}, keras_seg's first; each gets `--outputs` (an .npz in `folder`, to be
    compared) and `--matrix`. unchecked: contestants with weights or a precision of their own, whose results
    are not compared. "result" of a contestant is what its action "run" returned.
    parts: also the seconds by part, of workers that know the action "parts".

    RuntimeError if a contestant's process ends, or its results are not those of keras_seg.
    """
    outputs = {name: folder / f"{task}_{position}.npz" for position, name in enumerate(commands)}
    workers = []
    for name, command in commands.items():
        line = [*map(str, command), "--outputs", str(outputs[name]), "--matrix", str(MATRIX)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        workers.append(Worker(name, subprocess.Popen(line, **pipes)))
    say(f"{task}: comparing the results")
    for worker in workers:
        if worker.name not in unchecked:
            worker.ask("check")
            check_equal(worker.name, dict(np.load(outputs[worker.name])), dict(np.load(outputs[OURS])))
        worker.ask("run")
    seconds = {name: [] for name in commands}
    counts = {}
    peak = 0.0
    for turn in range(rounds):
        say(f"{task}: round {turn + 1} of {rounds}")
        for worker in workers:
            time.sleep(REST)
            answer = worker.ask("run")
            seconds[worker.name].append(answer["seconds"])
            counts[worker.name] = answer["result"]
        for worker in workers[:2]:
            time.sleep(REST)
            peak = max(peak, 2 * MATRIX**3 / worker.ask("matmul")["seconds"])
    table = {}
    for worker in workers:
        table[worker.name] = {
            "version": worker.ask("version")["result"],
            "seconds": seconds[worker.name],
            # the median of the rounds' ratios: within a round the machine is the same
            "ratio": statistics.median(
                b / a for a, b in zip(seconds[OURS], seconds[worker.name], strict=True)
            ),
            "share_of_peak": flops / statistics.median(seconds[worker.name]) / peak,
            "MiB": worker.ask("memory")["result"],
            "result": counts[worker.name],
        }
        if parts and "parts" in worker.ask("actions")["result"]:
            table[worker.name]["parts"] = worker.ask("parts")["result"]
        worker.close()
    return {"flops": flops, "peak_flops": peak, "contestants": table}


def check_equal(name: str, outputs: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """RuntimeError unless both hold the same arrays, to TOLERANCE of each one's largest value."""
    if outputs.keys() != expected.keys():
        raise RuntimeError(f"{name}: compares other arrays than {OURS}")
    for key, array in outputs.items():
        if array.shape != expected[key].shape:
            raise RuntimeError(f"{name}: {key} is {array.shape}, {OURS}'s is {expected[key].shape}")
        error = np.abs(array - expected[key]).max() / np.abs(expected[key]).max()
        if not error < TOLERANCE:
            raise RuntimeError(f"{name}: {key} differs from {OURS} by {error:.1e} of its largest value")


def bandwidth() -> float:
    """Bytes a second that memory moves while one thread copies an array, read and written."""
    source = np.ones(COPY_BYTES // 8)
    target = np.empty_like(source)
    seconds = []
    for _ in range(COPIES):
        began = time.perf_counter()
        np.copyto(target, source)
        seconds.append(time.perf_counter() - began)
    return 2 * COPY_BYTES / min(seconds)


def has_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16."""
    return bool({"avx512_bf16", "amx_bf16"} & processor.flags())


def machine(threads: int) -> dict:
    """CPU model, cores, threads used and the instruction sets that matter to matrix products."""
    flags = processor.flags()
    return {
        "cpu": processor.fields().get("model name", "unknown"),
        "cores": os.cpu_count(),
        "threads": threads,
        "instruction_sets": [
            f for f in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16") if f in flags
        ],
    }


def machine_line(results: dict) -> str:
    """One line on the date, the machine and all contestants' versions."""
    about = results["machine"]
    versions = [
        row["version"] for table in results["tables"].values() for row in table["contestants"].values()
    ]
    return (
        f"{results['date']}, {about['cpu']}, {about['cores']} cores ({about['threads']} threads used), "
        f"{' '.join(about['instruction_sets'])}. {'; '.join(dict.fromkeys(versions))}."
    )


def table_lines(table: dict, unit: str = "seconds", divisor: int = 1) -> list[str]:
    """A table of `compare` as Markdown; the seconds are divided by `divisor`."""
    lines = [
        f"| | {unit}: median (range) | its time over keras_seg's | share of the peak | peak memory, MiB |",
        "|---|---|---|---|---|",
    ]
    for name, row in table["contestants"].items():
        median, low, high = (f(row["seconds"]) / divisor for f in (statistics.median, min, max))
        lines.append(
            f"| {name} | {median:.2f} ({low:.2f}-{high:.2f}) | {row['ratio']:.2f} "
            f"| {row['share_of_peak']:.0%} | {row['MiB']:.0f} |"
        )
    return lines


def write(results: dict, text: str, folder: Path, name: str, *, show: bool = True) -> None:
    """`<name>.json` and `<name>.md` in the folder; the text also on stdout, unless told not to."""
    if show:
        print(text)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n")
    (folder / f"{name}.md").write_text(text)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
