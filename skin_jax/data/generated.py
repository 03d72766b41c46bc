"""A folder of generated images: pixels, and the manifest that says what made each of them.

FOLDER/<class>/<class>_<seed>_<index>.png   8-bit RGB
FOLDER/manifest.csv                         one row an image; written last, so it means "finished"
FOLDER/grids/<class>.png                    for the eye; no images of a class
FOLDER/grids/<class>_walk.png               in straight lines from one of its images to the next
FOLDER/grids/<class>_classes.png            from its image 0 to each other class
"""

import hashlib
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from skin_jax.base import csvs
from skin_jax.base.errors import UserError, listed
from skin_jax.base.files import read_bytes, write_atomically
from skin_jax.data import images
from skin_jax.data.classes import Classes
from skin_jax.data.examples import Examples, Record, digest_of
from skin_jax.data.findings import is_litter
from skin_jax.data.images import SUFFIXES

MANIFEST = "manifest.csv"
GRIDS = "grids"


@dataclass(frozen=True)
class Generated:
    """One generated image: a row of the manifest, whose columns are these fields."""

    image: str
    """The file, relative to the folder of the manifest: `<class>/<name>`."""
    label: str
    """Name of its class."""
    index: int
    """Seed and index alone, with the weights, make the image; where each class has a generator of
    its own, seed, class and index."""
    confidence: float
    """The run's own probability of that class for the stored pixels, in [0, 1]; where the generator
    is told the class, that of the classifier that filtered the images, or 1."""
    seed: int
    step: int
    """That the generator of the image was taken at."""
    run: str
    """Which run: the name of its work folder and the first digits of the digest of its state, or
    of its classes' generators."""
    train_split: str
    """`train_split_digest` of the images that the generator was fitted on."""


COLUMNS = tuple(field.name for field in fields(Generated))


def train_split_digest(members: Iterable[tuple[str, str]]) -> str:
    """Identifies what a model was fitted on, wherever the images lie and in whatever order.

    SHA-256 over the sorted lines `<image id>,<class name>` of `splits.members`. Images of a
    generator with another digest may show lesions of this run's validation or test split.
    """
    lines = sorted(f"{image_id},{name}\n" for image_id, name in members)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def write(folder: Path, rows: Iterable[Generated]) -> None:
    """Writes the manifest, whole or not at all, so that `read` gives back exactly the same."""
    write_atomically(folder / MANIFEST, csvs.text([COLUMNS, *map(astuple, rows)]))


