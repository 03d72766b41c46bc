"""Arms of a study compared: paired differences over folds and seeds, and how sure they are.

Pure: arrays in, numbers out. An arm is a way of training; a run is one arm on one fold of the
cross-validation with one seed, and its outcome the probabilities of that fold's test images.

**The primary estimate is pooled.** For each class the recall is over the test images of all folds,
each counted once, as its mean over the seeds; balanced accuracy is the mean of the seven. The mean
of the runs' own values weighs an image by its fold's number of images of the class, is undefined
where a fold has none of it, and its parts are coarse: with 12 dermatofibromas a fold, one image
moves a run's value by 1.2 points. Both estimate the same thing and nearly agree; runs' own values
are shown as mean and standard deviation, and every difference, interval and p-value is of the
pooled value. AUC alone is never pooled: scores of different networks have no common scale (Forman
and Scholz, "Apples-to-apples in cross-validation studies", SIGKDD Explorations 12, 2010).

**Intervals of a difference.** Two are computed, both symmetric about the pooled estimate, and the
wider one counts (`Estimate`):

- Student's t over the folds' differences (seeds averaged within a fold), with folds - 1 degrees of
  freedom. It sees everything that varies from fold to fold: lesions, training images, the noise of
  training, a GAN fitted on each fold. It rests on few folds.
- The paired bootstrap over lesions within classes (both arms on the same lesions). It sees that
  test lesions are a sample, with the precision of all of them, but takes the runs as given.

Student's t alone would do where folds vary normally, the bootstrap where runs do not vary; the
wider one protects where either fails, at little cost. In 1,000 simulated studies of 5 folds and 2
seeds it calls 3.9 % different without an effect (t alone 5.5 %, lesions alone 14.3 %), 65 % with
one of 4 points, 94 % with 6. With one fold there is only the bootstrap: 9 % without an effect. More
stands in `docs/study_error_rates.md`.

Neither sees what all folds share: training sets of two folds overlap by three quarters, so the
variance from one data set to another is underestimated, and no estimator is unbiased (Bengio and
Grandvalet, JMLR 5, 2004). The intervals speak of this data set.

**p-values** are the larger of the two intervals' own, so p <= 0.05 exactly where the wider interval
leaves 0 out. The arm to be confirmed is tested alone; the others, which are exploratory, are
corrected after Holm (Scandinavian Journal of Statistics 6, 1979). That arm may differ from the
control in more than its generated images, such as the classes' shares; its difference from an arm
that is like it in all else is tested in the second place, only once the first difference is shown
(a fixed sequence, which keeps the error rate without a correction).
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

from skin_jax.data.classes import NUM_CLASSES
from skin_jax.eval import metrics
from skin_jax.eval.metrics import RESAMPLES, Interval

METRICS = ("balanced_accuracy", "accuracy", "macro_f1", "macro_auc")
LEVEL = 0.05

_UNDEFINED: Interval = (float("nan"), float("nan"))
_FEWEST_RESAMPLES = 19  # fewer have no 5 %

Cell = tuple[int, int]
"""Fold and seed."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What one finished run says of its fold's test images.

    Attributes:
      arm: name of the way of training.
      fold, seed: of the run.
      image_ids: N distinct ids, the same for all runs of the fold, in any order.
      lesion_ids: N ids; no lesion is in two folds.
      labels: int [N] in 0..6.
      probabilities: float [N, 7], finite, in the order of CLASSES.
    """

    arm: str
    fold: int
    seed: int
    image_ids: Sequence[str]
    lesion_ids: Sequence[str]
    labels: np.ndarray
    probabilities: np.ndarray


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A difference of proportions (arm minus control, in [-1, 1]) with what is known of it.

    Both intervals are at 95 % and symmetric about `value`; NaN where undefined (Student's t with
    one fold, everything where no class is present).
    """

    value: float
    student: Interval
    bootstrap: Interval
    student_p: float
    bootstrap_p: float

    @property
    def interval(self) -> Interval:
        """The wider of the two intervals, or the one that is defined."""
        if np.isnan(self.student[0]) or np.ptp(self.bootstrap) > np.ptp(self.student):
            return self.bootstrap
        return self.student

    @property
    def p(self) -> float:
        """The larger of the two p-values: at most 0.05 exactly where `interval` excludes 0."""
        return float(np.fmax(self.student_p, self.bootstrap_p))


