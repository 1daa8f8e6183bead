"""SavedModels against the Keras models that they come from: size, time to load, latency: `make bench-export`."""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from subprocess import PIPE, Popen

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import compare
from compare import HERE, Worker

# of each model: the overrides with which it finds something without trained weights, height and width of the image
MODELS = {
    "unet_isbi2012": ("pretrained", {}, (512, 512)),
    "maskrcnn_nuclei": ("pretrained", {}, (256, 320)),
    "maskrcnn_r50_fpn": (None, {"score_threshold": 0.0}, (480, 640)),
}
# what takes its turn; the first is what the others are compared with
WAYS = ("segment", "plain call", "SavedModel", "SavedModel without Winograd")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument(
        "--output", type=Path, default=HERE / "results", help="folder of export.json and export.md"
    )
    args = parser.parse_args()
    tables = {}
    for name in args.models:
        with tempfile.TemporaryDirectory() as folder:
            exported = export(name, Path(folder))
            tables[name] = {**exported, "ways": measure(name, Path(folder), args.threads, args.rounds)}
    about = {"date": date.today().isoformat(), "machine": compare.machine(args.threads)}
    results = {**about, "tables": tables}
    compare.write(results, report(results), args.output, "export")


def export(name: str, folder: Path) -> dict:
    """Writes two SavedModels and the model's weights; bytes of all, and the seconds of the first."""
    import keras

    from keras_seg import export as to
    from keras_seg import zoo

    compare.say(f"export: writing {name}")
    weights, overrides, _ = MODELS[name]
    keras.utils.set_random_seed(0)  # for weights that are not trained
    model = zoo.load(name, weights=weights, **overrides)
    model.save_weights(folder / "keras.weights.h5")
    began = time.perf_counter()
    to.saved_model(model, folder / "winograd", warmup_sizes=())
    seconds = time.perf_counter() - began
    to.saved_model(model, folder / "direct", winograd=False, warmup_sizes=())
    size = lambda place: sum(file.stat().st_size for file in place.rglob("*") if file.is_file())
    return {
        "export_seconds": seconds,
        "bytes": {
            "weights": (folder / "keras.weights.h5").stat().st_size,
            "SavedModel": size(folder / "winograd"),
            "its variables": size(folder / "winograd" / "variables"),
        },
    }


def measure(name: str, folder: Path, threads: int, rounds: int) -> dict[str, dict]:
    """Of each way: seconds to load, to the first answer after that, and of `rounds` answers; MiB at the peak."""
    workers = []
    for way in WAYS:
        line = [sys.executable, HERE / "export_worker.py", "--way", way, "--model", name]
        line += ["--folder", folder, "--threads", threads]
        workers.append(Worker(way, Popen([*map(str, line)], stdin=PIPE, stdout=PIPE, text=True)))
        compare.say(f"export: {name}, {way} loads")
        workers[-1].loaded = workers[-1].ask("load")["seconds"]
        workers[-1].first = workers[-1].ask("run")["seconds"]
    seconds = {way: [] for way in WAYS}
    for turn in range(rounds):
        compare.say(f"export: {name}, round {turn + 1} of {rounds}")
        for worker in workers:
            time.sleep(compare.REST)
            seconds[worker.name].append(worker.ask("run")["seconds"])
    figures = {}
    for worker in workers:
        ratios = [b / a for a, b in zip(seconds[WAYS[0]], seconds[worker.name], strict=True)]
        figures[worker.name] = {
            "load": worker.loaded,
            "first": worker.first,
            "seconds": seconds[worker.name],
            "ratio": statistics.median(ratios),
            "found": worker.ask("found")["result"],
            "MiB": worker.ask("memory")["result"],
        }
        worker.close()
    return figures


def report(results: dict) -> str:
    """The tables as Markdown."""
    about = results["machine"]
    lines = [
        f"{results['date']}, {about['cpu']}, {about['threads']} threads, {' '.join(about['instruction_sets'])}.",
        "The processes take turns; ratios are medians over rounds. `segment` and the SavedModels go from uint8 pixels to results in "
        + "pixels of the image. A plain call, `model(inputs)`, is the Keras network alone on an image that was resized before, "
        + "operation by operation; of a U-Net it is one of the model's rotations (7 for unet_isbi2012).",
    ]
    for name, table in results["tables"].items():
        (height, width), sizes = (
            MODELS[name][2],
            {key: value / 2**20 for key, value in table["bytes"].items()},
        )
        lines += [
            "",
            f"{name}, one image of {height}x{width}. SavedModel {sizes['SavedModel']:.1f} MiB, of which its variables "
            + f"{sizes['its variables']:.1f}; the model's .weights.h5 {sizes['weights']:.1f} MiB. Exported and checked "
            + f"in {table['export_seconds']:.0f} s.",
            "",
            "| | milliseconds an image: median (range) | its time over `segment`'s | to load, s | first image, s "
            + "| peak memory, MiB | found |",
            "|---|---|---|---|---|---|---|",
        ]
        for way, row in table["ways"].items():
            median, low, high = (1000 * f(row["seconds"]) for f in (statistics.median, min, max))
            lines.append(
                f"| {way} | {median:.0f} ({low:.0f}-{high:.0f}) | {row['ratio']:.2f} | {row['load']:.1f} "
                f"| {row['first']:.1f} | {row['MiB']:.0f} | {row['found']} |"
            )
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
