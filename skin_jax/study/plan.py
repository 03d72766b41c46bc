"""A study: arms x folds x seeds of one configuration file, and the jobs that it stands for.

Its configuration (`study`, `arm`, `training` and `generation` make its sections) holds the settings
of runs as `overrides` of their own configuration files; None leaves what the file has. Later ones
win: what all jobs share (`data`, `log` and so on), what all arms share (`every_arm`), and what is
an arm's own.

W/plan.json                     what the study is; arms, folds and seeds may be added, none goes
W/runs/<arm>/fold<f>_seed<s>/   work folder of a run
W/steps/<step>/fold<f>/         work folder of a GAN, or a folder of generated images
W/jobs/<job>/                   what `skin_jax.study.jobs` knows of each of them
"""

import dataclasses
import hashlib
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from skin_jax import config as config_lib
from skin_jax.base import folder
from skin_jax.base.errors import UserError
from skin_jax.base.files import locked, write_json
from skin_jax.base.settings import STUDY, Setting, completed, declare, defaults
from skin_jax.config import load
from skin_jax.data.classes import HAM10000
from skin_jax.data.generated import MANIFEST
from skin_jax.data.splits import NUM_FOLDS

FILE_NAME = "plan.json"
PREDICTIONS = "eval/test/predictions.csv"
TRAINING_PROOFS = ("report.html",)  # the last file that skin_jax.main writes
RUN_PROOFS = (*TRAINING_PROOFS, PREDICTIONS)
"""Files of a work folder that are there once a run is finished, and not before."""

CLAIMS = ("A", "B")

_SHARED = (
    "data",
    "precision",
    "eval_batch_size",
    "sharding",
    "watchdog_seconds",
    "log",
    "checkpoint",
)
_OWN = (  # set by the study, or not to be chosen where folds are
    "task",
    "distributed",
    "num_epochs",
    "data.fold",
    "data.split",
    "data.synthetic",
    "data.synthetic_allow_foreign",
)
_OF_ARMS = ("data.sampling", "data.oversample_to", "data.synthetic_ratio")
_ROLES = ("control", "confirmatory", "isolating")
_OPTIONS = ("per_class", "balance_to", "ratio", "seed", "min_confidence", "max_tries")
_MORE_OF_THE_SAME = "max_tries"  # may be raised: a partial folder goes on
_GENERATION = "generation.json"  # of skin_jax.generate: settings and progress

_DECLARED = {
    "folds": Setting(tuple(range(NUM_FOLDS)), "Folds that each arm is run on.", int),
    "seeds": Setting((0, 1), "Seeds that each arm is run with, in each fold.", int),
    "control": Setting(None, "Arm that the others are compared with.", str),
    "confirmatory": Setting(None, "Arm that the study is to confirm; the others explore.", str),
    "isolating": Setting(None, "That arm but for its generated images: their own effect.", str),
    "claims": Setting((), "Claims of papers A and B to set next to the results.", str),
}
declare(STUDY, _DECLARED)


def study(arms: ConfigDict) -> ConfigDict:
    """A study without steps and arms.

    Args:
      arms: a configuration with the keys that all arms have, for `every_arm`.
    """
    config = defaults(_DECLARED)
    shared = _unchanged(config_lib.base(), (*_OWN, *_OF_ARMS))
    for key in _SHARED:
        config[key] = shared.get_ref(key) if shared.get_type(key) is not ConfigDict else shared[key]
    config.every_arm = _unchanged(arms, (*_OWN, "seed"))
    config.steps = ConfigDict(sort_keys=False)
    config.arms = ConfigDict(sort_keys=False)
    return config


def arm(
    file: str,
    title: str,
    overrides: Mapping[str, Any] | None = None,
    *,
    needs: str | None = None,
) -> ConfigDict:
    """One arm of a study: runs of `skin_jax.main`.

    Args:
      file: of configs/, with its variant.
      title: in tables.
      overrides: dotted key -> value.
      needs: name of the step whose generated images are trained with.
    """
    section = _of_file(file, overrides, (*_OWN, "seed"))
    section.update(title=title, needs=placeholder(str))
    section.update(needs=needs)
    return section


