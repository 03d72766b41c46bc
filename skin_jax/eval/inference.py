"""Class probabilities of examples: the jitted forward pass over padded, masked batches."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
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

    The size of the mesh divides the leading axes; the state lies on it already.
    """
    options = devices.compiler_options(devices.platform(mesh))
    jitted, placement = jax.jit(function, compiler_options=options), devices.over_batch(mesh)

    def run(state: PyTree, *arrays: np.ndarray) -> jax.Array:
        return jitted(state, *jax.device_put(arrays, placement))

    return run


def orientations(images: np.ndarray) -> Iterator[np.ndarray]:
    """The images [B, S, S, 3] and their seven other orientations: quarter turns and mirrors."""
    for side in (images, images[:, :, ::-1]):
        for quarters in range(4):
            yield np.rot90(side, quarters, axes=(1, 2))
