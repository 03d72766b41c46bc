"""Fills a folder with images that a run generates, so that the same call resumes it."""

import contextlib
import dataclasses
import io
import itertools
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from skin_jax import tasks
from skin_jax.base import devices, errors, folder
from skin_jax.base.errors import UserError
from skin_jax.base.files import write_atomically
from skin_jax.config import flatten
from skin_jax.data import generated as generated_lib
from skin_jax.data.generated import GRIDS, MANIFEST, Generated
from skin_jax.eval import candidates, selection
from skin_jax.eval.candidates import Batch, Job
from skin_jax.eval.parts import Parts, Share
from skin_jax.tasks.state import digest
from skin_jax.training.run import Trained, fitted_on, trained

PROGRESS = "generation.json"
_PARTS = ".parts"

_PER_CLASS = 100
MIN_CONFIDENCE = 0.5
_LEAST_TRIES, _TRIES_AN_IMAGE = 10_000, 50
_GRID, _GRID_COLUMNS = 64, 8
_SECONDS_BETWEEN_SAVES = 5.0

DrawGrid = Callable[[Path, np.ndarray, int], None]
"""Writes images uint8 [N, S, S, 3] into a PNG, so many to a row."""


@dataclasses.dataclass(frozen=True)
class Amount:
    """How many images of each class: at most one of these is given, else 100.

    Attributes:
      per_class: that many of each.
      balance_to: what a class lacks to so many images, real and generated; a fuller one gets none.
      ratio: times the real training images of the class, rounded to the nearest, halves up.
    """

    per_class: int | None = None
    balance_to: int | None = None
    ratio: float | None = None

    def of(self, real: Mapping[str, int]) -> dict[str, int]:
        """Images to generate of each class, without the zeros, for real training images of each."""
        if self.balance_to is not None:
            wanted = {name: self.balance_to - count for name, count in real.items()}
        elif self.ratio is not None:
            wanted = {name: math.floor(self.ratio * count + 0.5) for name, count in real.items()}
        else:
            wanted = dict.fromkeys(real, self.per_class or _PER_CLASS)
        return {name: count for name, count in wanted.items() if count > 0}


@dataclasses.dataclass(frozen=True)
class Source:
    """Where the images of a folder come from.

    Attributes:
      stream: what is drawn, in order.
      settings: what makes these images and no others: `seed`, `run` and `train_split`, as in the
        manifest, and what else decides which of them come. A folder is resumed with the same only.
      max_tries: how much of the stream to look at.
      walks: a class -> walks through its noise, see `Sampler.walks`; None where the generator is
        not told a class.
      class_walks: a class -> walks from it to others, see `Sampler.class_walks`.
    """

    stream: candidates.Stream
    settings: Mapping[str, Any]
    max_tries: int
    walks: Callable[[str], np.ndarray] | None = None
    class_walks: Callable[[str], np.ndarray | None] | None = None


