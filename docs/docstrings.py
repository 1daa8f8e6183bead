"""Docstrings, which are written as plain text and Markdown, as reStructuredText for Sphinx."""

from __future__ import annotations

import itertools
import re

CODE = re.compile(r"(``[^`]+``|`[^`\n]+(?:\n[^`\n]+)?`)")
# What reStructuredText would take for emphasis, a substitution or a link.
MARKUP = re.compile(r"\*+|\||(?<=\w)_(?![\w`])")
SECTION = re.compile(r"\s*(Args|Arguments|Attributes|Returns|Raises|Yields):$")


def to_rst(lines: list[str]) -> list[str]:
    """The lines of one docstring."""
    return literal_blocks(hanging_lists(inline("\n".join(lines)).split("\n")))


def inline(text: str) -> str:
    """Code between single backticks becomes a literal, and the rest loses what has a meaning to reStructuredText."""
    parts = CODE.split(text)
    for n, part in enumerate(parts):
        if n % 2 == 0:
            parts[n] = MARKUP.sub(lambda found: "".join("\\" + sign for sign in found[0]), part)
            continue
        code = " ".join(part.strip("`").split())
        lines = part.count("\n")
        before = "\\ " if parts[n - 1][-1:].isalnum() else ""
        after = "\\ " if parts[n + 1][:1].isalnum() else ""
        # a name over the end of a line keeps the number of lines
        parts[n] = f"{before}``{code}``{after}" + "\n" * lines
    return "".join(parts)


def hanging_lists(lines: list[str]) -> list[str]:
    """A paragraph of "name: text" whose next lines hang becomes a list. Sections such as Args are napoleon's."""
    result: list[str] = []
    for is_blank, group in itertools.groupby(lines, key=lambda line: not line.strip()):
        paragraph = list(group)
        depth = indent(paragraph[0])
        hangs = not is_blank and any(indent(line) > depth for line in paragraph)
        if (
            not hangs
            or SECTION.match(paragraph[0])
            or in_section(result, depth)
            or "- " in paragraph[0][: depth + 2]
        ):
            result += paragraph
            continue
        # the first lines may be ordinary text
        first = next(n for n, line in enumerate(paragraph) if indent(line) > depth) - 1
        result += paragraph[:first] + [""] * bool(first)
        for line in paragraph[first:]:
            result.append(" " * depth + ("- " if indent(line) == depth else "  ") + line.strip())
    return result


def in_section(before: list[str], depth: int) -> bool:
    """Whether a paragraph that is indented so continues a section."""
    for line in reversed(before):
        if line.strip() and indent(line) < depth:
            return bool(SECTION.match(line))
    return False


def literal_blocks(lines: list[str]) -> list[str]:
    """An indented block after an empty line, which Markdown shows as it is, becomes a literal block."""
    result, n = [], 0
    while n < len(lines):
        result.append(lines[n])
        depth = indent(lines[n])
        follows = (
            n + 2 < len(lines) and lines[n].strip() and not lines[n + 1].strip() and lines[n + 2].strip()
        )
        listed = lines[n].lstrip().startswith(("- ", "* "))
        if follows and not listed and not SECTION.match(lines[n]) and indent(lines[n + 2]) >= depth + 4:
            result += ["", " " * depth + "::", ""]
            n += 2
            while n < len(lines) and (not lines[n].strip() or indent(lines[n]) > depth):
                result.append(plain(lines[n]))
                n += 1
            result.append("")
            continue
        n += 1
    return result


def plain(line: str) -> str:
    """Takes back what `inline` did to a line that is shown as it is."""
    return re.sub(r"\\(?=[*|_ ])", "", line).replace("``", "`")


def indent(line: str) -> int:
    return len(line) - len(line.lstrip())
