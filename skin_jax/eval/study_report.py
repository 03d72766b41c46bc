"""The results of a study for people and programs: study.json, study.md, report.html, figures.

Differences are in points of per cent in text and figures, as fractions in study.json.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from skin_jax.data.lesions import CLASSES
from skin_jax.eval import comparison as compared
from skin_jax.eval import figures, report
from skin_jax.eval.comparison import Arm, Comparison, Difference, Estimate
from skin_jax.eval.metrics import Interval, plain
from skin_jax.eval.report import Picture, Section, Table, Text
from skin_jax.files import write_atomically

PathLike = str | os.PathLike[str]

JSON_FILE = "study.json"
MARKDOWN_FILE = "study.md"
HTML_FILE = "report.html"

_SHORT = {
    "balanced_accuracy": "balanced accuracy",
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "macro_auc": "macro AUC",
}


@dataclasses.dataclass(frozen=True)
class Claim:
    """A gain that a paper reports for generated images; `points` of per cent."""

    source: str
    metric: Literal["balanced_accuracy", "accuracy"]
    points: float

    def __str__(self) -> str:
        return f"{self.source}'s +{self.points:g} points of {_SHORT[self.metric]}"


_TABLE_TWO = report.PAPER_A["balanced_accuracy"]
PAPER_A_CLAIM = Claim(
    "paper A",
    "balanced_accuracy",
    round(100 * (_TABLE_TWO["semi-supervised GAN"] - _TABLE_TWO["DenseNet"]), 1),
)
"""Rashid et al. 2019, Table II: semi-supervised GAN against DenseNet, one run each."""
PAPER_B_CLAIM = Claim("paper B", "accuracy", 4.0)
"""DCGAN augmentation of HAM10000: one run each, without an absolute figure."""


def write(
    folder: PathLike,
    comparison: Comparison,
    *,
    title: str,
    facts: Mapping[str, Any],
    arm_descriptions: Mapping[str, str],
    plan_counts: Mapping[str, int],
    samples: Sequence[tuple[str, PathLike]] = (),
    claims: Sequence[Claim] = (),
    gan_arms: Collection[str] | None = None,
    families: Mapping[str, str] | None = None,
) -> pathlib.Path:
    """Writes study.json, study.md, report.html (one self-contained file) and `figures/`.

    Args:
      folder: where to; made if need be.
      comparison: of the runs that are finished.
      title: the pages' heading.
      facts: what was run, such as settings.
      arm_descriptions: arm -> what it is.
      plan_counts: arm -> number of runs planned, of every arm of the plan, with runs or without.
      samples: caption and PNG file of generated images.
      claims: of papers, to stand beside the results, such as PAPER_A_CLAIM.
      gan_arms: arms with generated images, which the claims are about; None: all.
      families: arm -> name of what arms of several ratios have in common, such as their GAN: a line
        in the ratio curve. None: one line if no ratio comes twice, else points of their own.

    Returns:
      The path of report.html.

    Raises:
      UserError: the folder cannot be written.
    """
    folder = pathlib.Path(folder)
    sentences = conclusion(comparison, plan_counts, claims, gan_arms)
    content = _json(comparison, title, sentences, facts, arm_descriptions, plan_counts, claims)
    write_atomically(folder / JSON_FILE, json.dumps(content, indent=2, allow_nan=False) + "\n")
    sections = [
        Section("Conclusion", [Text(sentence) for sentence in sentences]),
        *_difference_sections(folder / "figures", comparison, plan_counts, claims, gan_arms),
        *_arm_sections(folder / "figures", comparison, arm_descriptions, plan_counts),
        *_ratio_sections(folder / "figures", comparison, families),
    ]
    if samples:
        pictures = [Picture(path, caption) for caption, path in samples]
        sections.append(Section("Generated images", pictures))
    sections += _run_sections(comparison, facts, plan_counts)
    write_atomically(folder / MARKDOWN_FILE, report.markdown(title, sections, folder))
    path = folder / HTML_FILE
    write_atomically(path, report.html(title, sections))
    return path


def conclusion(
    comparison: Comparison,
    plan_counts: Mapping[str, int],
    claims: Sequence[Claim] = (),
    gan_arms: Collection[str] | None = None,
) -> list[str]:
    """What the intervals allow to say, one paragraph each, the most important first.

    Args:
      comparison, plan_counts, claims, gan_arms: as for `write`.
    """
    missing = _missing(comparison, plan_counts)
    planned = sum(plan_counts.values())
    control = comparison.control
    paragraphs = []
    confirmed = [d for d in comparison.differences if d.confirmatory]
    exploratory = [d for d in comparison.differences if not d.confirmatory]
    if confirmed:
        paragraphs.append(_verdict(confirmed[0], control, claims, gan_arms))
    elif comparison.confirmatory is not None:
        paragraphs.append(
            f"The pre-registered arm {comparison.confirmatory} and the control {control} have no "
            "finished run of the same fold and seed: there is no result yet."
        )
    if exploratory:
        # What a paper claims is asked of the pre-registered arm where there is one.
        paragraphs.append(_explored(exploratory, control, () if confirmed else claims, gan_arms))
    if not comparison.differences and comparison.confirmatory is None:
        paragraphs.append(
            f"No arm has a finished run of the same fold and seed as the control {control}: there "
            "is nothing to compare yet."
        )
    if comparison.confirmatory is None and comparison.differences:
        paragraphs.append(
            "No arm was pre-registered: all comparisons are exploratory, and a difference shown "
            "here has yet to be confirmed on other data."
        )
    if missing:
        if comparison.differences:
            paragraphs[0] = f"Preliminary. {paragraphs[0]}"
        paragraphs.append(
            f"{sum(missing.values())} of {planned} planned runs are missing: figures can still "
            "change, and looking before the end makes false alarms more frequent."
        )
    notes: dict[str, list[str]] = {}
    for difference in comparison.differences:
        for note in difference.not_covered:
            notes.setdefault(note, []).append(difference.arm)
    everyone = len(comparison.differences)
    for note, arms in notes.items():
        paragraphs.append(note if len(arms) == everyone else f"{', '.join(arms)}: {note}")
    return paragraphs


def _verdict(
    difference: Difference,
    control: str,
    claims: Sequence[Claim],
    gan_arms: Collection[str] | None,
) -> str:
    """One arm against the control, and the papers' claims about such arms, in sentences."""
    estimate = difference.estimate
    kind = "" if difference.confirmatory else ", Holm-corrected"
    first = (
        f"{difference.arm} minus {control}: {_signed(estimate.value)} points of balanced accuracy "
        f"(95 % interval {_span(estimate.interval)}; p {_relation(difference.p)}{kind}): "
        f"{_outcome(difference)}."
    )
    if not _concerned([difference], gan_arms):
        return first
    return " ".join([first, *(_judged(difference, claim) for claim in claims)])


