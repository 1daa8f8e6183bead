"""What a model found in one image, in the forms in which it is kept: a picture, labels, regions, COCO results."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_seg.rois import Region

if TYPE_CHECKING:
    from PIL import Image

    from keras_seg.instances import Instances

__all__ = ["Detected", "Segmented", "window_rle"]


@dataclass(frozen=True, eq=False)
class Detected:
    """pixels: of the image, uint8 [H, W, 3]. instances: what a detector found in it."""

    pixels: np.ndarray
    instances: Instances

    def __len__(self) -> int:
        return len(self.instances)

    def picture(self) -> Image.Image:
        from keras_seg import visualize

        return visualize.draw(self.pixels, self.instances)

    def labels(self) -> np.ndarray:
        """int32 [H, W], 0 where there is no object; ValueError without masks, here and in `regions`."""
        return self.instances.to_labels()

    def regions(self) -> Iterator[Region]:
        """The objects, numbered as in `labels`; each is whole, also where another one lies over it."""
        from keras_seg.ops import masks

        found = self.instances
        if found.mask_probabilities is None:
            raise ValueError("regions: the model has no mask head")
        windows = masks.windows(
            found.mask_probabilities, found.boxes, found.image_size, found.mask_threshold, found.convention
        )
        named = zip(found.names, found.scores.tolist(), windows, strict=True)
        for number, (name, score, window) in enumerate(named, start=1):
            yield Region(number, name, score, *window)

    def coco(self, image_id: int) -> list[dict[str, Any]]:
        """COCO results; the category of a class is its number, from 1."""
        return self.instances.to_coco(image_id)


@dataclass(frozen=True, eq=False)
class Segmented:
    """The objects of one class that a U-Net saw: the 4-connected components of the pixels above the threshold.

    pixels: of the image, [H, W, C] as stored. probability: float32 [H, W] of the class, whose number is class_index.
    """

    pixels: np.ndarray
    probability: np.ndarray
    class_index: int
    class_name: str
    threshold: float
    found: np.ndarray  # int32 [H, W], the objects' numbers

    @classmethod
    def of(
        cls,
        pixels: np.ndarray,
        probability: np.ndarray,
        class_index: int,
        class_names: Sequence[str] | None,
        threshold: float,
    ) -> Segmented:
        from keras_seg.segment import instances

        name = class_names[class_index] if class_names else f"class {class_index}"
        labels = instances(probability, threshold)
        return cls(pixels, probability, class_index, name, threshold, labels)

    def __len__(self) -> int:
        return int(self.found.max(initial=0))

    def picture(self) -> Image.Image:
        from keras_seg import visualize

        return visualize.overlay_instances(self.pixels, self.found)

    def labels(self) -> np.ndarray:
        return self.found

    def regions(self) -> Iterator[Region]:
        """The objects, numbered as in `labels`; the score of one is the mean probability of its pixels."""
        from scipy import ndimage

        for number, window in enumerate(ndimage.find_objects(self.found), start=1):
            rows, columns = window
            inside = self.found[window] == number
            score = float(self.probability[window][inside].mean(dtype=np.float64))
            yield Region(number, self.class_name, score, rows, columns, inside)

    def coco(self, image_id: int) -> list[dict[str, Any]]:
        """COCO results; the category is the class's number + 1."""
        return [
            {
                "image_id": image_id,
                "category_id": self.class_index + 1,
                "bbox": [
                    float(one.columns.start), float(one.rows.start),
                    float(one.inside.shape[1]), float(one.inside.shape[0]),
                ],
                "score": one.score,
                "segmentation": window_rle(one.rows, one.columns, one.inside, self.found.shape),
            }
            for one in self.regions()
        ]  # fmt: skip


def window_rle(rows: slice, columns: slice, inside: np.ndarray, size: tuple[int, int]) -> dict[str, Any]:
    """COCO's run lengths of a mask in an image of `size` (H, W), that lies in a window: bool [h, w] at these rows
    and columns.

    Memory goes with the window.
    """
    from keras_seg.ops.rle import encode_edges

    x, y = np.nonzero(np.diff(np.pad(inside.T, ((0, 0), (1, 1))), axis=1))
    edges, uses = np.unique((x + columns.start) * size[0] + y + rows.start, return_counts=True)
    # a column that ends at the image's foot and one that begins at its head are one run
    return encode_edges(edges[uses == 1], size)
