"""Building blocks of reports: text, tables and pictures, as Markdown or one self-contained page.

A report is a list of sections of plain blocks; `markdown` and `html` render the same list.
"""

import base64
import dataclasses
import os
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from skin_jax.eval.metrics import Interval, Spread

if TYPE_CHECKING:
    from skin_jax.eval.comparison import Estimate

UNDEFINED = "n/a"
_COLUMNS = 80
_WIDE = 1100  # pixels; narrower pictures stand next to one another


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
    """A heading and what stands below it."""

    heading: str
    blocks: Sequence[Block]


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


def html(title: str, sections: Sequence[Section]) -> str:
    """Render sections as one HTML page that needs no other file and no network."""
    heading, body = escape(title), "\n".join(map(_html_section, sections))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{heading}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"<h1>{heading}</h1>\n{body}\n</main>\n</body>\n</html>\n"
    )


_STYLE = """
:root { color-scheme: light; }
body { margin: 0; background: #fff; color: #1a1a1a;
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: .5rem 0 1rem; }
h2 { font-size: 1.2rem; margin: 2rem 0 .5rem; padding-bottom: .25rem;
  border-bottom: 1px solid #ccc; }
p { max-width: 45rem; }
.scroll { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .3rem .6rem; text-align: right; border-bottom: 1px solid #e0e0e0;
  white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
table.prose th, table.prose td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
table.prose td:first-child { font-weight: 600; overflow-wrap: normal; }
thead th { border-bottom: 2px solid #555; }
@media (max-width: 40rem) { main { padding: .6rem; } table { font-size: .72rem; }
  th, td { padding: .25rem .22rem; } th, td:first-child { white-space: normal; } }
.pictures { display: flex; flex-wrap: wrap; gap: 1rem; }
figure { margin: 1rem 0; flex: 1 1 20rem; min-width: 0; max-width: 34rem; }
figure.wide { flex-basis: 100%; max-width: none; }
img { max-width: 100%; height: auto; display: block; }
figcaption { font-size: .9rem; color: #444; margin-top: .3rem; }
"""


def _html_section(section: Section) -> str:
    """Pictures come last: those that are narrow enough stand next to one another."""
    parts = [f"<section>\n<h2>{escape(section.heading)}</h2>"]
    parts += [_html_block(b) for b in section.blocks if not isinstance(b, Picture)]
    if pictures := [_html_block(b) for b in section.blocks if isinstance(b, Picture)]:
        parts += ['<div class="pictures">', *pictures, "</div>"]
    return "\n".join([*parts, "</section>"])


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
