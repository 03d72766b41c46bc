"""The Python interface: what the commands do with runs, over all rooms."""

import contextlib
import datetime
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from skin_jax import exports, tasks
from skin_jax.base import command, devices, errors
from skin_jax.base.errors import UserError
from skin_jax.config import NO_TRACKER, flatten, is_procedural, without_folders
from skin_jax.data import images as images_lib
from skin_jax.data.classes import Classes
from skin_jax.data.images import AnyImage
from skin_jax.data.splits import SPLITS
from skin_jax.eval import calibration, candidates, evaluators, generation, inference, runs
from skin_jax.eval.evaluation import Evaluation
from skin_jax.eval.member import Member
from skin_jax.eval.metrics import evaluate as metrics
from skin_jax.report import figures, kit
from skin_jax.report import run as run_report
from skin_jax.training import checkpoints as checkpoint_lib
from skin_jax.training import loop, trackers
from skin_jax.training import run as run_lib
from skin_jax.training.history import HISTORY, duration, read_history, read_starts

__all__ = ["Run", "load", "metrics", "train"]

_RATE = "images_per_second"


def train(config: ConfigDict, workdir: str | Path) -> None:
    """Trains a run to its end, or resumes it, then evaluates its best checkpoint on test.

    The processes of a distributed run (`base.devices.start_distributed`) all call it.

    Args:
      config: of `skin_jax.config.load`, such as `load("classifier:smoke")`.
      workdir: the run's folder; one that holds an interrupted run is resumed.

    Raises:
      UserError: bad input, a run that cannot be resumed, a diverged run.
      Ended: by SIGTERM (status 143) or Ctrl-C (130); everything is saved.
    """
    workdir = Path(workdir)
    with run_lib.session(workdir) as preemption:
        experiment = run_lib.start(config, workdir, evaluators.check)
        folder, score = workdir / run_lib.CHECKPOINTS, experiment.task.score
        with checkpoint_lib.Checkpoints(folder, score) as checkpoints:
            try:
                with _tracked(experiment, workdir) as tracker:
                    _train(experiment, checkpoints, workdir, preemption, tracker)
            except (OSError, checkpoint_lib.SaveError) as error:
                if devices.several():  # the others do not know of it
                    devices.leave(f"error: {workdir}: {error}", errors.FAILURE)
                raise


@contextlib.contextmanager
def _tracked(experiment: run_lib.Experiment, workdir: Path) -> Iterator[trackers.Tracker]:
    """The tracker of a run while it trains; process 0 alone reports."""
    tracker, completed = trackers.Tracker(), False
    log = experiment.config.log
    with devices.together():
        if devices.is_first():
            tracker = trackers.start(workdir, tensorboard=log.tensorboard, tracker=log.tracker)
            tracker.settings(without_folders(flatten(experiment.config)))
    try:
        yield tracker
        completed = True
    finally:
        tracker.close(completed=completed)


def _pictures(
    experiment: run_lib.Experiment, workdir: Path, tracker: trackers.Tracker
) -> evaluators.Pictures:
    """Pictures go into `samples/`, and to the tracker, which has the histograms alone."""

    def drawn(step: int, draw: Callable[[Path], None]) -> None:
        path = workdir / "samples" / f"step_{step}.png"
        draw(path)
        tracker.picture("samples", step, path)

    log = experiment.config.log  # the same in all processes, which compute together
    return evaluators.Pictures(
        samples=lambda step, real, generated: drawn(
            step, lambda path: figures.real_and_generated(path, real, generated, columns=8)
        ),
        by_class=lambda step, shown: drawn(
            step, lambda path: figures.real_and_generated_by_class(path, shown)
        ),
        histograms=tracker.histograms if log.tensorboard or log.tracker != NO_TRACKER else None,
    )


