"""A folder of labelled images, in one of the layouts that people have, to validated records.

ISIC 2018 (task 3), 2019, 2020: the archives of https://challenge.isic-archive.com/data, unpacked.
HAM10000: as Harvard Dataverse (doi:10.7910/DVN/DBW86T) and Kaggle ship it.
PAD-UFES-20: as Mendeley Data (doi:10.17632/zr7vgbcyr2.1) ships it.
DermaMNIST: a file of MedMNIST v2 (doi:10.5281/zenodo.6496656).
Class folders: one folder per class; so, too, in train, val and test. Any table: `data.tables`.
"""

import dataclasses
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from skin_jax.base import csvs
from skin_jax.base.errors import UserError
from skin_jax.data import images, tables
from skin_jax.data.classes import HAM10000, ISIC_2019, ISIC_2020, PAD_UFES_20, Classes
from skin_jax.data.listing import Columns, Facts, Findings, Listing, is_litter, leads_back
from skin_jax.data.reading import Reading

_PARTS = {"Training": "train", "Validation": "val", "Test": "test"}
"""The challenges' words for the sides of their split."""
_NPZ = "DermaMNIST"
_ENDINGS = ("", ".csv", ".tab", ".tsv")
_NO_CLASSES = re.compile(
    r"(ham10000|isic).*|images?|imgs?(_part_\d+)?|jpe?gs?|pngs?|photos|pictures|inputs?",
    re.IGNORECASE,
)
"""Folders whose names say that they are of no class."""

_DESCRIBED = Columns("image_id", age="age", sex="sex", localization="localization")
_HAM = dataclasses.replace(
    _DESCRIBED, label="dx", groups=(("lesion", "lesion_id"),), confirmation="dx_type"
)
_HAM_METADATA = "HAM10000_metadata"
_ISIC_2018 = Columns("image", one_hot=HAM10000.columns)
_GROUPINGS = Columns(
    "image", groups=(("lesion", "lesion_id"),), confirmation="diagnosis_confirm_type"
)
_ISIC_2019 = Columns("image", one_hot=(*ISIC_2019.columns, "UNK"))
_ISIC_2019_METADATA = Columns(
    "image",
    groups=(("lesion", "lesion_id"),),
    age="age_approx",
    sex="sex",
    localization="anatom_site_general",
)
_ISIC_2020 = Columns(
    "image_name",
    groups=(("patient", "patient_id"),),
    age="age_approx",
    sex="sex",
    localization="anatom_site_general_challenge",
)
_PAD = Columns(
    "img_id",
    label="diagnostic",
    groups=(("patient", "patient_id"), ("lesion", "lesion_id")),
    age="age",
    sex="gender",
    localization="region",
    confirmation="biopsed",
)


def read(data_dir: Path, reading: Reading | None = None, target: Classes | None = None) -> Listing:
    """Recognises the layout of a folder and reads its records.

    Args:
      data_dir: the folder that holds the archives' folders, or the classes; a DermaMNIST file; with
        a table, the folder of its images.
      reading: what the user says about it.
      target: classes that labels are to index, of a run that is evaluated here; None: those of the
        data. Images of others are a problem, unless the user names the classes to take.

    Raises:
      UserError: the folder is missing, cannot be read, holds no images, or has no known layout or
        several. Everything else that is wrong is listed in `problems`.
    """
    reading = reading or Reading()
    if target and (strange := [name for name in reading.classes if name not in target.names]):
        raise UserError(
            f"data.classes: the run knows no class {strange[0]!r}; it knows "
            f"{', '.join(target.names)}"
        )
    if not data_dir.exists():
        raise UserError(
            f"the data folder {data_dir} does not exist; check --config.data.dir (--data_dir of "
            "skin_jax.prepare)"
        )
    is_file = data_dir.is_file() and data_dir.suffix == ".npz"
    if not (data_dir.is_dir() or is_file):
        raise UserError(
            f"{data_dir} is a file; give the folder that holds the images (a table that labels "
            "them goes with --config.data.table, in skin_jax.prepare --table)"
        )
    findings = Findings(data_dir.parent if is_file else data_dir, reading, target)
    layout, known = "table", None
    try:
        if is_file:
            layout, known = _NPZ, _read_npz(findings, data_dir)
        elif reading.table is not None:
            tables.read(findings)
        else:
            layout = _recognise(findings)
            known = LAYOUTS[layout].read(findings)
        listing = findings.listing(layout, known)
    except OSError as error:
        raise UserError(f"cannot read {error.filename or data_dir}: {error.strerror}") from None
    if not findings.found_images:
        raise UserError(
            f"{data_dir} has the layout '{layout}' but holds no images "
            f"({', '.join(sorted(images.SUFFIXES))}); unpack the image archives there"
        )
    return listing


