"""The scores of a reader study for people and programs: JSON, Markdown and a page."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from skin_jax.base.files import write_atomically, write_json
from skin_jax.eval import readers
from skin_jax.eval.reader_items import Answers, Key
from skin_jax.eval.readers import Estimate, Scores
from skin_jax.report import kit

_TITLE = "Reader study"
_NAMES = {
    "accuracy": "accuracy (guessing: 0.5)",
    "sensitivity": "sensitivity (generated images)",
    "specificity": "specificity (real images)",
    "d_prime": "d' (guessing: 0)",
    "criterion": "criterion c",
    "real": "accuracy on real images",
    "generated": "accuracy on generated images",
    "difference": "real minus generated",
}
_FEW = 20  # images of a kind: fewer say little of a class


def write(
    folder: Path,
    key: Key,
    answers: Answers,
    found: Scores,
    by_class: Mapping[str, Scores],
    diagnoses: Scores | None,
) -> str:
    """Writes scores.json, report.md and report.html.

    Args:
      folder, key, answers: for the files, of the study, and that were scored.
      found: `readers.detection` of all images.
      by_class: the same of the images of each class that the study shows, by its name.
      diagnoses: `readers.diagnosis`; None where the readers were not asked.

    Returns:
      The conclusion and the tables as Markdown, for a terminal.

    Raises:
      UserError: the folder cannot be written.
    """
    said = conclusion(found)
    notes = _notes(key, found, by_class, diagnoses)
    content = {
        "study": key.study,
        **key.facts,
        "images": {"real": found.real, "generated": found.generated},
        "conclusion": said,
        "chance": readers.CHANCE,
        "detection": _json(found, answers.readers),
        "classes": {name: _json(scores, answers.readers) for name, scores in by_class.items()},
        "diagnosis": _json(diagnoses, answers.readers) if diagnoses else None,
        "readers": {
            reader: {"experience": experience, "median_seconds": np.median(seconds)}
            for reader, experience, seconds in zip(
                answers.readers, answers.experience, answers.seconds.T, strict=True
            )
        },
        "notes": notes,
    }
    write_json(folder / "scores.json", content)
    sections = [
        kit.Section("Real or generated?", [kit.Text(said), _overall(found)]),
        kit.Section("Readers", [_readers(found, answers)]),
        kit.Section("Classes", [_classes(by_class)]),
    ]
    if diagnoses:
        tables = [_overall(diagnoses)]
        if len(answers.readers) > 1:
            measures = ("real", "generated", "difference")
            own = (
                (what, [_estimate(each[what]) for each in diagnoses.readers]) for what in measures
            )
            tables.append(kit.by_columns("reader", answers.readers, *own))
        sections.append(kit.Section("Diagnoses", [kit.Text(_diagnosed(diagnoses)), *tables]))
    sections.append(kit.Section("Notes", [kit.Text(note) for note in notes]))
    printed = kit.markdown(_TITLE, sections, folder)
    experience = zip(answers.readers, answers.experience, strict=True)
    if told := {reader: text for reader, text in experience if text}:
        table = kit.facts(told, ("reader", "experience"))
        sections.append(kit.Section("Experience of the readers", [table]))
    facts = {"study": key.study, "images of each kind": found.real}
    facts |= {name.replace("_", " "): fact for name, fact in key.facts.items()}
    sections.append(kit.Section("What was shown", [kit.facts(facts, ("what", "which"))]))
    write_atomically(folder / "report.md", kit.markdown(_TITLE, sections, folder))
    write_atomically(folder / "report.html", kit.html(_TITLE, sections))
    return printed


def conclusion(found: Scores) -> str:
    """Says in words what d' and its interval show, and what they do not."""
    d, accuracy, count = found.overall["d_prime"], found.overall["accuracy"], len(found.readers)
    who, tell, these = ("readers", "tell", f"; the mean of {count} readers")
    if count == 1:
        who, tell, these = ("this reader", "tells", "")
    values = (
        f"(accuracy {_estimate(accuracy)}, where guessing gives 0.5; d' {_estimate(d)}, where "
        f"guessing gives 0{these})"
    )
    if d.ci95[0] > 0:
        said = f"{who} {tell} generated from real images {values}."
    elif d.ci95[1] < 0:
        take = tell.replace("tell", "take")
        said = (
            f"{who} {tell} generated from real images, but {take} the generated for the real "
            f"{values}."
        )
    else:
        most = kit.number(readers.unbiased_accuracy(d.ci95[1]), 2)
        said = (
            f"it is not shown that {who} {tell} generated from real images {values}. That does not "
            f"show that nobody can: the interval reaches to an accuracy of {most}."
        )
        own = found.these["d_prime"]
        if count > 1 and own.ci95[0] > 0:
            said += (
                f" These {count} did, with d' {_estimate(own)} over images alone; they are too few "
                "or too different to say it of others."
            )
    if count == 1:
        said += " Of other readers, a study with one says nothing."
    return said[0].upper() + said[1:]