def _concerned(
    differences: Sequence[Difference], gan_arms: Collection[str] | None
) -> list[Difference]:
    """Those that the papers' claims are about."""
    return [d for d in differences if gan_arms is None or d.arm in gan_arms]


def _judged(difference: Difference, claim: Claim) -> str:
    estimate = _of(difference, claim)
    excluded = "excluded" if _excluded(estimate, claim) else "not excluded"
    found = (
        ""
        if claim.metric == "balanced_accuracy"
        else f" ({_SHORT[claim.metric]}: {_signed(estimate.value)}, {_span(estimate.interval)})"
    )
    return f"An effect as large as {claim} (single runs) is {excluded}{found}."


def _outcome(difference: Difference) -> str:
    if not difference.shown:
        return "no difference shown"
    direction = "higher" if difference.estimate.value > 0 else "lower"
    if len(difference.paired.fold_differences) == 1:
        return f"{direction} for these very runs, which says little of training again"
    return f"balanced accuracy is {direction}"


def _explored(
    differences: Sequence[Difference],
    control: str,
    claims: Sequence[Claim],
    gan_arms: Collection[str] | None,
) -> str:
    """The exploratory arms in a few sentences."""
    largest = max(differences, key=lambda d: d.estimate.value)
    if len(differences) == 1:
        return "Exploratory: " + _verdict(largest, control, claims, gan_arms)
    shown = [d for d in differences if d.shown]
    best = (
        f"The largest is {largest.arm}: {_signed(largest.estimate.value)} points of balanced "
        f"accuracy (95 % interval, uncorrected, {_span(largest.estimate.interval)})."
    )
    if not shown:
        first = (
            f"No difference from {control} is shown for any of {len(differences)} exploratory "
            "arms (Holm-corrected)."
        )
    else:
        named = "; ".join(f"{d.arm} {_signed(d.estimate.value)} ({_outcome(d)})" for d in shown)
        rest = len(differences) - len(shown)
        first = (
            f"Exploratory arms against {control} (Holm-corrected): {named}"
            + (f"; no difference shown for {rest} other{'s' * (rest > 1)}" if rest else "")
            + "."
        )
    judged = []
    concerned = _concerned(differences, gan_arms)
    for claim in claims if concerned else ():
        possible = [d.arm for d in concerned if not _excluded(_of(d, claim), claim)]
        kind = "" if gan_arms is None else " with generated images"
        judged.append(
            f"An effect as large as {claim} (single runs) is "
            + (
                f"not excluded for {', '.join(possible)}."
                if possible
                else f"excluded for every arm{kind}."
            )
        )
    return " ".join([first, best, *judged])