@dataclasses.dataclass(frozen=True)
class Paired:
    """Two arms on the same test lesions.

    Attributes:
      balanced_accuracy, accuracy: the pooled differences.
      fold_differences: float [folds], balanced accuracy of each fold, folds in increasing order.
      recall: float [7], pooled difference of each class, NaN where the class is absent.
      recall_ci95: of these, over lesions alone and uncorrected.
    """

    balanced_accuracy: Estimate
    accuracy: Estimate
    fold_differences: np.ndarray
    recall: np.ndarray
    recall_ci95: tuple[Interval, ...]


@dataclasses.dataclass(frozen=True)
class Arm:
    """One arm over all its own runs.

    Attributes:
      name: of the arm.
      ratio: generated images per real one, or None.
      cells: fold and seed of each run, sorted.
      runs: metric of METRICS -> float [runs], each run's own value, in the order of `cells`.
      balanced_accuracy: pooled over the folds at hand, seeds averaged.
      balanced_accuracy_ci95: of that, over lesions, these runs taken as given.
      by_seed: seed -> pooled balanced accuracy of that seed, where it has all of the arm's folds.
      recall: float [7], pooled; NaN where the class is absent.
      recall_ci95: of these, over lesions.
      images, lesions: int [7], of the folds at hand.
    """

    name: str
    ratio: float | None
    cells: tuple[Cell, ...]
    runs: Mapping[str, np.ndarray]
    balanced_accuracy: float
    balanced_accuracy_ci95: Interval
    by_seed: Mapping[int, float]
    recall: np.ndarray
    recall_ci95: tuple[Interval, ...]
    images: np.ndarray
    lesions: np.ndarray

    def mean(self, metric: str) -> float:
        """Mean over runs of a metric of METRICS, NaN where no run defines it."""
        return metrics.nanmean(self.runs[metric])

    def sd(self, metric: str) -> float:
        """Standard deviation over runs (n - 1), NaN with fewer than two."""
        return _sd(self.runs[metric])


