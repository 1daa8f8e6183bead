"""keras_seg's RoIAlign, compiled and portable, against torchvision's on a processor, in one run: `make bench-roi-align`."""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from datetime import date
from pathlib import Path

import compare
import numpy as np
from compare import HERE, OURS
from unet import TORCH_ENVIRONMENT, TORCH_REQUIREMENTS

# boxes, bins along a side
CASES = ((1000, 7), (100, 14))
RATIOS = (0, 2)
MAP, CHANNELS, STRIDE = (200, 272), 256, 4  # an image of 800 x 1088 at the finest level
CONTESTANTS = {OURS: "custom", "crop_and_resize": "crop_and_resize", "gather": "gather"}
PEER = "torchvision"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--channels", type=int, default=CHANNELS)
    parser.add_argument(
        "--only", nargs="*", help=f"leave out other contestants of {PEER}, {', '.join(CONTESTANTS)}"
    )
    parser.add_argument("--tasks", nargs="*", default=["forward", "backward"])
    parser.add_argument(
        "--boxes", type=int, nargs="*", help="leave out the cases with other numbers of boxes"
    )
    parser.add_argument(
        "--output", type=Path, default=HERE / "results", help="folder of roi_align.json and roi_align.md"
    )
    args = parser.parse_args()
    torch_python = compare.environment(TORCH_ENVIRONMENT, TORCH_REQUIREMENTS)
    names = [n for n in (*CONTESTANTS, PEER) if n == OURS or args.only is None or n in args.only]
    results = {
        "date": date.today().isoformat(),
        "machine": compare.machine(args.threads),
        "bytes_per_second": compare.bandwidth(),
        "tables": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        for boxes, bins in CASES:
            if args.boxes is not None and boxes not in args.boxes:
                continue
            inputs = Path(folder) / f"inputs{boxes}.npz"
            placed = write_inputs(inputs, boxes, bins, args.channels)
            for ratio in RATIOS:
                work = count_work(placed, bins, ratio, args.channels)
                for task in args.tasks:
                    title = f"{task}, {boxes} boxes, {bins}x{bins}, " + (
                        f"ratio {ratio}" if ratio else "adaptive"
                    )
                    contestants = commands(task, names, torch_python, inputs, ratio, args.threads)
                    table = compare.compare(
                        title, contestants, args.rounds, work["flops"], Path(folder), parts=False
                    )
                    results["tables"][title] = table | work
    compare.write(results, report(results), args.output, "roi_align")


def commands(
    task: str, names: list[str], torch_python: Path, inputs: Path, ratio: int, threads: int
) -> dict[str, list]:
    """The contestants' command lines."""
    options = [task, "--inputs", inputs, "--ratio", ratio, "--threads", threads]
    programs = {
        name: [sys.executable, HERE / "roi_align_keras_seg.py", implementation]
        for name, implementation in CONTESTANTS.items()
    } | {PEER: [torch_python, HERE / "roi_align_torchvision.py"]}
    return {name: [*programs[name], *options] for name in names}


def detector_boxes(count: int, height: int, width: int) -> np.ndarray:
    """Boxes like a detector's: of 16 to 600 pixels, evenly on a logarithmic scale, cut at the image. float32 [N, 4]."""
    random = np.random.default_rng(0)
    size = np.exp(random.uniform(np.log(16), np.log(600), count))
    stretch = np.exp(random.normal(0, 0.2, count))
    sides = np.stack([size * stretch, size / stretch], 1)
    centres = random.uniform(0, [width, height], (count, 2))
    corners = np.concatenate([centres - sides / 2, centres + sides / 2], 1)
    return np.clip(corners, 0, [width, height, width, height]).astype(np.float32)


def write_inputs(path: Path, count: int, bins: int, channels: int, size: tuple[int, int] = MAP) -> np.ndarray:
    """Features, boxes and what comes back in training for all contestants; returns the boxes."""
    random = np.random.default_rng(1)
    boxes = detector_boxes(count, STRIDE * size[0], STRIDE * size[1])
    np.savez(
        path,
        features=random.standard_normal((1, *size, channels), dtype=np.float32),
        boxes=boxes,
        upstream=random.standard_normal((count, bins, bins, channels), dtype=np.float32),
        scale=1 / STRIDE,
    )
    return boxes


def count_work(boxes: np.ndarray, bins: int, ratio: int, channels: int, size: tuple[int, int] = MAP) -> dict:
    """ "flops": multiplications and additions where a row is first combined along x, then rows along y; and "bytes" of
    pixels that any box reads, and of all bins: what memory has to move once."""
    flops, read = 0, np.zeros(size, bool)
    for box in boxes / STRIDE - 0.5:
        x, y = (pixels_of_bins(box[a], box[a + 2], bins, ratio, size[1 - a]) for a in (0, 1))
        rows, columns = (sorted(set().union(*pixels)) for pixels in (y, x))
        flops += 2 * channels * (len(rows) * sum(map(len, x)) + sum(map(len, y)) * bins)
        read[np.ix_(rows, columns)] = True
    return {"flops": flops, "bytes": 4 * channels * (int(read.sum()) + len(boxes) * bins**2)}


def pixels_of_bins(low: float, high: float, bins: int, ratio: int, length: int) -> list[set[int]]:
    """The pixels that the samples of each bin lie between, along one axis."""
    side = (high - low) / bins
    samples = ratio or max(int(np.ceil(side)), 0)
    result = []
    for start in low + side * np.arange(bins):
        positions = start + side * (np.arange(samples) + 0.5) / max(samples, 1)
        positions = positions[(positions >= -1) & (positions <= length)].clip(0, length - 1)
        result.append({*np.floor(positions).astype(int), *np.ceil(positions).astype(int)})
    return result


def report(results: dict) -> str:
    """The tables as Markdown."""
    moved = results["bytes_per_second"]
    lines = [compare.machine_line(results), f"Memory: {moved / 1e9:.1f} GB/s (a copy, one thread)."]
    for title, table in results["tables"].items():
        ours = statistics.median(table["contestants"][OURS]["seconds"])
        heading = (
            f"{title}: {table['flops'] / 1e9:.2f} GFLOP, {table['bytes'] / 1e6:.0f} MB; matrix peak "
            f"{table['peak_flops'] / 1e9:.0f} GFLOP/s. {OURS}: {table['flops'] / ours / 1e9:.1f} GFLOP/s, "
            f"{table['bytes'] / ours / moved:.0%} of the memory's speed."
        )
        lines += ["", heading, "", *compare.table_lines(table, "milliseconds", 1e-3)]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
