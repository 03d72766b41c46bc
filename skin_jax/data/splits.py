"""Who is trained on and who is tested on: train, val and test without a lesion on two sides.

What is said here of lesions holds for whatever `Record.lesion_id` keeps together: patients, too.

A split depends on the records, the fractions, the split seed and the fold alone. Units are put in
the order of a hash of (seed, id), so it depends neither on the order of files on a disk nor on the
version of a random generator, and a record more or less moves few others.
"""

import hashlib
import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from skin_jax.base import csvs
from skin_jax.base.errors import UserError, listed
from skin_jax.base.files import read_bytes, write_atomically
from skin_jax.data.classes import UNLABELLED, Classes
from skin_jax.data.examples import Record

SPLITS = ("train", "val", "test")
NUM_FOLDS = 5
PAPER_FRACTIONS = (0.72, 0.08, 0.2)
"""Paper A: 80 / 20 by image; 10 % of the 80 as val."""

_COLUMNS = ("image", "lesion_id", "label", "split")

_Units = Mapping[int, Sequence[list[int]]]
"""What is never divided, by class in ascending order: the positions of the records of each unit,
the units in the order of the seed."""


def draw(
    records: Sequence[Record],
    *,
    split: str,
    fractions: tuple[float, float, float],
    split_seed: int,
    fold: int | None,
    counts: Sequence[int] = (),
) -> np.ndarray:
    """Assigns every record, in any order, to train, val or test; impossible values are UserErrors.

    Each class is apportioned on its own by largest remainder; one with at least three units gets
    at least one of them in every split that is not empty. A lesion whose images carry different
    labels counts for the most frequent one; one without any label is in train.

    Args:
      records: that are to be assigned.
      split: "lesion" (by lesion, over all records), "paper" (by image, `PAPER_FRACTIONS`) or
        "official" (the challenge's folders; without a validation folder, val is drawn from train
        by lesion in the ratio of the first two fractions).
      fractions: shares of the lesions in train, val and test; 0 leaves val or test empty.
      split_seed: not negative.
      fold: k in 0..4 makes the lesion split the k-th of a cross-validation: test is a fifth of the
        lesions, every lesion in the test of one fold; val keeps its fraction.
      counts: lesions of each class in train and val, the rest being test; they take the place of
        the fractions. () for none.

    Returns:
      [N] strings "train", "val" or "test".
    """
    _check(split, fractions, fold, counts)
    assignment = np.full(len(records), "train")
    if split == "official":
        assignment[:] = [record.official_split for record in records]
        if "val" in assignment:
            return assignment
        share = fractions[1] / (fractions[0] + fractions[1])
        fractions = (1 - share, share, 0.0)
    elif split == "paper":
        fractions = PAPER_FRACTIONS
    drawn = np.flatnonzero(assignment == "train").tolist()
    names = [record.image_id if split == "paper" else record.lesion_id for record in records]
    units = _units(drawn, records, names, split_seed)
    if counts:
        scarce = min(map(len, units.values()), default=0)
        if scarce <= sum(counts):
            raise UserError(
                f"config.data.split_counts is {tuple(counts)}, but the rarest class has {scarce} "
                f"lesions: give less than {scarce} in all, so that some are left for test"
            )
        _apportion(units, lambda total: (*counts, total - sum(counts)), assignment)
    elif fold is None:
        _apportion(units, lambda total: _counts(total, fractions), assignment)
    else:
        _deal(units, fractions[1], fold, assignment)
    return assignment


def hidden_labels(
    records: Sequence[Record], assignment: np.ndarray, fraction: float, seed: int
) -> np.ndarray:
    """Chooses the training images whose labels a run is not to know.

    Of the lesions of each class that have a label and images in train, `fraction` keep their
    labels, at least one. Those of a smaller fraction are among those of a larger one.

    Args:
      records: that were assigned.
      assignment: [N] strings "train", "val" or "test".
      fraction: in (0, 1].
      seed: not negative; nothing else depends on it.

    Returns:
      bool [N].
    """
    hidden = np.zeros(len(records), bool)
    names = [record.lesion_id for record in records]
    train = np.flatnonzero(assignment == "train").tolist()
    for ordered in _units(train, records, names, f"labels {seed}").values():
        for unit in ordered[max(1, round(fraction * len(ordered))) :]:
            hidden[unit] = True
    return hidden


