"""Generates images of chosen classes with a trained run.

python -m skin_jax.generate --workdir W --out DIR [--classes a,b] [--seed S] [--step N]
    [--per_class N | --balance_to N | --ratio R]

A run with a generator for each class takes the one of the class that had the best score, or, with
--step, the one that was kept at that step, and so for every class.

A semi-supervised GAN, here that of the best checkpoint or of --step, draws images of no class in
particular. Each is stored as 8 bits, judged by the run's own discriminator and put into the class
that it finds most likely, if its confidence is at least --min_confidence and the class is not full.

The same seed gives the same images, however many are asked for and of whatever classes. The same
command goes on where it was ended. The exit status is 0, 1 (failure), 2 (usage or bad input) or 3
(some classes are not full after --max_tries images; what there is stays).
"""

import contextlib
import dataclasses
import io
import itertools
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from skin_jax.base import command, errors
from skin_jax.base.errors import UserError
from skin_jax.data.classes import CLASSES

if TYPE_CHECKING:
    import numpy as np

    from skin_jax import tasks
    from skin_jax.data.generated import Generated
    from skin_jax.eval.candidates import Candidates

FLAGS = flags.FLAGS

flags.DEFINE_string("workdir", None, "Folder of a trained run.")
flags.DEFINE_string("out", None, "Folder for the images and their manifest.csv.")
flags.DEFINE_list("classes", None, "Which classes (all that the run has).")
flags.DEFINE_integer("step", None, "Takes the generators of this step (the best ones).", 0)
flags.DEFINE_integer("per_class", None, "Images of each class (100).", lower_bound=1)
flags.DEFINE_integer(
    "balance_to", None, "Fill each class up to so many, real training images included.", 1
)
flags.DEFINE_float("ratio", None, "Times the real training images of each class.", lower_bound=0.0)
flags.DEFINE_integer("seed", 0, "Of the noise.", lower_bound=0, upper_bound=2**32 - 1)
flags.DEFINE_float("min_confidence", None, "The discriminator's, of its class (0.5).", 0.0, 1.0)
flags.DEFINE_integer(
    "max_tries", None, "Ends after so many (50 for each of the fullest class, at least 10,000).", 1
)

PROGRESS = "generation.json"
_PER_CLASS = 100
_MIN_CONFIDENCE = 0.5
_GRID = 64
_SECONDS_BETWEEN_SAVES = 5.0


@dataclasses.dataclass(frozen=True)
class Source:
    """Where the images of a folder come from.

    Attributes:
      stream: what is drawn, in order.
      settings: what makes these images and no others: `seed`, `run` and `train_split`, as in the
        manifest, and what else decides which of them come. A folder goes on with the same only.
      max_tries: how much of the stream to look at.
      walks: class name -> walks through its noise, uint8 [N, S, S, 3], WALK_COLUMNS images each;
        None where a class has no noise of its own.
    """

    stream: "Candidates"
    settings: Mapping[str, Any]
    max_tries: int
    walks: "Callable[[str], np.ndarray] | None" = None


