"""Pictures of images, probabilities and instances, as PIL images (`.save("name.png")`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

__all__ = ["colours", "overlay_instances", "picture", "probability_panel", "side_by_side"]

# Okabe and Ito, "Color Universal Design" (2008), without black: told apart with any kind of colour vision.
OKABE_ITO = np.array(
    [
        (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66),
        (0, 114, 178), (213, 94, 0), (204, 121, 167),
    ],
    np.float32,
)  # fmt: skip

# The longest side of a panel, in pixels: smaller ones are enlarged, larger ones reduced.
PANEL_MIN, PANEL_MAX = 320, 1024

GAP = 8  # white pixels around panels


def picture(image: Any) -> Image.Image:
    """An image as RGB for looking at; its values may be stretched.

    image: a path, PIL image, or array [H, W], [H, W, 1] or [H, W, 3]. uint8 and floats 0-255 are shown as
    they are, bool as black and white, other integers stretched from their least to their greatest value.
    ValueError for another shape, and for floats that are NaN or outside 0-255.
    """
    if isinstance(image, (str, Path)):
        from keras_seg.data.images import read_image

        image = read_image(image)
    if isinstance(image, Image.Image) and not image.mode.startswith(("I", "F")):
        image = image.convert("RGB")
    array = np.asarray(image)
    array = array[..., 0] if array.ndim == 3 and array.shape[-1] == 1 else array
    if array.size == 0 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] != 3):
        raise ValueError(f"visualize: takes one image, [H, W] or [H, W, 3], got shape {list(array.shape)}")
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
    header = sum(font.getmetrics())
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


def _touching(labels: np.ndarray) -> np.ndarray:
    """bool [H, W]: pixels of an object whose right or lower neighbour belongs to another object."""
    touching = np.zeros(labels.shape, bool)
    for here, there in ((np.s_[:-1], np.s_[1:]), (np.s_[:, :-1], np.s_[:, 1:])):
        touching[here] |= (labels[here] > 0) & (labels[there] > 0) & (labels[here] != labels[there])
    return touching


def _fitting_font(titles: Sequence[str], widths: Sequence[int], size: int) -> ImageFont.FreeTypeFont:
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