def training(file: str, overrides: Mapping[str, Any] | None = None) -> ConfigDict:
    """A step that trains a generator for each fold; arguments as `arm` has them."""
    return _of_file(file, overrides, (*_OWN, *_OF_ARMS))


def generation(source: str, **options: float) -> ConfigDict:
    """A step that generates images for each fold.

    Args:
      source: name of the step that trains the generator.
      options: of `skin_jax.generate`: per_class, balance_to or ratio, seed, min_confidence,
        max_tries.
    """
    section = ConfigDict({"source": source})
    for name in _OPTIONS:
        section[name] = placeholder(float if name in ("ratio", "min_confidence") else int)
    section.update(options)
    return section


def _of_file(file: str, overrides: Mapping[str, Any] | None, without: Sequence[str]) -> ConfigDict:
    section = ConfigDict({"file": file, "overrides": _unchanged(load(file), without)})
    section.overrides.lock()
    _update(section.overrides, overrides or {}, file)
    return section


def _unchanged(config: ConfigDict, without: Sequence[str], prefix: str = "") -> ConfigDict:
    """The same keys with the same types, but no values."""
    result = ConfigDict()
    for key in config:
        if (name := f"{prefix}{key}") in without:
            continue
        if isinstance(config[key], ConfigDict):
            result[key] = _unchanged(config[key], without, f"{name}.")
        else:
            result[key] = placeholder(config.get_type(key))
    return result


def _update(config: ConfigDict, changes: Mapping[str, Any], where: str) -> None:
    try:
        config.update_from_flattened_dict(changes)
    except (TypeError, ValueError, KeyError) as error:
        reason = str(error.args[0] if error.args else error).splitlines()[0]
        raise UserError(f"an override does not fit {where}: {reason}") from None


@dataclasses.dataclass(frozen=True)
class Job:
    """One command of a study.

    Attributes:
      name: also its folder in the work folder.
      group: such jobs differ in fold and seed alone: "runs/<arm>" or "steps/<step>".
      needs: names of the jobs whose results it takes.
      folder: where its result goes.
      command: that makes the result, or goes on with it.
      proofs: files of the folder that are there once it is finished, and not before.
      steps: of the optimiser; 0 where images are generated.
      images: that go through these steps.
    """

    name: str
    group: str
    needs: tuple[str, ...]
    folder: Path
    command: tuple[str, ...]
    proofs: tuple[str, ...]
    steps: int
    images: int

    @property
    def units(self) -> int:
        """What its cost is proportional to: steps, or one folder of images."""
        return self.steps or 1

    def missing(self) -> str:
        """A file that it has not written yet, or what is not in it; "" once it is finished."""
        for proof in self.proofs:
            if not (self.folder / proof).exists():
                return f"no {proof}"
        if _GENERATION in self.proofs:
            try:
                content = json.loads((self.folder / _GENERATION).read_text())
                wanted = sum(content["settings"]["images"].values())
                if len(content["rows"]) < wanted:
                    return f"{len(content['rows'])} of {wanted} images"
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                return f"a damaged {_GENERATION}"
        return ""


