"""The strokes of `visualize.draw`: a mask, a box, a skeleton, and labels that keep apart.

Coordinates are continuous pixels, as everywhere: pixel i covers [i, i + 1). A colour is RGB 0-255, int [3].
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

__all__ = ["paint_box", "paint_labels", "paint_mask", "paint_skeleton"]

SMALLEST_FONT = 9  # pixels; below this letters run together
# A label hides no more than this share of an object: else many small ones could not be seen for labels.
MOST_HIDDEN = 0.5
# A limb's width is this share of its object's side (of a square of its box), from 1 pixel to THICKEST lines.
LIMB_SHARE, THICKEST = 1 / 75, 1.5
JOINT = 1.25  # radius of a keypoint's dot, in widths of a limb
# Limbs thinner than THIN pixels would be ragged: they are drawn FINER times as large, then reduced.
THIN, FINER = 6, 4
MOST_FINER = 2**20  # pixels; larger windows are drawn as they are, since memory goes with FINER squared
PIXEL_CENTRE = 0.5  # Pillow counts from the centre of the first pixel


def paint_mask(
    canvas: Image.Image,
    image: Image.Image,
    window: tuple[slice, slice, np.ndarray],
    colour: np.ndarray,
    alpha: float,
    line: int,
) -> None:
    """A mask: its colour over the image with weight `alpha`, and an outline `line` pixels wide inside it.

    What was on the canvas before does not shine through. window: one of `ops.masks.windows`. Memory goes with
    the window.
    """
    rows, columns, inside = window
    if not inside.any():
        return
    corners = (columns.start, rows.start, columns.stop, rows.stop)
    weight = np.where(_eroded(inside, line), np.uint8(round(255 * alpha)), np.uint8(255))
    weight[~inside] = 0
    canvas.paste(image.crop(corners), corners, Image.fromarray(inside))
    canvas.paste(tuple(colour.tolist()), corners, Image.fromarray(weight))


def paint_box(canvas: Image.Image, box: np.ndarray, colour: np.ndarray, line: int) -> None:
    """The outline of a box [4], `line` pixels wide inside it; cut at the image, it follows the border."""
    x1, y1, x2, y2 = _pixels(box, canvas.size)
    ImageDraw.Draw(canvas).rectangle((x1, y1, x2 - 1, y2 - 1), outline=tuple(colour.tolist()), width=line)


def paint_skeleton(
    canvas: Image.Image,
    keypoints: np.ndarray,
    box: np.ndarray,
    pairs: Sequence[tuple[int, int]],
    threshold: float,
    colour: np.ndarray,
    line: int,
) -> None:
    """Keypoints float [K, 3] (x, y, score) of the object in a box [4], joined where both of a pair are drawn.

    A point is drawn if its score is at least `threshold` and above 0, and it lies in the image. Limbs are
    thinner in small boxes.
    """
    xy, score = keypoints[:, :2], keypoints[:, 2]
    drawn = (score >= threshold) & (score > 0) & (xy >= 0).all(axis=1) & (xy <= canvas.size).all(axis=1)
    if not drawn.any():
        return
    limb = min(max(1.0, LIMB_SHARE * math.sqrt(np.prod(box[2:] - box[:2]))), THICKEST * line)
    casing = max(0.5, limb / 3)
    points = xy[drawn]
    limbs = [xy[[a, b]] for a, b in pairs if drawn[a] and drawn[b]]
    margin = JOINT * limb + casing + 1
    low = np.maximum(np.floor(points.min(axis=0) - margin), 0).astype(int)
    high = np.minimum(np.ceil(points.max(axis=0) + margin), canvas.size).astype(int)
    if limb >= THIN or (high - low).prod() > MOST_FINER:
        _strokes(canvas, points, limbs, colour, limb, casing)
        return
    # every pixel becomes FINER * FINER equal ones: where nothing is drawn, reducing gives them back unchanged
    window = (*low.tolist(), *high.tolist())
    part = canvas.crop(window).resize(((high - low) * FINER).tolist(), Image.Resampling.NEAREST)
    finer = [(ends - low) * FINER for ends in limbs]
    _strokes(part, (points - low) * FINER, finer, colour, limb * FINER, casing * FINER)
    canvas.paste(part.reduce(FINER), window)


def _strokes(
    canvas: Image.Image,
    points: np.ndarray,
    limbs: Sequence[np.ndarray],
    colour: np.ndarray,
    width: float,
    casing: float,
) -> None:
    """Dots at points [P, 2] and lines between the ends [2, 2] of limbs, edged `casing` pixels wide."""
    draw = ImageDraw.Draw(canvas)
    for fill, more in ((_contrast(colour), casing), (tuple(colour.tolist()), 0.0)):
        for ends in limbs:
            draw.line((ends - PIXEL_CENTRE).ravel().tolist(), fill, round(width + 2 * more))
        radius = JOINT * width + more
        for x, y in (points - PIXEL_CENTRE).tolist():
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill)


def paint_labels(
    canvas: Image.Image,
    texts: Sequence[str],
    boxes: np.ndarray,
    colours: np.ndarray,
    font_size: int,
) -> None:
    """A label for each of the boxes [N, 4], the first ones first, on its colour, int [N, 3].

    A label stands at an edge of its box, within the image, clear of the labels before it, where it hides
    least of the objects. Text too wide for the image is set smaller, then cut. A label without such a place,
    or that would hide most of an object, is left out.
    """
    draw = ImageDraw.Draw(canvas)
    objects = np.array([_pixels(box, canvas.size) for box in boxes]).reshape(-1, 4)
    areas = (objects[:, 2:] - objects[:, :2]).prod(axis=1)
    taken = np.zeros((0, 4), int)
    for text, box, colour in zip(texts, objects, colours, strict=True):
        text, font = _fitted(text, canvas.size, font_size)
        if not text:
            continue
        places = _places(box, _label_size(text, font), canvas.size)
        hidden = _shared(places, objects) / areas
        free = ~_shared(places, taken).any(axis=1) & (hidden <= MOST_HIDDEN).all(axis=1)
        if not free.any():
            continue
        place = places[np.where(free, hidden.sum(axis=1), np.inf).argmin()]
        taken = np.concatenate([taken, place[None]])
        x1, y1, x2, y2 = place.tolist()
        draw.rectangle((x1, y1, x2 - 1, y2 - 1), fill=tuple(colour.tolist()))
        draw.text(
            (x1 + _padding(font), y1 + _padding(font)), text, fill=_contrast(colour), font=font, anchor="la"
        )


def _places(box: np.ndarray, size: tuple[int, int], canvas: tuple[int, int]) -> np.ndarray:
    """Where a label of `size` (w, h) may stand within the canvas (w, h), the best first: int [P, 4]."""
    (x1, y1, x2, y2), (width, height) = box, size
    right, bottom = x2 - width, y2 - height
    corners = [
        (x1, y1 - height), (x1, y1), (right, y1 - height), (x1, y2), (right, y2), (right, y1), (x1, bottom),
        (right, bottom), ((x1 + right) // 2, (y1 + bottom) // 2),
    ]  # fmt: skip
    corners = np.clip(corners, 0, np.array(canvas) - size)
    return np.concatenate([corners, corners + size], axis=1)


def _shared(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The area that boxes int [P, 4] share with boxes int [Q, 4]: [P, Q]."""
    low, high = np.maximum(a[:, None, :2], b[:, :2]), np.minimum(a[:, None, 2:], b[:, 2:])
    return np.maximum(high - low, 0).prod(axis=-1)


