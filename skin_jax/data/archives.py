"""Known data sets as their archives unpack: ISIC 2018 to 2020, HAM10000, PAD-UFES-20, DermaMNIST.

ISIC 2018 (task 3), 2019, 2020: https://challenge.isic-archive.com/data.
HAM10000: as Harvard Dataverse (doi:10.7910/DVN/DBW86T) and Kaggle ship it.
PAD-UFES-20: as Mendeley Data (doi:10.17632/zr7vgbcyr2.1) ships it.
DermaMNIST: a file of MedMNIST v2 (doi:10.5281/zenodo.6496656).

For each there is what recognises its folder, and a function that fills `Findings` and returns the
classes.
"""

import re
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from skin_jax.base import csvs
from skin_jax.base.errors import UserError
from skin_jax.base.files import opened
from skin_jax.data import images
from skin_jax.data.classes import HAM10000, ISIC_2019, ISIC_2020, PAD_UFES_20, Classes
from skin_jax.data.findings import Columns, Facts, Findings, is_litter, leads_back

HAM_METADATA = "HAM10000_metadata"
_HAM_FOLDERS = "ham10000_images.*|images"
_SAME = {"age": "age", "sex": "sex", "localization": "localization"}
_LESION = {"lesion": "lesion_id"}
HAM_COLUMNS = Columns(
    "image_id", label="dx", groups=_LESION, described={**_SAME, "confirmation": "dx_type"}
)
_GROUPINGS = Columns("image", groups=_LESION, described={"confirmation": "diagnosis_confirm_type"})
_METADATA_2019 = Columns(
    "image", described={**_SAME, "age": "age_approx", "localization": "anatom_site_general"}
)
_TRUTH_2020 = Columns(
    "image_name",
    groups={"patient": "patient_id"},
    described={**_SAME, "age": "age_approx", "localization": "anatom_site_general_challenge"},
)
_PAD = Columns(
    "img_id",
    label="diagnostic",
    groups={"patient": "patient_id", **_LESION},
    described={"age": "age", "sex": "gender", "localization": "region", "confirmation": "biopsed"},
)
_PARTS = {"Training": "train", "Validation": "val", "Test": "test"}
"""The challenges' words for the sides of their split."""
_ENDINGS = ("", ".csv", ".tab", ".tsv")


