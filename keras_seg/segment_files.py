"""Many image files in, results in a folder out: what `keras-seg segment` does with a folder as output.

A batch that was stopped goes on where it was: `JOURNAL` has the model, the options and a line for each image done.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from keras_seg import image_files, result_files
from keras_seg.data.progress import track
from keras_seg.findings import Detected, Segmented
from keras_seg.rois import require_roifile

if TYPE_CHECKING:
    from keras_seg.instances import Instances
    from keras_seg.models import MaskRCNN, UNet

__all__ = ["Batch", "Done", "look", "segment_files"]

JOURNAL = "segment.jsonl"


@dataclass(frozen=True)
class Done:
    """An image that is segmented: its file, the name of its results, how many slices and objects it has, and the
    kinds of result that are there. size and modified (ns) tell whether the file is still the one that was
    segmented."""

    file: str
    name: str
    slices: int
    objects: int
    kinds: list[str]
    size: int
    modified: int

    def holds(self, folder: Path, kinds: Sequence[str]) -> bool:
        """Whether these kinds of result are there, of the file as it is now."""
        return (
            set(kinds) <= set(self.kinds)
            and (self.size, self.modified) == _stamp(Path(self.file))
            and all(
                f.is_file() for k in kinds for f in result_files.written(folder, k, self.name, self.slices)
            )
        )


@dataclass
class Batch:
    """What `segment_files` did.

    output: the folder. kinds: of `result_files.KINDS`. images: those that are done, also by an earlier run, in the
    order of the inputs. resumed: how many an earlier run did. failed: {file: why}.
    """

    output: Path
    kinds: tuple[str, ...]
    images: list[Done] = field(default_factory=list)
    resumed: int = 0
    failed: dict[Path, str] = field(default_factory=dict)

    @property
    def objects(self) -> int:
        return sum(image.objects for image in self.images)

    def files(self, image: Done) -> dict[str, list[Path]]:
        """The files of an image's results, by their kind."""
        return {k: result_files.written(self.output, k, image.name, image.slices) for k in self.kinds}

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        images = [
            {key: value for key, value in asdict(image).items() if key in ("file", "slices", "objects")}
            | {"results": {kind: [str(file) for file in files] for kind, files in self.files(image).items()}}
            for image in self.images
        ]
        failed = [{"file": str(file), "error": why} for file, why in self.failed.items()]
        return {"output": str(self.output), "images": images, "resumed": self.resumed, "failed": failed}


