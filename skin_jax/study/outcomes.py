"""A study's finished runs: each checked against the plan, and read for the report."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from skin_jax import config as config_lib
from skin_jax.base.errors import UserError
from skin_jax.base.files import read_text
from skin_jax.base.folder import read_record
from skin_jax.data import classes as classes_lib
from skin_jax.data import splits
from skin_jax.data.classes import Classes
from skin_jax.data.generated import GRIDS
from skin_jax.eval import comparison
from skin_jax.eval.comparison import Comparison, Outcome
from skin_jax.eval.tables import read_predictions
from skin_jax.study import jobs
from skin_jax.study.plan import (
    PREDICTIONS,
    arm_name,
    is_procedural,
    part_setting,
    run_name,
    run_proofs,
)
from skin_jax.training.history import HISTORY, duration, read_starts
from skin_jax.training.run import DIGEST_FILE, SPLITS_FILE

Record = dict[str, Any]
"""The record that `plan.recorded` gives."""


def read(workdir: Path, record: Record) -> tuple[Classes, list[Outcome]]:
    """The classes of all runs, and each finished run's predictions of its fold's images.

    These are those of the split that the study selects by.

    Raises:
      UserError: a run that is not what the plan says, was made of other images or classes, or is
        damaged.
    """
    found: list[Outcome] = []
    digests: dict[str, Path] = {}
    classes: dict[Classes, Path] = {}
    for arm, fold, seed, folder in _finished(workdir, record):
        own_settings = {part_setting(record["part"]): fold, "seed": seed}
        _check_settings(folder, record["arms"][arm]["settings"], own_settings)
        digests.setdefault(read_text(folder / DIGEST_FILE), folder)
        own = classes_lib.read(folder)
        classes.setdefault(own, folder)
        for what, seen in (("images", digests), ("classes", classes)):
            if len(seen) > 1:
                raise UserError(
                    f"{' and '.join(map(str, seen.values()))} were made of different {what}; give "
                    "all the same --config.data.dir, and delete the folder that was not, to create "
                    "it again"
                )
        path = folder / PREDICTIONS.format(record["select"])
        scores = read_predictions(path, own)
        names = dict(splits.members(folder / SPLITS_FILE, record["select"]))
        lesions = splits.lesion_ids(folder / SPLITS_FILE)
        if names.keys() != set(scores.image_ids):
            raise UserError(
                f"{path} is not about the {record['select']} images of {folder / SPLITS_FILE}; "
                "delete the folder to create this run again"
            )
        labels = np.array([own.index(names[image]) for image in scores.image_ids])
        lesion_ids = [lesions[image] for image in scores.image_ids]
        found.append(
            Outcome(arm, fold, seed, scores.image_ids, lesion_ids, labels, scores.probabilities)
        )
    return next(iter(classes), classes_lib.HAM10000), found


def at_level(record: Record, level: str | None) -> Record:
    """The record of the arms that a level has, by their own names; the whole without levels."""
    if level is None:
        return record
    suffix = arm_name("", level)
    own = {k.removesuffix(suffix): v for k, v in record["arms"].items() if k.endswith(suffix)}
    return record | {"arms": own, "confirmatory_level": None}


def compared(
    workdir: Path, record: Record, found: Sequence[Outcome]
) -> dict[str | None, Comparison | None]:
    """The arms of each level compared, None where no run is finished; without levels, of None.

    Raises:
      UserError: runs that do not fit one another.
    """
    roles = {role: record[role] for role in ("control", "confirmatory", "isolating")}
    comparisons = {}
    for level in record["levels"] or (None,):
        first = level == record["confirmatory_level"]
        try:
            if own := _of_level(found, level):
                comparisons[level] = comparison.compare(
                    own,
                    subsets=record["part"] == "subset",
                    **(roles if first else {"control": record["control"]}),
                )
        except ValueError as error:
            raise UserError(
                f"the runs in {workdir} cannot be compared: {error}; were they given the same "
                "--config.data.dir?"
            ) from None
    corrected = comparison.correct_together(list(comparisons.values()))
    together = dict(zip(comparisons, corrected, strict=True))
    return {level: together.get(level) for level in record["levels"] or (None,)}


def _of_level(found: Sequence[Outcome], level: str | None) -> list[Outcome]:
    """The outcomes of a level, under the arms' own names; all without levels."""
    suffix = arm_name("", level)
    return [
        dataclasses.replace(one, arm=one.arm.removesuffix(suffix))
        for one in found
        if one.arm.endswith(suffix)
    ]


