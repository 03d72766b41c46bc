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
    test: Mapping[str, Any] | None,
    commands: Sequence[str],
) -> None:
    """Writes `README.md` into the folder of an exported run.

    Args:
      folder: of the exported run; its name is the title.
      classes: n of them.
      facts: what it is, and how it was trained.
      train_counts: training images of each class, n numbers.
      test: the content of the test split's `metrics.json`; None where it was not evaluated.
      commands: arguments of `python -m` that work with the folder.
    """
    titles = map(classes.titled, range(len(classes)))
    table = kit.by_columns("class", titles, ("training images", train_counts))
    sections = [
        Section("Intended use", [Text(RESEARCH)]),
        Section("Model", [kit.facts(facts, ("property", "value"))]),
        Section("Classes", [table]),
    ]
    if test is not None:
        sections.append(Section("Results on the test split", _results(test)))
    lines = "\n".join(f"python -m {command}" for command in commands)
    usage = f"\n## Use\n\n```\n{lines}\n```\n"
    write_atomically(folder / "README.md", kit.markdown(folder.name, sections, folder) + usage)


_OVERALL = ("balanced_accuracy", "accuracy", "ece")


def _results(test: Mapping[str, Any]) -> list[kit.Block]:
    def row(name: str, values: Mapping[str, Any], key: str, interval: Any = None) -> list[str]:
        value = values.get(key)
        shown = kit.UNDEFINED if value is None else number(value)
        known = interval is not None and None not in interval
        return [name, shown, span(tuple(interval)) if known else ""]

    rows = [row(key.replace("_", " "), test, key, test["ci95"].get(key)) for key in _OVERALL]
    rows += [
        row(f"recall of {name}", values, "recall") for name, values in test["per_class"].items()
    ]
    return [
        Text(f"{test['num_examples']} images, the checkpoint of step {test['step']}."),
        kit.Table(("measure", "value", "95% interval"), rows),
    ]
