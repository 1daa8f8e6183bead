"""keras_seg's U-Net against the same network and weights in PyTorch, in one run: `make bench-unet`.

Each contestant is a process of its own; the processes take turns (A B C A B C …), so that a machine that slows down or
speeds up does so for all. Before anything is timed, their results are compared.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import data_path
import numpy as np

HERE = Path(__file__).resolve().parent
TORCH_ENVIRONMENT = HERE / ".venv-torch"
TORCH_REQUIREMENTS = ("torch==2.14.1", "numpy")
OURS = "keras_seg"
PYTORCH = {  # name in the table: setting of unet_pytorch.py
    "PyTorch": "plain",
    "PyTorch, channels_last": "channels_last",
    "PyTorch, channels_last and compiled": "compiled",
}
TOLERANCE = 1e-3  # of probabilities, the loss and the norms of gradients, relative to the largest
MATRIX = 2048  # side of the matrices whose product gives the peak
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--rounds", type=int, default=9, help="turns of each contestant in inference; 0: none"
    )
    parser.add_argument("--training-rounds", type=int, default=5, help="the same in training")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--size", type=int, default=572, help="side of the input")
    parser.add_argument("--base-channels", type=int, default=64)
    parser.add_argument("--only", nargs="*", help=f"leave out other contestants of {', '.join(PYTORCH)}")
    parser.add_argument(
        "--output", type=Path, default=HERE / "results", help="folder of unet.json and unet.md"
    )
    args = parser.parse_args()
    torch_python = torch_environment()

    results = {"date": date.today().isoformat(), "machine": machine(args.threads), "tables": {}}
    with tempfile.TemporaryDirectory() as folder:
        inputs = Path(folder) / "inputs.npz"
        forward_flops = write_inputs(inputs, args.size, args.base_channels)
        for task, rounds in (("inference", args.rounds), ("training", args.training_rounds)):
            contestants = [n for n in PYTORCH if args.only is None or n in args.only]
            if not rounds:
                continue
            flops = forward_flops * (
                1 if task == "inference" else 3
            )  # backward: to the inputs, and to the weights
            table = compare(task, rounds, flops, contestants, torch_python, inputs, args.threads)
            results["tables"][task] = table
    results["data"] = data_path.measure()
    text = report(results, args)
    print(text)
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "unet.json").write_text(json.dumps(results, indent=1) + "\n")
    (args.output / "unet.md").write_text(text)


def torch_environment() -> Path:
    """The Python of PyTorch's own environment, which is made on first use."""
    python, stamp = TORCH_ENVIRONMENT / "bin/python", TORCH_ENVIRONMENT / "installed"
    if not stamp.exists() or stamp.read_text() != repr(TORCH_REQUIREMENTS):
        say(
            f"installing {' and '.join(TORCH_REQUIREMENTS)} into {TORCH_ENVIRONMENT.name} (some minutes, once)"
        )
        subprocess.run([sys.executable, "-m", "venv", "--clear", TORCH_ENVIRONMENT], check=True)
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *TORCH_REQUIREMENTS], check=True)
        stamp.write_text(repr(TORCH_REQUIREMENTS))
    return python


def write_inputs(path: Path, size: int, base_channels: int, depth: int = 4) -> float:
    """Weights, an image, labels and weights of the loss for all contestants; returns the FLOPs of a forward pass."""
    import unet_keras_seg

    model = unet_keras_seg.build(base_channels, depth)
    side = model.output_size(size)
    random = np.random.default_rng(1)
    np.savez(
        path,
        base_channels=base_channels,
        depth=depth,
        learning_rate=1e-4,
        image=random.uniform(0, 255, (1, size, size, 1)).astype(np.float32),
        label=random.integers(0, 2, (1, side, side)).astype(np.int32),
        weight=random.uniform(0.5, 10, (1, side, side)).astype(np.float32),
        **{f"weights/{name}": array for name, array in unet_keras_seg.weights(model).items()},
    )
    return unet_keras_seg.flops(model, size)