def segment_files(
    model: UNet | MaskRCNN,
    inputs: str | Path | Iterable[str | Path],
    output: str | Path,
    *,
    save: Iterable[str] | None = None,
    score_threshold: float = 0.5,
    max_detections: int = 100,
    class_index: int = 1,
    pixel_threshold: float = 0.5,
    tile: int | None = None,
    rotations: int | None = None,
    value_range: tuple[float, float] | None = None,
    precision: str = "float32",
    overwrite: bool = False,
) -> Batch:
    """Segment image files and TIFF stacks, and keep the results in a folder: output/labels/NAME.tif and so on.

    An image is done when all its files are complete; a later call with the same model and options leaves out what
    is done already, unless its file has changed. An image that cannot be read or segmented does not stop the others.

    Args:
        model: a U-Net or a detector. What is counted as a U-Net's objects says `findings.Segmented`.
        inputs: files, folders and patterns, see `image_files.find`. A stack is segmented slice by slice.
        output: the folder, made if missing. NAME is as of `image_files.distinct_names`.
        save: of `result_files.KINDS`; None: "overlay", "labels" and for detectors "coco". With "coco" there are
            coco_results.json and coco_images.json of all images as well (`result_files.join_coco`).
        score_threshold, max_detections: of detectors, see `detect.detect`.
        class_index, pixel_threshold, tile, rotations: of U-Nets: which class has objects, the least probability of
            their pixels, and as of `segment.segment_unet`.
        value_range: the values that become 0 and 255, see `data.images.to_float`.
        precision: as of `segment`.
        overwrite: do all anew, also where the folder holds the results of another model or other options.

    Raises, before the first image is read:
        FileNotFoundError: an input that names nothing.
        FileExistsError: the folder holds results of another model, other weights or options.
        ModuleNotFoundError: a package that a kind of result needs.
        ValueError: an unknown kind, or one that the model has not; a class that is not there.
    and OSError where a result cannot be written.
    """
    folder = Path(output)
    kinds = _kinds(model, save)
    options: dict[str, Any] = {"value_range": value_range, "precision": precision}
    if hasattr(model, "short_side"):
        options |= {"score_threshold": score_threshold, "max_detections": max_detections}
    else:
        _check_class(model, class_index)
        options |= {"class_index": class_index, "pixel_threshold": pixel_threshold}
        options |= {"tile": tile, "rotations": rotations}
    files = image_files.find(inputs, outside=[folder / kind for kind in result_files.KINDS])
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder}: a file, and the results of several images need a folder")
    folder.mkdir(parents=True, exist_ok=True)
    journal = _Journal(folder, {"model": _identity(model), "options": options}, overwrite)
    names = journal.names(files)
    batch = Batch(folder, kinds)
    done = {f: one for f in files if (one := journal.done.get(_key(f))) and one.holds(folder, kinds)}
    batch.resumed = len(done)
    todo = [file for file in files if file not in done]
    for file in track(todo, "segmenting") if len(todo) > 1 else todo:
        # one file alone shows the progress of its tiles
        progress = None if len(todo) == 1 else False
        stamp = _stamp(file)
        try:
            found = look(model, file, progress=progress, **options)
        except (ValueError, OSError, MemoryError) as error:
            batch.failed[file] = _reason(file, error)
            continue
        try:
            for kind in kinds:
                result_files.write(folder, kind, names[file], found, file.name)
        except ValueError as error:  # a full disk is an OSError, and stops all
            batch.failed[file] = _reason(file, error)
            continue
        done[file] = Done(_key(file), names[file], len(found), sum(map(len, found)), list(kinds), *stamp)
        journal.add(done[file])
    batch.images = [done[file] for file in files if file in done]
    if "coco" in kinds:
        parts = [path for image in batch.images for path in batch.files(image)["coco"]]
        sources = image_files.relative_names([Path(image.file) for image in batch.images])
        result_files.join_coco(parts, sources, _categories(model, class_index), folder)
    return batch


class _Journal:
    """The file that says what is done in a folder. After a sudden end its last line may be half a one."""

    def __init__(self, folder: Path, settings: dict[str, Any], overwrite: bool) -> None:
        self.path = folder / JOURNAL
        settings = json.loads(json.dumps(settings))  # as they are read again
        self.done: dict[str, Done] = {}
        lines = self.path.read_text().split("\n")[:-1] if self.path.is_file() and not overwrite else []
        if lines:
            try:
                before, *entries = map(json.loads, lines)
                self.done = {one["file"]: Done(**one) for one in entries}
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(
                    f"{self.path}: damaged ({error}); with overwrite (--overwrite) all is done anew"
                ) from error
            _check_same(folder, before, settings)
        # rewritten, since what follows half a line would be lost with it
        text = "".join(json.dumps(one) + "\n" for one in (settings, *map(asdict, self.done.values())))
        with result_files.replacing(self.path) as temporary:
            temporary.write_text(text)

    def names(self, files: Sequence[Path]) -> dict[Path, str]:
        """A name for each file: the one that it had, or a new one."""
        keys = {_key(file) for file in files}
        # made for all, so that a batch that goes on has the names of one that was never stopped
        made = image_files.distinct_names(
            files, [one.name for key, one in self.done.items() if key not in keys]
        )
        known = {file: self.done[_key(file)].name for file in files if _key(file) in self.done}
        return dict(zip(files, made, strict=True)) | known

    def add(self, one: Done) -> None:
        self.done[one.file] = one
        with self.path.open("a") as file:
            file.write(json.dumps(asdict(one)) + "\n")


