"""Reader studies: how well people tell generated images from real ones, with 95% intervals.

Pure: arrays in, numbers out. Every reader answers "real" or "generated" for every image. In the
terms of signal detection "generated" is the signal: d' = z(H) - z(F) and c = -(z(H) + z(F)) / 2,
where H is the share of generated images and F that of real images that were called generated, and
z the inverse of the normal distribution. Both shares have the log-linear correction (h + 0.5) /
(n + 1) (Hautus, Behavior Research Methods 27, 1995), without which a reader who is always right
has no finite d'.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats
from scipy.special import ndtr, ndtri

from skin_jax.eval.metrics import RESAMPLES, Interval, resampled_totals

CHANCE = {"accuracy": 0.5, "d_prime": 0.0}
"""The values of a reader who sees no difference, whatever he or she prefers to answer."""

_BOUNDS = {"d_prime": (-np.inf, np.inf), "criterion": (-np.inf, np.inf), "difference": (-1.0, 1.0)}
_Z = float(ndtri(0.975))


class Estimate(NamedTuple):
    """A value and its 95% interval."""

    value: float
    ci95: Interval


Measured = Mapping[str, Estimate]
"""Name of a measure -> what it is."""

_Values = Callable[..., dict[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Scores:
    """Measures by name, of each of R readers and of them all.

    Attributes:
      readers: intervals over images.
      overall: the mean over the readers, with intervals over readers and images: what holds for
        other readers, too. Of one reader: over images.
      these: the same mean, with intervals over images: what holds for these readers alone.
      generated, real: how many images there are.
    """

    readers: Sequence[Measured]
    overall: Measured
    these: Measured
    generated: int
    real: int


def detection(
    called: np.ndarray, generated: np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0
) -> Scores:
    """Scores the answers to "real or generated?".

    One reader's d' and c have the variance of Gourevitch and Galanter (Psychometrika 32, 1967), his
    or her shares Wilson's interval (JASA 22, 1927). For several readers see `_over_both`.

    Args:
      called: bool [I, R], whether each reader called each image generated.
      generated: bool [I], whether it is.
      resamples, seed: of the bootstrap over images.

    Returns:
      Measures accuracy, sensitivity (H), specificity (1 - F), d_prime and criterion (positive: a
      reader who prefers to answer "real").

    Raises:
      ValueError: shapes that do not fit, no reader, or no image of one kind.
    """
    return _scores(called, generated, _detected, _detected_alone, resamples, seed)


def diagnosis(
    right: np.ndarray, generated: np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0
) -> Scores:
    """Scores the answers to "which class?": for a generated image the class it was made as.

    The interval of one reader's difference is Newcombe's (Statistics in Medicine 17, 1998, method
    10).

    Args:
      right: bool [I, R], whether each reader named the class of each image.
      generated: bool [I].
      resamples, seed: of the bootstrap over images.

    Returns:
      Measures real and generated, the accuracies on images of that kind, and their difference.

    Raises:
      ValueError: as `detection`.
    """
    return _scores(right, generated, _diagnosed, _diagnosed_alone, resamples, seed)


def unbiased_accuracy(d_prime: float) -> float:
    """The accuracy, in [0, 1], of a reader with this d' and without a preference (c = 0)."""
    return float(ndtr(d_prime / 2))


def apportioned(counts: np.ndarray, total: int) -> np.ndarray:
    """Divides a total in the proportions of counts, by the largest remainders.

    Args:
      counts: int [C], not all 0.
      total: at most their sum.

    Returns:
      int [C], none above its count; the first of equal remainders comes first.
    """
    counts = np.asarray(counts, np.int64)
    whole, remainder = np.divmod(total * counts, counts.sum())
    order = np.argsort(-remainder, kind="stable")
    whole[order[: total - whole.sum()]] += 1
    return whole


def _detected(hits: np.ndarray, alarms: np.ndarray, n: int, m: int) -> dict[str, np.ndarray]:
    """Measures [...] of counts [...] among n generated and m real images."""
    high, low = ndtri((hits + 0.5) / (n + 1)), ndtri((alarms + 0.5) / (m + 1))
    return {
        "accuracy": (hits + m - alarms) / (n + m),
        "sensitivity": hits / n,
        "specificity": 1 - alarms / m,
        "d_prime": high - low,
        "criterion": -(high + low) / 2,
    }


def _detected_alone(hits: int, alarms: int, n: int, m: int) -> dict[str, Interval]:
    variance = 0.0
    for count, size in ((hits, n), (alarms, m)):
        share = (count + 0.5) / (size + 1)
        variance += share * (1 - share) / (size * stats.norm.pdf(ndtri(share)) ** 2)
    values = _detected(np.array(hits), np.array(alarms), n, m)
    d, c, half = float(values["d_prime"]), float(values["criterion"]), _Z * float(np.sqrt(variance))
    return {
        "accuracy": wilson(hits + m - alarms, n + m),
        "sensitivity": wilson(hits, n),
        "specificity": wilson(m - alarms, m),
        "d_prime": (d - half, d + half),
        "criterion": (c - half / 2, c + half / 2),
    }