# Finding things in a folder


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder, sorted, but for litter and links to a folder around them."""
    found = (path for path in folder.iterdir() if path.is_dir() and not is_litter(path.name))
    return sorted(path for path in found if not leads_back(path))


def header_of(path: Path) -> tuple[str, ...]:
    """The columns of a table, without reading all of it."""
    with opened(path) as file:
        return csvs.parse(file.readline(), [], strip=True)[0]


def tables_named(folder: Path, stem: str) -> list[Path]:
    """Tables of a name, in any case, also in folders of that name: as archives unpack."""
    stem = stem.casefold()
    found = []
    for path in sorted(folder.iterdir()):
        if path.is_dir() and path.name.casefold() == stem:
            found += tables_named(path, stem)
        elif path.name.casefold() in [f"{stem}{ending}" for ending in _ENDINGS]:
            found.append(path)
    return found


def one(findings: Findings, found: Sequence[Path]) -> Path:
    """The first of the tables that were found, at least one; all must say the same."""
    first, *others = found
    findings.problems += [
        f"{findings.name(first)} and {findings.name(other)} differ; remove one of them"
        for other in others
        if findings.table(other) != findings.table(first)
    ]
    return first


def rows_of(findings: Findings, found: Sequence[Path], columns: Columns) -> dict[str, Facts]:
    """The rows of `one` of the tables by image id; none where no table was found."""
    return findings.rows(one(findings, found), columns) if found else {}


def _with_lesions(findings: Findings, found: Sequence[Path], columns: Columns) -> Columns:
    """The columns, with that of lesions where a table has it."""
    if not (found and "lesion_id" in findings.table(found[0])[0]):
        return columns
    return replace(columns, groups={**columns.groups, "lesion": "lesion_id"})


def _folders(root: Path, pattern: str) -> list[Path]:
    fits = re.compile(pattern, re.IGNORECASE)
    return [path for path in subfolders(root) if fits.fullmatch(path.name)]


@dataclass(frozen=True)
class _Challenge:
    """Names of the truth and the images of each part of a challenge: "{}" is for the part."""

    table: str
    folder: str
    columns: Columns

    def parts(self, root: Path, part: str) -> tuple[list[Path], list[Path]]:
        """The folders of images of a part, and the tables that label them."""
        folders = _folders(root, self.folder.format(part))
        return folders, tables_named(root, self.table.format(part))

    def read(
        self, findings: Findings, part: str, *more: Mapping[str, Facts]
    ) -> list[tuple[str, Facts]]:
        """Adds the images of a part, with what more tables say; tells what is left out, and why."""
        folders, found = self.parts(findings.root, part)
        findings.named.update(folders)
        if not (folders and found):
            findings.notes += [
                f"{folder.name} is left out: it has no ground truth, so no labels"
                for folder in folders
            ]
            for path in found[:1]:
                findings.named.add(path.parent)
                findings.notes.append(
                    f"{findings.name(path)} is left out: its images are not there"
                )
            return []
        # Dataverse's own test set has HAM10000's columns.
        columns = HAM_COLUMNS if "dx" in findings.table(found[0])[0] else self.columns
        return _add(findings, folders, found, columns, _PARTS[part], *more)


def _add(
    findings: Findings,
    folders: Sequence[Path],
    tables: Sequence[Path],
    columns: Columns,
    split: str,
    *more: Mapping[str, Facts],
    loose: Sequence[Path] = (),
) -> list[tuple[str, Facts]]:
    """Adds the images in folders, and loose ones, that a table labels; returns its rows of them."""
    files = [*loose, *(path for folder in folders for path in findings.scan(folder))]
    files, table = _without_twins(findings, files), one(findings, tables)
    added = findings.match(findings.rows(table, columns), files, table)
    for image_id, facts, path in added:
        told = [rows[image_id] for rows in more if image_id in rows]
        findings.add(image_id, path, facts.label, split, facts.where, facts, *told)
    return [(image_id, facts) for image_id, facts, _ in added]


def _without_twins(findings: Findings, paths: Sequence[Path]) -> list[Path]:
    """Drops second copies: Kaggle ships its folders twice, under names that differ in case."""
    kept: dict[tuple[str, str, int], Path] = {}
    for path in paths:
        twin = path.parent.name.casefold(), path.name, findings.sizes[path]
        if kept.setdefault(twin, path) is not path:
            findings.leave(path, "images that are there twice, in folders of one name")
    return list(kept.values())


# ISIC 2018 and HAM10000

_ISIC_2018 = _Challenge(
    "ISIC2018_Task3_{}_GroundTruth",
    "ISIC2018_Task3_{}_(Input|Images)",
    Columns("image", one_hot=HAM10000.columns),
)


def is_isic_2018(root: Path) -> bool:
    """Any part of the challenge, with its truth, but not the test set beside HAM10000."""
    parts = [part for part in _PARTS if all(_ISIC_2018.parts(root, part))]
    return "Training" in parts or bool(parts and not is_ham10000(root))


def read_isic_2018(findings: Findings) -> Classes:
    """Joins the truth with the lesion groupings, and with HAM10000's metadata where they are."""
    root, name = findings.root, "ISIC2018_Task3_Training_LesionGroupings"
    folders = (root, *_folders(root, _ISIC_2018.table.format("Training")))
    found = [path for folder in folders for path in tables_named(folder, name)]
    groupings = rows_of(findings, found, _GROUPINGS)
    columns = replace(HAM_COLUMNS, label=None)
    metadata = rows_of(findings, tables_named(root, HAM_METADATA), columns)
    for part in _PARTS:
        for image_id, facts in _ISIC_2018.read(findings, part, groupings, metadata):
            if part == "Training" and groupings and image_id not in groupings:
                findings.problems.append(
                    f"{facts.where}: no row for {image_id} in the LesionGroupings file"
                )
    return HAM10000


def is_ham10000(root: Path) -> bool:
    """The metadata; they may also lie beside the challenge's folders, or beside class folders."""
    if not tables_named(root, HAM_METADATA) or all(_ISIC_2018.parts(root, "Training")):
        return False
    return bool(_folders(root, _HAM_FOLDERS)) or not has_ham10000_classes(root)


def has_ham10000_classes(root: Path) -> bool:
    """Whether a folder has folders that are named like HAM10000's classes, in any case."""
    return any(path.name.casefold() in HAM10000.names for path in subfolders(root))


def read_ham10000(findings: Findings) -> Classes:
    """The images lie in the archives' folders, in `images` or beside the metadata."""
    root, loose = findings.root, findings.scan(findings.root, deep=False)
    tables = tables_named(root, HAM_METADATA)
    _add(findings, _folders(root, _HAM_FOLDERS), tables, HAM_COLUMNS, "train", loose=loose)
    for part in ("Validation", "Test"):
        _ISIC_2018.read(findings, part)
    return HAM10000


# ISIC 2019 and 2020, PAD-UFES-20

_ISIC_2019 = _Challenge(
    "ISIC_2019_{}_GroundTruth",
    "ISIC_2019_{}_Input",
    Columns("image", one_hot=(*ISIC_2019.columns, "UNK")),
)


