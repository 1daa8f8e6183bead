"""Arrays into a model's variables: all of them, or none."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import keras

MAX_SHOWN = 8  # variables that an error lists


@dataclass(frozen=True)
class LoadReport:
    """Which variables (`layer/variable`, in parts of a model `part/layer/variable`) came from the file, which kept
    their fresh values, and what of the file was left out."""

    kept: tuple[str, ...]
    fresh: tuple[str, ...]
    unused: tuple[str, ...] = ()

    def __str__(self) -> str:
        fresh = f"; new: {', '.join(self.fresh)}" if self.fresh else ""
        unused = f"; left out: {', '.join(self.unused)}" if self.unused else ""
        total = len(self.kept) + len(self.fresh)
        return f"{len(self.kept)} of {total} variables kept from the file{fresh}{unused}"


def leaf_layers(model: keras.Model, prefix: str = "") -> Iterator[tuple[str, keras.layers.Layer]]:
    """Every layer of a functional model under its path, "layer" or, inside a part, "part/layer"."""
    import keras

    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from leaf_layers(layer, f"{prefix}{layer.name}/")
        else:
            yield f"{prefix}{layer.name}", layer


def variables(parts: Mapping[str, keras.Model]) -> dict[str, keras.Variable]:
    """All variables of functional models under the names that importers give: "part/layer/variable"."""
    return {
        f"{path}/{variable.name}": variable
        for part, model in parts.items()
        for path, layer in leaf_layers(model, f"{part}/")
        for variable in layer.weights
    }


def assign(
    parts: Mapping[str, keras.Model],
    arrays: Mapping[str, np.ndarray],
    path: str | Path,
    *,
    may_be_fresh: Collection[str] = (),
) -> LoadReport:
    """`assign_variables` for the parts {"backbone": model, …} of a model, and arrays as importers give them."""
    return assign_variables(variables(parts), arrays, path, may_be_fresh=may_be_fresh)


def assign_variables(
    own: Mapping[str, keras.Variable],
    arrays: Mapping[str, np.ndarray],
    path: str | Path,
    *,
    may_be_fresh: Collection[str] = (),
    network: str = "this one",
) -> LoadReport:
    """Set all variables {"layer/variable": …} from arrays of the same names.

    path, network: for messages. may_be_fresh: layers ("part/layer") or whole parts that keep their present values where
    the arrays lack them or have other shapes, and whose left-over arrays are left out.

    Raises ValueError, and changes nothing, if other names or shapes differ: lists what is missing, left over or of
    another shape.
    """
    missing, unknown = own.keys() - arrays.keys(), arrays.keys() - own.keys()
    differing = {n for n in own.keys() & arrays.keys() if tuple(own[n].shape) != arrays[n].shape}

    def allowed(name: str) -> bool:
        return any(name.startswith(f"{place}/") for place in may_be_fresh)

    problems = [f"missing {n} {_shape(own[n].shape)}" for n in sorted(missing) if not allowed(n)]
    problems += [f"unknown {n} {_shape(arrays[n].shape)}" for n in sorted(unknown) if not allowed(n)]
    problems += [
        f"{n} is {_shape(arrays[n].shape)} in the file and {_shape(own[n].shape)} in the model"
        for n in sorted(differing)
        if not allowed(n)
    ]
    if problems:
        more = f"; and {len(problems) - MAX_SHOWN} more" if len(problems) > MAX_SHOWN else ""
        shown = "; ".join(problems[:MAX_SHOWN])
        raise ValueError(f"{path}: weights of another network than {network}: {shown}{more}")
    # a layer is fresh as a whole: a kernel of one network and a bias of another are no weights
    fresh_layers = {name.rpartition("/")[0] for name in missing | differing}
    fresh = tuple(name for name in own if name.rpartition("/")[0] in fresh_layers)
    kept = tuple(name for name in own if name not in fresh)
    for name in kept:
        own[name].assign(arrays[name])
    return LoadReport(kept, fresh, tuple(sorted(unknown)))


def _shape(shape: tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, shape))}]"
