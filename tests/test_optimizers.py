import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from skin_jax import optimizers
from skin_jax.errors import UserError

SECTION = {"learning_rate": 0.1, "b1": 0.5, "b2": 0.999, "schedule": "constant", "warmup_steps": 0}


def step_sizes(num_steps: int, **changes) -> list[float]:
    """Sizes of Adam's steps under a constant gradient, where they equal the learning rate."""
    optimizer = optimizers.make(ConfigDict(SECTION | changes), num_steps)
    params = jnp.zeros(())
    state = optimizer.init(params)
    sizes = []
    for _ in range(num_steps):
        updates, state = optimizer.update(jnp.ones(()), state, params)
        sizes.append(-float(updates))
    return sizes


def test_constant_schedule():
    np.testing.assert_allclose(step_sizes(5), [0.1] * 5, rtol=1e-4)


def test_cosine_schedule_warms_up_and_ends_near_zero():
    sizes = step_sizes(10, schedule="cosine", warmup_steps=2)
    np.testing.assert_allclose(sizes[:3], [0.0, 0.05, 0.1], rtol=1e-4)
    assert all(a > b for a, b in itertools.pairwise(sizes[2:]))
    assert sizes[-1] < 0.01


def test_unknown_schedule_names_the_key():
    with pytest.raises(UserError, match=r"config.optimizer.schedule is 'linear'"):
        optimizers.make(ConfigDict(SECTION | {"schedule": "linear"}), 10)