@dataclasses.dataclass(frozen=True)
class Difference:
    """An arm minus another, over the cells that both have.

    Attributes:
      arm: its name.
      control: name of the other arm.
      ratio: generated images per real one, or None.
      confirmatory: whether this difference is to be confirmed, the others being explored.
      cells: fold and seed of each pair of runs, sorted.
      cell_differences: float [cells], balanced accuracy of the arm's run minus the control's.
      paired: pooled differences, intervals and p-values.
      p: of the pooled balanced accuracy; Holm-corrected unless confirmatory.
      not_covered: sentences on what the interval does not cover.
    """

    arm: str
    control: str
    ratio: float | None
    confirmatory: bool
    cells: tuple[Cell, ...]
    cell_differences: np.ndarray
    paired: Paired
    p: float
    not_covered: tuple[str, ...]

    @property
    def estimate(self) -> Estimate:
        """The primary one: pooled balanced accuracy."""
        return self.paired.balanced_accuracy

    @property
    def mean(self) -> float:
        """Mean of the cells' differences."""
        return metrics.nanmean(self.cell_differences)

    @property
    def sd(self) -> float:
        """Standard deviation of the cells' differences (n - 1), NaN with fewer than two."""
        return _sd(self.cell_differences)

    @property
    def shown(self) -> bool:
        """Whether a difference is shown: the (corrected) p-value is at most 0.05."""
        return self.p <= LEVEL


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A study, finished or not.

    Attributes:
      control: name of the arm that the others are compared with.
      confirmatory: name of the arm to be confirmed, or None.
      isolating: name of the arm that is like it but for the generated images, or None.
      arms: those with a run: the control, the confirmatory arm, then in the order given.
      differences: of the arms that share a cell with the control, in the same order.
      isolated: the confirmatory arm minus the isolating one: what the generated images themselves
        do; its p-value counts once the confirmatory arm differs from the control. None where there
        is no such arm, or no cell that both have.
    """

    control: str
    confirmatory: str | None
    isolating: str | None
    arms: tuple[Arm, ...]
    differences: tuple[Difference, ...]
    isolated: Difference | None


def compare(
    outcomes: Sequence[Outcome],
    *,
    control: str,
    confirmatory: str | None = None,
    isolating: str | None = None,
    ratios: Mapping[str, float | None] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Comparison:
    """Compares every arm with the control; see the module's docstring for the statistics.

    Two arms are compared on the (fold, seed) cells that both have, so a study in progress can be
    looked at. What no run exists of is absent from the result: an arm, or all differences where
    the control has none.

    Args:
      outcomes: at least one, at most one for each arm, fold and seed.
      control: name of the conventionally augmented arm.
      confirmatory: name of the arm to be confirmed, tested alone and uncorrected; None: all are
        exploratory.
      isolating: name of the arm that the confirmatory one is compared with in the second place.
      ratios: arm -> generated images per real one.
      resamples: of the bootstrap, at least 19.
      seed: of the bootstrap.

    Raises:
      ValueError: no outcome, a run given twice, runs of a fold that differ in images, labels or
        lesions, images or lesions in two folds, arrays that do not fit, `control`, `confirmatory`
        and `isolating` are not different, `isolating` without `confirmatory`.
    """
    if not outcomes:
        raise ValueError("no outcomes to compare")
    if confirmatory == control:
        raise ValueError(f"{control} cannot be both the control and the confirmatory arm")
    if isolating is not None and (confirmatory is None or isolating in (control, confirmatory)):
        raise ValueError(f"{isolating} can only isolate what another, confirmatory arm does")
    ratios = ratios or {}
    runs: dict[str, dict[Cell, _Run]] = {}
    for outcome, run in zip(outcomes, _aligned(outcomes), strict=True):
        cells = runs.setdefault(outcome.arm, {})
        if (outcome.fold, outcome.seed) in cells:
            raise ValueError(
                f"{outcome.arm}, fold {outcome.fold}, seed {outcome.seed}: given twice"
            )
        cells[outcome.fold, outcome.seed] = run
    names = [name for name in (control, confirmatory) if name in runs]
    names += [name for name in runs if name not in names]
    arms = tuple(_arm(name, runs[name], ratios.get(name), resamples, seed) for name in names)

    def minus(name: str, other: str) -> Difference | None:
        shared = sorted(runs.get(name, {}).keys() & runs.get(other, {}).keys())
        if not shared:
            return None
        mine, theirs = ({c: runs[arm][c] for c in shared} for arm in (name, other))
        paired = paired_difference(*_lesions(mine, theirs), resamples=resamples, seed=seed)
        own = [
            mine[cell].values["balanced_accuracy"] - theirs[cell].values["balanced_accuracy"]
            for cell in shared
        ]
        return Difference(
            arm=name,
            control=other,
            ratio=ratios.get(name),
            confirmatory=name == confirmatory,
            cells=tuple(shared),
            cell_differences=np.array(own),
            paired=paired,
            p=paired.balanced_accuracy.p,
            not_covered=_not_covered(shared),
        )

    differences = [d for name in names if name != control and (d := minus(name, control))]
    exploratory = [d for d in differences if not d.confirmatory]
    corrected = dict(
        zip((d.arm for d in exploratory), holm([d.p for d in exploratory]), strict=True)
    )
    return Comparison(
        control=control,
        confirmatory=confirmatory,
        isolating=isolating,
        arms=arms,
        differences=tuple(dataclasses.replace(d, p=corrected.get(d.arm, d.p)) for d in differences),
        isolated=minus(confirmatory, isolating) if confirmatory and isolating else None,
    )


def paired_difference(
    labels: np.ndarray,
    folds: np.ndarray,
    images: np.ndarray,
    arm: np.ndarray,
    control: np.ndarray,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Paired:
    """The pooled differences of two arms, their two intervals and p-values.

    The bootstrap is that of `metrics.bootstrap` on differences: n - 1 lesions of each class are
    drawn from its n and two imagined ones of half weight, one that the arm alone gets right, one
    that the control alone does (the adjustment that Bonett and Price, JEBS 37, 2012 make for
    intervals of paired proportions), so that a class in which the arms happen to agree is not
    known exactly. Half the interval is the deviation from the mean resample that 5 % reach; the
    p-value is the share that reaches the estimate, (1 + k) / (1 + resamples).

    Args:
      labels, folds: int [L], class in 0..6 and fold of each test lesion.
      images: [L], number of its images, > 0.
      arm, control: float [L] in [0, images]: how many of them are right, a mean over seeds.
      resamples: at least 19.
      seed: of the bootstrap.

    Raises:
      ValueError: no lesion, or too few resamples.
    """
    if not len(labels):
        raise ValueError("no test lesions to compare on")
    if resamples < _FEWEST_RESAMPLES:
        raise ValueError(f"{resamples} resamples have no 5 %: at least {_FEWEST_RESAMPLES}")
    gained = np.asarray(arm, np.float64) - control
    totals = np.bincount(labels, images, NUM_CLASSES)
    recall = metrics.quotient(np.bincount(labels, gained, NUM_CLASSES), totals)
    rng = np.random.default_rng(seed)
    members = [labels == c for c in range(NUM_CLASSES)]
    drawn = np.stack([_drawn(gained[m], images[m], resamples, rng) for m in members], axis=1)
    drawn -= drawn.mean(axis=0)
    shares = totals / totals.sum()
    numbers, places = np.unique(folds, return_inverse=True)
    flat = places * NUM_CLASSES + labels
    shape = (len(numbers), NUM_CLASSES)
    gains = np.bincount(flat, gained, np.prod(shape)).reshape(shape)
    sizes = np.bincount(flat, images, np.prod(shape)).reshape(shape)
    fold_differences = metrics.row_nanmeans(metrics.quotient(gains, sizes))
    return Paired(
        balanced_accuracy=_estimate(
            metrics.nanmean(recall), fold_differences, metrics.row_nanmeans(drawn)
        ),
        accuracy=_estimate(
            float(gained.sum() / totals.sum()),
            gains.sum(axis=1) / sizes.sum(axis=1),
            np.nan_to_num(drawn) @ shares,
        ),
        fold_differences=fold_differences,
        recall=recall,
        recall_ci95=tuple(
            _around(float(recall[c]), _reached(drawn[:, c])) for c in range(NUM_CLASSES)
        ),
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction, in the order given; NaN stays NaN and counts as a test."""
    values = np.asarray(p_values, np.float64)
    order = np.argsort(values)  # NaN last
    factors = np.arange(len(values), 0, -1)
    corrected = np.empty(len(values))
    corrected[order] = np.minimum(np.maximum.accumulate(values[order] * factors), 1.0)
    return corrected.tolist()


