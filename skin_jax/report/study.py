"""The results of a study for people and programs: study.json, study.md, report.html, figures.

Differences are in percentage points in text and figures, as fractions in study.json.
"""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from skin_jax.base.files import write_atomically, write_json
from skin_jax.data.classes import Classes
from skin_jax.eval import comparison as compared
from skin_jax.eval.comparison import Arm, Comparison, Difference, Estimate
from skin_jax.eval.metrics import Spread
from skin_jax.report import figures, kit
from skin_jax.report import run as run_report
from skin_jax.report.kit import POINTS, Block, Picture, Section, Table, Text, in_points, with_span

_SHORT = {
    "balanced_accuracy": "balanced accuracy",
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "macro_auc": "macro AUC",
}
_PAIRED = ("arms", "pairs", "difference", "95% interval", "p", "p, Holm", "pairs: mean ± SD")
_HOLM = ", Holm-corrected"
_INTERVAL = {
    "fold": "The interval is the wider of two: Student's t over the folds' differences and the "
    "paired bootstrap over lesions; p is the larger of their two p-values.",
    "subset": "The interval is Student's t of two squared standard errors added, that of the "
    "subsets' differences and that of the paired bootstrap over lesions, which all subsets share.",
}
_EFFECT = "An effect as large as {} (single runs) is {}."


@dataclasses.dataclass(frozen=True)
class Claim:
    """A gain that a paper reports for generated images, in percentage points."""

    source: str
    metric: Literal["balanced_accuracy", "accuracy"]
    points: float

    def __str__(self) -> str:
        return f"{self.source}'s +{self.points:g} points of {_SHORT[self.metric]}"

    def estimate(self, difference: Difference) -> Estimate:
        """The quantity that the claim is about, as measured here."""
        return getattr(difference.paired, self.metric)

    def excluded(self, difference: Difference) -> bool:
        """Whether the interval here lies below the claim."""
        return bool(100 * self.estimate(difference).interval[1] < self.points)

    def verdict(self, difference: Difference) -> str:
        """The same in words."""
        return "excluded" if self.excluded(difference) else "not excluded"


_TABLE_TWO = run_report.PAPER_A["balanced_accuracy"]
_GAIN = round(100 * (_TABLE_TWO["semi-supervised GAN"] - _TABLE_TWO["DenseNet"]), 1)
CLAIMS = {
    "A": Claim("paper A", "balanced_accuracy", _GAIN),
    "B": Claim("paper B", "accuracy", 4.0),
}
"""A: Rashid et al. 2019, Table II, semi-supervised GAN against DenseNet. B: DCGAN augmentation of
HAM10000, without an absolute figure. One run of each arm in both, of the classes of HAM10000."""


@dataclasses.dataclass(frozen=True)
class Level:
    """The arms compared at one level of a study, such as a share of the labels."""

    comparison: Comparison | None  # None where no run is finished
    plan_counts: Mapping[str, int]  # arm -> number of runs planned
    title: str
    value: float  # its place on the axis


