"""Pieces of a self-contained HTML page that suits phones, the dark and paper: tables, images, details."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import NamedTuple

import numpy as np
from PIL import Image

from . import charts
from .pictures import rgb

STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1c1917; --muted: #57534e; --line: #d6d3d1;
  --shade: #f5f5f4; --link: #1d5fbf; }
@media screen and (prefers-color-scheme: dark) { :root { --paper: #161412; --ink: #ece9e6; --muted: #b5afa9;
  --line: #44403c; --shade: #24211f; --link: #8ab8ff; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 68rem; padding: 1.5rem 1rem 3rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { margin: 0; line-height: 1.2; } h2 { margin: 2.5rem 0 .5rem; line-height: 1.25; } h3 { margin: 1.5rem 0 .5rem; }
p { margin: .4rem 0; max-width: 48rem; } a { color: var(--link); }
.note { color: var(--muted); font-size: .9rem; font-weight: 400; }
nav { display: flex; flex-wrap: wrap; gap: .1rem 1rem; margin: 1rem 0; padding: .4rem 0;
  border-block: 1px solid var(--line); }
.scroll { overflow-x: auto; margin: .5rem 0; } .scroll:focus-visible { outline: 2px solid var(--link); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; text-align: right; vertical-align: top; border-bottom: 1px solid var(--line); }
th { font-weight: 600; } th[scope=row] { font-weight: 400; } th:first-child { padding-left: .3rem; text-align: left; }
td { white-space: nowrap; } td.text, th.text { text-align: left; white-space: normal; }
small { display: block; color: var(--muted); font-weight: 400; overflow-wrap: anywhere; min-width: 10rem; }
td:not(.text) small { min-width: 0; } tr.own > * { background: var(--shade); }
summary { cursor: pointer; padding: .2rem 0; } details { margin: .5rem 0; }
dt { font-weight: 600; margin-top: .6rem; } dd { margin: 0 0 0 1rem; max-width: 48rem; }
img { display: block; width: 100%; height: auto; } img.small { image-rendering: pixelated; }
.tiles { display: grid; gap: .8rem 1.2rem; grid-template-columns: minmax(0, 1fr); }
.tile { margin: 0; min-width: 0; break-inside: avoid; } .tile figcaption { font-size: .85rem; color: var(--muted); }
.wide .strip { max-width: calc(var(--images) * 9rem); min-width: calc(var(--images) * 4.2rem); }
.strip { display: grid; gap: 2px; grid-auto-flow: column; grid-auto-columns: minmax(0, 1fr); }
.heads { font-size: .8rem; color: var(--muted); text-align: center; align-items: end; line-height: 1.2; }
.heads:nth-of-type(n + 2) { display: none; }
@media (min-width: 40rem) { .tiles.narrow { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .narrow .heads:nth-of-type(2) { display: grid; } }
@media (min-width: 60rem) { .tiles.narrow { grid-template-columns: repeat(3, minmax(0, 1fr)); }
  .narrow .heads:nth-of-type(3) { display: grid; } }
.turned th, .turned td { padding: 1px; border: 0; color: var(--muted); font-size: .8rem; font-weight: 400;
  text-align: center; vertical-align: middle; }
.turned th[scope=row] { position: sticky; left: 0; padding-right: .6rem; background: var(--paper); }
.turned img { width: 6rem; }
@media print { body { max-width: none; padding: 0; } nav { display: none; } .scroll { overflow: visible; }
  h2, h3 { break-after: avoid; } tr { break-inside: avoid; }
  table { font-size: .7rem; } th, td { padding: .2rem .3rem; } td small, th small { min-width: 0; }
  img { print-color-adjust: exact; } }
"""
SMALL = 96  # pixels a side up to which images are enlarged pixel by pixel


class Section(NamedTuple):
    heading: str
    body: str


class Cell(NamedTuple):
    """A cell of a table: a text, and a smaller one below it; strong: what stands out in its row or column."""

    text: str
    below: str = ""
    strong: bool = False
    left: bool = False


