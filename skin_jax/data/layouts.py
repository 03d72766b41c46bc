"""A folder of labelled images, in one of the layouts that people have, to validated records.

Archives of known data sets (`data.archives`), any table (`data.tables`), and, here, class folders:
one folder per class, also within train, val and test.
"""

import contextlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from skin_jax.base.errors import UserError
from skin_jax.data import archives, listing, tables
from skin_jax.data.archives import header_of, subfolders
from skin_jax.data.classes import HAM10000, Classes
from skin_jax.data.findings import Findings, is_litter
from skin_jax.data.images import SUFFIXES
from skin_jax.data.listing import Listing
from skin_jax.data.reading import Reading

_NO_CLASSES = re.compile(
    r"(ham10000|isic).*|images?|imgs?(_part_\d+)?|jpe?gs?|pngs?|photos|pictures|inputs?",
    re.IGNORECASE,
)
"""Folders whose names say that they are of no class."""
_DERMAMNIST, _CLASS_FOLDERS = "DermaMNIST", "class folders"
_TABLES = (".csv", ".tsv", ".tab")


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
    is_file = data_dir.is_file() and data_dir.suffix == ".npz"
    if not data_dir.exists():
        raise UserError(
            f"the data folder {data_dir} does not exist; check --config.data.dir (--data_dir of "
            "skin_jax.prepare)"
        )
    if not (data_dir.is_dir() or is_file):
        raise UserError(
            f"{data_dir} is a file; give the folder that holds the images (a table that labels "
            "them goes with --config.data.table, in skin_jax.prepare --table)"
        )
    findings = Findings(data_dir.parent if is_file else data_dir, reading, target)
    layout, known = "table", None
    try:
        if is_file:
            layout, known = _DERMAMNIST, archives.read_dermamnist(findings, data_dir)
        elif reading.table is not None:
            tables.read(findings)
        else:
            layout = _recognise(findings)
            known = LAYOUTS[layout].read(findings)
        found = listing.make(findings, layout, known)
    except OSError as error:
        raise UserError(f"cannot read {error.filename or data_dir}: {error.strerror}") from None
    if not findings.found_images:
        raise UserError(
            f"{data_dir} has the layout '{layout}' but holds no images "
            f"({', '.join(sorted(SUFFIXES))}); unpack the image archives there"
        )
    return found


# Recognition


@dataclass(frozen=True)
class _Layout:
    matches: Callable[[Path], object]
    """True, or a file that was found, where a folder has the layout."""
    read: Callable[[Findings], Classes | None]
    """Fills the findings; returns the classes of the layout, None for those of the data."""
    looks_for: str


def _recognise(findings: Findings) -> str:
    root, reading = findings.root, findings.reading
    found = _layouts_of(root)
    if len(found) > 1:
        several = ", ".join(found)
        raise UserError(
            f"{root} has several layouts ({several}); put each into a folder of its own"
        )
    if found:
        return found[0]
    expected = {*reading.classes, *dict(reading.rename)}
    expected.update(findings.target.names if findings.target else ())
    if _may_be_classes(root) or any(path.name in expected for path in _image_folders(root)):
        return _CLASS_FOLDERS
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
    with contextlib.suppress(OSError):
        right = _layouts_of(folder) or (loosely and _may_be_classes(folder))
        return bool(right) and not tables.side(folder.name)
    return False


def _may_be_classes(root: Path) -> bool:
    """Whether a folder holds class folders of names that nobody has told."""
    folders = _image_folders(root)
    names = [path.name for path in folders]
    other = any(_NO_CLASSES.fullmatch(name) or tables.side(name) for name in names)
    return len(folders) > 1 and not other and not _labels_in(root)


def _labels_in(root: Path) -> list[Path]:
    """The tables of a folder that have a column of images."""
    found = (path for path in sorted(root.iterdir()) if path.suffix.lower() in _TABLES)
    return [path for path in found if path.is_file() and tables.usual("image", header_of(path))]


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not is_litter(path.name) and not path.is_dir()


def _image_folders(folder: Path) -> list[Path]:
    """Subfolders that have images right in them."""
    return [path for path in subfolders(folder) if any(map(_is_image, path.iterdir()))]


# Class folders


def _is_split_folders(root: Path) -> bool:
    inner = [f for side in subfolders(root) if tables.side(side.name) for f in _image_folders(side)]
    return bool(inner) and not any(_NO_CLASSES.fullmatch(folder.name) for folder in inner)


def _read_split_folders(findings: Findings) -> Classes | None:
    sides: dict[str, Path] = {}
    for folder in subfolders(findings.root):
        side, has_classes = tables.side(folder.name), bool(_image_folders(folder))
        if side in sides:
            findings.problems.append(f"{folder.name} and {sides[side].name} are both {side}")
        elif side and has_classes:
            sides[side] = folder
        elif side:
            for path in findings.scan(folder):
                findings.leave(path, f"images in {folder.name}, which has no class folders")
        elif has_classes or any(map(_is_image, folder.iterdir())):
            findings.problems.append(
                f"{folder.name}: images next to the folders of a split; move them to the side "
                "that they belong to"
            )
    names = ", ".join(sides[side].name for side in ("train", "val", "test") if side in sides)
    findings.notes.append(
        f"the split into {names} is kept with data.split=official; the others draw a new one"
    )
    return _read_classes(findings, sides)


