"""Pages of reports: one HTML file each, with its figures inside and no links to anywhere."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kanpinn.io.run_folder import write_atomically

MOST_ROWS = 200  # of a table on a page
LARGEST_PAGE = 2_000_000  # bytes; what its words leave of them is for pictures
DENSITY = 1.35  # pixels of a picture for one of the page
CSS = """
:root { color-scheme: light }
body { font: 15px/1.45 system-ui, sans-serif; color: #1b1b1b; background: #fff;
  max-width: 76rem; margin: 1.5rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem }
.scroll { overflow-x: auto; max-width: 100% }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums }
th, td { border-bottom: 1px solid #ddd; padding: .2rem .6rem; text-align: right;
  white-space: nowrap }
th { border-bottom: 2px solid #777 } td.text, th.text { text-align: left }
tr.marked { background: #fdf3e0 }
figure { margin: 1rem 0 } img { display: block; height: auto; max-width: max(100%, 36rem) }
figcaption { font-size: .85rem; color: #555 }
pre { overflow-x: auto; background: #f6f6f6; padding: .75rem; font-size: .8rem }
"""

Row = Mapping[str, str]


@dataclass(frozen=True)
class Picture:
    """A figure as PNG, and what it shows in words."""

    png: bytes
    alt: str


@dataclass(frozen=True)
class Section:
    """A part of a page; what is empty is left out.

    Attributes:
        title: its heading.
        text: sentences, a paragraph each.
        pictures: figures.
        rows: a table, by column.
        marked: numbers of the rows that stand out.
        verbatim: text in a fixed-width font.
    """

    title: str
    text: Sequence[str] = ()
    pictures: Sequence[Picture] = ()
    rows: Sequence[Row] = ()
    marked: frozenset[int] = frozenset()
    verbatim: str = ""

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing but a heading."""
        return not (self.text or self.pictures or self.rows or self.verbatim)


def write_page(path: Path, title: str, sections: Iterable[Section]) -> None:
    """Write a page; pictures that would make it larger than :data:`LARGEST_PAGE` are only named.

    Raises:
        OSError: if it cannot be written.
    """
    filled = [section for section in sections if not section.is_empty]
    words = sum(len(_section(replace(section, pictures=()), 0)) for section in filled)
    left = (LARGEST_PAGE - words) * 3 // 4  # as text a picture takes a third more
    parts = []
    for section in filled:
        parts.append(_section(section, left))
        left -= sum(len(picture.png) for picture in _fitting(section.pictures, left))
    name = html.escape(title)
    write_atomically(
        path,
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{name}</title><style>{CSS}</style></head>\n"
        f"<body><main><h1>{name}</h1>\n{''.join(parts)}</main></body></html>\n",
    )


def _section(section: Section, left: int) -> str:
    parts = [f"<h2>{html.escape(section.title)}</h2>\n"]
    parts += [f"<p>{html.escape(text)}</p>\n" for text in section.text]
    fitting = _fitting(section.pictures, left)
    parts += [_picture(picture) for picture in fitting]
    rest = [picture.alt for picture in section.pictures if picture not in fitting]
    if rest:
        left_out = html.escape("; ".join(rest))
        parts.append(f"<p>Left out, for the size of this page: {left_out}</p>\n")
    if section.rows:
        parts.append(_table(section.rows, section.marked))
    if section.verbatim:
        parts.append(f"<pre tabindex='0'>{html.escape(section.verbatim)}</pre>\n")
    return f"<section>{''.join(parts)}</section>\n"


def _fitting(pictures: Sequence[Picture], left: int) -> list[Picture]:
    found = []
    for picture in pictures:
        if len(picture.png) <= left:
            found.append(picture)
            left -= len(picture.png)
    return found


def _picture(picture: Picture) -> str:
    width = int.from_bytes(picture.png[16:20], "big")  # its header says so
    data, alt = base64.b64encode(picture.png).decode(), html.escape(picture.alt, quote=True)
    return (
        "<figure><div class='scroll' tabindex='0'>"
        f"<img alt='{alt}' width='{width / DENSITY:.0f}' src='data:image/png;base64,{data}'></div>"
        f"<figcaption>{alt}</figcaption></figure>\n"
    )


def _table(rows: Sequence[Row], marked: frozenset[int]) -> str:
    """A table that scrolls within itself where it is too wide."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    shown = rows[:MOST_ROWS]
    words = {n for n in names if not _is_numeric(row.get(n, "") for row in shown)}
    kinds = {n: " class='text'" if n in words else "" for n in names}
    head = "".join(f"<th scope='col'{kinds[n]}>{html.escape(n)}</th>" for n in names)
    body = ""
    for number, row in enumerate(shown):
        cells = (f"<td{kinds[n]}>{html.escape(row.get(n, ''))}</td>" for n in names)
        stands_out = " class='marked'" if number in marked else ""
        body += f"<tr{stands_out}>{''.join(cells)}</tr>\n"
    more = len(rows) - len(shown)
    rest = f"<p>{more} further rows are in the CSV file.</p>\n" if more else ""
    return (
        f"<div class='scroll' tabindex='0'><table><thead><tr>{head}</tr></thead>\n"
        f"<tbody>{body}</tbody></table></div>\n{rest}"
    )


def _is_numeric(cells: Iterable[str]) -> bool:
    return all(not cell or cell[0] in "-+.0123456789" for cell in cells)
