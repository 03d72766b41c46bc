"""Predictions and truth as CSVs in the challenge's columns: image,MEL,NV,BCC,AKIEC,BKL,DF,VASC.

Every problem of a file is collected before anything is raised, so that one look mends them all.
"""

import csv
import io
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from skin_jax.base.errors import UserError, listed
from skin_jax.base.files import write_atomically
from skin_jax.data.classes import CHALLENGE_COLUMNS, CHALLENGE_ORDER, CLASSES

COLUMNS = ("image", *CHALLENGE_COLUMNS)

_ROUNDING = 1e-6


class Scores(NamedTuple):
    """Image ids and float64 [N, 7] in [0, 1], in the order of CLASSES."""

    image_ids: list[str]
    probabilities: np.ndarray


class Truth(NamedTuple):
    """Image ids and int64 labels [N] in 0..6."""

    image_ids: list[str]
    labels: np.ndarray


def write_predictions(
    path: str | os.PathLike[str], image_ids: Sequence[str], probabilities: np.ndarray
) -> None:
    """Write predictions so that `read_predictions` gives back exactly the same numbers.

    Args:
      path: of the CSV; its folder is made if need be.
      image_ids: N distinct ids, without extension.
      probabilities: [N, 7] in the order of CLASSES; float32 is widened. Rounding errors of up to
        1e-6 outside [0, 1] are cut.

    Raises:
      ValueError: shapes that do not fit, ids that repeat, values that are not in [0, 1].
      UserError: the folder cannot be written.
    """
    probabilities = np.asarray(probabilities, np.float64)
    if probabilities.shape != (len(image_ids), len(CLASSES)):
        raise ValueError(f"probabilities {probabilities.shape} do not fit {len(image_ids)} ids")
    if len(set(image_ids)) != len(image_ids):
        raise ValueError("image ids repeat")
    if not (np.abs(probabilities - 0.5) <= 0.5 + _ROUNDING).all():
        raise ValueError("probabilities are not all within [0, 1]")
    ordered = probabilities.clip(0.0, 1.0)[:, CHALLENGE_ORDER]
    rows = ([i, *map(repr, row)] for i, row in zip(image_ids, ordered.tolist(), strict=True))
    write_atomically(path, _csv_text([COLUMNS, *rows]))


def read_predictions(path: str | os.PathLike[str]) -> Scores:
    """Read a predictions CSV; rows in the file's order, columns in any, others ignored.

    Raises:
      UserError: no such file, a missing or repeated column, an empty or repeated id, a row of
        another length, a score that is no number or outside [0, 1]; all of them, by row and column.
    """
    image_ids, scores, problems = _read(path)
    if problems:
        raise listed(f"{path} is no predictions CSV", problems)
    return Scores(image_ids, scores)


def read_truth(path: str | os.PathLike[str]) -> Truth:
    """Read a ground truth CSV with one-hot rows in the challenge's columns.

    Raises:
      UserError: as `read_predictions`, and rows that are not one-hot.
    """
    image_ids, scores, problems = _read(path)
    one_hot = ((scores == 0) | (scores == 1)).all(axis=1) & (scores.sum(axis=1) == 1)
    if not problems:
        problems = [f"image {image_ids[i]}: not one 1 and six 0" for i in np.flatnonzero(~one_hot)]
    if problems:
        raise listed(f"{path} is no ground truth CSV", problems)
    return Truth(image_ids, scores.argmax(axis=1))


def join(
    predictions_path: str | os.PathLike[str], truth_path: str | os.PathLike[str]
) -> tuple[Scores, Truth]:
    """Read a pair of CSVs and bring the predictions into the order of the truth.

    Raises:
      UserError: as the two readers, or the files do not hold the same ids.
    """
    predictions, truth = read_predictions(predictions_path), read_truth(truth_path)
    position = {image_id: i for i, image_id in enumerate(predictions.image_ids)}
    known = set(truth.image_ids)
    problems = [f"image {i}: no row in {predictions_path}" for i in known - position.keys()]
    problems += [f"image {i}: no row in {truth_path}" for i in position.keys() - known]
    if problems:
        raise listed("predictions and truth are not about the same images", sorted(problems))
    order = [position[i] for i in truth.image_ids]
    return Scores(truth.image_ids, predictions.probabilities[order]), truth


def _read(path: str | os.PathLike[str]) -> tuple[list[str], np.ndarray, list[str]]:
    """Read the ids, the scores in the order of CLASSES (NaN where unreadable), and the problems."""
    try:
        text = pathlib.Path(path).read_text(encoding="utf-8-sig")
        rows = csv.reader(io.StringIO(text, newline=""), strict=True)
        header = [name.strip() for name in next(rows, [])]
        lines = [(rows.line_num, row) for row in rows if row]
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: is no CSV in UTF-8 ({error})") from error
    problems = [f"column {name}: missing" for name in COLUMNS if name not in header]
    problems += [f"column {name}: given twice" for name in COLUMNS if header.count(name) > 1]
    if problems:
        raise listed(f"{path} lacks the columns {','.join(COLUMNS)}", problems)
    places = {name: header.index(name) for name in COLUMNS}
    image_ids: list[str] = []
    first_line: dict[str, int] = {}
    scores = np.full((len(lines), len(CLASSES)), np.nan)
    for n, (line, row) in enumerate(lines):
        if len(row) != len(header):
            problems.append(f"row {line}: {len(row)} values, the header has {len(header)}")
            continue
        image_id = row[places["image"]].strip()
        if not image_id:
            problems.append(f"row {line}, column image: empty")
        elif image_id in first_line:
            problems.append(
                f"row {line}, column image: {image_id} is already in row {first_line[image_id]}"
            )
        image_ids.append(image_id)
        first_line.setdefault(image_id, line)
        for name, label in zip(CHALLENGE_COLUMNS, CHALLENGE_ORDER, strict=True):
            cell = row[places[name]]
            try:
                scores[n, label] = float(cell)
            except ValueError:
                problems.append(f"row {line}, column {name}: {cell!r} is no number")
                continue
            if not 0 <= scores[n, label] <= 1:
                problems.append(f"row {line}, column {name}: {cell} is not within [0, 1]")
    if not lines:
        problems.append("no rows below the header")
    return image_ids, scores, problems


def _csv_text(rows: Iterable[Sequence[str]]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()
