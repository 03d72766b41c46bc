"""Tables of text: one reader that collects every problem, and one writer that loses nothing."""

import csv
import io
import itertools
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from skin_jax.base.errors import UserError

_MISSING = frozenset({"", "na", "n/a", "nan", "none", "null", "unknown", "?"})
_QUOTABLE = frozenset("\t;\r\ufeff")
_QUOTED = re.compile(r'"[^"]*("|$)')


class Row(NamedTuple):
    """One row of a table: where it stands in the file, from 1, and its cells by column."""

    number: int
    values: dict[str, str]


def parse(
    content: bytes,
    problems: list[str],
    *,
    columns: Sequence[str] = (),
    strip: bool = False,
    exact: str | None = None,
) -> tuple[tuple[str, ...], list[Row]]:
    """Reads the header and the rows of a table; what is wrong is added to `problems`.

    The text is UTF-8 with or without a mark. Blank rows are passed over. Cells are separated by
    tabs where the header has any, else by commas, else by semicolons. Each fault becomes a clause
    with its row and column. Columns beside those that must be there may be; `strip` takes spaces
    around names and cells away, for tables that people made, but for the cells of one column.

    Returns:
      The header, and the rows that have as many cells as it; none where the header is at fault.
    """
    if content[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in content[:100]:
        problems.append("UTF-16 text, or not text at all; save it as CSV in UTF-8")
        return (), []
    try:
        lines = list(_lines(content.decode("utf-8-sig")))
    except UnicodeDecodeError as error:
        row = content[: error.start].count(b"\n") + 1
        problems.append(f"row {row}: not UTF-8 text ({error.reason})")
        return (), []
    except csv.Error as error:
        problems.append(f"not a CSV file ({error})")
        return (), []
    if not lines:
        problems.append("empty: it needs a header" + f" with {', '.join(columns)}" * bool(columns))
        return (), []
    header = tuple(cell.strip() if strip else cell for cell in lines[0][1])
    faults = [f"column {name}: missing" for name in columns if name not in header]
    # Spreadsheets leave columns without a name behind.
    repeated = [name for name in dict.fromkeys(header) if name and header.count(name) > 1]
    faults += [f"column {name}: given twice" for name in repeated]
    if faults:
        problems += [f"row {lines[0][0]}, {fault}" for fault in faults]
        if any(fault.endswith("missing") for fault in faults):
            problems[-1] += f" (there are {', '.join(header)})"
        return header, []
    rows = []
    for number, cells in lines[1:]:
        if len(cells) != len(header):
            problems.append(f"row {number}: {len(cells)} values, the header has {len(header)}")
            continue
        values = dict(zip(header, cells, strict=True))
        if strip:
            values |= {key: cell.strip() for key, cell in values.items() if key != exact}
        rows.append(Row(number, values))
    if len(lines) == 1:
        problems.append("no rows below the header")
    return header, rows


def text(rows: Iterable[Sequence[object]]) -> str:
    """Lays out a header and rows as a CSV from which `parse` gives back the same cells.

    UserError where it would not: a blank row, a null character, bytes that are no UTF-8.
    """
    buffer = io.StringIO()
    plain = csv.writer(buffer, lineterminator="\n")
    quoted = csv.writer(buffer, lineterminator="\n", quoting=csv.QUOTE_ALL)
    wanted: list[list[str]] = []
    for row in rows:
        cells = ["" if cell is None else str(cell) for cell in row]
        # What could be taken for the end of a row, or for the separator of a header, is quoted.
        odd = any(not _QUOTABLE.isdisjoint(cell) for cell in cells)
        (quoted if odd else plain).writerow(cells)
        wanted.append(cells)
    try:
        header, found = parse(buffer.getvalue().encode(), [])
    except UnicodeEncodeError:
        header, found = (), []
    read = [list(header), *(list(row.values.values()) for row in found)]
    for cells, again in itertools.zip_longest(wanted or [[]], read):
        if cells != again:
            raise UserError(f"a table cannot hold the row {cells}: it would not be read as it is")
    return buffer.getvalue()


def held(name: str) -> str:
    """A name of a file as a table can hold it: bytes that are no UTF-8, and nulls, are escaped."""
    return name.replace("\0", "\\0").encode(errors="backslashreplace").decode()


def is_missing(cell: str) -> bool:
    """Whether a cell of somebody's table says that nothing is known, in one of the usual ways."""
    return cell.strip().casefold() in _MISSING


def is_odd(cell: str) -> bool:
    """Whether a cell has what files and lists do not bring back: controls, or lone surrogates."""
    return not cell.isprintable() and any(
        unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in cell
    )


def _lines(content: str) -> Iterable[tuple[int, list[str]]]:
    first = _QUOTED.sub("", re.split(r"[\r\n]", content, maxsplit=1)[0])
    separator = next((mark for mark in "\t,;" if mark in first), ",")
    reader = csv.reader(io.StringIO(content, newline=""), delimiter=separator, strict=True)
    for cells in reader:
        if any(cell.strip() for cell in cells):
            yield reader.line_num, cells
