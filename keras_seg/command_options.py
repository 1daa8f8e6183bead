"""What the commands of `keras-seg` have in common: arguments, their completion, examples, and a check."""

from __future__ import annotations

import glob
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from keras_seg.recipe import Recipe
    from keras_seg.recipe_models import MaskRCNNModel

__all__ = [
    "DEBUG",
    "AsJson",
    "DataFolder",
    "Name",
    "WeightsFile",
    "check_own_rpn",
    "complete_model",
    "detector_of",
    "examples",
    "import_tensorflow",
    "value_range_of",
]


def complete_model(incomplete: str) -> list[str]:
    """What a MODEL that begins like this can be: names of the zoo, recipe files, and folders that may hold some."""
    from keras_seg import zoo

    names = [name for name in zoo.list() if name.startswith(incomplete)]
    beginning = glob.escape(incomplete)
    recipes = sorted(file for ending in (".yaml", ".yml") for file in glob.glob(f"{beginning}*{ending}"))
    return names + recipes + [folder for folder in sorted(glob.glob(f"{beginning}*/"))]


def examples(*commands: str) -> str:
    """The end of a command's help."""
    return "\n\n".join(("Examples:", *commands))


DEBUG = "KERAS_SEG_DEBUG"  # shows tracebacks and what TensorFlow says

Name = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="A name of the zoo, or a recipe's YAML file.", autocompletion=complete_model
    ),
]
DataFolder = Annotated[
    Path, typer.Option("--data", help="Folder with the files that the recipe's data block names.")
]
WeightsFile = Annotated[str, typer.Option("--weights", help="A .weights.h5 file, or the recipe's own.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on standard output.")]


def detector_of(recipe: Recipe) -> MaskRCNNModel | None:
    """The recipe's `model:` block if it is a detector's."""
    return recipe.model if recipe.model.builder == "mask_rcnn" else None


def import_tensorflow() -> None:
    """TensorFlow without the lines that it writes about itself to standard error, whatever its log level, as it starts; with
    KERAS_SEG_DEBUG they are shown."""
    if "tensorflow" in sys.modules or os.environ.get(DEBUG):
        return
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        import tensorflow  # noqa: F401
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def value_range_of(recipe: Recipe) -> tuple[float, float] | None:
    """The values of the files that the recipe's model saw as 0 and 255."""
    return recipe.data.value_range if recipe.data else None


def check_own_rpn(recipe: Recipe) -> None:
    """ValueError if the recipe's second stage is trained on stored proposals: its own RPN has then learnt nothing."""
    if getattr(recipe.data, "proposals", None):
        raise ValueError(
            f"{recipe.name}: its second stage is trained on stored proposals and its own RPN not at all, so it needs "
            "those of another one: keras-seg evaluate --proposals FILE"
        )