def _read_classes(findings: Findings, sides: Mapping[str, Path]) -> Classes | None:
    """Every folder that has images is a class; beside the known seven may lie their metadata."""
    found: list[tuple[str, Path]] = []
    names = {f.name.casefold() for side in sides.values() for f in _image_folders(side)}
    names |= set(HAM10000.names)
    for side, root in sides.items():
        for path in findings.scan(root, deep=False):
            findings.problems.append(f"{findings.name(path)}: an image outside the class folders")
        for folder in subfolders(root):
            files = findings.masks(folder, findings.scan(folder, deep=False))
            _report_nested(findings, folder, bool(files), names)
            found += [(side, path) for path in files]
            if not files:
                findings.named.discard(folder)
    rename = dict(findings.reading.rename)
    taken = dict.fromkeys(rename.get(path.parent.name, path.parent.name) for _, path in found)
    folded = {name.casefold() for name in taken}
    plain = folded <= set(HAM10000.names)
    there = archives.tables_named(findings.root, archives.HAM_METADATA) if plain else []
    metadata = archives.rows_of(findings, there, archives.HAM_COLUMNS)
    ids = _ids(findings, [path for _, path in found], plain)
    for (side, path), image_id in zip(found, ids, strict=True):
        name, facts = path.parent.name, metadata.get(path.stem)
        if facts and f"{facts.label}".casefold() != rename.get(name, name).casefold():
            findings.problems.append(f"{findings.name(path)}: {facts.where} says {facts.label}")
        findings.add(image_id, path, name, side, name, *([facts] if facts else []))
    if plain or folded >= set(HAM10000.names):
        return HAM10000
    findings.notes.append(f"every folder is a class: {', '.join(taken)}")
    return None


def _ids(findings: Findings, files: Sequence[Path], plain: bool) -> list[str]:
    """The shortest ids that are distinct: the file name, with its class, or with its side, too."""
    ways: list[Callable[[Path], str]] = [
        lambda path: path.stem,
        lambda path: f"{path.parent.name}/{path.stem}",
        lambda path: findings.name(path.with_suffix("")),
    ]
    every = [[way(path) for path in files] for way in ways[not plain :]]
    return next((ids for ids in every if len(set(ids)) == len(ids)), every[-1])


def _report_nested(findings: Findings, folder: Path, has_images: bool, names: set[str]) -> None:
    """Tells of folders inside a class folder: nobody knows what class their images are of."""
    for inner in subfolders(folder):
        below, name = findings.scan(inner), findings.name(inner)
        for path in below:
            findings.leave(path, f"images in {name}, inside a class folder")
        where = f"{name}: {len(below)} images in a folder inside a class folder"
        if below and inner.name.casefold() in names:
            findings.problems.append(
                f"{where}, which has the name of a class: it is unclear which class they belong "
                "to; move them"
            )
        elif below and not has_images:
            findings.problems.append(
                f"{where}, which has none itself; move them up into {findings.name(folder)}, or "
                "label the images by a table (data.table)"
            )


LAYOUTS: dict[str, _Layout] = {
    "ISIC 2018 Task 3": _Layout(
        archives.is_isic_2018,
        archives.read_isic_2018,
        "ISIC2018_Task3_Training_Input/ and "
        "ISIC2018_Task3_Training_GroundTruth/ISIC2018_Task3_Training_GroundTruth.csv, or those of "
        "Validation or Test",
    ),
    "HAM10000": _Layout(
        archives.is_ham10000,
        archives.read_ham10000,
        "HAM10000_metadata.csv next to HAM10000_images_part_1/ and HAM10000_images_part_2/, or "
        "images/",
    ),
    "ISIC 2019": _Layout(
        archives.is_isic_2019,
        archives.read_isic_2019,
        "ISIC_2019_Training_Input/ and ISIC_2019_Training_GroundTruth.csv",
    ),
    "ISIC 2020": _Layout(
        archives.tables_2020,
        archives.read_isic_2020,
        "train/ and train.csv or ISIC_2020_Training_GroundTruth.csv",
    ),
    "PAD-UFES-20": _Layout(
        archives.tables_pad, archives.read_pad_ufes_20, "images/ and metadata.csv"
    ),
    _DERMAMNIST: _Layout(archives.npz_files, archives.read_dermamnist, "dermamnist*.npz"),
    "split folders": _Layout(
        _is_split_folders,
        _read_split_folders,
        "train/, val/ and test/ with one folder per class in each",
    ),
    _CLASS_FOLDERS: _Layout(
        archives.has_ham10000_classes,
        lambda findings: _read_classes(findings, {"train": findings.root}),
        "one folder per class, with any names",
    ),
}
"""Every known layout; a folder has one of them."""
