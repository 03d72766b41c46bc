import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from skin_jax.tasks import optimizers

SECTION = {"learning_rate": 0.1, "b1": 0.5, "b2": 0.999, "schedule": "constant", "warmup_steps": 0}
FINE_TUNING = {
    "learning_rate": 0.1,
    "weight_decay": 0.0,
    "backbone_multiplier": 1.0,
    "layer_decay": 1.0,
    "schedule": "constant",
    "warmup_steps": 0,
}
PARAMS = {
    "stem": {"kernel": jnp.full((3, 3, 2, 4), 2.0)},
    "stem_norm": {"scale": jnp.full(4, 2.0)},
    "norm": {"scale": jnp.full(4, 2.0), "bias": jnp.full(4, 2.0)},
    "head": {"logits": {"kernel": jnp.full((4, 7), 2.0), "bias": jnp.full(7, 2.0)}},
}


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


def moved(grads, num_steps=10, steps=1, **changes):
    """How far each parameter of PARAMS is after some steps, as one number each."""
    optimizer = optimizers.fine_tuning(
        ConfigDict(FINE_TUNING | changes), num_steps, "head", ("stem", "stem_norm", "norm", "head")
    )
    params, state = PARAMS, optimizer.init(PARAMS)
    for _ in range(steps):
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return jax.tree.map(lambda new, old: np.unique(new - old).item(), params, PARAMS)


ONES = jax.tree.map(jnp.ones_like, PARAMS)
ZEROS = jax.tree.map(jnp.zeros_like, PARAMS)


def test_constant_schedule():
    np.testing.assert_allclose(step_sizes(5), [0.1] * 5, rtol=1e-4)


def test_cosine_schedule_warms_up_and_ends_near_zero():
    sizes = step_sizes(10, schedule="cosine", warmup_steps=2)
    np.testing.assert_allclose(sizes[:3], [0.0, 0.05, 0.1], rtol=1e-4)
    assert all(a > b for a, b in itertools.pairwise(sizes[2:]))
    assert sizes[-1] < 0.01


def test_kernels_decay_and_norms_and_biases_do_not():
    far = moved(ZEROS, weight_decay=0.5)
    np.testing.assert_allclose(far["stem"]["kernel"], -0.1 * 0.5 * 2.0, rtol=1e-5)
    np.testing.assert_allclose(far["head"]["logits"]["kernel"], -0.1 * 0.5 * 2.0, rtol=1e-5)
    assert far["norm"] == {"scale": 0.0, "bias": 0.0}
    assert far["head"]["logits"]["bias"] == 0.0


def test_the_backbone_moves_and_decays_by_its_share_of_the_head_s():
    for grads, decay in ((ONES, 0.0), (ZEROS, 0.5), (ONES, 0.5)):
        far = moved(grads, weight_decay=decay, backbone_multiplier=0.25)
        np.testing.assert_allclose(
            far["stem"]["kernel"], 0.25 * far["head"]["logits"]["kernel"], rtol=1e-5
        )
        np.testing.assert_allclose(
            far["norm"]["bias"], 0.25 * far["head"]["logits"]["bias"], rtol=1e-5
        )
    frozen = moved(ONES, weight_decay=0.5, backbone_multiplier=0.0)
    assert set(jax.tree.leaves([frozen["stem"], frozen["norm"]])) == {0.0}
    assert frozen["head"]["logits"]["bias"] != 0.0


def test_each_stage_of_the_backbone_moves_less_than_the_next():
    far = moved(ONES, backbone_multiplier=0.5, layer_decay=0.8)
    whole = far["head"]["logits"]["kernel"]
    np.testing.assert_allclose(far["norm"]["bias"], 0.5 * whole, rtol=1e-5)
    np.testing.assert_allclose(far["stem"]["kernel"], 0.4 * whole, rtol=1e-5)
    np.testing.assert_allclose(far["stem_norm"]["scale"], 0.4 * whole, rtol=1e-5)


def test_decay_follows_the_schedule():
    first = moved(ZEROS, weight_decay=0.5, schedule="cosine", warmup_steps=2)
    assert set(jax.tree.leaves(first)) == {0.0}
    second = moved(ZEROS, weight_decay=0.5, schedule="cosine", warmup_steps=2, steps=2)
    np.testing.assert_allclose(second["stem"]["kernel"], -0.05 * 0.5 * 2.0, rtol=1e-5)
