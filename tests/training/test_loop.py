"""Training: progress, checkpoints, exact resume, best weights, and stops that say why."""

import contextlib
import csv
import os
import re
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from keras_seg.data import progress
from keras_seg.data.sample import Sample
from keras_seg.data.tiles import tile_dataset
from keras_seg.models import unet
from keras_seg.training import NonFiniteLoss, checkpoint, loop
from keras_seg.training.hosts import Hosts
from keras_seg.training.schedule import WarmupThenDecay
from keras_seg.weights import files


def samples(count=3):
    rng = np.random.default_rng(0)
    labels = [rng.integers(0, 2, (24, 24)).astype(np.int32) for _ in range(count)]
    return [
        Sample(
            name=f"image {k}",
            image=label[..., None].astype(np.float32) * 200,
            label=label,
            weight=np.ones(label.shape, np.float32),
            instances=label,
        )
        for k, label in enumerate(labels)
    ]


def model():
    keras.utils.set_random_seed(1)
    network = unet(depth=1, base_channels=2, padding="same", normalization="batch", dropout=0.3)
    network.compile(optimizer=keras.optimizers.AdamW(WarmupThenDecay(0.01, 12, 2, 0.5)))
    return network


def batches(start):
    return tile_dataset(samples(), tile=16, batch_size=2, start=start)


def run(output, network=None, steps=12, **options):
    options = {"say": lambda line: None, "checkpoint_every": 4, "evaluate_every": 4} | options
    return loop.run(network or model(), batches, output, steps=steps, **options)


@pytest.fixture(autouse=True)
def record_every_step(monkeypatch):
    monkeypatch.setattr(loop, "LOG_EVERY", 1)


def test_a_run_learns_and_writes_its_files(tmp_path):
    lines = []
    history = run(tmp_path / "run", steps=40, say=lines.append)
    losses = [record["loss"] for record in history]
    assert np.mean(losses[-10:]) < np.mean(losses[:10])
    assert {p.name for p in (tmp_path / "run").iterdir()} == {
        loop.CHECKPOINT, loop.HISTORY, loop.CURVES, loop.LAST, loop.BOARD,
    }  # fmt: skip
    assert "step 40/40" in lines[-1] and "steps/s" in lines[-1] and "min left" in lines[-1]
    with open(tmp_path / "run" / loop.HISTORY, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["loss"]) for row in rows] == losses
    picture = Image.open(tmp_path / "run" / loop.CURVES)
    assert picture.width > 300 and np.unique(np.asarray(picture.convert("L"))).size > 10