def is_isic_2019(root: Path) -> bool:
    """The training part, or the test part."""
    return any(all(_ISIC_2019.parts(root, part)) for part in _PARTS)


def read_isic_2019(findings: Findings) -> Classes:
    """Images of UNK, which only the test part has, are left out unless they are asked for."""
    for part in ("Training", "Test"):
        found = tables_named(findings.root, f"ISIC_2019_{part}_Metadata")
        columns = _with_lesions(findings, found, _METADATA_2019)  # the test set has none
        _ISIC_2019.read(findings, part, rows_of(findings, found, columns))
    if {"UNK", "unk"}.isdisjoint({*findings.reading.classes, *dict(findings.reading.rename)}):
        findings.left_out += Counter(
            image.label for image in findings.images if image.label == "UNK"
        )
        findings.images = [image for image in findings.images if image.label != "UNK"]
    return ISIC_2019


def tables_2020(root: Path) -> list[Path]:
    """The tables of ISIC 2020, under the challenge's or Kaggle's name."""
    stem = "ISIC_2020_Training_GroundTruth"
    found = tables_named(root, f"{stem}_v2") or tables_named(root, stem)
    found = found or tables_named(root, "train")
    return [path for path in found if {"image_name", "target"} <= {*header_of(path)}]


def read_isic_2020(findings: Findings) -> Classes:
    """The class is `target`, with which `benign_malignant` has to agree."""
    root, found = findings.root, tables_2020(findings.root)
    (header, rows), columns = findings.table(found[0]), _with_lesions(findings, found, _TRUTH_2020)
    label = "benign_malignant" if "benign_malignant" in header else "target"
    for row in rows if label == "benign_malignant" else ():
        target, name = row.values["target"].removesuffix(".0"), row.values[label]
        if (target, name) not in (("0", "benign"), ("1", "malignant")):
            findings.problems.append(
                f"{findings.name(found[0])}, row {row.number}: {label} is {name!r}, but target is "
                f"{target!r}"
            )
    folders = _folders(root, "train|ISIC_2020_Training_(JPEG|Input)")
    for outer in _folders(root, "jpeg"):
        findings.named.add(outer)
        folders += _folders(outer, "train")
    _add(findings, folders, found, replace(columns, label=label), "train")
    if label == "target":
        numbers = {"0": "benign", "1": "malignant"}
        findings.images = [
            replace(image, label=numbers.get(f"{image.label}".removesuffix(".0"), image.label))
            for image in findings.images
        ]
    return ISIC_2020


def tables_pad(root: Path) -> list[Path]:
    """The tables of PAD-UFES-20."""
    wanted = {"img_id", "diagnostic", "patient_id"}
    return [path for path in tables_named(root, "metadata") if wanted <= {*header_of(path)}]


def read_pad_ufes_20(findings: Findings) -> Classes:
    """The images lie in `images`, in the archives' folders or beside the metadata."""
    root, loose = findings.root, findings.scan(findings.root, deep=False)
    folders = _folders(root, r"images|imgs_part_\d+")
    _add(findings, folders, tables_pad(root), _PAD, "train", loose=loose)
    return PAD_UFES_20


# DermaMNIST


def npz_files(root: Path) -> list[Path]:
    """The files of DermaMNIST in a folder, of any size of images."""
    return [path for path in sorted(root.glob("dermamnist*.npz")) if path.is_file()]


def read_dermamnist(findings: Findings, file: Path | None = None) -> Classes:
    """Reads the file that is given, or the one in the folder: a UserError if there are several."""
    first, *others = [file] if file else npz_files(findings.root)
    if others:
        raise UserError(
            f"{findings.root} holds {first.name} and {others[0].name}; pass the file that is meant "
            "as the data folder"
        )
    findings.sizes[first] = first.stat().st_size
    findings.found_images = True
    for split in _PARTS.values():
        try:
            rows = images.Rows(first, f"{split}_images")
            with np.load(first) as arrays:
                labels = arrays[f"{split}_labels"].reshape(-1).tolist()
        except (ValueError, KeyError, zipfile.BadZipFile) as error:
            findings.problems.append(f"{first.name}: not a file of DermaMNIST: {error}")
            continue
        if rows.shape[0] != len(labels) or rows.dtype != np.uint8 or len(rows.shape) not in (3, 4):
            findings.problems.append(
                f"{first.name}: {split}_images are {rows.dtype} {list(rows.shape)}, which do not "
                f"fit {len(labels)} labels"
            )
            continue
        for number, label in enumerate(labels):
            where = f"{first.name}, {split}_labels {number}"
            path = first / f"{split}_images" / str(number)
            name = HAM10000.names[label] if label in range(len(HAM10000)) else str(label)
            findings.add(f"{split}_{number:06}", path, name, split, where)
    return HAM10000
