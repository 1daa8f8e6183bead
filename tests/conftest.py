"""What every test shares: TensorFlow kept quiet, and the path to the shared data and golden files."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # before anything imports TensorFlow

import pytest

CHECKOUT = Path(__file__).resolve().parent.parent


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """What is imported by then stays: the search for garbage need not look at TensorFlow's objects again and again, nor
    as often as Python has it, since graphs are made of many objects that stay as well."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.set_threshold(20_000, 20, 20)
        gc.enable()


# The files that take longest, in this order, before all others: whichever worker begins one of them last ends last.
LONGEST = (
    "test_colab", "test_hosts", "test_stored_proposals", "test_docs", "test_saved_model_detectors", "test_killed_training",
    "test_saved_model_golden", "test_serving", "test_browser", "test_detectors", "test_demo", "test_saved_model",
    "test_export_command", "test_benchmarks", "test_rcnn_training", "test_tflite", "test_mask_rcnn", "test_detectron2",
    "test_overfit", "test_docs_sam", "test_threads_and_memory", "test_library",
)  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    # else files go by the number of their tests, which says little of how long they take
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    place = {name: n for n, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONGEST)))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder `shared` beside the checkout (or $KERAS_SEG_SHARED): `data/` and `golden/`.

    A test that asks for it is skipped where the folder is absent; with KERAS_SEG_REQUIRE_SHARED=1 it fails
    instead.
    """
    path = Path(os.environ.get("KERAS_SEG_SHARED") or CHECKOUT.parent / "shared")
    if not path.is_dir():
        reason = f"needs the shared data folder, and {path} is not one: set KERAS_SEG_SHARED to where it lies"
        if os.environ.get("KERAS_SEG_REQUIRE_SHARED") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return path


@pytest.fixture(scope="module")
def graphs_as_traced() -> Iterator[None]:
    """To optimise the graph of a detector takes longer than to run it some times. Optimised graphs are those of all other
    tests, among them those of models that others trained, of exports in a server and in programs of their own."""
    import tensorflow as tf

    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    yield
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": False})


@pytest.fixture(scope="module")
def loaded_once() -> Iterator[None]:
    """`zoo.load` gives one model for all recipes of the same model with the same weights, which commands then trace once;
    fresh weights are others each time."""
    from keras_seg import zoo
    from keras_seg.recipe import Recipe

    made, load = {}, zoo.load

    def once(recipe, weights="pretrained", **overrides):
        if weights is None:
            return load(recipe, weights, **overrides)
        shown = recipe if isinstance(recipe, Recipe) else zoo.show(recipe)
        key = shown.name, shown.model.model_dump_json(), str(weights), repr(overrides)
        if key not in made:
            made[key] = load(recipe, weights, **overrides)
        return made[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zoo, "load", once)
        yield


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    """A data folder for detectors: COCO annotations and images "train" (6) and "validation" (2)."""
    from square_files import write_squares

    folder = tmp_path_factory.mktemp("squares")
    write_squares(folder, "train", 6, 0)
    write_squares(folder, "validation", 2, 1)
    return folder


@pytest.fixture
def terminal(monkeypatch):
    """A terminal, for a block of the test."""
    from terminals import WIDTH, Terminal

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(WIDTH))  # rich asks the process's own terminal
    return Terminal()


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs `keras-seg ARGUMENTS` and returns its exit status, its output and its error output."""

    from keras_seg import cli

    def command(*arguments) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["keras-seg", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return stop.value.code, *capsys.readouterr()

    return command
