"""How often a study calls arms different that are not, and finds the differences that there are.

python -m benchmarks.study_error_rates [--studies 1000]: prints a table and writes it to
docs/study_error_rates.md.

A simulated study is two arms on the test lesions of all folds, or of all subsets, compared as
`skin_jax.eval.comparison` does. A subset takes `TAKEN` lesions of each class to train with, and
tests on all others. Whether a run gets an image right depends on

- the image: how hard it is for every run (correlation of a latent normal score, `correlation`);
- the arm's fold: training images, and a GAN fitted on them (`fold_sd` points of balanced accuracy);
- the arm and the image: what one way of training finds hard (`interaction`, a share of the rest);
- the run: the noise of training moves the recall of each class (`run_sd` points of balanced
  accuracy) and, beyond that, flips images one by one.

Shifts are of the latent score, so that the expected recalls are exactly those asked for. What both
arms share in a fold cancels out and is left out. An effect raises the recall of each class by the
same share of what it lacks, so that balanced accuracy rises by the effect.
"""

import argparse
import dataclasses
import pathlib
import time

import numpy as np
from scipy import special

from skin_jax.data.classes import HAM10000
from skin_jax.eval import comparison

IMAGES = (183, 264, 583, 60, 491, 4323, 80)
"""Images (lesions) of each class in 5,984 images of HAM10000, one for each lesion."""
RECALLS = (0.69, 0.80, 0.75, 0.70, 0.72, 0.95, 0.85)
FEW_RECALLS = (0.45, 0.50, 0.40, 0.45, 0.50, 0.65, 0.75)
"""Of networks that were trained with few images."""
FOLDS = 5
TAKEN = 40
"""Lesions of each class that a subset does not test."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a simulated study is like; standard deviations in points of balanced accuracy."""

    name: str
    folds: int = FOLDS
    seeds: int = 2
    run_sd: float = 1.5
    fold_sd: float = 1.0
    correlation: float = 0.7
    interaction: float = 0.0
    subsets: bool = False  # in the place of folds


SETTINGS = (
    Setting("as expected"),
    Setting("one seed", seeds=1),
    Setting("four seeds", seeds=4),
    Setting("quiet training", run_sd=0.0, fold_sd=0.0),
    Setting("noisy training", run_sd=3.0),
    Setting("fickle GANs", fold_sd=3.0),
    Setting("unlike arms", correlation=0.4),
    Setting("alike arms", correlation=0.9),
    Setting("two folds", folds=2),
    Setting("one fold", folds=1),
    Setting("6 subsets", folds=6, seeds=1, interaction=0.3, subsets=True),
    Setting("12 subsets", folds=12, seeds=1, interaction=0.3, subsets=True),
    Setting("12 subsets, alike", folds=12, seeds=1, subsets=True),
    Setting("12 subsets, unlike", folds=12, seeds=1, interaction=0.8, subsets=True),
    Setting("12 subsets, noisy", folds=12, seeds=1, run_sd=3.0, interaction=0.3, subsets=True),
    Setting("12 subsets, fickle", folds=12, seeds=1, fold_sd=3.0, interaction=0.3, subsets=True),
)
EFFECTS = (0.0, 2.0, 4.0, 6.0)


def simulate(rng: np.random.Generator, setting: Setting, effect: float) -> tuple[np.ndarray, ...]:
    """Draw one study: the first six arguments of `comparison.paired_difference`.

    Args:
      effect: of the first arm, in points of balanced accuracy.
    """
    everyone = np.repeat(np.arange(len(RECALLS)), IMAGES)
    if setting.subsets:
        order = np.argsort([everyone + rng.random(len(everyone)) for _ in range(setting.folds)])
        begins = np.cumsum((0, *IMAGES[:-1]))
        drawn = (begins[:, None] + np.arange(TAKEN)).ravel()
        lesions = np.delete(order, drawn, axis=1).ravel()
        folds = np.repeat(np.arange(setting.folds), len(everyone) - len(drawn))
    else:
        # Folds keep the proportions of classes, as the package's own do.
        folds = np.concatenate([np.arange(n) % FOLDS for n in IMAGES])
        lesions = np.flatnonzero(folds < setting.folds)
        folds = folds[lesions]
    labels = everyone[lesions]
    base = np.asarray(FEW_RECALLS if setting.subsets else RECALLS)
    gain = effect / 100 * (1 - base) / (1 - base).mean()
    hardness = np.sqrt(setting.correlation) * rng.standard_normal(len(everyone))
    rest = 1 - setting.correlation
    arms = []
    for recall in (base + gain, base):
        hard = hardness[lesions]
        if setting.interaction:
            own = np.sqrt(setting.interaction * rest) * rng.standard_normal(len(everyone))
            hard = hard + own[lesions]
        middle = special.ndtri(recall)
        # How far balanced accuracy moves, to first order, with independent shifts by 1.
        slope = 100 * np.linalg.norm(np.exp(-(middle**2) / 2) / np.sqrt(2 * np.pi)) / len(RECALLS)
        fold_sd, run_sd = setting.fold_sd / slope, setting.run_sd / slope
        middle = middle * np.sqrt(1 + fold_sd**2 + run_sd**2)
        shape = (setting.folds, len(RECALLS))
        of_fold = middle + fold_sd * rng.standard_normal(shape)
        hits = np.zeros(len(labels))
        for _ in range(setting.seeds):
            of_run = of_fold + run_sd * rng.standard_normal(shape)
            noise = np.sqrt((1 - setting.interaction) * rest) * rng.standard_normal(len(labels))
            hits += hard + noise < of_run[folds, labels]
        arms.append(hits / setting.seeds)
    return labels, folds, np.ones(len(labels)), *arms, lesions


