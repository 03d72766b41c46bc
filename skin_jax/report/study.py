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

from skin_jax.base.files import write_atomically
from skin_jax.data.classes import CLASSES, NUM_CLASSES
from skin_jax.eval import comparison as compared
from skin_jax.eval.comparison import Arm, Comparison, Difference, Estimate
from skin_jax.eval.metrics import Interval, plain
from skin_jax.report import figures, kit
from skin_jax.report import run as run_report
from skin_jax.report.kit import Picture, Section, Table, Text

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


_CHANCE = 1 / NUM_CLASSES
_TABLE_TWO = run_report.PAPER_A["balanced_accuracy"]
CLAIMS = {
    "A": Claim(
        "paper A",
        "balanced_accuracy",
        round(100 * (_TABLE_TWO["semi-supervised GAN"] - _TABLE_TWO["DenseNet"]), 1),
    ),
    "B": Claim("paper B", "accuracy", 4.0),
}
"""A: Rashid et al. 2019, Table II, semi-supervised GAN against DenseNet. B: DCGAN augmentation of
HAM10000, without an absolute figure. One run of each arm in both."""


@dataclasses.dataclass(frozen=True)
class Study:
    """What a report is about.

    Attributes:
      comparison: of the runs that are finished.
      plan_counts: arm -> number of runs planned, of every arm of the plan, with runs or without.
      claims: of papers, to stand beside the results.
      gan_arms: arms that a GAN has a part in, which the claims are about.
    """

    comparison: Comparison
    plan_counts: Mapping[str, int]
    claims: Sequence[Claim] = ()
    gan_arms: Collection[str] = ()

    @property
    def concerned(self) -> list[Difference]:
        """Differences from the control that the papers' claims are about."""
        return [d for d in self.comparison.differences if d.arm in self.gan_arms]

    @property
    def judged(self) -> Sequence[Claim]:
        """The claims, once all runs are there, of two folds or more: one says little of others."""
        folds = {fold for arm in self.comparison.arms for fold, _ in arm.cells}
        return () if self.missing or len(folds) < 2 else self.claims

    @property
    def all_differences(self) -> list[Difference]:
        """Those from the control and, last, what the generated images themselves do."""
        isolated = self.comparison.isolated
        return [*self.comparison.differences, *([isolated] if isolated else [])]

    @property
    def missing(self) -> dict[str, int]:
        """Arm -> number of planned runs that are not there, where that is any."""
        done = {arm.name: len(arm.cells) for arm in self.comparison.arms}
        counts = {name: count - done.get(name, 0) for name, count in self.plan_counts.items()}
        return {name: count for name, count in counts.items() if count > 0}


def write(
    folder: PathLike,
    study: Study,
    *,
    title: str,
    facts: Mapping[str, Any],
    arm_descriptions: Mapping[str, str],
    samples: Sequence[tuple[str, PathLike]] = (),
) -> pathlib.Path:
    """Writes study.json, study.md, report.html (one self-contained file) and `figures/`.

    Args:
      folder: where to; made if need be.
      study: the results.
      title: the pages' heading.
      facts: what was run, such as settings.
      arm_descriptions: arm -> what it is.
      samples: caption and PNG file of generated images.

    Returns:
      The path of report.html.

    Raises:
      UserError: the folder cannot be written.
    """
    folder = pathlib.Path(folder)
    sentences = conclusion(study)
    content = _json(study, title, sentences, facts, arm_descriptions)
    write_atomically(folder / JSON_FILE, json.dumps(content, indent=2, allow_nan=False) + "\n")
    pictures = folder / "figures"
    sections = [
        Section("Conclusion", [Text(sentence) for sentence in sentences]),
        *_difference_sections(pictures, study),
        *_arm_sections(pictures, study, arm_descriptions),
        *_ratio_sections(pictures, study.comparison),
    ]
    if samples:
        shown = [Picture(path, caption) for caption, path in samples]
        sections.append(Section("Generated images", shown))
    sections += _run_sections(study, facts)
    write_atomically(folder / MARKDOWN_FILE, kit.markdown(title, sections, folder))
    path = folder / HTML_FILE
    write_atomically(path, kit.html(title, sections))
    return path


def summary(study: Study) -> list[Section]:
    """What a terminal shows: each arm, its difference from the control, and the conclusion."""
    differences = {d.arm: d for d in study.comparison.differences}
    rows = []
    for arm in study.comparison.arms:
        done = _of_planned(len(arm.cells), study.plan_counts.get(arm.name))
        row = [arm.name, done, f"{100 * arm.balanced_accuracy:.1f}"]
        if d := differences.get(arm.name):
            p = _p(d.p) + " (alone)" * d.confirmatory
            row += [_signed(d.estimate.value), _span(d.estimate.interval), p]
        rows.append(row + [""] * (6 - len(row)))
    control = study.comparison.control
    header = ("arm", "runs", "balanced accuracy", f"minus {control}", "95 % interval", "p")
    return [
        Section("Arms", [Table(header, rows)]),
        Section("Conclusion", [Text(sentence) for sentence in conclusion(study)]),
    ]


