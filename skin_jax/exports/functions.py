"""What an exported file computes: a function of arrays with the weights and all scaling inside."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import export

from skin_jax import tasks
from skin_jax.base import command, devices
from skin_jax.tasks.augment import keys_of, to_uint8
from skin_jax.training.run import Trained


class Function(NamedTuple):
    """A function to export.

    Attributes:
      call: of arrays in the order of `inputs` -> one array of B examples.
      inputs: name -> shape and dtype, with a symbol for B: any number of examples.
      output: name of what it returns.
      metadata: what a user has to know, JSON.
    """

    call: Callable[..., jax.Array]
    inputs: dict[str, jax.ShapeDtypeStruct]
    output: str
    metadata: dict[str, Any]


def of(run: Trained, part: str | None) -> Function:
    """The classifier or the generator of a run's best checkpoint.

    Args:
      run: with a checkpoint.
      part: "predict" or "generate"; None: the first that the run can.

    Raises:
      UserError: the run cannot do it, or has no checkpoint.
    """
    part = part or ("predict" if tasks.can(run.task, "predict") else "generate")
    size, mesh = int(run.config.data.image_size), devices.make_mesh(1)
    (batch,) = export.symbolic_shape("B")
    metadata: dict[str, Any] = {
        "program": f"skin_jax {command.version()}",
        "classes": list(run.classes.names),
        "titles": list(run.classes.titles),
    }
    if part == "predict":
        predict = run.ability("predict")
        state, step = run.best_state(mesh)
        metadata |= {
            "step": step,
            "images": f"uint8 [B, {size}, {size}, 3], RGB, 0 to 255; resized to a square, bilinear "
            "with antialiasing",
            "probabilities": f"float32 [B, {len(run.classes)}], in the order of the classes",
        }
        return Function(
            lambda images: predict(state, images),
            {"images": jax.ShapeDtypeStruct((batch, size, size, 3), jnp.uint8)},
            "probabilities",
            metadata,
        )
    images_of = run.ability("images_of")
    keys = keys_of(jax.random.key(0), jnp.arange(1))
    noise = jax.eval_shape(run.task.noise, keys)  # type: ignore[attr-defined]
    inputs = {"noise": jax.ShapeDtypeStruct((batch, noise.shape[1]), jnp.float32)}
    metadata |= {
        "noise": f"float32 [B, {noise.shape[1]}], {run.task.noise_law}",
        "images": f"uint8 [B, {size}, {size}, 3], RGB",
    }
    if not run.task.conditional:
        state, step = run.best_state(mesh)
        generators = run.task.generators(state)
        metadata |= {"step": step}
        return Function(
            lambda noise: to_uint8(images_of(generators, 0, noise)), inputs, "images", metadata
        )
    drawn = run.drawn_from(mesh, None)
    labels = run.task.classes_drawn(len(run.classes)).tolist()
    inputs["label"] = jax.ShapeDtypeStruct((), jnp.int32)
    metadata |= {
        "step": [int(drawn.steps[label]) for label in labels],
        "label": f"int32 [], one of {labels}, numbers of the classes",
    }
    return Function(
        lambda noise, label: to_uint8(images_of(drawn.generators, label, noise)),
        inputs,
        "images",
        metadata,
    )