@dataclasses.dataclass(frozen=True)
class Found:
    """What simulated studies found: arrays [studies], bool but for estimate and width (points).

    Attributes:
      student, bootstrap, interval: whether that 95 % interval leaves 0 out.
      held: whether `interval` holds the effect.
      estimate: the pooled difference.
      width: half of `interval`.
    """

    student: np.ndarray
    bootstrap: np.ndarray
    interval: np.ndarray
    held: np.ndarray
    estimate: np.ndarray
    width: np.ndarray


def studies(setting: Setting, effect: float, count: int, seed: int = 0) -> Found:
    """Simulate and compare `count` studies."""
    rng = np.random.default_rng(seed)
    rows = []
    for repetition in range(count):
        found = comparison.paired_difference(
            *simulate(rng, setting, effect),
            num_classes=len(RECALLS),
            subsets=setting.subsets,
            seed=repetition,
        )
        estimate = found.balanced_accuracy
        low, high = estimate.interval
        rows.append(
            (
                _excludes(estimate.student, 0.0),
                _excludes(estimate.bootstrap, 0.0),
                _excludes(estimate.interval, 0.0),
                not _excludes(estimate.interval, effect / 100),
                100 * estimate.value,
                50 * (high - low),
            )
        )
    columns = [np.array(column) for column in zip(*rows, strict=True)]
    return Found(*columns)


def _excludes(interval: tuple[float, float], value: float) -> bool:
    return bool(value < interval[0] or value > interval[1])


_HEADER = (
    "| studies | parts x seeds | SD of run, fold | correlation | effect | called different "
    "| by t alone | by lesions alone | interval holds the effect | SD of estimate | half-width |\n"
    "|---|---|---|---:|---:|---:|---:|---:|---:|---:|---:|"
)


def table(count: int) -> str:
    """Run every setting and effect and lay the results out in Markdown, printing rows as done."""
    lines = [_HEADER]
    print(_HEADER, flush=True)
    for setting in SETTINGS:
        few = (0.0, 5.0) if setting.subsets else (0.0, 6.0)
        for effect in EFFECTS if setting is SETTINGS[0] else few:
            found = studies(setting, effect, count)
            student = f"{found.student.mean():.1%}" if setting.folds > 1 else "n/a"
            lines.append(
                f"| {setting.name} | {setting.folds} x {setting.seeds} "
                f"| {setting.run_sd}, {setting.fold_sd} | {setting.correlation} | {effect:g} "
                f"| {found.interval.mean():.1%} | {student} | {found.bootstrap.mean():.1%} "
                f"| {found.held.mean():.1%} | {found.estimate.std():.2f} "
                f"| {found.width.mean():.2f} |"
            )
            print(lines[-1], flush=True)
    return "\n".join(lines)


def document(rows: str, count: int) -> str:
    """Put the table into its page."""
    classes = ", ".join(f"{c} {n}" for c, n in zip(HAM10000.names, IMAGES, strict=True))
    recalls = ", ".join(f"{c} {r}" for c, r in zip(HAM10000.names, RECALLS, strict=True))
    few = ", ".join(f"{c} {r}" for c, r in zip(HAM10000.names, FEW_RECALLS, strict=True))
    return f"""# Error rates of the comparison of two arms

Written by `python -m benchmarks.study_error_rates --studies {count}`.

Each row: {count:,} simulated studies of two arms, compared by `skin_jax.eval.comparison`. *Called
different*: the wider of the two 95% intervals (of subsets: that of both errors added) excludes 0;
with an effect of 0 this is the rate of false alarms, otherwise the power. *By t alone* (Student's t
over folds or subsets) and *by lesions alone* (the paired bootstrap): the same with one interval.
Effects are in points of balanced accuracy; a rate of 5% has a standard error of
{np.sqrt(0.05 * 0.95 / count):.1%}. `benchmarks/study_error_rates.py` says how studies are
simulated.

{rows}

Test images over five folds, one for each lesion: {classes}. Recalls without an effect: {recalls}.
Of subsets: {few}; each tests all lesions but {TAKEN} of each class. A part of what the images do
not share between arms belongs to arm and image, in all subsets: 0.3 of it, 0 in "alike", 0.8 in
"unlike".
"""


def main() -> None:
    """Print the table and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=1000)
    count = parser.parse_args().studies
    begin = time.monotonic()
    page = pathlib.Path(__file__).parents[1] / "docs" / "study_error_rates.md"
    page.write_text(document(table(count), count), encoding="utf-8")
    print(f"{time.monotonic() - begin:.0f} s")


if __name__ == "__main__":
    main()
