"""Findings of a reader of a layout: image files, rows of tables, and what is wrong with them."""

import math
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from skin_jax.base import csvs
from skin_jax.base.files import read_bytes
from skin_jax.data.classes import Classes
from skin_jax.data.images import SUFFIXES
from skin_jax.data.reading import Reading

LITTER = frozenset(
    {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", "@eadir", "$recycle.bin"}
    | {"system volume information", "lost+found", "license.txt", "attribution.txt"}
)
"""What systems and the archives of ISIC leave in folders, in lower case: passed over like hidden
files. Everything else that is not read is counted aloud."""

_MASK = re.compile(r"(.+)_(superpixels?|segmentation|mask)", re.IGNORECASE)


@dataclass(frozen=True)
class Columns:
    """Which columns of a table say what of an image."""

    image: str
    label: str | None = None
    one_hot: tuple[str, ...] = ()
    groups: Mapping[str, str] = field(default_factory=dict)
    """kind -> column of what no split parts: of "lesion", "patient" or others."""
    split: str | None = None
    described: Mapping[str, str] = field(default_factory=dict)
    """kind -> column of "age", "sex", "localization", "confirmation"; the table may lack them."""


@dataclass(frozen=True)
class Facts:
    """Facts about an image, from one row of a table."""

    where: str
    """File and row, for messages."""
    label: str | None = ""
    """None: the row contradicts itself, which is reported."""
    groups: Mapping[str, str] = field(default_factory=dict)
    """kind -> id, without missing ones."""
    has_groups: bool = False
    """Whether the table has columns of groups."""
    split: str = ""
    described: Mapping[str, str] = field(default_factory=dict)
    """kind -> cell, without missing ones."""


@dataclass(frozen=True)
class Image:
    """An image and what is known of it, before its class has a label."""

    image_id: str
    path: Path
    label: str | None
    split: str
    where: str
    """File and row, or folder, that says the class."""
    groups: Mapping[str, str]
    lacks_groups: bool
    """Whether its tables have columns of groups, in all of which its cells are missing."""
    described: dict[str, tuple[str, str]]
    """kind -> (cell, where it stands)."""


@dataclass
class Findings:
    """Collects what a reader finds; `listing.make` makes records of it."""

    root: Path
    reading: Reading
    target: Classes | None
    """The classes that labels are to index; None: those of the data."""
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    images: list[Image] = field(default_factory=list)
    sizes: dict[Path, int] = field(default_factory=dict)
    """Bytes of each image file."""
    tables: dict[Path, tuple[tuple[str, ...], list[csvs.Row]]] = field(default_factory=dict)
    """Header and rows of each table that was read."""
    unread: dict[Path, str] = field(default_factory=dict)
    """The kind of each file that is not read."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Images of classes that are not taken; "" stands for those without a class."""
    found_images: bool = False
    named: set[Path] = field(default_factory=set)
    """Folders that were looked into, or that a note or a problem names."""

    def name(self, path: Path) -> str:
        """The path as messages have it: below the data folder, relative to it."""
        return str(path).removeprefix(f"{self.root}{os.sep}")

    # Files

    def scan(self, folder: Path, *, deep: bool = True) -> list[Path]:
        """Image files of a folder and, if `deep`, below it, sorted; links up are not followed."""
        self.named.add(folder)
        found = []
        for path in sorted(folder.iterdir()):
            if is_litter(path.name):
                continue
            if leads_back(path):
                self.unread[path] = "links to a folder around them"
            elif path.is_dir():
                found += self.scan(path) if deep else []
            elif path.suffix.lower() not in SUFFIXES:
                self.unread[path] = kind_of(path)
            elif not path.is_file() and path.exists():
                self.unread[path] = "devices or pipes"
            else:
                # Of a dangling link, too; reading it will say so.
                self.sizes[path] = path.stat(follow_symlinks=path.exists()).st_size
                found.append(path)
        self.found_images |= bool(found)
        return found

    def leave(self, path: Path, reason: str) -> None:
        """Counts an image file that is not read, and says what it is."""
        self.unread[path] = reason
        self.sizes.pop(path, None)

    # Tables

    def table(self, path: Path) -> tuple[tuple[str, ...], list[csvs.Row]]:
        """Header and rows of a table; reports what is wrong with its text and its header."""
        if path not in self.tables:
            self.named.add(path.parent)
            problems: list[str] = []
            self.tables[path] = csvs.parse(read_bytes(path), problems, strip=True)
            self.problems += [
                f"{self.name(path)}{', ' if problem.startswith('row ') else ': '}{problem}"
                for problem in problems
            ]
        return self.tables[path]

    def rows(self, path: Path, columns: Columns) -> dict[str, Facts]:
        """The rows of a table by image id; reports missing columns, and ids that come twice.

        Ids have no image's ending, unless two would become one.
        """
        header, rows = self.table(path)
        needed = (columns.image, columns.label, *columns.one_hot, *columns.groups.values())
        missing = [name for name in (*needed, columns.split) if name and name not in header]
        if missing and header:
            self.problems.append(
                f"{self.name(path)}, row 1: missing column{'s' * (len(missing) > 1)} "
                f"{', '.join(missing)}; found {', '.join(header)}"
            )
        if missing:
            return {}
        given = {row.number: row.values[columns.image].replace("\\", "/") for row in rows}
        short = {number: without_ending(image_id) for number, image_id in given.items()}
        if len(set(short.values())) == len(set(given.values())):
            given = short
        found: dict[str, Facts] = {}
        for row in rows:
            where = f"{self.name(path)}, row {row.number}"
            image_id = given[row.number].removeprefix("./")
            if not image_id:
                self.problems.append(f"{where}, column {columns.image}: empty")
            elif image_id in found:
                first = found[image_id].where.rpartition(" ")[2]
                self.problems.append(f"{where}: duplicate id {image_id}, also in row {first}")
            else:
                found[image_id] = self._facts(where, row.values, columns)
        return found

    def _facts(self, where: str, cells: Mapping[str, str], columns: Columns) -> Facts:
        def known(named: Mapping[str, str]) -> dict[str, str]:
            found = {kind: cells.get(column, "") for kind, column in named.items()}
            return {kind: cell for kind, cell in found.items() if not csvs.is_missing(cell)}

        hot = self._hot(where, cells, columns.one_hot) if columns.one_hot else ""
        return Facts(
            where,
            label=cells[columns.label] if columns.label else hot,
            groups=known(columns.groups),
            has_groups=bool(columns.groups),
            split=cells[columns.split] if columns.split else "",
            described=known(columns.described),
        )

    def _hot(self, where: str, cells: Mapping[str, str], columns: Sequence[str]) -> str | None:
        """The column with the one 1; None where there is none, which is reported."""
        values = [_number(cells[column]) for column in columns]
        total = math.fsum(filter(math.isfinite, values))
        if odd := [c for c, v in zip(columns, values, strict=True) if not math.isfinite(v)]:
            fault = f", column {odd[0]}: {cells[odd[0]]!r} is not a number"
        elif total == 0 and (self.reading.classes or self.reading.on_missing_label == "keep"):
            return ""  # of a class in another column, or of none
        elif abs(total - 1) > 1e-6:
            fault = f": the class columns sum to {total:g}, not to 1"
        elif abs(max(values) - 1) > 1e-6 or min(values) < -1e-6:
            fault = ": the class columns are not one 1 and zeros"
        else:
            return columns[values.index(max(values))]
        self.problems.append(f"{where}{fault}")
        return None

    # Images

    def match(
        self,
        rows: Mapping[str, Facts],
        files: Sequence[Path],
        table: Path,
        *,
        complete: bool = True,
    ) -> list[tuple[str, Facts, Path]]:
        """Finds the file of each row: by its path, its name, or its name without the ending.

        Of a table that could not be read there are no rows: that one problem is enough. Files
        without a row are problems where the table is `complete`, and counted aloud elsewhere.

        Returns:
          (id, facts, file) of each row that has one file.
        """
        by_name: dict[str, list[Path]] = defaultdict(list)
        for path in files:
            name = self.name(path)
            for key in {name, without_ending(name), path.name, path.stem}:
                by_name[key].append(path)
        matched: dict[Path, tuple[str, Facts]] = {}
        alone: dict[str, Facts] = {}
        doubtful: set[Path] = set()
        for image_id, facts in rows.items():
            keys = (image_id, without_ending(image_id), PurePosixPath(image_id).name)
            found = next((by_name[key] for key in keys if key in by_name), [])
            if len(found) > 1:
                doubtful.update(found)
                first, second = (self.name(path) for path in found[:2])
                self.problems.append(f"{second}: duplicate image id {image_id}, also {first}")
            elif not found:
                alone[image_id] = facts
            elif found[0] in matched:
                other = matched[found[0]][1].where
                self.problems.append(f"{facts.where}: the same image as in {other}: {image_id}")
            else:
                matched[found[0]] = image_id, facts
        rest = [path for path in files if path not in matched and path not in doubtful]
        nearly = {_folded(path.stem): path for path in rest}
        near = {i: nearly[_folded(i)] for i in alone if _folded(i) in nearly}
        for image_id, path in list(near.items())[:1]:
            self.problems.append(
                f"{len(near)} ids in {self.name(table)} differ from the names of their files only "
                f"in upper and lower case or in the form of accents, such as {image_id} "
                f"({alone[image_id].where}) and {self.name(path)}; spell them the same"
            )
        self.problems += [
            f"{facts.where}: no image file for id {image_id}"
            for image_id, facts in alone.items()
            if image_id not in near
        ]
        for path in rest if rows else ():
            mask = _MASK.fullmatch(path.stem)
            if path in near.values():
                continue
            if mask and mask[1] in rows:
                self.leave(path, "masks of other images")
            elif complete:
                where = self.name(path)
                self.problems.append(f"{where}: no row for this image in {self.name(table)}")
            else:
                self.leave(path, f"images without a row in {self.name(table)}")
        return [(image_id, facts, path) for path, (image_id, facts) in matched.items()]

    def masks(self, folder: Path, files: Sequence[Path]) -> list[Path]:
        """Refuses files that are named like masks of others of the folder; returns the others."""
        stems = {path.stem for path in files}
        found = [p for p in files if (mask := _MASK.fullmatch(p.stem)) and mask[1] in stems]
        if found:
            self.problems.append(
                f"{self.name(folder)}: {len(found)} files are named like masks of images next "
                f"to them, such as {found[0].name}; move them out of the class folder"
            )
        return [path for path in files if path not in found]

    def add(
        self, image_id: str, path: Path, label: str | None, split: str, where: str, *told: Facts
    ) -> None:
        """Adds an image; of several rows about it the first that knows something counts."""
        groups: dict[str, str] = {}
        described: dict[str, tuple[str, str]] = {}
        for facts in reversed(told):
            groups |= facts.groups
            described |= {kind: (cell, facts.where) for kind, cell in facts.described.items()}
        lacks = not groups and any(facts.has_groups for facts in told)
        self.images.append(Image(image_id, path, label, split, where, groups, lacks, described))


def kind_of(path: Path) -> str:
    """The kind of a file of which only the name is known."""
    return f"*{path.suffix.lower()}" if path.suffix else "files without an ending"


def is_litter(name: str) -> bool:
    """Whether a file or folder is hidden, or one of `LITTER`."""
    return name.startswith(".") or name.casefold() in LITTER


def leads_back(path: Path) -> bool:
    """Whether a path is a link to a folder that it lies in."""
    return path.is_symlink() and path.parent.resolve().is_relative_to(path.resolve())


def without_ending(name: str) -> str:
    """A name of an image without the ending of an image file, if it has one."""
    stem, dot, ending = name.rpartition(".")
    return stem if f"{dot}{ending}".lower() in SUFFIXES else name


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
