"""The course of a training run as a table and as a picture."""

from __future__ import annotations

import csv
from pathlib import Path

from keras_seg.weights.files import replacing

PANELS = 4  # side by side


def write_history(path: str | Path, history: list[dict[str, float]]) -> None:
    """Writes one row a record to a CSV file; the columns are the union of the records' keys, "step" first."""
    columns = ["step", *sorted({key for record in history for key in record} - {"step"})]

    with replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(history)


def plot_history(path: str | Path, history: list[dict[str, float]], title: str = "") -> None:
    """Draws the learning curves to a PNG: each figure in a panel, losses with those of the validation."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    keys = sorted({key for record in history for key in record} - {"step", "learning_rate"})
    losses = [key for key in keys if "loss" in key]
    # each loss with its validation
    groups = [
        [key for key in losses if key.removeprefix("val_") == name]
        for name in dict.fromkeys(k.removeprefix("val_") for k in losses)
    ]
    groups += [[key] for key in keys if key not in losses]
    groups = [group for group in groups if group]
    columns = min(PANELS, max(1, len(groups)))
    rows = -(-len(groups) // columns) or 1
    figure = Figure(figsize=(4.2 * columns, 3.4 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    for place, group in enumerate(groups, start=1):
        axes = figure.add_subplot(rows, columns, place)
        for key in group:
            points = [(record["step"], record[key]) for record in history if key in record]
            axes.plot(*zip(*points, strict=True), label=key, marker="." if len(points) < 30 else "")
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.suptitle(title)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110)
