"""The table of tasks, each a module with its class and its settings."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from ml_collections import ConfigDict

from skin_jax.config import choice
from skin_jax.tasks import classifier, dcgan, sgan
from skin_jax.tasks.task import Drawn, Score, Task, can, require

__all__ = ["TASKS", "Drawn", "Kind", "Score", "Task", "build", "can", "kind", "register", "require"]


class Kind(Protocol):
    """What the table has for each task: a module, or anything with the same functions."""

    def build(
        self,
        config: ConfigDict,
        classes: Sequence[str],
        class_counts: np.ndarray,
        num_steps: int,
        steps_per_epoch: float,
    ) -> Task:
        """The task of a configuration.

        Args:
          config: with the sections of the task.
          classes: n names.
          class_counts: int [n], images of each class in the training stream.
          num_steps: length of the run.
          steps_per_epoch: batches in one pass over the training split.

        Raises:
          UserError: a setting that does not fit.
        """

    def defaults(self) -> ConfigDict:
        """A configuration of the task."""

    def smoke(self, config: ConfigDict) -> None:
        """Makes a run one of about a minute, in place."""

    def settle(self, config: ConfigDict, classes: Sequence[str]) -> None:
        """Writes settings in full that depend on the names of the classes, in place.

        Raises:
          UserError: an unknown class.
        """

    def epoch(self, config: ConfigDict, classes: Sequence[str], real_counts: np.ndarray) -> int:
        """Images in an epoch, of int [n] real training images of each class."""


TASKS: dict[str, Kind] = {"sgan": sgan, "classifier": classifier, "dcgan": dcgan}


def register(name: str, kind: Kind) -> None:
    """Adds a task of one's own, from a configuration file: `config.task` may then name it."""
    TASKS[name] = kind


def kind(config: ConfigDict) -> Kind:
    """The entry of the table that `config.task` names.

    Raises:
      UserError: there is none.
    """
    return TASKS[choice(config.task, tuple(TASKS), "task")]


def build(
    config: ConfigDict,
    classes: Sequence[str],
    class_counts: np.ndarray,
    num_steps: int,
    steps_per_epoch: float,
) -> Task:
    """The task that `config.task` names; see `Kind.build`."""
    return kind(config).build(config, classes, class_counts, num_steps, steps_per_epoch)
