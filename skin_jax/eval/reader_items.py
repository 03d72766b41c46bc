"""The images of a reader study, its key, and the answers of its readers.

STUDY.html       what readers get; `report.reader_page`
STUDY.key.json   what each of its images is; stays with whoever made the study
ANSWERS.csv      what the page gives back, one row an image: `COLUMNS`
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from skin_jax.base import csvs
from skin_jax.base.errors import UserError, listed, warn
from skin_jax.base.files import read_bytes, read_text, write_json
from skin_jax.config import is_procedural
from skin_jax.data import generated as generated_lib
from skin_jax.data import splits
from skin_jax.data.classes import Classes
from skin_jax.data.generated import Generated
from skin_jax.eval.readers import apportioned
from skin_jax.training.run import SPLITS_FILE, Experiment, reopen

REAL, GENERATED = ANSWERS = ("real", "generated")
COLUMNS = ("study", "reader", "experience", "item", "answer", "diagnosis", "seconds")

_DIGITS = 11  # of codes, after a letter: spreadsheets take 12e45678901 for a number


@dataclasses.dataclass(frozen=True)
class Item:
    """One image of a study: the name of its class, and its id or its file."""

    generated: bool
    label: str
    image: str


@dataclasses.dataclass(frozen=True)
class Key:
    """The key to the images of a study, by their codes, in the order of the codes.

    Attributes:
      study: the study's own code.
      classes: names of those that readers choose from where they are asked for a diagnosis; those
        of the run.
      diagnosis: whether they are.
      items: code -> what it is.
      facts: what the study was made of, for reports.
    """

    study: str
    classes: Sequence[str]
    diagnosis: bool
    items: dict[str, Item]
    facts: dict[str, Any]

    @property
    def generated(self) -> np.ndarray:
        """Whether each image is generated, bool [I]."""
        return np.array([item.generated for item in self.items.values()])

    @property
    def labels(self) -> np.ndarray:
        """The class of each image, int [I], indices into `classes`."""
        return np.array([self.classes.index(item.label) for item in self.items.values()])

    def write(self, path: Path) -> None:
        """Writes the key, whole or not at all.

        Raises:
          UserError: the file is the key of another study, or cannot be written.
        """
        if path.exists() and read_key(path).study != self.study:
            raise UserError(
                f"{path} is the key of another study, whose answers nobody could score without it; "
                "give another --out"
            )
        write_json(path, dataclasses.asdict(self))


@dataclasses.dataclass(frozen=True)
class Answers:
    """Answers of R readers about I images, in the order of the key."""

    readers: Sequence[str]
    experience: Sequence[str]  # as each reader put it
    called: np.ndarray  # bool [I, R], "generated"
    diagnoses: np.ndarray  # int [I, R], indices into the classes; -1 where they are not asked for
    seconds: np.ndarray  # float [I, R]


def make(
    workdir: Path, folder: Path, number: int, *, seed: int, diagnosis: bool
) -> tuple[Key, Classes, np.ndarray]:
    """Draws the images of a study: validation images of a run, and as many generated ones.

    Both kinds have the same number of each class, in the proportions of the folder. Real images are
    of different lesions as far as there are enough. The same call gives the same study; its codes,
    whose order is that of the images, cannot be computed without knowing which image is which.

    Args:
      workdir: of the run.
      folder: of generated images.
      number: of images of each kind.
      seed: of the draw.
      diagnosis: readers are asked for the class, too.

    Returns:
      The key, the run's classes, and the images uint8 [2 * number, S, S, 3] in the key's order.

    Raises:
      UserError: no such run or folder, or too few images.
    """
    experiment = reopen(workdir)
    classes, size = experiment.classes, experiment.config.data.image_size
    rows = generated_lib.read(folder, classes)
    rng = np.random.default_rng(seed)
    rows = [rows[i] for i in rng.permutation(len(rows))]
    real = _of_different_lesions(experiment, rng)
    counts = _numbers(experiment, folder, rows, number)
    labels = experiment.examples.labels[real]
    real = np.concatenate([real[labels == c][:n] for c, n in enumerate(counts)])
    chosen = [
        row
        for name, n in zip(classes.names, counts, strict=True)
        for row in [row for row in rows if row.label == name][:n]
    ]
    made = generated_lib.load(folder, chosen, size, classes)
    images = np.concatenate([experiment.examples.images[real], made.images[np.arange(len(chosen))]])
    fitted = _warned(workdir, folder, chosen, size)
    records = [experiment.examples.records[i] for i in real]
    items = [Item(False, classes.names[r.label], r.image_id) for r in records]
    items += [Item(True, row.label, row.image) for row in chosen]
    secret = hashlib.sha256(repr((seed, diagnosis, items)).encode() + images.tobytes()).hexdigest()
    codes = [f"i{_digest(f'{secret}{i}')}" for i in range(len(items))]
    order = np.argsort(codes)
    key = Key(
        study=f"s{_digest(secret)}",
        classes=classes.names,
        diagnosis=diagnosis,
        items={codes[i]: items[i] for i in order},
        facts={
            "run": workdir.resolve().name,
            "generated_images": folder.resolve().name,
            "image_size": size,
            "seed": seed,
            "same_training_split": fitted,
            "demo": is_procedural(experiment.config.data),
        },
    )
    return key, classes, images[order]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]


def _of_different_lesions(experiment: Experiment, rng: np.random.Generator) -> np.ndarray:
    """Validation images in random order, int [V], those of lesions that came before at the end."""
    seen: set[str] = set()
    firsts: list[int] = []
    others: list[int] = []
    for i in rng.permutation(experiment.indices("val")):
        lesion = experiment.examples.records[i].lesion_id
        (others if lesion in seen else firsts).append(i)
        seen.add(lesion)
    return np.array(firsts + others, int)


def _numbers(
    experiment: Experiment, folder: Path, rows: Sequence[Generated], number: int
) -> np.ndarray:
    """Images of each class of either kind, int [C]."""
    names = experiment.classes.names
    folder_has = np.array([sum(row.label == name for row in rows) for name in names])
    val_has = experiment.class_counts("val")

    def fits(total: int) -> bool:
        return total <= len(rows) and bool((apportioned(folder_has, total) <= val_has).all())

    if fits(number):
        return apportioned(folder_has, number)
    largest = next((n for n in range(min(number, len(rows)), 0, -1) if fits(n)), 0)
    hint = f"the largest --images that works is {largest}"
    if not largest:
        hint = "generate classes that the validation split has (skin_jax.generate --classes)"
    if number > len(rows):
        raise UserError(f"{folder} holds {len(rows)} images, {number} are needed; {hint}")
    wanted = apportioned(folder_has, number)
    raise listed(
        f"the validation split has too few images to go with those of {folder}; {hint}",
        [
            f"{names[c]}: {val_has[c]}, {wanted[c]} are needed"
            for c in np.flatnonzero(wanted > val_has)
        ],
    )


def _warned(workdir: Path, folder: Path, rows: Sequence[Generated], size: int) -> bool:
    """Says what would help readers; returns whether the run's split is the generator's."""
    mine = generated_lib.train_split_digest(splits.members(workdir / SPLITS_FILE, "train"))
    fitted = {row.train_split for row in rows} == {mine}
    if not fitted:
        warn(
            f"the generator of the images in {folder} was trained on other images than the "
            f"training split of {workdir}: it may have seen the real images of this study"
        )
    sizes = set()
    for row in rows:
        with Image.open(folder / row.image) as image:
            sizes.add(image.size)
    if sizes != {(size, size)}:
        odd = ", ".join(f"{width}x{height}" for width, height in sorted(sizes))
        warn(
            f"the images in {folder} have {odd} pixels and are resized to {size}x{size}, the size "
            "of the run: readers may tell them apart by their sharpness alone"
        )
    return fitted


def read_key(path: Path) -> Key:
    """Reads what `Key.write` wrote.

    Raises:
      UserError: there is no such file, or it is not the key of a study.
    """
    try:
        content = json.loads(read_text(path))
        key = Key(**{**content, "items": {k: Item(**v) for k, v in content["items"].items()}})
        labels, generated = key.labels, key.generated
        if not key.items or sorted(labels[generated]) != sorted(labels[~generated]):
            raise ValueError("it needs as many real as generated images of each class")
    except OSError as error:
        raise UserError(f"cannot read the key {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is not the key of a study, or damaged ({error}); give the .key.json that "
            "--make wrote next to the page"
        ) from None
    return key


def read_answers(paths: Iterable[Path], key: Key) -> Answers:
    """Reads the answers of any number of readers, of whom a file may hold several.

    Raises:
      UserError: lists every problem: files that cannot be read or are of another study, answers
        that are none, items that are missing or answered twice.
    """
    problems: list[str] = []
    readers: dict[str, dict[str, dict[str, str]]] = {}
    origin: dict[str, Path] = {}
    for path in dict.fromkeys(paths):
        own: dict[str, dict[str, dict[str, str]]] = {}
        for number, cells in _rows(path, key, problems):
            where = f"{path}, row {number}"
            if not (reader := cells["reader"]):
                problems.append(f"{where}: no name of the reader")
                continue
            answered, item = own.setdefault(reader, {}), cells["item"]
            if item not in key.items:
                problems.append(f"{where}: {item!r} is no item of this study")
            elif item in answered:
                problems.append(f"{where}: {reader} answered item {item} twice")
            else:
                problems += [f"{where}, {fault}" for fault in _faults(cells, key)]
                answered[item] = cells
        for reader, answered in own.items():
            if reader in readers:
                problems.append(f"{path}: {reader} answered in {origin[reader]} already")
            elif missing := [item for item in key.items if item not in answered]:
                few = ", ".join(missing[:3]) + ", ..." * (len(missing) > 3)
                problems.append(
                    f"{path}: {reader} did not answer {len(missing)} of {len(key.items)} items "
                    f"({few})"
                )
        origin |= dict.fromkeys(own, path)
        readers |= own
    if problems or not readers:
        raise listed("the answers cannot be scored", problems or ["no file of answers is given"])
    table = [[answered[item] for answered in readers.values()] for item in key.items]
    return Answers(
        readers=list(readers),
        experience=[cells["experience"] for cells in table[0]],
        called=np.array([[cells["answer"] == GENERATED for cells in row] for row in table]),
        diagnoses=np.array(
            [
                [key.classes.index(c["diagnosis"]) if key.diagnosis else -1 for c in row]
                for row in table
            ]
        ),
        seconds=np.array([[_seconds(cells) for cells in row] for row in table]),
    )


def _rows(path: Path, key: Key, problems: list[str]) -> list[csvs.Row]:
    """The rows of a file that is of this study."""
    faults: list[str] = []
    try:
        _, rows = csvs.parse(read_bytes(path), faults, columns=COLUMNS, strip=True)
    except OSError as error:
        problems.append(f"{path}: cannot be read ({error.strerror})")
        return []
    problems += [f"{path}, {fault}" for fault in faults]
    if others := {row.values["study"] for row in rows} - {key.study}:
        named = ", ".join(sorted(others))
        problems.append(f"{path}: of another study ({named}); the key is of {key.study}")
        return []
    return rows


def _faults(cells: dict[str, str], key: Key) -> list[str]:
    faults = []
    if (answer := cells["answer"]) not in ANSWERS:
        faults.append(f"column answer: {answer!r} is neither {REAL} nor {GENERATED}")
    if key.diagnosis and (named := cells["diagnosis"]) not in key.classes:
        faults.append(f"column diagnosis: {named!r} is not a class ({', '.join(key.classes)})")
    try:
        if not 0 <= _seconds(cells) < np.inf:
            raise ValueError
    except ValueError:
        faults.append(f"column seconds: {cells['seconds']!r} is not a time")
    return faults


def _seconds(cells: dict[str, str]) -> float:
    return float(cells["seconds"].replace(",", "."))  # as spreadsheets of some countries save it