@dataclasses.dataclass(frozen=True)
class Study:
    """The subject of a report: the runs that are finished, and the plan."""

    comparison: Comparison
    classes: Classes
    title: str
    plan_counts: Mapping[str, int]  # arm -> number of runs planned, of every arm of the plan
    facts: Mapping[str, Any]  # what was run, such as settings
    descriptions: Mapping[str, str]  # arm -> what it is
    ratios: Mapping[str, float | None]  # arm -> generated images per real one, if given by that
    claims: Sequence[Claim] = ()  # of papers about these classes
    gan_arms: Collection[str] = ()  # arms that a GAN has a part in, which the claims are about
    samples: Sequence[tuple[str, Path]] = ()  # caption and PNG file of generated images
    levels: Sequence[Level] = ()  # where there are any; `comparison` is that of one of them
    axis: str = ""  # what their values are
    select: Literal["val", "test"] = "test"  # the images of the folds that runs are compared on
    part: Literal["fold", "subset"] = "fold"

    @property
    def all_levels(self) -> Sequence[Level]:
        """The levels; a study without any is one."""
        return self.levels or (Level(self.comparison, self.plan_counts, "", 0.0),)

    @property
    def planned(self) -> int:
        """Number of runs, at all levels."""
        return sum(sum(level.plan_counts.values()) for level in self.all_levels)

    @property
    def compared_levels(self) -> list[tuple[Level, Comparison]]:
        """Those with finished runs, along the axis, and their arms."""
        return [
            (one, one.comparison)
            for one in sorted(self.levels, key=lambda level: level.value)
            if one.comparison is not None
        ]

    @property
    def place(self) -> str:
        """Such as "At 10 % of the labels: " for the level looked at first; "" without levels."""
        titles = [one.title for one in self.levels if one.comparison is self.comparison]
        return f"At {titles[0]}: " if titles else ""

    @property
    def explored(self) -> int:
        """The number of exploratory differences, which are corrected together."""
        compared = (level.comparison for level in self.all_levels)
        return sum(len(own.exploratory) for own in compared if own is not None)

    @property
    def concerned(self) -> list[Difference]:
        """Differences from the control that the papers' claims are about."""
        return [d for d in self.comparison.differences if d.arm in self.gan_arms]

    @property
    def judged(self) -> Sequence[Claim]:
        """The claims, once all runs are there, of two folds or more: one says little of others."""
        folds = {fold for arm in self.comparison.arms for fold, _ in arm.cells}
        preliminary = self.missing or self.select == "val" or len(folds) < 2
        return () if preliminary else self.claims

    @property
    def all_differences(self) -> list[Difference]:
        """Those from the control and, last, what the generated images themselves do."""
        return [d for d in (*self.comparison.differences, self.comparison.isolated) if d]

    @property
    def missing(self) -> dict[str, int]:
        """Arm -> number of planned runs that are not there, where that is any."""
        missing: dict[str, int] = {}
        for level in self.all_levels:
            arms = level.comparison.arms if level.comparison else ()
            done = {arm.name: len(arm.cells) for arm in arms}
            where = f" at {level.title}" if level.title else ""
            missing |= {
                f"{name}{where}": count - done.get(name, 0)
                for name, count in level.plan_counts.items()
                if count > done.get(name, 0)
            }
        return missing

    @property
    def chance(self) -> float:
        """Balanced accuracy of a classifier that knows nothing: 1 / number of classes present."""
        return 1 / max(int((arm.images > 0).sum()) for arm in self.comparison.arms)

    def done(self, one: Arm | Difference) -> str:
        """Such as "3 of 10": runs of an arm, and how many are planned."""
        name = one.name if isinstance(one, Arm) else one.arm
        planned = f" of {self.plan_counts[name]}" if name in self.plan_counts else ""
        return f"{len(one.cells)}{planned}"


def write(folder: Path, study: Study) -> Path:
    """Writes study.json, study.md, `figures/` and report.html, whose path it returns.

    Raises:
      UserError: the folder cannot be written.
    """
    sentences, pictures = conclusion(study), folder / "figures"
    write_json(folder / "study.json", _json(study, sentences))
    sections = [
        Section("Conclusion", list(map(Text, sentences))),
        *_difference_sections(pictures, study),
        *_arm_sections(pictures, study),
        *_level_sections(pictures, study),
        *_ratio_sections(pictures, study),
    ]
    if study.samples:
        shown = [Picture(path, caption) for caption, path in study.samples]
        sections.append(Section("Generated images", shown))
    missing = study.missing
    finished = f"{study.planned - sum(missing.values())} of {study.planned}"
    blocks: list[Block] = [kit.facts({**study.facts, "finished runs": finished})]
    if named := ", ".join(f"{name} {count}" for name, count in missing.items()):
        blocks.append(Text(f"Missing runs: {named}."))
    sections.append(Section("What was run", blocks))
    write_atomically(folder / "study.md", kit.markdown(study.title, sections, folder))
    write_atomically(folder / "report.html", kit.html(study.title, sections))
    return folder / "report.html"


