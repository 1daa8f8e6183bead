"""A name → a recipe → a model with weights."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keras_seg.recipe import Recipe, load_recipe
from keras_seg.schema import did_you_mean

if TYPE_CHECKING:
    import keras

_log = logging.getLogger(__name__)


def list() -> Sequence[str]:
    """Names of the models that ship with the package, sorted."""
    return sorted(path.stem for path in _folder().glob("*.yaml"))


def show(name: str | Path) -> Recipe:
    """The recipe of a model of the zoo, or of a YAML file; `print` it for its card.

    Raises FileNotFoundError for an unknown name (naming the nearest) or file, ValueError for a wrong field.
    """
    text = str(name)
    if text in list():
        return load_recipe(_folder() / f"{text}.yaml")
    if text.endswith((".yaml", ".yml")):
        return load_recipe(name)
    raise FileNotFoundError(
        f"no model {text!r} in the zoo{did_you_mean(text, list())} (models: {', '.join(list())})"
    )


def load(
    name: str | Path | Recipe, weights: str | Path | None = "pretrained", **overrides: Any
) -> keras.Model:
    """Build a model and give it weights.

    Args:
        name: a name of the zoo, a YAML recipe, or a `Recipe`.
        weights: "pretrained" for the recipe's own (checked against its sha256), None for fresh ones, or a
            `.weights.h5` file.
        overrides: fields of the recipe's `model:` block, as in `class_names=["cell", "nucleus"]`. Where these
            change the number of classes or of input channels, the layers concerned start fresh if the weights
            do not fit; what was kept and what is new is then logged.

    Returns: a `keras.Model`, with the `weights.LoadReport` as `model.loaded` (None for fresh weights).

    Raises:
        FileNotFoundError: unknown name, no such file.
        ValueError: wrong or contradictory overrides, no pretrained weights, a damaged or foreign file.
    """
    recipe = name if isinstance(name, Recipe) else show(name)
    recipe = recipe.override({f"model.{field}": value for field, value in overrides.items()})
    path = _weights_path(recipe, weights)

    from keras_seg.models.unet import unet
    from keras_seg.weights.files import load_weights

    model = unet(**recipe.model.arguments(), name=recipe.name)
    model.loaded = None
    if path is not None:
        ends = {"logits": {"classes", "class_names"}, "enc1_conv1": {"input_channels"}}
        may_be_fresh = [layer for layer, fields in ends.items() if fields & overrides.keys()]
        model.loaded = load_weights(model, path, may_be_fresh=may_be_fresh)
        if model.loaded.fresh:
            _log.warning("%s: %s", recipe.name, model.loaded)
    return model


def _folder() -> Path:
    """Where the recipes lie: inside an installed package, or beside it in a checkout."""
    package = Path(__file__).parent
    return next(folder for folder in (package / "_zoo", package.parent / "zoo") if folder.is_dir())


def _weights_path(recipe: Recipe, weights: str | Path | None) -> Path | None:
    from keras_seg.weights.files import check_sha256

    if weights is None:
        return None
    if weights == "imagenet":
        raise ValueError(
            f"{recipe.name}: weights='imagenet' means those of a backbone, and a U-Net has none: "
            "use 'pretrained', None for fresh weights, or a .weights.h5 file"
        )
    if weights != "pretrained":
        return Path(weights)
    if recipe.weights_path is None:
        others = [other for other in list() if show(other).weights]
        have = f", or a model that has them: {', '.join(others)}" if others else ""
        note = f" ({recipe.note})" if recipe.note else ""
        raise ValueError(
            f"{recipe.name} has no pretrained weights{note}. Use weights=None for fresh ones, "
            f"a .weights.h5 file of your own{have}"
        )
    check_sha256(recipe.weights_path, recipe.weights.sha256)
    return recipe.weights_path