@dataclasses.dataclass(frozen=True)
class Plan:
    """The jobs of a study.

    Attributes:
      workdir: of the study.
      record: what `plan.json` keeps of it.
      code: SHA-256 of the package's sources, which a run may depend on.
      jobs: name -> job; each after those that it needs.
      runs: names of the arms' runs, seed by seed, fold by fold, so that early results are paired.
    """

    workdir: Path
    record: dict[str, Any]
    code: str
    jobs: Mapping[str, Job]
    runs: tuple[str, ...]

    def with_needs(self, names: Sequence[str]) -> list[Job]:
        """Jobs of these names, each after those that it needs."""
        found: dict[str, Job] = {}

        def add(name: str) -> None:
            for need in self.jobs[name].needs:
                add(need)
            found.setdefault(name, self.jobs[name])

        for name in names:
            add(name)
        return list(found.values())

    def share(self, shard: int, shards: int) -> list[str]:
        """The runs of one of several shards, in the order of `runs`; shards differ by one run.

        Those that need generated images are dealt first, so that every shard has some of them and
        no two begin with the same.
        """
        dealt = sorted(self.runs, key=lambda name: not self.jobs[name].needs)[shard::shards]
        return [name for name in self.runs if name in dealt]


def make(config: ConfigDict, workdir: Path) -> Plan:
    """The plan of a study; it reads configuration files only.

    Raises:
      UserError: a setting that does not fit.
    """
    _check(config)
    arms = {name: _Resolved.of(config, name, is_arm=True) for name in config.arms}
    _check_lengths(arms)
    needed = {section.needs for section in config.arms.values() if section.needs}
    needed |= {config.steps[name].source for name in needed}
    steps = {
        name: _Resolved.of(config, name, is_arm=False)
        for name in config.steps
        if name in needed and "file" in config.steps[name]
    }
    generations = {
        name: {k: v for k, v in config.steps[name].items() if v is not None}
        for name in config.steps
        if name in needed and name not in steps
    }
    jobs: dict[str, Job] = {}
    for name, step in steps.items():
        for fold in config.folds:
            _add(jobs, step.job(workdir, f"steps/{name}/fold{fold}", fold=fold))
    for name, options in generations.items():
        for fold in config.folds:
            _add(jobs, _generation_job(workdir, name, options, fold))
    runs = []
    for seed in config.seeds:
        for fold in config.folds:
            for name, resolved in arms.items():
                need = config.arms[name].needs
                job = resolved.job(
                    workdir,
                    run_name(name, fold, seed),
                    fold=fold,
                    seed=seed,
                    needs=f"steps/{need}/fold{fold}" if need else None,
                )
                _add(jobs, job)
                runs.append(job.name)
    record = {
        "control": config.control,
        "confirmatory": config.confirmatory,
        "isolating": config.isolating,
        "folds": list(config.folds),
        "seeds": list(config.seeds),
        "claims": list(config.claims),
        "steps": {name: {"settings": step.settings.to_dict()} for name, step in steps.items()}
        | {name: {"settings": options} for name, options in generations.items()},
        "arms": {
            name: {
                "title": config.arms[name].title,
                "settings": resolved.settings.to_dict() | {"needs": config.arms[name].needs},
            }
            for name, resolved in arms.items()
        },
    }
    return Plan(workdir, record, _code(), jobs, tuple(runs))


def _code() -> str:
    digest, package = hashlib.sha256(), Path(__file__).parents[1]
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package)}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def _check_lengths(arms: "Mapping[str, _Resolved]") -> None:
    """Refuses arms of which one learns longer than another."""
    steps = {name: arm.steps for name, arm in arms.items()}
    if len(set(steps.values())) > 1:
        raise UserError(
            "arms are compared after equally many steps, but here they have "
            + ", ".join(f"{name} {count}" for name, count in steps.items())
            + "; give --config.every_arm.num_steps=N, and none to an arm of its own"
        )


def run_name(arm: str, fold: int, seed: int) -> str:
    """Name of the job that is one run of an arm."""
    return f"runs/{arm}/fold{fold}_seed{seed}"


def _add(jobs: dict[str, Job], job: Job) -> None:
    jobs[job.name] = job


