"""A folder of labelled images, in one of the layouts that people have, to validated records.

ISIC 2018 Task 3: the archives of https://challenge.isic-archive.com/data/#2018, unpacked.
HAM10000: as Harvard Dataverse (doi:10.7910/DVN/DBW86T) and Kaggle ship it.
Class folders: one folder per class, named as in `lesions.CLASSES`.
"""

import csv
import hashlib
import io
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from skin_jax.base.errors import UserError
from skin_jax.data import classes, images
from skin_jax.data.examples import Record

_OFFICIAL_SPLITS = {"Training": "train", "Validation": "val", "Test": "test"}
_HAM_METADATA = ("HAM10000_metadata.csv", "HAM10000_metadata")
_HAM_FOLDER = "ham10000_images"
_NOT_PHOTOGRAPHS = ("segmentation", "superpixel", "mask")
_CONFIRMATIONS = {
    "histopathology": "histo",
    "serial imaging showing no change": "follow_up",
    "single image expert consensus": "consensus",
    "confocal microscopy with consensus dermoscopy": "confocal",
}
"""The challenge's words for what HAM10000's `dx_type` abbreviates."""


@dataclass(frozen=True)
class Listing:
    """What a data folder holds, before any image is opened."""

    root: Path
    layout: str
    """A key of `LAYOUTS`."""
    records: tuple[Record, ...]
    """Sorted by image id; where there are problems, those that could be made."""
    problems: tuple[str, ...]
    """Everything that is wrong, each with its file, row, column or id."""
    cache_key: str
    """Hash over relative names, sizes and times of the images and the contents of the CSVs."""
    notes: tuple[str, ...] = ()
    """What was left out on purpose, one sentence each."""


@dataclass
class _Findings:
    """What a reader of a layout gathers on its way."""

    root: Path
    records: list[Record] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    stats: dict[Path, tuple[int, int]] = field(default_factory=dict)
    """Size in bytes and time in nanoseconds of each image file."""
    tables: dict[str, bytes] = field(default_factory=dict)

    def name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()


@dataclass(frozen=True)
class _Layout:
    looks_for: str
    matches: Callable[[Path], bool]
    read: Callable[[_Findings], None]


@dataclass(frozen=True)
class _Row:
    where: str
    """File and row, for messages."""
    number: int
    values: Mapping[str, str]


def read(data_dir: Path) -> Listing:
    """Recognises the layout of a folder and reads its records.

    Other files beside the images and CSVs (licences, hidden files, masks) are ignored.

    Args:
      data_dir: the folder that holds the official folders, or the HAM10000 ones, or the classes.

    Raises:
      UserError: the folder is missing, cannot be read, holds no images, or has no known layout.
        Everything else that is wrong is listed in `problems`.
    """
    try:
        layout = _recognise(data_dir)
        findings = _Findings(data_dir)
        LAYOUTS[layout].read(findings)
    except OSError as error:
        raise UserError(f"cannot read {error.filename or data_dir}: {error.strerror}") from None
    if not findings.stats:
        raise UserError(
            f"{data_dir} has the layout '{layout}' but holds no images "
            f"({', '.join(images.SUFFIXES)}); unpack the image archives there"
        )
    return Listing(
        root=data_dir,
        layout=layout,
        records=tuple(sorted(findings.records, key=lambda record: record.image_id)),
        problems=tuple(findings.problems),
        cache_key=_cache_key(layout, findings),
        notes=tuple(findings.notes),
    )


def _cache_key(layout: str, findings: _Findings) -> str:
    key = hashlib.sha256(layout.encode())
    for path, (size, time) in sorted(findings.stats.items()):
        key.update(f"{findings.name(path)!r} {size} {time}\n".encode())
    for name, content in sorted(findings.tables.items()):
        key.update(f"{name} {len(content)}\n".encode() + content)
    return key.hexdigest()


# Recognition


def _recognise(data_dir: Path) -> str:
    if not data_dir.exists():
        raise UserError(
            f"the data folder {data_dir} does not exist; check --config.data.dir (--data_dir of "
            "skin_jax.prepare)"
        )
    if not data_dir.is_dir():
        raise UserError(f"{data_dir} is a file; the data folder that holds the images is needed")
    layout = _layout_of(data_dir)
    if layout:
        return layout
    wanted = "; ".join(f"{name}: {known.looks_for}" for name, known in LAYOUTS.items())
    children = sorted(path for path in data_dir.iterdir() if not path.name.startswith("."))
    empty = "is empty" if not children else "has none of the known layouts"
    folders = [path for path in (*children, data_dir.absolute().parent) if path.is_dir()]
    near = next((path for path in folders if _layout_of(path)), None)
    hint = f". {near} looks right: pass that folder instead" if near else ""
    raise UserError(f"{data_dir} {empty}. Looked for {wanted}{hint}")


