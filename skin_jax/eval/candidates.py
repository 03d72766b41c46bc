"""Images in the order in which a run's generators draw them, each a candidate for a class.

Image i is a function of the weights, the seed and i alone; of its class, too, where the generator
is told it. XLA's arithmetic may differ in the last bit from one batch size to another, and a pixel
by one level, so all images are drawn in batches of 64, each on one device, several devices side by
side; another kind of processor may still differ that much.
"""

import copy
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from skin_jax import tasks
from skin_jax.base import devices
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


Batch = list[Candidate | None]
"""64 of them; None in the place of an image that is passed over."""


class Job(NamedTuple):
    """A batch that may be drawn: of a class, from an index on that is a multiple of 64."""

    name: str
    first: int


@dataclasses.dataclass(frozen=True)
class Stream:
    """Candidates in order: images 0, 1, ... of one class after another.

    Attributes:
      draw: as many batches as there are jobs, no more than `at_once`.
      tries: class -> number of its images in the stream; inf for one without end.
      at_once: batches that are drawn side by side.
      told: whether the images of a job are of the job's class; where not, nobody knows of which
        class an image is before it is drawn.
    """

    draw: Callable[[Sequence[Job]], list[Batch]]
    tries: Mapping[str, float]
    at_once: int
    told: bool

    def jobs(self, position: int = 0) -> Iterator[tuple[Job, range]]:
        """The batches in order, from a position on, each with the indices that are asked of it."""
        for name, count in self.tries.items():
            firsts = itertools.count(position // BATCH * BATCH, BATCH)
            for first in firsts if position < count else ():
                if first >= count:
                    break
                yield Job(name, first), range(max(first, position), int(min(first + BATCH, count)))
            position = int(max(0, position - count))

    def __call__(self, position: int, full: Callable[[str], bool]) -> Iterator[Candidate | None]:
        """What comes from a position on; None in the place of an image that is passed over.

        Of a class of which `full` says that it is, nothing more is drawn where the stream is told.
        """

        def needed(job: Job) -> bool:
            return not (self.told and full(job.name))

        jobs = self.jobs(position)
        while group := [*itertools.islice(jobs, self.at_once)]:
            wanted = [job for job, _ in group if needed(job)]
            drawn = dict(zip(wanted, self.draw(wanted), strict=True)) if wanted else {}
            for job, indices in group:
                for index in indices:
                    yield drawn[job][index - job.first] if needed(job) else None


def to_arrays(batch: Batch) -> dict[str, np.ndarray]:
    """A batch as arrays, each with an entry for each of its candidates."""
    found = [candidate for candidate in batch if candidate is not None]
    names = [field.name for field in dataclasses.fields(Candidate)]
    return {name: np.array([getattr(each, name) for each in found]) for name in names}


def from_arrays(job: Job, arrays: Mapping[str, np.ndarray]) -> Batch:
    """The batch of a job, of what `to_arrays` made of it."""
    batch: Batch = [None] * BATCH
    for values in zip(*(arrays[f.name] for f in dataclasses.fields(Candidate)), strict=True):
        label, index, confidence, step, pixels = values
        made = Candidate(str(label), int(index), float(confidence), int(step), pixels)
        batch[made.index - job.first] = made
    return batch


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
        mesh: Mesh | None = None,
    ):
        """Closes over `generators`, as `Task.generators` gives them.

        They lie on each device of the mesh, or on one device where there is none. The noise is
        `truncation` times what the generators were trained with: below 1, images differ less and
        are nearer to the middle of their class.

        A task that does not generate images is refused, with the run, `whose` it is.
        """
        images_of = tasks.require(task, "images_of", whose)
        self._key = jax.random.key(seed)
        self._generators, self._names = generators, list(names)
        self.at_once = mesh.size if mesh else 1

        def noise(key: jax.Array, label: jax.Array, indices: jax.Array) -> jax.Array:
            base = jax.random.fold_in(key, label) if task.conditional else key
            return truncation * task.noise(keys_of(base, indices))  # type: ignore[attr-defined]

        self._noise = _jit(noise)
        self._between = None
        if tasks.can(task, "images_between"):
            between = task.images_between  # type: ignore[attr-defined]
            self._between = _jit(lambda *arguments: to_uint8(between(*arguments)))
        self._images = _on_each(
            lambda generators, label, noise: to_uint8(images_of(generators, label, noise)), mesh
        )

    def seeded(self, seed: int) -> "Sampler":
        """The same generators with another seed; nothing compiles again."""
        other = copy.copy(self)
        other._key = jax.random.key(seed)
        return other

    def batch(self, name: str, first: int) -> np.ndarray:
        """Images `first` to `first` + 63 of a class, uint8 [64, S, S, 3]."""
        return self.batches([Job(name, first)])[0]

    def batches(self, jobs: Sequence[Job]) -> np.ndarray:
        """As many as `at_once`, side by side, uint8 [k, 64, S, S, 3]."""
        labels = [self._names.index(job.name) for job in jobs]
        noise = [
            np.asarray(self._noise(self._key, label, _batch_from(job.first)))
            for label, job in zip(labels, jobs, strict=True)
        ]
        return self._images(self._generators, np.array(labels, np.int32), np.stack(noise))

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

    def _drawn(self, label: int, noise: np.ndarray) -> np.ndarray:
        return self._images(self._generators, np.array([label], np.int32), noise[None])[0]


