"""Settings that several tasks read in the same way."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from skin_jax.tasks.augment import Augmentation

_DTYPES = {"float32": jnp.float32, "bf16": jnp.bfloat16}


def compute_dtype(precision: str) -> Any:
    """The dtype of activations for `config.precision`; parameters and losses stay float32."""
    return _DTYPES[precision]


def class_weights(weighting: str, class_counts: np.ndarray) -> np.ndarray:
    """Weights float32 [n] of the classes in the supervised loss, for `config.loss.class_weights`.

    "balanced" gives class c the weight N / (n N_c), with mean 1 over the training images; a class
    without images has the weight that it would have with one.

    Args:
      weighting: "none" or "balanced".
      class_counts: int [n], training images of each class.
    """
    if weighting == "none":
        return np.ones(len(class_counts), np.float32)
    counts = np.maximum(class_counts, 1)
    return (class_counts.sum() / (len(counts) * counts)).astype(np.float32)


def class_shares(sampling: str, exponent: float, class_counts: np.ndarray) -> np.ndarray:
    """Shares float32 [n] of the classes in the training stream; they sum to 1.

    Args:
      sampling, exponent: `config.data.sampling` and `sampling_exponent`.
      class_counts: int [n], training images of each class; none counts as one.
    """
    power = {"natural": 1.0, "balanced": 0.0, "power": exponent}[sampling]
    weights = np.maximum(class_counts, 1).astype(np.float64) ** power
    return (weights / weights.sum()).astype(np.float32)


def nothing_to_settle(config: ConfigDict, classes: Sequence[str]) -> None:
    """For tasks without settings that name classes."""


def whole_split(config: ConfigDict, classes: Sequence[str], real_counts: np.ndarray) -> int:
    """Images in an epoch: all of the training split."""
    del config, classes
    return int(real_counts.sum())


def augmentation(section: ConfigDict) -> Augmentation:
    """The augmentation of the `augment` section."""
    return Augmentation(**section.to_dict())