def _of(difference: Difference, claim: Claim) -> Estimate:
    return getattr(difference.paired, claim.metric)


def _excluded(estimate: Estimate, claim: Claim) -> bool:
    return bool(100 * estimate.interval[1] < claim.points)


def _missing(comparison: Comparison, plan_counts: Mapping[str, int]) -> dict[str, int]:
    """Arm -> number of planned runs that are not there, where that is any."""
    done = {arm.name: len(arm.cells) for arm in comparison.arms}
    counts = {name: planned - done.get(name, 0) for name, planned in plan_counts.items()}
    return {name: count for name, count in counts.items() if count > 0}


def _difference_sections(
    folder: pathlib.Path,
    comparison: Comparison,
    plan_counts: Mapping[str, int],
    claims: Sequence[Claim],
    gan_arms: Collection[str] | None,
) -> list[Section]:
    picture = folder / "differences.png"
    found = comparison.differences
    if not found:
        picture.unlink(missing_ok=True)  # of an earlier call
        return []
    control = comparison.control
    figures.forest(
        picture,
        [d.arm for d in found],
        100 * np.array([d.estimate.value for d in found]),
        100 * np.array([d.estimate.interval for d in found]),
        notes=[_with_span(d.estimate) for d in found],
        emphasised=[d.confirmatory for d in found],
        marks={
            f"{c.source}, +{c.points:g} (a single run)": c.points
            for c in claims
            if c.metric == "balanced_accuracy"
        },
        label="points of balanced accuracy",
    )
    emphasis = (
        f" The filled diamond is {comparison.confirmatory}, which was pre-registered."
        if any(d.confirmatory for d in found)
        else ""
    )
    sections = [
        Section(
            f"Differences from {control}",
            [
                Picture(
                    picture,
                    f"Balanced accuracy minus that of {control}, in points, with 95 % intervals "
                    f"(not corrected for the number of arms).{emphasis}",
                )
            ],
        ),
        Section("Paired differences", _paired_blocks(comparison, plan_counts)),
    ]
    concerned = _concerned(found, gan_arms)
    if claims and concerned:
        sections.append(_claims_section(concerned, claims))
    return sections


