"""Arms of a study compared: paired differences over folds and seeds, and how sure they are.

Pure: arrays in, numbers out; the number of classes C is that of the probabilities' columns. An arm
is a way of training; a run is one arm on one fold of the cross-validation with one seed, and its
outcome the probabilities of that fold's test images.

**The primary estimate is pooled.** For each class the recall is over the test images of all folds,
each counted once, as its mean over the seeds; balanced accuracy is the mean of these recalls. Every
difference, interval and p-value is of it. The mean of the runs' own values, which is shown next to
it, is coarse, and undefined where a fold has no image of a class. AUC is never pooled: scores of
different networks have no common scale (Forman and Scholz, SIGKDD Explorations 12, 2010).

**Intervals of a difference.** Two are computed, both symmetric about the pooled estimate, and the
wider one counts (`Estimate`):

- Student's t over the folds' differences (seeds averaged within a fold), with folds - 1 degrees of
  freedom. It sees everything that varies from fold to fold, but rests on few folds.
- The paired bootstrap over lesions within classes (both arms on the same lesions). It sees that
  test lesions are a sample, but takes the runs as given. With one fold there is nothing else.

The wider one protects where either fails, at little cost: `docs/study_error_rates.md`.

**Subsets.** A study may train on few images, drawn again and again, and test on all others: the
parts are then subsets in the place of folds, and a lesion is tested in many of them. What the draws
and training vary is in the spread between subsets; that the lesions are a sample is common to all
subsets, and not in it. So the two are added: Student's t of the root of both squared standard
errors, with degrees of freedom after Satterthwaite (Biometrics Bulletin 2, 1946); the bootstrap
draws a lesion with all its parts.

Neither sees what all folds share (training sets of two folds overlap by three quarters; Bengio and
Grandvalet, JMLR 5, 2004): the intervals speak of this data set.

**p-values** are the larger of the two intervals' own, so p <= 0.05 exactly where the wider interval
leaves 0 out. The arm to be confirmed is tested alone; the others, which are exploratory, are
corrected after Holm (Scandinavian Journal of Statistics 6, 1979), together where a study compares
its arms at several levels. That arm may differ from the
control in more than its generated images, such as the classes' shares; its difference from an arm
that is like it in all else is tested in the second place, only once the first difference is shown
(a fixed sequence, which keeps the error rate without a correction).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from skin_jax.eval import metrics
from skin_jax.eval.metrics import RESAMPLES, Interval, Spread

METRICS = ("balanced_accuracy", "accuracy", "macro_f1", "macro_auc")
LEVEL = 0.05

_FEWEST_RESAMPLES = 19  # fewer have no 5%
_ONE_FOLD = (
    "One fold or subset: Student's t is undefined, and the interval takes the runs as given; how "
    "much the noise of training or other training images would change them is not covered."
)
_ONE_SEED = (
    "One seed: the noise of training is covered only as part of the differences between folds or "
    "subsets."
)

Cell = tuple[int, int]
"""Fold and seed."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One finished run's predictions of its fold's test images."""

    arm: str  # name of the way of training
    fold: int  # or subset
    seed: int
    image_ids: Sequence[str]  # N distinct ones, the same for all runs of the fold, in any order
    lesion_ids: Sequence[str]  # N; no lesion is in two folds, but in subsets
    labels: np.ndarray  # int [N] in 0..C-1
    probabilities: np.ndarray  # float [N, C], finite


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A difference of proportions, arm minus control, in [-1, 1]; NaN where undefined.

    Both intervals are at 95% and symmetric about `value`.
    """

    value: float
    student: Interval
    bootstrap: Interval
    student_p: float
    bootstrap_p: float
    added: tuple[Interval, float] | None = None  # and p, of both errors added: of subsets

    @property
    def interval(self) -> Interval:
        """That of both errors added; the wider of the two intervals, or the one that is defined."""
        if self.added is not None:
            return self.added[0]
        if np.isnan(self.student[0]) or np.ptp(self.bootstrap) > np.ptp(self.student):
            return self.bootstrap
        return self.student

    @property
    def p(self) -> float:
        """The p-value of `interval`: at most 0.05 exactly where that excludes 0."""
        if self.added is not None:
            return self.added[1]
        return float(np.fmax(self.student_p, self.bootstrap_p))


@dataclasses.dataclass(frozen=True)
class Paired:
    """Two arms on the same test lesions: pooled differences, arm minus control."""

    balanced_accuracy: Estimate
    accuracy: Estimate
    fold_differences: np.ndarray  # float [folds], balanced accuracy, folds in increasing order
    recall: np.ndarray  # float [C], NaN where the class is absent
    recall_ci95: tuple[Interval, ...]  # of these, over lesions alone and uncorrected


@dataclasses.dataclass(frozen=True)
class Arm:
    """One arm over all its own runs; what is pooled is over the folds at hand, seeds averaged."""

    name: str
    cells: tuple[Cell, ...]  # fold and seed of each run, sorted
    runs: Mapping[str, np.ndarray]  # of METRICS -> float [runs], each run's own, as `cells`
    balanced_accuracy: float  # pooled
    balanced_accuracy_ci95: Interval  # of that, over lesions, these runs taken as given
    by_seed: Mapping[int, float]  # pooled, of each seed that has all of the arm's folds
    recall: np.ndarray  # float [C], pooled; NaN where the class is absent
    recall_ci95: tuple[Interval, ...]  # of these, over lesions
    images: np.ndarray  # int [C]
    lesions: np.ndarray  # int [C]

    def over_runs(self, metric: str) -> Spread:
        """The spread of a metric of METRICS over the runs."""
        return Spread.of(self.runs[metric])


@dataclasses.dataclass(frozen=True)
class Difference:
    """An arm minus another, over the cells that both have; as text "gan minus plain", say."""

    arm: str
    control: str
    confirmatory: bool  # whether it is to be confirmed, the others being explored
    cells: tuple[Cell, ...]  # fold and seed of each pair of runs, sorted
    cell_differences: np.ndarray  # float [cells], of balanced accuracy
    paired: Paired
    p: float  # of the pooled balanced accuracy; Holm-corrected unless confirmatory

    def __str__(self) -> str:
        return f"{self.arm} minus {self.control}"

    @property
    def estimate(self) -> Estimate:
        """The primary one: pooled balanced accuracy."""
        return self.paired.balanced_accuracy

    @property
    def over_cells(self) -> Spread:
        """The spread of the cells' differences."""
        return Spread.of(self.cell_differences)

    @property
    def not_covered(self) -> tuple[str, ...]:
        """Sentences on what the interval does not cover."""
        if len({fold for fold, _ in self.cells}) == 1:
            return (_ONE_FOLD,)
        return (_ONE_SEED,) if len({seed for _, seed in self.cells}) == 1 else ()

    @property
    def shown(self) -> bool:
        """Whether a difference is shown: the (corrected) p-value is at most 0.05."""
        return self.p <= LEVEL


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A study, finished or not.

    `isolated` is the confirmatory arm minus the isolating one: what the generated images themselves
    do; its p-value counts once the confirmatory arm differs from the control. None where there is
    no such arm, or no cell that both have.
    """

    control: str  # name of the arm that the others are compared with
    confirmatory: str | None  # of the arm to be confirmed
    isolating: str | None  # of the arm that is like it but for the generated images
    arms: tuple[Arm, ...]  # with a run: the control, the confirmatory arm, then as given
    differences: tuple[Difference, ...]  # of those that share a cell with the control, as `arms`
    isolated: Difference | None

    @property
    def exploratory(self) -> list[Difference]:
        """Differences of the arms that are not to be confirmed."""
        return [d for d in self.differences if not d.confirmatory]


def compare(
    outcomes: Sequence[Outcome],
    *,
    control: str,
    confirmatory: str | None = None,
    isolating: str | None = None,
    subsets: bool = False,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Comparison:
    """Compares every arm with the control; see the module's docstring for the statistics.

    Two arms are compared on the (fold, seed) cells that both have, so a study in progress can be
    looked at. What no run exists of is absent from the result: an arm, or all differences where
    the control has none.

    Args:
      outcomes: at least one, at most one for each arm, fold and seed.
      control, confirmatory, isolating: names of arms, see `Comparison`.
      subsets: whether the folds are subsets, in several of which a lesion may be tested.
      resamples, seed: of the bootstrap; at least 19 resamples.

    Raises:
      ValueError: no outcome, a run given twice, arrays that do not fit, runs of a fold that differ
        in images, labels or lesions, images or lesions in two folds that are no subsets, arms that
        are not different.
    """
    if not outcomes:
        raise ValueError("no outcomes to compare")
    if confirmatory == control:
        raise ValueError(f"{control} cannot be both the control and the confirmatory arm")
    if isolating is not None and (confirmatory is None or isolating in (control, confirmatory)):
        raise ValueError(f"{isolating} can only isolate what another, confirmatory arm does")
    runs = _by_arm(outcomes, subsets)
    names = [name for name in (control, confirmatory) if name in runs]
    names += [name for name in runs if name not in names]

    def minus(name: str, other: str) -> Difference | None:
        shared = tuple(sorted(runs.get(name, {}).keys() & runs.get(other, {}).keys()))
        if not shared:
            return None
        mine, theirs = ({cell: runs[arm][cell] for cell in shared} for arm in (name, other))
        own, others = (
            np.array([run.values["balanced_accuracy"] for run in each.values()])
            for each in (mine, theirs)
        )
        tested, num_classes = _tested(mine, theirs), len(mine[shared[0]].rows)
        paired = paired_difference(
            *tested, num_classes=num_classes, subsets=subsets, resamples=resamples, seed=seed
        )
        chosen, p = name == confirmatory, paired.balanced_accuracy.p
        return Difference(name, other, chosen, shared, own - others, paired, p)

    compared = Comparison(
        control=control,
        confirmatory=confirmatory,
        isolating=isolating,
        arms=tuple(_arm(name, runs[name], resamples, seed) for name in names),
        differences=tuple(d for name in names if name != control and (d := minus(name, control))),
        isolated=minus(confirmatory, isolating) if confirmatory and isolating else None,
    )
    return correct_together([compared])[0]


def correct_together(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The same with the p-values of all exploratory differences corrected after Holm at once."""
    raw = [d.estimate.p for comparison in comparisons for d in comparison.exploratory]
    corrected = iter(holm(raw))
    return [
        dataclasses.replace(
            comparison,
            differences=tuple(
                d if d.confirmatory else dataclasses.replace(d, p=next(corrected))
                for d in comparison.differences
            ),
        )
        for comparison in comparisons
    ]


