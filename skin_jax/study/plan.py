"""A study: arms x levels x folds x seeds of one configuration file, and the jobs it stands for.

Its configuration holds the settings of runs as `overrides` of their own configuration files; None
leaves what the file has. Later ones win: what all jobs share (`data`, `log` and so on), what all
arms share (`every_arm`), what is an arm's own, and what is a level's.

A study of levels repeats its arms at each of them, such as shares of the labels: arms are compared
within a level, and the report draws them over the levels. Such an arm is named <arm>/<level>.

A study of few images has subsets in the place of folds: the lesions of each class that
`data.split_counts` takes, drawn anew by each split seed; all others are tested on.

W/plan.json                     what the study is; arms, folds and seeds may be added, none goes
W/runs/<arm>/fold<f>_seed<s>/   work folder of a run; or subset<k>_seed<s>
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
PREDICTIONS = "eval/{}/predictions.csv"  # of the split that runs are compared on
TRAINING_PROOFS = ("report.html",)  # the last file that skin_jax.main writes

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
    "final_split",
    "data.fold",
    "data.split",
    "data.synthetic",
    "data.synthetic_allow_foreign",
)
_OF_ARMS = (
    "data.sampling",
    "data.sampling_exponent",
    "data.oversample_to",
    "data.synthetic_ratio",
)
_ROLES = ("control", "confirmatory", "isolating", "confirmatory_level", "axis", "select")
_OPTIONS = ("per_class", "balance_to", "ratio", "seed", "min_confidence", "max_tries", "filter")
_MORE_OF_THE_SAME = "max_tries"  # may be raised: a partial folder goes on
_GENERATION = "generation.json"  # of skin_jax.generate: settings and progress

_UNSAID: dict[str, Any] = {
    "confirmatory_level": None,
    "axis": None,
    "select": "test",
    "part": "fold",
    "levels": {},
}
"""What a plan.json without these keys, of an earlier version, means."""

_DECLARED = {
    "folds": Setting(tuple(range(NUM_FOLDS)), "Folds that each arm is run on.", int),
    "subsets": Setting(
        (), "In the place of folds: seeds of the split of config.data.split_counts.", int
    ),
    "seeds": Setting((0, 1), "Seeds that each arm is run with, in each fold.", int),
    "control": Setting(None, "Arm that the others are compared with.", str),
    "confirmatory": Setting(None, "Arm that the study is to confirm; the others explore.", str),
    "isolating": Setting(None, "That arm but for its generated images: their own effect.", str),
    "confirmatory_level": Setting(None, "Level at which that is to be confirmed.", str),
    "axis": Setting(None, "What the levels' values are, in figures.", str),
    "select": Setting(
        "test",
        "Split that runs are compared on: val while settings are chosen, so that nothing is "
        "chosen by test figures.",
        choices=("val", "test"),
    ),
    "claims": Setting((), "Claims of papers A and B to set next to the results.", str),
}
declare(STUDY, _DECLARED)


def study(arms: ConfigDict) -> ConfigDict:
    """A study without steps and arms; `arms` has the keys that all arms have, for `every_arm`."""
    config = defaults(_DECLARED)
    shared = _unchanged(config_lib.base(), (*_OWN, *_OF_ARMS))
    for key in _SHARED:
        config[key] = shared.get_ref(key) if shared.get_type(key) is not ConfigDict else shared[key]
    config.every_arm = _unchanged(arms, (*_OWN, "seed"))
    for kind in ("steps", "arms", "levels"):
        config[kind] = ConfigDict(sort_keys=False)
    return config


def level(value: float, title: str, overrides: Mapping[str, Any]) -> ConfigDict:
    """One level of a study: all arms that have it, with these overrides last.

    Args:
      value: its place on the report's axis.
      title: in tables, such as "10 % of the labels".
      overrides: dotted key -> value, of settings that all tasks have.
    """
    section = ConfigDict({"value": float(value), "title": title})
    section.overrides = _unchanged(config_lib.base(), (*_OWN, "seed"))
    section.overrides.lock()
    _update(section.overrides, overrides, f"level {title}")
    return section


def arm(
    file: str,
    title: str,
    overrides: Mapping[str, Any] | None = None,
    *,
    needs: str | None = None,
    levels: Sequence[str] | None = None,
) -> ConfigDict:
    """One arm of a study: runs of `skin_jax.main`.

    Args:
      file: of configs/, with its variant.
      title: in tables.
      overrides: dotted key -> value.
      needs: name of the step whose generated images are trained with.
      levels: names of those that it has; None: all.
    """
    section = _of_file(file, overrides, (*_OWN, "seed"))
    section.update(title=title, needs=placeholder(str), levels=placeholder(tuple))
    section.needs, section.levels = needs, levels if levels is None else tuple(levels)
    return section


def training(file: str, overrides: Mapping[str, Any] | None = None) -> ConfigDict:
    """A step that trains a generator for each fold; arguments as `arm` has them."""
    return _of_file(file, overrides, (*_OWN, *_OF_ARMS))


def generation(source: str, **options: float | str) -> ConfigDict:
    """A step that generates images for each fold by what the step `source` trains.

    The options are some of `_OPTIONS`, which are those of `skin_jax.generate`; `filter` is the name
    of an arm, whose run of the first seed chooses the images that are kept.
    """
    section = ConfigDict({"source": source})
    kinds = {"ratio": float, "min_confidence": float, "filter": str}
    for name in _OPTIONS:
        section[name] = placeholder(kinds.get(name, int))
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
    """One command of a study."""

    name: str  # also of its folders in the work folder
    needs: tuple[str, ...]  # names of the jobs whose results it takes
    folder: Path  # where its result goes
    command: tuple[str, ...]  # that makes the result, or resumes making it
    proofs: tuple[str, ...]  # files of the folder that are there once it is finished, not before
    steps: int = 0  # of the optimiser; none where images are generated
    images: int = 0  # that go through these steps
    warms_up: bool = False  # whether its learning rate may have steps of warm-up

    @property
    def group(self) -> str:
        """The group of jobs that differ in fold and seed alone: "runs/<arm>" or "steps/<step>"."""
        return self.name.rpartition("/")[0]

    @property
    def units(self) -> int:
        """The quantity that its cost is proportional to: steps, or one folder of images."""
        return self.steps or 1

    def missing(self) -> str:
        """A file that it has not written yet, or what is not in it; "" once it is finished."""

        def progress(content: Mapping[str, Any]) -> tuple[int, int]:
            return len(content["rows"]), sum(content["settings"]["images"].values())

        for proof in self.proofs:
            if not (self.folder / proof).exists():
                return f"no {proof}"
        if _GENERATION in self.proofs:
            try:
                there, wanted = folder.read_record(self.folder / _GENERATION, progress, "")
            except (UserError, FileNotFoundError):
                return f"a damaged {_GENERATION}"
            if there < wanted:
                return f"{there} of {wanted} images"
        return ""


@dataclasses.dataclass(frozen=True)
class Plan:
    """The jobs of a study."""

    workdir: Path
    record: dict[str, Any]  # what `plan.json` keeps of it
    code: str  # SHA-256 of the package's sources, which a run may depend on
    jobs: Mapping[str, Job]  # by name, each after those that it needs
    runs: tuple[str, ...]  # seed by seed, fold by fold, so that early results are paired

    def with_needs(self, names: Sequence[str]) -> list[Job]:
        """Jobs of these names, each after those that it needs."""
        found: dict[str, Job] = {}
        for name in names:
            found |= {job.name: job for job in self.with_needs(self.jobs[name].needs)}
            found[name] = self.jobs[name]
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
    placed = [
        (name, level)
        for level in config.levels or (None,)
        for name, section in config.arms.items()
        if level in (section.levels or (level,))
    ]
    arms = {arm_name(name, level): _resolve(config, "arm", name, level) for name, level in placed}
    steps = {name: arm.steps for name, arm in arms.items()}
    if len(set(steps.values())) > 1:
        raise UserError(
            "arms are compared after equally many steps, but here they have "
            + ", ".join(f"{name} {count}" for name, count in steps.items())
            + "; give --config.every_arm.num_steps=N, and none to an arm of its own"
        )
    needed = {section.needs for section in config.arms.values() if section.needs}
    sources = {config.steps[name].source for name in needed}
    generators = {name: _resolve(config, "step", name) for name in config.steps if name in sources}
    generations = {
        name: {k: v for k, v in config.steps[name].items() if v is not None}
        for name in config.steps
        if name in needed
    }
    part, folds = ("subset", config.subsets) if config.subsets else ("fold", config.folds)
    jobs = [
        generator.job(workdir, f"steps/{name}/{part}{fold}", {part_setting(part): fold})
        for name, generator in generators.items()
        for fold in folds
    ]
    jobs += [
        _generation_job(workdir, name, options, f"{part}{fold}", config.seeds[0])
        for name, options in generations.items()
        for fold in folds
    ]
    runs = [
        arm.job(
            workdir,
            run_name(name, f"{part}{fold}", seed),
            {part_setting(part): fold, "seed": seed, "final_split": config.select},
            f"steps/{arm.needs}/{part}{fold}" if arm.needs else None,
        )
        for seed in config.seeds
        for fold in folds
        for name, arm in arms.items()
    ]
    record = {
        **{key: config[key] for key in _ROLES},
        **{key: list(config[key]) for key in ("seeds", "claims")},
        "part": part,
        "folds": list(folds),
        "steps": {name: {"settings": step.settings.to_dict()} for name, step in generators.items()}
        | {name: {"settings": options} for name, options in generations.items()},
        "arms": {
            name: {"title": arm.title, "settings": arm.settings.to_dict() | {"needs": arm.needs}}
            for name, arm in arms.items()
        },
        "levels": {
            name: {"title": level.title, "value": level.value}
            for name, level in config.levels.items()
        },
    }
    named = {job.name: job for job in (*jobs, *runs)}
    return Plan(workdir, record, _code(), named, tuple(run.name for run in runs))


def _code() -> str:
    digest, package = hashlib.sha256(), Path(__file__).parents[1]
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package)}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def run_proofs(select: str) -> tuple[str, ...]:
    """Files that are in the work folder of an arm's run once it is finished, and not before."""
    return (*TRAINING_PROOFS, PREDICTIONS.format(select))


