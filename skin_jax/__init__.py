"""Skin lesion classification with GAN data augmentation, on JAX and Flax.

import skin_jax

run = skin_jax.load("runs/mine")
run.classes.names                 # the order of the columns
run.predict(["a.jpg", "b.jpg"])   # probabilities [2, n]
run.generate("mel", 16)           # uint8 [16, S, S, 3]

skin_jax.train(skin_jax.config.load("classifier:smoke"), "runs/mine")
"""

from typing import TYPE_CHECKING, Any

from skin_jax import config
from skin_jax.base.errors import UserError

if TYPE_CHECKING:
    from skin_jax.api import Run, load, metrics, train

__all__ = ["Run", "UserError", "config", "load", "metrics", "train"]


def __getattr__(name: str) -> Any:
    """Imports the interface when it is first asked for: JAX takes its time, `--help` needs none."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from skin_jax import api

    return getattr(api, name)
