"""Which image files a person means by paths, folders and patterns, and names for what is made of them."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain, count
from pathlib import Path

__all__ = ["distinct_names", "find", "relative_names"]

# What a folder's files must end in to be taken for images.
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp")


def find(inputs: str | Path | Iterable[str | Path], *, outside: Iterable[Path] = ()) -> list[Path]:
    """The files that `inputs` name, each once: the inputs in their order, what one stands for by name.

    inputs: files (of any ending); folders, for the image files in them, not those of their folders; patterns such as
    "plate_*/*.tif", in which ** is any number of folders. Hidden files are left out unless named. outside: leave out what
    lies in these folders, where results go.

    FileNotFoundError: an input that names nothing. ValueError: no inputs at all.
    """
    found: dict[Path, Path] = {}
    inputs = [inputs] if isinstance(inputs, str | Path) else list(inputs)
    if not inputs:
        raise ValueError("segment: no images are named")
    results = {folder.resolve() for folder in outside}
    for one in inputs:
        files = [file for file in _files(one) if results.isdisjoint(file.resolve().parents)]
        if not files:
            raise FileNotFoundError(f"{one}: holds no image ({', '.join(SUFFIXES)})")
        for file in files:
            found.setdefault(file.resolve(), file)
    return list(found.values())


def distinct_names(files: Sequence[Path], taken: Iterable[str] = ()) -> list[str]:
    """A name for each file's results, no two alike even where the case of letters does not count.

    The file's name without its ending; where several have that, the folder's before it, "a/1" and "b/1", and so on
    up; with the ending where nothing else tells them apart. taken: names that are not to be had.
    """
    candidates = [_candidates(file) for file in files]
    uses = Counter(name.casefold() for names in candidates for name in names)
    occupied = {name.casefold() for name in taken}
    chosen = []
    for names in candidates:
        free = (name for name in names if uses[name.casefold()] == 1 and name.casefold() not in occupied)
        # names that differ in their case alone
        numbered = chain(names[:1], (f"{names[0]}~{n}" for n in count(2)))
        name = next(free, None) or next(n for n in numbered if n.casefold() not in occupied)
        occupied.add(name.casefold())
        chosen.append(name)
    return chosen


def relative_names(files: Sequence[Path]) -> list[str]:
    """The files' paths from the deepest folder that holds all of them, with "/" between folders."""
    paths = [file.resolve() for file in files]
    try:
        shared = Path(os.path.commonpath([path.parent for path in paths]))
    except ValueError:  # none, or on several drives
        return [path.as_posix() for path in paths]
    return [path.relative_to(shared).as_posix() for path in paths]


def _candidates(file: Path) -> list[str]:
    """From short to long: "1", "a/1", ..., "1.png", "a/1.png", ..."""
    path = file.absolute()
    folders = path.parts[1:-1]
    starts = range(len(folders), -1, -1)
    return ["/".join((*folders[start:], name)) for name in (path.stem, path.name) for start in starts]


def _files(one: str | Path) -> list[Path]:
    path = Path(one)
    if path.is_dir():
        return sorted(file for file in path.iterdir() if _is_image(file))
    if path.exists():
        return [path]
    if glob.has_magic(str(one)):
        return sorted(file for file in map(Path, glob.glob(str(one), recursive=True)) if _is_image(file))
    raise FileNotFoundError(f"{one}: no such file or folder")


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in SUFFIXES and not file.name.startswith(".") and file.is_file()