def _paired_blocks(
    comparison: Comparison, plan_counts: Mapping[str, int]
) -> list[Text | Table | Picture]:
    found = comparison.differences
    exploratory = sum(not d.confirmatory for d in found)
    main = Table(
        ("arm", "pairs", "difference", "95 % interval", "p", "p, Holm", "pairs: mean ± SD"),
        [
            (
                _named(d),
                _of_planned(len(d.cells), plan_counts.get(d.arm)),
                _signed(d.estimate.value),
                _span(d.estimate.interval),
                _p(d.estimate.p),
                "(alone)" if d.confirmatory else _p(d.p),
                _mean_sd(100 * d.mean, 100 * d.sd, 1, signed=True),
            )
            for d in found
        ],
    )
    both = Table(
        ("arm", "t over folds", "lesions", "accuracy", "95 % interval"),
        [
            (
                _named(d),
                _span(d.estimate.student),
                _span(d.estimate.bootstrap),
                _signed(d.paired.accuracy.value),
                _span(d.paired.accuracy.interval),
            )
            for d in found
        ],
    )
    recall = Table(
        ("arm", *CLASSES),
        [
            (
                _named(d),
                *(
                    _signed(value)
                    if np.isnan(value)
                    else f"{_signed(value)} ± {50 * (high - low):.1f}"
                    for value, (low, high) in zip(
                        d.paired.recall, d.paired.recall_ci95, strict=True
                    )
                ),
            )
            for d in found
        ],
    )
    return [
        Text(
            f"Each arm minus {comparison.control} on the same folds and seeds, in points: balanced "
            "accuracy from recalls pooled over the folds, seeds averaged. Pairs: folds and seeds "
            "that both have, of those planned for the arm."
        ),
        main,
        Text(
            "The interval is the wider of two: Student's t over the folds' differences and the "
            "paired bootstrap over lesions; p is the larger of their two p-values. Holm's "
            f"correction is over the {exploratory} exploratory "
            f"{'arm' if exploratory == 1 else 'arms'}; intervals are not corrected. The folds "
            "share one data set: how much another data set would change the figures is not covered."
        ),
        Text("Both intervals, and the difference of accuracy with the wider of its own two:"),
        both,
        Text(
            "Recall of each class, pooled differences with half the 95 % interval over lesions "
            "alone (the noise of training is not in it), not corrected:"
        ),
        recall,
    ]


def _claims_section(differences: Sequence[Difference], claims: Sequence[Claim]) -> Section:
    rows = []
    for claim in claims:
        for d in differences:
            estimate = _of(d, claim)
            rows.append(
                (
                    f"{claim.source}: +{claim.points:g} {_SHORT[claim.metric]}",
                    _named(d),
                    _with_span(estimate),
                    "excluded" if _excluded(estimate, claim) else "not excluded",
                )
            )
    return Section(
        "The papers' claims",
        [
            Text(
                "Each comes from a single run of each arm, without an interval; the sampling error "
                "alone of a test set of 2,000 images is about ± 3 points of balanced accuracy."
            ),
            Table(("claim", "arm", "here (95 % interval)", "an effect so large is"), rows),
        ],
    )


def _arm_sections(
    folder: pathlib.Path,
    comparison: Comparison,
    descriptions: Mapping[str, str],
    plan_counts: Mapping[str, int],
) -> list[Section]:
    arms = comparison.arms
    figures.recalls(
        folder / "recalls.png",
        [arm.name for arm in arms],
        np.array([arm.recall for arm in arms]),
        np.array([arm.recall_ci95 for arm in arms]),
    )
    table = Table(
        ("arm", "runs", "balanced acc.", "95 % interval", "runs: mean ± SD",
         *(_SHORT[m] for m in compared.METRICS[1:])),
        [
            (
                arm.name,
                _of_planned(len(arm.cells), plan_counts.get(arm.name)),
                f"{arm.balanced_accuracy:.3f}",
                report.span(arm.balanced_accuracy_ci95),
                *(_mean_sd(arm.mean(m), arm.sd(m), 3) for m in compared.METRICS),
            )
            for arm in arms
        ],
    )  # fmt: skip
    seeds = sorted({seed for arm in arms for seed in arm.by_seed})
    by_seed = Table(
        ("arm", *(f"seed {seed}" for seed in seeds)),
        [
            (arm.name, *(report.number(arm.by_seed.get(seed, float("nan"))) for seed in seeds))
            for arm in arms
        ],
    )
    recall = Table(
        ("arm", *CLASSES),
        [
            (
                arm.name,
                *map(report.estimate, arm.recall, arm.recall_ci95),
            )
            for arm in arms
        ],
    )
    most = max(arms, key=lambda arm: int(arm.images.sum()))
    support = Table(
        ("test set, all folds", *CLASSES),
        [("images", *map(str, most.images)), ("lesions", *map(str, most.lesions))],
    )
    named = [arm.name for arm in arms] + [name for name in descriptions if name in plan_counts]
    described = [
        (name, descriptions[name]) for name in dict.fromkeys(named) if name in descriptions
    ]
    blocks: list[Text | Table | Picture] = [
        Text(
            "Balanced accuracy pooled over the folds, seeds averaged, with its interval over "
            "lesions (these runs taken as given); then means and standard deviations over runs, "
            "each on its own fold. Arms with different runs are compared in the table of paired "
            "differences, not here."
        ),
        table,
    ]
    if seeds:
        blocks += [Text("Pooled balanced accuracy of each seed:"), by_seed]
    if described:
        blocks.append(Table(("arm", "what it is"), described, prose=True))
    return [
        Section("Arms", blocks),
        Section(
            "Recall of each class",
            [
                support,
                recall,
                Picture(
                    folder / "recalls.png",
                    "Recall of each class by each arm, pooled over the folds, with 95 % intervals "
                    "over lesions; in each panel the arms in the order of the legend, and a line "
                    f"at the recall of {arms[0].name}.",
                ),
            ],
        ),
    ]


