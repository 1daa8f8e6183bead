"""A U-Net's evaluation as a page: the images with most errors first, what was predicted beside what is true."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from keras_seg.data.progress import track
from keras_seg.data.sample import UNKNOWN, Sample
from keras_seg.error_pictures import FALSE, MISSED
from keras_seg.report_page import Column, Image, Page, Table, percent, save_panel, write_page
from keras_seg.weights.files import replacing

__all__ = ["pixel_curve", "write_unet_report"]

BINS = 256  # of probabilities, for a curve
LEGEND = ((MISSED, "missed, or of another class"), (FALSE, "false"))


class Judged(NamedTuple):
    """An image: its figures, its error (by which images are sorted), objects or classes predicted and true (int [H,
    W], to be coloured), and where pixels are missed and false (bool [H, W])."""

    cells: list[tuple[float, str]]
    error: float
    predicted: np.ndarray
    true: np.ndarray
    missed: np.ndarray
    false: np.ndarray


def write_unet_report(
    folder: str | Path,
    samples: Sequence[Sample],
    probabilities: Sequence[np.ndarray],
    figures: Mapping[str, float],
    *,
    reader: str,
    class_names: Sequence[str],
    title: str = "Evaluation",
    facts: Sequence[tuple[str, str]] = (),
    pictures: int = 100,
) -> Path:
    """Writes index.html and its pictures to a folder: to be opened from a disk, and complete without a network.

    Args:
        folder: made if missing; its pictures go to folder/images.
        samples: annotated images; probabilities: float32 [H, W, K] of each, as `segment` gives them.
        figures: of all images together, for the head of the page (`training.unets.evaluate`).
        reader: what the data are, and so what an image is judged by. "isbi": pixels, Rand error and V_rand at the
            threshold that is best for the Rand error of all. "cell_tracking": SEG. "folder": intersection over union
            of the classes.
        class_names: one a class.
        title, facts: (name, value) for the head of the page.
        pictures: draw the worst so many images.

    Returns the path of index.html. Raises ValueError for no samples, or other classes; OSError where it cannot be
    written.
    """
    if not samples or len(samples) != len(probabilities):
        raise ValueError(
            f"report: {len(samples)} samples and {len(probabilities)} predictions; they go in pairs"
        )
    if any(one.shape[-1] != len(class_names) for one in probabilities):
        raise ValueError(f"report: {len(class_names)} class names, for {probabilities[0].shape[-1]} classes")
    folder = Path(folder)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    columns, judge, more = _judge(reader, samples, probabilities)
    pairs = zip(samples, probabilities, strict=True)
    judged = [(sample, judge(sample, seen)) for sample, seen in pairs]
    judged.sort(key=lambda pair: -pair[1].error)
    # without the folder that all are in
    shared = os.path.commonprefix([sample.name for sample in samples]).rpartition("/")[0]
    images = []
    for number, (sample, one) in enumerate(track(judged, "drawing") if len(judged) > 1 else judged, start=1):
        panels = _panels(sample, one, folder, number) if number <= pictures else ()
        images.append(Image(sample.name.removeprefix(f"{shared}/"), one.cells, panels))
    foreground = list(enumerate(class_names))[1:] or [(0, class_names[0])]
    curves = {name: pixel_curve(samples, probabilities, k) for k, name in foreground}
    page = Page(
        title=title,
        facts=[*facts, *more],
        figures=[(name, f"{value:.4f}") for name, value in figures.items()] + [("images", str(len(samples)))],
        columns=[Column("image"), *columns],
        images=images,
        tables=[_classes(samples, probabilities, class_names)],
        curves=[("Precision over recall of pixels", _draw_curves(folder / "precision_recall.svg", curves))],
        legend=LEGEND,
    )
    return write_page(page, folder / "index.html")


def pixel_curve(samples: Sequence[Sample], probabilities: Sequence[np.ndarray], k: int) -> np.ndarray:
    """Precision and recall of a class's pixels where its probability is above 0, 1/256, ... 255/256: float64 [2,
    256].

    Pixels that nobody annotated do not count. Precision is 1 where nothing is above the threshold, recall 0 without
    pixels of the class.
    """
    counts = np.zeros((2, BINS), np.int64)  # of other pixels and of the class's, by the class's probability
    for sample, seen in zip(samples, probabilities, strict=True):
        known = sample.label != UNKNOWN
        # p > i / 256 is the bins from i on
        bins = np.clip(
            np.ceil(seen[..., k][known].astype(np.float64) * BINS).astype(np.int64) - 1, -1, BINS - 1
        )
        of_class = sample.label[known] == k
        for place, chosen in enumerate((~of_class, of_class)):
            counts[place] += np.bincount(bins[chosen & (bins >= 0)], minlength=BINS)
    total = sum(int(np.count_nonzero(sample.label == k)) for sample in samples)
    false, true = counts[:, ::-1].cumsum(axis=1)[:, ::-1]
    return np.stack([true / np.maximum(true + false, 1) + (true + false == 0), true / max(total, 1)])


def _judge(
    reader: str, samples: Sequence[Sample], probabilities: Sequence[np.ndarray]
) -> tuple[list[Column], Callable[[Sample, np.ndarray], Judged], list[tuple[str, str]]]:
    """The columns of the images' table, what fills them for an image, and facts for the head of the page."""
    if reader == "isbi":
        from keras_seg.metrics import isbi

        interior, labels = np.stack([p[..., 1] for p in probabilities]), np.stack([s.label for s in samples])
        threshold = isbi.rand_error(interior, labels).threshold
        columns = [
            Column("Rand error", "1 - F-score of pairs of pixels in one cell", most_first=True),
            Column("V_rand", "the same of thinned membranes; more is better"),
            Column("pixel error", "1 - F-score of interior pixels", most_first=True),
            _WRONG,
        ]
        return columns, lambda s, p: _judge_isbi(s, p, threshold), [("threshold of images", f"{threshold:g}")]
    if reader == "cell_tracking":
        columns = [
            Column("SEG", "mean overlap of the reference's objects"),
            Column("there", "objects of the reference"),
            Column("found", "predicted objects"),
            Column("matched", "objects of the reference that were found"),
            _WRONG,
        ]
        return columns, _judge_cells, []
    return [Column("mean IoU", "of the classes that occur"), _WRONG], _judge_classes, []


