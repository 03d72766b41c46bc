"""Every task's functions lower for accelerators: what can be known of them without having one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skin_jax import config as config_lib
from skin_jax import tasks
from skin_jax.base import devices
from skin_jax.data.classes import HAM10000

B = 4
ABILITIES = {"predict": (), "features": (), "traits": (), "explain": ("labels",)}


@functools.cache
def task_of(name: str, precision: str) -> tasks.Task:
    """The task of `configs/<name>.py:smoke`, which every task has, with a small batch."""
    config = config_lib.load(f"{name}:smoke")
    config.batch_size, config.precision = B, precision
    tasks.kind(config).settle(config, HAM10000.names)
    return tasks.build(config, HAM10000.names, np.full(len(HAM10000), 9), 20, 5.0)


def arrays(placement, rows: int) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of a batch."""

    def one(dtype, *shape):
        return jax.ShapeDtypeStruct((rows, *shape), dtype, sharding=placement)

    image, position = one(jnp.uint8, 32, 32, 3), one(jnp.uint32)
    return {"image": image, "label": one(jnp.int32), "mask": one(jnp.float32), "position": position}


@pytest.mark.parametrize(("platform", "precision"), [("cuda", "float32"), ("tpu", "bf16")])
@pytest.mark.parametrize("name", tasks.TASKS)
def test_what_a_task_does_lowers_for_accelerators(name, platform, precision):
    task = task_of(name, precision)
    mesh = task.mesh(None, B)
    rng = jax.eval_shape(lambda: jax.random.key(0))
    shapes = jax.eval_shape(task.init, rng)

    def lowered(function, *arguments) -> str:
        return jax.jit(function).trace(*arguments).lower(lowering_platforms=(platform,)).as_text()

    def placed(tree, placement):
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placement), tree
        )

    batch = arrays(devices.over_batch(mesh), task.fed_rows(B, mesh))
    step = task.step_on(mesh, task.train_size(0))
    spread = jax.eval_shape(lambda state: task.spread(state, mesh), shapes)
    text = lowered(step, placed(spread, task.placement(mesh)), batch, rng)
    # Precisions that a configuration asks for reach the convolutions.
    assert ("bf16" in text) == (precision == "bf16")
    assert "stablehlo.convolution" in text

    state = placed(shapes, devices.replicated(mesh))
    batch = arrays(devices.over_batch(mesh), mesh.size)
    for ability, more in ABILITIES.items():
        if tasks.can(task, ability):
            inputs = [batch["image"], *(batch["label"] for _ in more)]
            assert "stablehlo.convolution" in lowered(getattr(task, ability), state, *inputs)
    if tasks.can(task, "images_of"):
        label = jax.ShapeDtypeStruct((), jnp.int32)
        keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), B))
        drawn = lowered(
            lambda generators, label, keys: task.images_of(generators, label, task.noise(keys)),
            *(jax.eval_shape(task.generators, shapes), label, keys),
        )
        assert "stablehlo.convolution" in drawn
