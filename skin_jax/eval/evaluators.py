"""Evaluators: once an epoch each looks at the state of a run, prints, draws, and gives scores.

Pictures are handed to the functions that `make` was given: nothing here writes files.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from skin_jax import tasks
from skin_jax.base.devices import (
    as_first,
    compiler_options,
    is_first,
    platform,
    replicated,
    to_global,
)
from skin_jax.base.errors import warn
from skin_jax.config import NO_WEIGHTS
from skin_jax.eval import features, metrics, quality
from skin_jax.eval.audit import PATCHED_IMAGES
from skin_jax.eval.inference import make_predictor
from skin_jax.tasks.augment import to_uint8
from skin_jax.training.run import Experiment

PyTree = Any
Scalars = dict[str, float]
Summary = tuple[Sequence[str], Sequence[Sequence[str]]]

COLLAPSED = 0.25
"""A class has collapsed where its generated images differ this little, as a share of what its real
ones differ by: mean distance of all pairs."""

LATE = 2.0
"""A GAN has got worse where its mean score is this many times the best one, and stays so."""

_LATE_EVALUATIONS = 3  # in a row: a single one may be an outlier
_GRID_IMAGES = 24  # real ones, and as many generated ones
_REAL_COLUMNS, _GENERATED_COLUMNS = 4, 8
_JUDGED = 48  # images that discriminators are asked about, of each kind
_CHUNK = 100  # images generated at once
_NOISE = 2**32 - 1  # a stream of noise that `skin_jax.generate` has for no seed and no class
_POOLED = 8  # side of the pixels that stand in for features where there are no weights


class Pictures(NamedTuple):
    """Functions that draw: each takes the step and images uint8 [N, S, S, 3].

    samples gets real and generated images, by_class class name -> real and generated images.
    histograms gets what discriminators make of them, name -> float32 [N]; None: it is not computed.
    """

    samples: Callable[[int, np.ndarray, np.ndarray], None]
    by_class: Callable[[int, Mapping[str, tuple[np.ndarray, np.ndarray]]], None]
    histograms: Callable[[int, Mapping[str, np.ndarray]], None] | None = None


class Evaluator:
    """Evaluates for `training.loop`, and summarises a run at its end."""

    def __init__(self, experiment: Experiment, pictures: Pictures):
        """Takes what it needs of a run."""

    @classmethod
    def check(cls, config: ConfigDict, mesh: Mesh) -> None:
        """Refuses what it could not work with, before anything is written."""

    def __call__(self, state: PyTree, step: int) -> tuple[PyTree, Scalars]:
        """The state, in which it may keep what scored best, and scalars to log."""
        raise NotImplementedError

    def summary(self, state: PyTree) -> Summary | None:
        """Header and rows about the last state, where there is anything to say."""
        return None

    def results(self, state: PyTree) -> Scalars:
        """Figures of the last state, for trackers."""
        return {}


class Classification(Evaluator):
    """Macro AUC, balanced accuracy and log-loss on the validation split, unless it is empty."""

    def __init__(self, experiment: Experiment, pictures: Pictures):
        """Takes the task's predictions."""
        predict = experiment.task.predict  # type: ignore[attr-defined]
        self._predictor = make_predictor(predict, experiment.pipeline)
        self._indices = experiment.indices("val")
        self._labels = experiment.examples.labels[self._indices]
        self._batch_size = experiment.config.eval_batch_size

    def __call__(self, state: PyTree, step: int) -> tuple[PyTree, Scalars]:
        """Scores the state."""
        if len(self._indices) == 0:
            return state, {}
        probabilities = self._predictor(state, self._indices, self._batch_size)
        scores = {
            "val_macro_auc": metrics.macro_auc(probabilities, self._labels),
            "val_balanced_accuracy": metrics.balanced_accuracy(probabilities, self._labels),
            "val_log_loss": metrics.log_loss(probabilities, self._labels),
        }
        print("  ".join([f"step {step}", *(f"{key} {v:.3f}" for key, v in scores.items())]))
        return state, scores


class Samples(Evaluator):
    """A grid of the same real images and of the same noise each time, to compare epochs by."""

    def __init__(self, experiment: Experiment, pictures: Pictures):
        """Chooses the real images."""
        task = experiment.task
        self._sample = _sampler(task, experiment.mesh)
        self._generators = task.generators
        self._draw = pictures.samples
        self._realness = _realness(task, experiment.mesh, pictures)
        self._report = pictures.histograms
        train = experiment.indices("train")
        chosen = np.random.default_rng(0).permutation(train)[:_GRID_IMAGES]
        self._real = experiment.examples.images[chosen]

    def __call__(self, state: PyTree, step: int) -> tuple[PyTree, Scalars]:
        """Draws the grid; there is no score."""
        keys = jax.random.split(jax.random.key(0), _GRID_IMAGES)
        generated = self._sample(self._generators(state), 0, keys)
        if is_first():
            self._draw(step, self._real, np.asarray(generated))
        if self._realness and self._report:
            both = {"real": self._real, "generated": np.asarray(generated)}
            found = {f"realness_{k}": self._realness(state, v, 0) for k, v in both.items()}
            self._report(step, found)
        return state, {}


