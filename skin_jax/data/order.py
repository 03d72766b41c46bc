"""Which example stands at a position of the training stream."""

from typing import Any

import numpy as np

from skin_jax.data import pipeline


def Order(indices: np.ndarray, labels: np.ndarray, *, seed: int, sampling: str, **by_class: Any):
    if by_class:
        return pipeline.ClassOrder(
            indices, labels, by_class["classes"], by_class["per_class"], seed
        )
    return pipeline.Order(indices, labels, sampling, seed)