@dataclasses.dataclass(frozen=True)
class _Run:
    """One run: its own metrics, and for each class its confusion rows [lesions, 7]."""

    values: Mapping[str, float]
    rows: Sequence[np.ndarray]


def _aligned(outcomes: Sequence[Outcome]) -> list[_Run]:
    """Each outcome in its fold's common order of images, checked against the others."""
    folds: dict[int, dict[str, tuple[str, int]]] = {}
    runs = []
    for outcome in outcomes:
        what = f"{outcome.arm}, fold {outcome.fold}, seed {outcome.seed}"
        n = len(outcome.image_ids)
        if not n == len(outcome.lesion_ids) == len(outcome.labels) == len(outcome.probabilities):
            raise ValueError(f"{what}: ids, lesions, labels and probabilities differ in length")
        position = {image_id: i for i, image_id in enumerate(outcome.image_ids)}
        if len(position) != n:
            raise ValueError(f"{what}: image ids repeat")
        labels = np.asarray(outcome.labels)
        truth = dict(
            zip(
                outcome.image_ids,
                zip(outcome.lesion_ids, labels.tolist(), strict=True),
                strict=True,
            )
        )
        common = folds.setdefault(outcome.fold, truth)
        if common != truth:
            raise ValueError(f"{what}: other test images, labels or lesions than runs before it")
        order = np.array([position[image_id] for image_id in common], int)
        probabilities = np.asarray(outcome.probabilities)[order]
        found = metrics.evaluate(probabilities, labels[order], resamples=0)
        lesions = [lesion for lesion, _ in common.values()]
        runs.append(
            _Run(
                {
                    "balanced_accuracy": found.balanced_accuracy,
                    "accuracy": found.accuracy,
                    "macro_f1": found.macro["f1"],
                    "macro_auc": found.macro["auc"],
                },
                metrics.lesion_rows(labels[order], probabilities.argmax(axis=1), lesions),
            )
        )
    owner: dict[tuple[str, str], int] = {}
    for fold, truth in folds.items():
        for kind, ids in (("image", truth), ("lesion", {lesion for lesion, _ in truth.values()})):
            for one in ids:
                if owner.setdefault((kind, one), fold) != fold:
                    raise ValueError(f"{kind} {one} is in folds {owner[kind, one]} and {fold}")
    return runs