def judged(
    sampler: Sampler,
    predict: Callable[[np.ndarray], np.ndarray],
    names: Sequence[str],
    *,
    step: int,
    min_confidence: float,
) -> Stream:
    """Images of no class in particular, each in the one that the run itself finds most likely.

    Args:
      sampler: of a generator that is not told a class.
      predict: uint8 [64 k, S, S, 3] -> probabilities [64 k, n] of the stored pixels, for as many
        batches as the sampler draws at once.
      names: of the n classes.
      step: that the generator was taken at.
      min_confidence: images below it are passed over.

    Returns:
      A stream without end, whose position is the index of the image.
    """

    def draw(jobs: Sequence[Job]) -> list[Batch]:
        images = sampler.batches(jobs)
        probabilities = predict(images.reshape(-1, *images.shape[2:]))
        found = []
        for job, pixels, scores in zip(
            jobs, images, probabilities.reshape(len(jobs), BATCH, -1), strict=True
        ):
            batch: Batch = []
            for place in range(BATCH):
                label, confidence = names[scores[place].argmax()], float(scores[place].max())
                made = Candidate(label, job.first + place, confidence, step, pixels[place])
                batch.append(made if confidence >= min_confidence else None)
            found.append(batch)
        return found

    return Stream(draw, {names[0]: math.inf}, sampler.at_once, told=False)


def predictor(
    task: tasks.Task,
    state: PyTree,
    whose: object,
    size: int | None = None,
    mesh: Mesh | None = None,
) -> Callable[[np.ndarray], np.ndarray]:
    """The task's probabilities float32 [64 k, n] of images uint8 [64 k, S, S, 3].

    There is a batch on each device of the mesh, k of them at most, or on one device where there is
    no mesh; the state lies there. The images are resized to `size`, where that is given. A task
    that does not classify is refused.
    """
    predict = tasks.require(task, "predict", whose)
    on_each = _on_each(
        lambda state, images: predict(state, resized(images, size or images.shape[1])), mesh
    )

    def run(images: np.ndarray) -> np.ndarray:
        found = on_each(state, images.reshape(-1, BATCH, *images.shape[1:]))
        return found.reshape(-1, found.shape[-1])

    return run


def by_class(
    sampler: Sampler,
    steps: Mapping[str, int],
    tries: Mapping[str, int],
    judge: Judgement = lambda _, images: np.ones(len(images)),
) -> Stream:
    """Images 0, 1, ... of each class, one class after another, by a generator that is told it.

    Args:
      sampler: of the generators.
      steps, tries: class name -> step that its generator was taken at, and number of images.
      judge: says which images are passed over.

    Returns:
      A stream whose position counts through all tries of all classes; those of a class that is full
      are passed over without being drawn.
    """

    def draw(jobs: Sequence[Job]) -> list[Batch]:
        return [
            [
                None
                if np.isnan(confidence)
                else Candidate(
                    job.name, job.first + place, float(confidence), steps[job.name], pixels[place]
                )
                for place, confidence in enumerate(judge(job.name, pixels))
            ]
            for job, pixels in zip(jobs, sampler.batches(jobs), strict=True)
        ]

    return Stream(draw, tries, sampler.at_once, told=True)


def _on_each(function: Callable[..., Any], mesh: Mesh | None) -> Callable[..., np.ndarray]:
    """A function of weights and of a batch's arrays, for as many batches as there are devices.

    Each device has the same program for a batch of its own, so that it computes the same for it
    whichever it is, and however many others there are.

    Returns:
      (weights, arrays [k, ...] each) -> [k, ...], for k batches, no more than devices.
    """
    mesh = mesh or devices.make_mesh(1)
    over = PartitionSpec("data")

    def alone(weights: PyTree, *arrays: jax.Array) -> jax.Array:
        return function(weights, *(array[0] for array in arrays))[None]

    def together(weights: PyTree, *arrays: jax.Array) -> jax.Array:
        specs = (PartitionSpec(), *[over] * len(arrays))
        mapped = jax.shard_map(alone, mesh=mesh, in_specs=specs, out_specs=over, check_vma=False)
        return mapped(weights, *arrays)

    jitted, placement = _jit(together), devices.over_batch(mesh)

    def run(weights: PyTree, *arrays: np.ndarray) -> np.ndarray:
        count = len(arrays[0])
        filled = [array[np.minimum(np.arange(mesh.size), count - 1)] for array in arrays]
        return np.asarray(jitted(weights, *jax.device_put(filled, placement)))[:count]

    return run


def _jit(function: Callable[..., Any]) -> Callable[..., Any]:
    # Without the options, a GPU may give other bits the next time.
    return jax.jit(function, compiler_options=compiler_options(jax.devices()[0].platform))


def _batch_from(first: int) -> np.ndarray:
    return np.arange(first, first + BATCH, dtype=np.uint32)
