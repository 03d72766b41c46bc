"""What logistic regressions on features can tell: classes, or real images from generated ones.

Pure: arrays in, numbers out.
"""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from skin_jax.base.errors import UserError
from skin_jax.data.classes import UNLABELLED
from skin_jax.eval import metrics

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
STRENGTH_UNCHOSEN = 1e-3  # without a validation split

FEWEST = 20
"""Images of each set that `c2st` needs."""


class Accuracy(NamedTuple):
    """An accuracy and its 95% interval."""

    value: float
    low: float
    high: float


def logistic_regression(
    features: np.ndarray, labels: np.ndarray, assignment: np.ndarray
) -> tuple[float, float]:
    """Balanced accuracy on test of a class-balanced logistic regression, and its C.

    C is that of STRENGTHS with the highest balanced accuracy on val, or STRENGTH_UNCHOSEN where val
    is empty. Features float [N, F] are standardised with the training split's mean and deviation;
    labels are int [N], UNLABELLED ones being left out, the assignment "train" | "val" | "test" [N].

    Raises:
      UserError: no test images, or one class only to learn.
    """
    known = labels != UNLABELLED
    train, val, test = (known & (assignment == split) for split in ("train", "val", "test"))
    if not test.any() or len(np.unique(labels[train])) < 2:
        raise UserError("the baselines need test images, and training images of two classes")
    fits, one_hot = [], np.eye(labels.max() + 1)
    for strength in STRENGTHS if val.any() else (STRENGTH_UNCHOSEN,):
        model = _fitted(features[train], labels[train], strength)
        on_val, on_test = (
            metrics.balanced_accuracy(one_hot[model.predict(features[rows])], labels[rows])
            if rows.any()
            else 0.0
            for rows in (val, test)
        )
        fits.append((on_val, strength, on_test))
    _, strength, score = max(fits)
    return score, strength


def c2st(real: np.ndarray, generated: np.ndarray, seed: int) -> Accuracy:
    """Classifier two-sample test: how well one tells generated images from real ones.

    The accuracy, on images that it was not fitted on, of a logistic regression on the features, of
    as many images of both sets: one half to fit, one half to test (Lopez-Paz and Oquab, ICLR 2017).
    0.5 where both sets come from one distribution; the interval is Wilson's, over test images.

    Args:
      real, generated: features [N, D] and [M, D].
      seed: of the choice of images and of the halves.

    Returns:
      NaN where a set has fewer than FEWEST images.
    """
    n = min(len(real), len(generated))
    if n < FEWEST:
        return Accuracy(np.nan, np.nan, np.nan)
    from scipy.stats import binomtest

    rng = np.random.default_rng(seed)
    both = [features[rng.permutation(len(features))[:n]] for features in (real, generated)]
    cut = n // 2
    model = _fitted(
        np.concatenate([features[:cut] for features in both]),
        np.repeat([0, 1], cut),
        STRENGTH_UNCHOSEN,
    )
    right = sum(int((model.predict(features[cut:]) == k).sum()) for k, features in enumerate(both))
    tested = 2 * (n - cut)
    interval = binomtest(right, tested).proportion_ci(method="wilson")
    return Accuracy(right / tested, float(interval.low), float(interval.high))


def accuracy_score(
    features: np.ndarray, labels: np.ndarray, others: np.ndarray, other_labels: np.ndarray
) -> float:
    """Balanced accuracy, on other images, of a logistic regression on the features of some images.

    Fitted on generated images and tested on real ones, a classification accuracy score (Ravuri and
    Vinyals, NeurIPS 2019, who fit a ResNet-50 on pixels).

    Args:
      features, labels: [N, D] and int [N], of what it is fitted on.
      others, other_labels: [M, D] and int [M], of what it is tested on.

    Returns:
      NaN without images to test, or with one class only to learn; UNLABELLED images are left out.
    """
    try:
        score, _ = logistic_regression(
            np.concatenate([features, others]),
            np.concatenate([labels, other_labels]),
            np.repeat(["train", "test"], [len(features), len(others)]),
        )
    except UserError:
        return float("nan")
    return score


def _fitted(features: np.ndarray, labels: np.ndarray, strength: float) -> "Pipeline":
    """A class-balanced logistic regression on standardised features."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    regression = LogisticRegression(C=strength, class_weight="balanced", max_iter=1000)
    return make_pipeline(StandardScaler(), regression).fit(features, labels)