# Recognition


@dataclass(frozen=True)
class _Layout:
    looks_for: str
    matches: Callable[[Path], bool]
    read: Callable[[Findings], Classes | None]
    """Fills the findings; returns the classes of the layout, None for those of the data."""


def _recognise(findings: Findings) -> str:
    root, reading = findings.root, findings.reading
    found = _layouts_of(root)
    if len(found) > 1:
        raise UserError(
            f"{root} has several layouts ({', '.join(found)}); put each into a folder of its own"
        )
    if found:
        return found[0]
    expected = {*reading.classes, *dict(reading.rename)}
    expected.update(findings.target.names if findings.target else ())
    if _may_be_classes(root) or any(path.name in expected for path in _image_folders(root)):
        return "class folders"
    children = sorted(path for path in root.iterdir() if not is_litter(path.name))
    hints = [f"Looked for {'; '.join(f'{n}: {known.looks_for}' for n, known in LAYOUTS.items())}"]
    hints += [
        f"Where {path.name} says what the images show, give --config.data.table={path.name}"
        for path in _labels_in(root)[:1]
    ]
    near = [path for path in children if path.is_dir() and _looks_right(path, loosely=True)]
    above = root.absolute().parent
    near += [above] * _looks_right(above, loosely=False)
    hints += [f"{path} looks right: pass that folder instead" for path in near[:1]]
    what = "has none of the known layouts" if children else "is empty"
    raise UserError(". ".join([f"{root} {what}", *hints]))


def _layouts_of(root: Path) -> list[str]:
    return [name for name, layout in LAYOUTS.items() if layout.matches(root)]


def _looks_right(folder: Path, *, loosely: bool) -> bool:
    """Whether to point at a folder; never at one side of a split, which is not all."""
    if tables.side(folder.name):
        return False
    try:
        return bool(_layouts_of(folder)) or (loosely and _may_be_classes(folder))
    except OSError:
        return False


def _may_be_classes(root: Path) -> bool:
    """Whether a folder holds class folders of names that nobody has told."""
    folders = _image_folders(root)
    names = [path.name for path in folders]
    other = any(_NO_CLASSES.fullmatch(name) or tables.side(name) for name in names)
    return len(folders) > 1 and not other and not _labels_in(root)


def _labels_in(root: Path) -> list[Path]:
    """The tables of a folder that have a column of images."""
    found = []
    for path in sorted(root.iterdir()):
        if path.suffix.lower() in (".csv", ".tsv", ".tab") and path.is_file():
            with path.open("rb") as file:
                header, _ = csvs.parse(file.readline(), [], strip=True)
            if tables.usual("image", header):
                found.append(path)
    return found


def _subfolders(folder: Path) -> list[Path]:
    found = (path for path in folder.iterdir() if path.is_dir() and not is_litter(path.name))
    return sorted(path for path in found if not leads_back(path))


def _is_image(path: Path) -> bool:
    hidden = is_litter(path.name)
    return path.suffix.lower() in images.SUFFIXES and not hidden and not path.is_dir()


def _image_folders(folder: Path) -> list[Path]:
    """Subfolders that have images right in them."""
    return [path for path in _subfolders(folder) if any(map(_is_image, path.iterdir()))]


def _tables(folder: Path, *stems: str) -> list[Path]:
    """Tables of these names, in any case, also in folders of their name: as archives unpack."""
    wanted = {f"{stem}{ending}".casefold() for stem in stems for ending in _ENDINGS}
    found = []
    for path in sorted(folder.iterdir()):
        if path.is_dir() and path.name.casefold() in {stem.casefold() for stem in stems}:
            found += _tables(path, *stems)
        elif path.name.casefold() in wanted:
            found.append(path)
    return found