def _train(
    experiment: run_lib.Experiment,
    checkpoints: checkpoint_lib.Checkpoints,
    workdir: Path,
    preemption: checkpoint_lib.Preemption,
    tracker: trackers.Tracker,
) -> None:
    watching = evaluators.make(experiment, _pictures(experiment, workdir, tracker))
    state = loop.train(experiment, checkpoints, workdir, preemption, watching, tracker)
    notes = [run_report.DEMO_NOTE] * is_procedural(experiment.config.data)
    lead, sections = list(notes), list[kit.Section]()
    results: dict[str, float] = {}
    for evaluator in watching:
        results |= evaluator.results(state)
        if (summary := evaluator.summary(state)) is not None:
            table = kit.Table(*summary)
            sections.append(kit.Section("The best generators", [table]))
            print(f"\nthe best generator of each class:\n\n{kit.pipes(table)}")
            print(f"\ndraw from them with skin_jax.generate --workdir={workdir} --out=FOLDER")
    if tasks.can(experiment.task, "predict"):
        split = experiment.config.final_split
        evaluation = runs.evaluate_split(experiment, checkpoints, split)
        if evaluation is not None:
            if devices.is_first():
                sections += run_report.write_evaluation(workdir / "eval" / split, evaluation)
            lead.insert(0, run_report.headline(evaluation))
            score = experiment.task.score.name
            print(f"\nbest checkpoint by {score}: step {evaluation.step}; on {split}:\n")
            print("\n\n".join([run_report.table_one(evaluation), *notes]))
            found = evaluation.metrics
            values = {"accuracy": found.accuracy, "ece": found.ece}
            values |= {"balanced_accuracy": found.balanced_accuracy}
            values |= {f"macro_{name}": value for name, value in found.macro.items()}
            results |= {f"{split}_{name}": value for name, value in values.items()}
    tracker.results(
        experiment.num_steps, {f"final/{name}": value for name, value in results.items()}
    )
    if devices.is_first():
        page = _write_page(experiment, lead, sections, workdir)
        print(f"\nfull report: {page}", flush=True)
    devices.wait_for_all("the report is written")


def _write_page(
    experiment: run_lib.Experiment,
    lead: Sequence[str],
    sections: Sequence[kit.Section],
    workdir: Path,
) -> Path:
    """Writes `report.html` of a run; the lead and the sections go before what is always there."""
    examples, train = experiment.examples, experiment.indices("train")
    classes, labels = examples.classes, examples.labels[train]
    counts = {split: experiment.class_counts(split) for split in SPLITS}
    if experiment.synthetic is not None:
        generated = np.bincount(experiment.synthetic.labels, minlength=len(classes))
        counts["generated, for training"] = generated
    shown = np.concatenate(
        [train[labels == c][: run_report.SAMPLES_PER_CLASS] for c in range(len(classes))]
    )
    config = experiment.config
    settings, history = without_folders(flatten(config)), read_history(workdir / HISTORY)
    without = len(experiment.unlabelled_indices)
    unlabelled = {"training images without a label": without} if without else {}
    lesions = ", procedural lesions" * is_procedural(config.data)
    return run_report.write_page(
        workdir,
        classes=classes,
        title=f"skin_jax: {settings['task']}{lesions}",
        facts={"steps": experiment.num_steps, **unlabelled, **settings},
        sections=sections,
        class_counts=counts,
        history=history,
        lead=[*lead, _made(experiment, history, workdir)],
        samples=(examples.images[shown], examples.labels[shown]),
    )


def _made(
    experiment: run_lib.Experiment, history: Sequence[Mapping[str, Any]], workdir: Path
) -> str:
    """When, with what and on what a run was made."""
    rates = [(row["step"], row[_RATE]) for row in history if row.get(_RATE)]
    steps = zip([0, *(step for step, _ in rates)], rates, strict=False)
    seconds = sum((step - before) * experiment.rows / rate for before, (step, rate) in steps)
    machines = dict.fromkeys(start.get("hardware") for start in read_starts(workdir / HISTORY))
    return (
        f"{datetime.date.today()}, skin_jax {command.version()}, jax {jax.__version__}, on "
        f"{'; '.join(filter(None, machines))}. Training steps took {duration(seconds)}."
    )


