"""keras_seg's U-Net against the same network and weights in PyTorch, in one run: `make bench-unet`."""

from __future__ import annotations

import argparse
import sys
import tempfile
from datetime import date
from pathlib import Path

import compare
import data_path
import numpy as np
from compare import HERE, OURS

TORCH_ENVIRONMENT = ".venv-torch"
TORCH_REQUIREMENTS = ("torch==2.14.1", "torchvision==0.29.1", "numpy", "pillow")
PYTORCH = {  # name in the table: setting of unet_pytorch.py
    "PyTorch": "plain",
    "PyTorch, channels_last": "channels_last",
    "PyTorch, channels_last and compiled": "compiled",
}


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
    torch_python = compare.environment(TORCH_ENVIRONMENT, TORCH_REQUIREMENTS)
    names = [name for name in PYTORCH if args.only is None or name in args.only]

    results = {"date": date.today().isoformat(), "machine": compare.machine(args.threads), "tables": {}}
    with tempfile.TemporaryDirectory() as folder:
        inputs = Path(folder) / "inputs.npz"
        # backward: to the inputs, and to the weights
        flops = write_inputs(inputs, args.size, args.base_channels)
        for task, rounds, passes in (("inference", args.rounds, 1), ("training", args.training_rounds, 3)):
            if rounds:
                contestants = commands(task, names, torch_python, inputs, args.threads)
                results["tables"][task] = compare.compare(
                    task, contestants, rounds, flops * passes, Path(folder)
                )
    results["data"] = data_path.measure()
    compare.write(results, report(results, args.size, args.base_channels), args.output, "unet")


def commands(task: str, names: list[str], torch_python: Path, inputs: Path, threads: int) -> dict[str, list]:
    """The contestants' command lines."""
    options = ["--inputs", inputs, "--threads", threads]
    lines = {OURS: [sys.executable, HERE / "unet_keras_seg.py", task, *options]}
    return lines | {
        name: [torch_python, HERE / "unet_pytorch.py", task, PYTORCH[name], *options] for name in names
    }


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


def report(results: dict, size: int, base_channels: int) -> str:
    """The tables as Markdown."""
    lines = [compare.machine_line(results)]
    for task, table in results["tables"].items():
        title = (
            f"{'Inference' if task == 'inference' else 'One training step'}, {size}x{size}, batch 1, "
            f"{base_channels} base channels: {table['flops'] / 1e9:.1f} GFLOP; "
            f"matrix peak {table['peak_flops'] / 1e9:.0f} GFLOP/s."
        )
        lines += ["", title, "", *compare.table_lines(table)]
    return "\n".join([*lines, "", data_path.report(results["data"]), ""])


if __name__ == "__main__":
    main()