def conclusion(study: Study) -> list[str]:
    """What the intervals allow to say, one paragraph each, the most important first."""
    comparison, missing = study.comparison, study.missing
    control, chosen = comparison.control, comparison.confirmatory
    paragraphs = []
    confirmed = [d for d in comparison.differences if d.confirmatory]
    exploratory = [d for d in comparison.differences if not d.confirmatory]
    if confirmed:
        paragraphs.append(_verdict(confirmed[0], study))
    elif chosen is not None:
        paragraphs.append(
            f"The arm to be confirmed, {chosen}, and the control {control} have no finished run of "
            "the same fold and seed: there is no result yet."
        )
    if confirmed and comparison.isolating is not None:
        paragraphs.append(_because(confirmed[0], comparison.isolated, comparison.isolating))
    if exploratory:
        # What a paper claims is asked of the arm to be confirmed where there is one.
        paragraphs.append(
            _explored(exploratory, dataclasses.replace(study, claims=()) if confirmed else study)
        )
    if not comparison.differences and chosen is None:
        paragraphs.append(
            f"No arm has a finished run of the same fold and seed as the control {control}: there "
            "is nothing to compare yet."
        )
    if chosen is None and comparison.differences:
        paragraphs.append(
            "No arm was named to be confirmed: all comparisons are exploratory, and a difference "
            "shown here has yet to be confirmed on other data."
        )
    if missing:
        if comparison.differences:
            paragraphs[0] = f"Preliminary. {paragraphs[0]}"
        paragraphs.append(
            f"{sum(missing.values())} of {sum(study.plan_counts.values())} planned runs are "
            "missing: figures can still change, and looking before the end makes false alarms more "
            "frequent."
        )
    at_chance = [a.name for a in comparison.arms if not a.balanced_accuracy_ci95[0] > _CHANCE]
    if at_chance:
        paragraphs.append(
            f"Not shown to be better than chance ({_CHANCE:.3f}): {', '.join(at_chance)}. Arms "
            "that learned nothing are no measure of one another."
        )
    notes: dict[str, list[str]] = {}
    for difference in comparison.differences:
        for note in difference.not_covered:
            notes.setdefault(note, []).append(difference.arm)
    everyone = len(comparison.differences)
    for note, arms in notes.items():
        paragraphs.append(note if len(arms) == everyone else f"{', '.join(arms)}: {note}")
    return paragraphs


def _because(whole: Difference, isolated: Difference | None, isolating: str) -> str:
    """What of a difference from the control is due to the generated images."""
    if isolated is None:
        return (
            f"{whole.arm} and {isolating} have no finished run of the same fold and seed: what is "
            "due to the generated images themselves is not known yet."
        )
    found = isolated.estimate
    first = (
        f"{isolating} is like {whole.arm}, but with real images in the place of generated ones. "
        f"{whole.arm} minus {isolating}: {_signed(found.value)} points of balanced accuracy (95 % "
        f"interval {_span(found.interval)}; p {_relation(isolated.p)})"
    )
    if not whole.shown:
        rest = (
            f"; tested in the second place, so not at all as long as {whole.arm} is not shown to "
            f"differ from {whole.control}."
        )
    elif not isolated.shown:
        rest = ": that generated images themselves do anything is not shown."
    else:
        better = "better" if found.value > 0 else "worse"
        rest = f": the generated images are {better} than repeated real ones."
    return first + rest


def _verdict(difference: Difference, study: Study) -> str:
    """One arm against the control, and the papers' claims about such arms, in sentences."""
    estimate = difference.estimate
    kind = "" if difference.confirmatory else ", Holm-corrected"
    first = (
        f"{_named(difference)}: {_signed(estimate.value)} points of balanced accuracy "
        f"(95 % interval {_span(estimate.interval)}; p {_relation(difference.p)}{kind}): "
        f"{_outcome(difference)}."
    )
    if difference.arm not in study.gan_arms:
        return first
    return " ".join([first, *(_judged(difference, claim) for claim in study.judged)])


def _judged(difference: Difference, claim: Claim) -> str:
    estimate = _of(difference, claim)
    excluded = "excluded" if _excluded(estimate, claim) else "not excluded"
    found = (
        ""
        if claim.metric == "balanced_accuracy"
        else f" ({_SHORT[claim.metric]}: {_signed(estimate.value)}, {_span(estimate.interval)})"
    )
    return f"An effect as large as {claim} (single runs) is {excluded} here{found}."