def arm_name(arm: str, level: str | None) -> str:
    """Name of an arm at a level, in plans and folders."""
    return f"{arm}/{level}" if level else arm


def part_setting(part: str) -> str:
    """The setting of a run that is its fold or its subset."""
    return {"fold": "data.fold", "subset": "data.split_seed"}[part]


def run_name(arm: str, part: str, seed: int) -> str:
    """Name of the job that is one run of an arm, by its `arm_name`, on "fold0" or "subset0"."""
    return f"runs/{arm}/{part}_seed{seed}"


@dataclasses.dataclass(frozen=True)
class _Resolved:
    """An arm, or a training step, in full: its settings and how to give them."""

    file: str
    overrides: Mapping[str, Any]
    settings: ConfigDict
    proofs: tuple[str, ...]
    title: str | None  # of an arm
    needs: str | None  # the step whose generated images an arm takes

    @property
    def steps(self) -> int:
        """Optimiser steps: whole dispatches."""
        dispatch = self.settings.steps_per_dispatch
        return -(-self.settings.num_steps // dispatch) * dispatch

    def job(self, workdir: Path, name: str, own: Mapping[str, Any], need: str | None = None) -> Job:
        given = {**self.overrides, **own}
        if need is not None:
            given["data.synthetic"] = str(workdir / need)
        classes = 1
        if "classes" in self.settings:  # without names all that the data have: who knows how many?
            classes = len(self.settings.classes or HAM10000.names)
        flags = [f"--config={self.file}", f"--workdir={workdir / name}"]
        flags += [
            f"--config.{key}={value if isinstance(value, str) else repr(value)}"
            for key, value in given.items()
        ]
        command = _command("skin_jax.main", flags)
        images = self.steps * self.settings.batch_size * classes
        needs = (need,) if need else ()
        return Job(
            name,
            needs,
            workdir / name,
            command,
            self.proofs,
            self.steps,
            images,
            warms_up="warmup_steps" in self.settings.get("optimizer", {}),
        )


def _resolve(config: ConfigDict, kind: str, name: str, level: str | None = None) -> _Resolved:
    """Puts an "arm", or a "step" that trains, together from what the study says of it."""
    section = config[f"{kind}s"][name]
    layers = [ConfigDict({key: config[key] for key in _SHARED}), section.overrides]
    if kind == "arm":
        layers.insert(1, config.every_arm)
    if level is not None:
        layers.append(config.levels[level].overrides)
    overrides = {k: v for layer in layers for k, v in _leaves(layer) if v is not None}
    where = f"{kind} {arm_name(name, level)} ({section.file})"
    settings = load(section.file)
    settings.lock()
    _update(settings, overrides, where)
    if settings.num_steps is None:
        raise UserError(
            f"{where} has no number of steps, and epochs of different folds differ; give "
            f"--config.{'every_arm' if kind == 'arm' else f'steps.{name}.overrides'}.num_steps=N"
        )
    checked = settings.copy_and_resolve_references()
    if section.get("needs"):
        checked.data.synthetic = "generated"  # in a run there is a folder
    try:
        config_lib.validate(checked)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    config_lib.normalize(settings)
    proofs = run_proofs(config.select) if kind == "arm" else TRAINING_PROOFS
    named = section.get("title"), section.get("needs")
    return _Resolved(section.file, overrides, settings, proofs, *named)


def _generation_job(
    workdir: Path, step: str, options: Mapping[str, Any], part: str, seed: int
) -> Job:
    name, needs = f"steps/{step}/{part}", [f"steps/{options['source']}/{part}"]
    flags = [f"--workdir={workdir / needs[0]}", f"--out={workdir / name}"]
    for key, value in options.items():
        if key == "filter":
            needs.append(run_name(value, part, seed))
            flags.append(f"--filter={workdir / needs[-1]}")
        elif key != "source":
            flags.append(f"--{key}={value}")
    command = _command("skin_jax.generate", flags)
    return Job(name, tuple(needs), workdir / name, command, (MANIFEST, _GENERATION))


def _command(module: str, flags: Sequence[str]) -> tuple[str, ...]:
    return (sys.executable, "-u", "-m", module, *flags)


def _leaves(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values; tuples stay as they are, as flags take no lists."""
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _check(config: ConfigDict) -> None:
    numbers = range(2**31)
    for key, allowed in (("folds", range(NUM_FOLDS)), ("subsets", numbers), ("seeds", numbers)):
        values = list(config[key])
        missing = not values and key != "subsets"
        if missing or len(set(values)) < len(values) or any(v not in allowed for v in values):
            what = f"0 to {NUM_FOLDS - 1}" if key == "folds" else "whole numbers from 0"
            raise UserError(
                f"config.{key} is {tuple(values)}; it takes {what}, each once, such as (0,1)"
            )
    if bool(config.subsets) != bool(config.data.split_counts):
        raise UserError(
            "subsets are drawn by config.data.split_counts: give both, such as --config.subsets="
            '"(0,1,2)" and --config.data.split_counts="(30,10)", or neither'
        )
    for name in (*config.arms, *config.steps, *config.levels):
        if not re.fullmatch(r"\w+", name):
            raise UserError(
                f"{name!r} cannot be the name of an arm, a step or a level; use letters, digits "
                "and underscores"
            )
    others = [name for name in config.arms if name != config.control]
    generations = [name for name, step in config.steps.items() if "source" in step]
    trainings = [name for name in config.steps if name not in generations]
    free = [name for name, arm in config.arms.items() if not arm.needs]  # of generated images
    choices: list[tuple[str | None, Sequence[str], str]] = [
        (config.confirmatory, others, "confirmatory"),
        (config.isolating, [n for n in others if n != config.confirmatory], "isolating"),
        *((claim, CLAIMS, "claims") for claim in config.claims),
        (config.confirmatory_level, tuple(config.levels), "confirmatory_level"),
        *((arm.needs, generations, f"arms.{name}.needs") for name, arm in config.arms.items()),
        *(
            (level, tuple(config.levels), f"arms.{name}.levels")
            for name, arm in config.arms.items()
            for level in arm.levels or ()
        ),
        *((config.steps[n].source, trainings, f"steps.{n}.source") for n in generations),
        *((config.steps[n].filter, free, f"steps.{n}.filter") for n in generations),
    ]
    config_lib.choice(config.control, tuple(config.arms), "control")
    for value, options, key in choices:
        if value is not None:
            config_lib.choice(value, options, key)
    if config.isolating is not None and config.confirmatory is None:
        raise UserError(
            "config.isolating names what config.confirmatory is compared with, and that is "
            "not given: give both or neither"
        )
    if bool(config.levels) != bool(config.confirmatory_level):
        raise UserError(
            "a study of levels says at which its arms are looked at first: give both "
            "config.levels and config.confirmatory_level, or neither"
        )
    for name, section in config.arms.items():
        if section.needs and config.levels:
            raise UserError(
                f"arm {name} takes generated images, which are made for a fold and not for a "
                "level; make each level a study of its own"
            )
        needed = tuple(config.levels) if name == config.control else (config.confirmatory_level,)
        compared = name in (config.control, config.confirmatory, config.isolating)
        if compared and section.levels and (gone := set(needed) - set(section.levels)):
            raise UserError(
                f"arm {name} lacks the level {min(gone)}, at which others are compared with it; "
                f"add it to config.arms.{name}.levels"
            )


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
    flag = "--workdir (arms, folds and seeds may be added)"
    fixed = _fixed(before, now), _fixed(now, before)
    folder.check_same(plan.workdir, "a study", *fixed, flag)
    more = {key: sorted({*before[key], *now[key]}) for key in ("folds", "seeds")}
    return now | more | {kind: before[kind] | now[kind] for kind in ("steps", "arms", "levels")}


def _fixed(record: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that may not change between two records of one study, flat."""
    lesions = "procedural lesions" if is_procedural(record) else "images of a folder"
    found = {f"config.{key}": record[key] for key in _ROLES} | {"config.data.dir": lesions}
    found["folds or subsets"] = record["part"]
    for kind in ("steps", "arms"):
        for name in record[kind].keys() & other[kind].keys():
            settings = completed(config_lib.flatten(record[kind][name]["settings"]))
            found |= {
                f"{kind}.{name}, config.{key}": value
                for key, value in settings.items()
                if key != _MORE_OF_THE_SAME and not config_lib.is_neutral(key)
            }
    return found


def is_procedural(record: Mapping[str, Any]) -> bool:
    """Whether a study's images are procedural lesions; all its arms have the same images."""
    return config_lib.is_procedural(next(iter(record["arms"].values()))["settings"]["data"])


def recorded(workdir: Path) -> dict[str, Any]:
    """The record of a study's work folder.

    Raises:
      UserError: there is none, or it is damaged.
    """

    def parse(content: dict[str, Any]) -> dict[str, Any]:
        keys = (*_ROLES, "part", "folds", "seeds", "claims", "steps", "arms", "levels")
        return {key: (_UNSAID | content)[key] for key in keys}

    try:
        return folder.read_record(workdir / FILE_NAME, parse, "restore it from a copy")
    except FileNotFoundError:
        raise UserError(
            f"{workdir} is not the work folder of a study: it has no {FILE_NAME}"
        ) from None
