"""A name → a recipe → a model with weights."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from keras_seg.recipe import Recipe, Weights, load_recipe
from keras_seg.schema import did_you_mean

if TYPE_CHECKING:
    import keras

    from keras_seg.recipe_models import Published
    from keras_seg.weights import LoadReport

_log = logging.getLogger(__name__)


def list() -> Sequence[str]:
    """Names of the models that ship with the package, sorted; those of experiments are "ablations/…"."""
    folder = _folder()
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))


def show(name: str | Path) -> Recipe:
    """The recipe of a model of the zoo, or of a YAML file; `print` it for its card.

    Raises FileNotFoundError for an unknown name (naming the nearest) or file, ValueError for a wrong field.
    """
    text = str(name)
    if text in list():
        return load_recipe(_folder() / f"{text}.yaml")
    if text.endswith((".yaml", ".yml")):
        return load_recipe(name)
    main = ", ".join(known for known in list() if "/" not in known)
    raise FileNotFoundError(f"no model {text!r} in the zoo{did_you_mean(text, list())} (models: {main})")


def load(
    name: str | Path | Recipe, weights: str | Path | None = "pretrained", **overrides: Any
) -> keras.Model:
    """Build a model and give it weights.

    Args:
        name: a name of the zoo, a YAML recipe, or a `Recipe`.
        weights: "pretrained" for the recipe's own: shipped, or downloaded on first use, checked and converted; None for
            fresh ones; "imagenet" for those of keras.applications in the backbone of a detector; or a file:
            `.weights.h5`, or one that `weights.formats` reads (Detectron2 `.pkl`, torchvision `.pth`, ...).
        overrides: fields of the recipe's `model:` block, as in `class_names=["cell", "nucleus"]`. Layers whose shape
            they change start fresh; what was kept and what is new is then logged.

    Returns: a `keras.Model`, with the `weights.LoadReport` as `model.loaded` (None for fresh weights).

    Raises:
        FileNotFoundError: unknown name, no such file, or published weights that are not in the cache while
            KERAS_SEG_OFFLINE forbids the network.
        DownloadFailed: no network: names the file to put where.
        ValueError: wrong or contradictory overrides, no pretrained weights, a damaged or foreign file.
    """
    recipe = name if isinstance(name, Recipe) else show(name)
    recipe = recipe.override({f"model.{field}": value for field, value in overrides.items()})
    source = _source(recipe, weights)

    from keras_seg import models

    model = getattr(models, recipe.model.builder)(**recipe.model.arguments(), name=recipe.name)
    model.loaded = None
    if source is not None:
        may_be_fresh = [place for field in overrides for place in _MAY_BE_FRESH.get(field, ())]
        model.loaded = _load(model, recipe, source, may_be_fresh)
        if model.loaded.fresh:
            _log.warning("%s: %s", recipe.name, model.loaded)
    return model


# Which layers, or parts of a detector, may start fresh when a field is overridden. Of those whose shapes fit all the same,
# the weights are kept.
_CLASS_LAYERS = ("logits", "box_predictor/cls_score", "box_predictor/bbox_pred", "mask_head/predictor")
_MAY_BE_FRESH = {
    "classes": _CLASS_LAYERS,
    "class_names": _CLASS_LAYERS,
    "class_agnostic_boxes": ("box_predictor/bbox_pred",),
    "class_agnostic_masks": ("mask_head/predictor",),
    "mask_loss": ("mask_head/predictor",),
    "input_channels": ("enc1_conv1",),
    "anchor_ratios": ("rpn/objectness_logits", "rpn/anchor_deltas"),
    "masks": ("mask_head",),
    "mask_head": ("mask_head",),
    "mask_channels": ("mask_head",),
    "box_head": ("box_head", "box_predictor"),
    "box_head_channels": ("box_head", "box_predictor"),
    "keypoints": ("keypoint_head",),
    "keypoint_names": ("keypoint_head",),
    "keypoint_channels": ("keypoint_head",),
}


def _folder() -> Path:
    """Where the recipes lie: inside an installed package, or beside it in a checkout."""
    package = Path(__file__).parent
    return next(folder for folder in (package / "_zoo", package.parent / "zoo") if folder.is_dir())


def _source(recipe: Recipe, weights: str | Path | None) -> Path | Published | str | None:
    """Where the weights come from, before anything is built: a file, a download, "imagenet", or nowhere."""
    from keras_seg.weights.files import check_sha256

    if weights is None:
        return None
    if weights == "imagenet":
        if recipe.model.builder == "unet":
            raise ValueError(
                f"{recipe.name}: weights='imagenet' means those of a backbone, and a U-Net has none: "
                "use 'pretrained', None for fresh weights, or a .weights.h5 file"
            )
        return "imagenet"
    if weights != "pretrained":
        return Path(weights)
    if recipe.published is not None:
        return recipe.published
    if recipe.weights_path is None:
        others = [other for other in list() if show(other).has_weights]
        have = f", or a model that has them: {', '.join(others)}" if others else ""
        note = f" ({recipe.note})" if recipe.note else ""
        raise ValueError(
            f"{recipe.name} has no pretrained weights{note}. Use weights=None for fresh ones, "
            f"a .weights.h5 file of your own{have}"
        )
    check_sha256(recipe.weights_path, cast(Weights, recipe.weights).sha256)
    return recipe.weights_path


def _load(
    model: keras.Model, recipe: Recipe, source: Path | Published | str, may_be_fresh: Sequence[str]
) -> LoadReport:
    from keras_seg.weights import files

    if isinstance(source, Path) and (recipe.model.builder == "unet" or source.name.endswith(files.SUFFIX)):
        return files.load_weights(model, source, may_be_fresh=may_be_fresh)

    from keras_seg.weights import formats
    from keras_seg.weights.assign import assign

    if isinstance(source, str):
        return _load_imagenet(model)
    if isinstance(source, Path):
        return assign(model.parts, formats.read(source), source, may_be_fresh=may_be_fresh)
    arrays = formats.read_published(source)
    return assign(model.parts, arrays, source.url, may_be_fresh=may_be_fresh)


def _load_imagenet(model: keras.Model) -> LoadReport:
    from keras_seg.weights import keras_applications
    from keras_seg.weights.assign import assign

    wrong = [
        f"{field} {getattr(model, field)!r}"
        for field, needed in _IMAGENET.items()
        if getattr(model, field) not in needed
    ]
    if wrong:
        raise ValueError(
            f"{model.name}: there are no ImageNet weights for {', '.join(wrong)}; keras.applications has them for "
            + ", ".join(f"{field} {' or '.join(map(repr, needed))}" for field, needed in _IMAGENET.items())
        )
    arrays = keras_applications.read(
        model.backbone, norm_eps=model.norm_eps, res5_as_head=model.structure == "c4"
    )
    heads = [part for part in model.parts if part not in ("backbone", "res5")]
    return assign(model.parts, arrays, "ImageNet weights", may_be_fresh=heads)


# What a detector must have for the weights of keras.applications.
_IMAGENET = {
    "backbone": ("resnet50", "resnet101", "resnet152"),
    "normalization": ("frozen", "batch"),
    "width": (64,),
    "stride_in_1x1": (True,),
    "padding": ("symmetric",),
}