def _check_same(folder: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    changed = [
        f"{key.replace('_', ' ')} {before.get(part, {}).get(key)!r}, now {value!r}"
        for part in ("model", "options")
        for key, value in now[part].items()
        if before.get(part, {}).get(key) != value
    ]
    if changed:
        raise FileExistsError(
            f"{folder}: holds results of other settings ({'; '.join(changed)}): give another folder, or "
            "overwrite (--overwrite) to do all anew"
        )


def _kinds(model: Any, save: Iterable[str] | None) -> tuple[str, ...]:
    possible = result_files.kinds_of(model)
    if save is None:
        usual = ("overlay", "labels", "coco") if hasattr(model, "short_side") else ("overlay", "labels")
        return tuple(kind for kind in usual if kind in possible)
    wanted = tuple(dict.fromkeys(save))
    if unknown := [kind for kind in wanted if kind not in result_files.KINDS]:
        raise ValueError(f"save: {unknown[0]!r} is none of {', '.join(result_files.KINDS)}")
    if missing := [kind for kind in wanted if kind not in possible]:
        raise ValueError(f"save: {model.name} gives no {missing[0]}; it gives {', '.join(possible)}")
    if not wanted:
        raise ValueError(f"save: names nothing; there are {', '.join(possible)}")
    if "rois" in wanted:
        require_roifile()
    return wanted


def look(
    model: UNet | MaskRCNN, file: str | Path, *, progress: bool | None = None, **options: Any
) -> Sequence[Detected | Segmented]:
    """What a model finds in an image file, or in each slice of a TIFF stack; options and errors as of
    `segment_files` and of `segment`. progress: as of `segment.segment_unet`."""
    if hasattr(model, "short_side"):
        return _detected(model, Path(file), **options)
    return _segmented(model, Path(file), progress=progress, **options)


def _detected(
    model: MaskRCNN, file: Path, *, value_range: tuple[float, float] | None = None, **options: Any
) -> list[Detected]:
    from keras_seg.data.images import read_image, read_stack
    from keras_seg.detect import detect, pixels_of

    try:
        slices = [read_image(file)]
    except ValueError:  # of several pages, or the same error again
        slices = list(read_stack(file))
    pixels = [pixels_of(one, str(file), value_range) for one in slices]
    # of one image it gives one
    return [Detected(one, cast("Instances", detect(model, one, **options))) for one in pixels]


def _segmented(
    model: UNet,
    file: Path,
    *,
    class_index: int = 1,
    pixel_threshold: float = 0.5,
    value_range: tuple[float, float] | None = None,
    **options: Any,
) -> list[Segmented]:
    from keras_seg.segment import as_stack, segment_unet

    _check_class(model, class_index)
    stack, _, _ = as_stack(file, model.input_channels)
    probabilities = segment_unet(model, stack, value_range=value_range, **options)[..., class_index]
    shown = scaled(stack, value_range, str(file))
    chosen = class_index, model.class_names, pixel_threshold
    return [Segmented.of(one, seen, *chosen) for one, seen in zip(shown, probabilities, strict=True)]


def _check_class(model: UNet, class_index: int) -> None:
    if not 0 <= class_index < model.classes:
        raise ValueError(f"class {class_index}: {model.name} has the classes 0 to {model.classes - 1}")


def scaled(image: np.ndarray, value_range: tuple[float, float] | None, name: str) -> np.ndarray:
    """The image, with a value_range as uint8 0-255 (`data.images.to_float`)."""
    from keras_seg.data.images import to_float

    if value_range is None:
        return image
    return np.rint(to_float(image, value_range, name, may_be_constant=True)).astype(np.uint8)


def _categories(model: Any, class_index: int) -> list[dict[str, Any]]:
    """COCO's, as the results number them."""
    names = model.class_names or [f"class {k}" for k in range(model.classes)]
    if hasattr(model, "short_side"):
        return [{"id": k, "name": name} for k, name in enumerate(names, start=1)]
    return [{"id": class_index + 1, "name": names[class_index]}]


def _identity(model: Any) -> dict[str, str]:
    """What tells whether a model is the same: its name, and digests of its structure and of its weights."""
    structure = json.dumps(model.get_config(), sort_keys=True, default=str).encode()
    weights = hashlib.blake2b(digest_size=16)
    for array in model.get_weights():
        weights.update(array.tobytes())
    return {
        "model": model.name,
        "structure": hashlib.blake2b(structure, digest_size=16).hexdigest(),
        "weights": weights.hexdigest(),
    }


def _key(file: Path) -> str:
    return str(file.resolve())


def _stamp(file: Path) -> tuple[int, int]:
    """Bytes, and when it was modified (ns); zeros for a file that is not there."""
    try:
        status = file.stat()
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns


def _reason(file: Path, error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text.removeprefix(f"{file}: ")