def _ratio_sections(
    folder: pathlib.Path, comparison: Comparison, families: Mapping[str, str] | None
) -> list[Section]:
    picture = folder / "ratio_curve.png"
    found = [(d.ratio, d) for d in comparison.differences if d.ratio is not None and d.ratio > 0]
    found.sort(key=lambda pair: pair[0])
    ratios = [ratio for ratio, _ in found]
    if len(set(ratios)) < 2:
        picture.unlink(missing_ok=True)  # of an earlier call
        return []
    if families is None:
        alone = len(set(ratios)) == len(ratios)
        families = {d.arm: "all" if alone else d.arm for _, d in found}
    figures.ratio_curve(
        picture,
        [families.get(d.arm, d.arm) for _, d in found],
        np.array(ratios),
        100 * np.array([d.estimate.value for _, d in found]),
        100 * np.array([d.estimate.interval for _, d in found]),
        "points of balanced accuracy",
    )
    table = Table(
        ("arm", "generated per real image", "difference (95 % interval)", "p, Holm"),
        [
            (
                _named(d),
                f"{ratio:g}",
                _with_span(d.estimate),
                "(alone)" if d.confirmatory else _p(d.p),
            )
            for ratio, d in found
        ],
    )
    caption = (
        f"Balanced accuracy minus that of {comparison.control}, in points, against the number of "
        "generated images per real one, with 95 % intervals."
    )
    return [Section("Generated images per real one", [table, Picture(picture, caption)])]


def _run_sections(
    comparison: Comparison, facts: Mapping[str, Any], plan_counts: Mapping[str, int]
) -> list[Section]:
    missing = _missing(comparison, plan_counts)
    planned = sum(plan_counts.values())
    done = planned - sum(missing.values())
    rows = [(key, str(value)) for key, value in facts.items()]
    rows.append(("finished runs", f"{done} of {planned}"))
    blocks: list[Text | Table | Picture] = [Table(("setting", "value"), rows, prose=True)]
    if missing:
        named = ", ".join(f"{name} {count}" for name, count in missing.items())
        blocks.append(Text(f"Missing runs: {named}."))
    return [Section("What was run", blocks)]


def _json(
    comparison: Comparison,
    title: str,
    sentences: Sequence[str],
    facts: Mapping[str, Any],
    descriptions: Mapping[str, str],
    plan_counts: Mapping[str, int],
    claims: Sequence[Claim],
) -> dict[str, Any]:
    missing = _missing(comparison, plan_counts)
    return {
        "title": title,
        "conclusion": list(sentences),
        "control": comparison.control,
        "confirmatory": comparison.confirmatory,
        "runs_planned": sum(plan_counts.values()),
        "runs_missing": missing,
        "arms": {
            arm.name: _arm_json(arm, descriptions.get(arm.name), plan_counts.get(arm.name))
            for arm in comparison.arms
        },
        "differences": {d.arm: _difference_json(d, claims) for d in comparison.differences},
        "facts": {key: str(value) for key, value in facts.items()},
    }