def generate(
    workdir: Path,
    out: Path,
    amount: Amount,
    draw_grid: DrawGrid,
    *,
    classes: Sequence[str] | None = None,
    seed: int = 0,
    step: int | None = None,
    truncation: float = 1.0,
    filter_by: Path | None = None,
    min_confidence: float | None = None,
    max_tries: int | None = None,
    share: Share | None = None,
) -> None:
    """Generates images of a run into a folder, or resumes a folder that is not full.

    Several processes may draw them, each with another `share`, in any order and on any machines
    that see the folder; a call without takes what they drew, and draws what they did not. The
    folder is the same as without them.

    Args:
      workdir: of the run.
      out: a folder of this program, or an empty one.
      amount: of images.
      draw_grid: writes pictures of many images.
      classes: names; None: all that the run draws.
      seed: of the noise, below 2**32.
      step: of the generators; None: the best ones.
      truncation: of the noise; see `candidates.Sampler`.
      filter_by: work folder of the classifier that says which images are kept; see `selection`.
      min_confidence: of the run's own judgement, where its generator is not told a class.
      max_tries: images to draw at most: of all classes together where the generator is not told
        one, else of each class, for `filter_by`.
      share: of the batches; the images are kept for a call without a share.

    Raises:
      UserError: anything that does not fit; classes that are not full at the end (PARTIAL).
    """
    run = trained(workdir)
    known = [run.classes.names[k] for k in run.task.classes_drawn(len(run.classes))]
    for name in classes or ():
        if name not in run.classes.names:
            raise UserError(
                f"--classes: unknown class {name!r}; known: {', '.join(run.classes.names)}"
            )
        if name not in known:
            raise UserError(
                f"--classes: {workdir} has no generator of {name}; it has those of "
                f"{', '.join(known)}"
            )
    run.ability("images_of")
    real = dict(zip(run.classes.names, run.train_counts.tolist(), strict=True))
    chosen = [name for name in known if classes is None or name in classes]
    wanted = amount.of({name: real[name] for name in chosen})
    if not wanted:
        raise UserError("no class needs any images; raise --balance_to or --ratio")
    folder.check_own(out, PROGRESS, "--out")
    if run.task.conditional:
        unused = {"min_confidence": min_confidence}
        if filter_by is None:
            unused["max_tries"] = max_tries
        for flag, value in unused.items():
            if value is not None:
                raise UserError(
                    f"leave out --{flag}: the generators of {workdir} are told the class, and "
                    "do not judge their images; it is for runs of the semi-supervised GAN"
                    + (", or for --filter" if flag == "max_tries" else "")
                )
        source = _conditional(run, wanted, seed, step, truncation, filter_by, max_tries)
    else:
        if filter_by is not None:
            raise UserError(
                f"leave out --filter: {workdir} judges its images itself, by --min_confidence"
            )
        least = MIN_CONFIDENCE if min_confidence is None else min_confidence
        most = max_tries or most_tries(max(wanted.values()))
        source = _judged(run, seed, step, truncation, least, most)
    parts = Parts(
        out / _PARTS,
        # How many are tried changes none of them.
        lambda: {key: value for key, value in source.settings.items() if key != "tries"},
        "images",
        make=share is not None,
    )
    if share is not None:
        count = draw_share(source, wanted, share, parts)
        print(
            f"{out}: share {share.number}/{share.of} is done, {count} batches; when all are, the "
            "same command without --shard puts the images together",
            flush=True,
        )
        return
    with folder.claimed(out, f"another process is generating into {out}"):
        draw = _draw_with(parts, source.stream.draw)
        source = dataclasses.replace(source, stream=dataclasses.replace(source.stream, draw=draw))
        try:
            fill(out, source, wanted, draw_grid)
        finally:
            if (out / MANIFEST).exists():  # nothing is left to draw
                parts.remove()


def draw_share(source: Source, wanted: Mapping[str, int], share: Share, parts: Parts) -> int:
    """Draws a share of the batches of a stream, and keeps them.

    It ends when the share has its part of the images of each class, or of the tries: how many
    others have found, it does not know.

    Args:
      source: of the images.
      wanted: images of each class, of all shares together.
      share: which batches.
      parts: where they are kept; those that are there are not drawn again.

    Returns:
      The number of batches of the share that are there.
    """
    stream, counts, done = source.stream, Counter[str](), 0

    def full(name: str) -> bool:
        return counts[name] * share.of >= wanted.get(name, 0)

    def own() -> Iterator[tuple[Job, range]]:
        for number, (job, indices) in enumerate(stream.jobs()):
            if job.first >= source.max_tries or all(full(name) for name in wanted):
                return
            if number in share and not (stream.told and full(job.name)):
                yield job, indices

    draw, jobs = _draw_with(parts, stream.draw, keep=True), own()
    with tqdm(desc="Drawing", unit=" batches") as bar:
        while group := [*itertools.islice(jobs, stream.at_once)]:
            drawn = draw([job for job, _ in group])
            for (job, indices), batch in zip(group, drawn, strict=True):
                found = [batch[index - job.first] for index in indices]
                counts.update(candidate.label for candidate in found if candidate)
            done += len(group)
            bar.update(len(group))
    return done


def _draw_with(
    parts: Parts, draw: Callable[[Sequence[Job]], list[Batch]], *, keep: bool = False
) -> Callable[[Sequence[Job]], list[Batch]]:
    """`draw` that takes batches from parts where they are there; `keep` adds the others to them."""

    def run(jobs: Sequence[Job]) -> list[Batch]:
        keys = {job: f"{job.name}_{job.first}" for job in jobs}
        kept = {job: parts.load(key) for job, key in keys.items()}
        missing = [job for job, arrays in kept.items() if arrays is None]
        drawn = dict(zip(missing, draw(missing), strict=True)) if missing else {}
        for job, batch in drawn.items() if keep else ():
            parts.save(keys[job], candidates.to_arrays(batch))
        return [
            drawn[job] if arrays is None else candidates.from_arrays(job, arrays)
            for job, arrays in kept.items()
        ]

    return run


