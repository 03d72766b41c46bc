"""Building blocks of reports: text, tables and pictures, as Markdown or one self-contained page.

A report is a list of sections of plain blocks; `markdown` and `html` render the same list.
"""

import base64
import dataclasses
import os
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib import resources
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from skin_jax.eval.metrics import Interval, Spread

if TYPE_CHECKING:
    from skin_jax.eval.comparison import Estimate

UNDEFINED = "n/a"
_COLUMNS = 80
_WIDE = 1100  # pixels; narrower pictures stand next to one another
_LISTED_FROM = 4  # sections


@dataclasses.dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclasses.dataclass(frozen=True)
class Table:
    """A table: the first column to the left, the others (numbers, unless prose) to the right."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    prose: bool = False


@dataclasses.dataclass(frozen=True)
class Picture:
    """A PNG file and its caption, which is its alternative text, too."""

    path: Path
    caption: str


Block = Text | Table | Picture


@dataclasses.dataclass(frozen=True)
class Section:
    """A heading and what stands below it, folded away in a page until it is asked for, or not."""

    heading: str
    blocks: Sequence[Block]
    folded: bool = False


def by_columns(first: str, names: Iterable[str], *columns: tuple[str, Iterable[object]]) -> Table:
    """A table whose first column holds the names; header and cells of each other column."""
    rows = zip(names, *(map(str, cells) for _, cells in columns), strict=True)
    return Table((first, *(header for header, _ in columns)), list(rows))


def facts(values: Mapping[str, object], header: tuple[str, str] = ("setting", "value")) -> Table:
    """A table of what was run, say, and how."""
    return Table(header, [(key, str(value)) for key, value in values.items()], prose=True)


def markdown(title: str, sections: Sequence[Section], folder: Path) -> str:
    """Render sections as Markdown for a file in `folder`; pictures are relative links."""
    parts = [f"# {title}"]
    for section in sections:
        parts.append(f"## {section.heading}")
        for block in section.blocks:
            if isinstance(block, Picture):
                link = Path(os.path.relpath(block.path, folder)).as_posix()
                parts += [f"![{block.caption}]({link})", block.caption]
            else:
                parts.append(block_text(block))
    return "\n\n".join(parts) + "\n"


def html(title: str, sections: Sequence[Section], lead: Sequence[str] = ()) -> str:
    """Render sections as one HTML page that needs no other file and no network.

    Below the title stand the paragraphs of `lead` and, for several sections, a list of them.
    """
    page = resources.files(__package__).joinpath("page.html").read_text("utf-8")
    page = page.replace("<!--TITLE-->", escape(title))
    top = [_html_block(Text(text)) for text in lead]
    if len(sections) >= _LISTED_FROM:
        links = (f'<a href="#s{i}">{escape(s.heading)}</a>' for i, s in enumerate(sections))
        top.append(f"<nav>{' '.join(links)}</nav>")
    top += map(_html_section, count(), sections)
    return page.replace("<!--SECTIONS-->", "\n".join(top))


def _html_section(place: int, section: Section) -> str:
    """Pictures come last: those that are narrow enough stand next to one another."""
    parts = [_html_block(b) for b in section.blocks if not isinstance(b, Picture)]
    if pictures := [_html_block(b) for b in section.blocks if isinstance(b, Picture)]:
        parts += ['<div class="pictures">', *pictures, "</div>"]
    heading = f"<h2>{escape(section.heading)}</h2>"
    if section.folded:
        parts = [f"<details><summary>{heading}</summary>", *parts, "</details>"]
    else:
        parts = [heading, *parts]
    return "\n".join([f'<section id="s{place}">', *parts, "</section>"])


def _html_block(block: Block) -> str:
    if isinstance(block, Text):
        return f"<p>{escape(block.text)}</p>"
    if isinstance(block, Picture):
        content, caption = block.path.read_bytes(), escape(block.caption)
        width = int.from_bytes(content[16:20], "big")  # of every PNG
        return (
            f'<figure{" class=wide" * (width > _WIDE)}><img alt="{caption}" '
            f'src="data:image/png;base64,{base64.b64encode(content).decode()}">'
            f"<figcaption>{caption}</figcaption></figure>"
        )
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in block.header)
    rows = ("".join(f"<td>{escape(cell)}</td>" for cell in row) for row in block.rows)
    body = "".join(f"<tr>{row}</tr>\n" for row in rows)
    kind = ' class="prose"' * block.prose
    return (
        f'<div class="scroll"><table{kind}><thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}</tbody></table></div>"
    )


def block_text(block: Block) -> str:
    """Lay a block out for a terminal or Markdown, 80 columns wide."""
    if isinstance(block, Text):
        return textwrap.fill(block.text, _COLUMNS, break_on_hyphens=False)
    assert isinstance(block, Table)
    return pipes(block)


def pipes(table: Table) -> str:
    """Lay a table out with aligned pipes: readable on a terminal, a table in Markdown."""
    plain = [
        [c.replace("|", "\\|").replace("\n", " ") for c in r] for r in (table.header, *table.rows)
    ]
    columns, rules = [], []
    for i, cells in enumerate(zip(*plain, strict=True)):
        width, left = max(map(len, cells)), table.prose or i == 0
        columns.append([cell.ljust(width) if left else cell.rjust(width) for cell in cells])
        rules.append("-" * (width + 1) + ("-" if left else ":"))
    header, *rows = (f"| {' | '.join(row)} |" for row in zip(*columns, strict=True))
    return "\n".join([header, f"|{'|'.join(rules)}|", *rows])


POINTS: dict[str, Any] = {"digits": 1, "factor": 100, "sign": True}
"""Options of `number`, `span` and `spread` for fractions as percentage points, such as "+0.8"."""


def number(value: float, digits: int = 3, *, factor: float = 1, sign: bool = False) -> str:
    """Such as "0.643", or "+0.643" with its sign, never "-0.000"; "n/a" where undefined."""
    if np.isnan(value):
        return UNDEFINED
    return f"{round(float(factor * value), digits) + 0.0:{'+' if sign else ''}.{digits}f}"


def span(interval: Interval, digits: int = 3, *, factor: float = 1, sign: bool = False) -> str:
    """Such as "0.643 to 0.756", or "n/a"."""
    if np.isnan(interval[0]):
        return UNDEFINED
    return " to ".join(number(bound, digits, factor=factor, sign=sign) for bound in interval)


def spread(found: Spread, digits: int = 3, *, factor: float = 1, sign: bool = False) -> str:
    """Such as "0.643 ± 0.012", without the deviation where that is undefined."""
    text = number(found.mean, digits, factor=factor, sign=sign)
    return text if np.isnan(found.sd) else f"{text} ± {number(found.sd, digits, factor=factor)}"


def in_points(found: "Estimate") -> tuple[str, str]:
    """Such as "+0.8" and "-0.1 to +1.7", in percentage points with the 95% interval."""
    return number(found.value, **POINTS), span(found.interval, **POINTS)


def with_span(found: "Estimate") -> str:
    """Such as "+0.8 (-0.1 to +1.7)", as `in_points`."""
    return "{} ({})".format(*in_points(found))


def estimate(value: float, interval: Interval) -> str:
    """Such as "0.70 (0.64-0.76)", without an interval where that is not defined."""
    text = number(value, 2)
    if np.isnan(value) or np.isnan(interval[0]):
        return text
    return f"{text} ({'-'.join(number(bound, 2) for bound in interval)})"
