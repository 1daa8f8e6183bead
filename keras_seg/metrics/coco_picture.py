"""Precision over recall as a picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from keras_seg.metrics.coco import Score
from keras_seg.weights.files import replacing

THRESHOLDS = {0.5: 0, 0.75: 5, 0.9: 8}  # of overlap: place in Score.precision
MOST_CLASSES = 12  # a panel with a line a class is drawn up to here


def precision_recall_picture(path: str | Path, score: Score) -> Path:
    """Draws the curves of `metrics.coco.score` to a PNG (or what the name ends in): the mean over classes at overlaps of 0.5,
    0.75 and 0.9, and over all ten; beside it, for 2 to 12 classes, each class at 0.5. The area below a curve is its AP.

    Returns the path. OSError where it cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    path = Path(path)
    recall = np.linspace(0, 1, score.precision.shape[1])
    names = [name for name, figures in score.per_class.items() if figures["AP"] > -1]
    present = score.precision[:, :, [k for k, name in enumerate(score.per_class) if name in names]]
    panels = [{f"IoU {t}": present[place].mean(axis=-1) for t, place in THRESHOLDS.items() if names}]
    if names:
        panels[0]["IoU 0.5 to 0.95"] = present.mean(axis=(0, 2))
    if 1 < len(names) <= MOST_CLASSES:
        panels.append({name: present[0, :, k] for k, name in enumerate(names)})
    figure = Figure(figsize=(4.6 * len(panels), 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    titles = (f"{score.iou_type}, {score.max_detections} detections an image", "each class at IoU 0.5")
    for place, (curves, title) in enumerate(zip(panels, titles, strict=False), start=1):
        axes = figure.add_subplot(1, len(panels), place)
        for name, precision in curves.items():
            axes.plot(recall, precision, label=f"{name}: {precision.mean():.3f}")
        axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02), title=title)
        axes.grid(alpha=0.3)
        if curves:
            axes.legend(title="AP", fontsize="small")
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110, format=path.suffix.lstrip(".") or "png")
    return path