def test_a_resumed_run_has_the_losses_of_one_that_never_stopped(tmp_path):
    whole = run(tmp_path / "whole")
    run(tmp_path / "parts", steps=8)
    again = model()
    parts = run(tmp_path / "parts", network=again, resume=True)
    assert parts == whole
    for a, b in zip(
        checkpoint_arrays(tmp_path / "whole"), checkpoint_arrays(tmp_path / "parts"), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def checkpoint_arrays(folder):
    network = model()
    network.optimizer.build(network.trainable_variables)
    checkpoint.restore(folder / loop.CHECKPOINT, network)
    return [np.asarray(v) for v in [*network.variables, *network.optimizer.variables]]


def test_another_run_in_the_folder_is_not_overwritten(tmp_path):
    run(tmp_path, steps=4)
    with pytest.raises(FileExistsError, match="a run is here already; resume it, or choose another folder"):
        run(tmp_path, steps=4)


def test_best_weights_are_those_of_the_best_evaluation(tmp_path):
    figures = iter([0.5, 0.2, 0.3])
    kept = []

    def evaluate(network):
        kept.append([np.asarray(v) for v in network.weights])
        return {"rand_error": next(figures)}

    run(tmp_path, evaluate=evaluate, select=("rand_error", "min"))
    best = model()
    files.load_weights(best, tmp_path / loop.BEST)
    for expected, found in zip(kept[1], best.weights, strict=True):
        np.testing.assert_array_equal(expected, found)


def test_select_must_name_a_figure(tmp_path):
    with pytest.raises(ValueError, match="no figure 'v_rnd'; the evaluation gives rand_error, v_rand"):
        run(tmp_path, evaluate=lambda network: {"v_rand": 1, "rand_error": 0}, select=("v_rnd", "max"))


def test_a_loss_that_is_not_finite_stops_and_names_the_batch(tmp_path):
    def poisoned(start):
        def poison(batch):
            return {**batch, "weight": batch["weight"] * float("nan")}

        return batches(start).take(6 - start).concatenate(batches(6).map(poison))

    message = r"loss = nan at step 7, in the batch from image \d, image \d"
    with pytest.raises(NonFiniteLoss, match=message) as caught:
        names = [sample.name for sample in samples()]
        loop.run(
            model(),
            poisoned,
            tmp_path,
            steps=12,
            checkpoint_every=4,
            sources=lambda batch: [names[k] for k in batch["sample"]],
            say=lambda line: None,
        )
    assert "the batch itself holds such values" in str(caught.value)
    assert "checkpoint.npz, is from before" in str(caught.value)
    with np.load(tmp_path / "not_finite_at_step_7.npz") as kept:
        assert np.isnan(kept["weight"]).all() and np.isnan(kept["terms/loss"])
        assert kept["image"].shape == (2, 16, 16, 1)
    network = model()
    network.optimizer.build(network.trainable_variables)
    assert checkpoint.restore(tmp_path / loop.CHECKPOINT, network)["step"] == 4


def test_a_diverging_run_is_told_to_lower_the_rate(tmp_path):
    network = model()
    network.get_layer("logits").bias.assign([np.inf, 0])
    with pytest.raises(NonFiniteLoss, match="lower the learning rate.*no checkpoint was written yet"):
        run(tmp_path, network=network)


def figures(*values):
    """An evaluation that gives one value after the other."""
    left = iter(values)
    return {"evaluate": lambda network: {"rand_error": next(left)}, "select": ("rand_error", "min")}


def test_on_a_terminal_a_bar_is_drawn_below_the_lines(tmp_path, terminal):
    with terminal:
        run(tmp_path, steps=4, say=print, progress=True, **figures(0.5))
        run(tmp_path, steps=12, say=print, progress=True, resume=True, **figures(0.2, 0.3))
    drawn = [line for line in re.split(r"[\r\n]", terminal.written) if "training" in line]
    for step, before in ((8, 0.5), (12, 0.2)):  # as it was when the validation began
        (line, *_) = [line for line in drawn if f"{step}/12" in line]
        assert re.search(r"\d steps/s.* loss \d\.\d{4}", line) and f"rand_error {before:.4f}" in line
    lines = [line for line in terminal.seen if line]
    assert [line[:28] for line in lines if not line.startswith("step 4/4 ")] == [
        "step 4  rand_error 0.5000  (", "resumed at step 4 of 12", "step 8  rand_error 0.2000  (",
        lines[-2][:28], "step 12  rand_error 0.3000",
    ]  # fmt: skip
    assert lines[-2].startswith("step 12/12  loss ")  # of the steps the last one, and nothing of the bar
    assert terminal.has_cursor


def test_bars_of_the_validation_take_the_place_of_that_of_the_steps(tmp_path, terminal, monkeypatch):
    monkeypatch.setattr(progress, "PATIENCE", -1.0)

    def evaluate(network):
        return {"val_loss": float(len(list(progress.track(range(3), "evaluating"))))}

    with terminal:
        run(tmp_path, steps=8, progress=True, evaluate=evaluate)
    assert "evaluating" in terminal.written
    assert not any(terminal.seen)


def test_a_bar_leaves_what_goes_to_a_file_there(tmp_path, terminal):
    with terminal, open(tmp_path / "log", "w") as log, contextlib.redirect_stdout(log):
        run(tmp_path / "run", say=print, progress=True, **figures(0.5, 0.2, 0.3))
        assert sys.stdout is log
    lines = (tmp_path / "log").read_text().splitlines()
    assert [line.partition("  ")[0] for line in lines] == ["step 4", "step 8", "step 12/12", "step 12"]
    assert "12/12" in terminal.written and not any(terminal.seen)


def test_a_failure_leaves_the_terminal_as_it_was(tmp_path, terminal):
    network = model()
    network.get_layer("logits").bias.assign([np.inf, 0])
    with terminal:
        before = sys.stdout, sys.stderr
        with pytest.raises(NonFiniteLoss):
            run(tmp_path, network=network, progress=True)
        assert (sys.stdout, sys.stderr) == before
    assert "0/12" in terminal.written and not any(terminal.seen)
    assert terminal.has_cursor


@pytest.mark.parametrize("place", ["a file", "a terminal that cannot move its cursor"])
def test_elsewhere_there_are_lines_and_no_control_characters(tmp_path, place, terminal, capsys, monkeypatch):
    options = {"steps": 4, "say": print, "progress": True, **figures(0.5)}
    if place == "a file":
        monkeypatch.setenv("FORCE_COLOR", "1")  # some services that build set it
        run(tmp_path, **options)
        out, error = capsys.readouterr()
    else:
        monkeypatch.setenv("TERM", "dumb")
        with terminal:
            run(tmp_path, **options)
        out, error = terminal.written, ""
    assert [line.partition("  ")[0] for line in out.splitlines()] == [
        "step 1/4", "step 2/4", "step 3/4", "step 4/4", "step 4",
    ]  # fmt: skip
    assert not error and not set(out) & {"\x1b", "\r", "\b"}


@pytest.mark.parametrize("options", [{}, {"progress": True, "hosts": 1}])
def test_nobody_draws_who_was_not_asked_or_is_not_the_chief(tmp_path, terminal, options):
    if "hosts" in options:
        options = options | {"hosts": Hosts(tf.distribute.get_strategy(), number=1)}
    with terminal:
        run(tmp_path, **options)
    assert terminal.written == ""


class DiskFull:
    """A file that takes some bytes and then has no space left."""

    def __init__(self, monkeypatch, room):
        real = checkpoint.np.lib.format.write_array

        def write_array(file, array, **options):
            nonlocal room
            room -= array.nbytes
            if room < 0:
                raise OSError(28, os.strerror(28))
            real(file, array, **options)

        monkeypatch.setattr(checkpoint.np.lib.format, "write_array", write_array)


def test_a_full_disk_leaves_the_previous_checkpoint(tmp_path, monkeypatch):
    run(tmp_path, steps=4)
    before = (tmp_path / loop.CHECKPOINT).read_bytes()
    with monkeypatch.context() as patch:
        DiskFull(patch, room=500)
        with pytest.raises(OSError, match="could not write .*checkpoint.npz.*No space left"):
            run(tmp_path, resume=True)
    assert (tmp_path / loop.CHECKPOINT).read_bytes() == before
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]
    assert run(tmp_path, resume=True)[-1]["step"] == 12


