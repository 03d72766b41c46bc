"""A folder of generated images against a run's real ones: quality next to its floor, and copies.

Every value is a mean over `DRAWS` random draws. A draw cuts the training images of a class into two
halves. With the first are compared: generated images, as many real images of the second half (the
floor: what real images reach), and the second half with the pixels of each image shuffled (what
images of nothing get).
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from skin_jax.base.threads import workers
from skin_jax.data import generated as generated_lib
from skin_jax.data import splits
from skin_jax.data.classes import Classes
from skin_jax.eval import inference, linear, quality
from skin_jax.eval.features import Extractor
from skin_jax.eval.linear import Accuracy
from skin_jax.eval.metrics import Spread, nanmean
from skin_jax.training.run import Experiment

DRAWS = 20
LARGEST_HALF = 3000
"""Images of a half at most: memory and time go with the square."""

PERCENTILE = 1
PAIRS_SHOWN = 12

OVERALL = "overall"
MEASURES = ("kid", "fid", "precision", "recall", "density", "coverage", "swd")
"""Metrics of `Group`; all but "swd" need features. "swd" is the mean of the levels "swd_<side>"."""

PATCHED_IMAGES = 128
"""Most images of a set in the sliced Wasserstein distance: 16,384 patches a level."""

_MAX_WORKERS = 4
_SEED = 0

Places = np.ndarray | slice
"""Images in a set: int indices, or all of them."""


@dataclasses.dataclass(frozen=True)
class Generated:
    """M > 0 generated images."""

    images: np.ndarray  # uint8 [M, S, S, 3]
    labels: np.ndarray  # int [M]
    names: Sequence[str]  # M files, relative to their folder
    train_splits: frozenset[str]  # digests of what their generators were fitted on


@dataclasses.dataclass(frozen=True)
class Real:
    """A run's training split, and the validation images of lesions that it does not show."""

    classes: Classes
    images: np.ndarray  # uint8 [N, S, S, 3]
    labels: np.ndarray  # int [N]
    ids: Sequence[str]
    val_images: np.ndarray  # uint8 [V, S, S, 3]
    val_labels: np.ndarray  # int [V]
    train_split: str  # `generated.train_split_digest` of the training split

    def were_fitted_by(self, generated: Generated) -> bool:
        """Whether the generators were fitted on these very training images and no others."""
        return generated.train_splits == {self.train_split}


class Nearness(NamedTuple):
    """How near generated images are to training images, next to val images of the same class."""

    generated: int  # images
    val: int
    median: float  # of the distances; NaN without images
    val_median: float
    share: float  # of the generated images under the threshold


_UNKNOWN = Accuracy(np.nan, np.nan, np.nan)


@dataclasses.dataclass(frozen=True)
class Group:
    """One class, or all of them together: measures by name, and the numbers of images."""

    name: str  # of a class, or OVERALL
    train: int
    generated: int
    half: int
    compared: int  # images of each generated and each floor's set: the smaller of both
    values: Mapping[str, Spread]  # of the generated images against a half
    floor: Mapping[str, Spread]  # of as many real images of the other half against that half
    halves: Mapping[str, Spread]  # of the whole other half against that half
    shuffled_kid: Spread  # of the whole other half, the pixels of each image in random order
    c2st: Accuracy = _UNKNOWN  # of telling the generated images from training images
    nearness: Nearness | None = None  # to training images; None without features


class Pair(NamedTuple):
    """A generated image and the training image that is nearest to it."""

    generated: int  # its index
    train: int  # its index
    distance: float
    picture: np.ndarray  # the generated image turned as it is nearest, uint8 [S, S, 3]


@dataclasses.dataclass(frozen=True)
class Copies:
    """Distances of generated and of val images to their nearest training images.

    Cosine distances between features, the smallest over the image's eight orientations.
    """

    distances: np.ndarray  # of the generated images, float64 [M]
    val_distances: np.ndarray  # float64 [V]
    threshold: float  # the 1st percentile of val_distances; NaN without val images
    closest: Sequence[Pair]  # the nearest first

    def nearness(self, members: Places, val_members: Places) -> Nearness:
        """That of some generated images, next to some val images."""
        own, val = self.distances[members], self.val_distances[val_members]
        median, val_median = (float(np.median(d)) if len(d) else np.nan for d in (own, val))
        share = np.nan if np.isnan(self.threshold) else nanmean(own < self.threshold)
        return Nearness(len(own), len(val), median, val_median, share)


