"""Published weights: fetched once, verified, kept in a cache that processes share."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import http.client
import os
import re
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

from keras_seg.weights.files import replacing, sha256_of

CHUNK = 1 << 20
TIMEOUT = 30  # seconds without a byte
ANOTHER_CACHE = "That is in the cache, for which KERAS_SEG_HOME names another folder"


def cache_folder() -> Path:
    """Where downloaded and converted weights lie: KERAS_SEG_HOME, else keras_seg in the user's cache folder."""
    home = os.environ.get("KERAS_SEG_HOME")
    if home:
        return Path(home).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "keras_seg"


class DownloadFailed(RuntimeError):
    """A published file could not be fetched."""


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Only one process at a time is inside, for one `path` of the cache; the others wait. Makes the folder.

    Where nothing can be written (a cache that others filled), none waits: files there take their place whole.
    """
    with ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(open(path.with_name(f".{path.name}.lock"), "w"))
        except OSError as error:
            if not (path.parent.is_dir() and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)):
                raise OSError(error.errno, f"{path.parent}: {error.strerror}. {ANOTHER_CACHE}") from error
        else:
            fcntl.flock(lock, fcntl.LOCK_EX)  # released when the file is closed, by a kill too
        yield


@contextmanager
def kept(path: Path) -> Iterator[Path]:
    """`replacing`, for a file of the cache."""
    try:
        with replacing(path) as temporary:
            yield temporary
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror}. {ANOTHER_CACHE}") from error


def fetch(
    url: str, sha256: str | None = None, *, name: str | None = None, progress: bool | None = None
) -> Path:
    """The local copy of a published file, downloaded on first use.

    The file goes to a temporary name, is verified, and only then takes its place; several processes may ask at once.

    Args:
        url: http(s) or file address.
        sha256: hexadecimal digest, or the first digits of it where only these are published (at least 6). Then, and
            for None, the whole digest is pinned at the first download, beside the file, and holds from then on.
        name: name in the cache; None: the address's last part.
        progress: draw a progress bar on stderr; None: if stderr is a terminal.

    KERAS_SEG_OFFLINE=1 forbids the network.

    Raises:
        FileNotFoundError: not in the cache and offline: names the file to put where.
        DownloadFailed: no network, an HTTP error, a connection that broke off; the same.
        OSError: the cache cannot be written.
        ValueError: a wrong digest; nothing is kept of the download, and a file that was there stays.
    """
    if sha256 is not None and not re.fullmatch("[0-9a-f]{6,64}", sha256):
        raise ValueError(f"sha256={sha256!r}: must be 6 to 64 hexadecimal digits, lower case")
    path = cache_folder() / "downloads" / (name or url.rsplit("/", 1)[-1])
    pin = _pin(path)
    help_ = f"Put the file of {url} at {path}, or use weights=None for fresh weights, or a file of your own"
    with locked(path):
        before = pinned(path) if pin.is_file() else None
        if path.is_file():
            digest = sha256_of(path)
            _verify(digest, sha256, before, f"{path}", f"delete it to download it again. {help_}")
        else:
            if os.environ.get("KERAS_SEG_OFFLINE", "") not in ("", "0"):
                raise FileNotFoundError(
                    f"{path}: not there, and KERAS_SEG_OFFLINE forbids to download. {help_}"
                )
            with kept(path) as temporary:
                digest = _download(url, temporary, help_, progress)
                _verify(digest, sha256, before, url, f"nothing was kept. {help_}")
        if before != digest:
            with kept(pin) as temporary:
                temporary.write_text(f"{digest}\n")
    return path


def pinned(path: Path) -> str:
    """The SHA-256 that the file which `fetch` returned had at its first download."""
    return _pin(path).read_text().strip()


def _pin(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _verify(digest: str, expected: str | None, pinned: str | None, what: str, advice: str) -> None:
    for wanted, source in ((expected, "the recipe"), (pinned, "the first download")):
        if wanted is not None and not digest.startswith(wanted):
            raise ValueError(
                f"{what}: damaged or exchanged: its sha256 is {digest}, that of {source} is {wanted}; {advice}"
            )


def _download(url: str, path: Path, help_: str, progress: bool | None) -> str:
    """Writes the address's content to `path` and returns its digest."""
    digest, received = hashlib.sha256(), 0
    with open(path, "wb") as target:
        try:
            source = urllib.request.urlopen(url, timeout=TIMEOUT)
            length = source.headers.get("Content-Length")
            size = int(length) if length else None
            chunks = _with_progress(source, size, url.rsplit("/", 1)[-1], progress)
            while chunk := next(chunks, b""):
                target.write(chunk)
                digest.update(chunk)
                received += len(chunk)
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
            raise DownloadFailed(f"{url}: the download failed ({error}). {help_}") from error
    if size is not None and received != size:
        raise DownloadFailed(f"{url}: the download broke off at {received} of {size} bytes. {help_}")
    return digest.hexdigest()


def _with_progress(source: BinaryIO, size: int | None, name: str, show: bool | None) -> Iterator[bytes]:
    if not (sys.stderr.isatty() if show is None else show):
        while chunk := source.read(CHUNK):
            yield chunk
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(f"downloading {name}", total=size)
        while chunk := source.read(CHUNK):
            yield chunk
            bar.advance(task, len(chunk))
