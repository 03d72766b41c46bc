"""A folder of generated images against a run's real ones: quality beside its floor, and copies.

Every value is a mean over `DRAWS` random draws. A draw cuts the training images of a class into two
halves. With the first are compared: generated images, as many real images of the second half (the
floor: what real images reach), and the second half with the pixels of each image shuffled (what
images of nothing get).
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from os import cpu_count
from pathlib import Path
from typing import NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from skin_jax.data import generated as generated_lib
from skin_jax.data import splits
from skin_jax.data.classes import CLASSES, Classes
from skin_jax.eval import inference, quality
from skin_jax.eval.features import Extractor
from skin_jax.train.run import Experiment

DRAWS = 20
LARGEST_HALF = 3000
"""Images of a half at most: memory and time go with the square."""

PERCENTILE = 1
PAIRS_SHOWN = 12

OVERALL = "overall"
MEASURES = ("kid", "fid", "precision", "recall", "density", "coverage", "swd")
"""Of `Group`; all but "swd" need features. "swd" is the mean of the levels "swd_<side>"."""

PATCHED_IMAGES = 128
"""Of a set in the sliced Wasserstein distance, at most: 16,384 patches a level."""

_MAX_WORKERS = 4
_SEED = 0


@dataclasses.dataclass(frozen=True)
class Real:
    """The real images of a run that generated ones are compared with.

    Attributes:
      images: uint8 [N, S, S, 3], the training split.
      labels: int [N].
      ids: N image ids.
      val_images: uint8 [V, S, S, 3], of lesions that the training split does not show.
      val_labels: int [V].
      train_split: `synthetic.train_split_digest` of the training split.
    """

    images: np.ndarray
    labels: np.ndarray
    ids: Sequence[str]
    val_images: np.ndarray
    val_labels: np.ndarray
    train_split: str


@dataclasses.dataclass(frozen=True)
class Generated:
    """Generated images.

    Attributes:
      images: uint8 [M, S, S, 3], M > 0.
      labels: int [M].
      names: M files, relative to their folder.
      train_splits: digests of what their generators were fitted on.
    """

    images: np.ndarray
    labels: np.ndarray
    names: Sequence[str]
    train_splits: frozenset[str]


class Spread(NamedTuple):
    """Mean and standard deviation over the draws; NaN where a value is not defined."""

    mean: float
    sd: float


@dataclasses.dataclass(frozen=True)
class Group:
    """One class, or all of them together.

    Attributes:
      name: of `CLASSES`, or `OVERALL`.
      train: real training images.
      generated: generated images.
      half: images of a half.
      compared: images of each generated and each floor's set: the smaller of half and generated.
      values: measure -> of the generated images against a half.
      floor: measure -> of as many real images of the other half against the same half.
      halves: measure -> of the whole other half against the half.
      shuffled_kid: of the whole other half with the pixels of each image in random order.
    """

    name: str
    train: int
    generated: int
    half: int
    compared: int
    values: Mapping[str, Spread]
    floor: Mapping[str, Spread]
    halves: Mapping[str, Spread]
    shuffled_kid: Spread


class Pair(NamedTuple):
    """A generated image and the training image that is nearest to it."""

    generated: int
    """Index of the generated image."""
    train: int
    """Index of the training image."""
    orientation: int
    """Of the generated image, in the order of `inference.orientations`."""
    distance: float


@dataclasses.dataclass(frozen=True)
class Copies:
    """Distances of generated and of val images to their nearest training images.

    The cosine distance between features, the smallest over all training images and the eight
    orientations of the image in question.

    Attributes:
      distances: of the generated images, float64 [M].
      val_distances: float64 [V].
      threshold: the 1st percentile of val_distances; NaN without val images.
      closest: the nearest pairs, the nearest first.
    """

    distances: np.ndarray
    val_distances: np.ndarray
    threshold: float
    closest: Sequence[Pair]

    def share(self, members: np.ndarray) -> float:
        """Share of some generated images, bool [M], that are nearer than the threshold."""
        if np.isnan(self.threshold) or not members.any():
            return float("nan")
        return float((self.distances[members] < self.threshold).mean())


@dataclasses.dataclass(frozen=True)
class Audit:
    """The groups, CLASSES then OVERALL; copies are None without features."""

    groups: Sequence[Group]
    copies: Copies | None
    features: str | None
    """What they are; None without."""
    dimensions: int
    """D of the features; 0 without."""


def real_images(experiment: Experiment) -> Real:
    """The training split, and the validation images of lesions that are not in it."""
    examples, train = experiment.examples, experiment.indices("train")
    trained = {examples.records[i].lesion_id for i in train}
    val = experiment.indices("val")
    apart = [examples.records[i].lesion_id not in trained for i in val]
    val = val[np.array(apart, bool)]
    return Real(
        images=examples.images[train],
        labels=examples.labels[train],
        ids=[examples.records[i].image_id for i in train],
        val_images=examples.images[val],
        val_labels=examples.labels[val],
        train_split=generated_lib.train_split_digest(
            splits.members_of(examples.records, experiment.assignment, "train", examples.classes)
        ),
    )


def generated_images(folder: Path, size: int, classes: Classes) -> Generated:
    """Reads a folder of generated images, resized to size x size as real ones are.

    Raises:
      UserError: no such folder, no manifest or one that does not fit, or unreadable images.
    """
    rows = generated_lib.read(folder, classes)
    examples = generated_lib.load(folder, rows, size, classes)
    return Generated(
        images=examples.images[np.arange(len(rows))],
        labels=examples.labels,
        names=[row.image for row in rows],
        train_splits=frozenset(row.train_split for row in rows),
    )


def audit(
    real: Real, generated: Generated, extractor: Extractor | None, *, progress: bool = True
) -> Audit:
    """Compares generated images with real ones, class by class and all together.

    Args:
      extractor: of features; None leaves the sliced Wasserstein distance alone.
      progress: shows progress bars on stderr.
    """
    mine, theirs = _Set(real.images), _Set(generated.images)
    shuffled = copies = None
    if extractor is not None:
        described, others, shuffled = (
            extractor(pictures, f"{name} images" if progress else "")
            for pictures, name in (
                (real.images, "Training"),
                (generated.images, "Generated"),
                (_shuffled(real.images), "Shuffled"),
            )
        )
        mine, theirs = _Set(real.images, described), _Set(generated.images, others)
        copies = find_copies(
            generated.images, real.val_images, described, extractor, progress=progress
        )
    groups = []
    total = (len(CLASSES) + 1) * DRAWS
    bar = tqdm(total=total, desc="Comparing", unit=" draws", disable=not progress)
    # Draws run side by side: threads of BLAS within them would wait for one another, busily.
    with bar, threadpool_limits(1):
        for k, name in enumerate((*CLASSES, OVERALL)):
            members, others = (
                np.flatnonzero(np.equal(labels, k) | (name == OVERALL))
                for labels in (real.labels, generated.labels)
            )
            group = _group(
                name,
                mine if name == OVERALL else mine.take(members),
                None if shuffled is None else shuffled[members],
                theirs.take(others),
                seed=k,
                drawn=bar.update,
            )
            groups.append(group)
    dimensions = 0 if mine.features is None else mine.features.shape[1]
    return Audit(groups, copies, extractor.description if extractor else None, dimensions)


def find_copies(
    generated: np.ndarray,
    val: np.ndarray,
    train_features: np.ndarray,
    extractor: Extractor,
    *,
    progress: bool = True,
) -> Copies:
    """Looks for training images among generated ones, turned and mirrored in any way.

    Args:
      generated: uint8 [M, S, S, 3], M > 0.
      val: uint8 [V, S, S, 3], real images that show no training lesion; they may be none.
      train_features: [N, D], the extractor's of the training images.
    """
    names = ("Generated", "Val") if progress else ("", "")
    distances, indices, turns = _nearest(generated, train_features, extractor, names[0])
    val_distances, _, _ = _nearest(val, train_features, extractor, names[1])
    closest = [
        Pair(int(i), int(indices[i]), int(turns[i]), float(distances[i]))
        for i in np.argsort(distances, kind="stable")[:PAIRS_SHOWN]
    ]
    threshold = float(np.percentile(val_distances, PERCENTILE)) if len(val) else float("nan")
    return Copies(distances, val_distances, threshold, closest)


@dataclasses.dataclass(frozen=True)
class _Set:
    """Images uint8 [N, S, S, 3] and their features [N, D], if there are any."""

    images: np.ndarray
    features: np.ndarray | None = None

    def take(self, indices: np.ndarray) -> "_Set":
        return _Set(self.images[indices], None if self.features is None else self.features[indices])

    def draw(self, indices: np.ndarray) -> "_Set":
        """Of the images only those that are compared: features are many times smaller."""
        features = None if self.features is None else self.features[indices]
        return _Set(self.images[indices[:PATCHED_IMAGES]], features)


def _group(
    name: str,
    real: _Set,
    shuffled: np.ndarray | None,
    generated: _Set,
    *,
    seed: int,
    drawn: Callable[[], object],
) -> Group:
    """The comparison of one group; `drawn` is called after each draw."""
    half = min(len(real.images) // 2, LARGEST_HALF)
    compared = min(half, len(generated.images))

    def draw(number: int) -> tuple[dict[str, float], dict[str, float], dict[str, float], float]:
        rng = np.random.default_rng([_SEED, seed, number])
        first, second = np.split(rng.permutation(len(real.images))[: 2 * half], 2)
        chosen = rng.permutation(len(generated.images))[:compared]
        reference = real.draw(first)
        values = _measured(reference, generated.draw(chosen), number)
        halves = _measured(reference, real.draw(second), number)
        floor = halves
        if compared < half:
            floor = _measured(reference, real.draw(second[:compared]), number)
        worst = float("nan")
        if shuffled is not None and reference.features is not None:
            worst = quality.kid(reference.features, shuffled[second])
        drawn()
        return values, floor, halves, worst

    with ThreadPoolExecutor(_workers()) as pool:
        values, floors, halves, worst = zip(*pool.map(draw, range(DRAWS)), strict=True)
    return Group(
        name=name,
        train=len(real.images),
        generated=len(generated.images),
        half=half,
        compared=compared,
        values=_spreads(values),
        floor=_spreads(floors),
        halves=_spreads(halves),
        shuffled_kid=_spread(worst),
    )


def _measured(reference: _Set, other: _Set, seed: int) -> dict[str, float]:
    """MEASURES, and "swd_<side>" for each level."""
    found = dict.fromkeys(MEASURES, float("nan"))
    if reference.features is not None and other.features is not None:
        found |= {
            "kid": quality.kid(reference.features, other.features),
            "fid": quality.fid(reference.features, other.features),
            **quality.prdc(reference.features, other.features)._asdict(),
        }
    size = min(len(reference.images), len(other.images))
    levels = quality.sliced_wasserstein(reference.images[:size], other.images[:size], seed)
    found["swd"] = float(np.mean(list(levels.values())))
    return found | {f"swd_{side}": value for side, value in levels.items()}


def _spreads(draws: Sequence[Mapping[str, float]]) -> dict[str, Spread]:
    return {key: _spread([draw[key] for draw in draws]) for key in draws[0]}


def _spread(values: Sequence[float]) -> Spread:
    return Spread(float(np.mean(values)), float(np.std(values, ddof=1)))


def _shuffled(pictures: np.ndarray) -> np.ndarray:
    """The pixels of each of [N, S, S, 3] in a random order of their own."""
    rng = np.random.default_rng(_SEED)
    flat = pictures.reshape(len(pictures), -1, 3)
    return np.stack([rng.permutation(pixels) for pixels in flat]).reshape(pictures.shape)


def _nearest(
    pictures: np.ndarray, train: np.ndarray, extractor: Extractor, name: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distance, index and orientation of the nearest training image, each [M]; M may be 0."""
    distances, indices = np.zeros((8, len(pictures))), np.zeros((8, len(pictures)), int)
    if len(pictures):
        for i, view in enumerate(inference.orientations(pictures)):
            described = extractor(view, name and f"{name} images, turned {i + 1}/8")
            distances[i], indices[i] = quality.nearest(described, train)
    best = distances.argmin(axis=0)
    columns = np.arange(len(pictures))
    return distances[best, columns], indices[best, columns], best


def _workers() -> int:
    return max(1, min(_MAX_WORKERS, cpu_count() or 1))
