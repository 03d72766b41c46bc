"""Images in the order in which a run's generators draw them, each a candidate for a class.

Image i is a function of the weights, the seed and i alone; of its class, too, where the generator
is told it. XLA's arithmetic may differ in the last bit from one batch size to another, and a pixel
by one level, so all images are drawn in batches of 64 on one device; another kind of processor may
still differ that much.
"""

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from skin_jax import tasks
from skin_jax.base.devices import compiler_options
from skin_jax.eval.features import resized
from skin_jax.tasks.augment import keys_of, to_uint8

PyTree = Any

BATCH = 64
WALK_COLUMNS = 8
"""Images of a walk from one noise vector or class to another; a batch holds as many walks."""


@dataclasses.dataclass(frozen=True)
class Candidate:
    """An image and the class that it may be taken for."""

    label: str
    index: int
    confidence: float  # that it shows this class, in [0, 1]
    step: int  # that its generator was taken at
    pixels: np.ndarray  # uint8 [S, S, 3]


Candidates = Callable[[int, Callable[[str], bool]], Iterator[Candidate | None]]
"""Position, and whether a class is full -> what comes from there on; None in the place of an image
that is passed over."""

Judgement = Callable[[str, np.ndarray], np.ndarray]
"""A class, images uint8 [64, S, S, 3] -> confidences float [64] that they show it, NaN for those
that are passed over."""