def document(title: str, lead: Iterable[str], sections: Sequence[Section]) -> str:
    """The whole page; lead: paragraphs below the title."""
    parts = [(f"part{i}", section) for i, section in enumerate(sections, 1)]
    links = "".join(f'<a href="#{key}">{escape(section.heading)}</a>' for key, section in parts)
    bodies = "".join(
        f'<section><h2 id="{key}">{escape(section.heading)}</h2>\n{section.body}</section>\n' for key, section in parts
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title><style>{STYLE}{charts.STYLE}</style></head><body>
<header><h1>{escape(title)}</h1>{"".join(f"<p>{escape(text)}</p>" for text in lead)}</header>
<nav aria-label="parts of this page">{links}</nav>
<main>{bodies}</main></body></html>
"""


def number(value: float | None) -> str:
    """Four digits or so; a dash for what is not known."""
    if value is None or not math.isfinite(value):
        return "–"
    size = abs(value)
    if size >= 1 or value == 0:
        return f"{value:.0f}" if size >= 1000 else f"{value:.2f}" if size >= 10 or value == 0 else f"{value:.3f}"
    return f"{value:.4f}" if size >= 0.01 else f"{value:.3g}"


def paragraph(text: str, kind: str = "") -> str:
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def bullets(lines: Sequence[str]) -> str:
    return f'<ul class="note">{"".join(f"<li>{escape(line)}</li>" for line in lines)}</ul>' if lines else ""


def details(summary: str, body: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>{body}</details>"


def table(name: str, heads: Sequence[str | Cell], rows: Sequence[Row], own: Sequence[int] = ()) -> str:
    """A table that scrolls in its own box; name: what it is; own: the rows that stand out."""
    top = "".join(cell(head, "th", ' scope="col"') for head in heads)
    body = "".join(
        f"<tr{' class=own' if i in own else ''}>"
        + "".join(cell(value, *(("td", "") if j else ("th", ' scope="row"'))) for j, value in enumerate(row))
        + "</tr>"
        for i, row in enumerate(rows)
    )
    return scroll(name, f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>")


def scroll(name: str, body: str) -> str:
    """A box that scrolls sideways, by keyboard too."""
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(name)}">{body}</div>'


def cell(value: str | Cell, tag: str, attributes: str) -> str:
    known = value if isinstance(value, Cell) else Cell(value)
    text = f"<strong>{escape(known.text)}</strong>" if known.strong else escape(known.text)
    below = f"<small>{escape(known.below).replace('_', '_<wbr>')}</small>" if known.below else ""
    return f"<{tag}{attributes}{' class=text' if known.left else ''}>{text}{below}</{tag}>"


def embed(image: np.ndarray, text: str) -> str:
    """An image tag that holds its PNG; uint8 `[H, W, C]`, text: what it shows."""
    buffer = io.BytesIO()
    Image.fromarray(rgb(image[None])[0]).save(buffer, "PNG", optimize=True)
    height, width = image.shape[:2]
    data = base64.b64encode(buffer.getvalue()).decode()
    kind = ' class="small"' if max(height, width) <= SMALL else ""
    return f'<img{kind} alt="{escape(text)}" width="{width}" height="{height}" src="data:image/png;base64,{data}">'


Row = list[str | Cell]


class Tile(NamedTuple):
    """Images side by side, each named by what the page's heads say, and a caption."""

    name: str
    images: Sequence[np.ndarray]
    caption: str


def tiles(heads: Sequence[str], shown: Sequence[Tile]) -> str:
    """Tiles under the names of their images; of few images, several tiles side by side."""
    kind = "narrow" if len(heads) <= 4 else "wide"
    names = f'<div class="strip heads">{"".join(f"<span>{escape(head)}</span>" for head in heads)}</div>'
    figures = []
    for tile in shown:
        images = "".join(embed(x, f"{head} of {tile.name}") for head, x in zip(heads, tile.images, strict=True))
        caption = f"<figcaption>{escape(tile.caption)}</figcaption>"
        figures.append(f'<figure class="tile"><div class="strip">{images}</div>{caption}</figure>')
    inside = names * min(3, len(figures)) + "".join(figures)
    body = f'<div class="tiles {kind}" style="--images: {len(heads)}">{inside}</div>'
    return body if kind == "narrow" else scroll("Images side by side", body)


def definitions(texts: Mapping[str, str]) -> str:
    """Terms and what they mean."""
    return f"<dl>{''.join(f'<dt>{escape(k)}</dt><dd>{escape(v)}</dd>' for k, v in texts.items())}</dl>"