def _layout_of(folder: Path) -> str | None:
    try:
        return next((name for name, layout in LAYOUTS.items() if layout.matches(folder)), None)
    except PermissionError:
        return None


def _is_official(folder: Path) -> bool:
    return _input_folder(folder, "Training").is_dir() and _truth(folder, "Training") is not None


def _is_ham10000(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _HAM_METADATA)


def _is_class_folders(folder: Path) -> bool:
    names = {path.name.casefold() for path in folder.iterdir() if path.is_dir()}
    return not names.isdisjoint(classes.CLASSES)


def _input_folder(root: Path, part: str) -> Path:
    return root / f"ISIC2018_Task3_{part}_Input"


def _truth(root: Path, part: str) -> Path | None:
    name = f"ISIC2018_Task3_{part}_GroundTruth"
    candidates = (root / name / f"{name}.csv", root / f"{name}.csv")
    return next((path for path in candidates if path.is_file()), None)


# The layouts


def _read_official(findings: _Findings) -> None:
    root = findings.root
    confirmed = _lesion_groupings(findings)
    described = _metadata(findings, ("lesion_id",)) if _is_ham10000(root) else {}
    seen: dict[str, Path] = {}
    for part, split in _OFFICIAL_SPLITS.items():
        folder, truth = _input_folder(root, part), _truth(root, part)
        if not folder.is_dir():
            if truth:
                findings.notes.append(
                    f"{findings.name(truth)} is left out: there is no {folder.name}"
                )
            continue
        if truth is None:
            findings.notes.append(
                f"{folder.name} is left out: it has no ground truth, so no labels"
            )
            continue
        files = _by_id(findings, _image_files(findings, [folder]), seen)
        labels = _one_hot(findings, truth)
        for image_id, (row, label) in _matched(findings, files, labels).items():
            grouping, metadata = confirmed.get(image_id), described.get(image_id)
            if split == "train" and confirmed and grouping is None:
                findings.problems.append(
                    f"{row.where}: no row for {image_id} in the LesionGroupings file"
                )
            if label is not None:
                findings.records.append(
                    _record(findings, image_id, label, split, files[image_id], grouping, metadata)
                )


def _read_ham10000(findings: _Findings) -> None:
    rows = _metadata(findings, ("lesion_id", "dx"))
    folders = [
        path for path in _subfolders(findings.root) if path.name.casefold().startswith(_HAM_FOLDER)
    ]
    paths = [*_image_files(findings, [findings.root], deep=False), *_image_files(findings, folders)]
    files = _by_id(findings, _without_twins(findings, paths), {})
    labels = {}
    for image_id, row in rows.items():
        label = _class_index(row.values["dx"])
        if label is None:
            findings.problems.append(
                f"{row.where}, column dx: unknown class {row.values['dx']!r} "
                f"(known: {', '.join(classes.CLASSES)})"
            )
        labels[image_id] = row, label
    for image_id, (row, label) in _matched(findings, files, labels).items():
        if label is not None:
            findings.records.append(
                _record(findings, image_id, label, "train", files[image_id], None, row)
            )


def _read_class_folders(findings: _Findings) -> None:
    for path in _image_files(findings, [findings.root], deep=False):
        findings.problems.append(f"{findings.name(path)}: an image outside the class folders")
    seen: dict[str, Path] = {}
    for folder in _subfolders(findings.root):
        label = _class_index(folder.name)
        paths = _image_files(findings, [folder])
        if label is None and paths:
            findings.problems.append(
                f"{folder.name}: unknown class; {len(paths)} image file(s) in it "
                f"(known: {', '.join(classes.CLASSES)})"
            )
        if label is None:
            continue
        for image_id, path in _by_id(findings, paths, seen).items():
            findings.records.append(_record(findings, image_id, label, "train", path, None, None))