def main(argv: list[str]) -> None:
    """The command line's work; see the module's docstring."""
    if argv[1:]:
        raise UserError(f"unexpected argument {argv[1]!r}; see --help")
    if not FLAGS.workdir or not FLAGS.out:
        raise UserError("give both --workdir=DIR and --out=DIR; see --help")
    chosen = None if FLAGS.classes is None else FLAGS.classes or [""]
    if unknown := [name for name in chosen or () if name not in CLASSES]:
        raise UserError(f"--classes: unknown class {unknown[0]!r}; known: {', '.join(CLASSES)}")
    given = [name for name in ("per_class", "balance_to", "ratio") if FLAGS[name].value is not None]
    if len(given) > 1:
        raise UserError(f"--{given[0]} and --{given[1]} exclude each other; give one of them")
    for name in ("ratio", "min_confidence"):
        value = FLAGS[name].value
        if value is not None and not math.isfinite(value):
            raise UserError(f"--{name} must be a finite number")
    workdir, out = Path(FLAGS.workdir), Path(FLAGS.out)

    # Imported here: they take seconds, and --help needs none of them.
    from skin_jax import tasks
    from skin_jax.base.files import locked
    from skin_jax.data import splits
    from skin_jax.train.run import SPLITS_FILE, reopen_task

    task, config = reopen_task(workdir)
    known: Sequence[str] = CLASSES
    source_of: Callable[[Path, tasks.Task, Mapping[str, int]], Source] = _judged_source
    if isinstance(task, tasks.GeneratesByClass):
        source_of, known = _class_source, [CLASSES[label] for label in task.labels]
        if missing := [name for name in chosen or () if name not in known]:
            raise UserError(
                f"--classes: {workdir} has no generator of {missing[0]}; it has those of "
                f"{', '.join(known)}"
            )
    elif not (isinstance(task, tasks.Generates) and isinstance(task, tasks.Classifies)):
        raise UserError(
            f"{workdir} holds a run of the task {config.task!r}, which does not generate images "
            "and sort them into classes"
        )
    wanted = quotas(
        splits.class_counts(workdir / SPLITS_FILE, "train"),
        known if chosen is None else chosen,
        per_class=FLAGS.per_class,
        balance_to=FLAGS.balance_to,
        ratio=FLAGS.ratio,
    )
    if not wanted:
        raise UserError("no class needs any images; raise --balance_to or --ratio")
    own = (out / PROGRESS).exists() or not out.is_dir()
    if not own and any(not path.name.startswith(".") for path in out.iterdir()):
        raise UserError(f"{out} holds other files, and no {PROGRESS}; give a new folder as --out")
    source = source_of(workdir, task, wanted)
    with contextlib.ExitStack() as stack:
        try:
            out.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(out / ".lock"))
        except BlockingIOError:
            raise UserError(f"another process is generating into {out}") from None
        except OSError as error:
            raise UserError(f"{out} cannot be written ({error.strerror})") from None
        fill(out, source, wanted)


def quotas(
    real: "np.ndarray",
    classes: Sequence[str],
    *,
    per_class: int | None,
    balance_to: int | None,
    ratio: float | None,
) -> dict[str, int]:
    """How many images of each class to generate, in the order of CLASSES, without the zeros.

    Args:
      real: int [7], images of each class in the run's training split.
      classes: names of those that are asked for.
      per_class: that many of each; 100 where none of the three is given.
      balance_to: what a class lacks to so many images, real and generated; a fuller one gets none.
      ratio: times the real images, rounded to the nearest, halves up.
    """
    counts = {name: int(real[label]) for label, name in enumerate(CLASSES) if name in classes}
    if balance_to is not None:
        wanted = {name: balance_to - count for name, count in counts.items()}
    elif ratio is not None:
        wanted = {name: math.floor(ratio * count + 0.5) for name, count in counts.items()}
    else:
        wanted = dict.fromkeys(counts, per_class or _PER_CLASS)
    return {name: count for name, count in wanted.items() if count > 0}


def _judged_source(workdir: Path, task: "tasks.Task", wanted: Mapping[str, int]) -> Source:
    """Images that the run draws and judges with one and the same state."""
    from skin_jax import tasks
    from skin_jax.base import devices
    from skin_jax.eval import candidates, runs

    assert isinstance(task, tasks.Generates)
    mesh, step = devices.make_mesh(1), FLAGS.step
    if step is None:
        state, step = runs.best_of(workdir, task, mesh)
    else:
        state = runs.state_at(workdir, task, mesh, step)
    least = _MIN_CONFIDENCE if FLAGS.min_confidence is None else FLAGS.min_confidence
    return Source(
        candidates.judged(task, state, step=step, seed=FLAGS.seed, min_confidence=least),
        {**_provenance(workdir, state), "step": step, "min_confidence": least},
        max_tries=FLAGS.max_tries or max(10_000, 50 * max(wanted.values())),
    )