@dataclasses.dataclass(frozen=True)
class Audit:
    """The groups, the classes and then OVERALL; no copies and no features where none were given."""

    real: Real
    generated: Generated
    groups: Sequence[Group]
    copies: Copies | None
    features: str | None  # what they are
    dimensions: int  # of the features; 0 without
    note: str = ""  # the extractor's
    accuracy: tuple[float, float] = (np.nan, np.nan)
    """`linear.accuracy_score` on val images, of the generated and of the training images."""


def real_images(experiment: Experiment) -> Real:
    """The training split, with or without labels, and the val images of lesions not in it."""
    examples, train = experiment.examples, np.flatnonzero(experiment.assignment == "train")
    lesions = np.array([record.lesion_id for record in examples.records])
    val = experiment.indices("val")
    val = val[~np.isin(lesions[val], lesions[train])]
    return Real(
        classes=examples.classes,
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
    real: Real, generated: Generated, extractor: Extractor | None, *, pixels: bool = True
) -> Audit:
    """Compares generated images with real ones, class by class and all together.

    Without an extractor of features there is the sliced Wasserstein distance alone; without
    `pixels`, where another extractor's audit has that already, all but it.
    """
    accuracy = (np.nan, np.nan)
    mine, theirs, copies = _Set(real.images), _Set(generated.images), None
    if extractor is not None:
        described, others, shuffled = (
            extractor(pictures, f"{name} images")
            for name, pictures in (
                ("Training", real.images),
                ("Generated", generated.images),
                ("Shuffled", _shuffled(real.images)),
            )
        )
        mine, theirs = _Set(real.images, described, shuffled), _Set(generated.images, others)
        copies = find_copies(generated.images, real.val_images, described, extractor)
        val = extractor(real.val_images, "Val images") if len(real.val_images) else described[:0]
        tested = val, real.val_labels
        accuracy = (
            linear.accuracy_score(others, generated.labels, *tested),
            linear.accuracy_score(described, real.labels, *tested),
        )
    groups, names = [], (*real.classes.names, OVERALL)
    bar = tqdm(total=len(names) * DRAWS, desc="Comparing", unit=" draws")
    # Draws run side by side: threads of BLAS within them would wait for one another, busily.
    with bar, threadpool_limits(1):
        for k, name in enumerate(names):
            members, rivals, val_members = (
                slice(None) if name == OVERALL else np.flatnonzero(labels == k)
                for labels in (real.labels, generated.labels, real.val_labels)
            )
            pair = mine.take(members), theirs.take(rivals)
            group = _group(name, *pair, k, pixels, bar.update)
            if copies is not None:
                a, b = (each.features for each in pair)
                assert a is not None
                assert b is not None
                told, near = linear.c2st(a, b, k), copies.nearness(rivals, val_members)
                group = dataclasses.replace(group, c2st=told, nearness=near)
            groups.append(group)
    features, note = (extractor.description, extractor.note) if extractor else (None, "")
    dimensions = 0 if mine.features is None else mine.features.shape[1]
    return Audit(real, generated, groups, copies, features, dimensions, note, accuracy)


def find_copies(
    generated: np.ndarray, val: np.ndarray, train_features: np.ndarray, extractor: Extractor
) -> Copies:
    """Looks for training images among generated ones, turned and mirrored in any way.

    Args:
      generated: uint8 [M, S, S, 3], M > 0.
      val: uint8 [V, S, S, 3], real images that show no training lesion; they may be none.
      train_features: [N, D], the extractor's of the training images.
    """
    distances, indices, turns = nearest_training(generated, train_features, extractor, "Generated")
    val_distances, _, _ = nearest_training(val, train_features, extractor, "Val")
    closest = []
    for i in np.argsort(distances, kind="stable")[:PAIRS_SHOWN]:
        turned = list(inference.orientations(generated[i][None]))[turns[i]]
        closest.append(Pair(int(i), int(indices[i]), float(distances[i]), turned[0]))
    return Copies(distances, val_distances, _threshold(val_distances), closest)


def copy_threshold(val: np.ndarray, train_features: np.ndarray, extractor: Extractor) -> float:
    """The `threshold` of `Copies`, for val images uint8 [V, S, S, 3]."""
    return _threshold(nearest_training(val, train_features, extractor, "Val")[0])