def _judge_isbi(sample: Sample, probability: np.ndarray, threshold: float) -> Judged:
    from keras_seg.metrics.overlap import Counts, components, f_score, overlap, rand_counts
    from keras_seg.metrics.watershed import thin_membranes

    inside, true = probability[..., 1] > threshold, sample.label == 1
    cells, found = components(true), components(inside)
    rand = 1 - f_score(rand_counts(overlap(cells, found)))
    v_rand = f_score(rand_counts(overlap(cells, thin_membranes(inside))))
    missed, false = true & ~inside, (sample.label == 0) & inside
    counts = Counts(int((true & inside).sum()), int(false.sum()), int(missed.sum()))
    figures = [percent(value) for value in (rand, v_rand, 1 - f_score(counts))]
    return Judged(
        [*figures, _wrong(sample, missed | false)], rand, _alike(found, cells), cells, missed, false
    )


def _judge_cells(sample: Sample, probability: np.ndarray) -> Judged:
    from keras_seg.metrics.cell_tracking import seg
    from keras_seg.segment import instances

    found, true = instances(probability[..., 1]), np.maximum(sample.instances, 0)
    missed, false = (true > 0) & (found == 0), (sample.label == 0) & (found > 0)
    there, n_found = len(np.unique(true[true > 0])), int(found.max(initial=0))
    score: dict[str, Any] = seg(found, true) if there else {"SEG": -1.0, "n_matched": 0}
    counts = there, n_found, score["n_matched"]
    cells = [percent(score["SEG"]), *((float(n), str(n)) for n in counts)]
    error = 1 - score["SEG"] if there else float(n_found > 0)
    return Judged([*cells, _wrong(sample, missed | false)], error, _alike(found, true), true, missed, false)


