"""What is trained: each task is init, train_step, predict and so on, where they apply."""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from ml_collections import ConfigDict

from skin_jax.config import choice
from skin_jax.tasks import classifier, dcgan, sgan

PyTree = Any


class Task(Protocol):
    """What the training loop needs of a task; the state is its own."""

    @property
    def headline(self) -> tuple[str, ...]:
        """The scalars of `train_step` that the progress line shows."""

    def init(self, rng: jax.Array) -> Any:
        """The state before the first step."""

    def train_step(
        self, state: Any, batch: dict[str, jax.Array], rng: jax.Array
    ) -> tuple[Any, dict[str, jax.Array]]:
        """One step: the new state, and scalars to log."""


@runtime_checkable
class Classifies(Protocol):
    """A task that gives class probabilities."""

    def predict(self, state: Any, images: jax.Array) -> jax.Array:
        """Probabilities float32 [B, 7] of uint8 images [B, H, W, 3]."""


@runtime_checkable
class Generates(Protocol):
    """A task that generates images."""

    def sample(self, state: Any, rng: jax.Array, labels: jax.Array) -> jax.Array:
        """Images float32 [B, H, W, 3] in [-1, 1]."""


@runtime_checkable
class GeneratesByClass(Protocol):
    """A task with a generator for each of K classes.

    All arrays of its state have a first axis of K entries, and nothing passes between these: its
    `train_step` gets some or all of them, with their rows of the batch, and gives metrics [K].
    """

    @property
    def labels(self) -> np.ndarray:
        """The classes, int [K], increasing."""

    @property
    def per_class(self) -> int:
        """Images of each class in a batch."""

    def noise(self, keys: jax.Array) -> jax.Array:
        """A noise vector for each of B typed keys, float32 [B, Z]."""

    def current(self, state: Any) -> Any:
        """The generators as they are, leaves [K, ...]."""

    def best(self, state: Any) -> Any:
        """The generators with the best scores so far, leaves [K, ...]."""

    def images_of(self, generators: Any, place: jax.Array | int, noise: jax.Array) -> jax.Array:
        """Images float32 [B, S, S, 3] in [-1, 1] of the class at a place in `labels`."""

    def scored(self, state: Any, scores: jax.Array) -> Any:
        """The state in which generators with lower scores [K] than before are the best ones."""


@runtime_checkable
class Explains(Protocol):
    """A task that shows where in an image it found what speaks for a class."""

    def explain(self, state: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
        """Heat maps float32 [B, h, w] in [0, 1] of uint8 images [B, H, W, 3].

        The labels, int32 [B], are the classes to explain; h and w are the task's own.
        """


@runtime_checkable
class Describes(Protocol):
    """A task that describes images by a vector of features."""

    def features(self, state: Any, images: jax.Array) -> jax.Array:
        """Features float32 [B, D] of uint8 images [B, H, W, 3]."""


@runtime_checkable
class Pretrained(Protocol):
    """A task that may start from pretrained weights."""

    def pretrained(self, state: Any) -> Any:
        """The state before step 0, pretrained weights in the place of random ones.

        Takes arrays and `jax.ShapeDtypeStruct`s alike; what is not pretrained stays as it came.

        Raises:
          UserError: the weights cannot be read, or do not fit the network.
        """


TASKS: dict[str, Callable[[ConfigDict, np.ndarray, int, float], Task]] = {
    "sgan": sgan.build,
    "classifier": classifier.build,
    "dcgan": dcgan.build,
}


def build(
    config: ConfigDict, class_counts: np.ndarray, num_steps: int, steps_per_epoch: float
) -> Task:
    """The task that `config.task` names; see the `build` of each."""
    name = choice(config.task, tuple(TASKS), "task")
    return TASKS[name](config, class_counts, num_steps, steps_per_epoch)