def most_tries(images: int) -> int:
    """How many images of no class in particular to draw for some of one class, at most."""
    return max(_LEAST_TRIES, _TRIES_AN_IMAGE * images)


def _judged(
    run: Trained,
    seed: int,
    step: int | None,
    truncation: float,
    min_confidence: float,
    max_tries: int,
) -> Source:
    """Images that the run draws and judges with one and the same state."""
    mesh, names = devices.make_mesh(None), run.classes.names
    if step is None:
        state, step = run.best_state(mesh)
    else:
        state = run.state_at(mesh, step)
    sampler = candidates.Sampler(
        run.task, run.task.generators(state), names, seed, run.workdir, truncation, mesh
    )
    predict = candidates.predictor(run.task, state, run.workdir, mesh=mesh)
    return Source(
        candidates.judged(sampler, predict, names, step=step, min_confidence=min_confidence),
        {
            **_provenance(run, state, seed),
            "step": step,
            "truncation": truncation,
            "min_confidence": min_confidence,
        },
        max_tries,
    )


def _conditional(
    run: Trained,
    wanted: Mapping[str, int],
    seed: int,
    step: int | None,
    truncation: float,
    filter_by: Path | None,
    max_tries: int | None,
) -> Source:
    """Images of each class by a generator that is told it, all of them or those of a judgement."""
    mesh = devices.make_mesh(None)
    drawn = run.drawn_from(mesh, step)
    labels = {name: run.classes.index(name) for name in wanted}
    steps = {name: int(drawn.steps[label]) for name, label in labels.items()}
    if unscored := [name for name, label in labels.items() if not drawn.scored[label]]:
        errors.warn(
            f"{run.workdir} has no score yet for its generators of {', '.join(unscored)}: the "
            "newest ones are used"
        )
    sampler = candidates.Sampler(
        run.task, drawn.generators, run.classes.names, seed, run.workdir, truncation, mesh
    )
    settings = {**_provenance(run, drawn.generators, seed), "step": steps, "truncation": truncation}
    if filter_by is None:
        tries, stream = dict(wanted), candidates.by_class(sampler, steps, wanted)
    else:
        classifier = trained(filter_by)
        judge = selection.judgement(classifier, run)
        tries = {name: max_tries or _TRIES_AN_IMAGE * count for name, count in wanted.items()}
        stream = candidates.by_class(sampler, steps, tries, judge)
        settings |= {"filter": classifier.name, "tries": tries}
    return Source(
        stream,
        settings,
        max_tries=sum(tries.values()),
        walks=sampler.walks,
        class_walks=lambda name: sampler.class_walks(name, [k for k in wanted if k != name]),
    )


def _provenance(run: Trained, weights: tasks.task.PyTree, seed: int) -> dict[str, Any]:
    """The manifest's columns that are the same in every row."""
    return {
        "seed": seed,
        "run": f"{run.name}-{digest(weights)[:12]}",
        "train_split": fitted_on(run.workdir),
    }


