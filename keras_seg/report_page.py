"""An evaluation as a page for a browser: static files that need no network and no server.

What the page says is given as plain values (`Page`); all of it is escaped here.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image as Pictures

from keras_seg.weights.files import replacing

__all__ = ["PANEL_SIDE", "Column", "Image", "Page", "Table", "percent", "save_panel", "write_page"]

PANEL_SIDE = 1024  # pixels of a picture's longest side, at most
QUALITY = 92  # of JPEG


@dataclass(frozen=True)
class Column:
    """Of a table: its name, what it means, and whether the rows with most of it come first when it is pressed (as
    of errors), or those with least (as of what is good)."""

    name: str
    meaning: str = ""
    most_first: bool = False


@dataclass(frozen=True)
class Table:
    """rows: the first cell is text; the others are numbers as they are to be read, (value to sort by, text)."""

    title: str
    columns: Sequence[Column]
    rows: Sequence[tuple[str, Sequence[tuple[float, str]]]]


@dataclass(frozen=True)
class Image:
    """A row of the table of images. panels: (caption, file beside the page) of its pictures, if there are any."""

    name: str
    cells: Sequence[tuple[float, str]]
    panels: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class Page:
    """title; facts and figures: (name, value); tables; curves: (title, file); columns of the images, which come as
    they are to be shown first; legend: ((r, g, b), what the colour means) of the pictures."""

    title: str
    facts: Sequence[tuple[str, str]]
    figures: Sequence[tuple[str, str]]
    columns: Sequence[Column]
    images: Sequence[Image]
    tables: Sequence[Table] = ()
    curves: Sequence[tuple[str, str]] = ()
    legend: Sequence[tuple[tuple[int, int, int], str]] = field(default=())


def percent(value: float) -> tuple[float, str]:
    """A cell of a table: a share, in percent; "-" for one that does not exist (below 0)."""
    return (value, "-" if value < 0 else f"{100 * value:.1f}")


def write_page(page: Page, path: Path) -> Path:
    """Writes index.html, whole or not at all; the pictures that it names lie beside it. Returns its path."""
    with replacing(path) as temporary:
        temporary.write_text(_document(page), encoding="utf-8")
    return path


def save_panel(picture: Pictures.Image, path: Path) -> None:
    """As JPEG, small pictures enlarged without smoothing, so that single pixels stay to be seen."""
    factor = PANEL_SIDE // 2 // max(picture.size)
    if factor > 1:
        picture = picture.resize([factor * side for side in picture.size], Pictures.Resampling.NEAREST)
    picture.convert("RGB").save(path, quality=QUALITY, subsampling=0)


def _document(page: Page) -> str:
    title = html.escape(page.title)
    body = [
        f"<header><h1>{title}</h1>",
        _pairs(page.facts, "facts"),
        "</header><main>",
        _pairs(page.figures, "figures"),
        f'<section class="curves">{"".join(_curve(*curve) for curve in page.curves)}</section>',
        *(
            f"<section><h2>{html.escape(t.title)}</h2>{_table(t.columns, t.rows)}</section>"
            for t in page.tables
        ),
        _images(page),
        "</main>",
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        # nothing from a network, whatever a file's name is
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src 'self' file: data:; "
        "style-src 'unsafe-inline'; script-src 'unsafe-inline'\">"
        f"<title>{title}</title><style>{_STYLE}</style></head>\n<body>"
        + "\n".join(body)
        + f"<script>{_SCRIPT}</script></body></html>\n"
    )


def _pairs(pairs: Sequence[tuple[str, str]], kind: str) -> str:
    items = (f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd></div>" for name, value in pairs)
    return f'<dl class="{kind}">{"".join(items)}</dl>'


def _curve(title: str, file: str) -> str:
    shown = html.escape(title)
    return f'<div><h2>{shown}</h2><img src="{html.escape(file)}" alt="{shown}"></div>'


def _table(columns: Sequence[Column], rows: Sequence[tuple[str, Sequence[tuple[float, str]]]]) -> str:
    body = "".join(f"<tr><th>{html.escape(name)}</th>{_cells(cells)}</tr>" for name, cells in rows)
    return f'<div class="scroll"><table class="sortable">{_head(columns)}<tbody>{body}</tbody></table></div>'


def _head(columns: Sequence[Column]) -> str:
    cells = "".join(
        f'<th title="{html.escape(c.meaning)}" data-first="{"down" if c.most_first else "up"}">'
        f'<button type="button">{html.escape(c.name)}</button></th>'
        for c in columns
    )
    return f"<thead><tr>{cells}</tr></thead>"


def _cells(cells: Sequence[tuple[float, str]]) -> str:
    return "".join(f'<td data-value="{value:g}">{html.escape(text)}</td>' for value, text in cells)


def _images(page: Page) -> str:
    rows, cards = [], []
    for number, image in enumerate(page.images, start=1):
        name = html.escape(image.name)
        shown = f'<a href="#image-{number}">{name}</a>' if image.panels else name
        rows.append(f'<tr data-image="{number}"><th>{shown}</th>{_cells(image.cells)}</tr>')
        if image.panels:
            cards.append(_card(number, image, page.columns[1:]))
    keys = "".join(
        f'<li><span class="swatch" style="background:rgb{colour}"></span>{html.escape(meaning)}</li>'
        for colour, meaning in page.legend
    )
    without = len(page.images) - len(cards)
    note = f"<p>Pictures of the first {len(cards)} of {len(page.images)} images.</p>" if without else ""
    return (
        "<section><h2>Images</h2>"
        '<p><label>Names with <input type="search" id="filter" placeholder="part of a name"></label> '
        '<span id="count"></span></p>'
        f'<div class="scroll long"><table class="sortable" id="images">{_head(page.columns)}'
        f"<tbody>{''.join(rows)}</tbody></table></div>{note}"
        f'<ul class="legend">{keys}</ul><div id="cards">{"".join(cards)}</div></section>'
    )


def _card(number: int, image: Image, columns: Sequence[Column]) -> str:
    figures = ", ".join(
        f"{html.escape(column.name)} {html.escape(text)}"
        for column, (_, text) in zip(columns, image.cells, strict=True)
    )
    panels = "".join(
        f'<figure><a href="{html.escape(file)}"><img loading="lazy" src="{html.escape(file)}" '
        f'alt="{html.escape(f"{image.name}: {caption}")}"></a>'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        for caption, file in image.panels
    )
    return (
        f'<article class="card" id="image-{number}" data-image="{number}"><h3>{html.escape(image.name)}</h3>'
        f'<p>{figures}</p><div class="panels">{panels}</div></article>'
    )


_STYLE = """
:root { color-scheme: light dark; --ground: #fff; --ink: #1b1f24; --pale: #5b6570; --line: #d5dbe1; --card: #f6f8fa;
  --link: #0b57d0 }
@media (prefers-color-scheme: dark) { :root { --ground: #14171a; --ink: #e6e9ec; --pale: #9aa5b0; --line: #333a42;
  --card: #1c2025; --link: #8ab4f8 } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 76rem; padding: 1rem; background: var(--ground); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere }
h1 { font-size: 1.5rem; margin: .5rem 0 } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem } h3 { font-size: 1rem; margin: 0 }
a { color: var(--link) }
dl { display: flex; flex-wrap: wrap; gap: .25rem 1.5rem; margin: .5rem 0 }
dt { color: var(--pale); font-size: .8rem } dd { margin: 0 }
.facts dd { font-size: .9rem }
.figures { gap: .5rem; margin: 1rem 0 }
.figures div { background: var(--card); border: 1px solid var(--line); border-radius: .4rem; padding: .4rem .8rem }
.figures dd { font-size: 1.4rem; font-variant-numeric: tabular-nums }
.scroll { overflow: auto; border: 1px solid var(--line); border-radius: .4rem } .long { max-height: 28rem }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums }
th, td { padding: .3rem .6rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap }
th:first-child { text-align: left; font-weight: normal; white-space: normal; min-width: 9rem }
thead th { position: sticky; top: 0; background: var(--card); z-index: 1 }
thead button { all: unset; cursor: pointer; font-weight: 600 }
thead button:focus-visible { outline: 2px solid var(--link) }
th[aria-sort=ascending] button::after { content: " \\25B2" } th[aria-sort=descending] button::after { content: " \\25BC" }
.curves { display: flex; flex-wrap: wrap; gap: 0 1.5rem } .curves img { max-width: 100%; background: #fff; border-radius: .4rem }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; padding: 0; font-size: .9rem }
.swatch { display: inline-block; width: .9em; height: .9em; margin-right: .4em; border-radius: .2em; vertical-align: -.1em }
.card { background: var(--card); border: 1px solid var(--line); border-radius: .4rem; padding: .8rem; margin: 1rem 0;
  scroll-margin-top: .5rem }
.card p { margin: .1rem 0 .6rem; color: var(--pale); font-size: .85rem }
.panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 15rem), 1fr)); gap: .6rem }
figure { margin: 0 } figure img { width: 100%; height: auto; display: block; border-radius: .25rem }
figcaption { font-size: .8rem; color: var(--pale) }
input { font: inherit; padding: .2rem .5rem; border: 1px solid var(--line); border-radius: .3rem; background: var(--ground);
  color: var(--ink); max-width: 100% }
