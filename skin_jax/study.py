"""Runs a study: arms x folds x seeds of one configuration file, compared in one report.

python -m skin_jax.study --config configs/study_X.py --workdir W [--shard i/n] [--dry_run]
    [--report_only] [--config.data.dir=FOLDER] [--config.key=value ...]

--dry_run prints the plan and what it costs. The same command goes on where it was ended: what is
finished is never made again, what was interrupted goes on, what failed is tried again. Several
processes may share W; --shard 0/4 to 3/4 give each its share of the runs. At its end each writes
study.json, study.md and report.html about what is finished by then; --report_only does that alone.

Settings for every run stand at the top (--config.data.dir), for every arm in `every_arm`
(--config.every_arm.num_steps=N), for one in `arms.<name>.overrides`, for a GAN in
`steps.<name>.overrides`. Arms, folds and seeds can be added to a W later on.

The exit status is 0, 1 (failure), 2 (usage or bad input), 3 (some jobs failed; the rest is done),
or 130 (Ctrl-C) and 143 (SIGTERM): asked to end, everything is saved.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags
from ml_collections import config_flags

from skin_jax import entry, errors
from skin_jax.errors import UserError

if TYPE_CHECKING:
    from skin_jax.eval.comparison import Comparison, Outcome
    from skin_jax.eval.report import Table
    from skin_jax.jobs import Result
    from skin_jax.plan import Plan

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "A file configs/study_X.py, with ':smoke' for a short try.", lock_config=True
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the study: made, or gone on with.")
_SHARD = flags.DEFINE_string("shard", "0/1", "This process's share of the runs, from 0: i/n.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the plan and its cost; start nothing.")
_REPORT_ONLY = flags.DEFINE_bool("report_only", False, "Report on what is finished; start nothing.")


def main(argv: list[str]) -> int:
    """The command line's work; see the module's docstring."""
    if len(argv) > 1:
        raise UserError(
            f"unexpected argument {argv[1]!r}; settings are given as --config.key=value"
        )
    if _CONFIG.value is None or not _WORKDIR.value:
        raise UserError("give both --config=configs/study_X.py and --workdir=DIR; see --help")
    shard, shards = _shard(_SHARD.value)
    workdir = Path(_WORKDIR.value)

    from skin_jax import plan as plan_lib  # they take their time to import: not for --help
    from skin_jax.jobs import Result, Runner

    plan = plan_lib.make(_CONFIG.value, workdir)
    runs = plan.share(shard, shards)
    if _DRY_RUN.value:
        plan_lib.check(plan)
        print(_described(plan, runs))
        return 0
    result = Result()
    try:
        if _REPORT_ONLY.value:
            record = plan_lib.check(plan)
        else:
            record = plan_lib.register(plan)
            result = Runner(plan, runs).run()
        _report(workdir, record)
    except OSError as error:
        raise UserError(
            f"{workdir}: {error}; mend that and run the same command again", errors.FAILURE
        ) from error
    return _ended(plan, result)


def _shard(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"([0-9]+)/([0-9]+)", text)
    if found is None or not int(found[1]) < int(found[2]):
        raise UserError(
            f"--shard is {text!r}; it takes i/n, the number of a share from 0 and how many there "
            "are, such as 0/4 to 3/4"
        )
    return int(found[1]), int(found[2])


def _described(plan: "Plan", runs: list[str]) -> str:
    """The plan as a table and its cost."""
    from skin_jax.eval import report
    from skin_jax.jobs import Costs, table

    jobs = plan.with_needs(runs)
    missing = [job for job in jobs if job.missing()]
    steps, images = (
        f"{sum(getattr(job, what) for job in jobs):,} ({sum(getattr(j, what) for j in missing):,} "
        "of jobs that are not finished)"
        for what in ("steps", "images")
    )
    rows = [
        ["runs", f"{len(runs)} of {len(plan.runs)}"],
        ["compared with", plan.record["control"]],
        ["to be confirmed", plan.record["confirmatory"] or "nothing: all arms are exploratory"],
        ["optimiser steps", steps],
        ["images through them", images],
        ["time left on one process", Costs(plan).left(jobs)],
    ]
    header, lines = table(plan, jobs)
    sections = [
        report.Section("Jobs", [report.Table(header, lines)]),
        report.Section("In all", [report.Table(["", ""], rows, prose=True)]),
    ]
    return report.markdown(f"Plan of {plan.workdir}", sections, plan.workdir)


def _ended(plan: "Plan", result: "Result") -> int:
    """Says what was not done; the exit status."""
    from skin_jax.jobs import folder_of

    for name, reason in result.failed.items():
        errors.warn(f"{name} failed: {reason} (see {folder_of(plan, plan.jobs[name])}/log.txt)")
    for name, reason in result.skipped.items():
        errors.warn(f"{name} was not run: {reason}")
    if result.failed:
        errors.warn(f"{len(result.failed)} jobs failed; the same command tries them again")
        return errors.PARTIAL
    return 0


def _report(workdir: Path, record: dict[str, Any]) -> None:
    """Writes the report about all runs that are finished, whichever process made them."""
    from skin_jax.eval import comparison, report, study_report
    from skin_jax.files import locked
    from skin_jax.plan import CLAIMS

    with locked(workdir / ".report.lock", waiting_for=f"waiting for the report of {workdir}"):
        outcomes = _outcomes(workdir, record)
        if not outcomes:
            print("no run is finished yet: there is nothing to report", flush=True)
            return
        arms = record["arms"]
        try:
            found = comparison.compare(
                outcomes,
                control=record["control"],
                confirmatory=record["confirmatory"],
                ratios={name: arm["ratio"] for name, arm in arms.items()},
            )
        except ValueError as error:
            raise UserError(
                f"the runs in {workdir} cannot be compared: {error}; were they given the same "
                "--config.data.dir?"
            ) from None
        counts = dict.fromkeys(arms, len(record["folds"]) * len(record["seeds"]))
        claims = dict(
            zip(CLAIMS, (study_report.PAPER_A_CLAIM, study_report.PAPER_B_CLAIM), strict=True)
        )
        with_gan = [
            name
            for name, arm in arms.items()
            if arm["settings"]["needs"] or arm["settings"]["task"] != "classifier"
        ]
        chosen = [claims[name] for name in record["claims"]]
        page = study_report.write(
            workdir,
            found,
            title=f"Study of {len(arms)} arms over {len(record['folds'])} folds",
            facts=_facts(record),
            arm_descriptions={name: _description(arm) for name, arm in arms.items()},
            plan_counts=counts,
            samples=_samples(workdir, record),
            claims=chosen,
            gan_arms=with_gan,
        )
        sentences = study_report.conclusion(found, counts, chosen, with_gan)
    sections = [
        report.Section("Arms", [_arms_table(found, counts)]),
        report.Section("Conclusion", [report.Text(sentence) for sentence in sentences]),
    ]
    print(report.markdown(str(workdir), sections, workdir))
    print(f"full report: {page}", flush=True)


def _outcomes(workdir: Path, record: dict[str, Any]) -> "list[Outcome]":
    """What each finished run says of its test images."""
    import numpy as np

    from skin_jax.data import splits
    from skin_jax.data.lesions import CLASSES
    from skin_jax.eval.comparison import Outcome
    from skin_jax.eval.tables import read_predictions
    from skin_jax.experiment import SPLITS_FILE
    from skin_jax.plan import PREDICTIONS, RUN_PROOFS, run_name

    found = []
    for arm in record["arms"]:
        for fold in record["folds"]:
            for seed in record["seeds"]:
                folder = workdir / run_name(arm, fold, seed)
                if not all((folder / proof).exists() for proof in RUN_PROOFS):
                    continue
                scores = read_predictions(folder / PREDICTIONS)
                names = dict(splits.members(folder / SPLITS_FILE, "test"))
                lesions = splits.lesion_ids(folder / SPLITS_FILE)
                if names.keys() != set(scores.image_ids):
                    raise UserError(
                        f"{folder / PREDICTIONS} is not about the test images of "
                        f"{folder / SPLITS_FILE}; delete the folder to make this run again"
                    )
                labels = [CLASSES.index(names[image]) for image in scores.image_ids]
                found.append(
                    Outcome(
                        arm=arm,
                        fold=fold,
                        seed=seed,
                        image_ids=scores.image_ids,
                        lesion_ids=[lesions[image] for image in scores.image_ids],
                        labels=np.array(labels),
                        probabilities=scores.probabilities,
                    )
                )
    return found


def _facts(record: dict[str, Any]) -> dict[str, Any]:
    """What all arms share, and the settings of the steps."""
    from skin_jax.config import flatten, without_folders

    arms = [flatten(arm["settings"]) for arm in record["arms"].values()]
    first, *others = arms
    shared = {k: v for k, v in first.items() if all(k in o and o[k] == v for o in others)}
    found = {"folds": record["folds"], "seeds": record["seeds"], **without_folders(shared)}
    for name, step in record["steps"].items():
        settings = without_folders(flatten(step["settings"]))
        found |= {f"{name}: {k}": v for k, v in settings.items() if shared.get(k, ...) != v}
    return found


def _description(arm: dict[str, Any]) -> str:
    from skin_jax.config import NO_WEIGHTS

    weights = arm["settings"]["model"].get("weights")
    if weights is None:
        return arm["title"]
    return f"{arm['title']}; " + (
        "from scratch" if weights == NO_WEIGHTS else f"from the weights {Path(weights).name}"
    )


def _samples(workdir: Path, record: dict[str, Any]) -> list[tuple[str, Path]]:
    """Grids of generated images of the first fold, with captions."""
    from skin_jax.data.lesions import CLASSES, FULL_NAMES
    from skin_jax.data.synthetic import GRIDS

    found = []
    for step in dict.fromkeys(arm["settings"]["needs"] for arm in record["arms"].values()):
        fold = record["folds"][0]
        for name in CLASSES:
            path = workdir / "steps" / str(step) / f"fold{fold}" / GRIDS / f"{name}.png"
            if path.exists():
                found.append((f"{FULL_NAMES[name]}: {step}, fold {fold}", path))
    return found


def _arms_table(found: "Comparison", counts: dict[str, int]) -> "Table":
    """Arms and their differences from the control, in points."""
    from skin_jax.eval.report import Table

    def points(*values: float, sign: str = "") -> str:
        return " to ".join(f"{100 * value:{sign}.1f}" for value in values)

    differences = {difference.arm: difference for difference in found.differences}
    rows = []
    for arm in found.arms:
        row = [arm.name, f"{len(arm.cells)} of {counts[arm.name]}", points(arm.balanced_accuracy)]
        if difference := differences.get(arm.name):
            estimate = difference.estimate
            row += [points(estimate.value, sign="+"), points(*estimate.interval, sign="+")]
            row += [f"{difference.p:.3f}" + " (alone)" * difference.confirmatory]
        rows.append(row + [""] * (6 - len(row)))
    header = ("arm", "runs", "balanced accuracy", f"minus {found.control}", "95 % interval", "p")
    return Table(header, rows)


if __name__ == "__main__":
    entry.run(main)
