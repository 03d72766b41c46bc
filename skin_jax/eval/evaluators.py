"""What is looked at once an epoch while one GAN a class trains: pictures, scores, collapse."""

import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from skin_jax import tasks
from skin_jax.base.devices import compiler_options, platform, replicated
from skin_jax.base.errors import warn
from skin_jax.config import NO_WEIGHTS
from skin_jax.data.classes import CLASSES
from skin_jax.eval import features, quality
from skin_jax.eval.audit import PATCHED_IMAGES
from skin_jax.report import figures, kit
from skin_jax.tasks.augment import to_uint8
from skin_jax.train.run import Experiment

PyTree = Any

COLLAPSED = 0.25
"""A class has collapsed where its generated images differ this little, as a share of what its real
ones differ by: mean distance of all pairs."""

_REAL_COLUMNS, _GENERATED_COLUMNS = 4, 8
_CHUNK = 100  # images generated at once
_NOISE = 2**32 - 1  # a stream of noise that `skin_jax.generate` has for no seed and no class
_POOLED = 8  # side of the pixels that stand in for features where there are no weights


class ClassGansWatch:
    """Compares the generators of a run with the training images of their classes.

    The score of a class is the KID of EfficientNet-Lite0's features where `config.score.weights`
    are given, else the sliced Wasserstein distance, a mean over its levels. Real images and noise
    are the same at every call, so that epochs can be compared.
    """

    def __init__(self, experiment: Experiment):
        """Reads the network that describes images, if any.

        Raises:
          UserError: the weights cannot be read, or do not fit.
        """
        task, config = experiment.task, experiment.config
        assert isinstance(task, tasks.GeneratesByClass)
        self._task, self._placement = task, experiment.placement
        self._count = config.score.images
        self._collapsed: list[str] = []
        self._extract = None
        if config.score.weights != NO_WEIGHTS:
            self._extract = features.efficientnet_lite0(
                config.score.weights, experiment.mesh, flag="--config.score.weights"
            )
        options = compiler_options(platform(experiment.mesh))
        self._sample = jax.jit(
            lambda generators, place, keys: to_uint8(
                task.images_of(generators, place, task.noise(keys))
            ),
            out_shardings=replicated(experiment.mesh),
            compiler_options=options,
        )
        self._scored = jax.jit(
            task.scored, donate_argnums=0, out_shardings=self._placement, compiler_options=options
        )
        train = experiment.indices("train")
        self._real: list[np.ndarray] = []
        for label in task.labels:
            members = train[experiment.examples.labels[train] == label]
            chosen = np.random.default_rng(0).permutation(members)[: self._count]
            self._real.append(experiment.examples.images[chosen])

    @functools.cached_property
    def _described(self) -> list[tuple[np.ndarray, float]]:
        """Of each class's real images the description, and how far apart they are.

        Seconds to a minute on a CPU, which a run that is finished already needs not.
        """
        described = [self._describe(real) for real in self._real]
        return [(each, quality.mean_distance(each)) for each in described]

    @property
    def measure(self) -> str:
        """What the score is: "kid" or "swd"."""
        return "swd" if self._extract is None else "kid"

    def look(self, state: PyTree, step: int, grid: Path) -> tuple[PyTree, dict[str, float]]:
        """Scores every class, prints the scores, warns of collapsed classes, writes a picture.

        Args:
          state: of the task.
          step: after which.
          grid: the PNG to write: a row of real and generated images for each class.

        Returns:
          The state with the generators that are now the best of their class (the one given is
          gone), and `<measure>/<class>` and `diversity/<class>` to log.
        """
        generators = self._task.current(state)
        scores: list[float] = []
        values: dict[str, float] = {}
        shown = {}
        for place, label in enumerate(self._task.labels):
            name = CLASSES[label]
            generated = self._generated(generators, place, int(label))
            shown[name] = (self._real[place][:_REAL_COLUMNS], generated[:_GENERATED_COLUMNS])
            score, diversity = self._compare(place, generated)
            scores.append(score)
            values |= {f"{self.measure}/{name}": score, f"diversity/{name}": diversity}
        each = "  ".join(f"{name} {score:.3f}" for name, score in zip(shown, scores, strict=True))
        print(f"step {step}  {self.measure}: {each}", flush=True)
        collapsed = [name for name in shown if values[f"diversity/{name}"] < COLLAPSED]
        if fresh := [name for name in collapsed if name not in self._collapsed]:
            warn(
                f"step {step}: the images of {', '.join(fresh)} are nearly all the same (they "
                f"differ by less than {COLLAPSED:.0%} of what real ones differ by): the GAN has "
                "collapsed, if this is not the beginning of the run"
            )
        self._collapsed = collapsed
        figures.real_and_generated_by_class(grid, shown)
        state = self._scored(state, jax.device_put(np.array(scores, np.float32), self._placement))
        return state, values

    def _generated(self, generators: PyTree, place: int, label: int) -> np.ndarray:
        # Images that a generator was chosen by would be no fair sample of what it draws.
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), _NOISE), label)
        keys = jax.random.split(key, self._count)
        chunks = [
            # Always one size, so that it compiles once.
            np.asarray(
                self._sample(generators, place, keys[np.arange(start, start + _CHUNK) % len(keys)])
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


def table_of_best(experiment: Experiment, state: PyTree) -> kit.Table:
    """The step and the score of each class's best generator, and its real training images."""
    task = experiment.task
    assert isinstance(task, tasks.GeneratesByClass)
    counts = experiment.class_counts("train")
    measure = "KID" if experiment.config.score.weights != NO_WEIGHTS else "sliced Wasserstein"
    rows = [
        (
            CLASSES[label],
            str(counts[label]),
            str(step) if np.isfinite(score) else "n/a",
            f"{score:.3f}" if np.isfinite(score) else "n/a",
        )
        for label, step, score in zip(
            task.labels, np.asarray(state.best_step), np.asarray(state.best_score), strict=True
        )
    ]
    return kit.Table(("class", "training images", "step", measure), rows)


def by_name(values: Mapping[str, np.ndarray], labels: np.ndarray) -> dict[str, float]:
    """Scalars `<name>/<class>` of each [K], to log."""
    return {
        f"{key}/{CLASSES[label]}": float(value)
        for key, each in values.items()
        for label, value in zip(labels, each, strict=True)
    }
