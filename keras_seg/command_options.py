"""What the commands of `keras-seg` have in common: arguments, and a check."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from keras_seg.recipe import Recipe

Name = Annotated[str, typer.Argument(metavar="MODEL", help="A name of the zoo, or a recipe's YAML file.")]
DataFolder = Annotated[
    Path, typer.Option("--data", help="Folder with the files that the recipe's data block names.")
]
WeightsFile = Annotated[str, typer.Option("--weights", help="A .weights.h5 file, or the recipe's own.")]


def check_own_rpn(recipe: Recipe) -> None:
    """ValueError if the recipe's second stage is trained on stored proposals: its own RPN has then learnt nothing."""
    if getattr(recipe.data, "proposals", None):
        raise ValueError(
            f"{recipe.name}: its second stage is trained on stored proposals and its own RPN not at all, so it needs those "
            "of another one: keras-seg evaluate --proposals FILE"
        )