def _class_source(workdir: Path, task: "tasks.Task", wanted: Mapping[str, int]) -> Source:
    """Images of each class by its own generator."""
    from skin_jax import tasks
    from skin_jax.base import devices
    from skin_jax.eval import candidates, runs

    assert isinstance(task, tasks.GeneratesByClass)
    for name in ("min_confidence", "max_tries"):
        if FLAGS[name].value is not None:
            raise UserError(
                f"leave out --{name}: {workdir} has a generator for each class, whose images need "
                "no judgement; it is for runs of the semi-supervised GAN"
            )
    mesh = devices.make_mesh(1)
    if FLAGS.step is not None:
        generators = runs.generators_at(workdir, task, mesh, FLAGS.step)
        steps = dict.fromkeys(wanted, FLAGS.step)
    else:
        generators, taken_at, scored = runs.best_generators(workdir, task, mesh)
        places = {CLASSES[label]: place for place, label in enumerate(task.labels)}
        steps = {name: int(taken_at[places[name]]) for name in wanted}
        if unscored := [name for name in wanted if not scored[places[name]]]:
            errors.warn(
                f"{workdir} has no score yet of its generators of {', '.join(unscored)}: the "
                "newest ones are taken"
            )
    sampler = candidates.ClassSampler(task, generators, FLAGS.seed)
    return Source(
        candidates.by_class(sampler, steps, wanted),
        {**_provenance(workdir, generators), "step": steps},
        max_tries=sum(wanted.values()),
        walks=sampler.walks,
    )


def _provenance(workdir: Path, weights: Any) -> dict[str, Any]:
    """The manifest's columns that are the same in every row."""
    from skin_jax.tasks import state
    from skin_jax.train.run import fitted_on

    return {
        "seed": FLAGS.seed,
        "run": f"{workdir.resolve().name}-{state.digest(weights)[:12]}",
        "train_split": fitted_on(workdir),
    }


def fill(out: Path, source: Source, wanted: Mapping[str, int]) -> None:
    """Fills the classes in the order of the stream, from where the folder stands; says the result.

    Images are written before the progress that counts them, and the manifest comes last. So
    whatever a kill leaves behind is made again, the same.

    Args:
      out: a folder of this program, or an empty one.
      source: of the images; a partial folder may go on with more tries.
      wanted: images of each class.

    Raises:
      UserError: the folder is one of other settings, or damaged; classes are not full (PARTIAL).
    """
    from PIL import Image
    from tqdm import tqdm

    from skin_jax.base.files import write_atomically
    from skin_jax.data import generated as generated_lib

    settings = {**source.settings, "images": dict(wanted)}
    shared = {key: settings[key] for key in ("seed", "run", "train_split")}
    tried, rows = _resumed(out, settings)
    counts = Counter(row.label for row in rows)
    if _full(counts, wanted) and (out / generated_lib.MANIFEST).exists():
        print(f"{out} is complete: {_summary(rows, wanted)}", flush=True)
        return

    def save() -> None:
        content = {
            "settings": settings,
            "tried": tried,
            "rows": [dataclasses.astuple(row) for row in rows],
        }
        write_atomically(out / PROGRESS, json.dumps(content) + "\n")

    left = 0 if _full(counts, wanted) else max(0, source.max_tries - tried)
    if left:
        (out / generated_lib.MANIFEST).unlink(missing_ok=True)
    save()  # first of all: it makes the folder one of these settings
    saved = time.monotonic()
    total = sum(wanted.values())
    with tqdm(total=total, initial=len(rows), desc="Generating", unit=" images") as bar:
        for candidate in itertools.islice(source.stream(tried), left):
            tried += 1
            if candidate and counts[candidate.label] < wanted.get(candidate.label, 0):
                name, index = candidate.label, candidate.index
                image = f"{name}/{name}_{settings['seed']}_{index}.png"
                encoded = io.BytesIO()
                Image.fromarray(candidate.pixels).save(encoded, format="PNG")
                write_atomically(out / image, encoded.getvalue())
                rows.append(
                    generated_lib.Generated(
                        image=image,
                        label=name,
                        index=index,
                        confidence=candidate.confidence,
                        step=candidate.step,
                        **shared,
                    )
                )
                counts[name] += 1
                bar.update()
            each = " ".join(f"{name} {counts[name]}/{count}" for name, count in wanted.items())
            bar.set_postfix_str(f"{tried} tried: {each}", refresh=False)
            if _full(counts, wanted):
                break
            if time.monotonic() - saved > _SECONDS_BETWEEN_SAVES:
                save()
                saved = time.monotonic()
    save()
    _write_grids(out, rows, source.walks)
    generated_lib.write(out, rows)
    if not _full(counts, wanted):
        raise UserError(
            f"after {tried} drawn images not every class is full: {_summary(rows, wanted)}; what "
            f"there is lies in {out}; raise --max_tries to go on, or lower --min_confidence in a "
            "new folder",
            errors.PARTIAL,
        )
    print(f"{out}: {_summary(rows, wanted)}", flush=True)


