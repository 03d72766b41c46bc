"""The model card of an exported run: its README.md."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from skin_jax.base.files import write_atomically
from skin_jax.data.classes import Classes
from skin_jax.report import kit
from skin_jax.report.kit import Section, Text, number, span

RESEARCH = (
    "For research only: not a medical device and no diagnosis. On other cameras, other skin or "
    "other diagnoses than those of its training images, expect it to be worse than measured here."
)


def write(
    folder: Path,
    classes: Classes,
    *,
    facts: Mapping[str, object],
    train_counts: Sequence[int],
    measured: Mapping[str, Any] | None,
    commands: Sequence[str],
) -> None:
    """Writes `README.md` into the folder of an exported run.

    Args:
      folder: of the exported run; its name is the title.
      classes: n of them.
      facts: what it is, and how it was trained.
      train_counts: training images of each class, n numbers.
      measured: the content of the test split's `metrics.json`, or of the val split's; None where
        neither was evaluated.
      commands: arguments of `python -m` that work with the folder.
    """
    titles = map(classes.titled, range(len(classes)))
    table = kit.by_columns("class", titles, ("training images", train_counts))
    sections = [
        Section("Intended use", [Text(RESEARCH)]),
        Section("Model", [kit.facts(facts, ("property", "value"))]),
        Section("Classes", [table]),
    ]
    if measured is not None:
        heading = f"Results on the {measured['split']} split"
        sections.append(Section(heading, _results(measured)))
    lines = "\n".join(f"python -m {command}" for command in commands)
    usage = f"\n## Use\n\n```\n{lines}\n```\n"
    write_atomically(folder / "README.md", kit.markdown(folder.name, sections, folder) + usage)


_OVERALL = ("balanced_accuracy", "accuracy", "ece")


def _results(measured: Mapping[str, Any]) -> list[kit.Block]:
    def row(name: str, values: Mapping[str, Any], key: str, interval: Any = None) -> list[str]:
        value = values.get(key)
        shown = kit.UNDEFINED if value is None else number(value)
        known = interval is not None and None not in interval
        return [name, shown, span(tuple(interval)) if known else ""]

    rows = [
        row(key.replace("_", " "), measured, key, measured["ci95"].get(key)) for key in _OVERALL
    ]
    rows += [
        row(f"recall of {name}", values, "recall") for name, values in measured["per_class"].items()
    ]
    text = f"{measured['num_examples']} images, the checkpoint of step {measured['step']}."
    if measured["split"] == "val":
        text += " It was chosen by them, so that these figures are too good."
    return [
        Text(text),
        kit.Table(("measure", "value", "95% interval"), rows),
    ]