LAYOUTS: dict[str, _Layout] = {
    "ISIC 2018 Task 3": _Layout(
        "ISIC2018_Task3_Training_Input/ and "
        "ISIC2018_Task3_Training_GroundTruth/ISIC2018_Task3_Training_GroundTruth.csv",
        _is_official,
        _read_official,
    ),
    "HAM10000": _Layout(
        "HAM10000_metadata.csv beside HAM10000_images_part_1/ and HAM10000_images_part_2/",
        _is_ham10000,
        _read_ham10000,
    ),
    "class folders": _Layout(
        f"one folder per class, named {', '.join(classes.CLASSES)}",
        _is_class_folders,
        _read_class_folders,
    ),
}
"""Every known layout, in the order of precedence."""


# Records


def _record(
    findings: _Findings,
    image_id: str,
    label: int,
    split: str,
    path: Path,
    grouping: _Row | None,
    metadata: _Row | None,
) -> Record:
    """Joins what is known; the challenge's grouping goes before the metadata of HAM10000."""
    group = grouping.values if grouping else {}
    more = metadata.values if metadata else {}
    confirmation = group.get("diagnosis_confirm_type") or more.get("dx_type", "")
    return Record(
        image_id=image_id,
        label=label,
        lesion_id=group.get("lesion_id") or more.get("lesion_id") or image_id,
        age=_age(findings, metadata) if metadata else math.nan,
        sex=_known(more.get("sex", "")),
        localization=_known(more.get("localization", "")),
        confirmation=_CONFIRMATIONS.get(confirmation, confirmation),
        official_split=split,
        path=path,
    )


def _known(value: str) -> str:
    return "" if value.casefold() == "unknown" else value


def _age(findings: _Findings, row: _Row) -> float:
    text = row.values.get("age", "")
    if not _known(text):
        return math.nan
    try:
        return float(text)
    except ValueError:
        findings.problems.append(f"{row.where}, column age: {text!r} is not a number")
        return math.nan


def _class_index(name: str) -> int | None:
    name = name.casefold()
    return classes.CLASSES.index(name) if name in classes.CLASSES else None


_Labels = Mapping[str, tuple[_Row, int | None]]


def _matched(findings: _Findings, files: Mapping[str, Path], labels: _Labels) -> _Labels:
    """The rows that have an image; reports rows without images and images without rows.

    A table that could not be read at all has no rows: that one problem is enough.
    """
    if not labels:
        return {}
    for image_id, (row, _) in labels.items():
        if image_id not in files:
            findings.problems.append(f"{row.where}: no image file for id {image_id}")
    table = next(iter(labels.values()))[0].where.partition(",")[0]
    for image_id, path in files.items():
        if image_id not in labels:
            findings.problems.append(f"{findings.name(path)}: no row for this image in {table}")
    return {image_id: found for image_id, found in labels.items() if image_id in files}


# Image files


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and _is_wanted(path.name))


def _is_wanted(folder: str) -> bool:
    name = folder.casefold()
    return not name.startswith((".", "__macosx")) and not any(w in name for w in _NOT_PHOTOGRAPHS)


def _image_files(findings: _Findings, folders: Sequence[Path], deep: bool = True) -> list[Path]:
    """Image files of the folders, sorted; notes their sizes and times on the way."""
    found = []
    for folder in folders:
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda e: e.name):
                if entry.name.startswith("."):
                    continue
                path = folder / entry.name
                if entry.is_dir():
                    if deep and _is_wanted(entry.name):
                        found += _image_files(findings, [path])
                elif path.suffix.lower() in images.SUFFIXES:
                    try:
                        stat = entry.stat()
                    except FileNotFoundError:  # a dangling link; decoding it will say so
                        stat = entry.stat(follow_symlinks=False)
                    findings.stats[path] = stat.st_size, stat.st_mtime_ns
                    found.append(path)
    return found


def _without_twins(findings: _Findings, paths: Sequence[Path]) -> list[Path]:
    """Drops second copies: Kaggle ships its folders twice, under names that differ in case."""
    kept: dict[tuple[str, str, int], Path] = {}
    for path in paths:
        size, _ = findings.stats[path]
        kept.setdefault((path.parent.name.casefold(), path.name, size), path)
    return list(kept.values())


def _by_id(findings: _Findings, paths: Sequence[Path], seen: dict[str, Path]) -> dict[str, Path]:
    """The paths by image id (the name without its ending); `seen` grows over several calls."""
    new = {}
    for path in paths:
        if path.stem in seen:
            findings.problems.append(
                f"{findings.name(path)}: duplicate image id {path.stem}, "
                f"also {findings.name(seen[path.stem])}"
            )
            continue
        seen[path.stem] = new[path.stem] = path
    return new