def _arm_json(arm: Arm, description: str | None, planned: int | None) -> dict[str, Any]:
    return {
        "description": description,
        "ratio": arm.ratio,
        "runs_planned": planned,
        "balanced_accuracy": plain(arm.balanced_accuracy),
        "balanced_accuracy_ci95": _bounds(arm.balanced_accuracy_ci95),
        "balanced_accuracy_by_seed": {str(s): plain(v) for s, v in arm.by_seed.items()},
        "over_runs": {
            m: {"mean": plain(arm.mean(m)), "sd": plain(arm.sd(m)), "n": len(arm.cells)}
            for m in compared.METRICS
        },
        "runs": [
            {"fold": fold, "seed": seed} | {m: plain(arm.runs[m][i]) for m in compared.METRICS}
            for i, (fold, seed) in enumerate(arm.cells)
        ],
        "per_class": {
            name: {
                "recall": plain(arm.recall[c]),
                "ci95": _bounds(arm.recall_ci95[c]),
                "images": int(arm.images[c]),
                "lesions": int(arm.lesions[c]),
            }
            for c, name in enumerate(CLASSES)
        },
    }


def _difference_json(d: Difference, claims: Sequence[Claim]) -> dict[str, Any]:
    return {
        "confirmatory": d.confirmatory,
        "ratio": d.ratio,
        "balanced_accuracy": _estimate_json(d.estimate),
        "accuracy": _estimate_json(d.paired.accuracy),
        "p": plain(d.p),
        "holm_corrected": not d.confirmatory,
        "shown": d.shown,
        "pairs": {
            "n": len(d.cells),
            "mean": plain(d.mean),
            "sd": plain(d.sd),
            "values": [
                {"fold": fold, "seed": seed, "balanced_accuracy": plain(value)}
                for (fold, seed), value in zip(d.cells, d.cell_differences, strict=True)
            ],
        },
        "folds": [plain(value) for value in d.paired.fold_differences],
        "recall": {
            name: {
                "value": plain(d.paired.recall[c]),
                "ci95_lesions": _bounds(d.paired.recall_ci95[c]),
            }
            for c, name in enumerate(CLASSES)
        },
        "claims": [
            {
                "source": claim.source,
                "metric": claim.metric,
                "difference": claim.points / 100,
                "excluded": _excluded(_of(d, claim), claim),
            }
            for claim in claims
        ],
        "not_covered": list(d.not_covered),
    }


def _estimate_json(estimate: Estimate) -> dict[str, Any]:
    return {
        "value": plain(estimate.value),
        "ci95": _bounds(estimate.interval),
        "p": plain(estimate.p),
        "student": {"ci95": _bounds(estimate.student), "p": plain(estimate.student_p)},
        "bootstrap": {"ci95": _bounds(estimate.bootstrap), "p": plain(estimate.bootstrap_p)},
    }


def _bounds(interval: Interval) -> list[float | None]:
    return [plain(bound) for bound in interval]


def _named(difference: Difference) -> str:
    return difference.arm + (" (pre-registered)" if difference.confirmatory else "")


def _of_planned(count: int, planned: int | None) -> str:
    return str(count) if planned is None else f"{count} of {planned}"


def _signed(value: float) -> str:
    """A difference in points, such as "+0.8"; never "-0.0"."""
    return report.UNDEFINED if np.isnan(value) else f"{round(100 * value, 1) + 0.0:+.1f}"


def _span(interval: Interval) -> str:
    if np.isnan(interval[0]):
        return report.UNDEFINED
    return f"{_signed(interval[0])} to {_signed(interval[1])}"


def _with_span(estimate: Estimate) -> str:
    return f"{_signed(estimate.value)} ({_span(estimate.interval)})"


def _mean_sd(mean: float, sd: float, digits: int, signed: bool = False) -> str:
    if np.isnan(mean):
        return report.UNDEFINED
    text = f"{round(mean, digits) + 0.0:{'+' if signed else ''}.{digits}f}"
    return text if np.isnan(sd) else f"{text} ± {sd:.{digits}f}"


def _relation(p: float) -> str:
    text = _p(p)
    return f"{text[0]} {text[1:]}" if text[0] == "<" else f"= {text}"


def _p(value: float) -> str:
    if np.isnan(value):
        return report.UNDEFINED
    return "<0.001" if value < 0.001 else f"{value:.3f}"