def _diagnosed(found: Scores) -> str:
    difference = found.overall["difference"]
    real, generated = (_estimate(found.overall[kind]) for kind in ("real", "generated"))
    low, high = difference.ci95
    said = "No difference between the two is shown"
    if low > 0:
        said = "Generated images are harder to diagnose"
    elif high < 0:
        said = "Generated images are easier to diagnose"
    return (
        f"Diagnoses are right for {real} of the real and {generated} of the generated images. "
        f"{said}."
    )


def _json(found: Scores, names: Sequence[str]) -> dict[str, Any]:
    return {
        "images_of_each_kind": found.real,
        "overall": found.overall,
        "these_readers": found.these,
        "readers": dict(zip(names, found.readers, strict=True)),
    }


def _estimate(found: Estimate) -> str:
    return f"{kit.number(found.value, 2)} ({kit.span(found.ci95, 2)})"


def _overall(found: Scores) -> kit.Table:
    columns = [
        ("value", [kit.number(each.value, 2) for each in found.overall.values()]),
        ("95% interval", [kit.span(each.ci95, 2) for each in found.overall.values()]),
    ]
    if len(found.readers) > 1:
        these = [kit.span(each.ci95, 2) for each in found.these.values()]
        columns.append(("these readers", these))
    return kit.by_columns("measure", [_NAMES[name] for name in found.overall], *columns)


def _readers(found: Scores, answers: Answers) -> kit.Table:
    rows = []
    for name, each, seconds in zip(answers.readers, found.readers, answers.seconds.T, strict=True):
        estimates = (_estimate(each[measure]) for measure in ("accuracy", "d_prime"))
        values = (kit.number(each[measure].value, 2) for measure in ("sensitivity", "criterion"))
        rows.append((name, *estimates, *values, kit.number(float(np.median(seconds)), 1)))
    return kit.Table(("reader", "accuracy", "d'", "sensitivity", "c", "seconds"), rows)


def _classes(by_class: Mapping[str, Scores]) -> kit.Table:
    scores = list(by_class.values())

    def values(name: str) -> list[str]:
        return [kit.number(each.overall[name].value, 2) for each in scores]

    columns = [
        ("images", [f"2 x {each.real}" for each in scores]),
        ("accuracy", values("accuracy")),
        ("sensitivity", values("sensitivity")),
        ("d'", values("d_prime")),
        ("95% interval", [kit.span(each.overall["d_prime"].ci95, 2) for each in scores]),
    ]
    if len(scores[0].readers) > 1:
        these = [kit.span(each.these["d_prime"].ci95, 2) for each in scores]
        columns.append(("these readers", these))
    return kit.by_columns("class", by_class, *columns)


def _notes(
    key: Key, found: Scores, by_class: Mapping[str, Scores], diagnoses: Scores | None
) -> list[str]:
    notes = [
        "d' = z(H) - z(F) and c = -(z(H) + z(F)) / 2, with the shares H of the generated and F of "
        "the real images that were called generated, after the log-linear correction (Hautus, "
        "1995). Unlike accuracy, d' does not depend on which answer a reader prefers; a positive "
        'c is a preference for "real".'
    ]
    if len(found.readers) > 1:
        notes.append(
            "Overall: the mean of the readers, with intervals over readers and images (Obuchowski "
            "and Rockette, 1995; Hillis, 2014; covariances from a bootstrap over images): they "
            "hold for other readers like these and other images like these, and are wide where "
            "two or three readers differ. Intervals of these readers are over images alone; of "
            "single readers, by Wilson and, for d', by Gourevitch and Galanter (1967)."
        )
    else:
        notes.append(
            "One reader: intervals are over images alone, by Wilson and, for d' and c, by "
            "Gourevitch and Galanter (1967)."
        )
    if few := [f"{name} ({each.real})" for name, each in by_class.items() if each.real < _FEW]:
        notes.append(f"Fewer than {_FEW} images of each kind say little: {', '.join(few)}.")
    notes.append(
        "Intervals of classes are not corrected for their number: of 20, one misses by chance."
    )
    if diagnoses:
        notes.append(
            "A diagnosis is right if it is the class that the image is labelled with or was "
            f"generated as; guessing is right for {1 / len(key.classes):.2f}."
        )
    if key.facts.get("demo"):
        notes.append("The real images are procedural lesions of the demo, no photographs.")
    if not key.facts.get("same_training_split", True):
        notes.append(
            "The generator was trained on other images than the run's training split: it may have "
            "seen the real images of this study."
        )
    return notes