def _outcome(difference: Difference) -> str:
    if not difference.shown:
        return "no difference shown"
    direction = "higher" if difference.estimate.value > 0 else "lower"
    if len(difference.paired.fold_differences) == 1:
        return f"{direction} for these very runs, which says little of training again"
    return f"balanced accuracy is {direction}"


def _explored(differences: Sequence[Difference], study: Study) -> str:
    """The exploratory arms in a few sentences."""
    largest = max(differences, key=lambda d: d.estimate.value)
    if len(differences) == 1:
        return "Exploratory: " + _verdict(largest, study)
    shown = [d for d in differences if d.shown]
    control = study.comparison.control
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
    for claim in study.judged if study.concerned else ():
        possible = [d.arm for d in study.concerned if not _excluded(_of(d, claim), claim)]
        judged.append(
            f"An effect as large as {claim} (single runs) is "
            + (
                f"not excluded here for {', '.join(possible)}."
                if possible
                else "excluded here for every arm with a GAN."
            )
        )
    return " ".join([first, best, *judged])


def _of(difference: Difference, claim: Claim) -> Estimate:
    return getattr(difference.paired, claim.metric)


def _excluded(estimate: Estimate, claim: Claim) -> bool:
    return bool(100 * estimate.interval[1] < claim.points)


def _difference_sections(folder: pathlib.Path, study: Study) -> list[Section]:
    picture = folder / "differences.png"
    comparison, found = study.comparison, study.all_differences
    if not found:
        picture.unlink(missing_ok=True)  # of an earlier call
        return []
    figures.forest(
        picture,
        [_named(d) for d in found],
        100 * np.array([d.estimate.value for d in found]),
        100 * np.array([d.estimate.interval for d in found]),
        notes=[_with_span(d.estimate) for d in found],
        emphasised=[d.confirmatory for d in found],
        marks={
            f"{c.source}, +{c.points:g} (a single run)": c.points
            for c in study.claims
            if c.metric == "balanced_accuracy"
        },
        label="points of balanced accuracy",
    )
    emphasis = (
        f" Filled diamonds: {comparison.confirmatory}, the arm to be confirmed."
        if any(d.confirmatory for d in found)
        else ""
    )
    caption = (
        "Differences of balanced accuracy, in points, with 95 % intervals (not corrected for the "
        f"number of arms).{emphasis}"
    )
    sections = [
        Section("Differences", [Picture(picture, caption)]),
        Section("Paired differences", _paired_blocks(study)),
    ]
    if study.judged and study.concerned:
        sections.append(_claims_section(study))
    return sections