def _one(findings: Findings, found: Sequence[Path]) -> Path | None:
    """The table that was found; of several, which must say the same, the first."""
    for other in found[1:]:
        if findings.table(other) != findings.table(found[0]):
            findings.problems.append(
                f"{findings.name(found[0])} and {findings.name(other)} differ; remove one of them"
            )
    return found[0] if found else None


def _folders(root: Path, *patterns: str) -> list[Path]:
    """Subfolders whose names, in any case, fit one of the patterns."""
    fits = re.compile("|".join(patterns), re.IGNORECASE)
    return [path for path in _subfolders(root) if fits.fullmatch(path.name)]


# ISIC 2018 and HAM10000


def _truth_2018(root: Path, part: str) -> list[Path]:
    return _tables(root, f"ISIC2018_Task3_{part}_GroundTruth")


def _inputs_2018(root: Path, part: str) -> list[Path]:
    return _folders(root, f"ISIC2018_Task3_{part}_(Input|Images)")


def _has_part(root: Path, part: str) -> bool:
    return bool(_inputs_2018(root, part) and _truth_2018(root, part))


def _is_isic_2018(root: Path) -> bool:
    if _has_part(root, "Training"):
        return True
    return any(_has_part(root, part) for part in _PARTS) and not _is_ham10000(root)


def _read_isic_2018(findings: Findings) -> Classes:
    root = findings.root
    name = "ISIC2018_Task3_Training_LesionGroupings"
    below = root / "ISIC2018_Task3_Training_GroundTruth"
    found = [*_tables(root, name), *(_tables(below, name) if below.is_dir() else [])]
    path = _one(findings, found)
    groupings = findings.rows(path, _GROUPINGS) if path else {}
    path = _one(findings, _tables(root, _HAM_METADATA))
    metadata = findings.rows(path, dataclasses.replace(_HAM, label=None)) if path else {}
    for part in _PARTS:
        added = _read_part(
            findings, part, _inputs_2018, _truth_2018, _ISIC_2018, (groupings, metadata)
        )
        for image_id, facts in added if part == "Training" and groupings else ():
            if image_id not in groupings:
                findings.problems.append(
                    f"{facts.where}: no row for {image_id} in the LesionGroupings file"
                )
    return HAM10000


def _read_part(
    findings: Findings,
    part: str,
    inputs: Callable[[Path, str], list[Path]],
    truths: Callable[[Path, str], list[Path]],
    columns: Columns,
    more: Sequence[Mapping[str, Facts]],
) -> list[tuple[str, Facts]]:
    """Adds the images of one side of a challenge's split; says what is left out, and why."""
    folders, truth = inputs(findings.root, part), _one(findings, truths(findings.root, part))
    findings.named.update(folders)
    if truth is None or not folders:
        for folder in folders:
            findings.notes.append(
                f"{folder.name} is left out: it has no ground truth, so no labels"
            )
        if truth:
            findings.named.add(truth.parent)
            findings.notes.append(f"{findings.name(truth)} is left out: its images are not there")
        return []
    # Dataverse's own test set has HAM10000's columns.
    columns = _HAM if "dx" in findings.table(truth)[0] else columns
    files = [path for folder in folders for path in findings.scan(folder)]
    added = []
    for image_id, facts, path in findings.match(findings.rows(truth, columns), files, truth):
        told = [rows[image_id] for rows in more if image_id in rows]
        findings.add(image_id, path, facts.label, _PARTS[part], facts.where, facts, *told)
        added.append((image_id, facts))
    return added


def _ham_folders(root: Path) -> list[Path]:
    return _folders(root, "ham10000_images.*", "images")


def _is_ham10000(root: Path) -> bool:
    if not _tables(root, _HAM_METADATA) or _has_part(root, "Training"):
        return False
    # Its metadata may also lie beside class folders.
    return bool(_ham_folders(root)) or not _is_class_folders(root)