def summary(study: Study) -> list[Section]:
    """The summary for a terminal: each arm, its difference from the control, and the conclusion."""
    differences = {d.arm: d for d in study.comparison.differences}
    rows = []
    for arm in study.comparison.arms:
        row = [arm.name, study.done(arm), f"{100 * arm.balanced_accuracy:.1f}"]
        if d := differences.get(arm.name):
            p = _p(d.p) + " (alone)" * d.confirmatory
            row += [*in_points(d.estimate), p]
        rows.append(row + [""] * (6 - len(row)))
    control = study.comparison.control
    header = ("arm", "runs", "balanced accuracy", f"minus {control}", "95% interval", "p")
    return [
        Section("Arms", [Table(header, rows)]),
        Section("Conclusion", list(map(Text, conclusion(study)))),
    ]


def conclusion(study: Study) -> list[str]:
    """Conclusions that the intervals allow, one paragraph each, the most important first."""
    comparison, missing, paragraphs = study.comparison, study.missing, []
    control, chosen = comparison.control, comparison.confirmatory
    differences, exploratory = comparison.differences, comparison.exploratory
    confirmed = next((d for d in differences if d.confirmatory), None)
    if confirmed:
        paragraphs.append(study.place + _verdict(confirmed, study, study.judged))
        if comparison.isolating is not None:
            paragraphs.append(_because(confirmed, study))
    elif chosen is not None:
        paragraphs.append(
            f"The arm to be confirmed, {chosen}, and the control {control} have no finished run of "
            f"the same {study.part} and seed: there is no result yet."
        )
    if study.select == "val":
        paragraphs.insert(
            0,
            "These are scores on validation images, to choose settings by: what is chosen has yet "
            "to be measured on test images, with other seeds of the split.",
        )
    if exploratory:
        # What a paper claims is asked of the arm to be confirmed where there is one.
        text = _explored(study, () if confirmed else study.judged)
        paragraphs.append(f"{study.place}{text[0].lower()}{text[1:]}" if study.place else text)
    paragraphs += [
        f"At {level.title}, exploratory: "
        + "; ".join(f"{d}: {_found(d, _HOLM)}: {_outcome(d)}" for d in own.differences)
        + "."
        for level, own in study.compared_levels
        if own is not comparison and own.differences
    ]
    if not differences and chosen is None:
        paragraphs.append(
            f"No arm has a finished run of the same {study.part} and seed as the control "
            f"{control}: there is nothing to compare yet."
        )
    if chosen is None and differences:
        paragraphs.append(
            "No arm was named to be confirmed: all comparisons are exploratory, and a difference "
            "shown here has yet to be confirmed on other data."
        )
    if missing:
        if differences:
            paragraphs[0] = f"Preliminary. {paragraphs[0]}"
        paragraphs.append(
            f"{sum(missing.values())} of {study.planned} planned runs are "
            "missing: figures can still change, and looking before the end makes false alarms more "
            "frequent."
        )
    low = [a.name for a in comparison.arms if not a.balanced_accuracy_ci95[0] > study.chance]
    if low:
        paragraphs.append(
            f"Not shown to be better than chance ({study.chance:.3f}): {', '.join(low)}. Arms "
            "that learned nothing are no measure of one another."
        )
    for note in dict.fromkeys(note for d in differences for note in d.not_covered):
        arms = [d.arm for d in differences if note in d.not_covered]
        paragraphs.append(note if len(arms) == len(differences) else f"{', '.join(arms)}: {note}")
    return paragraphs


def _found(difference: Difference, kind: str = "") -> str:
    """Such as "+0.8 points of balanced accuracy (95% interval -0.1 to +1.7; p = 0.062)"."""
    (value, interval), p = in_points(difference.estimate), _p(difference.p)
    p = p.replace("<", "< ") if "<" in p else f"= {p}"
    return f"{value} points of balanced accuracy (95% interval {interval}; p {p}{kind})"


