"""The interface of a task: everything in which tasks differ is asked of them, never recognised."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from skin_jax.base import devices
from skin_jax.base.errors import UserError

PyTree = Any
Metrics = dict[str, jax.Array]
TrainStep = Callable[[Any, dict[str, jax.Array], jax.Array], tuple[Any, Metrics]]


class Score(NamedTuple):
    """The scalar that the best checkpoint is chosen by."""

    name: str
    higher_is_better: bool


class Drawn(NamedTuple):
    """Generators to draw from, and where in the run each class's was taken.

    steps and scored are [n] over all classes of the run: the step of the generator of a class, and
    whether a score chose it.
    """

    generators: PyTree
    steps: np.ndarray
    scored: np.ndarray


class Task:
    """Base of all tasks: what does not apply to a task is left as it is here.

    The state is the task's own. Abilities (`predict`, `explain`, `features`, `traits`, `images_of`)
    are methods that a task has or has not; `require` gives one or says that there is none. Some
    are for evaluators alone (`scored`, `realness`).

    Attributes:
      headline: scalars of `train_step` that the progress line shows.
      evaluators: names in `eval.evaluators.EVALUATORS`, in the order in which they look at a state.
      score: chooses the best checkpoint; one of the evaluators' scalars.
      conditional: whether `images_of` draws images of the class that it is given; where it does
        not, they are of no class in particular, and `predict` has to judge them.
      labelled_rows: rows of a training batch that have a label, the first ones; None: all of them.
      noise_law: what each number of `images_of`'s noise is drawn from, for users of exported files.
      compared_with: the split of the real images that evaluators compare generated ones with.
    """

    headline: tuple[str, ...]
    evaluators: tuple[str, ...] = ()
    score = Score("val_macro_auc", higher_is_better=True)
    conditional = False
    noise_law = "standard normal"
    labelled_rows: int | None = None
    compared_with = "train"

    def init(self, rng: jax.Array) -> Any:
        """The state before the first step."""
        raise NotImplementedError

    def train_step(
        self, state: Any, batch: dict[str, jax.Array], rng: jax.Array
    ) -> tuple[Any, Metrics]:
        """One step: the new state, and float32 to log: [] each, or [K] over `classes_drawn`."""
        raise NotImplementedError

    def pretrained(self, state: Any) -> Any:
        """The state before step 0, with pretrained weights where the task starts from any.

        Takes arrays and `jax.ShapeDtypeStruct`s alike; what is not pretrained stays as it came.

        Raises:
          UserError: the weights cannot be read, or do not fit the network.
        """
        return state

    def mesh(self, num_devices: int | None, batch_size: int) -> Mesh:
        """The devices of a run.

        Args:
          num_devices: how many; None: as many as the task can use.
          batch_size: of the configuration.

        Raises:
          UserError: numbers that do not fit.
        """
        mesh = devices.make_mesh(num_devices)
        devices.check_batch_size(batch_size, mesh, "batch_size")
        return mesh

    def placement(self, mesh: Mesh) -> NamedSharding:
        """Where the state lives in training: whole on every device.

        Checkpoints and evaluators always have it whole on every device; where a task lays it out
        otherwise, `spread` and `gathered` lead from the one to the other.
        """
        return devices.replicated(mesh)

    def spread(self, state: Any, mesh: Mesh) -> Any:
        """The state as `step_on` takes it, of one as `init` makes it; traced."""
        del mesh
        return state

    def gathered(self, state: Any) -> Any:
        """The state as `init` makes it, of one that `spread` has laid out; traced."""
        return state

    def fed_rows(self, batch_size: int, mesh: Mesh) -> int:
        """Rows of a batch as `step_on` takes it: `rows`, or more, which repeat the first ones."""
        del mesh
        return self.rows(batch_size)

    def shares(self, mesh: Mesh) -> str:
        """Says who works on what, where that is no matter of course; else ""."""
        del mesh
        return ""

    def train_size(self, step: int) -> int | None:
        """Side of the images that a step trains on, as an argument of `step_on`; None: as they are.

        The loop compiles a program for each.
        """
        return None

    def step_on(self, mesh: Mesh, size: int | None = None) -> TrainStep:
        """`train_step` on global batches that are split over the devices.

        Its state is laid out by `spread`, its batch has `fed_rows`.

        Args:
          mesh: the devices.
          size: one of `train_size`.
        """
        del mesh, size
        return self.train_step

    def rows(self, batch_size: int) -> int:
        """Examples in a training batch, for the `batch_size` of the configuration."""
        return batch_size

    def with_unlabelled(self, batch_size: int) -> "Task":
        """The task for a training split in which not all images have a label.

        A task without a use for those that have none is left as it is, and never sees them.

        Args:
          batch_size: of the configuration.

        Raises:
          UserError: a batch that cannot hold both.
        """
        del batch_size
        return self

    def order(self, sampling: str, exponent: float) -> dict[str, Any]:
        """Arguments of `data.order.Order`, for `data.sampling` and its exponent."""
        return {"sampling": sampling, "exponent": exponent}

    def classes_drawn(self, num_classes: int) -> np.ndarray:
        """Labels of the classes that it has images to draw of, int [K], increasing."""
        return np.arange(num_classes)

    def generators(self, state: Any) -> PyTree:
        """The part of a state (or of its shapes) for `images_of`, averaged where EMA is on."""
        raise NotImplementedError

    def drawn_from(self, state: Any, step: int, num_classes: int) -> Drawn:
        """The best generators that a state holds.

        Args:
          state: of a checkpoint.
          step: of that checkpoint.
          num_classes: n, of the run.
        """
        steps = np.full(num_classes, step)
        return Drawn(self.generators(state), steps, np.ones(num_classes, bool))


_LACKING = {
    "predict": "does not classify images; skin_jax.generate draws from it, and skin_jax.eval "
    "--quality compares what it draws with real images",
    "explain": "does not explain its predictions",
    "features": "has no features of images",
    "traits": "cannot say how unlike its training images a picture is",
    "images_of": "does not generate images",
    "judge": "has no network that other programs know by its tensors",
}


def can(task: Task, *abilities: str) -> bool:
    """Whether a task has all of some abilities."""
    return all(hasattr(task, ability) for ability in abilities)


def require(task: Task, ability: str, whose: object) -> Callable[..., Any]:
    """An ability of a task.

    Args:
      task: of a run.
      ability: "predict", "explain", "features", "traits", "images_of" or "judge".
      whose: the run, for the message.

    Raises:
      UserError: the task lacks it.
    """
    if not can(task, ability):
        raise UserError(f"{whose}: a run of its task, {task_name(task)}, {_LACKING[ability]}")
    return getattr(task, ability)


def task_name(task: Task) -> str:
    """The name of a task in messages."""
    return type(task).__name__