def _read_ham10000(findings: Findings) -> Classes:
    root = findings.root
    table = _one(findings, _tables(root, _HAM_METADATA))
    assert table is not None
    paths = findings.scan(root, deep=False)
    for folder in _ham_folders(root):
        paths += findings.scan(folder)
    files = _without_twins(findings, paths)
    for image_id, facts, path in findings.match(findings.rows(table, _HAM), files, table):
        findings.add(image_id, path, facts.label, "train", facts.where, facts)
    for part in ("Validation", "Test"):
        _read_part(findings, part, _inputs_2018, _truth_2018, _ISIC_2018, ())
    return HAM10000


def _without_twins(findings: Findings, paths: Sequence[Path]) -> list[Path]:
    """Drops second copies: Kaggle ships its folders twice, under names that differ in case."""
    kept: dict[tuple[str, str, int], Path] = {}
    for path in paths:
        kept.setdefault((path.parent.name.casefold(), path.name, findings.stats[path][0]), path)
    twins = set(paths) - set(kept.values())
    for path in twins:
        findings.leave(path, "images that are there twice, in folders of one name")
    return list(kept.values())


# ISIC 2019 and 2020, PAD-UFES-20


def _truth_2019(root: Path, part: str) -> list[Path]:
    return _tables(root, f"ISIC_2019_{part}_GroundTruth")


def _inputs_2019(root: Path, part: str) -> list[Path]:
    return _folders(root, f"ISIC_2019_{part}_Input")


def _is_isic_2019(root: Path) -> bool:
    return any(_truth_2019(root, part) and _inputs_2019(root, part) for part in _PARTS)


def _read_isic_2019(findings: Findings) -> Classes:
    for part in ("Training", "Test"):
        path = _one(findings, _tables(findings.root, f"ISIC_2019_{part}_Metadata"))
        metadata = {}
        if path:
            described = _ISIC_2019_METADATA
            if "lesion_id" not in findings.table(path)[0]:  # the test set's
                described = dataclasses.replace(described, groups=())
            metadata = findings.rows(path, described)
        _read_part(findings, part, _inputs_2019, _truth_2019, _ISIC_2019, (metadata,))
    if {"UNK", "unk"}.isdisjoint({*findings.reading.classes, *dict(findings.reading.rename)}):
        findings.leave_class("UNK")
    return ISIC_2019


def _tables_2020(root: Path) -> list[Path]:
    stem = "ISIC_2020_Training_GroundTruth"
    found = _tables(root, f"{stem}_v2") or _tables(root, stem) or _tables(root, "train")
    return [path for path in found if _has_columns(path, "image_name", "target")]


def _has_columns(path: Path, *names: str) -> bool:
    with path.open("rb") as file:
        header, _ = csvs.parse(file.readline(), [], strip=True)
    return set(names) <= set(header)


def _is_isic_2020(root: Path) -> bool:
    return bool(_tables_2020(root))


def _read_isic_2020(findings: Findings) -> Classes:
    root = findings.root
    table = _one(findings, _tables_2020(root))
    assert table is not None
    header, _ = findings.table(table)
    columns = _ISIC_2020
    if "lesion_id" in header:
        columns = dataclasses.replace(columns, groups=(*columns.groups, ("lesion", "lesion_id")))
    names = {"0": "benign", "1": "malignant"}
    rows = findings.rows(table, dataclasses.replace(columns, label="target"))
    rows = {
        image_id: dataclasses.replace(
            facts, label=names.get(f"{facts.label}".removesuffix(".0"), facts.label)
        )
        for image_id, facts in rows.items()
    }
    if "benign_malignant" in header:
        told = findings.rows(table, dataclasses.replace(columns, label="benign_malignant"))
        findings.problems += [
            f"{facts.where}: benign_malignant is {told[image_id].label}, target says {facts.label}"
            for image_id, facts in rows.items()
            if told[image_id].label != facts.label
        ]
    folders = _folders(root, "train", "ISIC_2020_Training_(JPEG|Input)")
    folders += _folders(root / "jpeg", "train") if (root / "jpeg").is_dir() else []
    files = [path for folder in folders for path in findings.scan(folder)]
    for image_id, facts, path in findings.match(rows, files, table):
        findings.add(image_id, path, facts.label, "train", facts.where, facts)
    return ISIC_2020