def _judge_classes(sample: Sample, probability: np.ndarray) -> Judged:
    from keras_seg.metrics.iou import mean_iou

    found, known = probability.argmax(-1), sample.label != UNKNOWN
    # an image of which nothing is annotated has no figure, and comes last
    value = mean_iou([found], [sample.label], probability.shape[-1]) if known.any() else -1.0
    different = known & (found != sample.label)
    missed, false = different & (sample.label > 0), different & (sample.label == 0)
    true = np.maximum(sample.label, 0)
    error = 1 - value if known.any() else -1.0
    return Judged([percent(value), _wrong(sample, different)], error, found, true, missed, false)


def _alike(found: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Objects found, int [H, W], numbered and so coloured like the true one of which they have most; each number
    once."""
    both = (found > 0) & (true > 0)
    pairs, shared = np.unique(np.stack([found[both], true[both]]), axis=1, return_counts=True)
    numbers: dict[int, int] = {}
    for k in np.argsort(-shared, kind="stable"):
        one, other = pairs[:, k].tolist()
        if one not in numbers and other not in numbers.values():
            numbers[one] = other
    following = int(true.max(initial=0)) + 1
    renumber = np.zeros(int(found.max(initial=0)) + 1, np.int64)
    for one in np.unique(found[found > 0]).tolist():
        renumber[one] = numbers.get(one, following)
        following += one not in numbers
    return renumber[found]


_WRONG = Column("wrong pixels", "share of the annotated pixels", most_first=True)


def _wrong(sample: Sample, different: np.ndarray) -> tuple[float, str]:
    known = np.count_nonzero(sample.label != UNKNOWN)
    return percent(np.count_nonzero(different) / known if known else -1)


def _panels(sample: Sample, one: Judged, folder: Path, number: int) -> list[tuple[str, str]]:
    from keras_seg import visualize

    picture = visualize.picture(np.rint(sample.image.clip(0, 255)).astype(np.uint8))
    differences = np.asarray(picture).copy()
    differences[one.missed], differences[one.false] = MISSED, FALSE
    pictures: dict[str, Any] = {
        "image": picture,
        "predicted": visualize.overlay_instances(picture, one.predicted),
        "true": visualize.overlay_instances(picture, one.true),
        "differences": visualize.picture(differences),
    }
    written = []
    for name, shown in pictures.items():
        file = f"images/{number:04d}_{name}.jpg"
        save_panel(shown, folder / file)
        written.append((name, file))
    return written


def _classes(
    samples: Sequence[Sample], probabilities: Sequence[np.ndarray], class_names: Sequence[str]
) -> Table:
    """Of the most probable classes of all pixels together."""
    classes = len(class_names)
    both = np.zeros((classes, classes), np.int64)
    for sample, seen in zip(samples, probabilities, strict=True):
        known = sample.label != UNKNOWN
        pairs = sample.label[known].astype(np.int64) * classes + seen.argmax(-1)[known]
        both += np.bincount(pairs, minlength=classes**2).reshape(classes, classes)
    right, there, found = np.diag(both), both.sum(1), both.sum(0)
    rows = []
    for k, name in enumerate(class_names):
        shares = [
            right[k] / total if total else -1
            for total in (there[k] + found[k] - right[k], found[k], there[k], (there[k] + found[k]) / 2)
        ]
        rows.append((name, [*(percent(share) for share in shares), (int(there[k]), f"{there[k]:,}")]))
    columns = [
        Column("class"),
        Column("IoU", "intersection over union"),
        Column("precision", "share of the predicted pixels that are of the class"),
        Column("recall", "share of the class's pixels that are predicted"),
        Column("Dice", "harmonic mean of precision and recall"),
        Column("pixels", "annotated as of the class", most_first=True),
    ]
    return Table("Classes, by the most probable one of each pixel", columns, rows)


def _draw_curves(path: Path, curves: Mapping[str, np.ndarray]) -> str:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name, (precision, recall) in curves.items():
        axes.plot(recall, precision, label=name)
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1.01), ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    with replacing(path) as temporary:
        figure.savefig(temporary, format="svg")
    return path.name