def shared_lesions(records: Sequence[Record], assignment: np.ndarray) -> int:
    """Counts the test images whose lesion also has images in train."""
    lesions = np.array([record.lesion_id for record in records])
    return int(np.isin(lesions[assignment == "test"], lesions[assignment == "train"]).sum())


def write(path: Path, records: Sequence[Record], assignment: np.ndarray, classes: Classes) -> None:
    """Writes `image,lesion_id,label,split`, one row an image, whole or not at all.

    The label is empty where there is none, or where it is hidden.
    """
    sides = zip(records, assignment, strict=True)
    rows = ((*_identity(record, classes), side) for record, side in sides)
    write_atomically(path, csvs.text([_COLUMNS, *rows]))


def read(path: Path, records: Sequence[Record], classes: Classes) -> tuple[np.ndarray, np.ndarray]:
    """Reads what `write` wrote, in the order of `records`, which have all labels of the data.

    Returns:
      [N] strings "train", "val" or "test", and bool [N]: whose labels are hidden.

    Raises:
      UserError: the file is missing or damaged, or speaks of other images than `records`.
    """
    rows = _rows(path)
    sides = {(row["image"], row["lesion_id"], row["label"]): row["split"] for row in rows}
    wanted, hidden = [], np.zeros(len(records), bool)
    for i, record in enumerate(records):
        identity = _identity(record, classes)
        hidden[i] = identity not in sides and (*identity[:2], "") in sides
        wanted.append((*identity[:2], "") if hidden[i] else identity)
    missing, strange = set(wanted) - sides.keys(), sides.keys() - set(wanted)
    if missing or strange or len(rows) != len(records):
        example = min(missing or strange, default=("duplicate rows",))[0]
        raise UserError(
            f"{path} does not match the data: {len(missing)} of {len(records)} images are not in "
            f"it with their lesion and label, {len(strange)} of its rows are not in the data "
            f"(for example {example}); give the data folder that it was drawn from"
        )
    if unknown := set(sides.values()) - set(SPLITS):
        raise UserError(f"{path}: unknown split {min(unknown)!r}; known: {', '.join(SPLITS)}")
    return np.array([sides[identity] for identity in wanted]), hidden


def class_counts(path: Path, side: str, classes: Classes) -> np.ndarray:
    """Counts the images of each class on one side of what `write` wrote, int64 [n].

    UserError: the file is missing or damaged, or has other classes.
    """
    rows = _rows(path)
    if strange := {row["label"] for row in rows} - {*classes.names, ""}:
        raise UserError(
            f"{path} has the class {min(strange)!r}, which is none of the run's "
            f"({', '.join(classes.names)}); restore the file that the run wrote"
        )
    counts = Counter(row["label"] for row in rows if row["split"] == side)
    return np.array([counts[name] for name in classes.names])


def members(path: Path, side: str) -> list[tuple[str, str]]:
    """(image id, class name or "") on one side of what `write` wrote; UserError where damaged."""
    return [(row["image"], row["label"]) for row in _rows(path) if row["split"] == side]


def lesion_ids(path: Path) -> dict[str, str]:
    """The lesion of each image id in what `write` wrote; UserError where it is damaged."""
    return {row["image"]: row["lesion_id"] for row in _rows(path)}


def members_of(
    records: Sequence[Record], assignment: np.ndarray, side: str, classes: Classes
) -> list[tuple[str, str]]:
    """Gives what `members` gives once `write` has written the assignment."""
    sides = zip(records, assignment, strict=True)
    return [(r.image_id, classes.name_of(r.label)) for r, own in sides if own == side]


def _rows(path: Path) -> list[dict[str, str]]:
    problems: list[str] = []
    try:
        _, rows = csvs.parse(read_bytes(path), problems, columns=_COLUMNS)
    except OSError as error:
        raise UserError(f"cannot read the splits in {path}: {error.strerror}") from None
    if problems:
        raise listed(f"{path} is damaged; restore the file that the run wrote", problems)
    return [row.values for row in rows]