def _pad_tables(root: Path) -> list[Path]:
    found = _tables(root, "metadata")
    return [path for path in found if _has_columns(path, "img_id", "diagnostic", "patient_id")]


def _read_pad_ufes_20(findings: Findings) -> Classes:
    root = findings.root
    table = _one(findings, _pad_tables(root))
    assert table is not None
    files = findings.scan(root, deep=False)
    for folder in _folders(root, "images", r"imgs_part_\d+"):
        files += findings.scan(folder)
    confirmed = {"true": "histo", "false": "consensus"}
    for image_id, facts, path in findings.match(findings.rows(table, _PAD), files, table):
        biopsed = facts.described["confirmation"]
        told = {**facts.described, "confirmation": confirmed.get(biopsed.casefold(), biopsed)}
        facts = dataclasses.replace(facts, described=told)
        findings.add(image_id, path, facts.label, "train", facts.where, facts)
    return PAD_UFES_20


# DermaMNIST


def _npz_files(root: Path) -> list[Path]:
    return [path for path in sorted(root.glob("dermamnist*.npz")) if path.is_file()]


def _read_npz_folder(findings: Findings) -> Classes:
    first, *others = _npz_files(findings.root)
    if others:
        raise UserError(
            f"{findings.root} holds {first.name} and {others[0].name}; pass the file that is meant "
            "as the data folder"
        )
    return _read_npz(findings, first)


def _read_npz(findings: Findings, file: Path) -> Classes:
    stat = file.stat()
    findings.stats[file] = stat.st_size, stat.st_mtime_ns
    findings.found_images = True
    for split in ("train", "val", "test"):
        try:
            rows = images.Rows(file, f"{split}_images")
            with np.load(file) as arrays:
                labels = arrays[f"{split}_labels"].reshape(-1).tolist()
        except (ValueError, KeyError, zipfile.BadZipFile) as error:
            findings.problems.append(f"{file.name}: not a file of DermaMNIST: {error}")
            continue
        if rows.shape[0] != len(labels) or rows.dtype != np.uint8 or len(rows.shape) not in (3, 4):
            findings.problems.append(
                f"{file.name}: {split}_images are {rows.dtype} {list(rows.shape)}, which do not "
                f"fit {len(labels)} labels"
            )
            continue
        for number, label in enumerate(labels):
            where = f"{file.name}, {split}_labels {number}"
            path = file / f"{split}_images" / str(number)
            name = HAM10000.names[label] if label in range(7) else str(label)
            findings.add(f"{split}_{number:06}", path, name, split, where)
    return HAM10000


# Class folders


def _is_class_folders(root: Path) -> bool:
    return any(path.name.casefold() in HAM10000.names for path in _subfolders(root))


def _is_split_folders(root: Path) -> bool:
    inner = [
        f for side in _subfolders(root) if tables.side(side.name) for f in _image_folders(side)
    ]
    return bool(inner) and not any(_NO_CLASSES.fullmatch(folder.name) for folder in inner)


def _read_split_folders(findings: Findings) -> Classes | None:
    sides: dict[str, Path] = {}
    for folder in _subfolders(findings.root):
        side = tables.side(folder.name)
        if side in sides:
            findings.problems.append(f"{folder.name} and {sides[side].name} are both {side}")
        elif side and not _image_folders(folder):
            for path in findings.scan(folder):
                findings.leave(path, f"images in {folder.name}, which has no class folders")
        elif side:
            sides[side] = folder
        elif _image_folders(folder) or any(map(_is_image, folder.iterdir())):
            findings.problems.append(
                f"{folder.name}: images beside the folders of a split; which side are they of?"
            )
    names = ", ".join(sides[side].name for side in ("train", "val", "test") if side in sides)
    findings.notes.append(
        f"the split into {names} is kept with data.split=official; the others draw a new one"
    )
    return _read_classes(findings, sides)


def _read_class_folders(findings: Findings) -> Classes | None:
    return _read_classes(findings, {"train": findings.root})