def _because(whole: Difference, study: Study) -> str:
    """Says what part of a difference from the control is due to the generated images."""
    isolated, isolating = study.comparison.isolated, study.comparison.isolating
    if isolated is None:
        return (
            f"{whole.arm} and {isolating} have no finished run of the same {study.part} and seed: "
            "what is "
            "due to the generated images themselves is not known yet."
        )
    if not whole.shown:
        rest = (
            f"; tested in the second place, so not at all as long as {whole.arm} is not shown to "
            f"differ from {whole.control}."
        )
    elif not isolated.shown:
        rest = ": that generated images themselves do anything is not shown."
    else:
        effect = "help" if isolated.estimate.value > 0 else "do harm"
        rest = f": the generated images themselves {effect}."
    return (
        f"Of the arms without generated images, {isolating} is the most like {whole.arm}. "
        f"{isolated}: {_found(isolated)}{rest}"
    )


def _verdict(difference: Difference, study: Study, claims: Sequence[Claim]) -> str:
    """One arm against the control, and the papers' claims about such arms, in sentences."""
    kind = "" if difference.confirmatory else _HOLM
    sentences = [f"{difference}: {_found(difference, kind)}: {_outcome(difference)}."]
    for claim in claims if difference.arm in study.gan_arms else ():
        here = f"{claim.verdict(difference)} here"
        if claim.metric != "balanced_accuracy":
            found = ", ".join(in_points(claim.estimate(difference)))
            here += f" ({_SHORT[claim.metric]}: {found})"
        sentences.append(_EFFECT.format(claim, here))
    return " ".join(sentences)


def _outcome(difference: Difference) -> str:
    if not difference.shown:
        return "no difference shown"
    direction = "higher" if difference.estimate.value > 0 else "lower"
    if len(difference.paired.fold_differences) == 1:
        return f"{direction} for these very runs, which says little of training again"
    return f"balanced accuracy is {direction}"


def _explored(study: Study, claims: Sequence[Claim]) -> str:
    """The exploratory arms in a few sentences."""
    differences, control = study.comparison.exploratory, study.comparison.control
    largest = max(differences, key=lambda d: d.estimate.value)
    if len(differences) == 1:
        return f"Exploratory: {_verdict(largest, study, claims)}"
    shown = [d for d in differences if d.shown]
    if not shown:
        first = (
            f"No difference from {control} is shown for any of {len(differences)} exploratory "
            "arms (Holm-corrected)."
        )
    else:
        named = "; ".join(f"{d.arm} {in_points(d.estimate)[0]} ({_outcome(d)})" for d in shown)
        first = f"Exploratory arms against {control} (Holm-corrected): {named}"
        if rest := len(differences) - len(shown):
            first += f"; no difference shown for {rest} other{'s' * (rest > 1)}"
        first += "."
    value, interval = in_points(largest.estimate)
    best = (
        f"The largest is {largest.arm}: {value} points of balanced accuracy (95% interval, "
        f"uncorrected, {interval})."
    )
    sentences = [first, best]
    for claim in claims if study.concerned else ():
        possible = ", ".join(d.arm for d in study.concerned if not claim.excluded(d))
        every = "excluded here for every arm with a GAN"
        here = f"not excluded here for {possible}" if possible else every
        sentences.append(_EFFECT.format(claim, here))
    return " ".join(sentences)


def _difference_sections(folder: Path, study: Study) -> list[Section]:
    picture, found = folder / "differences.png", study.all_differences
    if not found:
        picture.unlink(missing_ok=True)  # of an earlier call
        return []
    marked = [claim for claim in study.claims if claim.metric == "balanced_accuracy"]
    marks = {f"{c.source}, +{c.points:g} (a single run)": c.points for c in marked}
    figures.forest(picture, found, marks)
    caption = (
        "Differences of balanced accuracy, in points, with 95% intervals (not corrected for the "
        "number of arms)."
    )
    if any(d.confirmatory for d in found):
        caption += f" Filled diamonds: {study.comparison.confirmatory}, the arm to be confirmed."
    return [
        Section("Differences", [Picture(picture, caption)]),
        Section("Paired differences", _paired_blocks(study)),
        *([_claims_section(study)] if study.judged and study.concerned else []),
    ]