def _full(counts: Mapping[str, int], wanted: Mapping[str, int]) -> bool:
    return all(counts.get(name, 0) >= count for name, count in wanted.items())


def _summary(rows: "Sequence[Generated]", wanted: Mapping[str, int]) -> str:
    """Such as "mel 20 of 20 (the last is number 812), df 3 of 20 (the last is number 9120)"."""
    parts = []
    for name, count in wanted.items():
        indices = [row.index for row in rows if row.label == name]
        last = f" (the last is number {indices[-1]})" if indices else ""
        parts.append(f"{name} {len(indices)} of {count}{last}")
    return ", ".join(parts)


def _resumed(out: Path, settings: Mapping[str, Any]) -> "tuple[int, list[Generated]]":
    """How many images were drawn before, and which were kept; tidies up after a kill.

    Raises:
      UserError: the folder is one of other settings, or its progress is damaged.
    """
    from skin_jax.config import flatten
    from skin_jax.data.generated import MANIFEST, Generated

    tried, rows, before = 0, [], flatten(settings)
    path = out / PROGRESS
    try:
        content = json.loads(path.read_text())
        before = flatten(content["settings"])
        tried, rows = int(content["tried"]), [Generated(*row) for row in content["rows"]]
    except FileNotFoundError:
        pass  # a new folder
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({error!r}); give a new folder as --out") from None
    after = flatten(settings)
    differing = [
        f"{key}: {before.get(key, 'none')} there, {after.get(key, 'none')} now"
        for key in dict.fromkeys([*before, *after])
        if before.get(key) != after.get(key)
    ]
    if differing:
        raise UserError(
            f"{out} holds images of other settings; give them as they were, or a new folder as "
            "--out: " + "; ".join(differing)
        )
    if lost := [row.image for row in rows if not (out / row.image).exists()]:
        errors.warn(f"{len(lost)} images of {out} are gone, such as {lost[0]}: starting again")
        tried, rows = 0, []
        (out / MANIFEST).unlink(missing_ok=True)
    kept = {out / row.image for row in rows}
    stale = [p for name in CLASSES for p in out.glob(f"{name}/*{name}_{settings['seed']}_*")]
    stale += [p for name in (PROGRESS, MANIFEST) for p in out.glob(f".{name}.*")]
    for leftover in set(stale) - kept:
        leftover.unlink()
    return tried, rows


def _write_grids(
    out: Path, rows: "Sequence[Generated]", walks: "Callable[[str], np.ndarray] | None"
) -> None:
    import numpy as np
    from PIL import Image

    from skin_jax.data.generated import GRIDS
    from skin_jax.eval.candidates import WALK_COLUMNS
    from skin_jax.report import figures

    for name in CLASSES:
        shown = [out / row.image for row in rows if row.label == name][:_GRID]
        if shown:
            images = np.stack([np.asarray(Image.open(path)) for path in shown])
            figures.image_grid(out / GRIDS / f"{name}.png", images, columns=8)
            if walks:
                figures.image_grid(out / GRIDS / f"{name}_walk.png", walks(name), WALK_COLUMNS)


if __name__ == "__main__":
    command.run(main)
