"""A large JSON object read piece by piece: the elements of its lists one at a time, never the whole file."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

__all__ = ["sections"]

CHUNK = 2**20  # bytes read at once
# An element that ends beyond the text read so far is read again with more. An error that lies this many characters
# before the end of the text is a real one (no element but run lengths is nearly so long).
LONGEST_ELEMENT = 2**25
GOES_ON = ("", *"0123456789.eE+-")
SPACE = re.compile(r"[ \t\n\r]*")


def sections(
    path: str | Path, on_bytes: Callable[[int], None] | None = None
) -> Iterator[tuple[str, int | None, Any]]:
    """Walk through the JSON object in a file, in its order.

    Yields (key, None, value) of each entry, except that for a list there is first (key, -1, None), and then
    (key, i, element) for each element. on_bytes is told how many bytes were read, for progress.

    Raises FileNotFoundError, or ValueError naming file, line and column: no JSON, no object, a key given twice.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise ValueError(f"{path}: the file is empty (0 bytes)")
    with path.open("rb") as file:
        text = _Text(path, file, on_bytes)
        if (first := text.next_character()) != "{":
            what = "a list, as of results" if first == "[" else f"text that begins with {first!r}"
            text.fail(f"{what}; annotations are a JSON object with images, annotations and categories")
        text.position += 1
        seen: set[str] = set()
        for key in _keys(text):
            if key in seen:
                text.fail(f"the key {key!r} is there twice")
            seen.add(key)
            if text.next_character() == "[":
                yield key, -1, None
                text.position += 1
                for index, element in enumerate(_elements(text)):
                    yield key, index, element
            else:
                yield key, None, text.value()
        if rest := text.next_character():
            text.fail(f"{rest!r} after the end of the object")


def _keys(text: _Text) -> Iterator[str]:
    if text.next_character() == "}":
        text.position += 1
        return
    while True:
        key = text.value()
        if not isinstance(key, str):
            text.fail(f"{key!r} where a key in quotes is expected")
        text.expect(":")
        yield key
        if text.expect(",}") == "}":
            return


def _elements(text: _Text) -> Iterator[Any]:
    if text.next_character() == "]":
        text.position += 1
        return
    while True:
        yield text.value()
        if text.expect(",]") == "]":
            return


class _Text:
    """A file's text from `position` on, as far as it was read."""

    def __init__(self, path: Path, file: Any, on_bytes: Callable[[int], None] | None) -> None:
        self.path, self.file, self.on_bytes = path, file, on_bytes
        self.decode_bytes = codecs.getincrementaldecoder("utf-8-sig")().decode
        self.decode_json = json.JSONDecoder().raw_decode
        self.text, self.position, self.ended = "", 0, False
        self.line, self.column = 1, 1  # of the text's first character

    def read_more(self) -> bool:
        """Whether there was more."""
        if self.ended:
            return False
        gone = self.text[: self.position]
        if newlines := gone.count("\n"):
            self.line, self.column = self.line + newlines, len(gone) - gone.rfind("\n")
        else:
            self.column += len(gone)
        data = self.file.read(CHUNK)
        self.ended = not data
        try:
            more = self.decode_bytes(data, final=self.ended)
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.path}: not JSON, which is UTF-8 text ({error})") from error
        self.text, self.position = self.text[self.position :] + more, 0
        if self.on_bytes:
            self.on_bytes(len(data))
        return not self.ended

    def next_character(self) -> str:
        """The next one that is no blank, not consumed; "" at the end."""
        while True:
            self.position = cast(re.Match, SPACE.match(self.text, self.position)).end()
            if self.position < len(self.text) or not self.read_more():
                return self.text[self.position : self.position + 1]

    def expect(self, characters: str) -> str:
        found = self.next_character()
        if not found or found not in characters:
            wanted = " or ".join(repr(c) for c in characters)
            self.fail(f"{'the end of the file' if not found else repr(found)} where {wanted} is expected")
        self.position += 1
        return found

    def value(self) -> Any:
        """The next JSON value, consumed."""
        self.next_character()
        while True:
            problem = None
            try:
                value, end = self.decode_json(self.text, self.position)
            except json.JSONDecodeError as error:
                problem, end = error.msg, error.pos
            except RecursionError:
                self.fail("brackets nested too deeply for annotations")
            if problem and (self.ended or len(self.text) - end > LONGEST_ELEMENT):
                self.position = end
                self.fail(problem)
            # a number at the end of the text may go on in the next chunk
            if problem is None and (self.ended or self.text[end : end + 1] not in GOES_ON):
                self.position = end
                return value
            self.read_more()

    def fail(self, what: str) -> None:
        gone = self.text[: self.position]
        line = self.line + gone.count("\n")
        column = len(gone) - gone.rfind("\n") if "\n" in gone else self.column + len(gone)
        cut = " (is the file cut off?)" if self.ended and self.position >= len(self.text.rstrip()) else ""
        raise ValueError(f"{self.path}: line {line}, column {column}: {what}{cut}")