def _paired_blocks(study: Study) -> list[Block]:
    exploratory, parts = study.explored, f"{study.part}s"
    differences, intervals, recalls = [], [], []
    for d in study.all_differences:
        name, p, over_cells = _marked(d), _p(d.estimate.p), kit.spread(d.over_cells, **POINTS)
        differences.append((name, study.done(d), *in_points(d.estimate), p, _holm(d), over_cells))
        both = (kit.span(each, **POINTS) for each in (d.estimate.student, d.estimate.bootstrap))
        intervals.append((name, *both, *in_points(d.paired.accuracy)))
        halves = np.ptp(d.paired.recall_ci95, axis=1) / 2
        each_class = map(Spread, d.paired.recall, halves)
        recalls.append((name, *(kit.spread(each, **POINTS) for each in each_class)))
    return [
        Text(
            f"Two arms on the same {parts} and seeds, in points: balanced accuracy from recalls "
            f"pooled over the {parts}, seeds averaged. Pairs: {parts} and seeds that both have, of "
            "those planned for the arm."
        ),
        Table(_PAIRED, differences),
        Text(
            f"{_INTERVAL[study.part]} Holm's "
            f"correction is over the {exploratory} exploratory "
            f"{'difference' if exploratory == 1 else 'differences'}; intervals are not corrected. "
            f"The {parts} share one data set: how much another data set would change the figures "
            "is not covered."
        ),
        Text("Each error's own interval, and the difference of accuracy with its interval:"),
        Table(("arms", f"t over {parts}", "lesions", "accuracy", "95% interval"), intervals),
        Text(
            "Recall of each class, pooled differences with half the 95% interval over lesions "
            "alone (the noise of training is not in it), not corrected:"
        ),
        Table(("arms", *study.classes.names), recalls),
    ]


def _claims_section(study: Study) -> Section:
    rows = []
    for claim in study.judged:
        what = f"{claim.source}: +{claim.points:g} {_SHORT[claim.metric]}"
        for d in study.concerned:
            rows.append((what, _marked(d), with_span(claim.estimate(d)), claim.verdict(d)))
    note = (
        "Each comes from a single run of each arm, without an interval; the sampling error "
        "alone of a test set of 2,000 images is about ± 3 points of balanced accuracy. "
        "Excluded is what lies above the 95% interval with the images, networks and "
        "numbers of steps of this study; others may have another effect."
    )
    header = ("claim", "arms", "here (95% interval)", "an effect so large is")
    return Section("The papers' claims", [Text(note), Table(header, rows)])