def load(folder: str | Path) -> "Run":
    """Opens a trained run, from its work folder or from a folder that it was exported to.

    Raises:
      UserError: it is none of a run, or damaged.
    """
    return Run(run_lib.trained(Path(folder)))


class Run:
    """A trained run, by its best checkpoint.

    Weights are read at the first use and stay in memory; functions are compiled once for each size
    of batch, and use all devices. An image is a path, a PIL image, or an array uint8 [H, W, 3] or
    [H, W]; methods take one, a sequence of them, or uint8 [N, H, W, 3], and return a row for each.
    Images are resized to squares of `image_size` pixels, as in training.

    All methods raise a UserError where the run's task cannot do what is asked, where it has no
    checkpoint, and for images that cannot be read.
    """

    def __init__(self, trained: run_lib.Trained):
        """Wraps an opened run; see `load`."""
        self._run = trained
        self._member = Member(trained, devices.make_mesh(None))

    def __repr__(self) -> str:
        """Such as `<Run classifier of runs/mine: benign, malignant>`."""
        names = ", ".join(self.classes.names)
        return f"<Run {tasks.task.task_name(self._run.task)} of {self._run.workdir}: {names}>"

    @property
    def classes(self) -> Classes:
        """The n classes in the order of columns and labels: `classes.names`, `classes.titles`."""
        return self._run.classes

    @property
    def image_size(self) -> int:
        """S, the side of the images that it sees and generates, in pixels."""
        return self._member.image_size

    def can(self, ability: str) -> bool:
        """Whether it has an ability.

        Args:
          ability: "predict", "explain", "features" or "generate"; "walk" from class to class;
            "calibrated" (`predict` takes it) or "unlikeness", which `skin_jax.eval.calibrate`
            prepares.
        """
        if ability in ("calibrated", "unlikeness"):
            if not self.can("predict"):
                return False
            kept = self._member.calibration if ability == "calibrated" else self._member.reference
            return kept is not None
        names = {"generate": "images_of", "walk": "images_between"}
        return tasks.can(self._run.task, names.get(ability, ability))

    @property
    def generates(self) -> tuple[str | None, ...]:
        """The labels that `generate` takes: names of classes, and None where it needs none."""
        if not self.can("generate"):
            return ()
        task, names = self._run.task, self.classes.names
        drawn = (names[label] for label in task.classes_drawn(len(names)))
        return (*(() if task.conditional else (None,)), *drawn)

    def predict(
        self,
        images: AnyImage | Sequence[AnyImage],
        *,
        tta: bool = False,
        calibrated: bool = False,
        batch_size: int = 64,
    ) -> np.ndarray:
        """Class probabilities float64 [N, n]; see the class for images.

        Args:
          images: N of them.
          tta: averages over the 8 orientations of each image.
          calibrated: at the temperature that `skin_jax.eval.calibrate` found.
          batch_size: images at a time.

        Raises:
          UserError: also where calibrated ones are asked for, and there is no temperature.
        """
        views, member = inference.views(tta), self._member
        temperature = member.temperature(views) if calibrated else 1.0  # refused before any work
        found = [
            member.probabilities(batch, views)[:count]
            for batch, count in self._batches(images, batch_size)
        ]
        probabilities = np.concatenate(found)
        return calibration.applied(probabilities, temperature) if calibrated else probabilities

    def features(
        self, images: AnyImage | Sequence[AnyImage], *, batch_size: int = 64
    ) -> np.ndarray:
        """Features before the head, float32 [N, D]; arguments as `predict`."""
        return np.concatenate(
            [
                self._member.call("features", batch)[:count]
                for batch, count in self._batches(images, batch_size)
            ]
        )

    def unlikeness(
        self, images: AnyImage | Sequence[AnyImage], *, batch_size: int = 64
    ) -> np.ndarray:
        """How unlike its training images pictures are, float64 [N] in percent.

        It is the share of the validation images that are more alike. `skin_jax.predict --details`
        flags pictures above 95.

        Raises:
          UserError: also where `skin_jax.eval.calibrate` has not prepared the run.
        """
        return np.concatenate(
            [
                self._member.percentile(batch)[:count]
                for batch, count in self._batches(images, batch_size)
            ]
        )

    def explain(
        self,
        images: AnyImage | Sequence[AnyImage],
        labels: Sequence[str | int] | None = None,
        *,
        batch_size: int = 64,
    ) -> np.ndarray:
        """Heat maps float32 [N, h, w] in [0, 1] of what speaks for a class (Grad-CAM).

        Args:
          images: N of them; see the class.
          labels: N names or numbers of classes; None: those that it predicts.
          batch_size: images at a time.
        """
        chosen = None if labels is None else np.array([*map(self._label, labels)], np.int32)
        found, start = [], 0
        for batch, count in self._batches(images, batch_size):
            if chosen is None:
                predicted = self._member.probabilities(batch, inference.views(tta=False))
                shown = predicted.argmax(axis=1).astype(np.int32)
            else:
                shown = np.resize(chosen[start : start + count], len(batch))
            found.append(self._member.call("explain", batch, shown)[:count])
            start += count
        if chosen is not None and len(chosen) != start:
            raise UserError(f"{len(chosen)} labels for {start} images; give one for each")
        return np.concatenate(found)

    def generate(self, label: str | int | None = None, n: int = 1, seed: int = 0) -> np.ndarray:
        """Images uint8 [n, S, S, 3]; the first of more are the same.

        They are those of `skin_jax.generate` with the same seed.

        Args:
          label: name or number of their class. None, where the generator is not told any (a
            semi-supervised GAN): images as they come; with a class, those of them that the run
            itself takes for it with a confidence of at least 0.5.
          n: how many, at least 1.
          seed: of the noise, below 2**32.

        Raises:
          UserError: no such class, or hardly an image is taken for it.
        """
        name, sampler = self._drawn_as(label), self._sampler.seeded(seed)
        names = self.classes.names
        if self._run.task.conditional or label is None:
            firsts = range(0, n, candidates.BATCH)
            return np.concatenate([sampler.batch(name, first) for first in firsts])[:n]
        drawn = candidates.judged(
            sampler, self._judge, names, step=0, min_confidence=generation.MIN_CONFIDENCE
        )(0, lambda _: False)
        found: list[np.ndarray] = []
        for candidate in itertools.islice(drawn, generation.most_tries(n)):
            if candidate is not None and candidate.label == name:
                found.append(candidate.pixels)
                if len(found) == n:
                    return np.stack(found)
        raise UserError(
            f"only {len(found)} of the first {generation.most_tries(n)} images are taken for "
            f"{name}; ask for fewer, or leave the label out"
        )

    def walk(
        self, label: str | int | None = None, to: str | int | None = None, seed: int = 0
    ) -> np.ndarray:
        """Eight images uint8 [8, S, S, 3] on a straight line from one image to another.

        They are those of the grids of `skin_jax.generate` with the same seed.

        Args:
          label: name or number of a class; None as in `generate`.
          to: another class, to which the first image of this one changes, with its noise. None: the
            line leads through the noise, to the second image of the same class.
          seed: of the noise, below 2**32.

        Raises:
          UserError: no such class, or a generator that does not know what lies between classes.
        """
        name, sampler = self._drawn_as(label), self._sampler.seeded(seed)
        if to is None:
            return sampler.walks(name)[: candidates.WALK_COLUMNS]
        walked = sampler.class_walks(name, [self._drawn_as(to)])
        if walked is None:
            raise UserError(
                f"{self._run.workdir} does not know what lies between classes; leave `to` out to "
                "walk within one"
            )
        return walked

    def evaluate(self, data_dir: str | Path | None = None, *, split: str = "test") -> Evaluation:
        """Evaluates it as `skin_jax.eval` does; the figures are `.metrics` of what it returns.

        For images in memory there is `skin_jax.metrics(run.predict(images), labels)`.

        Args:
          data_dir: a labelled folder of the run's classes, as `skin_jax.prepare` takes it. None: a
            split of the run's own images.
          split: "train", "val" or "test", where no folder is given.

        Raises:
          UserError: the images are gone or others than in training, or the split has none.
        """
        if data_dir is not None:
            return runs.evaluate_examples(self._run, runs.labelled(self._run, Path(data_dir)))
        found = runs.evaluate_own(self._run.workdir, split)
        if found is None:
            raise UserError(f"{self._run.workdir} has no images in its split {split!r}")
        return found

    def export(
        self,
        path: str | Path,
        *,
        part: str | None = None,
        precision: str = "float32",
        images: AnyImage | Sequence[AnyImage] | None = None,
    ) -> dict[str, Any]:
        """Exports it to a file or, without a suffix, to a folder; see `skin_jax.exports.write`.

        Args:
          path: of a .onnx, .stablehlo, .tflite or .safetensors, or of a folder.
          part: "predict" or "generate"; None: the first that it can.
          precision: "float32", or of a .tflite also "float16" or "int8".
          images: for "int8": some hundred like those to be predicted.

        Returns:
          What travels in the file's metadata.

        Raises:
          UserError: also for an unknown suffix, and for a package that is not installed.
        """
        pixels = None
        if images is not None:
            batches = self._batches(images, 64)
            pixels = np.concatenate([batch[:count] for batch, count in batches])
        return exports.write(self._run, Path(path), part=part, precision=precision, images=pixels)

    def _drawn_as(self, label: str | int | None) -> str:
        """The class to ask a generator for; any, where it is not told one."""
        self._run.ability("images_of")
        names = self.classes.names
        name = names[0] if label is None else names[self._label(label)]
        known = [known for known in self.generates if known is not None]
        if self._run.task.conditional and (label is None or name not in known):
            raise UserError(f"it has generators of {', '.join(known)}; give one as the label")
        return name

    @cached_property
    def _sampler(self) -> candidates.Sampler:
        run, mesh = self._run, devices.make_mesh(1)
        if run.task.conditional:
            generators = run.drawn_from(mesh, None).generators
        else:
            generators = run.task.generators(run.best_state(mesh)[0])
        return candidates.Sampler(run.task, generators, self.classes.names, 0, run.workdir)

    @cached_property
    def _judge(self) -> Callable[[np.ndarray], np.ndarray]:
        state = self._run.best_state(devices.make_mesh(1))[0]
        return candidates.predictor(self._run.task, state, self._run.workdir)

    def _batches(
        self, images: AnyImage | Sequence[AnyImage], batch_size: int
    ) -> Iterator[tuple[np.ndarray, int]]:
        """Batches uint8 [B, S, S, 3] and how many of their images count: the first ones.

        B is a power of two times the devices, so that few sizes are compiled.
        """
        sources = images_lib.sources(images)
        wanted, devices_used = min(len(sources), max(batch_size, 1)), self._member.mesh.size
        size = devices_used * 2 ** max(0, math.ceil(math.log2(wanted / devices_used)))

        def decoded(place: int) -> np.ndarray:
            try:
                return images_lib.decode(sources[place], self.image_size)
            except images_lib.UnreadableImage as error:
                source = sources[place]
                name = source if isinstance(source, Path) else f"image {place}"
                raise UserError(f"{name} cannot be read: {error}") from None

        with ThreadPoolExecutor(images_lib.THREADS) as pool:
            for start in range(0, len(sources), size):
                places = range(start, min(start + size, len(sources)))
                pixels = np.stack([*pool.map(decoded, places)])
                indices = np.minimum(np.arange(size), len(pixels) - 1)  # the last one is repeated
                yield pixels[indices], len(pixels)

    def _label(self, label: str | int) -> int:
        names = self.classes.names
        if isinstance(label, str) and label in names:
            return names.index(label)
        if isinstance(label, int | np.integer) and 0 <= label < len(names):
            return int(label)
        raise UserError(f"there is no class {label!r}; there are {', '.join(names)}")
