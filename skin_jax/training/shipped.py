"""The weights of a folder to pass on: what prediction and generation need, mostly in 16 bits."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from skin_jax import tasks
from skin_jax.base.errors import UserError
from skin_jax.base.files import write_atomically
from skin_jax.tasks.state import digest

PyTree = Any

WEIGHTS = "model.safetensors"

_LARGE = 30_000  # numbers
_DIGEST, _STEP = "digest", "step"
_ON_IMAGES = ("predict", "explain", "features", "traits")


class Content(NamedTuple):
    """What is kept of a run.

    Attributes:
      state: of the best checkpoint, with None in the place of leaves that no ability reads.
      drawn: the best generators of a task that is told classes; None of other tasks, whose
        generators are in the state.
      step: of that checkpoint.
    """

    state: PyTree
    drawn: tasks.Drawn | None
    step: int


def needed(task: tasks.Task, state: PyTree, image_size: int) -> PyTree:
    """The state (or its shapes), with None in the place of leaves that no ability reads.

    The abilities are traced, so that no task has to say it: optimizers and the networks that are
    only there for training are left out.
    """
    images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.uint8)
    labels = jax.ShapeDtypeStruct((1,), jnp.int32)
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state)
    calls: list[tuple[Callable[..., Any], tuple[jax.ShapeDtypeStruct, ...]]] = [
        (getattr(task, name), (images, labels) if name == "explain" else (images,))
        for name in _ON_IMAGES
        if tasks.can(task, name)
    ]
    if tasks.can(task, "images_of") and not task.conditional:
        calls.append((task.generators, ()))
    leaves, structure = jax.tree.flatten(state)
    kept = [False] * len(leaves)
    for function, arguments in calls:
        jaxpr = jax.make_jaxpr(function)(shapes, *arguments).jaxpr
        read = {id(v) for equation in jaxpr.eqns for v in equation.invars}
        read |= {id(v) for v in jaxpr.outvars}
        places = zip(kept, jaxpr.invars, strict=False)  # the arguments come after the state
        kept = [before or id(variable) in read for before, variable in places]
    chosen = [leaf if keep else None for leaf, keep in zip(leaves, kept, strict=True)]
    return jax.tree.unflatten(structure, chosen)


def write(folder: Path, content: Content) -> None:
    """Writes `model.safetensors`; large parameters become float16, all else stays float32.

    Running statistics may lie out of float16's range; so may a parameter, which then stays float32,
    too. Small parameters are most of the first layers, whose rounding all others pass on: in 32
    bits, they take 9% more bytes of an EfficientNet-Lite0 and leave a fifteenth of the error.
    """
    tensors = {}
    for name, leaf in _named({"state": content.state, "drawn": content.drawn}).items():
        array = np.array(jax.device_get(leaf), order="C")
        large = array.dtype == np.float32 and array.size >= _LARGE
        if large and "batch_stats" not in name.split("/"):
            with np.errstate(over="ignore"):
                half = array.astype(np.float16)
            array = half if np.isfinite(half).all() else array
        tensors[name] = array
    metadata = {_DIGEST: digest(tensors), _STEP: str(content.step)}
    write_atomically(folder / WEIGHTS, save(tensors, metadata))


def read(folder: Path, task: tasks.Task, num_classes: int) -> Content:
    """Reads what `write` wrote, as NumPy arrays of the dtypes that the task computes with.

    UserError: the file is damaged, or of another network than `config.json` describes.
    """
    path = folder / WEIGHTS
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    drawn = None
    if tasks.can(task, "images_of") and task.conditional:
        generators = jax.eval_shape(task.generators, shapes)
        drawn = tasks.Drawn(generators, np.zeros(num_classes, int), np.zeros(num_classes, bool))
    template = {"state": shapes, "drawn": drawn}
    try:
        with safe_open(path, "numpy") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
        if digest(tensors) != metadata[_DIGEST]:
            raise ValueError("its contents are not those that were written")
        expected = _named(template)
        for name, array in tensors.items():
            if name not in expected or expected[name].shape != array.shape:
                raise ValueError(f"{name} does not fit the network of config.json")
        step = int(metadata[_STEP])
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise UserError(
            f"{path} is damaged ({error}); restore it from a copy, or export the run again"
        ) from None

    found = {name: array.astype(expected[name].dtype) for name, array in tensors.items()}
    content = jax.tree_util.tree_map_with_path(lambda path, _: found.get(_name(path)), template)
    return Content(**content, step=step)


def _named(tree: PyTree) -> dict[str, Any]:
    return {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