def _arm_sections(folder: Path, study: Study) -> list[Section]:
    arms, classes, picture = study.comparison.arms, study.classes.names, folder / "recalls.png"
    parts = f"{study.part}s"
    names = [arm.name for arm in arms]
    figures.recalls(picture, arms, study.classes)
    others = [_SHORT[metric] for metric in compared.METRICS[1:]]
    pooled = []
    for arm in arms:
        value, span = kit.number(arm.balanced_accuracy), kit.span(arm.balanced_accuracy_ci95)
        over_runs = (kit.spread(arm.over_runs(metric)) for metric in compared.METRICS)
        pooled.append((arm.name, study.done(arm), value, span, *over_runs))
    blocks: list[Block] = [
        Text(
            f"Balanced accuracy pooled over the {parts}, seeds averaged, with its interval over "
            "lesions (these runs taken as given); then means and standard deviations over runs, "
            f"each on its own {study.part}. Arms with different runs are compared in the table of "
            "paired differences, not here."
        ),
        Table(("arm", "runs", "balanced acc.", "95% interval", "runs: mean ± SD", *others), pooled),
    ]
    if seeds := sorted({seed for arm in arms for seed in arm.by_seed}):
        rows = [
            (arm.name, *(kit.number(arm.by_seed.get(seed, np.nan)) for seed in seeds))
            for arm in arms
        ]
        blocks.append(Text("Pooled balanced accuracy of each seed:"))
        blocks.append(Table(("arm", *(f"seed {seed}" for seed in seeds)), rows))
    known = dict.fromkeys([*names, *study.plan_counts])
    if told := {name: study.descriptions[name] for name in known if name in study.descriptions}:
        blocks.append(kit.facts(told, ("arm", "what it is")))
    most = max(arms, key=lambda arm: int(arm.images.sum()))
    support = [("images", *map(str, most.images)), ("lesions", *map(str, most.lesions))]
    recalls = [(arm.name, *map(kit.estimate, arm.recall, arm.recall_ci95)) for arm in arms]
    caption = (
        f"Recall of each class by each arm, pooled over the {parts}, with 95% intervals over "
        "lesions; in each panel the arms in the order of the legend, and a line at the recall of "
        f"{names[0]}."
    )
    tables = [
        Table((f"{study.select} images, all {parts}", *classes), support),
        Table(("arm", *classes), recalls),
    ]
    return [
        Section("Arms", blocks),
        Section("Recall of each class", [*tables, Picture(picture, caption)]),
    ]


def _level_sections(folder: Path, study: Study) -> list[Section]:
    picture, compared_at = folder / "levels.png", study.compared_levels
    if len(compared_at) < 2:
        picture.unlink(missing_ok=True)  # of an earlier call
        return []
    curves: dict[str, list[tuple[float, Arm]]] = {}
    rows = []
    for level, own in compared_at:
        differences = {d.arm: d for d in own.differences}
        for arm in own.arms:
            curves.setdefault(arm.name, []).append((level.value, arm))
            row = [level.title, arm.name, str(len(arm.cells))]
            value, span = kit.number(arm.balanced_accuracy), kit.span(arm.balanced_accuracy_ci95)
            row.append(f"{value} ({span})")
            if d := differences.get(arm.name):
                row += [with_span(d.estimate), _holm(d)]
            rows.append(row + [""] * (6 - len(row)))
    figures.level_curves(picture, curves, study.axis)
    header = ("level", "arm", "runs", "balanced accuracy", f"minus {study.comparison.control}", "p")
    caption = (
        f"Balanced accuracy of each arm at each level, pooled over the {study.part}s, with 95% "
        "intervals over lesions (the runs taken as given)."
    )
    return [Section("Levels", [Picture(picture, caption), Table(header, rows)])]


def _ratio_sections(folder: Path, study: Study) -> list[Section]:
    picture, ratios = folder / "ratio_curve.png", study.ratios
    found = [d for d in study.comparison.differences if ratios.get(d.arm)]
    found.sort(key=lambda d: ratios[d.arm] or 0)
    if len({ratios[d.arm] for d in found}) < 2:
        picture.unlink(missing_ok=True)  # of an earlier call
        return []
    figures.ratio_curve(picture, found, np.array([ratios[d.arm] for d in found]))
    header = ("arms", "generated per real image", "difference (95% interval)", "p, Holm")
    rows = [(_marked(d), f"{ratios[d.arm]:g}", with_span(d.estimate), _holm(d)) for d in found]
    caption = (
        f"Balanced accuracy minus that of {study.comparison.control}, in points, against the "
        "number of generated images per real one, with 95% intervals."
    )
    blocks = (Table(header, rows), Picture(picture, caption))
    return [Section("Generated images per real one", blocks)]


