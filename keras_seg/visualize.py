"""Pictures of images, probabilities and instances, as PIL images (`.save("name.png")`)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from keras_seg import drawing
from keras_seg.instances import Instances
from keras_seg.ops import masks as mask_ops

__all__ = ["colours", "draw", "overlay_instances", "picture", "probability_panel", "side_by_side"]

# Okabe and Ito, "Color Universal Design" (2008), without black: told apart with any kind of colour vision.
OKABE_ITO = np.array(
    [
        (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66),
        (0, 114, 178), (213, 94, 0), (204, 121, 167),
    ],
    np.float32,
)  # fmt: skip

# Which of a COCO person's keypoints are joined (`skeleton` of the dataset's annotations, counted from 0).
PERSON_KEYPOINTS = 17
PERSON_SKELETON = (
    (15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8),
    (7, 9), (8, 10), (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6),
)  # fmt: skip

# A line is 1/320 and a letter 1/45 of the picture's side (of a square of its area), or the least, in
# pixels.
LINE_SHARE, FONT_SHARE = 1 / 320, 1 / 45
LEAST_LINE, LEAST_FONT = 1, 11

# The longest side of a panel, in pixels: smaller ones are enlarged, larger ones reduced.
PANEL_MIN, PANEL_MAX = 320, 1024

GAP = 8  # white pixels around panels


def picture(image: Any) -> Image.Image:
    """An image as RGB for looking at; its values may be stretched.

    image: a path, PIL image, or array [H, W], [H, W, 1], [H, W, 3] or [H, W, 4] (alpha is dropped). uint8 and
    floats 0-255 are shown as they are, bool as black and white, other integers stretched from their least to
    their greatest value.
    ValueError for another shape, and for floats that are NaN or outside 0-255.
    """
    if isinstance(image, (str, Path)):
        from keras_seg.data.images import read_image

        image = read_image(image)
    if isinstance(image, Image.Image) and not image.mode.startswith(("I", "F")):
        image = image.convert("RGB")
    array = np.asarray(image)
    if array.ndim == 3 and array.shape[-1] in (1, 4):
        array = array[..., 0] if array.shape[-1] == 1 else array[..., :3]
    if array.size == 0 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] != 3):
        raise ValueError(
            f"visualize: takes one image, [H, W], [H, W, 3] or [H, W, 4], got shape {list(array.shape)}"
        )
    if array.dtype == bool:
        array = array * np.uint8(255)
    elif array.dtype.kind == "f":
        if not (array.min() >= 0 and array.max() <= 255):
            raise ValueError("visualize: float images must lie within 0-255 and not be NaN")
        array = np.rint(array).astype(np.uint8)
    elif array.dtype != np.uint8:
        low, high = int(array.min()), int(array.max())
        array = np.rint((array.astype(np.float64) - low) * (255 / max(high - low, 1))).astype(np.uint8)
    return Image.fromarray(array).convert("RGB")


def draw(
    image: Any,
    instances: Instances,
    *,
    by: str = "instance",
    masks: bool = True,
    boxes: bool = True,
    labels: bool = True,
    keypoints: bool = True,
    alpha: float = 0.45,
    skeleton: Sequence[tuple[int, int]] | None = None,
    keypoint_threshold: float = 0.05,
    scale: float = 1.0,
) -> Image.Image:
    """The image with the objects that `segment` found in it: `draw("street.jpg", result).save("drawn.png")`.

    Args:
        image: as in `picture`; a file or PIL image is turned upright first, as `segment` does.
        instances: what was found in this image.
        by: what a colour stands for. "instance": the object's rank by score, so neither another order of the
            objects nor a higher score threshold changes it. "class": its class, the same in every picture.
            The colours are those of `colours`, the first 7 told apart with any kind of colour vision.
        masks, boxes, labels, keypoints: whether to draw these, where there are any. Labels are names and
            scores. They do not overlap: high scores come first, and where no place is left, as among many
            small objects, there is none.
        alpha: weight of the colour inside a mask, 0-1; its outline is always opaque.
        skeleton: pairs of keypoints to join, counted from 0. None: a COCO person's if 17, else none.
        keypoint_threshold: least score of a keypoint, in its model's unit: probability, or logit
            (torchvision). One whose score is 0 or less, or that lies outside the image, is never drawn.
        scale: factor on the picture's sides; above 1, small images get room for lines and labels.

    Returns: RGB. Large objects lie below small ones, and of equal ones that with the higher score on top.
    Lines and letters grow with the picture. Boxes that are empty, not finite or outside the image are left
    out with their objects; without any object the picture is unchanged. Memory: a few copies of the picture,
    however many objects there are.

    Raises:
        TypeError: other instances, such as the list for several images.
        ValueError: instances of an image of another size, or an argument outside its range.
        What `picture` raises.
    """
    _check_drawing(instances, by, alpha, scale)
    pairs = () if instances.keypoints is None else _joined(skeleton, instances.keypoints.shape[1])
    base = picture(ImageOps.exif_transpose(image) if isinstance(image, Image.Image) else image)
    if (base.height, base.width) != instances.image_size:
        height, width = instances.image_size
        raise ValueError(
            f"draw: the image is {base.height}x{base.width} pixels (height x width), but the instances are "
            f"of an image of {height}x{width}: give the image that they were found in"
        )
    size = [max(1, round(scale * length)) for length in base.size]
    canvas = base.resize(size, Image.Resampling.BICUBIC) if scale != 1 else base
    shown = _to_draw(instances, canvas.size)
    tints = colours(1 + (shown.classes if by == "class" else np.arange(len(shown)))).astype(int)
    side = math.sqrt(canvas.width * canvas.height)
    line = max(LEAST_LINE, round(side * LINE_SHARE))
    # large ones first; of equal ones the higher score, which has the lower number, last
    order = np.lexsort((-np.arange(len(shown)), -np.prod(shown.boxes[:, 2:] - shown.boxes[:, :2], axis=1)))
    if masks and shown.mask_probabilities is not None:
        canvas = _with_masks(canvas, shown[order], tints[order], alpha, line)
    if boxes:
        for k in order:
            drawing.paint_box(canvas, shown.boxes[k], tints[k], line)
    if keypoints and shown.keypoints is not None:
        for k in order:
            drawing.paint_skeleton(
                canvas, shown.keypoints[k], shown.boxes[k], pairs, keypoint_threshold, tints[k], line
            )
    if labels:
        texts = [f"{name} {score:.0%}" for name, score in zip(shown.names, shown.scores, strict=True)]
        drawing.paint_labels(canvas, texts, shown.boxes, tints, max(LEAST_FONT, round(side * FONT_SHARE)))
    return canvas


def probability_panel(probability: np.ndarray) -> Image.Image:
    """Probabilities [H, W] in grey: 0 black, 1 white. ValueError for another shape or values outside 0-1."""
    probability = np.asarray(probability)
    if probability.ndim != 2 or probability.size == 0:
        raise ValueError(f"visualize: takes one class, [H, W], got shape {list(probability.shape)}")
    if not (probability.min() >= 0 and probability.max() <= 1):
        raise ValueError("visualize: probabilities must lie within 0-1 and not be NaN")
    return Image.fromarray(np.rint(probability * 255.0).astype(np.uint8))


def colours(labels: np.ndarray) -> np.ndarray:
    """RGB of labels k > 0, int [...] -> uint8 [..., 3]; a label has the same colour in every picture.

    The 7 colours of Okabe and Ito, then the same lighter, then darker: labels differ in colour unless they
    are a multiple of 21 apart.
    """
    shades = np.concatenate((OKABE_ITO, OKABE_ITO * 0.45 + 255 * 0.55, OKABE_ITO * 0.55))
    return np.rint(shades).astype(np.uint8)[(np.asarray(labels) - 1) % len(shades)]


def overlay_instances(image: Any, labels: np.ndarray, *, alpha: float = 0.5) -> Image.Image:
    """The image with its objects in colour, and a black line where two of them touch.

    image: as in `picture`. labels: int [H, W] of the same size, k > 0 an object, others background. alpha:
    weight of the colours, 0-1. ValueError for labels of another shape or type, or another alpha.
    """
    base = np.asarray(picture(image))
    labels = np.asarray(labels)
    if labels.dtype.kind not in "iu" or labels.shape != base.shape[:2]:
        raise ValueError(
            f"visualize: labels must be integers {list(base.shape[:2])} as the image, got {labels.dtype} "
            f"{list(labels.shape)}"
        )
    if not 0 <= alpha <= 1:
        raise ValueError(f"visualize: alpha must be within 0-1, got {alpha!r}")
    objects = labels > 0
    result = base.copy()
    result[objects] = np.rint((1 - alpha) * base[objects] + alpha * colours(labels[objects]))
    result[_touching(labels)] = 0
    return Image.fromarray(result)


def side_by_side(panels: Sequence[tuple[str, Any]]) -> Image.Image:
    """Panels in a row, each under its title, all with the same longest side.

    panels: (title, image) pairs; images as in `picture`. Small ones are enlarged (nearest neighbour) to 320
    pixels, large ones reduced to 1024. ValueError if there is none.
    """
    if not panels:
        raise ValueError("visualize: side_by_side needs at least one (title, image) pair")
    pictures = [picture(image) for _, image in panels]
    side = min(max(PANEL_MIN, *(max(p.size) for p in pictures)), PANEL_MAX)
    pictures = [_resized(p, side) for p in pictures]
    titles = [title for title, _ in panels]
    font = _fitting_font(titles, [p.width for p in pictures], max(14, side // 26))
    widths = [max(p.width, round(font.getlength(title))) for title, p in zip(titles, pictures, strict=True)]
    header = sum(cast(ImageFont.FreeTypeFont, font).getmetrics())
    canvas = Image.new(
        "RGB",
        (sum(widths) + GAP * (len(widths) + 1), header + max(p.height for p in pictures) + 3 * GAP),
        "white",
    )
    draw, x = ImageDraw.Draw(canvas), GAP
    for title, panel, width in zip(titles, pictures, widths, strict=True):
        draw.text((x, GAP), title, fill="black", font=font)
        canvas.paste(panel, (x, header + 2 * GAP))
        x += width + GAP
    return canvas


def _check_drawing(instances: Any, by: str, alpha: float, scale: float) -> None:
    if not isinstance(instances, Instances):
        raise TypeError(
            f"draw: takes the Instances of one image, got {type(instances).__name__}; the class "
            "probabilities of a U-Net are drawn by probability_panel or overlay_instances"
        )
    if by not in ("instance", "class"):
        raise ValueError(f"draw: by must be 'instance' or 'class', got {by!r}")
    if not 0 <= alpha <= 1:
        raise ValueError(f"draw: alpha must be within 0-1, got {alpha!r}")
    if not 0 < scale < math.inf:
        raise ValueError(f"draw: scale must be a positive number, got {scale!r}")


def _joined(skeleton: Sequence[tuple[int, int]] | None, count: int) -> Sequence[tuple[int, int]]:
    """The pairs of `count` keypoints that limbs join."""
    if skeleton is None:
        return PERSON_SKELETON if count == PERSON_KEYPOINTS else ()
    for pair in skeleton:
        if np.shape(pair) != (2,) or not all(0 <= k < count for k in pair):
            raise ValueError(
                f"draw: skeleton has {pair!r}; there are {count} keypoints, "
                f"so it takes pairs of 0 ... {count - 1}"
            )
    return skeleton


def _to_draw(instances: Instances, size: tuple[int, int]) -> Instances:
    """The objects whose box has a part in the image, by falling score (then by their box), for a picture of
    `size` (width, height)."""
    height, width = instances.image_size
    boxes = instances.boxes
    low, high = np.maximum(boxes[:, :2], 0), np.minimum(boxes[:, 2:], (width, height))
    kept = np.flatnonzero(np.isfinite(boxes).all(axis=1) & (low < high).all(axis=1))
    bare = dataclasses.replace(instances)  # without the pasted masks, which indexing would copy
    shown = bare[kept[np.lexsort((*boxes[kept].T, -instances.scores[kept]))]]
    factor = np.array([size[0] / width, size[1] / height, 1], np.float32)
    return dataclasses.replace(
        shown,
        boxes=shown.boxes * factor[[0, 1, 0, 1]],
        keypoints=None if shown.keypoints is None else shown.keypoints * factor,
        image_size=size[::-1],
    )


def _with_masks(
    image: Image.Image, instances: Instances, tints: np.ndarray, alpha: float, line: int
) -> Image.Image:
    """The image with the masks of instances on it, the last one on top."""
    canvas = image.copy()
    windows = mask_ops.windows(
        cast(np.ndarray, instances.mask_probabilities),
        instances.boxes,
        instances.image_size,
        instances.mask_threshold,
        instances.convention,
    )
    for window, tint in zip(windows, tints, strict=True):
        drawing.paint_mask(canvas, image, window, tint, alpha, line)
    return canvas


def _touching(labels: np.ndarray) -> np.ndarray:
    """bool [H, W]: pixels of an object whose right or lower neighbour belongs to another object."""
    touching = np.zeros(labels.shape, bool)
    for here, there in ((np.s_[:-1], np.s_[1:]), (np.s_[:, :-1], np.s_[:, 1:])):
        touching[here] |= (labels[here] > 0) & (labels[there] > 0) & (labels[here] != labels[there])
    return touching


def _fitting_font(
    titles: Sequence[str], widths: Sequence[int], size: int
) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The largest font, 12 to `size`, in which the titles are no wider than their panels."""
    while size > 12:
        font = ImageFont.load_default(size)
        if all(font.getlength(title) <= width for title, width in zip(titles, widths, strict=True)):
            return font
        size -= 1
    return ImageFont.load_default(12)


def _resized(panel: Image.Image, side: int) -> Image.Image:
    scale = side / max(panel.size)
    size = [max(1, round(length * scale)) for length in panel.size]
    return panel.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)
