"""The training loop: steps, progress, checkpoints, best weights, and a stop at the first number that is not finite."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_seg.out_of_memory import advising
from keras_seg.training import checkpoint, curves
from keras_seg.training.bar import Bar
from keras_seg.training.board import Board
from keras_seg.training.hosts import Hosts, check_same, optimizing, part_seeds, together, wait, watching
from keras_seg.weights.files import remove_unfinished, replacing, save_weights

CHECKPOINT, BEST, LAST = "checkpoint.npz", "best.weights.h5", "last.weights.h5"
HISTORY, CURVES, BOARD = "history.csv", "curves.png", "tensorboard"
LOG_EVERY = 50  # steps between two records of the training loss
LESS_MEMORY = (
    "use a smaller data.batch_size (with training.optimizer.accumulate for the same steps), or smaller pictures: data.tile, "
    "data.short_side"
)


class NonFiniteLoss(ArithmeticError):
    """A loss became NaN or infinite."""


def run(
    model: keras.Model,
    batches: Callable[[int], tf.data.Dataset],
    output: str | Path,
    *,
    steps: int,
    finished: Callable[[], keras.Model] | None = None,
    evaluate: Callable[[keras.Model], dict[str, float]] | None = None,
    evaluate_every: int = 500,
    checkpoint_every: int = 250,
    select: tuple[str, str] = ("val_loss", "min"),
    resume: bool = False,
    sources: Callable[[dict[str, tf.Tensor]], Sequence[str]] | None = None,
    pictures: Callable[[keras.Model], dict[str, np.ndarray]] | None = None,
    say: Callable[[str], None] = print,
    progress: bool = False,
    hosts: Hosts | None = None,
) -> list[dict[str, float]]:
    """Trains a compiled model for `steps` steps and returns the history.

    Writes into the folder `output`: checkpoint.npz (everything that a resumed run needs), history.csv, curves.png,
    best.weights.h5 (by `select`, where there is an evaluation), the folder tensorboard and, at the end, last.weights.h5.
    Every file is replaced only once its successor is complete.

    Of several workers each makes the same steps, and the first one alone judges, writes and tells; the others read its
    checkpoint, so the folder must be one that they share (docs/training_hosts.md).

    Args:
        model: compiled, with `optimize(batch)`, which returns named losses with their sum "loss"; on several devices
            with `gradients(batch)`, and made in the strategy's scope.
        batches: start -> the dataset from batch number `start` on; the same for the same number. With several workers,
            those of this one; with several devices on it, each step takes as many.
        output: folder of the run; made if missing.
        steps: number of steps of the whole run.
        finished: gives the model with the weights of the moment as they shall be judged and kept (averaged, say);
            None: `model` itself.
        evaluate: called with it every `evaluate_every` steps and at the end; returns named figures.
        checkpoint_every: steps between two checkpoints.
        select: (figure, "min" or "max") that chooses the best weights.
        resume: go on from the folder's checkpoint; without one, start afresh. A resumed run gives the losses of one
            that was never stopped.
        sources: batch -> the names of its images, for the message when a loss is not finite.
        pictures: called where `evaluate` is; named pictures uint8 [H, W, 3] for TensorBoard.
        say: receives a line of progress now and then.
        progress: draw a bar where standard error is a terminal, instead of the lines about the steps but the last one.
        hosts: who trains; None: this process, on one device.

    Raises:
        WorkerLost: another worker is gone.
        ValueError: the workers are not at the same step, since they do not share the folder.
        NonFiniteLoss: names step and images; the batch is in a file beside the checkpoint, which is from before it.
        FileExistsError: `output` holds another run's checkpoint and resume is False.
    """
    output, finished = Path(output), finished or (lambda: model)
    hosts = hosts or Hosts(tf.distribute.get_strategy())
    say = say if hosts.chief else (lambda line: None)
    history: list[dict[str, float]] = []
    best, start, recent = None, 0, []
    with hosts.strategy.scope():
        model.optimizer.build(model.trainable_variables)
    path = output / CHECKPOINT
    if path.exists():
        if not resume:
            raise FileExistsError(f"{path}: a run is here already; resume it, or choose another folder")
        state = checkpoint.restore(path, model)
        history, best, start, recent = (state[key] for key in ("history", "best", "step", "recent"))
        say(f"resumed at step {start} of {steps}")
    check_same(hosts, **{"the first step": start})
    part_seeds(model, hosts)
    evaluate = evaluate if hosts.chief else None
    output.mkdir(parents=True, exist_ok=True)
    if hosts.chief:
        remove_unfinished(output)  # a process that is killed while it writes cannot
    board = Board(output / BOARD) if hosts.chief else None

    def save() -> None:
        if not hosts.chief:
            return
        checkpoint.save(path, model, {"step": step, "history": history, "best": best, "recent": recent})
        curves.write_history(output / HISTORY, history)
        if history:
            curves.plot_history(output / CURVES, history, title=f"{model.name}: {output.name}")

    def record(figures: dict[str, float]) -> None:
        history.append({"step": step, **figures})
        if board:
            board.figures(step, figures)

    data = batches(start * hosts.replicas).take(max(0, steps - start) * hosts.replicas)
    if hosts.strategy.num_replicas_in_sync > 1:
        optimize = optimizing(model, hosts, data.element_spec)
        data = together(data, hosts)
    else:
        # a second shape of batch makes a trace for all shapes
        optimize = tf.function(model.optimize, reduce_retracing=True)
    began, began_at = time.monotonic(), start
    step, now = start, None
    bar = Bar(start, steps, show=progress and hosts.chief)
    if earlier := [one[select[0]] for one in history if select[0] in one]:
        bar.judged(select[0], earlier[-1])
    with bar:
        for step, batch in enumerate(data, start=start + 1):
            with watching(hosts, f"step {step}"), advising(f"the batch of step {step}", LESS_MEMORY):
                terms = {name: float(value) for name, value in optimize(batch).items()}
            if not all(map(math.isfinite, terms.values())):
                message = _describe(step, terms, batch, sources, path, hosts)
                wait(hosts)
                raise NonFiniteLoss(message)
            recent.append(terms)
            bar.step(step, terms["loss"])
            if step % LOG_EVERY == 0 or step == steps:
                means = {name: float(np.mean([one[name] for one in recent])) for name in terms}
                record(means)
                # a coarse clock may stand still
                speed = (step - began_at) / max(time.monotonic() - began, 1e-9)
                left = (steps - step) / speed / 60
                shown = "  ".join(f"{name} {value:.4f}" for name, value in means.items())
                if step == steps or not bar.shown:
                    say(f"step {step}/{steps}  {shown}  {speed:.2f} steps/s  {left:.0f} min left")
                recent = []
            now = finished() if evaluate and (step % evaluate_every == 0 or step == steps) else None
            if now is not None and evaluate and board:
                with bar.hidden():
                    figures = {name: float(value) for name, value in evaluate(now).items()}
                record(figures)
                best = _keep_best(now, output, figures, best, step, select, say)
                bar.judged(select[0], figures[select[0]])
                if pictures:
                    board.pictures(step, pictures(now))
            if step % checkpoint_every == 0 or step == steps:
                save()
    if board:
        board.close()
        save_weights(finished() if now is None else now, output / LAST)
    wait(hosts)
    return history


def _keep_best(
    model: keras.Model,
    output: Path,
    figures: dict[str, float],
    best: dict[str, Any] | None,
    step: int,
    select: tuple[str, str],
    say: Callable[[str], None],
) -> dict[str, Any] | None:
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


def _describe(
    step: int,
    terms: dict[str, float],
    batch: dict[str, tf.Tensor] | list[dict[str, tf.Tensor]],
    sources: Callable[[dict[str, tf.Tensor]], Sequence[str]] | None,
    path: Path,
    hosts: Hosts,
) -> str:
    wrong = ", ".join(f"{name} = {value}" for name, value in terms.items() if not math.isfinite(value))
    shares = batch if isinstance(batch, list) else [batch]
    names = ", ".join(name for share in shares for name in sources(share)) if sources else "unknown images"
    arrays = {
        f"{name} of device {k}" if k else name: value.numpy()
        for k, share in enumerate(shares)
        for name, value in share.items()
    }
    worker = f"_worker_{hosts.number}" if hosts.count > 1 else ""
    culprit = path.with_name(f"not_finite_at_step_{step}{worker}.npz")
    with replacing(culprit) as temporary, open(temporary, "wb") as file:
        losses = {f"terms/{name}": np.asarray(value) for name, value in terms.items()}
        np.savez_compressed(file, allow_pickle=False, **arrays, **losses)
    kept = (
        f"the last checkpoint, {path}, is from before" if path.exists() else "no checkpoint was written yet"
    )
    numbers = [array for array in arrays.values() if array.dtype.kind == "f"]
    finite = all(np.isfinite(array).all() for array in numbers)
    hint = (
        "lower the learning rate or lengthen the warm-up" if finite else "the batch itself holds such values"
    )
    return f"{wrong} at step {step}, in the batch from {names}; {hint}. {culprit} has the batch and its losses; {kept}."
