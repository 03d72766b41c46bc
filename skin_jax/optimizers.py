"""From the `optimizer` section of a configuration to optax."""

import optax
from ml_collections import ConfigDict

from skin_jax.errors import UserError


def make(section: ConfigDict, num_steps: int) -> optax.GradientTransformation:
    """Adam with a constant or a cosine learning rate.

    Args:
      section: `learning_rate`, `b1`, `b2`, `schedule` ("constant" or "cosine"), and
        `warmup_steps` of linear warm-up.
      num_steps: length of the run, where a cosine schedule ends at 0.

    Raises:
      UserError: an unknown schedule, or a learning rate that is not positive.
    """
    if not section.learning_rate > 0:
        raise UserError(
            f"config.optimizer.learning_rate is {section.learning_rate}; it must be above 0"
        )
    if section.schedule == "constant":
        decay = optax.constant_schedule(section.learning_rate)
    elif section.schedule == "cosine":
        decay = optax.cosine_decay_schedule(
            section.learning_rate, max(1, num_steps - section.warmup_steps)
        )
    else:
        raise UserError(
            f"config.optimizer.schedule is {section.schedule!r}; it can be 'constant' or 'cosine'"
        )
    schedule = decay
    if section.warmup_steps:
        warmup = optax.linear_schedule(0.0, section.learning_rate, section.warmup_steps)
        schedule = optax.join_schedules([warmup, decay], [section.warmup_steps])
    return optax.adam(schedule, b1=section.b1, b2=section.b2)
