"""Class probabilities of examples: the jitted forward pass over padded, masked batches."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from skin_jax.data.lesions import NUM_CLASSES
from skin_jax.data.pipeline import Pipeline

PyTree = Any
Predictor = Callable[[PyTree, np.ndarray, int], np.ndarray]


def make_predictor(
    predict: Callable[[PyTree, jax.Array], jax.Array], pipeline: Pipeline
) -> Predictor:
    """A function (state, indices int [N], batch_size) -> probabilities float64 [N, 7].

    Each example counts once for any batch size; rows are in the order of `indices`. It compiles
    once for each batch size.

    Args:
      predict: a task's predict.
      pipeline: where the images are.
    """

    @jax.jit
    def forward(state: PyTree, resident: PyTree, feed: dict[str, jax.Array]) -> jax.Array:
        return predict(state, pipeline.gather(resident, feed)["image"])

    def run(state: PyTree, indices: np.ndarray, batch_size: int) -> np.ndarray:
        probabilities = np.full((len(indices), NUM_CLASSES), np.nan)
        for feed in pipeline.eval_feeds(indices, batch_size):
            rows = np.asarray(jax.device_get(feed["position"]))
            valid = np.asarray(jax.device_get(feed["mask"])) > 0
            values = np.asarray(forward(state, pipeline.resident, feed), np.float64)
            probabilities[rows[valid]] = values[valid]
        return probabilities

    return run
