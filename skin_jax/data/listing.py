"""What a reader of a layout gathers: image files, rows of tables, and everything that is wrong."""

import hashlib
import math
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from skin_jax.base import csvs
from skin_jax.data import classes as classes_lib
from skin_jax.data import images
from skin_jax.data.classes import Classes
from skin_jax.data.examples import Record, components
from skin_jax.data.reading import Reading

LITTER = frozenset(
    {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", "@eadir", "$recycle.bin"}
    | {"system volume information", "lost+found", "license.txt", "attribution.txt"}
)
"""What systems and the archives of ISIC leave in folders, in lower case: passed over like hidden
files. Everything else that is not read is counted aloud."""

_MASK = re.compile(r"(.+)_(superpixels?|segmentation|mask)", re.IGNORECASE)
_CONFIRMATIONS = {
    "histopathology": "histo",
    "serial imaging showing no change": "follow_up",
    "single image expert consensus": "consensus",
    "confocal microscopy with consensus dermoscopy": "confocal",
}
"""The challenge's words for what HAM10000's `dx_type` abbreviates."""
_AGE = re.compile(r"(?:[<>]=?|[≤≥])?\s*(\d+(?:\.\d*)?)\s*\+?")
_OLDEST = 130


@dataclass(frozen=True)
class Listing:
    """What a data folder holds, before any image is opened."""

    root: Path
    layout: str
    """A key of `layouts.LAYOUTS`, or "table"."""
    records: tuple[Record, ...]
    """Sorted by image id; where there are problems, those that could be made."""
    problems: tuple[str, ...]
    """Everything that is wrong, each with its file, row, column or id."""
    cache_key: str
    """Hash over relative names, sizes and times of the images, the contents of the tables, the
    classes and what the user said about the folder."""
    classes: Classes
    unit: str
    """What `Record.lesion_id` holds: "lesion", "patient", "group" or "image"."""
    notes: tuple[str, ...] = ()
    """What was chosen, and what was left out, one sentence each."""


@dataclass(frozen=True)
class Columns:
    """Which columns of a table say what of an image; those that are only described may lack."""

    image: str
    label: str | None = None
    one_hot: tuple[str, ...] = ()
    groups: tuple[tuple[str, str], ...] = ()
    """(kind, column) of what images are not to be parted by: "lesion", "patient" or others."""
    split: str | None = None
    age: str = ""
    sex: str = ""
    localization: str = ""
    confirmation: str = ""

    @property
    def needed(self) -> tuple[str, ...]:
        """The columns without which the table cannot be read."""
        named = (self.image, self.label, *self.one_hot, *dict(self.groups).values(), self.split)
        return tuple(name for name in named if name)


@dataclass(frozen=True)
class Facts:
    """What one row says of an image; "" where it says nothing."""

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
    """age, sex, localization, confirmation."""


@dataclass
class _Image:
    image_id: str
    path: Path
    label: str | None
    split: str
    where: str
    facts: tuple[Facts, ...]

    def first(self, name: str) -> tuple[str, str]:
        """What the first of the tables that knows says, and where."""
        told = ((facts.described.get(name, ""), facts.where) for facts in self.facts)
        return next((found for found in told if found[0]), ("", ""))


@dataclass
class Findings:
    """What a reader gathers on its way; `listing` makes records of it."""

    root: Path
    reading: Reading
    target: Classes | None
    """The classes that labels are to index; None: those of the data."""
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    stats: dict[Path, tuple[int, int]] = field(default_factory=dict)
    """Size in bytes and time in nanoseconds of each image file."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Images of classes that are not taken; "" stands for those without a class."""
    found_images: bool = False
    named: set[Path] = field(default_factory=set)
    """Folders that were read, or of which a note or a problem has told."""
    _unread: dict[Path, str] = field(default_factory=dict)
    _tables: dict[Path, tuple[bytes, tuple[str, ...], list[csvs.Row]]] = field(default_factory=dict)
    _images: list[_Image] = field(default_factory=list)

    def name(self, path: Path) -> str:
        """The path as messages have it: below the data folder, relative to it."""
        return str(path).removeprefix(f"{self.root}{os.sep}")

    # Files

    def scan(self, folder: Path, *, deep: bool = True) -> list[Path]:
        """Image files of a folder and, if `deep`, of those below it, sorted.

        Links to folders are followed, but not to one that they lie in.
        """
        self.named.add(folder)
        found = []
        with os.scandir(folder) as entries:
            listed = sorted(entries, key=lambda entry: entry.name)
        for entry in listed:
            path = folder / entry.name
            if is_litter(entry.name):
                continue
            if leads_back(path):
                self._unread[path] = "links to a folder around them"
            elif entry.is_dir():
                found += self.scan(path) if deep else []
            elif path.suffix.lower() not in images.SUFFIXES:
                self._unread[path] = _kind(path)
            elif not entry.is_file() and path.exists():
                self._unread[path] = "devices or pipes"
            else:
                try:
                    stat = entry.stat()
                except FileNotFoundError:  # a dangling link; decoding it will say so
                    stat = entry.stat(follow_symlinks=False)
                self.stats[path] = stat.st_size, stat.st_mtime_ns
                found.append(path)
        self.found_images |= bool(found)
        return found

    def leave(self, path: Path, reason: str) -> None:
        """Counts an image file that is not read, and says what it is."""
        self._unread[path] = reason
        self.stats.pop(path, None)

    # Tables

    def table(self, path: Path) -> tuple[tuple[str, ...], list[csvs.Row]]:
        """Header and rows of a table; reports what is wrong with its text and its header."""
        if path not in self._tables:
            self.named.add(path.parent)
            problems: list[str] = []
            content = path.read_bytes()
            self._tables[path] = content, *csvs.parse(content, problems, strip=True)
            self.problems += [
                f"{self.name(path)}{', ' if problem.startswith('row ') else ': '}{problem}"
                for problem in problems
            ]
        return self._tables[path][1:]

    def rows(self, path: Path, columns: Columns) -> dict[str, Facts]:
        """The rows of a table by image id; reports missing columns, and ids that come twice.

        Ids have no image's ending, unless two would become one.
        """
        header, rows = self.table(path)
        missing = [column for column in columns.needed if column not in header]
        if missing and header:
            self.problems.append(
                f"{self.name(path)}, row 1: missing column{'s' * (len(missing) > 1)} "
                f"{', '.join(missing)}; found {', '.join(header)}"
            )
        if missing:
            return {}
        given = {row.number: row.values[columns.image].replace("\\", "/") for row in rows}
        short = {number: _without_ending(image_id) for number, image_id in given.items()}
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
        def known(column: str | None) -> str:
            cell = cells.get(column or "", "")
            return "" if csvs.is_missing(cell) else cell

        label = cells[columns.label] if columns.label else ""
        described = ("age", "sex", "localization", "confirmation")
        return Facts(
            where,
            label=self._hot(where, cells, columns.one_hot) if columns.one_hot else label,
            groups={kind: known(column) for kind, column in columns.groups if known(column)},
            has_groups=bool(columns.groups),
            split=cells[columns.split] if columns.split else "",
            described={name: known(getattr(columns, name)) for name in described},
        )

    def _hot(self, where: str, cells: Mapping[str, str], columns: Sequence[str]) -> str | None:
        """The column with the one 1; None where there is none, which is reported."""
        values = [_number(cells[column]) for column in columns]
        for column, value in zip(columns, values, strict=True):
            if not math.isfinite(value):
                self.problems.append(f"{where}, column {column}: {cells[column]!r} is not a number")
                return None
        total = math.fsum(values)
        if total == 0 and self.reading.classes:  # of a class in another column
            return ""
        if abs(total - 1) > 1e-6:
            self.problems.append(f"{where}: the class columns sum to {total:g}, not to 1")
        elif abs(max(values) - 1) > 1e-6 or min(values) < -1e-6:
            self.problems.append(f"{where}: the class columns are not one 1 and zeros")
        else:
            return columns[values.index(max(values))]
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

        Args:
          rows: of `rows`; where the table could not be read there are none: that one problem is
            enough.
          files: of `scan`.
          table: that has the rows.
          complete: whether every file needs a row; where not, those without are counted aloud.

        Returns:
          (id, facts, file) of each row that has one file.
        """
        if not rows:
            return []
        by_name: dict[str, list[Path]] = defaultdict(list)
        for path in files:
            name = self.name(path)
            for key in {name, _without_ending(name), path.name, path.stem}:
                by_name[key].append(path)
        matched: dict[Path, tuple[str, Facts]] = {}
        alone: dict[str, Facts] = {}
        doubtful: set[Path] = set()
        for image_id, facts in rows.items():
            keys = (image_id, _without_ending(image_id), PurePosixPath(image_id).name)
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
        self._report(alone, rest, rows, table, complete)
        return [(image_id, facts, path) for path, (image_id, facts) in matched.items()]

    def _report(
        self,
        alone: dict[str, Facts],
        files: Sequence[Path],
        rows: Mapping[str, Facts],
        table: Path,
        complete: bool,
    ) -> None:
        """Rows without a file and files without a row; those that are nearly the same together."""
        nearly = {_folded(path.stem): path for path in files}
        if near := {
            image_id: nearly[key] for image_id in alone if (key := _folded(image_id)) in nearly
        }:
            image_id, path = next(iter(near.items()))
            self.problems.append(
                f"{len(near)} ids in {self.name(table)} differ from the names of their files only "
                f"in upper and lower case or in the form of accents, such as {image_id} "
                f"({alone[image_id].where}) and {self.name(path)}; spell them the same"
            )
        for image_id, facts in alone.items():
            if image_id not in near:
                self.problems.append(f"{facts.where}: no image file for id {image_id}")
        for path in files:
            mask = _MASK.fullmatch(path.stem)
            if path in near.values():
                continue
            if mask and mask[1] in rows:
                self.leave(path, "masks of other images")
            elif complete:
                self.problems.append(
                    f"{self.name(path)}: no row for this image in {self.name(table)}"
                )
            else:
                self.leave(path, f"images without a row in {self.name(table)}")

    def masks(self, folder: Path, files: Sequence[Path]) -> list[Path]:
        """Refuses files that are named like masks of others of the folder; returns the others."""
        stems = {path.stem for path in files}
        found = [p for p in files if (mask := _MASK.fullmatch(p.stem)) and mask[1] in stems]
        if found:
            self.problems.append(
                f"{self.name(folder)}: {len(found)} files are named like masks of images beside "
                f"them, such as {found[0].name}; move them out of the class folder"
            )
        return [path for path in files if path not in found]

    def add(
        self, image_id: str, path: Path, label: str | None, split: str, where: str, *facts: Facts
    ) -> None:
        """Adds an image; of several tables the first one that knows something counts."""
        self._images.append(_Image(image_id, path, label, split, where, facts))

    def leave_class(self, label: str) -> None:
        """Leaves out the images of a label that is no class."""
        kept = [image for image in self._images if image.label != label]
        if len(kept) < len(self._images):
            self.left_out[label] += len(self._images) - len(kept)
            self._images = kept

    # The result

    def listing(self, layout: str, known: Classes | None) -> Listing:
        """Makes records of what was added, once everything is read.

        Args:
          layout: its name.
          known: the classes of the layout; None where the data say what there is.
        """
        names = self._names(known)
        classes = self.target or classes_lib.arranged(
            [name for name in names if name], known, self.reading.classes, self.reading.rename
        )
        if classes is not known and classes is not self.target:
            self.problems += classes_lib.name_problems(classes.names)
        kept: dict[str, tuple[_Image, str]] = {}
        for image, name in sorted(
            zip(self._images, names, strict=True), key=lambda pair: pair[0].image_id
        ):
            if not name:
                continue
            if image.image_id in kept:
                first = self.name(kept[image.image_id][0].path)
                self.problems.append(
                    f"{self.name(image.path)}: duplicate image id {image.image_id}, also {first}"
                )
            elif odd := _odd(image.image_id):
                self.problems.append(f"{image.image_id!r}: the image's name {odd}; rename it")
            else:
                kept[image.image_id] = image, name
        units, unit = _units([image for image, _ in kept.values()])
        records = tuple(
            self._record(image, classes.index(name), own)
            for (image, name), own in zip(kept.values(), units, strict=True)
        )
        self._describe([image for image, _ in kept.values()], records, classes, known)
        return Listing(
            root=self.root,
            layout=layout,
            records=records,
            problems=tuple(dict.fromkeys(self.problems)),
            cache_key=self._cache_key(layout, classes),
            classes=classes,
            unit=unit,
            notes=tuple(self.notes),
        )

    def _names(self, known: Classes | None) -> list[str]:
        """The class of each image, "" where it is left out or refused."""
        rename = dict(self.reading.rename)
        spelled = {name.casefold(): name for name in known.names} if known else {}
        allowed = self.reading.classes or (self.target.names if self.target else ())
        if known and not allowed:
            allowed = tuple(dict.fromkeys(rename.get(name, name) for name in known.names))
        names, renamed, there = [], set(), set()
        unknown: dict[str, list[str]] = defaultdict(list)
        for image in self._images:
            if (label := image.label) is None:
                names.append("")
                continue
            if label not in rename:
                label = spelled.get(label.casefold(), label)
            name = rename.get(label, label)
            renamed.add(label)
            taken = name in allowed or not (allowed or csvs.is_missing(name))
            names.append(name if taken else "")
            if taken:
                there.add(name)
            elif self.reading.classes:
                self.left_out["" if csvs.is_missing(name) else name] += 1
            else:
                unknown[name].append(image.where)
        for name, places in unknown.items():
            which = "no class" if csvs.is_missing(name) else "unknown class"
            self.problems.append(
                f"{places[0]}: {which} {name!r}"
                + f" (and in {len(places) - 1} more)" * (len(places) > 1)
                + (f" (known: {', '.join(allowed)})" if allowed else "")
                + "; rename it with data.rename, or name the classes to take with data.classes"
            )
        if lost := [old for old in rename if old not in renamed]:
            found = ", ".join(sorted(renamed)) or "none"
            self.problems.append(f"data.rename: there is no class {lost[0]!r}; there are {found}")
        if lost := [name for name in self.reading.classes if name not in there]:
            found = ", ".join(sorted({*there, *self.left_out})) or "none"
            self.problems.append(f"data.classes: no image is of {lost[0]!r}; there are {found}")
        return names

    def _record(self, image: _Image, label: int, unit: str) -> Record:
        confirmation = image.first("confirmation")[0]
        sex = image.first("sex")[0].casefold()
        return Record(
            image_id=image.image_id,
            label=label,
            lesion_id=unit,
            age=self._age(*image.first("age")),
            sex={"f": "female", "m": "male"}.get(sex, sex),
            localization=image.first("localization")[0],
            confirmation=_CONFIRMATIONS.get(confirmation, confirmation),
            official_split=image.split,
            path=image.path,
        )

    def _age(self, text: str, where: str) -> float:
        if not text:
            return math.nan
        found = _AGE.fullmatch(text)
        if found is None or float(found[1]) > _OLDEST:
            self.problems.append(f"{where}: {text!r} is not an age in years")
            return math.nan
        return float(found[1])

    def _describe(
        self,
        kept: Sequence[_Image],
        records: Sequence[Record],
        classes: Classes,
        known: Classes | None,
    ) -> None:
        """Says aloud what was left out."""
        if self.left_out:
            told = [f"{n} {f'of {c}' if c else 'without any'}" for c, n in self.left_out.items()]
            self.notes.append(f"images of other classes are left out: {', '.join(told)}")
        alone = sum(
            any(facts.has_groups for facts in image.facts)
            and not any(facts.groups for facts in image.facts)
            for image in kept
        )
        if alone:
            self.notes.append(
                f"{alone} of {len(kept)} images have no lesion, patient or group in their table: "
                "each of them is a group of its own"
            )
        if known and not self.target and not self.problems:
            present = {record.label for record in records}
            if empty := [name for i, name in enumerate(classes.names) if i not in present]:
                self.notes.append(f"no images of the class {', '.join(empty)}")
        read = {*self.stats, *self._tables}
        looked_into = {self.name(folder).partition("/")[0] for folder in self.named}
        folders = []
        for path in sorted(self.root.iterdir()):
            if is_litter(path.name) or path in read:
                continue
            if not path.is_dir():
                self._unread.setdefault(path, _kind(path))
            elif path.name not in looked_into:
                folders.append(path.name)
        counts = Counter(kind for path, kind in self._unread.items() if path not in read)
        parts = [f"{kind} ({n})" for kind, n in sorted(counts.items())]
        parts += [f"the folder {name}" for name in folders]
        if parts:
            self.notes.append("not read: " + ", ".join(parts))

    def _cache_key(self, layout: str, classes: Classes) -> str:
        key = hashlib.sha256(f"{layout} {self.reading} {classes.names}".encode())
        for path, (size, time) in sorted(self.stats.items()):
            key.update(f"{self.name(path)!r} {size} {time}\n".encode())
        for path, (content, *_) in sorted(self._tables.items()):
            key.update(f"{path.name} {len(content)}\n".encode() + content)
        return key.hexdigest()


def _kind(path: Path) -> str:
    return f"*{path.suffix.lower()}" if path.suffix else "files without an ending"


def is_litter(name: str) -> bool:
    """Whether a file or folder is hidden, or one of `LITTER`."""
    return name.startswith(".") or name.casefold() in LITTER


def leads_back(path: Path) -> bool:
    """Whether a path is a link to a folder that it lies in."""
    return path.is_symlink() and path.parent.resolve().is_relative_to(path.resolve())


def _units(found: Sequence[_Image]) -> tuple[list[str], str]:
    """What of each image no split divides, and the word for it.

    Images that share a lesion, a patient or a group belong together, and those that these share
    with others. A unit has the id of its lesion or, where a patient or a group is known, of that.
    """
    groups: list[dict[str, str]] = []
    for image in found:
        own: dict[str, str] = {}
        for facts in image.facts:
            own = {**facts.groups, **own}
        groups.append(own)
    kinds = {kind for own in groups for kind in own}
    nodes = [
        list(own.items()) or [("lesion", i.image_id)] for own, i in zip(groups, found, strict=True)
    ]
    part = components(nodes)
    ranks = {"patient": 0, "lesion": 2}  # the widest names the unit
    names: dict[tuple[str, str], tuple[int, str, str]] = {}
    for (kind, value), representative in part.items():
        candidate = ranks.get(kind, 1), value, kind
        names[representative] = min(names.get(representative, candidate), candidate)
    uses = Counter(value for _, value, _ in names.values())
    units = []
    for links in nodes:
        rank, value, kind = names[part[links[0]]]
        units.append(value if uses[value] == 1 or rank == 2 else f"{kind} {value}")
    if not kinds:
        return units, "image"
    if "patient" in kinds:
        return units, "patient"
    return units, "lesion" if kinds == {"lesion"} else "group"


def _without_ending(name: str) -> str:
    stem, dot, ending = name.rpartition(".")
    return stem if f"{dot}{ending}".lower() in images.SUFFIXES else name


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _odd(image_id: str) -> str:
    """What keeps an id from surviving files and lists; "" where nothing does."""
    if image_id != image_id.strip():
        return "begins or ends with a space"
    if csvs.is_odd(image_id):
        return "has control characters, or bytes that are not UTF-8"
    return ""
