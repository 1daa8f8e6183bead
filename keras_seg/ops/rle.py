"""COCO's compressed run lengths: column by column, alternately outside and inside, as a short ASCII string.

The first run is outside (and may be empty). From the fourth run on, a number is the difference to the run two before it.
Numbers are written five bits a character, the lowest first; 32 says that more follow, and 48 is added to be printable.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["decode_rle", "encode_edges", "encode_mask", "run_lengths", "to_string"]

BITS = 5  # data bits of a character; the highest of a number's last character is its sign
MORE = 1 << BITS
OFFSET = 48
# 7 characters hold 35 bits, more than any run of an image of 2^32 pixels or a difference of two
LONGEST = 7


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """{"size": [H, W], "counts": str}, the COCO run lengths of bool [H, W]; ValueError for another shape or type."""
    mask = np.asarray(mask)
    if mask.ndim != 2 or mask.dtype != bool:
        raise ValueError(f"encode_mask: takes one mask, bool [H, W], got {mask.dtype} {list(mask.shape)}")
    columns = np.zeros(mask.size + 2, bool)
    columns[1:-1] = mask.ravel(order="F")
    return encode_edges(np.flatnonzero(columns[1:] != columns[:-1]), mask.shape)


def encode_edges(edges: np.ndarray, size: tuple[int, int]) -> dict[str, Any]:
    """The run lengths of a mask whose value changes at each of `edges`.

    edges: int [2R], rising: start and stop of R runs, as indices x * H + y. size: (H, W) in pixels. Returns
    {"size": [H, W], "counts": str}.
    """
    height, width = (int(side) for side in size)
    ends = np.append(edges, height * width) if not len(edges) or edges[-1] < height * width else edges
    counts = np.diff(ends, prepend=0)
    return {"size": [height, width], "counts": to_string(counts)}


def decode_rle(rle: Mapping[str, Any]) -> np.ndarray:
    """bool [H, W] of COCO run lengths; argument and errors as `run_lengths`."""
    counts = run_lengths(rle)
    height, width = (int(side) for side in rle["size"])
    values = np.arange(len(counts)) % 2 == 1
    return np.ascontiguousarray(np.repeat(values, counts).reshape(width, height).T)


def run_lengths(rle: Mapping[str, Any]) -> np.ndarray:
    """The runs, int64 [R], of {"size": [H, W], "counts": str, bytes, or a list of uncompressed runs}.

    ValueError: another structure, characters that are none of the coding, or runs that do not add up to H * W.
    """
    try:
        height, width = (int(side) for side in rle["size"])
        counts = rle["counts"]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(
            f'run lengths: takes {{"size": [height, width], "counts": ...}}, got {_short(rle)}'
        ) from error
    if isinstance(counts, (str, bytes)):
        counts = _from_string(counts)
    else:
        try:
            counts = np.asarray(counts, np.int64).reshape(-1)
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(
                f"run lengths: counts is text or a list of integers, got {_short(counts)}"
            ) from error
    if (counts < 0).any() or counts.sum() != height * width:
        raise ValueError(
            f"run lengths: the runs add up to {counts.sum()} pixels, the smallest is {counts.min(initial=0)}; "
            f"the size {height} x {width} has {height * width}"
        )
    return counts


def to_string(counts: np.ndarray) -> str:
    """COCO's characters for run lengths, int [R], each from 0 to below 2**32."""
    numbers = counts.astype(np.int64)
    numbers[3:] -= counts[1:-2]
    # a number needs n characters if it lies within the signed range of 5n bits
    half = np.int64(1) << np.arange(BITS - 1, BITS * LONGEST, BITS, dtype=np.int64)
    lengths = 1 + ((numbers[:, None] >= half) | (numbers[:, None] < -half)).sum(axis=1)
    place = np.arange(LONGEST)
    characters = (numbers[:, None] >> BITS * place) & (MORE - 1)
    characters += OFFSET + MORE * (place < lengths[:, None] - 1)
    return characters[place < lengths[:, None]].astype(np.uint8).tobytes().decode("ascii")


def _from_string(text: str | bytes) -> np.ndarray:
    data = text.encode() if isinstance(text, str) else text
    characters = np.frombuffer(data, np.uint8).astype(np.int64) - OFFSET
    last = (characters & MORE) == 0
    if ((characters < 0) | (characters >= 2 * MORE)).any() or not len(data) or not last[-1]:
        raise ValueError(f"run lengths: no COCO run lengths, or cut off: {_short(text)}")
    number = np.cumsum(last) - last
    first = np.flatnonzero(np.append(True, last[:-1]))
    place = np.arange(len(characters)) - first[number]
    if place.max() >= LONGEST:
        raise ValueError(f"run lengths: a run of more than {BITS * LONGEST} bits in {_short(text)}")
    numbers = np.zeros(number[-1] + 1, np.int64)
    np.add.at(numbers, number, (characters & (MORE - 1)) << BITS * place)
    negative = characters[last] & (MORE >> 1) != 0
    numbers[negative] -= np.int64(1) << BITS * (place[last][negative] + 1)
    for start in (1, 2):  # the differences, undone for each of the two interleaved sequences
        numbers[start::2] = np.cumsum(numbers[start::2])
    return numbers


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