class Generators(Evaluator):
    """Compares the generators of a run with real images of their classes, of the task's choice.

    The score of a class is the KID of an EfficientNet-Lite's features where `config.score.weights`
    are given, else the sliced Wasserstein distance, a mean over its levels. Real images and noise
    are the same at every call, so that epochs can be compared.
    """

    def __init__(self, experiment: Experiment, pictures: Pictures):
        """Reads the network that describes images, if any; refuses weights that do not fit it."""
        task, config = experiment.task, experiment.config
        self._task, self._placement = task, replicated(experiment.mesh)
        self._draw = pictures.by_class
        self._realness = _realness(task, experiment.mesh, pictures)
        self._report = pictures.histograms
        self._count = config.score.images
        self._collapsed: list[str] = []
        self._worse = 0  # evaluations in a row
        self._rows = experiment.rows
        self._extract = self._extractor(config, experiment.mesh)
        self._sample = _sampler(task, experiment.mesh)
        self._scored = jax.jit(
            task.scored,  # type: ignore[attr-defined]
            out_shardings=self._placement,
            compiler_options=compiler_options(platform(experiment.mesh)),
        )
        self._labels = task.classes_drawn(len(experiment.classes))
        self._names = [experiment.classes.names[label] for label in self._labels]
        self._train_counts = experiment.class_counts("train")[self._labels]
        compared = experiment.indices(task.compared_with)
        self._real: list[np.ndarray] = []
        for label in self._labels:
            members = compared[experiment.examples.labels[compared] == label]
            chosen = np.random.default_rng(0).permutation(members)[: self._count]
            self._real.append(experiment.examples.images[chosen])

    @classmethod
    def check(cls, config: ConfigDict, mesh: Mesh) -> None:
        """Reads the weights, which otherwise fail an hour later."""
        cls._extractor(config, mesh)

    @staticmethod
    def _extractor(config: ConfigDict, mesh: Mesh) -> features.Extractor | None:
        weights = config.score.weights
        if weights == NO_WEIGHTS:
            return None
        return features.efficientnet_lite(weights, mesh, flag="--config.score.weights")

    @functools.cached_property
    def _described(self) -> list[tuple[np.ndarray, float]]:
        """Description of each class's real images, and how far apart they are.

        It takes seconds to a minute on a CPU, and a run that is finished does not need it.
        """
        described = [self._describe(real) for real in self._real]
        return [(each, quality.mean_distance(each)) for each in described]

    @property
    def measure(self) -> str:
        """Name of the score: "kid" or "swd"."""
        return "swd" if self._extract is None else "kid"

    def __call__(self, state: PyTree, step: int) -> tuple[PyTree, Scalars]:
        """Scores every class, prints the scores, warns of collapsed classes, draws a picture.

        Returns:
          The state with the generators that are now the best of their class, and `images_seen`,
          `<measure>/<class>` and `diversity/<class>` to log.
        """
        generators = self._task.generators(state)
        scores: list[float] = []
        values: Scalars = {"images_seen": float(step * self._rows)}
        shown, judged = {}, {}
        for place, (label, name) in enumerate(zip(self._labels, self._names, strict=True)):
            generated = self._generated(generators, int(label))
            shown[name] = (self._real[place][:_REAL_COLUMNS], generated[:_GENERATED_COLUMNS])
            score, diversity = self._compare(place, generated)
            scores.append(score)
            values |= {f"{self.measure}/{name}": score, f"diversity/{name}": diversity}
            if self._realness:
                for kind, images in (("real", self._real[place]), ("generated", generated)):
                    judged[f"realness_{kind}/{name}"] = self._realness(state, images, int(label))
        each = "  ".join(f"{name} {score:.3f}" for name, score in zip(shown, scores, strict=True))
        print(f"step {step}  {self.measure}: {each}", flush=True)
        collapsed = [name for name in shown if values[f"diversity/{name}"] < COLLAPSED]
        fresh = [name for name in collapsed if name not in self._collapsed]
        if fresh and is_first():
            warn(
                f"step {step}: the images of {', '.join(fresh)} are nearly identical (they "
                f"differ by less than {COLLAPSED:.0%} of what real ones differ by): unless the run "
                "has just begun, the GAN has collapsed"
            )
        self._collapsed = collapsed
        if is_first():
            self._draw(step, shown)
            if self._report and judged:
                self._report(step, judged)
        # Another kind of processor may have found others in the last bit, and the states be two.
        decisive = as_first(np.array(scores, np.float32))
        state = self._scored(state, to_global(decisive, self._placement))
        self._warn_of_decline(step, metrics.nanmean(scores), state)
        return state, values

    def _warn_of_decline(self, step: int, mean: float, state: PyTree) -> None:
        """Says once that images have got worse for good."""
        best_steps, best = np.asarray(state.best_step), metrics.nanmean(state.best_score)
        self._worse = self._worse + 1 if mean > LATE * best > 0 else 0
        if self._worse == _LATE_EVALUATIONS and is_first():
            warn(
                f"step {step}: the mean {self.measure} was more than {LATE:g} times the best one, "
                f"{best:.3f} (steps {best_steps.min()} to {best_steps.max()}), in "
                f"{_LATE_EVALUATIONS} evaluations in a row: the images have got worse, perhaps for "
                "good; the best generators are kept, and the run may be ended"
            )

    def summary(self, state: PyTree) -> Summary:
        """The step and the score of each class's best generator, and its real training images."""
        found = np.asarray(state.best_step), np.asarray(state.best_score)
        rows = []
        for name, count, step, score in zip(self._names, self._train_counts, *found, strict=True):
            best = (str(step), f"{score:.3f}") if np.isfinite(score) else ("n/a", "n/a")
            rows.append((name, str(count), *best))
        measure = "sliced Wasserstein" if self._extract is None else "KID"
        return ("class", "training images", "step", measure), rows

    def results(self, state: PyTree) -> Scalars:
        """The score of each class's best generator."""
        best = map(float, np.asarray(state.best_score))
        return {f"best_{self.measure}/{k}": v for k, v in zip(self._names, best, strict=True)}

    def _generated(self, generators: PyTree, label: int) -> np.ndarray:
        # Images that a generator was chosen by would be no fair sample of what it draws.
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), _NOISE), label)
        keys = jax.random.split(key, self._count)
        chunks = [
            # Always one size, so that it compiles once.
            np.asarray(
                self._sample(generators, label, keys[np.arange(start, start + _CHUNK) % len(keys)])
            )
            for start in range(0, self._count, _CHUNK)
        ]
        return np.concatenate(chunks)[: self._count]

    def _describe(self, images: np.ndarray) -> np.ndarray:
        """Features float32 [N, D]; without weights, a coarse picture of each image."""
        if self._extract is not None:
            return self._extract(images)
        n, side = len(images), images.shape[1] // _POOLED
        blocks = images.reshape(n, _POOLED, side, _POOLED, side, 3).astype(np.float32)
        return blocks.mean(axis=(2, 4)).reshape(n, -1)

    def _compare(self, place: int, generated: np.ndarray) -> tuple[float, float]:
        """Score and diversity of a class's images; NaN where there are too few real ones."""
        described, (real, apart) = self._describe(generated), self._described[place]
        diversity = quality.mean_distance(described) / apart if apart else math.nan
        if self._extract is not None:
            return quality.kid(real, described), diversity
        both = min(len(generated), len(self._real[place]), PATCHED_IMAGES)
        levels = quality.sliced_wasserstein(self._real[place][:both], generated[:both], seed=0)
        return float(np.mean(list(levels.values()))), diversity


