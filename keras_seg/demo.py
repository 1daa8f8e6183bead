"""The whole way on slices of a fruit fly's nerve cord, then on nuclei (`demo_nuclei`): `python -m keras_seg.demo`, or
`make demo`."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import keras_seg
from keras_seg import demo_nuclei

if TYPE_CHECKING:
    from PIL import Image

    from keras_seg.models.unet import UNet

MODEL = "unet_isbi2012"
SLICES = (20, 21, 22, 23, 24)  # those on which the recipe is validated
VOLUME, LABELS = "train-volume.tif", "train-labels.tif"
CELL = 1  # the class whose probability is scored and drawn
MEANING = {
    "pixel_error": "1 - F-score of pixels",
    "pixel_disagreement": "share of wrong pixels",
    "rand_error": "1 - F-score of pairs of pixels",
    "warping_error": "share of splits and mergers",
    "v_rand": "of thin membranes; 1 is best",
    "v_info": "of thin membranes; 1 is best",
}


def run(model: UNet, data: Path, output: Path, *, slices: Iterable[int] = SLICES) -> dict[str, float]:
    """Segment slices, print their scores, draw one, export a SavedModel and compare it with the model.

    data: folder with the ISBI 2012 challenge's train-volume.tif and train-labels.tif. output: folder for
    segmentation.png and saved_model/1.

    Returns the scores of `metrics.isbi.evaluate`. Raises FileNotFoundError without the data, ValueError for a
    slice that is not there, and what `segment` and `export.saved_model` raise.
    """
    from keras_seg.metrics import isbi

    slices = list(slices)
    volume, labels = (_slices(data / name, slices) for name in (VOLUME, LABELS))
    output.mkdir(parents=True, exist_ok=True)

    start = time.perf_counter()
    probability = keras_seg.segment(model, volume[..., None])[..., CELL]
    seconds = time.perf_counter() - start
    print(f"segmented slices {_numbers(slices)} of {data / VOLUME}, mean of {model.rotations} ", end="")
    print(f"rotated versions, in {seconds:.1f} s")

    scores = isbi.evaluate(probability, labels)
    _print_scores(scores)

    drawn, picture = len(slices) // 2, output / "segmentation.png"
    panels = _panels(volume[drawn], probability[drawn], scores["rand_error_threshold"])
    keras_seg.visualize.side_by_side([(f"Slice {slices[drawn]}", volume[drawn]), *panels]).save(picture)
    print(f"picture:    {picture}")

    exported = keras_seg.export.saved_model(model, output / "saved_model" / "1", overwrite=True)
    reloaded = np.asarray(keras_seg.export.load(exported).segment(volume[0]))[..., CELL]
    difference = np.abs(reloaded - probability[0]).max()
    print(f"SavedModel: {exported}; loaded back, its probabilities differ by at most {difference:.1e}")
    return scores


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m keras_seg.demo", description=__doc__)
    parser.add_argument(
        "--data", type=Path, default=_default_data("isbi2012"), help=f"with {VOLUME} and {LABELS}"
    )
    parser.add_argument(
        "--nuclei", type=Path, default=_default_data("nuclei"), help=f"with {demo_nuclei.ANNOTATIONS}"
    )
    parser.add_argument("--output", type=Path, default=Path("runs/demo"), help="for what the demo writes")
    options = parser.parse_args(arguments)
    try:
        recipe = keras_seg.zoo.show(MODEL)
        print(f"{MODEL}: {recipe.summary}")
        run(keras_seg.zoo.load(recipe), options.data, options.output)
        print(
            f"The weights have seen these slices in training; zoo/{MODEL}.md has the scores of weights that have not."
        )
        recipe = keras_seg.zoo.show(demo_nuclei.MODEL)
        print(f"\n{demo_nuclei.MODEL}: {recipe.summary}")
        demo_nuclei.run(keras_seg.zoo.load(recipe), options.nuclei, options.output)
    except (OSError, ValueError) as error:
        sys.exit(f"demo: {error}")
    print(
        f"The weights have not seen these images in training, but were chosen by them (zoo/{demo_nuclei.MODEL}.md)."
    )


def _default_data(name: str) -> Path:
    """shared/data/name beside the checkout, or in $KERAS_SEG_SHARED."""
    beside = Path(__file__).resolve().parents[2] / "shared"
    return Path(os.environ.get("KERAS_SEG_SHARED") or beside) / "data" / name


def _slices(path: Path, slices: list[int]) -> np.ndarray:
    from keras_seg.data.images import read_stack

    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is not there. The demo segments slices of the ISBI 2012 EM segmentation challenge: put "
            f"its {VOLUME} and {LABELS} into a folder and give that with --data"
        )
    stack = read_stack(path)
    if len(stack) <= max(slices):
        raise ValueError(f"{path}: has {len(stack)} slices, the demo takes {_numbers(slices)}")
    return stack[slices]


def _numbers(slices: list[int]) -> str:
    return ", ".join(map(str, slices))


def _print_scores(scores: dict[str, float]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("score", "value", "at threshold", "what it is")
    for name, meaning in MEANING.items():
        table.add_row(name, f"{scores[name]:.5f}", f"{scores[name + '_threshold']:.1f}", meaning)
    Console().print(table)


def _panels(image: np.ndarray, probability: np.ndarray, threshold: float) -> list[tuple[str, Image.Image]]:
    from keras_seg.segment import instances

    cells = instances(probability, threshold)
    return [
        ("Probability of cell interior", keras_seg.visualize.probability_panel(probability)),
        (f"{cells.max()} cells", keras_seg.visualize.overlay_instances(image, cells)),
    ]


if __name__ == "__main__":
    main()
