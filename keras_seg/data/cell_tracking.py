"""Cell Tracking Challenge folders: `01/t000.tif`, `01_GT/SEG/man_seg000.tif`, `01_GT/TRA/man_track000.tif`.

Two-dimensional sequences (Ulman et al. 2017, doi:10.1038/nmeth.4473). The gold truth is often partial: in
some frames only some of the cells have a mask. A cell without a mask is not background, so the rule is:

- Pixels of a mask are class 1, except the border drawn between touching cells (`losses.separate_touching`):
  class 0.
- A frame is fully annotated if each of its tracking markers, of which every cell has one, lies for more than
  half of its pixels on masks. All the rest of such a frame is class 0.
- In any other frame the rest is -1 and is ignored, except a ring around each mask: what surrounds a cell is
  mostly background, and without it nothing would say where cells end. A ring stays clear of the markers
  without a mask, by the size of the largest annotated cell, because there it would run into a cell.
- Cells that only touch the border of the image may have neither mask nor marker: the challenge leaves out
  what lies within E pixels of it (50 for DIC-C2DH-HeLa and PhC-C2DH-U373). With `border=E` the unmasked
  pixels there are -1.
- A frame without tracking markers counts as partial, with a warning: nothing shows that all cells are
  annotated.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
from scipy import ndimage

from keras_seg.data.images import read_image, read_mask, to_float
from keras_seg.data.progress import track
from keras_seg.data.sample import UNKNOWN, Sample
from keras_seg.losses import separate_touching, weight_map

if TYPE_CHECKING:
    import tensorflow as tf

CLASS_NAMES = ("background", "cell")
# A marker belongs to the masks if they cover more than half of it, as in the challenge's own matching: Matula
# et al. 2015, doi:10.1371/journal.pone.0144959.
COVERED = 0.5


def read(
    root: str | Path,
    sequence: str | Iterable[str] = "01",
    *,
    frames: Iterable[int] | None = None,
    truth: Literal["GT", "ST"] = "GT",
    partial: bool | Iterable[int] | Literal["auto"] = "auto",
    background_ring: float = 10,
    border: int = 0,
    separation: int = 2,
    w0: float = 10,
    sigma: float = 5,
    class_weights: Sequence[float] | None = None,
    value_range: tuple[float, float] | None = None,
    allow_single_class: bool = False,
) -> list[Sample]:
    """Read the annotated frames of one or several sequences; the other frames are left out.

    root: the data set's folder. sequence: "01", or several, ("01", "02"). frames: frame numbers to read, in
    every sequence; None for all that are annotated. truth: masks of `01_GT` (gold) or `01_ST` (silver, made
    by programs). partial: "auto" decides by the tracking markers (rule above); True: all frames are partial;
    False: none is, every cell has a mask; or the numbers of the partial frames. background_ring: pixels
    around the masks of partial frames that are background. border: width in pixels of the image's border
    where cells may have no mask. separation: width in pixels of the background drawn between touching cells,
    0 for none. w0, sigma, class_weights: see `losses.weight_map`, computed with the borders drawn.
    value_range: see `images.to_float`; 8-bit grey values in 16-bit files need (0, 255).

    Each sample's `instances` are the masks as annotated (without drawn borders), -1 where `label` is -1.

    Raises FileNotFoundError or ValueError naming folder, file or frame: missing folders, no annotated frames,
    masks without an image, 3-D data, unreadable files, different sizes, frames of one class (unless
    allow_single_class), 16-bit files of 8-bit values without value_range, constant or NaN images.
    """
    if truth not in ("GT", "ST"):
        raise ValueError(f"truth={truth!r}: GT (gold truth) or ST (silver truth)")
    if background_ring < 0 or border < 0 or separation < 0:
        raise ValueError(
            f"background_ring={background_ring}, border={border}, separation={separation}: pixels, 0 or more"
        )
    partial = partial if isinstance(partial, (bool, str)) else frozenset(partial)
    if isinstance(partial, str) and partial != "auto":
        raise ValueError(f'partial={partial!r}: "auto", True, False or the numbers of the partial frames')
    wanted = None if frames is None else set(frames)
    names = [sequence] if isinstance(sequence, str) else list(sequence)
    if not names:
        raise ValueError(f"sequence: none given of {root}")
    found = [frame for name in names for frame in _annotated_frames(Path(root), name, truth, wanted)]
    if wanted is None and isinstance(partial, frozenset):
        unread = sorted(partial - {_number(path) for path, _, _ in found})
        if unread:
            raise ValueError(f"partial: {unread[:10]} are not among the annotated frames of {root}")
    images = [read_image(image) for image, _, _ in found]
    if value_range is None and all(image.dtype == np.uint16 and image.max() <= 255 for image in images):
        raise ValueError(
            f"{root}: 16-bit images without a value above 255, so 8-bit values in 16-bit files: pass "
            "value_range=(0, 255), or the true (low, high) if these images are that dark"
        )
    samples, unmarked = [], []
    for image, (path, mask_path, marker_path) in track(list(zip(images, found, strict=True)), "Weight maps"):
        masks = _labels(mask_path, image, path)
        markers = None if marker_path is None else _labels(marker_path, image, path)
        missing = _without_mask(markers, masks)
        if partial == "auto":
            is_partial = markers is None or bool(missing.any())
            unmarked += [path] if markers is None else []
        else:
            is_partial = partial if isinstance(partial, bool) else _number(path) in partial
        separated = separate_touching(masks, separation) if separation else masks
        known = _surroundings(masks, missing, background_ring) if is_partial else np.ones(masks.shape, bool)
        unknown = ~(known & _inside(masks.shape, border)) & (masks == 0)
        label = np.where(unknown, UNKNOWN, separated > 0).astype(np.int32)
        _check_classes(label, mask_path, is_partial, allow_single_class)
        samples.append(
            Sample(
                name=str(path),
                image=to_float(image, value_range, str(path)),
                label=label,
                weight=weight_map(np.where(unknown, UNKNOWN, separated), w0, sigma, class_weights),
                instances=np.where(unknown, UNKNOWN, masks).astype(np.int32),
            )
        )
    if unmarked:
        warnings.warn(
            f"no tracking markers (TRA/man_track*.tif) for {len(unmarked)} frames, the first {unmarked[0]}, "
            f"so nothing shows that all cells have a mask. Pixels more than {background_ring:g} from a mask "
            "are ignored; pass partial=False if all cells are annotated, partial=True to accept this.",
            stacklevel=2,
        )
    return samples


def cell_tracking(
    root: str | Path,
    sequence: str | Iterable[str] = "01",
    *,
    frames: Iterable[int] | None = None,
    truth: Literal["GT", "ST"] = "GT",
    partial: bool | Iterable[int] | Literal["auto"] = "auto",
    background_ring: float = 10,
    border: int = 0,
    separation: int = 2,
    w0: float = 10,
    sigma: float = 5,
    class_weights: Sequence[float] | None = None,
    value_range: tuple[float, float] | None = None,
    allow_single_class: bool = False,
    **tiling: Any,
) -> tf.data.Dataset:
    """Annotated frames as a dataset of training tiles: `read`, then `tiles.tile_dataset(samples, **tiling)`.

    Yields dictionaries of image `[B, tile, tile, C]` float32 0-255, label `[B, out, out]` int32 (-1 ignored)
    and weight `[B, out, out]` float32. Raises as both of them.
    """
    from keras_seg.data.tiles import tile_dataset  # TensorFlow is imported for tiles only, not for reading

    samples = read(
        root,
        sequence,
        frames=frames,
        truth=truth,
        partial=partial,
        background_ring=background_ring,
        border=border,
        separation=separation,
        w0=w0,
        sigma=sigma,
        class_weights=class_weights,
        value_range=value_range,
        allow_single_class=allow_single_class,
    )
    return tile_dataset(samples, **tiling)


def _annotated_frames(
    root: Path, sequence: str, truth: str, wanted: set[int] | None
) -> list[tuple[Path, Path, Path | None]]:
    """(image, masks, tracking markers or None) of each annotated frame, in order."""
    image_dir, mask_dir = root / sequence, root / f"{sequence}_{truth}" / "SEG"
    for folder in (root, image_dir, mask_dir):
        if not folder.is_dir():
            raise FileNotFoundError(
                f"{folder}: no such folder; the Cell Tracking Challenge layout is {sequence}/t000.tif and "
                f"{sequence}_{truth}/SEG/man_seg000.tif below {root}"
            )
    images, masks = _numbered(image_dir, "t"), _numbered(mask_dir, "man_seg")
    marker_dir = root / f"{sequence}_GT" / "TRA"
    markers = _numbered(marker_dir, "man_track") if marker_dir.is_dir() else {}
    if not masks:
        if any(mask_dir.glob("man_seg_*.tif")):
            raise ValueError(
                f"{mask_dir}: 3-D annotations (man_seg_000_001.tif: frame and slice); only 2-D is read"
            )
        raise ValueError(f"{mask_dir}: no annotated frames; expected files such as man_seg000.tif")
    chosen = sorted(masks if wanted is None else wanted)
    unannotated = [number for number in chosen if number not in masks]
    if unannotated or not chosen:
        raise ValueError(
            f"frames: {unannotated[:10]} have no masks in {mask_dir}; its {len(masks)} annotated frames are "
            f"{sorted(masks)[:10]}{' ...' if len(masks) > 10 else ''}"
        )
    missing = [masks[number].name for number in chosen if number not in images]
    if missing:
        raise FileNotFoundError(
            f"{image_dir}: no images for {len(missing)} of {len(chosen)} masks of {mask_dir}: "
            + ", ".join(missing[:10])
        )
    return [(images[number], masks[number], markers.get(number)) for number in chosen]


def _numbered(folder: Path, prefix: str) -> dict[int, Path]:
    """Frame number -> file, for names of 3 or 4 digits."""
    files: dict[int, Path] = {}
    for path in sorted(folder.iterdir()):
        if re.fullmatch(rf"{prefix}\d{{3,4}}\.tif", path.name):
            if _number(path) in files:
                raise ValueError(
                    f"{path} and {files[_number(path)].name}: two files for frame {_number(path)}"
                )
            files[_number(path)] = path
    return files


def _number(path: Path) -> int:
    return int(cast(re.Match, re.search(r"\d+$", path.stem)).group())


def _labels(path: Path, image: np.ndarray, image_path: Path) -> np.ndarray:
    labels = read_mask(path)
    if labels.dtype.kind not in "iu" or labels.min() < 0:
        raise ValueError(
            f"{path}: {labels.dtype} values from {labels.min():g}; labels are integers, 0 and above"
        )
    if labels.shape != image.shape[:2]:
        raise ValueError(
            f"{path} has {_size(labels)} pixels, {image_path} {_size(image)}: they must be the same"
        )
    return labels.astype(np.int32)


def _without_mask(markers: np.ndarray | None, masks: np.ndarray) -> np.ndarray:
    """Pixels `[H, W]` bool of the tracking markers that no mask covers."""
    if markers is None:
        return np.zeros(masks.shape, bool)
    sizes = np.bincount(markers.ravel())
    on_masks = np.bincount(markers.ravel(), weights=masks.ravel() > 0)
    bare = on_masks <= COVERED * sizes
    bare[0] = False
    return bare[markers]


def _surroundings(masks: np.ndarray, missing: np.ndarray, ring: float) -> np.ndarray:
    """Pixels `[H, W]` bool of a partial frame that are near a mask and not near a marker without one."""
    if not masks.any():
        return np.zeros(masks.shape, bool)
    near = ndimage.distance_transform_edt(masks == 0) <= ring
    if missing.any():
        boxes = [box for box in ndimage.find_objects(masks) if box is not None]
        largest = max(np.hypot(*(side.stop - side.start for side in box)) for box in boxes) / 2
        near &= ndimage.distance_transform_edt(~missing) > largest
    return near


def _inside(shape: tuple[int, int], border: int) -> np.ndarray:
    """Pixels `[H, W]` bool at least `border` pixels away from the image's edge."""
    inside = np.zeros(shape, bool)
    inside[border : shape[0] - border, border : shape[1] - border] = True
    return inside


def _check_classes(label: np.ndarray, path: Path, is_partial: bool, allow_single_class: bool) -> None:
    present = np.unique(label[label != UNKNOWN])
    if len(present) == 0:
        raise ValueError(
            f"{path}: partially annotated and without any mask, so nothing in it is known: leave it out"
        )
    if len(present) == 1 and not allow_single_class:
        only = CLASS_NAMES[present[0]]
        why = " (a wider background_ring may show some background)" if is_partial and only == "cell" else ""
        raise ValueError(
            f"{path}: one class only, every annotated pixel is {only}{why}. If this frame is right, pass "
            "allow_single_class=True"
        )


def _size(array: np.ndarray) -> str:
    return f"{array.shape[0]}x{array.shape[1]}"
