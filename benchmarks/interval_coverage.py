"""How often the 95% interval of balanced accuracy contains the truth, in simulations that know it.

python -m benchmarks.interval_coverage [--repetitions 400]: prints a table and writes it to
docs/interval_coverage.md. It takes about seven minutes on one CPU core.

A simulated test set has lesions of 1 to 6 images (three in four have one). Each lesion has its own
chance of being right, drawn from a beta distribution around the recall of its class, so that images
of one lesion are right or wrong together (their correlation is in the table). The truth is the mean
of the classes' recalls.
"""

import argparse
import pathlib

import numpy as np

from skin_jax.data.classes import HAM10000
from skin_jax.eval import metrics

LESIONS: dict[str, tuple[int, ...]] = {
    "20% of HAM10000": (46, 65, 145, 15, 123, 1080, 20),
    "20% of 5,984 images": (37, 53, 117, 12, 98, 865, 16),
    "a very small set": (8, 12, 20, 4, 20, 120, 5),
}
"""Lesions of each class of HAM10000, in their order."""

RECALLS: dict[str, tuple[float, ...]] = {
    "low": (0.42, 0.60, 0.55, 0.35, 0.50, 0.90, 0.65),
    "middle": (0.69, 0.80, 0.75, 0.70, 0.72, 0.95, 0.85),
    "high": (0.85, 0.92, 0.90, 0.88, 0.90, 0.97, 0.95),
}
CORRELATIONS = (0.3, 0.7)
_HEADER = (
    "| test set | recalls | correlation | truth | coverage | of the first 200 | mean width "
    "| plain percentile |\n|---|---|---:|---:|---:|---:|---:|---:|"
)


def simulate(
    rng: np.random.Generator,
    lesions: tuple[int, ...],
    recalls: tuple[float, ...],
    correlation: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw one test set: probabilities float [N, 7], labels int [N] and lesion ids int [N]."""
    spread = (1 - correlation) / correlation
    classes = np.repeat(np.arange(len(lesions)), lesions)
    chance = np.asarray(recalls)[classes]
    images = np.where(rng.random(len(classes)) < 0.75, 1, rng.integers(2, 7, len(classes)))
    own = rng.beta(chance * spread, (1 - chance) * spread)
    ids = np.repeat(np.arange(len(classes)), images)
    labels = classes[ids]
    right = rng.random(len(ids)) < own[ids]
    other = (labels + rng.integers(1, len(lesions), len(ids))) % len(lesions)
    return np.eye(len(lesions))[np.where(right, labels, other)], labels, ids


def plain_interval(
    rng: np.random.Generator, probabilities: np.ndarray, labels: np.ndarray, ids: np.ndarray
) -> np.ndarray:
    """Compute the textbook's percentile bootstrap over lesions within classes, for comparison."""
    hit = probabilities.argmax(axis=1) == labels
    recalls = []
    for c in range(probabilities.shape[1]):
        _, index = np.unique(ids[labels == c], return_inverse=True)
        rows = np.stack([np.bincount(index, hit[labels == c]), np.bincount(index)], axis=1)
        patterns, counts = np.unique(rows, axis=0, return_counts=True)
        drawn = rng.multinomial(len(rows), counts / len(rows), size=metrics.RESAMPLES) @ patterns
        recalls.append(drawn[:, 0] / drawn[:, 1])
    return np.quantile(np.mean(recalls, axis=0), (0.025, 0.975))


def coverage(
    lesions: tuple[int, ...],
    recalls: tuple[float, ...],
    correlation: float,
    repetitions: int,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray, float]:
    """Simulate and see whether the intervals hold the truth.

    Returns:
      bool [repetitions] for the intervals of `metrics.evaluate`, the same for the plain ones, and
      the mean width of the former.
    """
    rng = np.random.default_rng(seed)
    truth = float(np.mean(recalls))
    held, plain, widths = [], [], []
    for repetition in range(repetitions):
        probabilities, labels, ids = simulate(rng, lesions, recalls, correlation)
        found = metrics.evaluate(probabilities, labels, ids.astype(str).tolist(), seed=repetition)
        low, high = found.ci95["balanced_accuracy"]
        held.append(low <= truth <= high)
        widths.append(high - low)
        low, high = plain_interval(rng, probabilities, labels, ids)
        plain.append(low <= truth <= high)
    return np.array(held), np.array(plain), float(np.mean(widths))


def table(repetitions: int) -> str:
    """Run every combination and lay the results out in Markdown, printing rows as they come."""
    lines = [_HEADER]
    print(_HEADER, flush=True)
    for set_name, lesions in LESIONS.items():
        for recall_name, recalls in RECALLS.items():
            for correlation in CORRELATIONS:
                held, plain, width = coverage(lesions, recalls, correlation, repetitions)
                lines.append(
                    f"| {set_name} | {recall_name} | {correlation} | {np.mean(recalls):.3f} "
                    f"| {held.mean():.1%} | {held[:200].mean():.1%} | {width:.3f} "
                    f"| {plain.mean():.1%} |"
                )
                print(lines[-1], flush=True)
    return "\n".join(lines)


def document(rows: str, repetitions: int) -> str:
    """Put the table into its page."""
    sets = "\n".join(
        f"- {name}: {', '.join(f'{c} {n}' for c, n in zip(HAM10000.names, lesions, strict=True))}"
        for name, lesions in LESIONS.items()
    )
    recalls = "\n".join(
        f"- {name}: {', '.join(f'{c} {r}' for c, r in zip(HAM10000.names, values, strict=True))}"
        for name, values in RECALLS.items()
    )
    return f"""# Coverage of the 95% interval of balanced accuracy

Written by `python -m benchmarks.interval_coverage --repetitions {repetitions}`.

Each row: {repetitions:,} simulated test sets with known recalls and lesions of 1 to 6 images that
tend to be right or wrong together, and the interval of `skin_jax.eval.metrics.evaluate` (2,000
resamples of lesions within classes) for each set. Coverage is the share of intervals that contain
the truth; its own standard error is {np.sqrt(0.95 * 0.05 / repetitions):.1%} (1.5% for 200). The
last column is the plain percentile bootstrap on the same sets. It is too narrow where classes have
few lesions or high recall, which is why the package draws n - 1 of n lesions and adds two imaginary
ones of half weight (see `bootstrap` in `skin_jax/eval/metrics.py` for the sources). Where classes
of four or five lesions are nearly always right, these intervals err on the wide side.

{rows}

Lesions of each class:

{sets}

Recalls:

{recalls}
"""


def main() -> None:
    """Print the table and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=400)
    repetitions = parser.parse_args().repetitions
    page = pathlib.Path(__file__).parents[1] / "docs" / "interval_coverage.md"
    page.write_text(document(table(repetitions), repetitions), encoding="utf-8")


if __name__ == "__main__":
    main()
