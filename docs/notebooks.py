"""The tutorials of colab/ as pages of the site: what a notebook says, runs, prints and draws, as Markdown."""

from __future__ import annotations

import base64
import json
import os
import re
from pathlib import Path

LINK = re.compile(r"(\]\(|(?:src|href)=\")(?![a-z]+:|#|/)([^)\"\s]+)")
MAGIC = re.compile(r"^\s*[!%]", re.MULTILINE)  # what Jupyter understands and Python does not
SHOWN = 60  # lines of an output


def write(notebook: Path, folder: Path) -> Path:
    """The page, `<folder>/<name of the notebook>.md`, and its pictures beside it."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    parts = []
    for n, cell in enumerate(cells):
        text = "".join(cell["source"]).rstrip()
        if cell["cell_type"] == "markdown":
            parts.append(relocated(text, notebook.parent, folder))
        elif cell["cell_type"] == "code" and text:
            language = "text" if MAGIC.search(text) else "python"
            parts.append(f"```{language}\n{text}\n```")
            for k, output in enumerate(cell.get("outputs", [])):
                parts += shown(output, folder, f"{notebook.stem}_{n}_{k}.png")
    page = folder / f"{notebook.stem}.md"
    replace(page, ("\n\n".join(parts) + "\n").encode())
    return page


def shown(output: dict, folder: Path, picture: str) -> list[str]:
    data = output.get("data", {})
    if "image/png" in data:
        encoded = data["image/png"]
        replace(folder / picture, base64.b64decode(encoded if isinstance(encoded, str) else "".join(encoded)))
        return [f"![{picture}]({picture})"]
    lines = output.get("text") or data.get("text/plain") or []
    text = (lines if isinstance(lines, str) else "".join(lines)).rstrip()
    if not text:
        return []
    kept = text.splitlines()
    cut = [*kept[:SHOWN], f"… {len(kept) - SHOWN} lines more"] if len(kept) > SHOWN else kept
    return ["````text\n" + "\n".join(cut) + "\n````"]


def relocated(text: str, source: Path, target: Path) -> str:
    """Links that are relative to one folder, relative to another."""

    def moved(found: re.Match) -> str:
        path, mark, anchor = found[2].partition("#")
        if path.endswith(".ipynb") and "/" not in path:  # another tutorial
            return f"{found[1]}{path.removesuffix('.ipynb')}.md{mark}{anchor}"
        return found[1] + Path(os.path.relpath(source / path, target)).as_posix() + mark + anchor

    return LINK.sub(moved, text)


def replace(file: Path, content: bytes) -> None:
    """An unchanged file is left alone, so that Sphinx does not read it again."""
    if not file.exists() or file.read_bytes() != content:
        file.write_bytes(content)