KILLED = """
import sys, time
import keras
from keras_seg.models import unet
from keras_seg.training import checkpoint
network = unet(depth=1, base_channels=2, padding="same")
network.compile(optimizer="sgd")
network.optimizer.build(network.trainable_variables)
checkpoint.save(sys.argv[1], network, {"step": 1})
real = checkpoint.np.lib.format.write_array
def slow(file, array, **options):
    real(file, array, **options)
    file.write(b"half")
    print("writing", flush=True)
    time.sleep(60)
checkpoint.np.lib.format.write_array = slow
checkpoint.save(sys.argv[1], network, {"step": 2})
"""


def test_a_kill_during_a_checkpoint_leaves_the_previous_one(tmp_path):
    path = tmp_path / "checkpoint.npz"
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline().strip() == "writing"
    process.send_signal(signal.SIGKILL)
    process.wait()
    network = unet(depth=1, base_channels=2, padding="same")
    network.compile(optimizer="sgd")
    network.optimizer.build(network.trainable_variables)
    assert checkpoint.restore(path, network) == {"step": 1}


def test_damaged_and_foreign_checkpoints_are_refused(tmp_path):
    run(tmp_path, steps=4)
    path = tmp_path / loop.CHECKPOINT
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"something else"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"checkpoint.npz: damaged, or no checkpoint of keras_seg"):
            run(tmp_path, resume=True)
    path.write_bytes(content)
    other = unet(depth=1, base_channels=4, padding="same", normalization="batch")
    other.compile(optimizer="adamw")
    with pytest.raises(
        ValueError,
        match=r"checkpoint.npz: of another model or optimizer: lacks .*enc1_conv1/kernel \(3, 3, 1, 4\)",
    ):
        run(tmp_path, network=other, resume=True)


def test_the_schedule_by_hand():
    rate = WarmupThenDecay(0.1, steps=100, warmup_steps=10, decay_fraction=0.5)
    found = [float(rate(step)) for step in (0, 4, 9, 30, 50, 75, 100)]
    np.testing.assert_allclose(found, [0.01, 0.05, 0.1, 0.1, 0.1, 0.05, 0], atol=1e-7)
    assert WarmupThenDecay.from_config(rate.get_config()).get_config() == rate.get_config()
    assert float(WarmupThenDecay(0.1, steps=100)(99)) == pytest.approx(0.1)
