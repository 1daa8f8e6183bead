"""What the code blocks of the documentation find in their folder, and what stands in for downloads.

Two things are not as a reader has them: weights that others publish are those of a small network with random weights, of the
same classes and outputs (`stand_in`), and images are small cuts of the shared data.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image

SMALL = {
    "backbone": "resnet18", "structure": "fpn", "width": 8, "fpn_channels": 8, "box_head": "fc", "box_head_channels": 8,
    "mask_channels": 8, "keypoint_channels": 8, "rpn_channels": None, "mask_head": "conv", "short_side": 64, "max_side": 128,
    "pre_nms_proposals": 50, "proposals": 20,
}  # fmt: skip


def write_files(folder: Path, shared: Path) -> None:
    data = shared / "data"
    photograph = Image.open(data / "coco_people/val2017/000000000785.jpg")
    photograph.resize((160, 106)).save(folder / "street.jpg")
    volume, labels = (tifffile.imread(data / f"isbi2012/train-{name}.tif") for name in ("volume", "labels"))
    Image.fromarray(volume[0, :96, :96]).save(folder / "slice.png")
    tifffile.imwrite(folder / "stack.tif", volume[:2, :96, :96])
    for part, slices in (("train", {"a": 0, "b": 1}), ("validation", {"a": 2})):
        for kind, source in (("images", volume), ("masks", labels)):
            target = folder / "my_data" / part / kind
            target.mkdir(parents=True)
            for name, n in slices.items():
                Image.fromarray(source[n, 200:296, 200:296]).save(target / f"{name}.png")
    (folder / "wells").mkdir()
    for part, count in (("train", 3), ("val", 2)):
        files = write_nuclei(folder, data / "nuclei", part, count)
    for name, file in zip(("well_a1", "wells/a1", "wells/b1"), [files[0], *files], strict=True):
        Image.open(file).crop((0, 0, 96, 96)).save(folder / f"{name}.png")


def write_nuclei(folder: Path, source: Path, part: str, count: int) -> list[Path]:
    """The first so many images of the smallest size, and their annotations."""
    content = json.loads((source / f"instances_{part}.json").read_text())
    chosen = sorted(content["images"], key=lambda image: (image["height"] * image["width"], image["id"]))[
        :count
    ]
    ids = {image["id"] for image in chosen}
    content["images"] = chosen
    content["annotations"] = [one for one in content["annotations"] if one["image_id"] in ids]
    (folder / f"instances_{part}.json").write_text(json.dumps(content))
    (folder / part).mkdir()
    return [Path(shutil.copy(source / part / image["file_name"], folder / part)) for image in chosen]


class Zoo:
    """`zoo.load` for the documentation: published weights are a stand-in, and a network is built and traced once for all pages."""

    def __init__(self, load: Callable[..., Any]) -> None:
        self.real, self.loaded, self.absent = load, {}, ()

    def load(self, name: Any, weights: Any = "pretrained", **overrides: Any) -> Any:
        from keras_seg import zoo
        from keras_seg.recipe import Recipe

        recipe = name if isinstance(name, Recipe) else zoo.show(name)
        if (recipe.published and weights == "pretrained") or str(weights) in self.absent:
            recipe = recipe.override({f"model.{field}": value for field, value in overrides.items()})
            key = ("stand-in", *(recipe.model.class_names or ()), recipe.model.keypoints)
            return self.once(key, lambda: self.stand_in(recipe))
        if recipe.weights and weights == "pretrained" and not overrides:
            return self.once(recipe.name, lambda: self.real(recipe))
        return self.real(recipe, weights, **overrides)

    def stand_in(self, recipe: Any) -> Any:
        small = recipe.override({f"model.{field}": value for field, value in SMALL.items()})
        return self.real(small, weights=None, score_threshold=0.0)

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self.loaded:
            model = make()
            self.loaded[key] = model, [np.array(value) for value in model.get_weights()]
        return self.loaded[key][0]

    def reset(self, absent: Sequence[str] = ()) -> None:
        """Before a page: what an earlier one has trained is as it was."""
        self.absent = tuple(absent)
        for model, values in self.loaded.values():
            model.set_weights(values)
