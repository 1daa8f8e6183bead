"""Writes docs/zoo.md, the table of all models: from their recipes and benchmarks/results/zoo.json.

python docs/zoo_page.py
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path

from keras_seg import zoo
from keras_seg.recipe import Recipe

HEAD = """# The zoo

Every model that `keras_seg.zoo.load(name)` and `keras-seg` know by name. This page is made from the recipes
in `zoo/` and from measurements (`docs/zoo_page.py`); nothing in it is typed by hand.

AP is the average precision in percent of boxes, masks and keypoints. That of published weights is their authors' own, on
COCO val2017; that of the weights that ship is measured here, and the model's card says on what. "Size" is millions of
parameters and the megabytes of the weights file: of float32 for published ones, in half precision for those that ship.
"Seconds" are for one image of {photograph} pixels with all proposals and detections that the model can give (U-Net: {slice}): the
processor's, over {threads} threads, {cpu}, {date}, `benchmarks/zoo.py`.
"""
SECTIONS = {
    "Ships with the package": lambda r: r.weights is not None,
    "Published weights, fetched on first use": lambda r: r.published is not None,
    "To train, or for weights of your own": lambda r: not r.has_weights,
}
NOTES = {
    "Ships with the package": "Work offline. Code and weights are under the Apache License 2.0.",
    "Published weights, fetched on first use": (
        "Downloaded from their authors' servers, checked and converted once; `keras-seg show NAME` prints address and\n"
        "licence. With `weights=None` the same networks are yours to train from the start."
    ),
    "To train, or for weights of your own": (
        "`keras-seg train NAME`, or `keras-seg import-weights NAME FILE` where the summary names another library."
    ),
}
PHOTOGRAPH, SLICE = "425x640", "512x512"


def page(root: Path) -> str:
    """The text of docs/zoo.md; root: the repository."""
    measured = json.loads((root / "benchmarks/results/zoo.json").read_text())
    recipes = {name: zoo.show(name) for name in zoo.list()}
    ablations = [name for name in recipes if "/" in name]
    about = measured["machine"]
    head = HEAD.format(
        photograph=PHOTOGRAPH, slice=SLICE, threads=about["threads"], cpu=about["cpu"], date=measured["date"]
    )
    lines = [head]
    for title, belongs in SECTIONS.items():
        chosen = {name: r for name, r in recipes.items() if name not in ablations and belongs(r)}
        lines += [f"## {title}\n", NOTES[title] + "\n", *table(chosen, measured["models"]), ""]
    lines += [
        "## Ablations\n",
        (
            "The experiments of Mask R-CNN's Table 2, to train and compare ([the paper's claims](claims.md) tries three of them on\n"
            "small data).\n"
        ),
        "| name | what |",
        "|---|---|",
        *(f"| [{name}](../zoo/{name}.yaml) | {recipes[name].summary} |" for name in ablations),
        "",
    ]
    return "\n".join(lines)


def table(recipes: dict[str, Recipe], measured: dict[str, dict]) -> list[str]:
    lines = ["| recipe | what | figures | size | seconds | weights |", "|---|---|---|---|---|---|"]
    for name, recipe in recipes.items():
        row = measured.get(name)
        seconds = f"{statistics.median(row['seconds']):.1f}" if row and row["seconds"] else ""
        link = f"[{name}](../zoo/{name}.yaml)"
        cells = [link, recipe.summary, figures(recipe), size(recipe, row), seconds, weights(recipe)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def figures(recipe: Recipe) -> str:
    if recipe.published:
        published = recipe.published
        found = {"box": published.box_ap, "mask": published.mask_ap, "keypoint": published.keypoint_ap}
        return ", ".join(f"{kind} AP {value:g}" for kind, value in found.items() if value)
    names = {"segm_AP": "mask AP", "segm_AP50": "mask AP50", "bbox_AP": "box AP", "v_rand": "V_rand"}
    names |= {"rand_error": "Rand error", "pixel_error": "pixel error"}
    found = [
        f"{names[result.metric]} {100 * result.value:.1f}"
        if "_AP" in result.metric
        else f"{names[result.metric]} {result.value:.3f}"
        for result in recipe.results
        if result.metric in names
    ]
    return f"{', '.join(found)} ({recipe.results[0].data})" if found else ""


def size(recipe: Recipe, row: dict | None) -> str:
    if row is None:
        return ""
    megabytes = row["parameters"] * 4 / 1e6
    if recipe.weights_path:
        megabytes = recipe.weights_path.stat().st_size / 1e6
    return f"{row['parameters'] / 1e6:.1f} M, {megabytes:.0f} MB"


def weights(recipe: Recipe) -> str:
    if recipe.published:
        return f"[{recipe.published.licence}]({recipe.published.url})"
    return f"shipped: [card](../zoo/{recipe.name}.md)" if recipe.weights else ""


def write(root: Path) -> None:
    file, text = root / "docs/zoo.md", page(root)
    if not file.exists() or file.read_text(encoding="utf-8") != text:
        file.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write(Path(__file__).resolve().parent.parent)
