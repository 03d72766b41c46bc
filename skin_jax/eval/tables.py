"""Predictions and truth as CSVs: the image and a column for each class, as the challenge has them.

Every problem of a file is collected before anything is raised, so that one look mends them all.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from skin_jax.base import csvs
from skin_jax.base.errors import UserError, listed
from skin_jax.base.files import read_bytes, write_atomically
from skin_jax.data.classes import HAM10000, Classes
from skin_jax.data.findings import without_ending

IMAGE = "image"
_NO_CLASSES = (IMAGE, "score_weight", "validation_weight")  # the challenges' weights of images
_ROUNDING = 1e-6


class Scores(NamedTuple):
    """Image ids and float64 [N, C] in [0, 1], in the order of the classes."""

    image_ids: list[str]
    probabilities: np.ndarray


class Truth(NamedTuple):
    """Image ids and int64 labels [N] in 0..C-1."""

    image_ids: list[str]
    labels: np.ndarray


def write_predictions(
    path: Path, image_ids: Sequence[str], probabilities: np.ndarray, classes: Classes
) -> None:
    """Write predictions so that `read_predictions` gives back exactly the same numbers.

    Of N distinct ids and float [N, C]; rounding errors of up to 1e-6 outside [0, 1] are cut.

    Raises:
      ValueError: shapes that do not fit, ids that repeat, values that are not in [0, 1].
      UserError: the folder cannot be written.
    """
    probabilities = np.asarray(probabilities, np.float64)
    if probabilities.shape != (len(image_ids), len(classes)):
        raise ValueError(f"probabilities {probabilities.shape} do not fit {len(image_ids)} ids")
    if len(set(image_ids)) != len(image_ids):
        raise ValueError("image ids repeat")
    if not (np.abs(probabilities - 0.5) <= 0.5 + _ROUNDING).all():
        raise ValueError("probabilities are not all within [0, 1]")
    ordered = probabilities.clip(0.0, 1.0)[:, classes.column_order].tolist()
    rows = ([i, *map(repr, row)] for i, row in zip(image_ids, ordered, strict=True))
    write_atomically(path, csvs.text([(IMAGE, *classes.columns), *rows]))


def read_predictions(path: Path, classes: Classes) -> Scores:
    """Read a predictions CSV; rows in the file's order, columns in any, others ignored.

    Raises:
      UserError: no such file, a missing or repeated column, an empty or repeated id, a row of
        another length, a score that is no number or outside [0, 1]; all of them, by row and column.
    """
    scores, problems = _read(path, classes)
    if problems:
        raise listed(f"{path} is not a predictions CSV", problems)
    return scores


def read_truth(path: Path, classes: Classes) -> Truth:
    """Read a ground truth CSV, whose rows are one-hot.

    Raises:
      UserError: as `read_predictions`, and rows that are not one-hot.
    """
    (image_ids, scores), problems = _read(path, classes)
    if not problems:
        one_hot = np.isin(scores, (0, 1)).all(axis=1) & (scores.sum(axis=1) == 1)
        wrong = (image_ids[i] for i in np.flatnonzero(~one_hot))
        problems = [f"image {name}: its row is not a single 1 and otherwise 0" for name in wrong]
    if problems:
        raise listed(f"{path} is not a ground truth CSV", problems)
    return Truth(image_ids, scores.argmax(axis=1))


def join(predictions_path: Path, truth_path: Path, classes: Classes) -> tuple[Scores, Truth]:
    """Read a pair of CSVs and bring the predictions into the order of the truth.

    Raises:
      UserError: as the two readers, or the files do not hold the same ids.
    """
    predictions = read_predictions(predictions_path, classes)
    truth = read_truth(truth_path, classes)
    predicted, known = set(predictions.image_ids), set(truth.image_ids)
    nearly = {_folded(i): i for i in predicted - known}
    near = sorted(i for i in known - predicted if _folded(i) in nearly)
    problems = [
        f"{len(near)} ids differ only in case, in spaces or in an ending such as .jpg: "
        f"{nearly[_folded(i)]!r} in {predictions_path} and {i!r} in {truth_path}; spell them the "
        "same"
        for i in near[:1]
    ]
    spelled = {*near, *(nearly[_folded(i)] for i in near)}
    problems += sorted(
        [f"image {i}: no row in {predictions_path}" for i in known - predicted - spelled]
        + [f"image {i}: no row in {truth_path}" for i in predicted - known - spelled]
    )
    if problems:
        raise listed("predictions and truth are not about the same images", problems)
    rows = dict(zip(predictions.image_ids, predictions.probabilities, strict=True))
    return Scores(truth.image_ids, np.array([rows[i] for i in truth.image_ids])), truth


def classes_of(predictions_path: Path, truth_path: Path) -> Classes:
    """The classes of a pair of CSVs of which only the headers say them.

    Those of HAM10000 where the truth has the challenge's columns, else its columns in their order.

    Raises:
      UserError: a file that cannot be read, columns that differ, or that leave open which of them
        are classes.
    """
    predicted, true = _class_columns(predictions_path), _class_columns(truth_path)
    if set(HAM10000.columns) <= set(true):
        if both := [name for name in true if name in predicted and name not in HAM10000.columns]:
            raise UserError(
                f"{predictions_path} and {truth_path} have the challenge's columns and "
                f"{', '.join(both)}: it is not clear which are classes; remove the columns that "
                "are not, or give the run that predicted with --workdir"
            )
        return HAM10000
    if set(predicted) != set(true) or len(true) < 2:
        raise UserError(
            f"the columns of {predictions_path} ({', '.join(predicted)}) and {truth_path} "
            f"({', '.join(true)}) have to be the same classes, two or more, next to {IMAGE}"
        )
    return Classes.of(true)


def _folded(image_id: str) -> str:
    return without_ending(image_id.strip()).casefold()


def _class_columns(path: Path) -> list[str]:
    header, _, problems = _parsed(path)
    if not header:
        raise listed(f"{path} is no table of classes", problems)
    return [name for name in header if name not in _NO_CLASSES]


def _parsed(path: Path, *columns: str) -> tuple[tuple[str, ...], list[csvs.Row], list[str]]:
    """The header, the rows and the problems."""
    problems: list[str] = []
    try:
        content = read_bytes(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    needed = (IMAGE, *columns)
    return *csvs.parse(content, problems, columns=needed, strip=True, exact=IMAGE), problems


def _read(path: Path, classes: Classes) -> tuple[Scores, list[str]]:
    """The scores, NaN where unreadable, and the problems."""
    _, rows, problems = _parsed(path, *classes.columns)
    first: dict[str, int] = {}
    scores = np.full((len(rows), len(classes)), np.nan)
    for n, (number, cells) in enumerate(rows):
        image_id = cells[IMAGE]
        if not image_id:
            problems.append(f"row {number}, column {IMAGE}: empty")
        elif (earlier := first.setdefault(image_id, number)) != number:
            problems.append(f"row {number}, column {IMAGE}: {image_id} is already in row {earlier}")
        for name, label in zip(classes.columns, classes.column_order, strict=True):
            try:
                score = float(cells[name].replace(",", "."))  # as some countries' spreadsheets save
            except ValueError:
                problems.append(f"row {number}, column {name}: {cells[name]!r} is no number")
                continue
            scores[n, label] = min(max(score, 0.0), 1.0)
            if not abs(score - 0.5) <= 0.5 + _ROUNDING:
                problems.append(f"row {number}, column {name}: {cells[name]} is not within [0, 1]")
    return Scores([row.values[IMAGE] for row in rows], scores), problems