def fill(out: Path, source: Source, wanted: Mapping[str, int], draw_grid: DrawGrid) -> None:
    """Fills the classes in the order of the stream, from where the folder stands; says the result.

    Images are written before the progress that counts them, and the manifest comes last. So
    whatever a kill leaves behind is created again, the same.

    Args:
      out: a folder that this process has alone.
      source: of the images; a partial folder may be resumed with more tries.
      wanted: images of each class.
      draw_grid: writes pictures of many images.

    Raises:
      UserError: the folder is one of other settings, or damaged; classes are not full (PARTIAL).
    """
    settings = {**source.settings, "images": dict(wanted)}
    shared = {key: settings[key] for key in ("seed", "run", "train_split")}
    tried, rows = _resumed(out, settings)
    counts = Counter(row.label for row in rows)

    def full() -> bool:
        return all(counts[name] >= count for name, count in wanted.items())

    def save() -> None:
        content = {"settings": settings, "tried": tried, "rows": [*map(dataclasses.astuple, rows)]}
        write_atomically(out / PROGRESS, json.dumps(content) + "\n")

    if full() and (out / MANIFEST).exists():
        print(f"{out} is complete: {_summary(rows, wanted)}", flush=True)
        return
    left = 0 if full() else max(0, source.max_tries - tried)
    if left:
        (out / MANIFEST).unlink(missing_ok=True)
    save()  # first of all: it makes the folder one of these settings
    saved = time.monotonic()
    total = sum(wanted.values())
    with tqdm(total=total, initial=len(rows), desc="Generating", unit=" images") as bar:
        stream = source.stream(tried, lambda name: counts[name] >= wanted.get(name, 0))
        for candidate in itertools.islice(stream, left):
            tried += 1
            if candidate and counts[candidate.label] < wanted.get(candidate.label, 0):
                name, index = candidate.label, candidate.index
                image = f"{name}/{name}_{settings['seed']}_{index}.png"
                encoded = io.BytesIO()
                Image.fromarray(candidate.pixels).save(encoded, format="PNG")
                write_atomically(out / image, encoded.getvalue())
                made = (image, name, index, candidate.confidence)
                rows.append(Generated(*made, step=candidate.step, **shared))
                counts[name] += 1
                bar.update()
            each = " ".join(f"{name} {counts[name]}/{count}" for name, count in wanted.items())
            bar.set_postfix_str(f"{tried} tried: {each}", refresh=False)
            if full():
                break
            if time.monotonic() - saved > _SECONDS_BETWEEN_SAVES:
                save()
                saved = time.monotonic()
    save()
    _write_grids(out, rows, wanted, source, draw_grid)
    generated_lib.write(out, rows)
    if not full():
        raise UserError(
            f"after drawing {tried} images, not every class is full: {_summary(rows, wanted)}; the "
            f"images so far are in {out}; raise --max_tries to continue, or choose "
            "less strictly in a new folder",
            errors.PARTIAL,
        )
    print(f"{out}: {_summary(rows, wanted)}", flush=True)


def _summary(rows: Sequence[Generated], wanted: Mapping[str, int]) -> str:
    """Such as "mel 20 of 20 (the last is number 812), df 3 of 20 (the last is number 9120)"."""
    parts = []
    for name, count in wanted.items():
        indices = [row.index for row in rows if row.label == name]
        last = f" (the last is number {indices[-1]})" if indices else ""
        parts.append(f"{name} {len(indices)} of {count}{last}")
    return ", ".join(parts)


def _resumed(out: Path, settings: Mapping[str, Any]) -> tuple[int, list[Generated]]:
    """How many images were drawn before, and which were kept; tidies up after a kill."""
    tried, rows = 0, []
    with contextlib.suppress(FileNotFoundError):  # a new folder
        before, tried, rows = folder.read_record(
            out / PROGRESS,
            lambda content: (
                flatten(content["settings"]),
                int(content["tried"]),
                [Generated(*row) for row in content["rows"]],
            ),
            "give a new folder as --out",
        )
        folder.check_same(out, "images", before, flatten(settings), "--out")
    if lost := [row.image for row in rows if not (out / row.image).exists()]:
        errors.warn(
            f"{len(lost)} images of {out} are missing, such as {lost[0]}: starting from the "
            "beginning"
        )
        tried, rows = 0, []
        (out / MANIFEST).unlink(missing_ok=True)
    kept = {out / row.image for row in rows}
    stale = [
        path
        for name in settings["images"]
        if (out / name).is_dir()
        for path in (out / name).iterdir()
        if path.name.lstrip(".").startswith(f"{name}_{settings['seed']}_")
    ]
    stale += [path for name in (PROGRESS, MANIFEST) for path in out.glob(f".{name}.*")]
    for leftover in set(stale) - kept:
        leftover.unlink()
    return tried, rows


def _write_grids(
    out: Path, rows: Sequence[Generated], names: Iterable[str], source: Source, draw_grid: DrawGrid
) -> None:
    for name in names:
        shown = [out / row.image for row in rows if row.label == name][:_GRID]
        if shown:
            images = np.stack([np.asarray(Image.open(path)) for path in shown])
            draw_grid(out / GRIDS / f"{name}.png", images, _GRID_COLUMNS)
            if source.walks:
                walks = source.walks(name)
                draw_grid(out / GRIDS / f"{name}_walk.png", walks, candidates.WALK_COLUMNS)
            between = source.class_walks(name) if source.class_walks else None
            if between is not None:
                draw_grid(out / GRIDS / f"{name}_classes.png", between, candidates.WALK_COLUMNS)