def facts(workdir: Path, record: Record) -> dict[str, Any]:
    """Facts of the runs: settings that all share, the control's and the steps', hardware, time."""
    arms = {name: _shown(arm["settings"]) for name, arm in record["arms"].items()}
    control = arms[arm_name(record["control"], record["confirmatory_level"])]
    shared = {
        k: v for k, v in control.items() if all(k in arm and arm[k] == v for arm in arms.values())
    }
    found = {
        f"{record['part']}s": record["folds"],
        "seeds": record["seeds"],
        "images": "procedural lesions" if is_procedural(record) else "of a data folder",
        **shared,
        **{f"{record['control']}: {k}": v for k, v in control.items() if k not in shared},
    }
    for name, step in record["steps"].items():
        settings = _shown(step["settings"])
        found |= {f"{name}: {k}": v for k, v in settings.items() if shared.get(k, ...) != v}
    return found | _circumstances(workdir, record)


def descriptions(record: Record) -> dict[str, str]:
    """Arm -> its title, and the settings in which it differs from the control."""
    shown = {name: _shown(arm["settings"]) for name, arm in record["arms"].items()}
    usual = shown[record["control"]]
    return {
        name: "; ".join(
            [record["arms"][name]["title"]]
            + [f"{k} = {own.get(k)}" for k in sorted(own) if own[k] != usual.get(k, ...)]
        )
        for name, own in shown.items()
    }


def samples(workdir: Path, record: Record, classes: Classes) -> list[tuple[str, Path]]:
    """Captions and grids of generated images of the first fold or subset."""
    part, fold = record["part"], record["folds"][0]
    found = [
        (
            f"{title}: {step}, {part} {fold}",
            workdir / f"steps/{step}/{part}{fold}/{GRIDS}/{name}.png",
        )
        for step in dict.fromkeys(arm["settings"]["needs"] for arm in record["arms"].values())
        for name, title in zip(classes.names, classes.titles, strict=True)
    ]
    return [(caption, path) for caption, path in found if path.exists()]


def _finished(workdir: Path, record: Record) -> list[tuple[str, int, int, Path]]:
    """Arm, fold, seed and folder of each."""
    return [
        (arm, fold, seed, folder)
        for arm in record["arms"]
        for fold in record["folds"]
        for seed in record["seeds"]
        for folder in [workdir / run_name(arm, f"{record['part']}{fold}", seed)]
        if all((folder / proof).exists() for proof in run_proofs(record["select"]))
    ]


def _check_settings(folder: Path, planned: Record, own: Record) -> None:
    """Refuses a run with other settings than the plan's: the folder may have been put there."""
    path, mend = folder / config_lib.FILE_NAME, "delete the folder to create it again"
    actual = read_record(
        path, lambda content: config_lib.flatten(config_lib.checked(content, folder)), mend
    )
    wanted = config_lib.flatten(planned) | own
    del wanted["needs"]
    if differing := config_lib.differences(wanted, actual):
        raise UserError(
            f"{folder} is not the run that the study planned; delete it to create that one ("
            f"{'; '.join(differing)})"
        )


def _shown(settings: Record) -> dict[str, Any]:
    return config_lib.without_folders(config_lib.flatten(settings))


def _circumstances(workdir: Path, record: Record) -> dict[str, Any]:
    """Where and in what time the finished jobs were made, and by how many versions of the code."""
    folders = [run[-1] for run in _finished(workdir, record)]
    folders += sorted(workdir.glob(f"steps/*/{record['part']}*"))
    begun = [start for folder in folders for start in read_starts(folder / HISTORY)]
    names = [str(folder.relative_to(workdir)) for folder in folders]
    attempts = [attempt for name in names for attempt in jobs.attempts(workdir, name)]
    codes = sorted({attempt.code[:12] for attempt in attempts})
    return {
        "hardware": "; ".join(sorted({s["hardware"] for s in begun if "hardware" in s})),
        "jax": ", ".join(sorted({s["jax"] for s in begun if "jax" in s})),
        "time of all jobs": duration(sum(attempt.seconds for attempt in attempts)),
        "versions of the code": f"{len(codes)} (SHA-256 {', '.join(codes)})",
    }
