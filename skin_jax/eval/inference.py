"""Class probabilities of examples: the jitted forward pass over padded, masked batches."""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from skin_jax.base import devices
from skin_jax.data.pipeline import Pipeline

PyTree = Any
Predictor = Callable[[PyTree, np.ndarray, int], np.ndarray]


def make_predictor(
    predict: Callable[[PyTree, jax.Array], jax.Array], pipeline: Pipeline
) -> Predictor:
    """A function (state, indices int [N], batch_size) -> probabilities float64 [N, n].

    There must be examples, N > 0. Each counts once for any batch size; rows are in the order of
    `indices`. It compiles once for each batch size.
    """

    def forward(
        state: PyTree, resident: PyTree, feed: dict[str, jax.Array]
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        batch = pipeline.gather(resident, feed)
        return predict(state, batch["image"]), batch["position"], batch["mask"]

    jitted = jax.jit(
        forward,
        out_shardings=devices.replicated(pipeline.mesh),  # every process has all of them
        compiler_options=devices.compiler_options(devices.platform(pipeline.mesh)),
    )

    def run(state: PyTree, indices: np.ndarray, batch_size: int) -> np.ndarray:
        found = []
        for feed in pipeline.eval_feeds(indices, batch_size):
            values, rows, mask = map(np.asarray, jitted(state, pipeline.resident, feed))
            found.append((rows[mask > 0], values[mask > 0]))
        probabilities = np.full((len(indices), found[0][1].shape[1]), np.nan)
        for rows, values in found:
            probabilities[rows] = values
        return probabilities

    return run


def over_devices(function: Callable[..., jax.Array], mesh: Mesh) -> Callable[..., jax.Array]:
    """`function(state, *arrays)`, jitted, the leading axis of each array split over the devices.

    The size of the mesh divides the leading axes; the state lies on it already. Several processes
    are all given the same arrays, and all have the whole result.
    """
    placement = devices.over_batch(mesh)
    jitted = jax.jit(
        function,
        compiler_options=devices.compiler_options(devices.platform(mesh)),
        out_shardings=devices.replicated(mesh) if devices.several() else None,
    )

    def run(state: PyTree, *arrays: np.ndarray) -> jax.Array:
        if devices.several():
            own = [rows[devices.local_rows(mesh, len(rows))] for rows in arrays]
            return jitted(state, *devices.to_global(own, placement))
        return jitted(state, *jax.device_put(arrays, placement))

    return run


def orientations(images: np.ndarray) -> Iterator[np.ndarray]:
    """The images [B, S, S, 3] and their seven other orientations: quarter turns and mirrors."""
    for side in (images, images[:, :, ::-1]):
        for quarters in range(4):
            yield np.rot90(side, quarters, axes=(1, 2))


class View(NamedTuple):
    """How an image is looked at: its middle, transposed or not, mirrored or not along each axis.

    scale is the side of the middle as a share of the image's, enlarged to the image's size; None
    for the whole image.
    """

    transposed: bool = False
    mirrored_rows: bool = False
    mirrored_columns: bool = False
    scale: float | None = None


def views(tta: bool, scales: Sequence[float] = (1.0,)) -> list[View]:
    """Views to average over: with `tta` the eight orientations, at each of the scales in (0, 1]."""
    either = (False, True) if tta else (False,)
    sides = [None if scale == 1.0 else scale for scale in scales]
    return [View(*chosen) for chosen in itertools.product(either, either, either, sides)]


def viewed(function: Callable[[PyTree, jax.Array], jax.Array]) -> Callable[..., jax.Array]:
    """The function ((state, view), images) -> function(state, the images as the view has them).

    Jitted, it compiles once for all views without a scale and once for all with one.
    """

    @functools.wraps(function)  # for its name
    def run(at: tuple[PyTree, View], images: jax.Array) -> jax.Array:
        state, view = at
        return function(state, _seen(images, view))

    return run


def averaged(
    predict: Callable[[PyTree, jax.Array], jax.Array], pipeline: Pipeline, views: Sequence[View]
) -> Predictor:
    """As `make_predictor`, but means over the views."""
    of_view = make_predictor(viewed(predict), pipeline)

    def mean(state: PyTree, indices: np.ndarray, batch_size: int) -> np.ndarray:
        return np.mean([of_view((state, view), indices, batch_size) for view in views], axis=0)

    return mean


def _seen(images: jax.Array, view: View) -> jax.Array:
    """The view of uint8 images [B, S, S, 3], in the same shape."""
    x = jnp.where(view.transposed, images.swapaxes(1, 2), images)
    x = jnp.where(view.mirrored_rows, x[:, ::-1], x)
    x = jnp.where(view.mirrored_columns, x[:, :, ::-1], x)
    if view.scale is None:
        return x
    factor = 1.0 / jnp.asarray(view.scale, jnp.float32)
    shift = x.shape[1] * (1.0 - factor) / 2.0
    enlarged = jax.image.scale_and_translate(
        x.astype(jnp.float32),
        x.shape,
        (1, 2),
        jnp.stack([factor, factor]),
        jnp.stack([shift, shift]),
        "linear",
    )
    return jnp.clip(jnp.round(enlarged), 0.0, 255.0).astype(jnp.uint8)