def compare(
    task: str,
    rounds: int,
    flops: float,
    contestants: list[str],
    torch_python: Path,
    inputs: Path,
    threads: int,
) -> dict:
    """One table: {"flops", "peak_flops": of a matrix product, "contestants": {name: its version and figures}}.

    RuntimeError if a contestant's process ends, or its results are not those of keras_seg.
    """
    names = (OURS, *contestants)
    outputs = [inputs.with_name(f"{task}_{position}.npz") for position in range(len(names))]
    workers = []
    for name, output in zip(names, outputs, strict=True):
        ours = [sys.executable, HERE / "unet_keras_seg.py", task]
        program = ours if name == OURS else [torch_python, HERE / "unet_pytorch.py", task, PYTORCH[name]]
        options = [
            "--inputs",
            inputs,
            "--outputs",
            output,
            "--threads",
            str(threads),
            "--matrix",
            str(MATRIX),
        ]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        workers.append(Worker(name, subprocess.Popen([*program, *options], **pipes)))
    say(f"{task}: comparing the results")
    for worker, output in zip(workers, outputs, strict=True):
        worker.ask("check")
        check_equal(worker.name, dict(np.load(output)), dict(np.load(outputs[0])))
        worker.ask("run")
    seconds = {name: [] for name in names}
    peak = 0.0
    for turn in range(rounds):
        say(f"{task}: round {turn + 1} of {rounds}")
        for worker in workers:
            time.sleep(REST)
            seconds[worker.name].append(worker.ask("run")["seconds"])
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
        }
        worker.close()
    return {"flops": flops, "peak_flops": peak, "contestants": table}


def check_equal(name: str, outputs: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    if outputs.keys() != expected.keys():
        raise RuntimeError(f"{name}: compares other arrays than {OURS}")
    for key, array in outputs.items():
        error = np.abs(array - expected[key]).max() / np.abs(expected[key]).max()
        if not error < TOLERANCE:
            raise RuntimeError(f"{name}: {key} differs from {OURS} by {error:.1e} of its largest value")


def machine(threads: int) -> dict:
    """CPU model, cores, threads used and the instruction sets that matter to matrix products."""
    fields = [line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line]
    first = {key.strip(): value.strip() for key, value in reversed(fields)}
    flags = first.get("flags", "").split()
    return {
        "cpu": first.get("model name", "unknown"),
        "cores": sum(key.strip() == "processor" for key, _ in fields),
        "threads": threads,
        "instruction_sets": [
            f for f in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile") if f in flags
        ],
    }


def report(results: dict, args: argparse.Namespace) -> str:
    """The tables as Markdown."""
    about = results["machine"]
    versions = [
        row["version"] for table in results["tables"].values() for row in table["contestants"].values()
    ]
    machine_line = (
        f"{results['date']}, {about['cpu']}, {about['cores']} cores ({about['threads']} threads used), "
        f"{' '.join(about['instruction_sets'])}. {'; '.join(dict.fromkeys(versions))}."
    )
    lines = [machine_line]
    for task, table in results["tables"].items():
        title = (
            f"{'Inference' if task == 'inference' else 'One training step'}, {args.size}x{args.size}, batch 1, "
            f"{args.base_channels} base channels: {table['flops'] / 1e9:.1f} GFLOP; "
            f"matrix peak {table['peak_flops'] / 1e9:.0f} GFLOP/s."
        )
        lines += [
            "",
            title,
            "",
            "| | seconds: median (range) | its time over keras_seg's | share of the peak | peak memory, MiB |",
            "|---|---|---|---|---|",
        ]
        for name, row in table["contestants"].items():
            median, low, high = statistics.median(row["seconds"]), min(row["seconds"]), max(row["seconds"])
            lines.append(
                f"| {name} | {median:.2f} ({low:.2f}-{high:.2f}) | {row['ratio']:.2f} "
                f"| {row['share_of_peak']:.0%} | {row['MiB']:.0f} |"
            )
    return "\n".join([*lines, "", data_path.report(results["data"]), ""])


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
