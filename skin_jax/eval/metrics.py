"""Metrics of a classifier from per-example probabilities, with intervals over lesions.

Pure: arrays in, numbers out; the number of classes C is that of the columns of the probabilities.
A value that the data do not define (the precision of a class never predicted, the recall of a class
without examples) is NaN, and a macro value is the mean over the classes where it is defined.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from skin_jax.data.classes import Classes

RESAMPLES = 2000
FEW_LESIONS = 20  # fewer in a subgroup are flagged: its figures say little
AGE_BANDS = ((30, "0-29"), (45, "30-44"), (60, "45-59"), (75, "60-74"), (np.inf, "75+"))
"""Upper bounds (exclusive, in years) and names of the age bands; the names sort by age."""
BINS = 15  # of equal width, in which calibration is measured

_PER_CLASS = ("precision", "recall", "f1", "specificity", "auc", "average_precision")
_INTERVALS = ("balanced_accuracy", "accuracy", "macro_f1")
_MACRO = ("precision", "recall", "f1", "auc", "average_precision")

Interval = tuple[float, float]
UNDEFINED: Interval = (float("nan"), float("nan"))


class Spread(NamedTuple):
    """Mean and standard deviation (n - 1) of the values that are defined; NaN with too few."""

    mean: float
    sd: float

    @classmethod
    def of(cls, values: Sequence[float] | np.ndarray) -> "Spread":
        """The spread of any values, NaN among them left out."""
        defined = np.asarray(values, np.float64)
        defined = defined[~np.isnan(defined)]
        return cls(nanmean(defined), float(defined.std(ddof=1)) if len(defined) > 1 else np.nan)


class Curve(NamedTuple):
    """One class against the rest at each of P - 1 distinct scores as threshold, from the highest.

    Each float64 [P], NaN where undefined; at the first point nothing is called positive.
    """

    false_positive_rate: np.ndarray
    recall: np.ndarray
    precision: np.ndarray
    auc: float  # share of (example, other) pairs in the right order, ties counting half

    @property
    def average_precision(self) -> float:
        """Precision over recall as steps, without interpolation (as scikit-learn has it)."""
        # From the lowest threshold on: the order in which scikit-learn adds, to the last bit.
        return float(np.sum((np.diff(self.recall) * self.precision[1:])[::-1]))


class Reliability(NamedTuple):
    """Largest scores in bins of equal width; NaN where a bin is empty."""

    counts: np.ndarray  # int [BINS]
    confidence: np.ndarray  # float [BINS], mean score
    hit_rate: np.ndarray  # float [BINS]


class RiskCoverage(NamedTuple):
    """What a classifier gets wrong where it judges only the images that it is surest of.

    Of the k images with the largest scores, k = 1 .. N: k / N, and the share that is wrong; float64
    [N] each. Geifman and El-Yaniv, "Selective Classification for Deep Neural Networks", NeurIPS
    2017.
    """

    coverage: np.ndarray
    risk: np.ndarray

    @property
    def area(self) -> float:
        """Mean risk over all coverages: the lower, the better does the score tell errors apart."""
        return float(self.risk.mean())

    def at(self, coverage: float) -> float:
        """Risk at the smallest coverage that is at least that asked for, in (0, 1]."""
        return float(self.risk[int(np.ceil(coverage * len(self.risk) - 1e-9)) - 1])


@dataclasses.dataclass(frozen=True)
class Metrics:
    """Everything that is reported about one set of predictions.

    confusion int64 [C, C] has a row for each true class; lesions int64 [C] equals support where
    lesions are not known; other arrays are float64 [C] in [0, 1] or NaN. Intervals are at 95%.
    """

    num_examples: int
    confusion: np.ndarray
    lesions: np.ndarray
    lesions_known: bool
    tied: int
    balanced_accuracy: float
    accuracy: float
    ece: float
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    specificity: np.ndarray
    auc: np.ndarray
    average_precision: np.ndarray
    curves: tuple[Curve, ...]
    reliability: Reliability
    risk_coverage: RiskCoverage
    ci95: Mapping[str, Interval]
    recall_ci95: tuple[Interval, ...]

    @property
    def support(self) -> np.ndarray:
        """Examples of each class, int64 [C]."""
        return self.confusion.sum(axis=1)

    @property
    def macro(self) -> dict[str, float]:
        """Means over the classes where the value is defined; NaN where none is."""
        return {name: nanmean(getattr(self, name)) for name in _MACRO}

    def to_json(
        self, classes: Classes, *, split: str | None = None, step: int | None = None
    ) -> dict[str, Any]:
        """The content of `metrics.json`, NaN where undefined: `files.write_json` writes null."""
        return {
            "split": split,
            "num_examples": self.num_examples,
            "step": step,
            "classes": classes.names,
            "balanced_accuracy": self.balanced_accuracy,
            "accuracy": self.accuracy,
            "macro": self.macro,
            "per_class": {
                name: {key: getattr(self, key)[i] for key in (*_PER_CLASS, "support")}
                for i, name in enumerate(classes.names)
            },
            "confusion_matrix": self.confusion,
            "ece": self.ece,
            "ci95": self.ci95,
        }


@dataclasses.dataclass(frozen=True)
class Subgroup:
    """The examples that share one value of one attribute, and how the classifier does on them."""

    attribute: str
    value: str
    metrics: Metrics

    @property
    def num_lesions(self) -> int:
        """Distinct lesions of the subgroup."""
        return int(self.metrics.lesions.sum())

    @property
    def few(self) -> bool:
        """Whether these are too few for the figures to say much."""
        return self.num_lesions < FEW_LESIONS


class OperatingPoint(NamedTuple):
    """Sensitivity at a wished specificity: a score above `threshold` counts as positive.

    The interval of the sensitivity, at 95%, takes the threshold as given.
    """

    wished_specificity: float
    threshold: float
    sensitivity: float
    specificity: float
    sensitivity_ci95: Interval = UNDEFINED


def evaluate(
    probabilities: np.ndarray,
    labels: np.ndarray,
    lesion_ids: Sequence[str] | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Metrics:
    """All metrics of one set of predictions; for the intervals see `bootstrap`.

    Precision, recall, F1 = 2TP / (2TP + FP + FN) and specificity are one class against the rest.
    The calibration error (Guo et al., ICML 2017) compares the largest score with the hit rate in 15
    bins of equal width. The predicted class is the first of the largest scores; the ISIC
    challenge's scorer counts ties (`Metrics.tied`) as wrong and leaves ISIC_0035068 out.

    Args:
      probabilities: float [N, C], finite, C > 1; rows need not sum to 1.
      labels: int [N] in 0..C-1.
      lesion_ids: N ids; images of one lesion are resampled together. None: each image alone.
      resamples: of the bootstrap; 0 leaves the intervals out (NaN).
      seed: of the bootstrap.

    Raises:
      ValueError: shapes that do not fit, no example, scores not finite, labels out of range.
    """
    probabilities, labels = _checked(probabilities, labels)
    if lesion_ids is not None and len(lesion_ids) != len(labels):
        raise ValueError(f"{len(lesion_ids)} lesion ids for {len(labels)} labels")
    predicted, largest = probabilities.argmax(axis=1), probabilities.max(axis=1)
    rows, _ = lesion_rows(labels, predicted, lesion_ids, probabilities.shape[1])
    confusion = np.stack([row.sum(axis=0) for row in rows])
    intervals, recall_intervals = bootstrap(rows, resamples, seed)
    against_rest = _one_against_rest(confusion)
    curves = _curves(probabilities, labels)
    reliability, ece = _calibration(largest, predicted == labels)
    return Metrics(
        num_examples=len(labels),
        confusion=confusion,
        lesions=np.array([len(r) for r in rows]),
        lesions_known=lesion_ids is not None,
        tied=int(((probabilities == largest[:, None]).sum(axis=1) > 1).sum()),
        balanced_accuracy=nanmean(against_rest["recall"]),
        accuracy=float(np.trace(confusion) / confusion.sum()),
        ece=ece,
        auc=np.array([curve.auc for curve in curves]),
        average_precision=np.array([curve.average_precision for curve in curves]),
        curves=curves,
        reliability=reliability,
        risk_coverage=_risk_coverage(largest, predicted == labels),
        ci95=intervals,
        recall_ci95=recall_intervals,
        **against_rest,
    )


def macro_auc(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean ROC AUC over the classes where it is defined; arguments and errors as `evaluate`."""
    return nanmean([curve.auc for curve in _curves(*_checked(probabilities, labels))])