def _threshold(val_distances: np.ndarray) -> float:
    return float(np.percentile(val_distances, PERCENTILE)) if len(val_distances) else np.nan


class _Set(NamedTuple):
    """Images uint8 [N, S, S, 3]; features [N, D], if any, of them and of their shuffled pixels."""

    images: np.ndarray
    features: np.ndarray | None = None
    shuffled: np.ndarray | None = None

    def take(self, places: Places) -> "_Set":
        described = (None if f is None else f[places] for f in (self.features, self.shuffled))
        return _Set(self.images[places], *described)


def _group(
    name: str,
    real: _Set,
    generated: _Set,
    seed: int,
    pixels: bool,
    drawn: Callable[[], object],
) -> Group:
    """The comparison of one group; `drawn` is called after each draw."""
    half = min(len(real.images) // 2, LARGEST_HALF)
    compared = min(half, len(generated.images))

    def draw(number: int) -> tuple[dict[str, float], ...]:
        rng = np.random.default_rng([_SEED, seed, number])
        first, second = np.split(rng.permutation(len(real.images))[: 2 * half], 2)
        chosen = rng.permutation(len(generated.images))[:compared]
        measured = functools.partial(_measured, real, first, seed=number, pixels=pixels)
        values = measured(generated, chosen)
        halves = floor = measured(real, second)
        if compared < half:
            floor = measured(real, second[:compared])
        worst = float("nan")
        if real.features is not None and real.shuffled is not None:
            worst = quality.kid(real.features[first], real.shuffled[second])
        drawn()
        return values, floor, halves, {"kid": worst}

    with ThreadPoolExecutor(workers(_MAX_WORKERS)) as pool:
        draws = list(pool.map(draw, range(DRAWS)))
    values, floor, halves, shuffled = (
        {key: Spread.of([found[key] for found in each]) for key in each[0]}
        for each in zip(*draws, strict=True)
    )
    sizes = len(real.images), len(generated.images), half, compared
    return Group(name, *sizes, values, floor, halves, shuffled["kid"])


def _measured(
    real: _Set, places: np.ndarray, other: _Set, chosen: np.ndarray, *, seed: int, pixels: bool
) -> dict[str, float]:
    """MEASURES of some images of each set, and "swd_<side>" for each level."""
    found = dict.fromkeys(MEASURES, float("nan"))
    if real.features is not None and other.features is not None:
        mine, theirs = real.features[places], other.features[chosen]
        found |= {"kid": quality.kid(mine, theirs), "fid": quality.fid(mine, theirs)}
        found |= quality.prdc(mine, theirs)._asdict()
    if not pixels:
        return found
    size = min(len(places), len(chosen), PATCHED_IMAGES)
    mine, theirs = real.images[places[:size]], other.images[chosen[:size]]
    levels = quality.sliced_wasserstein(mine, theirs, seed)
    found["swd"] = float(np.mean(list(levels.values())))
    return found | {f"swd_{side}": value for side, value in levels.items()}


def _shuffled(pictures: np.ndarray) -> np.ndarray:
    """The pixels of each of [N, S, S, 3] in a random order of their own."""
    rng = np.random.default_rng(_SEED)
    flat = pictures.reshape(len(pictures), -1, 3)
    return np.stack([rng.permutation(pixels) for pixels in flat]).reshape(pictures.shape)


def nearest_training(
    pictures: np.ndarray, train: np.ndarray, extractor: Extractor, name: str = ""
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distance, index and orientation of the training image that is nearest to each picture.

    Args:
      pictures: uint8 [M, S, S, 3]; M may be 0.
      train: features [N, D] of the training images, N > 0.
      extractor: of the pictures' features.
      name: of the pictures, for bars of progress; "" shows none.

    Returns:
      Cosine distances float64 [M], the smallest of the eight orientations, indices int64 [M], and
      places int64 [M] in `inference.orientations`.
    """
    distances, indices = np.zeros((8, len(pictures))), np.zeros((8, len(pictures)), int)
    for i, view in enumerate(inference.orientations(pictures) if len(pictures) else ()):
        described = extractor(view, f"{name} images, turned {i + 1}/8" if name else "")
        distances[i], indices[i] = quality.nearest(described, train)
    best, columns = distances.argmin(axis=0), np.arange(len(pictures))
    return distances[best, columns], indices[best, columns], best