def _identity(record: Record, classes: Classes) -> tuple[str, str, str]:
    return record.image_id, record.lesion_id, classes.name_of(record.label)


def _check(split: str, fractions: Sequence[float], fold: int | None, counts: Sequence[int]) -> None:
    key = "config.data.split_fractions"
    if len(fractions) != 3 or not all(0 <= f <= 1 for f in fractions) or fractions[0] == 0:
        raise UserError(
            f"{key} is {fractions}; it takes three shares from 0 to 1, the first (train) above 0"
        )
    if abs(math.fsum(fractions) - 1) > 1e-6:
        raise UserError(f"{key} sum to {math.fsum(fractions):g}, not to 1: {fractions}")
    if fold is not None and split != "lesion":
        raise UserError(f"config.data.fold goes with config.data.split='lesion', not {split!r}")
    if fold is not None and fractions[1] >= 1 - 1 / NUM_FOLDS:
        raise UserError(
            f"{key} is {fractions}: with a fifth for the test fold, nothing is left to train on"
        )
    if counts and (len(counts) != 2 or counts[0] < 1):
        raise UserError(
            f"config.data.split_counts is {tuple(counts)}; it takes two whole numbers, the lesions "
            "of each class in train, at least 1, and in val, such as (30,10)"
        )
    if counts and (fold is not None or split != "lesion"):
        raise UserError(
            "config.data.split_counts goes with config.data.split='lesion' and without "
            "config.data.fold: it is a split of its own"
        )


def _units(
    positions: Sequence[int], records: Sequence[Record], names: Sequence[str], seed: int | str
) -> _Units:
    """The units of some positions that have a label."""
    members: dict[str, list[int]] = defaultdict(list)
    for i in positions:
        members[names[i]].append(i)
    units: dict[int, list[list[int]]] = defaultdict(list)
    for name in sorted(members, key=lambda n: hashlib.sha256(f"{seed} {n}".encode()).digest()):
        labels = sorted(records[i].label for i in members[name])
        if known := [label for label in labels if label != UNLABELLED]:
            # Of labels that are equally frequent, the lowest.
            units[statistics.mode(known)].append(members[name])
    return dict(sorted(units.items()))


def _apportion(
    units: _Units, sizes: Callable[[int], Sequence[int]], assignment: np.ndarray
) -> None:
    """Gives each class's units to train, val and test, as many as `sizes` says of their number."""
    for ordered in units.values():
        sides = np.repeat(SPLITS, sizes(len(ordered)))
        for unit, side in zip(ordered, sides, strict=True):
            assignment[unit] = side


def _deal(units: _Units, val: float, fold: int, assignment: np.ndarray) -> None:
    dealt, share = 0, val / (1 - 1 / NUM_FOLDS)
    for ordered in units.values():
        # Dealing goes on from class to class, so that the folds' totals differ by one at most.
        folds = (dealt + np.arange(len(ordered)) - fold) % NUM_FOLDS
        dealt += len(ordered)
        num_test = int(np.count_nonzero(folds == 0))
        num_val = _counts(len(ordered) - num_test, (1 - share, share))[1]
        # In the order of the folds that follow: so the folds' val sets differ, too.
        for place, i in enumerate(np.argsort(folds, kind="stable")[: num_test + num_val]):
            assignment[ordered[i]] = "test" if place < num_test else "val"


def _counts(total: int, fractions: Sequence[float]) -> list[int]:
    """Whole parts of a total by largest remainder; ties go to the first."""
    # Rounded, because 0.7 * 10 is below 7 in binary.
    quotas = [round(total * fraction, 9) for fraction in fractions]
    counts = [math.floor(quota) for quota in quotas]
    by_remainder = sorted(range(len(quotas)), key=lambda i: (counts[i] - quotas[i], i))
    for i in by_remainder[: total - sum(counts)]:
        counts[i] += 1
    if total >= 3:
        for i, fraction in enumerate(fractions):
            if fraction > 0 and counts[i] == 0:
                counts[counts.index(max(counts))] -= 1
                counts[i] = 1
    return counts
