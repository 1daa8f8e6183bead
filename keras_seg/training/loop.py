"""The training loop: steps, progress, checkpoints, best weights, and a stop at the first number that is not finite."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from keras_seg.models import UNet
from keras_seg.training import checkpoint, curves
from keras_seg.weights.files import save_weights

CHECKPOINT, BEST, LAST = "checkpoint.npz", "best.weights.h5", "last.weights.h5"
HISTORY, CURVES = "history.csv", "curves.png"
LOG_EVERY = 50  # steps between two records of the training loss


class NonFiniteLoss(ArithmeticError):
    """A loss became NaN or infinite."""


def run(
    model: UNet,
    batches: Callable[[int], tf.data.Dataset],
    output: str | Path,
    *,
    steps: int,
    finished: Callable[[], UNet] | None = None,
    evaluate: Callable[[UNet], dict[str, float]] | None = None,
    evaluate_every: int = 500,
    checkpoint_every: int = 250,
    select: tuple[str, str] = ("val_loss", "min"),
    resume: bool = False,
    sample_names: Sequence[str] = (),
    say: Callable[[str], None] = print,
) -> list[dict[str, float]]:
    """Trains a compiled model for `steps` steps and returns the history.

    Writes into the folder `output`: checkpoint.npz (everything that a resumed run needs), history.csv, curves.png,
    best.weights.h5 (by `select`, where there is an evaluation) and, at the end, last.weights.h5. Every file is
    replaced only once its successor is complete.

    Args:
        model: compiled.
        batches: start -> the dataset from batch number `start` on; the same for the same number.
        output: folder of the run; made if missing.
        steps: number of steps of the whole run.
        finished: gives the model with the weights of the moment as they shall be judged and kept (averaged, say);
            None: `model` itself.
        evaluate: called with it every `evaluate_every` steps and at the end; returns named figures.
        checkpoint_every: steps between two checkpoints.
        select: (figure, "min" or "max") that chooses the best weights.
        resume: go on from the folder's checkpoint; without one, start afresh. A resumed run gives the losses of one
            that was never stopped.
        sample_names: names of the images, for the message when a loss is not finite.
        say: receives a line of progress now and then.

    Raises:
        NonFiniteLoss: names step and images; the checkpoint before it remains.
        FileExistsError: `output` holds another run's checkpoint and resume is False.
    """
    output, finished = Path(output), finished or (lambda: model)
    history: list[dict[str, float]] = []
    best, start, recent = None, 0, []
    model.optimizer.build(model.trainable_variables)
    path = output / CHECKPOINT
    if path.exists():
        if not resume:
            raise FileExistsError(f"{path}: a run is here already; resume it, or choose another folder")
        state = checkpoint.restore(path, model)
        history, best, start, recent = (state[key] for key in ("history", "best", "step", "recent"))
        say(f"resumed at step {start} of {steps}")
    output.mkdir(parents=True, exist_ok=True)

    def save() -> None:
        checkpoint.save(path, model, {"step": step, "history": history, "best": best, "recent": recent})
        curves.write_history(output / HISTORY, history)
        if history:
            curves.plot_history(output / CURVES, history, title=f"{model.name}: {output.name}")

    optimize = tf.function(model.optimize)
    began, began_at = time.monotonic(), start
    step = start
    for step, batch in enumerate(batches(start).take(max(0, steps - start)), start=start + 1):
        terms = {name: float(value) for name, value in optimize(batch).items()}
        if not all(map(math.isfinite, terms.values())):
            raise NonFiniteLoss(_describe(step, terms, batch, sample_names, path))
        recent.append(terms["loss"])
        if step % LOG_EVERY == 0 or step == steps:
            history.append({"step": step, "loss": float(np.mean(recent))})
            speed = (step - began_at) / (time.monotonic() - began)
            left = (steps - step) / speed / 60
            say(
                f"step {step}/{steps}  loss {history[-1]['loss']:.4f}  {speed:.2f} steps/s  {left:.0f} min left"
            )
            recent = []
        if evaluate and (step % evaluate_every == 0 or step == steps):
            now = finished()
            figures = {name: float(value) for name, value in evaluate(now).items()}
            history.append({"step": step, **figures})
            best = _keep_best(now, output, figures, best, step, select, say)
        if step % checkpoint_every == 0 or step == steps:
            save()
    save_weights(finished(), output / LAST)
    return history


def _keep_best(
    model, output: Path, figures: dict, best: dict | None, step: int, select: tuple[str, str], say
) -> dict:
    name, mode = select
    if name not in figures:
        raise ValueError(f"select: no figure {name!r}; the evaluation gives {', '.join(sorted(figures))}")
    better = best is None or (
        figures[name] < best["value"] if mode == "min" else figures[name] > best["value"]
    )
    shown = "  ".join(f"{key} {value:.4f}" for key, value in sorted(figures.items()))
    say(f"step {step}  {shown}{'  (best)' if better else ''}")
    if not better:
        return best
    save_weights(model, output / BEST)
    return {"step": step, "value": figures[name], "metric": name}


def _describe(step: int, terms: dict, batch: dict, sample_names: Sequence[str], path: Path) -> str:
    wrong = ", ".join(f"{name} = {value}" for name, value in terms.items() if not math.isfinite(value))
    images = batch["sample"].numpy().tolist() if "sample" in batch else []
    names = (
        ", ".join(sample_names[index] for index in images if index < len(sample_names)) or "unknown images"
    )
    kept = (
        f"the last checkpoint, {path}, is from before" if path.exists() else "no checkpoint was written yet"
    )
    finite = all(
        bool(tf.reduce_all(tf.math.is_finite(batch[key]))) for key in ("image", "weight") if key in batch
    )
    hint = (
        "lower the learning rate or lengthen the warm-up" if finite else "the batch itself holds such values"
    )
    return f"{wrong} at step {step}, in the batch of tiles from {names}; {hint}. {kept}."
