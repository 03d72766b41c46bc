"""Runs a study: arms x levels x folds x seeds of a configuration file, compared in one report.

python -m skin_jax.study --config=study_NAME --workdir=W [--shard=i/n] [--dry_run [--estimate]]
    [--report_only] [--config.data.dir=FOLDER] [--config.key=value ...]

--dry_run prints the plan and what it costs, as far as jobs of W have shown that; --estimate times a
few steps of each kind of job first. The same command resumes: finished jobs are never run again,
interrupted ones are resumed, failed ones are tried again. Several processes may share W; --shard
0/4 to 3/4 give each its share of the runs. At its end, each process writes study.json, study.md and
report.html about what is finished by then; --report_only does only that, with the same settings.
--config.select=val compares runs on validation images: for choosing settings, of which test images
are to know nothing.

Settings for every run stand at the top (--config.data.dir), for every arm in `every_arm`
(--config.every_arm.num_steps=N), for one in `arms.<name>.overrides`, for a GAN in
`steps.<name>.overrides`. Arms, folds and seeds can be added to a W later on.

The exit status is 0, 1 (failure), 2 (usage or bad input), 3 (some jobs failed; the rest is done),
or 130 (Ctrl-C) and 143 (SIGTERM): asked to end, everything is saved.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from skin_jax.base import command, errors
from skin_jax.base.errors import UserError
from skin_jax.base.files import locked
from skin_jax.config import load
from skin_jax.report import kit

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from skin_jax.study.jobs import Result
    from skin_jax.study.plan import Plan

_WORKDIR = command.define_path("workdir", None, "Folder of the study: created, or resumed.")
_SHARD = flags.DEFINE_string(
    "shard", "0/1", "This process's share of the runs: i/n, with i from 0."
)
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the plan and its cost; start nothing.")
_ESTIMATE = flags.DEFINE_bool("estimate", False, "With --dry_run, time a few steps of each job.")
_REPORT_ONLY = flags.DEFINE_bool("report_only", False, "Report on what is finished; start nothing.")


def main(argv: list[str], config: "ConfigDict | None") -> int:
    """The command line's work; see the module's docstring."""
    if len(argv) > 1:
        raise UserError(
            f"unexpected argument {argv[1]!r}; settings are given as --config.key=value"
        )
    if config is None or not _WORKDIR.value:
        raise UserError("give both --config=study_NAME and --workdir=DIR; see --help")
    if "arms" not in config:
        raise UserError("this configuration is one run, not a study: run it with skin_jax.main")
    if _DRY_RUN.value and _REPORT_ONLY.value:
        raise UserError("--dry_run and --report_only exclude each other; give one of them")
    if _ESTIMATE.value and not _DRY_RUN.value:
        raise UserError("--estimate goes with --dry_run: without it, jobs are begun and measured")
    shard, shards = command.shard_in(_SHARD.value)
    workdir = Path(_WORKDIR.value)

    from skin_jax.study import plan as plan_lib  # they take their time to import: not for --help
    from skin_jax.study.jobs import Result, Runner

    plan = plan_lib.make(config, workdir)
    runs = plan.share(shard, shards)
    if _DRY_RUN.value:
        plan_lib.check(plan)
        print(_described(plan, runs))
        return 0
    result = Result()
    try:
        if _REPORT_ONLY.value:
            plan_lib.recorded(workdir)  # there must be one: the report would make the folder
            plan_lib.check(plan)
        else:
            plan_lib.register(plan)
            result = Runner(plan, runs).run()
        _report(workdir)
    except OSError as error:
        raise UserError(
            f"{workdir}: {error}; mend that and run the same command again", errors.FAILURE
        ) from error
    return _ended(plan, result)


def _described(plan: "Plan", runs: list[str]) -> str:
    """The plan as a table and its cost."""
    from skin_jax.study.jobs import Costs, estimate, table

    jobs = plan.with_needs(runs)
    costs = Costs(plan, estimate(plan, jobs) if _ESTIMATE.value else None)
    missing = [job for job in jobs if job.missing()]
    steps, images = (
        f"{sum(getattr(job, what) for job in jobs):,} ({sum(getattr(j, what) for j in missing):,} "
        "of jobs that are not finished)"
        for what in ("steps", "images")
    )
    facts = {
        "runs": f"{len(runs)} of {len(plan.runs)}",
        "compared with": plan.record["control"],
        "to be confirmed": plan.record["confirmatory"] or "nothing: all arms are exploratory",
        "optimiser steps": steps,
        "images through them": images,
        "time left on one process": costs.left(jobs),
    }
    sections = [
        kit.Section("Jobs", [kit.Table(*table(plan, jobs, costs))]),
        kit.Section("In all", [kit.facts(facts, ("", ""))]),
    ]
    return kit.markdown(f"Plan of {plan.workdir}", sections, plan.workdir)


def _ended(plan: "Plan", result: "Result") -> int:
    """Says what was not done; the exit status."""
    from skin_jax.study.jobs import folder_of

    for name, reason in result.failed.items():
        errors.warn(f"{name} failed: {reason} (see {folder_of(plan.workdir, name)}/log.txt)")
    for name, reason in result.skipped.items():
        errors.warn(f"{name} was not run: {reason}")
    if not result.failed:
        return 0
    errors.warn(f"{len(result.failed)} jobs failed; the same command tries them again")
    return errors.PARTIAL


def _report(workdir: Path) -> None:
    """Writes the report about all runs that are finished, whichever process made them."""
    from skin_jax.report import study as study_report
    from skin_jax.study import outcomes
    from skin_jax.study.plan import recorded

    with locked(workdir / ".report.lock", waiting_for=f"waiting for the report of {workdir}"):
        record = recorded(workdir)  # under the lock: another process may have added to the study
        classes, found = outcomes.read(workdir, record)
        planned = len(record["folds"]) * len(record["seeds"])
        levels = {
            name: study_report.Level(
                compared,
                plan_counts=dict.fromkeys(outcomes.at_level(record, name)["arms"], planned),
                **record["levels"].get(name, {"title": "", "value": 0.0}),
            )
            for name, compared in outcomes.compared(workdir, record, found).items()
        }
        chosen = record["confirmatory_level"]
        if (compared := levels[chosen].comparison) is None:
            where = f" at the level {chosen}" if chosen else ""
            print(f"no run{where} is finished yet: there is nothing to report", flush=True)
            return
        if record["claims"] and not classes.is_ham10000:
            errors.warn("the papers' claims are about the classes of HAM10000: they are left out")
        own = outcomes.at_level(record, chosen)
        arms, part, folds = own["arms"], record["part"], len(record["folds"])
        settings = {name: arm["settings"] for name, arm in arms.items()}
        title = f"Study of {len(arms)} arms over {folds} {part}{'s' * (folds != 1)}"
        if record["levels"]:
            title += f" at {len(record['levels'])} levels"
        study = study_report.Study(
            compared,
            classes,
            title=title,
            plan_counts=levels[chosen].plan_counts,
            levels=[levels[name] for name in record["levels"]],
            axis=record["axis"] or "",
            select=record["select"],
            part=record["part"],
            facts=outcomes.facts(workdir, record),
            descriptions=outcomes.descriptions(own),
            ratios={name: own["data"]["synthetic_ratio"] for name, own in settings.items()},
            claims=[study_report.CLAIMS[c] for c in record["claims"] if classes.is_ham10000],
            gan_arms=[n for n, s in settings.items() if s["needs"] or s["task"] != "classifier"],
            samples=outcomes.samples(workdir, record, classes),
        )
        page = study_report.write(workdir, study)
    print(kit.markdown(str(workdir), study_report.summary(study), workdir))
    print(f"full report: {page}", flush=True)


def run() -> None:
    """Runs the command."""
    command.run(main, load)


if __name__ == "__main__":
    run()