# Tables


def _one_hot(findings: _Findings, path: Path) -> _Labels:
    labels: dict[str, tuple[_Row, int | None]] = {}
    for image_id, row in _table(findings, path, "image", classes.CHALLENGE_COLUMNS).items():
        labels[image_id] = row, _one_hot_label(findings, row)
    return labels


def _one_hot_label(findings: _Findings, row: _Row) -> int | None:
    values = []
    for column in classes.CHALLENGE_COLUMNS:
        text = row.values[column]
        value = _number(text)
        if not math.isfinite(value):
            findings.problems.append(f"{row.where}, column {column}: {text!r} is not a number")
        values.append(value)
    if not all(map(math.isfinite, values)):
        return None
    total = math.fsum(values)
    if abs(total - 1) > 1e-6:
        findings.problems.append(f"{row.where}: the class columns sum to {total:g}, not to 1")
        return None
    if abs(max(values) - 1) > 1e-6 or min(values) < -1e-6:
        findings.problems.append(f"{row.where}: the class columns are not one 1 and zeros")
        return None
    return classes.CHALLENGE_ORDER[values.index(max(values))]


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _lesion_groupings(findings: _Findings) -> dict[str, _Row]:
    name = "ISIC2018_Task3_Training_LesionGroupings.csv"
    folders = (findings.root, findings.root / "ISIC2018_Task3_Training_GroundTruth")
    path = next((folder / name for folder in folders if (folder / name).is_file()), None)
    return _with_lesions(findings, path, "image") if path else {}


def _metadata(findings: _Findings, columns: Sequence[str]) -> dict[str, _Row]:
    path = next(p for name in _HAM_METADATA if (p := findings.root / name).is_file())
    return _with_lesions(findings, path, "image_id", columns)


def _with_lesions(
    findings: _Findings, path: Path, key: str, columns: Sequence[str] = ("lesion_id",)
) -> dict[str, _Row]:
    rows = _table(findings, path, key, columns)
    for row in rows.values():
        if not row.values["lesion_id"]:
            findings.problems.append(f"{row.where}, column lesion_id: empty")
    return rows


def _table(findings: _Findings, path: Path, key: str, columns: Sequence[str]) -> dict[str, _Row]:
    """Rows of a CSV by their id; reports what is wrong with its text, header, rows and ids."""
    content = path.read_bytes()
    name = findings.name(path)
    findings.tables[name] = content
    rows: dict[str, _Row] = {}
    try:
        text = content.decode("utf-8-sig")
        parsed = list(_parse(text))
    except UnicodeDecodeError as error:
        row = content[: error.start].count(b"\n") + 1
        findings.problems.append(f"{name}, row {row}: not UTF-8 text ({error.reason})")
        return {}
    except csv.Error as error:
        findings.problems.append(f"{name}: not a CSV file ({error})")
        return {}
    if not parsed:
        findings.problems.append(f"{name}: empty; expected a header with {key}, {columns[0]}, ...")
        return {}
    header = [column.strip() for column in parsed[0][1]]
    missing = [column for column in (key, *columns) if column not in header]
    if missing:
        findings.problems.append(
            f"{name}, row 1: missing column{'s' if len(missing) > 1 else ''} "
            f"{', '.join(missing)}; found {', '.join(header)}"
        )
        return {}
    if len(parsed) == 1:
        findings.problems.append(f"{name}: a header without rows")
    for number, cells in parsed[1:]:
        where = f"{name}, row {number}"
        if len(cells) != len(header):
            findings.problems.append(
                f"{where}: {len(cells)} values, but the header has {len(header)} columns"
            )
            continue
        values = {column: cell.strip() for column, cell in zip(header, cells, strict=True)}
        image_id = values[key]
        if not image_id:
            findings.problems.append(f"{where}, column {key}: empty")
        elif image_id in rows:
            findings.problems.append(
                f"{where}: duplicate id {image_id}, also in row {rows[image_id].number}"
            )
        else:
            rows[image_id] = _Row(where, number, values)
    return rows


def _parse(text: str) -> Iterator[tuple[int, list[str]]]:
    """(line number, cells) of the lines that are not blank."""
    # Harvard Dataverse can also hand its tables out with tabs.
    tabs = "\t" in text.partition("\n")[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter="\t" if tabs else ",", strict=True)
    for cells in reader:
        if any(cell.strip() for cell in cells):
            yield reader.line_num, cells