def _fitted(text: str, canvas: tuple[int, int], size: int) -> tuple[str, ImageFont.FreeTypeFont]:
    """The text, cut if need be ("" if nothing fits), and a font, at most `size`, so that it fits."""
    text = " ".join(text.split())
    while size > SMALLEST_FONT and not _fits(text, _font(size), canvas):
        size -= 1
    font, cut = _font(size), text
    while text and not _fits(text, font, canvas):
        cut = cut[:-1]
        text = cut and cut + "…"
    return text, font


def _fits(text: str, font: ImageFont.FreeTypeFont, canvas: tuple[int, int]) -> bool:
    width, height = _label_size(text, font)
    return width <= canvas[0] and height <= canvas[1]


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    import matplotlib  # brings a font with accents, Greek and Cyrillic, which Pillow's own has not

    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf"), size)


def _padding(font: ImageFont.FreeTypeFont) -> int:
    return max(1, int(font.size) // 6)


def _label_size(text: str, font: ImageFont.FreeTypeFont) -> tuple[int, int]:
    return math.ceil(font.getlength(text)) + 2 * _padding(font), sum(font.getmetrics()) + 2 * _padding(font)


def _contrast(colour: np.ndarray) -> tuple[int, int, int]:
    """Black or white, whichever has the higher contrast to the colour (WCAG 2.1, relative luminance)."""
    luminance = (colour / 255) ** 2.2 @ (0.2126, 0.7152, 0.0722)
    return (0, 0, 0) if luminance > 0.179 else (255, 255, 255)


def _pixels(box: np.ndarray, canvas: tuple[int, int]) -> tuple[int, int, int, int]:
    """The pixels of a box, x1, y1, x2, y2 (x2, y2 excluded), at least one, within the canvas (w, h)."""
    low = np.clip(np.rint(box[:2]), 0, np.array(canvas) - 1).astype(int)
    high = np.clip(np.rint(box[2:]), low + 1, canvas).astype(int)
    return (*low.tolist(), *high.tolist())


def _eroded(inside: np.ndarray, by: int) -> np.ndarray:
    """A mask bool [h, w] less a rim of `by` pixels (of a square); it goes on beyond the array."""
    result = np.pad(inside, by, constant_values=True)
    for _ in range(2):
        covered = 1  # so many lines of the mask are joined in one of the result
        while covered < 2 * by + 1:
            step = min(covered, 2 * by + 1 - covered)
            result = result[:-step] & result[step:]
            covered += step
        result = result.T
    return result
