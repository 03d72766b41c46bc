"""From the `optimizer` section of a configuration to optax."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import optax
from ml_collections import ConfigDict

from skin_jax.base.errors import UserError

PyTree = Any


def make(section: ConfigDict, num_steps: int) -> optax.GradientTransformation:
    """Adam with a constant or a cosine learning rate.

    Args:
      section: `b1`, `b2`, and what `learning_rate` takes.
      num_steps: length of the run, where a cosine schedule ends at 0.

    Raises:
      UserError: a warm-up that is not shorter than the run.
    """
    return optax.adam(learning_rate(section, num_steps), b1=section.b1, b2=section.b2)


def fine_tuning(
    section: ConfigDict, num_steps: int, head: str, submodules: Sequence[str] = ()
) -> optax.GradientTransformation:
    """AdamW (Loshchilov and Hutter, ICLR 2019) for a classifier whose backbone is pretrained.

    Norms' scales and biases do not decay; the backbone's steps and decay are `backbone_multiplier`
    times the head's. With `layer_decay` d those of a stage are d times those of the next one (Bao
    et al., "BEiT", ICLR 2022, appendix); the last has `backbone_multiplier`.

    Args:
      section: `weight_decay`, `backbone_multiplier`, `layer_decay`, and what `learning_rate` takes.
      num_steps: length of the run, where a cosine schedule ends at 0.
      head: the submodule of the network that is no part of its backbone.
      submodules: names of all, from the input on; for a `layer_decay` other than 1. Those that are
        equal up to a "_" are one stage.

    Raises:
      UserError: a warm-up that is not shorter than the run.
    """
    if section.layer_decay == 1.0:
        rates = optax.masked(
            optax.scale(section.backbone_multiplier), lambda params: _outside(params, head)
        )
    else:
        stages = list(dict.fromkeys(_stage(name) for name in submodules if name != head))
        factors = {
            stage: section.backbone_multiplier * section.layer_decay ** (len(stages) - 1 - i)
            for i, stage in enumerate(stages)
        }
        rates = _scaled_by(lambda name: 1.0 if name == head else factors[_stage(name)])
    return optax.chain(
        optax.scale_by_adam(),
        optax.add_decayed_weights(section.weight_decay, mask=_decays),
        rates,
        optax.scale_by_learning_rate(learning_rate(section, num_steps)),
    )


def _stage(submodule: str) -> str:
    return submodule.partition("_")[0]


def _scaled_by(factor: Callable[[str], float]) -> optax.GradientTransformation:
    """Multiplies the updates of each submodule by a factor that its name has."""

    def update(updates: PyTree, params: PyTree) -> PyTree:
        del params
        return {name: optax.tree.scale(factor(name), part) for name, part in updates.items()}

    return optax.stateless(update)


def learning_rate(section: ConfigDict, num_steps: int) -> optax.Schedule:
    """The learning rate of each step.

    Args:
      section: `learning_rate`, `schedule` ("constant" or "cosine"), and `warmup_steps` of linear
        warm-up.
      num_steps: length of the run, where a cosine schedule ends at 0.

    Raises:
      UserError: a warm-up that is not shorter than the run.
    """
    if section.warmup_steps >= num_steps:
        raise UserError(
            f"config.optimizer.warmup_steps is {section.warmup_steps}, but the run has {num_steps} "
            "steps; it must be shorter"
        )
    if section.schedule == "constant":
        decay = optax.constant_schedule(section.learning_rate)
    else:
        decay = optax.cosine_decay_schedule(
            section.learning_rate, max(1, num_steps - section.warmup_steps)
        )
    if not section.warmup_steps:
        return decay
    warmup = optax.linear_schedule(0.0, section.learning_rate, section.warmup_steps)
    return optax.join_schedules([warmup, decay], [section.warmup_steps])


def _decays(params: PyTree) -> PyTree:
    """Whether weight decay pulls at a parameter: at kernels, not at biases and norms' scales."""
    return jax.tree.map(lambda x: x.ndim > 1, params)


def _outside(params: PyTree, submodule: str) -> PyTree:
    return {
        name: jax.tree.map(lambda _, outside=name != submodule: outside, part)
        for name, part in params.items()
    }