def read(folder: Path, classes: Classes) -> list[Generated]:
    """Reads the manifest of a folder, one row an image, and compares it with the files there.

    Raises:
      UserError: no folder, no manifest, other columns; or, all of them in one list: rows that are
        damaged or repeat, unknown classes, images outside the folder of their label, files without
        a row and rows without a file.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist; give a folder that skin_jax.generate has filled")
    path = folder / MANIFEST
    problems: list[str] = []
    try:
        header, lines = csvs.parse(read_bytes(path), problems)
    except FileNotFoundError:
        raise UserError(
            f"{folder} has no {MANIFEST}: it has no generated images, or not all of them yet; "
            "run the skin_jax.generate command that started it again to complete it"
        ) from None
    except OSError as error:
        raise UserError(f"cannot read the manifest {path}: {error.strerror}") from None
    if not header:
        raise UserError(f"cannot read the manifest {path}: {problems[0]}")
    if header != COLUMNS:
        raise UserError(f"{path}: its columns are {','.join(header)}, not {','.join(COLUMNS)}")
    rows: list[Generated] = []
    named: set[str] = set()
    for line, cells in lines:
        row, found = _parsed(cells, classes)
        problems += [f"row {line}, {problem}" for problem in found]
        if (image := cells["image"]) in named:
            problems.append(f"row {line}, column image: {image} has a row already")
        named.add(image)
        if row is not None:
            rows.append(row)
    files = _image_files(folder)
    missing = [image for image in named - files if not (folder / image).is_file()]  # if hidden
    problems += [f"{image}: in the manifest, but not in the folder" for image in missing]
    problems += [f"{image}: in the folder, but not in the manifest" for image in files - named]
    if problems:
        raise listed(f"{folder} and its {MANIFEST} do not match", problems)
    return rows


def at_most(
    rows: Sequence[Generated], real_counts: np.ndarray, ratio: float | None, classes: Classes
) -> list[Generated]:
    """Those of the rows that a run is trained with, sorted by name of the file.

    Where there is a ratio, of each class those with the lowest index: as many as that times the
    real images (real_counts, int [n]), rounded, halves up, as `skin_jax.generate --ratio` has it.
    """
    taken = list(rows)
    if ratio is not None:
        taken = []
        for name, real in zip(classes.names, real_counts, strict=True):
            own = [row for row in rows if row.label == name]
            own.sort(key=lambda row: (row.index, row.image))
            taken += own[: math.floor(ratio * real + 0.5)]
    return sorted(taken, key=lambda row: row.image)


def load(folder: Path, rows: Sequence[Generated], size: int, classes: Classes) -> Examples:
    """The images of rows at `size` pixels as examples, each a lesion of its own.

    A UserError names every image that cannot be decoded.
    """
    pixels = np.empty((len(rows), size, size, 3), np.uint8)

    def decode(place: int) -> str | None:
        try:
            pixels[place] = images.decode(folder / rows[place].image, size)
        except images.UnreadableImage as error:
            return f"{rows[place].image}: {error}"
        return None

    with ThreadPoolExecutor(images.THREADS) as pool:
        problems = list(filter(None, pool.map(decode, range(len(rows)))))
    if problems:
        raise listed(f"{folder} holds images that cannot be read", problems)
    records = tuple(
        Record(row.image, classes.index(row.label), row.image, path=folder / row.image)
        for row in rows
    )
    return Examples(records, pixels, digest_of(records, pixels), classes=classes, unit="image")


def _parsed(cells: Mapping[str, str], classes: Classes) -> tuple[Generated | None, list[str]]:
    """A row, or what is wrong with it."""
    values: dict[str, Any] = {}
    problems = []
    for column, cell in cells.items():
        pattern, convert, kind = _KINDS[column]
        try:
            if not re.fullmatch(pattern, cell, re.DOTALL):
                raise ValueError
            values[column] = convert(cell)
        except ValueError:
            problems.append(f"column {column}: {cell!r} is not {kind}")
    if (label := cells["label"]) not in classes.names:
        known = ", ".join(classes.names)
        problems.append(f"column label: {label!r} is not a class ({known})")
    if problems:
        return None, problems
    row = Generated(**values)
    if PurePosixPath(row.image).parts[:-1] != (row.label,):
        return None, [f"column label: {row.label}, but {row.image} lies in another folder"]
    return row, []


def _probability(cell: str) -> float:
    if not 0 <= float(cell) <= 1:  # NaN, too
        raise ValueError
    return float(cell)


_COUNT = (r"[0-9]+", int, "a whole number from 0")
_KINDS: dict[str, tuple[str, Callable[[str], Any], str]] = {
    "image": (r".+/.+", str, "a file in a class folder"),
    "label": (r".+", str, "the name of a class"),
    "index": _COUNT,
    "confidence": (r".+", _probability, "a number in [0, 1]"),
    "seed": _COUNT,
    "step": _COUNT,
    "run": (r".+", str, "the name of a run"),
    "train_split": (r"[0-9a-f]{64}", str, "a SHA-256 digest"),
}
"""What the cells of each column match, what makes values of them, and what they are in words."""


def _image_files(folder: Path) -> set[str]:
    """Images anywhere in the folder but in the grids and in litter, relative to it."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    images = (path for path in found if path.suffix.lower() in SUFFIXES)
    return {
        path.as_posix()
        for path in images
        if path.parts[0] != GRIDS and not any(map(is_litter, path.parts))
    }
