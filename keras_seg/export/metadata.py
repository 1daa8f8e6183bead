"""What an exported model says of itself: `keras_seg.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import keras_seg
from keras_seg import zoo

FILE = "keras_seg.json"
FORMAT = 1
OWN_LICENCE = "Apache-2.0"  # of the weights that come with the package, as their cards say


def describe(model: Any, outputs: dict[str, Any], licence: str | None = None, **more: Any) -> dict[str, Any]:
    """Name, format version, classes, recipe, version of keras_seg, licence of the weights, the table of outputs.

    outputs: name to tensor specification. licence: None for that of the zoo's weights of this name, if `zoo.load` has loaded
    weights. more: other fields. The recipe is that of the zoo with the model's own arguments; where the zoo has none of this
    name, these alone.
    """
    arguments = {key: value for key, value in model.get_config().items() if key not in ("name", "training")}
    builder = "unet" if hasattr(model, "legal_sizes") else "mask_rcnn"
    recipe: dict[str, Any] = {"name": model.name, "model": {"builder": builder, **arguments}}
    if model.name in zoo.list():
        known = zoo.show(model.name)
        fields = known.model_dump(mode="json", by_alias=True, exclude_unset=True)
        recipe = {**fields, "model": recipe["model"]}
        if licence is None and getattr(model, "loaded", None) is not None:
            licence = known.published.licence if known.published else OWN_LICENCE if known.weights else None
    return {
        "name": model.name,
        "format": FORMAT,
        "task": "segmentation" if builder == "unet" else "detection",
        "class_names": list(model.class_names) if model.class_names is not None else None,
        "classes": model.classes,
        "keras_seg": keras_seg.__version__,
        "licence": licence,
        "outputs": {
            name: {"dtype": spec.dtype.name, "shape": _shape(name, spec)} for name, spec in outputs.items()
        },
        **more,
        "recipe": recipe,
    }


def _shape(name: str, spec: Any) -> list[int | str]:
    """Sizes that are known, and letters for the others."""
    letters = {"probabilities": "BHWK", "masks": "BNHW" if len(spec.shape) == 4 else "BNL"}.get(name, "B")
    return [letters[axis] if size is None else size for axis, size in enumerate(spec.shape)]


def read(path: Path) -> dict[str, Any]:
    """What the SavedModel in the folder says of itself. ValueError: nothing, or in a later format."""
    file = path / "assets" / FILE
    if not file.is_file():
        raise ValueError(f"{path}: has no assets/{FILE}, so keras_seg.export.saved_model did not write it")
    try:
        about = json.loads(file.read_text())
        later = about["format"] > FORMAT
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file}: damaged ({error!r})") from None
    if later:
        raise ValueError(
            f"{path}: written by keras_seg {about['keras_seg']} in format {about['format']}, and this version reads "
            f"{FORMAT}: install a newer keras_seg"
        )
    return about