def _paired_blocks(study: Study) -> list[Text | Table | Picture]:
    found = study.all_differences
    exploratory = sum(not d.confirmatory for d in study.comparison.differences)
    main = Table(
        ("arms", "pairs", "difference", "95 % interval", "p", "p, Holm", "pairs: mean ± SD"),
        [
            (
                _marked(d),
                _of_planned(len(d.cells), study.plan_counts.get(d.arm)),
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
        ("arms", "t over folds", "lesions", "accuracy", "95 % interval"),
        [
            (
                _marked(d),
                _span(d.estimate.student),
                _span(d.estimate.bootstrap),
                _signed(d.paired.accuracy.value),
                _span(d.paired.accuracy.interval),
            )
            for d in found
        ],
    )
    recall = Table(
        ("arms", *CLASSES),
        [
            (
                _marked(d),
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
            "Two arms on the same folds and seeds, in points: balanced accuracy from recalls "
            "pooled over the folds, seeds averaged. Pairs: folds and seeds that both have, of "
            "those planned for the arm."
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


def _claims_section(study: Study) -> Section:
    rows = []
    for claim in study.judged:
        for d in study.concerned:
            estimate = _of(d, claim)
            rows.append(
                (
                    f"{claim.source}: +{claim.points:g} {_SHORT[claim.metric]}",
                    _marked(d),
                    _with_span(estimate),
                    "excluded" if _excluded(estimate, claim) else "not excluded",
                )
            )
    return Section(
        "The papers' claims",
        [
            Text(
                "Each comes from a single run of each arm, without an interval; the sampling error "
                "alone of a test set of 2,000 images is about ± 3 points of balanced accuracy. "
                "Excluded is what lies above the 95 % interval with the images, networks and "
                "numbers of steps of this study; others may have another effect."
            ),
            Table(("claim", "arms", "here (95 % interval)", "an effect so large is"), rows),
        ],
    )


def _arm_sections(
    folder: pathlib.Path, study: Study, descriptions: Mapping[str, str]
) -> list[Section]:
    arms = study.comparison.arms
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
                _of_planned(len(arm.cells), study.plan_counts.get(arm.name)),
                f"{arm.balanced_accuracy:.3f}",
                kit.span(arm.balanced_accuracy_ci95),
                *(_mean_sd(arm.mean(m), arm.sd(m), 3) for m in compared.METRICS),
            )
            for arm in arms
        ],
    )  # fmt: skip
    seeds = sorted({seed for arm in arms for seed in arm.by_seed})
    by_seed = Table(
        ("arm", *(f"seed {seed}" for seed in seeds)),
        [
            (arm.name, *(kit.number(arm.by_seed.get(seed, float("nan"))) for seed in seeds))
            for arm in arms
        ],
    )
    recall = Table(
        ("arm", *CLASSES),
        [
            (
                arm.name,
                *map(kit.estimate, arm.recall, arm.recall_ci95),
            )
            for arm in arms
        ],
    )
    most = max(arms, key=lambda arm: int(arm.images.sum()))
    support = Table(
        ("test set, all folds", *CLASSES),
        [("images", *map(str, most.images)), ("lesions", *map(str, most.lesions))],
    )
    named = [arm.name for arm in arms] + list(study.plan_counts)
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


def _ratio_sections(folder: pathlib.Path, comparison: Comparison) -> list[Section]:
    picture = folder / "ratio_curve.png"
    found = [(d.ratio, d) for d in comparison.differences if d.ratio is not None and d.ratio > 0]
    found.sort(key=lambda pair: pair[0])
    ratios = [ratio for ratio, _ in found]
    if len(set(ratios)) < 2:
        picture.unlink(missing_ok=True)  # of an earlier call
        return []
    alone = len(set(ratios)) == len(ratios)
    figures.ratio_curve(
        picture,
        ["all" if alone else d.arm for _, d in found],
        np.array(ratios),
        100 * np.array([d.estimate.value for _, d in found]),
        100 * np.array([d.estimate.interval for _, d in found]),
        "points of balanced accuracy",
    )
    table = Table(
        ("arms", "generated per real image", "difference (95 % interval)", "p, Holm"),
        [
            (
                _marked(d),
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


def _run_sections(study: Study, facts: Mapping[str, Any]) -> list[Section]:
    missing = study.missing
    planned = sum(study.plan_counts.values())
    done = planned - sum(missing.values())
    rows = [(key, str(value)) for key, value in facts.items()]
    rows.append(("finished runs", f"{done} of {planned}"))
    blocks: list[Text | Table | Picture] = [Table(("setting", "value"), rows, prose=True)]
    if missing:
        named = ", ".join(f"{name} {count}" for name, count in missing.items())
        blocks.append(Text(f"Missing runs: {named}."))
    return [Section("What was run", blocks)]


def _json(
    study: Study,
    title: str,
    sentences: Sequence[str],
    facts: Mapping[str, Any],
    descriptions: Mapping[str, str],
) -> dict[str, Any]:
    comparison, claims = study.comparison, study.judged
    isolated = comparison.isolated
    return {
        "title": title,
        "conclusion": list(sentences),
        "control": comparison.control,
        "confirmatory": comparison.confirmatory,
        "isolating": comparison.isolating,
        "runs_planned": sum(study.plan_counts.values()),
        "runs_missing": study.missing,
        "arms": {
            arm.name: _arm_json(arm, descriptions.get(arm.name), study.plan_counts.get(arm.name))
            for arm in comparison.arms
        },
        "differences": {d.arm: _difference_json(d, claims) for d in comparison.differences},
        "isolated": _difference_json(isolated, ()) if isolated else None,
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
        "minus": d.control,
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
    return f"{difference.arm} minus {difference.control}"


def _marked(difference: Difference) -> str:
    return _named(difference) + " (to be confirmed)" * difference.confirmatory


def _of_planned(count: int, planned: int | None) -> str:
    return str(count) if planned is None else f"{count} of {planned}"


def _signed(value: float) -> str:
    """A difference in points, such as "+0.8"; never "-0.0"."""
    return kit.UNDEFINED if np.isnan(value) else f"{round(100 * value, 1) + 0.0:+.1f}"


def _span(interval: Interval) -> str:
    if np.isnan(interval[0]):
        return kit.UNDEFINED
    return f"{_signed(interval[0])} to {_signed(interval[1])}"


def _with_span(estimate: Estimate) -> str:
    return f"{_signed(estimate.value)} ({_span(estimate.interval)})"


def _mean_sd(mean: float, sd: float, digits: int, signed: bool = False) -> str:
    if np.isnan(mean):
        return kit.UNDEFINED
    text = f"{round(mean, digits) + 0.0:{'+' if signed else ''}.{digits}f}"
    return text if np.isnan(sd) else f"{text} ± {sd:.{digits}f}"


def _relation(p: float) -> str:
    text = _p(p)
    return f"{text[0]} {text[1:]}" if text[0] == "<" else f"= {text}"


def _p(value: float) -> str:
    if np.isnan(value):
        return kit.UNDEFINED
    return "<0.001" if value < 0.001 else f"{value:.3f}"
