"""What a run's generators draw, one image after another, each a candidate for a class.

Image i is a function of the weights, the seed and i alone; of its class, too, where each class has
a generator of its own. XLA's arithmetic may differ in the last bit from one batch size to another,
and a pixel by one level, so all images are drawn in batches of 64 on one device; another kind of
processor may still differ that much.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from skin_jax import tasks
from skin_jax.base.devices import compiler_options
from skin_jax.data.classes import CLASSES
from skin_jax.tasks.augment import keys_of, to_uint8

PyTree = Any

BATCH = 64
WALK_COLUMNS = 8
"""Images of a walk from one noise vector to another; a batch holds as many of such walks."""


@dataclasses.dataclass(frozen=True)
class Candidate:
    """An image and the class that it may be taken for.

    Attributes:
      label: name of the class.
      index: of the image.
      confidence: that it shows this class, in [0, 1].
      step: that its generator was taken at.
      pixels: uint8 [S, S, 3].
    """

    label: str
    index: int
    confidence: float
    step: int
    pixels: np.ndarray


Candidates = Callable[[int], Iterator[Candidate | None]]
"""Position -> what comes from there on; None in the place of an image that is passed over."""


def judged(
    task: tasks.Generates, state: PyTree, *, step: int, seed: int, min_confidence: float
) -> Candidates:
    """Images of no class in particular, each in the one that the run itself finds most likely.

    Args:
      task: that classifies, too.
      state: of the task, on one device.
      step: of the state.
      seed: below 2**32.
      min_confidence: images below it are passed over.

    Returns:
      A stream without end, whose position is the index of the image.
    """
    draw = make_draw(task, state, seed)

    def stream(position: int) -> Iterator[Candidate | None]:
        while True:
            first = position // BATCH * BATCH
            images, probabilities = draw(first)
            for index in range(position, first + BATCH):
                scores = probabilities[index - first]
                name, confidence = CLASSES[scores.argmax()], float(scores.max())
                good = confidence >= min_confidence
                yield (
                    Candidate(name, index, confidence, step, images[index - first])
                    if good
                    else None
                )
            position = first + BATCH

    return stream


def make_draw(
    task: tasks.Generates, state: PyTree, seed: int
) -> Callable[[int], tuple[np.ndarray, np.ndarray]]:
    """A function i -> images i to i+63, uint8 [64, S, S, 3], and their probabilities [64, 7].

    The probabilities, float32, are those of the stored pixels. Image i has a key of its own, made
    of the seed and i. Arguments as `judged` has them.
    """
    assert isinstance(task, tasks.Classifies)
    key = jax.random.key(seed)
    any_label = jnp.zeros((1,), jnp.int32)

    def draw(state: PyTree, indices: jax.Array) -> tuple[jax.Array, jax.Array]:
        keys = keys_of(key, indices)
        images = to_uint8(jax.vmap(lambda k: task.sample(state, k, any_label)[0])(keys))
        return images, task.predict(state, images)

    jitted = _jit(draw)

    def run(first: int) -> tuple[np.ndarray, np.ndarray]:
        images, probabilities = jitted(state, _batch_from(first))
        return np.asarray(images), np.asarray(probabilities)

    return run


class ClassSampler:
    """Images of each class from its own generator; image i has a key of seed, class and i."""

    def __init__(self, task: tasks.GeneratesByClass, generators: PyTree, seed: int):
        """Closes over the generators.

        Args:
          task: of the run.
          generators: leaves [K, ...] on one device, as `task.current` or `task.best` gives them.
          seed: below 2**32.
        """
        key = jax.random.key(seed)
        self._generators = generators
        self._places = {CLASSES[label]: place for place, label in enumerate(task.labels)}
        self._images = _jit(
            lambda generators, place, noise: to_uint8(task.images_of(generators, place, noise))
        )
        self._noise = _jit(
            lambda label, indices: task.noise(keys_of(jax.random.fold_in(key, label), indices))
        )

    def batch(self, name: str, first: int) -> np.ndarray:
        """Images `first` to `first` + 63 of a class, uint8 [64, S, S, 3]."""
        return self._drawn(name, self._noise(CLASSES.index(name), _batch_from(first)))

    def walks(self, name: str) -> np.ndarray:
        """Eight walks through the noise of a class, uint8 [64, S, S, 3].

        Row r of eight goes in a straight line from image 2r of the class to image 2r + 1.
        """
        noise = np.asarray(self._noise(CLASSES.index(name), _batch_from(0)))
        ends = noise[: 2 * BATCH // WALK_COLUMNS].reshape(-1, 2, 1, noise.shape[-1])
        share = np.linspace(0, 1, WALK_COLUMNS, dtype=np.float32)[:, None]
        line = (1 - share) * ends[:, 0] + share * ends[:, 1]
        return self._drawn(name, line.reshape(noise.shape))

    def _drawn(self, name: str, noise: jax.Array | np.ndarray) -> np.ndarray:
        return np.asarray(self._images(self._generators, self._places[name], noise))


def by_class(
    sampler: ClassSampler, steps: Mapping[str, int], wanted: Mapping[str, int]
) -> Candidates:
    """Images 0, 1, ... of each class, one class after another.

    Their class is certain: no other images taught its generator.

    Args:
      sampler: of the generators.
      steps: class name -> that its generator was taken at.
      wanted: class name -> how many images.

    Returns:
      A stream of as many as are wanted, whose position counts through all classes.
    """

    def stream(position: int) -> Iterator[Candidate]:
        for name, count in wanted.items():
            for index in range(position, count):
                if index == position or index % BATCH == 0:
                    images = sampler.batch(name, index // BATCH * BATCH)
                yield Candidate(name, index, 1.0, steps[name], images[index % BATCH])
            position = max(0, position - count)

    return stream


def _jit(function: Callable[..., Any]) -> Callable[..., Any]:
    # Without the options, a GPU may give other bits the next time.
    return jax.jit(function, compiler_options=compiler_options(jax.devices()[0].platform))


def _batch_from(first: int) -> np.ndarray:
    return np.arange(first, first + BATCH, dtype=np.uint32)