def paired_difference(
    labels: np.ndarray,
    folds: np.ndarray,
    images: np.ndarray,
    arm: np.ndarray,
    control: np.ndarray,
    lesions: np.ndarray,
    *,
    num_classes: int,
    subsets: bool = False,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Paired:
    """The pooled differences of two arms, their two intervals and p-values.

    The bootstrap is that of `metrics.bootstrap` on differences: n - 1 lesions of each class are
    drawn from its n and two imagined ones of half weight, one that the arm alone gets right, one
    that the control alone does (Bonett and Price, JEBS 37, 2012), so that a class in which the arms
    happen to agree is not known exactly. Half the interval is the deviation from the mean resample
    that 5% reach; the p-value is the share that reaches the estimate, (1 + k) / (1 + resamples).

    Args:
      labels, folds: int [L], class in 0..C-1 and fold, or subset, of each test lesion.
      images: [L], number of its images, > 0.
      arm, control: float [L] in [0, images]: how many of them are right, a mean over seeds.
      lesions: int [L], which lesion it is of its class: the same in each subset that tests it.
      num_classes: C.
      subsets: whether the folds are subsets; see the module's docstring.
      resamples, seed: of the bootstrap; at least 19 resamples.

    Raises:
      ValueError: no lesion, or too few resamples.
    """
    if not len(labels):
        raise ValueError("no test lesions to compare on")
    if resamples < _FEWEST_RESAMPLES:
        raise ValueError(f"{resamples} resamples have no 5%: at least {_FEWEST_RESAMPLES}")
    gained = np.asarray(arm, np.float64) - control
    rng = np.random.default_rng(seed)
    by_class = []
    for c in range(num_classes):
        own = labels == c
        _, index = np.unique(lesions[own], return_inverse=True)
        gains, counts = (np.bincount(index, values[own]) for values in (gained, images))
        by_class.append(_drawn(gains, counts, resamples, rng))
    drawn = np.stack(by_class, axis=1)
    drawn -= drawn.mean(axis=0)
    gains, sizes = (
        np.array(
            [np.bincount(labels[f], v[f], num_classes) for f in folds == np.unique(folds)[:, None]]
        )
        for v in (gained, images)
    )
    totals = np.bincount(labels, images, num_classes)
    recall = metrics.quotient(np.bincount(labels, gained, num_classes), totals)
    by_fold = metrics.row_nanmeans(metrics.quotient(gains, sizes))
    accuracy = float(gained.sum() / totals.sum())
    accuracy_drawn = np.nan_to_num(drawn) @ (totals / totals.sum())
    return Paired(
        balanced_accuracy=_estimate(
            metrics.nanmean(recall), by_fold, metrics.row_nanmeans(drawn), subsets
        ),
        accuracy=_estimate(
            accuracy, gains.sum(axis=1) / sizes.sum(axis=1), accuracy_drawn, subsets
        ),
        fold_differences=by_fold,
        recall=recall,
        recall_ci95=tuple(map(_around, recall, map(_reached, drawn.T))),
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction, in the order given; NaN stays NaN and counts as a test."""
    values = np.asarray(p_values, np.float64)
    order = np.argsort(values)  # NaN last
    factors = np.arange(len(values), 0, -1)
    corrected = np.empty(len(values))
    corrected[order] = np.minimum(np.maximum.accumulate(values[order] * factors), 1.0)
    return corrected.tolist()


class _Run(NamedTuple):
    """One run: its own metrics, and for each class its confusion rows [lesions, C]."""

    values: Mapping[str, float]
    rows: Sequence[np.ndarray]
    lesions: Sequence[np.ndarray]  # of each class their ids [lesions], as its rows


def _by_arm(outcomes: Sequence[Outcome], subsets: bool) -> dict[str, dict[Cell, _Run]]:
    """Arm -> fold and seed -> run, each outcome checked against the others."""
    arms: dict[str, dict[Cell, _Run]] = {}
    folds: dict[int, dict[str, tuple[str, int]]] = {}
    num_classes = np.asarray(outcomes[0].probabilities).shape[1]
    for outcome in outcomes:
        what = f"{outcome.arm}, fold {outcome.fold}, seed {outcome.seed}"
        ids, lesions = outcome.image_ids, outcome.lesion_ids
        labels, probabilities = np.asarray(outcome.labels), np.asarray(outcome.probabilities)
        if not len(ids) == len(lesions) == len(labels) == len(probabilities):
            raise ValueError(f"{what}: ids, lesions, labels and probabilities differ in length")
        if probabilities.shape[1] != num_classes:
            raise ValueError(f"{what}: other classes than runs before it")
        truth = dict(zip(ids, zip(lesions, labels.tolist(), strict=True), strict=True))
        if len(truth) != len(ids):
            raise ValueError(f"{what}: image ids repeat")
        if folds.setdefault(outcome.fold, truth) != truth:
            raise ValueError(f"{what}: other test images, labels or lesions than runs before it")
        runs = arms.setdefault(outcome.arm, {})
        if (outcome.fold, outcome.seed) in runs:
            raise ValueError(f"{what}: given twice")
        found = metrics.evaluate(probabilities, labels, resamples=0)
        own = (found.balanced_accuracy, found.accuracy, found.macro["f1"], found.macro["auc"])
        counted = metrics.lesion_rows(labels, probabilities.argmax(axis=1), lesions, num_classes)
        values = dict(zip(METRICS, own, strict=True))
        runs[outcome.fold, outcome.seed] = _Run(values, *counted)
    if subsets:
        return arms
    owner: dict[tuple[str, str], int] = {}
    for fold, truth in folds.items():
        named = [("image", image) for image in truth]
        for kind, name in named + [("lesion", lesion) for lesion, _ in truth.values()]:
            if owner.setdefault((kind, name), fold) != fold:
                raise ValueError(f"{kind} {name} is in folds {owner[kind, name]} and {fold}")
    return arms


def _arm(name: str, runs: Mapping[Cell, _Run], resamples: int, seed: int) -> Arm:
    cells = tuple(sorted(runs))
    rows = _pooled(runs)
    recall = _recall(rows)
    intervals, recall_intervals = metrics.bootstrap(rows, resamples, seed)
    by_seed = {}
    for one in sorted({seed for _, seed in cells}):
        own = {cell: run for cell, run in runs.items() if cell[1] == one}
        if len(own) == len({fold for fold, _ in cells}):
            by_seed[one] = metrics.nanmean(_recall(_pooled(own)))
    return Arm(
        name=name,
        cells=cells,
        runs={m: np.array([runs[c].values[m] for c in cells]) for m in METRICS},
        balanced_accuracy=metrics.nanmean(recall),
        balanced_accuracy_ci95=intervals["balanced_accuracy"],
        by_seed=by_seed,
        recall=recall,
        recall_ci95=recall_intervals,
        images=np.array([round(r.sum()) for r in rows]),
        lesions=np.array([len(r) for r in rows]),
    )


def _by_fold(runs: Mapping[Cell, _Run]) -> dict[int, list[tuple[np.ndarray, np.ndarray]]]:
    """Fold -> for each class the lesions, and their confusion rows [lesions, C], seeds averaged."""
    by_class = {}
    for fold in sorted({fold for fold, _ in runs}):
        repeated = [runs[cell] for cell in sorted(runs) if cell[0] == fold]
        means = [np.mean(parts, axis=0) for parts in zip(*(r.rows for r in repeated), strict=True)]
        by_class[fold] = list(zip(repeated[0].lesions, means, strict=True))
    return by_class


def _pooled(runs: Mapping[Cell, _Run]) -> list[np.ndarray]:
    """For each class the confusion rows of the lesions of all folds, seeds averaged.

    Those of a lesion that is tested in several subsets are summed.
    """
    pooled = []
    for parts in zip(*_by_fold(runs).values(), strict=True):
        summed: dict[str, np.ndarray] = {}
        for lesion, row in (pair for ids, rows in parts for pair in zip(ids, rows, strict=True)):
            summed[lesion] = summed[lesion] + row if lesion in summed else row
        num_classes = parts[0][1].shape[1]
        pooled.append(np.array(list(summed.values())).reshape(-1, num_classes))
    return pooled


def _tested(mine: Mapping[Cell, _Run], theirs: Mapping[Cell, _Run]) -> tuple[np.ndarray, ...]:
    """The first six arguments of `paired_difference`."""
    parts, control = [], _by_fold(theirs)
    numbers: dict[str, int] = {}
    for fold, rows in _by_fold(mine).items():
        for c, ((ids, own), (_, other)) in enumerate(zip(rows, control[fold], strict=True)):
            images = own.sum(axis=1)
            place = np.full_like(images, c), np.full_like(images, fold)
            lesions = [numbers.setdefault(one, len(numbers)) for one in ids]
            parts.append(np.stack([*place, images, own[:, c], other[:, c], lesions]))
    labels, folds, *values, lesions = np.concatenate(parts, axis=1)
    return labels.astype(int), folds.astype(int), *values, lesions.astype(int)


def _recall(rows: Sequence[np.ndarray]) -> np.ndarray:
    hits = np.array([r[:, c].sum() for c, r in enumerate(rows)])
    return metrics.quotient(hits, np.array([r.sum() for r in rows]))


def _drawn(
    gained: np.ndarray, images: np.ndarray, resamples: int, rng: np.random.Generator
) -> np.ndarray:
    """Resampled differences of one class's recall, [resamples]; NaN where it has no lesion."""
    if not len(images):
        return np.full(resamples, np.nan)
    imagined = images.mean() * np.array([[1, 1], [-1, 1]])
    rows = np.stack([gained, images], axis=1)
    totals = metrics.resampled_totals(rows, imagined, resamples, rng)
    return totals[:, 0] / totals[:, 1]


def _estimate(value: float, folds: np.ndarray, deviations: np.ndarray, subsets: bool) -> Estimate:
    """From the folds' differences, and the resampled differences' deviations from their mean."""
    student, student_p = metrics.UNDEFINED, float("nan")
    added = None
    if len(folds) > 1:
        error = Spread.of(folds).sd / np.sqrt(len(folds))
        student, student_p = _students(value, error, len(folds) - 1)
        if subsets:
            whole = float(np.hypot(error, deviations.std()))
            # Only a part of the sum is known from so few numbers (Satterthwaite 1946).
            freedom = (len(folds) - 1) * (whole / error) ** 4 if error else np.inf
            added = _students(value, whole, freedom)
    reaching = (np.abs(deviations) >= abs(value)).sum()
    bootstrap_p = float((1 + reaching) / (1 + len(deviations)))
    bootstrap = _around(value, _reached(deviations))
    return Estimate(value, student, bootstrap, student_p, bootstrap_p, added)


def _students(value: float, error: float, freedom: float) -> tuple[Interval, float]:
    """The interval and the p-value of Student's t."""
    # Without any spread between folds a difference is certain, and none is none.
    distance = abs(value) / error if error else np.inf if value else 0.0
    interval = _around(value, error * stats.t.ppf(1 - LEVEL / 2, freedom))
    return interval, float(2 * stats.t.sf(distance, freedom))


def _reached(deviations: np.ndarray) -> float:
    """The size that so few deviations reach that a larger estimate has p <= LEVEL."""
    place = int(LEVEL * (1 + len(deviations)))
    return float(np.sort(np.abs(deviations))[-place])


def _around(value: float, half: float) -> Interval:
    return float(value - half), float(value + half)
