"""What an instance segmentation found in one image: `Instances`."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, cast

import numpy as np

from keras_seg.ops import masks as mask_ops

__all__ = ["Instances"]

# COCO's keypoints name a pixel by its index, ours are continuous: the centre of pixel i is i + 0.5 (as Detectron2).
PIXEL_CENTRE = 0.5
# of each array: its type and shape; a letter stands for the same number everywhere
_ARRAYS = {
    "boxes": (np.float32, ("N", 4)),
    "scores": (np.float32, ("N",)),
    "classes": (np.int32, ("N",)),
    "mask_probabilities": (np.float32, ("N", "m", "m")),
    "keypoints": (np.float32, ("N", "K", 3)),
}
_OPTIONAL = ("mask_probabilities", "keypoints")


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Instances:
    """N objects of one image, as read-only NumPy arrays; `segment` returns them by falling score.

    Attributes:
        boxes: float32 [N, 4], x1, y1, x2, y2 in pixels of the image.
        scores: float32 [N], 0-1.
        classes: int32 [N], 0 ... number of classes - 1.
        image_size: (H, W) of the image in pixels.
        mask_probabilities: float32 [N, m, m] over each box, or None without masks.
        keypoints: float32 [N, K, 3] of x, y (pixels) and score, or None.
        class_names: one name a class, or None.
        convention: how masks lie in their boxes, "detectron2" or "torchvision" (`ops.masks`).
        mask_threshold: the least probability inside a mask, above 0, at most 1.

    `masks`, bool [N, H, W], are pasted when first asked for and kept. `len`, iteration, and indexing by int, slice, int or
    bool array give `Instances`; a single one holds one object.

    Raises:
        ValueError: for arrays of other shapes or classes without a name.
    """

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    image_size: tuple[int, int]
    mask_probabilities: np.ndarray | None = None
    keypoints: np.ndarray | None = None
    class_names: Sequence[str] | None = None
    convention: str = "detectron2"
    mask_threshold: float = 0.5

    def __post_init__(self) -> None:
        sizes: dict[str, int] = {}
        for name, (dtype, shape) in _ARRAYS.items():
            if (value := getattr(self, name)) is None and name in _OPTIONAL:
                continue
            array = _read_only(value, dtype)
            legal = array.ndim == len(shape) and all(
                got == (sizes.setdefault(want, got) if isinstance(want, str) else want)
                for want, got in zip(shape, array.shape, strict=True)
            )
            if not legal:
                expected = ", ".join(
                    str(sizes.get(want, want) if isinstance(want, str) else want) for want in shape
                )
                raise ValueError(f"Instances: {name} must be [{expected}], got {list(array.shape)}")
            object.__setattr__(self, name, array)
        try:
            height, width = (int(side) for side in self.image_size)
        except (TypeError, ValueError) as error:
            raise ValueError(f"Instances: image_size is (height, width), got {self.image_size!r}") from error
        object.__setattr__(self, "image_size", (height, width))
        if self.convention not in mask_ops.CONVENTIONS:
            known = " or ".join(map(repr, mask_ops.CONVENTIONS))
            raise ValueError(f"Instances: convention must be {known}, got {self.convention!r}")
        if len(self) and self.classes.min() < 0:
            raise ValueError(f"Instances: classes must be 0 or more, got {self.classes.min()}")
        if self.class_names is not None:
            object.__setattr__(self, "class_names", tuple(self.class_names))
            if len(self) and self.classes.max() >= len(self.class_names):
                raise ValueError(
                    f"Instances: class {self.classes.max()} has no name, class_names are {len(self.class_names)}"
                )

    @cached_property
    def masks(self) -> np.ndarray:
        """bool [N, H, W]; ValueError without mask_probabilities. `to_coco` and `to_labels` do without them."""
        return _read_only(mask_ops.paste(*self._mask_arguments("masks")), bool)

    @property
    def names(self) -> list[str]:
        """The class name of each object; without class_names "class 3"."""
        return [self._name(k) for k in self.classes.tolist()]

    def __len__(self) -> int:
        return len(self.boxes)

    def __iter__(self) -> Iterator[Instances]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: int | slice | Sequence[int] | Sequence[bool] | np.ndarray) -> Instances:
        chosen = self._chosen(index)
        arrays = {name: None if (array := getattr(self, name)) is None else array[chosen] for name in _ARRAYS}
        part = dataclasses.replace(self, **cast("dict[str, Any]", arrays))
        if "masks" in self.__dict__:  # pasted already
            part.__dict__["masks"] = _read_only(self.masks[chosen], bool)
        return part

    def __repr__(self) -> str:
        found = []
        for k in dict.fromkeys(self.classes.tolist()):
            scores = self.scores[self.classes == k]
            span = f"{scores.max():.2f}" + (f"-{scores.min():.2f}" if len(scores) > 1 else "")
            found.append(f"{len(scores)} {self._name(k)} ({span})")
        parts = [", ".join(found) or "no objects"]
        if self.mask_probabilities is not None:
            parts.append("masks")
        if self.keypoints is not None:
            parts.append(f"{self.keypoints.shape[1]} keypoints")
        height, width = self.image_size
        return f"<Instances in {height}x{width} pixels: {'; '.join(parts)}>"

    def filter(
        self,
        score_threshold: float | None = None,
        classes: int | str | Sequence[int | str] | None = None,
        max_detections: int | None = None,
    ) -> Instances:
        """The objects whose score is at least `score_threshold` and whose class is one of `classes` (numbers or names),
        and of these the `max_detections` with the highest scores; None does not limit. The order stays.

        ValueError: a class that class_names do not have (the nearest are named), or a negative max_detections.
        """
        keep = np.ones(len(self), bool)
        if score_threshold is not None:
            keep &= self.scores >= score_threshold
        if classes is not None:
            several = [classes] if isinstance(classes, (int, np.integer, str)) else classes
            keep &= np.isin(self.classes, [self._class(k) for k in several])
        chosen = np.flatnonzero(keep)
        if max_detections is not None:
            if max_detections < 0:
                raise ValueError(f"filter: max_detections must be 0 or more, got {max_detections}")
            best = np.argsort(-self.scores[chosen], kind="stable")[:max_detections]
            chosen = chosen[np.sort(best)]
        return self[chosen]

    def to_labels(self) -> np.ndarray:
        """int32 [H, W]: 0 is no object, k > 0 object number k - 1; where objects overlap, the higher score wins (of equal
        scores the first). ValueError without masks."""
        labels = np.zeros(self.image_size, np.int32)
        order = np.argsort(-self.scores, kind="stable")[::-1]
        masks, boxes, size, threshold, convention = self._mask_arguments("to_labels")
        for k, (rows, columns, inside) in zip(
            order, mask_ops.windows(masks[order], boxes[order], size, threshold, convention), strict=True
        ):
            labels[rows, columns][inside] = k + 1
        return labels

    def to_coco(self, image_id: int, category_ids: Sequence[int] | None = None) -> list[dict[str, Any]]:
        """COCO results, one dictionary an object, ready for `json.dump`.

        image_id: of the image in the annotations. category_ids: COCO's category of each class; None is class + 1.

        Keys: image_id, category_id, score, bbox [x, y, width, height]; segmentation (compressed run lengths) if there are
        masks; keypoints [x, y, score, ...] if there are keypoints. COCO's keypoints are pixel indices, so 0.5 is
        subtracted, as Detectron2 does; not with convention "torchvision", whose models learn COCO's numbers as they are.
        pycocotools takes an object's area from bbox if that is present: leave it out to score segmentations by size.

        ValueError: fewer category_ids than classes.
        """
        if category_ids is not None and len(self) and self.classes.max() >= len(category_ids):
            raise ValueError(
                f"to_coco: class {self.classes.max()} has none of the {len(category_ids)} category_ids"
            )
        categories = self.classes + 1 if category_ids is None else np.asarray(category_ids)[self.classes]
        boxes = np.concatenate([self.boxes[:, :2], self.boxes[:, 2:] - self.boxes[:, :2]], axis=1)
        results = [
            {"image_id": int(image_id), "category_id": category, "bbox": box, "score": score}
            for category, box, score in zip(
                categories.tolist(), boxes.tolist(), self.scores.tolist(), strict=True
            )
        ]
        if self.mask_probabilities is not None:
            encoded = mask_ops.encode_rle(*self._mask_arguments("to_coco"))
            for result, rle in zip(results, encoded, strict=True):
                result["segmentation"] = rle
        if self.keypoints is not None:
            shift = 0.0 if self.convention == "torchvision" else PIXEL_CENTRE
            shifted = self.keypoints - np.array([shift, shift, 0], np.float32)
            for result, keypoints in zip(results, shifted, strict=True):
                result["keypoints"] = keypoints.ravel().tolist()
        return results

    def _mask_arguments(self, wanted: str) -> tuple[np.ndarray, np.ndarray, tuple[int, int], float, str]:
        if self.mask_probabilities is None:
            raise ValueError(f"{wanted}: these Instances have no masks; the model has no mask head")
        return (
            self.mask_probabilities,
            self.boxes,
            self.image_size,
            self.mask_threshold,
            self.convention,
        )

    def _chosen(self, index: Any) -> slice | np.ndarray:
        """The objects that `index` names, as a slice where that keeps arrays uncopied, else int [n]."""
        if isinstance(index, slice):
            return index
        index = np.asarray(index)
        if index.size == 0 and index.dtype != bool:
            index = index.astype(np.int64)
        if index.dtype == bool and index.shape != (len(self),):
            raise IndexError(f"Instances: a mask of shape {list(index.shape)} for {len(self)} objects")
        if index.dtype == bool:
            return np.flatnonzero(index)
        if not np.issubdtype(index.dtype, np.integer) or index.ndim > 1:
            raise TypeError(
                "Instances: takes an int, a slice, or a list or array [n] of int or bool as index, "
                f"got {index.dtype} {list(index.shape)}"
            )
        outside = index[(index < -len(self)) | (index >= len(self))]
        if len(outside):
            raise IndexError(f"Instances: index {outside[0]} for {len(self)} objects")
        return index if index.ndim else slice(first := int(index) % len(self), first + 1)

    def _name(self, k: int) -> str:
        return self.class_names[k] if self.class_names is not None else f"class {k}"

    def _class(self, name: int | str) -> int:
        if not isinstance(name, str):
            if self.class_names is not None and not 0 <= name < len(self.class_names):
                raise ValueError(f"classes: {name} is not within 0 ... {len(self.class_names) - 1}")
            return int(name)
        if self.class_names is not None and name in self.class_names:
            return self.class_names.index(name)
        near = difflib.get_close_matches(name, self.class_names or (), n=3)
        hint = f"; do you mean {', '.join(map(repr, near))}?" if near else ""
        known = "there are no class_names" if self.class_names is None else "not one of the class_names"
        raise ValueError(f"classes: {name!r}: {known}{hint}")


def _read_only(array: Any, dtype: type) -> np.ndarray:
    view: np.ndarray = np.asarray(array, dtype).view()
    view.flags.writeable = False
    return view
