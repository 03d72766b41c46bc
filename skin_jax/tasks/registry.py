"""The table of tasks, each a module with its class and its settings."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from ml_collections import ConfigDict

from skin_jax.base.code import name_of
from skin_jax.base.errors import UserError
from skin_jax.config import choice
from skin_jax.tasks import classifier, dcgan, projected, sgan
from skin_jax.tasks.task import Drawn, Score, Task, can, require

__all__ = ["TASKS", "Drawn", "Kind", "Score", "Task", "build", "can", "kind", "require"]


class Kind(Protocol):
    """An entry of the table of tasks: a module, or anything with the same functions.

    A class of one's own with them as static methods may stand in `config.task`, from the file that
    makes the configuration: `config = skin_jax.config.base(MyTask)`.
    """

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

    def settle(self, config: ConfigDict, classes: Sequence[str]) -> None:
        """Writes settings in full that depend on the names of the classes, in place.

        Raises:
          UserError: an unknown class.
        """

    def epoch(self, config: ConfigDict, classes: Sequence[str], real_counts: np.ndarray) -> int:
        """Images in an epoch, of int [n] real training images of each class."""


TASKS: dict[str, Kind] = {
    "sgan": sgan,
    "classifier": classifier,
    "dcgan": dcgan,
    "projected": projected,
}


def kind(config: ConfigDict) -> Kind:
    """The entry of the table that `config.task` names, or a task of the user's own that it is.

    Raises:
      UserError: there is none, or the user's own lacks a function.
    """
    own = config.task
    if not callable(own):
        return TASKS[choice(own, tuple(TASKS), "task")]
    for name in ("build", "settle", "epoch"):
        if not hasattr(own, name):
            raise UserError(
                f"config.task, {name_of(own)}, has no function {name}; see skin_jax.tasks.Kind for "
                "what a task of one's own needs"
            )
    return own


def build(
    config: ConfigDict,
    classes: Sequence[str],
    class_counts: np.ndarray,
    num_steps: int,
    steps_per_epoch: float,
) -> Task:
    """The task that `config.task` names; see `Kind.build`."""
    return kind(config).build(config, classes, class_counts, num_steps, steps_per_epoch)