def _json(study: Study, sentences: Sequence[str]) -> dict[str, Any]:
    comparison, isolated = study.comparison, study.comparison.isolated
    judged = study.judged
    return {
        "title": study.title,
        "conclusion": sentences,
        "control": comparison.control,
        "confirmatory": comparison.confirmatory,
        "isolating": comparison.isolating,
        "part": study.part,
        "select": study.select,
        "runs_planned": study.planned,
        "runs_missing": study.missing,
        "arms": {arm.name: _arm_json(arm, study) for arm in comparison.arms},
        "differences": {d.arm: _difference_json(d, study, judged) for d in comparison.differences},
        "isolated": _difference_json(isolated, study, ()) if isolated else None,
        "axis": study.axis,
        "levels": [
            {
                "title": level.title,
                "value": level.value,
                "arms": {arm.name: _arm_json(arm, study) for arm in own.arms},
                "differences": {d.arm: _difference_json(d, study, ()) for d in own.differences},
            }
            for level, own in study.compared_levels
        ],
        "facts": {key: str(value) for key, value in study.facts.items()},
    }


def _arm_json(arm: Arm, study: Study) -> dict[str, Any]:
    per_class: dict[str, Sequence[object] | np.ndarray] = {
        "recall": arm.recall,
        "ci95": arm.recall_ci95,
        "images": arm.images,
        "lesions": arm.lesions,
    }
    return {
        "description": study.descriptions.get(arm.name),
        "ratio": study.ratios.get(arm.name),
        "runs_planned": study.plan_counts.get(arm.name),
        "balanced_accuracy": arm.balanced_accuracy,
        "balanced_accuracy_ci95": arm.balanced_accuracy_ci95,
        "balanced_accuracy_by_seed": arm.by_seed,
        "over_runs": {m: arm.over_runs(m)._asdict() | {"n": len(arm.cells)} for m in arm.runs},
        "runs": [
            {study.part: fold, "seed": seed} | {m: values[i] for m, values in arm.runs.items()}
            for i, (fold, seed) in enumerate(arm.cells)
        ],
        "per_class": {
            name: {key: values[c] for key, values in per_class.items()}
            for c, name in enumerate(study.classes.names)
        },
    }


def _difference_json(d: Difference, study: Study, claims: Sequence[Claim]) -> dict[str, Any]:
    recalls = zip(study.classes.names, d.paired.recall, d.paired.recall_ci95, strict=True)
    return {
        "minus": d.control,
        "confirmatory": d.confirmatory,
        "ratio": study.ratios.get(d.arm),
        "balanced_accuracy": _estimate_json(d.estimate),
        "accuracy": _estimate_json(d.paired.accuracy),
        "p": d.p,
        "holm_corrected": not d.confirmatory,
        "shown": d.shown,
        "pairs": {
            "n": len(d.cells),
            **d.over_cells._asdict(),
            "values": [
                {study.part: fold, "seed": seed, "balanced_accuracy": value}
                for (fold, seed), value in zip(d.cells, d.cell_differences, strict=True)
            ],
        },
        "folds": d.paired.fold_differences,
        "recall": {name: {"value": value, "ci95_lesions": ci95} for name, value, ci95 in recalls},
        "claims": [
            {
                "source": claim.source,
                "metric": claim.metric,
                "difference": claim.points / 100,
                "excluded": claim.excluded(d),
            }
            for claim in claims
        ],
        "not_covered": d.not_covered,
    }


def _estimate_json(estimate: Estimate) -> dict[str, Any]:
    return {
        "value": estimate.value,
        "ci95": estimate.interval,
        "p": estimate.p,
        "student": {"ci95": estimate.student, "p": estimate.student_p},
        "bootstrap": {"ci95": estimate.bootstrap, "p": estimate.bootstrap_p},
    }


def _marked(difference: Difference) -> str:
    return str(difference) + " (to be confirmed)" * difference.confirmatory


def _holm(difference: Difference) -> str:
    return "(alone)" if difference.confirmatory else _p(difference.p)


def _p(value: float) -> str:
    return "<0.001" if value < 0.001 else kit.number(value)