[hidden] { display: none !important }
"""

# Sorts a table by the column whose head is pressed, the cards of the images like their table; the filter hides both.
_SCRIPT = """
"use strict";
const cards = document.getElementById("cards");
function key(row, column) {
  const cell = row.cells[column];
  return column === 0 ? cell.textContent : Number(cell.dataset.value);
}
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const before = head.getAttribute("aria-sort");
    const up = before ? before === "descending" : column === 0 || head.dataset.first === "up";
    heads.forEach(one => one.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const rows = [...table.tBodies[0].rows].map((row, place) => ({row, place, key: key(row, column)}));
    rows.sort((a, b) => {
      const order = column === 0 ? a.key.localeCompare(b.key, undefined, {numeric: true}) : a.key - b.key;
      return (up ? order : -order) || a.place - b.place;
    });
    table.tBodies[0].append(...rows.map(one => one.row));
    if (table.id === "images") {
      const of = new Map([...cards.children].map(card => [card.dataset.image, card]));
      cards.append(...rows.map(one => of.get(one.row.dataset.image)).filter(Boolean));
    }
  }));
}
document.getElementById("filter").addEventListener("input", event => {
  const wanted = event.target.value.toLowerCase();
  let shown = 0;
  for (const row of document.getElementById("images").tBodies[0].rows) {
    row.hidden = !row.cells[0].textContent.toLowerCase().includes(wanted);
    shown += !row.hidden;
    const card = document.getElementById("image-" + row.dataset.image);
    if (card) card.hidden = row.hidden;
  }
  document.getElementById("count").textContent = wanted ? shown + " shown" : "";
});
"""