def _read_classes(findings: Findings, sides: Mapping[str, Path]) -> Classes | None:
    found: list[tuple[str, Path, list[Path]]] = []
    names = {f.name.casefold() for side in sides.values() for f in _image_folders(side)}
    names |= set(HAM10000.names)
    for side, root in sides.items():
        for path in findings.scan(root, deep=False):
            findings.problems.append(f"{findings.name(path)}: an image outside the class folders")
        for folder in _subfolders(root):
            files = findings.masks(folder, findings.scan(folder, deep=False))
            _report_nested(findings, folder, bool(files), names)
            if files:
                found.append((side, folder, files))
            else:
                findings.named.discard(folder)
    rename = dict(findings.reading.rename)
    taken = dict.fromkeys(rename.get(folder.name, folder.name) for _, folder, _ in found)
    seven = {name.casefold() for name in taken}
    plain = seven <= set(HAM10000.names)
    ways: list[Callable[[Path], str]] = [
        lambda path: path.stem,
        lambda path: f"{path.parent.name}/{path.stem}",
        lambda path: findings.name(path.with_suffix("")),
    ]
    files = [path for _, _, own in found for path in own]
    usable = (way for way in ways[not plain :] if len(set(map(way, files))) == len(files))
    id_of = next(usable, ways[-1])
    table = _one(findings, _tables(findings.root, _HAM_METADATA)) if plain else None
    metadata = findings.rows(table, _HAM) if table else {}
    for side, folder, own in found:
        for path in own:
            told = [metadata[path.stem]] if path.stem in metadata else []
            if (
                told
                and f"{told[0].label}".casefold() != rename.get(folder.name, folder.name).casefold()
            ):
                findings.problems.append(
                    f"{findings.name(path)}: {told[0].where} says {told[0].label}"
                )
            findings.add(id_of(path), path, folder.name, side, folder.name, *told)
    if plain or seven >= set(HAM10000.names):
        return HAM10000
    findings.notes.append(f"every folder is a class: {', '.join(taken)}")
    return None


def _report_nested(findings: Findings, folder: Path, has_images: bool, names: set[str]) -> None:
    """Tells of folders inside a class folder: nobody knows what class their images are of."""
    for inner in _subfolders(folder):
        below = findings.scan(inner)
        for path in below:
            findings.leave(path, f"images in {findings.name(inner)}, inside a class folder")
        where = f"{findings.name(inner)}: {len(below)} images in a folder inside a class folder"
        if below and inner.name.casefold() in names:
            findings.problems.append(f"{where}, which has a class's name: what class are they of?")
        elif below and not has_images:
            findings.problems.append(
                f"{where}, which has none itself; move them up into {findings.name(folder)}, or "
                "label the images by a table (data.table)"
            )


LAYOUTS: dict[str, _Layout] = {
    "ISIC 2018 Task 3": _Layout(
        "ISIC2018_Task3_Training_Input/ and "
        "ISIC2018_Task3_Training_GroundTruth/ISIC2018_Task3_Training_GroundTruth.csv, or those of "
        "Validation or Test",
        _is_isic_2018,
        _read_isic_2018,
    ),
    "HAM10000": _Layout(
        "HAM10000_metadata.csv beside HAM10000_images_part_1/ and HAM10000_images_part_2/, or "
        "images/",
        _is_ham10000,
        _read_ham10000,
    ),
    "ISIC 2019": _Layout(
        "ISIC_2019_Training_Input/ and ISIC_2019_Training_GroundTruth.csv",
        _is_isic_2019,
        _read_isic_2019,
    ),
    "ISIC 2020": _Layout(
        "train/ and train.csv or ISIC_2020_Training_GroundTruth.csv",
        _is_isic_2020,
        _read_isic_2020,
    ),
    "PAD-UFES-20": _Layout(
        "images/ and metadata.csv", lambda root: bool(_pad_tables(root)), _read_pad_ufes_20
    ),
    _NPZ: _Layout("dermamnist*.npz", lambda root: bool(_npz_files(root)), _read_npz_folder),
    "split folders": _Layout(
        "train/, val/ and test/ with one folder per class in each",
        _is_split_folders,
        _read_split_folders,
    ),
    "class folders": _Layout(
        "one folder per class, with any names", _is_class_folders, _read_class_folders
    ),
}
"""Every known layout; a folder has one of them."""
