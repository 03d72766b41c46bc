"""Settings that several tasks read in the same way."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from skin_jax.base.errors import UserError
from skin_jax.models.dcgan import check_image_size
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


def labelled_rows(share: float, batch_size: int) -> int:
    """Rows of a batch that have labels where not all images do, for `config.data.labelled_share`.

    Raises:
      UserError: a batch of one row.
    """
    if batch_size < 2:
        raise UserError(
            "config.batch_size is 1, but a batch holds images with a label and images without one; "
            "give at least 2"
        )
    return min(max(1, round(share * batch_size)), batch_size - 1)


def nothing_to_settle(config: ConfigDict, classes: Sequence[str]) -> None:
    """For tasks without settings that name classes."""


def whole_split(config: ConfigDict, classes: Sequence[str], real_counts: np.ndarray) -> int:
    """Images in an epoch: all of the training split."""
    del config, classes
    return int(real_counts.sum())


def check_size(image_size: int) -> None:
    """Refuses sizes that paper A's networks do not take, as a UserError."""
    try:
        check_image_size(image_size)
    except ValueError as error:
        raise UserError(f"config.data.image_size: {error}") from None


def augmentation(section: ConfigDict) -> Augmentation:
    """The augmentation of the `augment` section."""
    return Augmentation(**section.to_dict())