def balanced_accuracy(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean recall over the classes present; arguments and errors as `evaluate`."""
    probabilities, labels = _checked(probabilities, labels)
    hits = probabilities.argmax(axis=1) == labels
    return nanmean([hits[labels == c].mean() for c in np.unique(labels)])


def log_loss(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean of -log p(label) within each class, then over the classes present, so in nats.

    Probabilities count as at least 1e-12; arguments and errors as `evaluate`.
    """
    probabilities, labels = _checked(probabilities, labels)
    losses = -np.log(np.maximum(probabilities[np.arange(len(labels)), labels], 1e-12))
    return nanmean([losses[labels == c].mean() for c in np.unique(labels)])


def confident_mistakes(probabilities: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    """Find the at most `count` wrong predictions with the largest scores, largest first."""
    probabilities, labels = _checked(probabilities, labels)
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != labels)
    return wrong[np.argsort(-probabilities[wrong].max(axis=1), kind="stable")][:count]


Scored = tuple[np.ndarray, np.ndarray]
"""Scores float [N], larger for more likely positives, and whether each is positive, bool [N]."""


def sensitivity_at_specificity(
    val: Scored, test: Scored, specificity: float, lesion_ids: Sequence[str] | None = None
) -> OperatingPoint:
    """Sensitivity on test at the threshold that reaches a specificity in (0, 1] on val.

    The threshold is the lowest val score with at least the wished share of the val negatives at or
    below it. Both figures are measured on test, NaN where undefined. For the interval see
    `bootstrap`; `lesion_ids` are those of test, None: each image alone.
    """
    if not 0 < specificity <= 1:
        raise ValueError(f"specificity must be in (0, 1], not {specificity}")
    negatives = np.sort(val[0][~val[1].astype(bool)])
    if not len(negatives):
        return OperatingPoint(specificity, np.nan, np.nan, np.nan)
    # The slack keeps 0.95 * 60 = 57.00000000000001 from asking for a 58th negative.
    threshold = float(negatives[int(np.ceil(specificity * len(negatives) - 1e-9)) - 1])
    called, positive = test[0] > threshold, test[1].astype(bool)
    measured = nanmean(called[positive]), nanmean(~called[~positive])
    ids = None if lesion_ids is None else np.asarray(lesion_ids)[positive]
    # The recall of a class of positives, called so or not.
    of_positives, _ = lesion_rows(np.zeros(positive.sum(), int), 1 - called[positive], ids, 2)
    _, (interval, _) = bootstrap(of_positives)
    return OperatingPoint(specificity, threshold, *measured, interval)


def subgroups(
    probabilities: np.ndarray,
    labels: np.ndarray,
    lesion_ids: Sequence[str] | None,
    attributes: Mapping[str, Sequence[str]],
    **options: int,
) -> list[Subgroup]:
    """Metrics of the examples that share each value of each attribute, values in sorted order.

    Attributes are N values by name, such as "sex"; all else is as `evaluate` has it.
    """
    found = []
    for attribute, values in attributes.items():
        if len(values) != len(labels):
            raise ValueError(f"{len(values)} values of {attribute} for {len(labels)} labels")
        for value in np.unique(values):
            chosen = np.asarray(values) == value
            own = None if lesion_ids is None else np.asarray(lesion_ids)[chosen]
            metrics = evaluate(probabilities[chosen], labels[chosen], own, **options)
            found.append(Subgroup(attribute, str(value), metrics))
    return found


def age_band(age: float | None) -> str:
    """Name the band that holds an age in years; "unknown" for None and NaN."""
    if age is None or np.isnan(age):
        return "unknown"
    return next(name for bound, name in AGE_BANDS if age < bound)


def quotient(numerator: np.ndarray | int, denominator: np.ndarray | int) -> np.ndarray:
    """Elementwise numerator / denominator, broadcast, NaN where the denominator is 0."""
    out = np.full(np.broadcast(numerator, denominator).shape, np.nan)
    return np.divide(numerator, denominator, out=out, where=np.not_equal(denominator, 0))


def nanmean(values: np.ndarray | Sequence[float]) -> float:
    """Mean of what is defined, NaN (and no warning) where nothing is."""
    return float(row_nanmeans(np.asarray(values, np.float64)))


def row_nanmeans(values: np.ndarray) -> np.ndarray:
    """Means [...] of what is defined along the last axis, as `nanmean`."""
    defined = ~np.isnan(values)
    return quotient(np.where(defined, values, 0.0).sum(axis=-1), defined.sum(axis=-1))


def lesion_rows(
    labels: np.ndarray, predicted: np.ndarray, lesion_ids: Sequence[str] | None, num_classes: int
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """How many images of each lesion got each prediction.

    A lesion whose images carry several labels counts once for each; without ids each of the N
    images is a lesion. The order of the lesions depends on labels and lesions alone.

    Returns:
      For each class int [lesions, C], and the lesions' ids [lesions].
    """
    lesions = np.arange(len(labels)) if lesion_ids is None else np.asarray(lesion_ids)
    rows, ids = [], []
    for c in range(num_classes):
        kept, index = np.unique(lesions[labels == c], return_inverse=True)
        counts = np.zeros((len(kept), num_classes), int)
        np.add.at(counts, (index, predicted[labels == c]), 1)
        rows.append(counts)
        ids.append(kept)
    return rows, ids


def bootstrap(
    rows: Sequence[np.ndarray], resamples: int = RESAMPLES, seed: int = 0
) -> tuple[dict[str, Interval], tuple[Interval, ...]]:
    """95% intervals by resampling lesions within each class.

    The plain percentile bootstrap covers too rarely with the few lesions of the rare classes
    (`docs/interval_coverage.md`): it is too narrow by (n - 1) / n, and a class whose n lesions are
    all right would count as known exactly. So each class draws n - 1 lesions (Rao and Wu, JASA 83,
    1988) from its own and two imagined ones of half weight, one all right, one all wrong (Jeffreys'
    prior; Brown, Cai and DasGupta, Statistical Science 16, 2001). One class's recall stays pulled
    inwards by these, as Jeffreys' interval is; in a mean over classes it would add up, so there the
    distribution is moved back to lie around the estimate.

    Args:
      rows: for each class [lesions, C] of `lesion_rows`, or means of such over several runs.
      resamples, seed: of the draws; 0 resamples leave the intervals out (NaN).

    Returns:
      Intervals of balanced accuracy, accuracy and macro F1 by name, and those of the C recalls.
    """
    if not resamples:
        return dict.fromkeys(_INTERVALS, UNDEFINED), (UNDEFINED,) * len(rows)
    total = np.stack([r.sum(axis=0) for r in rows])
    # F1 of a class without examples is defined in the resamples that happen to call it: a mean over
    # another number of classes in each would mean nothing.
    defined = ~np.isnan(_one_against_rest(total)["f1"])
    estimate = _summaries(total[None], defined)
    rng = np.random.default_rng(seed)
    drawn = np.stack([_draw(r, c, resamples, rng) for c, r in enumerate(rows)], axis=1)
    spread = _summaries(drawn, defined)
    intervals = {}
    for name in _INTERVALS:
        value, drawn = estimate[name][0], spread[name]
        intervals[name] = _interval(value, drawn + (value - drawn.mean()))
    return intervals, tuple(map(_interval, estimate["recall"][0], spread["recall"].T))


def resampled_totals(
    rows: np.ndarray, imagined: np.ndarray, resamples: int, rng: np.random.Generator
) -> np.ndarray:
    """Sums [resamples, K] over n - 1 lesions drawn from n, each imagined one having half weight.

    Args:
      rows: [n, K], n > 0, what each lesion adds.
      imagined: [M, K], what the imagined ones would add; for the reasons see `bootstrap`.
    """
    # Lesions that add the same are interchangeable, so drawing how often each pattern comes up
    # costs a few numbers a resample instead of one a lesion.
    patterns, counts = np.unique(rows, axis=0, return_counts=True)
    weights = np.concatenate([counts, np.full(len(imagined), 0.5)])
    drawn = rng.multinomial(max(len(rows) - 1, 1), weights / weights.sum(), size=resamples)
    return drawn @ np.concatenate([patterns, imagined])


def _checked(probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    probabilities, labels = np.asarray(probabilities, np.float64), np.asarray(labels)
    if labels.ndim != 1 or probabilities.ndim != 2 or len(probabilities) != len(labels):
        raise ValueError(f"probabilities {probabilities.shape} do not fit labels {labels.shape}")
    if not len(labels):
        raise ValueError("no examples to evaluate")
    if (num_classes := probabilities.shape[1]) < 2:
        raise ValueError(f"probabilities of {num_classes} class; at least two are needed")
    if not np.isfinite(probabilities).all():
        raise ValueError("probabilities are not all finite")
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels must be integers, not {labels.dtype}")
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(f"labels must be in 0..{num_classes - 1}")
    return probabilities, labels


def _one_against_rest(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """Values [..., C] of confusion matrices [..., C, C]."""
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    true, called = confusion.sum(axis=-1), confusion.sum(axis=-2)
    total = true.sum(axis=-1, keepdims=True)
    return {
        "precision": quotient(hits, called),
        "recall": quotient(hits, true),
        "f1": quotient(2 * hits, true + called),
        "specificity": quotient(total - true - called + hits, total - true),
    }


def _calibration(confidence: np.ndarray, hit: np.ndarray) -> tuple[Reliability, float]:
    """Bins of confidences [N] and hits [N], and the expected calibration error."""
    bins = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    counts, gaps, sums, hits = (
        np.bincount(bins, weights=weights, minlength=BINS)
        for weights in (None, hit - confidence, confidence, hit)
    )
    error = float(np.abs(gaps).sum() / len(hit))
    return Reliability(counts, quotient(sums, counts), quotient(hits, counts)), error


def calibration_error(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The expected calibration error alone; see `evaluate`."""
    probabilities, labels = _checked(probabilities, labels)
    hits = probabilities.argmax(axis=1) == labels
    return _calibration(probabilities.max(axis=1), hits)[1]


def _risk_coverage(confidence: np.ndarray, hit: np.ndarray) -> RiskCoverage:
    order = np.argsort(-confidence, kind="stable")
    number = np.arange(1, len(hit) + 1)
    return RiskCoverage(number / len(hit), np.cumsum(~hit[order]) / number)


def _curves(probabilities: np.ndarray, labels: np.ndarray) -> tuple[Curve, ...]:
    return tuple(_curve(scores, labels == c) for c, scores in enumerate(probabilities.T))


def _curve(scores: np.ndarray, positive: np.ndarray) -> Curve:
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)  # of equal scores
    hits, called = np.append(0, np.cumsum(positive[order])[last]), np.append(0, last + 1)
    alarms = called - hits
    pairs = (np.diff(alarms) * (hits[1:] + hits[:-1])).sum()  # twice those in the right order
    return Curve(
        false_positive_rate=quotient(alarms, alarms[-1]),
        recall=quotient(hits, hits[-1]),
        precision=np.append(1.0, quotient(hits[1:], called[1:])),  # 1 at the start by convention
        auc=float(quotient(pairs, 2 * alarms[-1] * hits[-1])),
    )


def _summaries(confusions: np.ndarray, defined: np.ndarray) -> dict[str, np.ndarray]:
    """Metrics that get an interval, of confusion matrices [R, C, C]; macro F1 over `defined`."""
    found = _one_against_rest(confusions)
    hits, total = np.trace(confusions, axis1=-2, axis2=-1), confusions.sum(axis=(-2, -1))
    return {
        "balanced_accuracy": row_nanmeans(found["recall"]),
        "accuracy": quotient(hits, total),
        "macro_f1": row_nanmeans(np.nan_to_num(found["f1"][:, defined])),
        "recall": found["recall"],
    }


def _draw(rows: np.ndarray, label: int, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Resample one class's confusion row: float [resamples, C], each summing to its images."""
    images, num_classes = rows.sum(), rows.shape[1]
    if not len(rows):
        return np.zeros((resamples, num_classes))
    right = np.eye(num_classes)[label]
    wrong = rows.sum(axis=0) * (1 - right)
    wrong = wrong if wrong.any() else 1 - right
    imagined = images / len(rows) * np.stack([right, wrong / wrong.sum()])
    totals = resampled_totals(rows, imagined, resamples, rng)
    return totals * (images / totals.sum(axis=1, keepdims=True))


def _interval(estimate: float, values: np.ndarray) -> Interval:
    """Take the central 95% of resampled values, widened to the estimate where that is outside."""
    if np.isnan(estimate):
        return UNDEFINED
    low, high = np.clip(np.quantile(values, (0.025, 0.975)), 0.0, 1.0)
    return float(min(low, estimate)), float(max(high, estimate))