def _arm(
    name: str, runs: Mapping[Cell, _Run], ratio: float | None, resamples: int, seed: int
) -> Arm:
    cells = tuple(sorted(runs))
    rows = [np.concatenate(parts) for parts in zip(*_by_fold(runs).values(), strict=True)]
    intervals, recall_intervals = metrics.bootstrap(rows, resamples, seed)
    recall = _recall(rows)
    folds = {fold for fold, _ in cells}
    by_seed = {}
    for s in sorted({s for _, s in cells}):
        own = {cell: run for cell, run in runs.items() if cell[1] == s}
        if len(own) == len(folds):
            pooled = [np.concatenate(p) for p in zip(*_by_fold(own).values(), strict=True)]
            by_seed[s] = metrics.nanmean(_recall(pooled))
    return Arm(
        name=name,
        ratio=ratio,
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


def _by_fold(runs: Mapping[Cell, _Run]) -> dict[int, list[np.ndarray]]:
    """Fold -> for each class the lesions' confusion rows [lesions, 7], seeds averaged."""
    folds: dict[int, list[_Run]] = {}
    for (fold, _), run in sorted(runs.items()):
        folds.setdefault(fold, []).append(run)
    return {
        fold: [np.mean(parts, axis=0) for parts in zip(*(run.rows for run in group), strict=True)]
        for fold, group in folds.items()
    }


def _lesions(mine: Mapping[Cell, _Run], theirs: Mapping[Cell, _Run]) -> tuple[np.ndarray, ...]:
    """The first five arguments of `paired_difference`."""
    parts: list[np.ndarray] = []
    control = _by_fold(theirs)
    for fold, rows in _by_fold(mine).items():
        for c in range(NUM_CLASSES):
            images = rows[c].sum(axis=1)
            place = np.broadcast_to([[c], [fold]], (2, len(images)))
            parts.append(np.stack([*place, images, rows[c][:, c], control[fold][c][:, c]]))
    labels, folds, images, arm, other = np.concatenate(parts, axis=1)
    return labels.astype(int), folds.astype(int), images, arm, other


def _recall(rows: Sequence[np.ndarray]) -> np.ndarray:
    hits = np.array([r[:, c].sum() for c, r in enumerate(rows)])
    return metrics.quotient(hits, np.array([r.sum() for r in rows]))


def _drawn(
    gained: np.ndarray, images: np.ndarray, resamples: int, rng: np.random.Generator
) -> np.ndarray:
    """Resampled differences of one class's recall, [resamples]; NaN where it has no lesion."""
    if not len(images):
        return np.full(resamples, np.nan)
    size = images.mean()
    imagined = np.array([[size, size], [-size, size]])
    rows = np.stack([gained, images], axis=1)
    totals = metrics.resampled_totals(rows, imagined, resamples, rng)
    return totals[:, 0] / totals[:, 1]


def _estimate(value: float, folds: np.ndarray, deviations: np.ndarray) -> Estimate:
    """Both intervals and p-values of a difference.

    Args:
      folds: float [folds], the folds' differences.
      deviations: float [resamples], of the resampled differences from their mean.
    """
    student, student_p = _UNDEFINED, float("nan")
    if len(folds) > 1:
        error = _sd(folds) / np.sqrt(len(folds))
        student = _around(value, error * stats.t.ppf(1 - LEVEL / 2, len(folds) - 1))
        # Without any spread between folds a difference is certain, and none is none.
        distance = abs(value) / error if error else np.inf if value else 0.0
        student_p = float(2 * stats.t.sf(distance, len(folds) - 1))
    reaching = (np.abs(deviations) >= abs(value)).sum()
    return Estimate(
        value=value,
        student=student,
        bootstrap=_around(value, _reached(deviations)),
        student_p=student_p,
        bootstrap_p=float((1 + reaching) / (1 + len(deviations))),
    )


def _reached(deviations: np.ndarray) -> float:
    """The size that so few deviations reach that a larger estimate has p <= LEVEL."""
    place = int(LEVEL * (1 + len(deviations)))
    return float(np.sort(np.abs(deviations))[-place])


def _around(value: float, half: float) -> Interval:
    return float(value - half), float(value + half)


def _sd(values: np.ndarray) -> float:
    defined = values[~np.isnan(values)]
    return float(defined.std(ddof=1)) if len(defined) > 1 else float("nan")


def _not_covered(cells: Sequence[Cell]) -> tuple[str, ...]:
    folds = {fold for fold, _ in cells}
    seeds = {seed for _, seed in cells}
    notes = []
    if len(folds) == 1:
        notes.append(
            "One fold: Student's t is undefined, and the interval takes the runs as given; how "
            "much the noise of training or other training images would change them is not covered."
        )
    elif len(seeds) == 1:
        notes.append(
            "One seed: the noise of training is covered only as part of the differences between "
            "folds."
        )
    return tuple(notes)