EVALUATORS: dict[str, type[Evaluator]] = {
    "classification": Classification,
    "samples": Samples,
    "generators": Generators,
}


def make(experiment: Experiment, pictures: Pictures) -> list[Evaluator]:
    """The evaluators that the task of a run asks for."""
    return [EVALUATORS[name](experiment, pictures) for name in experiment.task.evaluators]


def check(config: ConfigDict, task: tasks.Task, mesh: Mesh) -> None:
    """Refuses what the evaluators of a task could not work with: weights that do not fit."""
    for name in task.evaluators:
        EVALUATORS[name].check(config, mesh)


def _realness(
    task: tasks.Task, mesh: Mesh, pictures: Pictures
) -> Callable[[PyTree, np.ndarray, int], np.ndarray] | None:
    """The function (state, images uint8 [N, S, S, 3], label) -> float32 [N], of some of them.

    None where nobody wants it, or the task has no discriminator that can say it.
    """
    if pictures.histograms is None or not tasks.can(task, "realness"):
        return None
    jitted = jax.jit(
        task.realness,  # type: ignore[attr-defined]
        out_shardings=replicated(mesh),
        compiler_options=compiler_options(platform(mesh)),
    )

    def judge(state: PyTree, images: np.ndarray, label: int) -> np.ndarray:
        count = min(len(images), _JUDGED)
        if count == 0:
            return np.zeros(0, np.float32)
        # Always one size, so that it compiles once.
        rows = np.arange(_JUDGED) % count
        return np.asarray(jitted(state, images[rows], label))[:count]

    return judge


def _sampler(task: tasks.Task, mesh: Mesh) -> Callable[[PyTree, int, jax.Array], jax.Array]:
    """The jitted function (generators, label, keys [B]) -> images uint8 [B, S, S, 3]."""
    images_of, noise = task.images_of, task.noise  # type: ignore[attr-defined]
    return jax.jit(
        lambda generators, label, keys: to_uint8(images_of(generators, label, noise(keys))),
        out_shardings=replicated(mesh),
        compiler_options=compiler_options(platform(mesh)),
    )