class Sampler:
    """Images 0, 1, ... of a seed: of a class, where the generator is told it.

    Image i has a key of the seed and i, or of the seed, the class and i.
    """

    def __init__(
        self,
        task: tasks.Task,
        generators: PyTree,
        names: Sequence[str],
        seed: int,
        whose: object,
        truncation: float = 1.0,
    ):
        """Closes over `generators`, on one device, as `Task.generators` gives them.

        The noise is `truncation` times what the generators were trained with: below 1, images
        differ less and are nearer to the middle of their class.

        A task that does not generate images is refused, with the run, `whose` it is.
        """
        images_of = tasks.require(task, "images_of", whose)
        self._key = jax.random.key(seed)
        self._generators, self._names = generators, list(names)

        def noise(key: jax.Array, label: jax.Array, indices: jax.Array) -> jax.Array:
            base = jax.random.fold_in(key, label) if task.conditional else key
            return truncation * task.noise(keys_of(base, indices))  # type: ignore[attr-defined]

        self._noise = _jit(noise)
        self._between = None
        if tasks.can(task, "images_between"):
            between = task.images_between  # type: ignore[attr-defined]
            self._between = _jit(lambda *arguments: to_uint8(between(*arguments)))
        self._images = _jit(
            lambda generators, label, noise: to_uint8(images_of(generators, label, noise))
        )

    def seeded(self, seed: int) -> "Sampler":
        """The same generators with another seed; nothing compiles again."""
        other = copy.copy(self)
        other._key = jax.random.key(seed)
        return other

    def batch(self, name: str, first: int) -> np.ndarray:
        """Images `first` to `first` + 63 of a class, uint8 [64, S, S, 3]."""
        label = self._names.index(name)
        return self._drawn(label, self._noise(self._key, label, _batch_from(first)))

    def walks(self, name: str) -> np.ndarray:
        """Eight walks through the noise of a class, uint8 [64, S, S, 3].

        Row r of eight leads in a straight line from image 2r of the class to image 2r + 1.
        """
        label = self._names.index(name)
        noise = np.asarray(self._noise(self._key, label, _batch_from(0)))
        ends = noise[: 2 * BATCH // WALK_COLUMNS].reshape(-1, 2, 1, noise.shape[-1])
        share = np.linspace(0, 1, WALK_COLUMNS, dtype=np.float32)[:, None]
        line = (1 - share) * ends[:, 0] + share * ends[:, 1]
        return self._drawn(label, line.reshape(noise.shape))

    def class_walks(self, name: str, others: Sequence[str]) -> np.ndarray | None:
        """Walks from image 0 of a class to each of up to eight others, uint8 [8 * others, S, S, 3].

        Each keeps the noise of the image, and leads in a straight line from the one class to the
        other. None without others, or where a generator does not know what lies between classes.
        """
        if self._between is None or not others:
            return None
        label = self._names.index(name)
        ends = [self._names.index(other) for other in others[: BATCH // WALK_COLUMNS]]
        share = np.linspace(0, 1, WALK_COLUMNS, dtype=np.float32)
        shares = np.zeros((BATCH, len(self._names)), np.float32)
        for row, end in enumerate(ends):
            walk = shares[row * WALK_COLUMNS : (row + 1) * WALK_COLUMNS]
            walk[:, label], walk[:, end] = 1 - share, share
        noise = np.asarray(self._noise(self._key, label, _batch_from(0)))
        noise = np.broadcast_to(noise[:1], noise.shape)
        drawn = np.asarray(self._between(self._generators, shares, noise))
        return drawn[: len(ends) * WALK_COLUMNS]

    def _drawn(self, label: int, noise: jax.Array | np.ndarray) -> np.ndarray:
        return np.asarray(self._images(self._generators, label, noise))


def judged(
    sampler: Sampler,
    predict: Callable[[np.ndarray], np.ndarray],
    names: Sequence[str],
    *,
    step: int,
    min_confidence: float,
) -> Candidates:
    """Images of no class in particular, each in the one that the run itself finds most likely.

    Args:
      sampler: of a generator that is not told a class.
      predict: uint8 [64, S, S, 3] -> probabilities [64, n] of the stored pixels.
      names: of the n classes.
      step: that the generator was taken at.
      min_confidence: images below it are passed over.

    Returns:
      A stream without end, whose position is the index of the image.
    """

    def stream(position: int, full: Callable[[str], bool]) -> Iterator[Candidate | None]:
        del full  # which class an image is of is not known before it is drawn
        while True:
            first = position // BATCH * BATCH
            images = sampler.batch(names[0], first)
            probabilities = predict(images)
            for index in range(position, first + BATCH):
                scores = probabilities[index - first]
                name, confidence = names[scores.argmax()], float(scores.max())
                yield (
                    Candidate(name, index, confidence, step, images[index - first])
                    if confidence >= min_confidence
                    else None
                )
            position = first + BATCH

    return stream


def predictor(
    task: tasks.Task, state: PyTree, whose: object, size: int | None = None
) -> Callable[[np.ndarray], np.ndarray]:
    """The task's probabilities float32 [64, n] of images uint8 [64, S, S, 3], on one device.

    They are resized to `size`, where that is given. A task that does not classify is refused.
    """
    predict = tasks.require(task, "predict", whose)
    jitted = _jit(lambda state, images: predict(state, resized(images, size or images.shape[1])))
    return lambda images: np.asarray(jitted(state, images))


def by_class(
    sampler: Sampler,
    steps: Mapping[str, int],
    tries: Mapping[str, int],
    judge: Judgement = lambda _, images: np.ones(len(images)),
) -> Candidates:
    """Images 0, 1, ... of each class, one class after another, by a generator that is told it.

    Args:
      sampler: of the generators.
      steps, tries: class name -> step that its generator was taken at, and number of images.
      judge: says which images are passed over.

    Returns:
      A stream whose position counts through all tries of all classes; those of a class that is full
      are passed over without being drawn.
    """

    def stream(position: int, full: Callable[[str], bool]) -> Iterator[Candidate | None]:
        for name, count in tries.items():
            drawn = None  # first index of the batch that is at hand
            for index in range(position, count):
                if full(name):
                    yield None
                    continue
                if drawn != (drawn := index // BATCH * BATCH):
                    images = sampler.batch(name, drawn)
                    confidences = judge(name, images)
                place = index % BATCH
                confidence = float(confidences[place])
                yield (
                    None
                    if np.isnan(confidence)
                    else Candidate(name, index, confidence, steps[name], images[place])
                )
            position = max(0, position - count)

    return stream


def _jit(function: Callable[..., Any]) -> Callable[..., Any]:
    # Without the options, a GPU may give other bits the next time.
    return jax.jit(function, compiler_options=compiler_options(jax.devices()[0].platform))


def _batch_from(first: int) -> np.ndarray:
    return np.arange(first, first + BATCH, dtype=np.uint32)