def _diagnosed(right: np.ndarray, others: np.ndarray, n: int, m: int) -> dict[str, np.ndarray]:
    """Measures [...] of counts [...] among n generated and m real images."""
    generated, real = right / n, others / m
    return {"real": real, "generated": generated, "difference": real - generated}


def _diagnosed_alone(right: int, others: int, n: int, m: int) -> dict[str, Interval]:
    generated, real = wilson(right, n), wilson(others, m)
    g, r = right / n, others / m
    low = r - g - np.hypot(r - real[0], generated[1] - g)
    high = r - g + np.hypot(real[1] - r, g - generated[0])
    return {"real": real, "generated": generated, "difference": (float(low), float(high))}


def wilson(count: int, size: int) -> Interval:
    """The 95% interval of a share, count / size, in [0, 1] (Wilson, JASA 22, 1927)."""
    share, z2 = count / size, _Z**2
    centre = (share + z2 / (2 * size)) / (1 + z2 / size)
    half = _Z * np.sqrt(share * (1 - share) / size + z2 / (4 * size**2)) / (1 + z2 / size)
    # Without rounding, the bounds of none and of all are 0 and 1.
    return (float(centre - half) if count else 0.0), (float(centre + half) if count < size else 1.0)


def _scores(
    answers: np.ndarray,
    generated: np.ndarray,
    values: _Values,
    alone: Callable[[int, int, int, int], dict[str, Interval]],
    resamples: int,
    seed: int,
) -> Scores:
    answers, generated = np.asarray(answers, bool), np.asarray(generated, bool)
    if answers.ndim != 2 or generated.shape != answers.shape[:1] or not answers.shape[1]:
        raise ValueError(f"answers {answers.shape} do not fit images {generated.shape}")
    kinds = answers[generated].astype(int), answers[~generated].astype(int)
    n, m = map(len, kinds)
    if not n or not m:
        raise ValueError(f"{n} generated and {m} real images; both are needed")
    counts = [kind.sum(axis=0) for kind in kinds]
    found = values(*counts, n, m)
    readers = []
    for reader, (a, b) in enumerate(zip(*counts, strict=True)):
        intervals = alone(int(a), int(b), n, m)
        readers.append(
            {name: Estimate(float(found[name][reader]), intervals[name]) for name in found}
        )
    if len(readers) == 1:
        return Scores(readers, readers[0], readers[0], n, m)
    rng = np.random.default_rng(seed)
    imagined = np.repeat([[1], [0]], len(readers), axis=1)
    drawn = [resampled_totals(kind, imagined, resamples, rng) for kind in kinds]
    resampled = values(*drawn, max(n - 1, 1), max(m - 1, 1))
    overall, these = {}, {}
    for name in found:
        bounds = _BOUNDS.get(name, (0.0, 1.0))
        covariances = np.cov(resampled[name], rowvar=False)
        overall[name] = _over_both(found[name], covariances, bounds)
        error = float(np.sqrt(covariances.mean()))
        these[name] = _around(float(found[name].mean()), _Z * error, bounds)
    return Scores(readers, overall, these, n, m)


def _over_both(
    readers: np.ndarray, covariances: np.ndarray, bounds: tuple[float, float]
) -> Estimate:
    """The mean over readers, with an interval over readers and images.

    The method of Obuchowski and Rockette (Communications in Statistics 24, 1995) for studies with
    several readers of the same images: the variance of the mean is the readers' variance / R plus
    the covariance that they have because they saw the same images, here from a bootstrap over the
    images; Student's t has Hillis's degrees of freedom (Statistics in Medicine 33, 2014, one test).
    A bootstrap that resamples readers, too, is too narrow for two or three readers who differ (it
    held the truth in 82% of simulated studies) and too wide for many who do not. By chance, readers
    may agree better than images drawn at random allow: the variance is at least that of R readers
    who have nothing in common.

    Args:
      readers: float [R], R > 1, each reader's value.
      covariances: float [R, R], of these values where other images are drawn.
      bounds: of the measure.
    """
    R = len(readers)
    own = np.trace(covariances) / R
    shared = max((covariances.sum() - R * own) / (R * (R - 1)), 0.0)
    between = float(readers.var(ddof=1))
    variance = max(between / R + shared, own / R)
    freedom = (between + R * shared) ** 2 * (R - 1) / between**2 if between else np.inf
    half = float(stats.t.ppf(0.975, freedom) * np.sqrt(variance))
    return _around(float(readers.mean()), half, bounds)


def _around(value: float, half: float, bounds: tuple[float, float]) -> Estimate:
    return Estimate(value, (max(value - half, bounds[0]), min(value + half, bounds[1])))
