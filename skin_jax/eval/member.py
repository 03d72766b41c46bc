"""A trained run that looks at images: its best checkpoint, with what `calibrate` keeps of it."""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from skin_jax.base.errors import UserError
from skin_jax.eval import calibration, familiarity, inference
from skin_jax.eval.calibration import Calibration
from skin_jax.eval.familiarity import Reference
from skin_jax.eval.inference import View
from skin_jax.tasks.state import digest
from skin_jax.training.run import Trained

PyTree = Any


class Member:
    """A run and its functions of images uint8 [B, S, S, 3], where the devices divide B.

    Weights are read at the first use; a function is compiled at its own. All methods raise a
    UserError where the run's task cannot do what is asked, or it has no usable checkpoint.
    """

    def __init__(self, run: Trained, mesh: Mesh):
        """Wraps an opened run; the images are split over the devices of the mesh."""
        self.run = run
        self.mesh = mesh
        self._compiled: dict[str, Callable[..., jax.Array]] = {}

    @property
    def image_size(self) -> int:
        """S, the side of its images in pixels."""
        return int(self.run.config.data.image_size)

    @cached_property
    def best(self) -> tuple[PyTree, int]:
        """The state of its best checkpoint, on the devices, and the step."""
        return self.run.best_state(self.mesh)

    @property
    def identity(self) -> str:
        """Which run it is, by its name and its weights, and by what is known of its figures."""
        state, step = self.best
        weights = digest((state, self.reference))
        return f"{self.run.name}, step {step}, weights {weights}, {self.calibration}"

    @cached_property
    def calibration(self) -> Calibration | None:
        """That of the best checkpoint; None where there is none."""
        return calibration.read(self.run.workdir, self.best[1])

    @cached_property
    def reference(self) -> Reference | None:
        """That of the best checkpoint; None where there is none."""
        return familiarity.read(self.run.workdir) if self.calibration else None

    def probabilities(self, images: np.ndarray, views: Sequence[View]) -> np.ndarray:
        """Class probabilities float64 [B, n], means over the views."""
        call, state = self._function("predict"), self.best[0]
        # All are under way before the first is waited for.
        found = [call((state, view), images) for view in views]
        return np.mean([np.asarray(each, np.float64) for each in found], axis=0)

    def temperature(self, views: Sequence[View]) -> float:
        """That of the means over so many views, for `calibration.applied`."""
        if self.calibration is None:
            raise self._not_prepared(calibration.FILE_NAME)
        return self.calibration.temperature_of(len(views))

    def percentile(self, images: np.ndarray) -> np.ndarray:
        """How unlike the training images they are, float64 [B] in percent."""
        if self.reference is None:
            raise self._not_prepared(familiarity.FILE_NAME)
        return self.reference.percentile(self.call("traits", images))

    def call(self, ability: str, *arrays: np.ndarray) -> np.ndarray:
        """An ability of the task other than "predict", on arrays of B rows each."""
        return np.asarray(self._function(ability)(self.best[0], *arrays))

    def _function(self, ability: str) -> Callable[..., jax.Array]:
        if ability not in self._compiled:
            function = self.run.ability(ability)
            if ability == "predict":
                function = inference.viewed(function)
            self._compiled[ability] = inference.over_devices(function, self.mesh)
        return self._compiled[ability]

    def _not_prepared(self, file: str) -> UserError:
        folder = self.run.workdir
        return UserError(
            f"{folder} has no {file}; skin_jax.eval.calibrate --workdir={folder} makes it, for a "
            "classifier"
        )