@dataclasses.dataclass(frozen=True)
class _Resolved:
    """What an arm, or a training step, is in full: its settings and how to give them."""

    file: str
    overrides: Mapping[str, Any]
    settings: ConfigDict
    is_arm: bool

    @classmethod
    def of(cls, config: ConfigDict, name: str, *, is_arm: bool) -> "_Resolved":
        section = config.arms[name] if is_arm else config.steps[name]
        layers = [ConfigDict({key: config[key] for key in _SHARED})]
        layers += [config.every_arm] if is_arm else []
        overrides: dict[str, Any] = {}
        for layer in (*layers, section.overrides):
            overrides |= {k: v for k, v in _leaves(layer) if v is not None}
        where = f"{'arm' if is_arm else 'step'} {name} ({section.file})"
        settings = load(section.file)
        settings.lock()
        _update(settings, overrides, where)
        if settings.num_steps is None:
            raise UserError(
                f"{where} has no number of steps, and epochs of different folds differ; give "
                f"--config.{'every_arm' if is_arm else f'steps.{name}.overrides'}.num_steps=N"
            )
        checked = settings.copy_and_resolve_references()
        if is_arm and section.needs:
            checked.data.synthetic = "generated"  # in a run there is a folder
        try:
            config_lib.validate(checked)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        config_lib.normalize(settings)
        return cls(section.file, overrides, settings, is_arm)

    @property
    def steps(self) -> int:
        """Optimiser steps: whole dispatches."""
        dispatch = self.settings.steps_per_dispatch
        return -(-self.settings.num_steps // dispatch) * dispatch

    def job(
        self,
        workdir: Path,
        name: str,
        *,
        fold: int,
        seed: int | None = None,
        needs: str | None = None,
    ) -> Job:
        own = {**self.overrides, "data.fold": fold}
        if seed is not None:
            own["seed"] = seed
        if needs is not None:
            own["data.synthetic"] = str(workdir / needs)
        settings, folder = self.settings, workdir / name
        classes = 1
        if "classes" in settings:  # without names all that the data have: who knows how many?
            classes = len(settings.classes or HAM10000.names)
        return Job(
            name=name,
            group=name.rpartition("/")[0],
            needs=(needs,) if needs else (),
            folder=folder,
            command=_command(
                "skin_jax.main",
                f"--config={self.file}",
                f"--workdir={folder}",
                *(f"--config.{key}={_flag(value)}" for key, value in own.items()),
            ),
            proofs=RUN_PROOFS if self.is_arm else TRAINING_PROOFS,
            steps=self.steps,
            images=self.steps * settings.batch_size * classes,
        )


def _generation_job(workdir: Path, name: str, options: Mapping[str, Any], fold: int) -> Job:
    need = f"steps/{options['source']}/fold{fold}"
    folder = workdir / "steps" / name / f"fold{fold}"
    return Job(
        name=f"steps/{name}/fold{fold}",
        group=f"steps/{name}",
        needs=(need,),
        folder=folder,
        command=_command(
            "skin_jax.generate",
            f"--workdir={workdir / need}",
            f"--out={folder}",
            *(f"--{key}={value}" for key, value in options.items() if key != "source"),
        ),
        proofs=(MANIFEST, _GENERATION),
        steps=0,
        images=0,
    )


def _command(module: str, *flags: str) -> tuple[str, ...]:
    return (sys.executable, "-u", "-m", module, *flags)


def _flag(value: Any) -> str:
    return value if isinstance(value, str) else repr(value)


def _leaves(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values; tuples stay as they are, as flags take no lists."""
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _check(config: ConfigDict) -> None:
    for key, allowed in (("folds", range(NUM_FOLDS)), ("seeds", range(2**31))):
        values = list(config[key])
        if not values or len(set(values)) < len(values) or any(v not in allowed for v in values):
            what = f"0 to {NUM_FOLDS - 1}" if key == "folds" else "whole numbers from 0"
            raise UserError(
                f"config.{key} is {tuple(values)}; it takes {what}, each once, such as (0,1)"
            )
    for name in (*config.arms, *config.steps):
        if not re.fullmatch(r"\w+", name):
            raise UserError(
                f"{name!r} is no name of an arm or a step: take letters, digits and underscores"
            )
    config_lib.choice(config.control, tuple(config.arms), "control")
    if config.confirmatory is not None:
        others = tuple(name for name in config.arms if name != config.control)
        config_lib.choice(config.confirmatory, others, "confirmatory")
    if config.isolating is not None:
        others = tuple(n for n in config.arms if n not in (config.control, config.confirmatory))
        config_lib.choice(config.isolating, others, "isolating")
        if config.confirmatory is None:
            raise UserError(
                "config.isolating names what config.confirmatory is compared with, and that is "
                "not given: give both or neither"
            )
    for claim in config.claims:
        config_lib.choice(claim, CLAIMS, "claims")
    generations = {name: step for name, step in config.steps.items() if "source" in step}
    for name, section in config.arms.items():
        if section.needs is not None:
            config_lib.choice(section.needs, tuple(generations), f"arms.{name}.needs")
    trainings = tuple(name for name in config.steps if name not in generations)
    for name, step in generations.items():
        config_lib.choice(step.source, trainings, f"steps.{name}.source")


def register(plan: Plan) -> dict[str, Any]:
    """Makes the work folder that of this study, or joins what it adds to what is there.

    Returns:
      The record of the folder: all arms, folds and seeds that were ever planned here.

    Raises:
      UserError: the folder belongs to something else, or an arm or a step was another one.
    """
    try:
        with locked(plan.workdir / ".plan.lock", waiting_for=f"waiting for {plan.workdir}"):
            merged = check(plan)
            write_json(plan.workdir / FILE_NAME, merged)
            return merged
    except OSError as error:
        raise UserError(f"{plan.workdir} cannot be a work folder: {error}") from error


def check(plan: Plan) -> dict[str, Any]:
    """`register` without writing anything."""
    now = json.loads(json.dumps(plan.record))
    folder.check_own(plan.workdir, FILE_NAME, "--workdir")
    if not (plan.workdir / FILE_NAME).exists():
        return now
    before = recorded(plan.workdir)
    folder.check_same(
        plan.workdir,
        "a study",
        _fixed(before, now),
        _fixed(now, before),
        "--workdir (arms, folds and seeds may be added)",
    )
    return now | {
        "folds": sorted({*before["folds"], *now["folds"]}),
        "seeds": sorted({*before["seeds"], *now["seeds"]}),
        "steps": before["steps"] | now["steps"],
        "arms": before["arms"] | now["arms"],
    }


def _fixed(record: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """What may not change between two records of one study, flat."""
    found = {f"config.{key}": record[key] for key in _ROLES}
    for kind in ("steps", "arms"):
        for name in record[kind].keys() & other[kind].keys():
            settings = completed(config_lib.flatten(record[kind][name]["settings"]))
            found |= {
                f"{kind}.{name}, config.{key}": value
                for key, value in settings.items()
                if key != _MORE_OF_THE_SAME and not config_lib.is_neutral(key)
            }
    lesions = "procedural lesions" if is_procedural(record) else "images of a folder"
    return found | {"config.data.dir": lesions}


def is_procedural(record: Mapping[str, Any]) -> bool:
    """Whether a study's images are procedural lesions; all its arms have the same images."""
    return config_lib.is_procedural(next(iter(record["arms"].values()))["settings"]["data"])


def recorded(workdir: Path) -> dict[str, Any]:
    """The record of a study's work folder.

    Raises:
      UserError: there is none, or it is damaged.
    """

    def parse(content: dict[str, Any]) -> dict[str, Any]:
        for key in (*_ROLES, "folds", "seeds", "claims", "steps", "arms"):
            content[key]
        return content

    try:
        return folder.read_record(workdir / FILE_NAME, parse, "restore it from a copy")
    except FileNotFoundError:
        raise UserError(
            f"{workdir} is not the work folder of a study: it has no {FILE_NAME}"
        ) from None
