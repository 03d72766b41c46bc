"""How unlike a run's training images a picture is, by the statistics of a map within its network.

The squared Mahalanobis distance of a picture's traits (`tasks.Task`'s ability: mean and deviation
of each channel half-way through the network) from those of the training images (Lee, Lee, Lee and
Shin, "A Simple Unified Framework for Detecting Out-of-Distribution Samples", NeurIPS 2018, with one
Gaussian for all classes). The features before the head do not serve: a network that was trained to
tell lesions apart maps noise and text to where it maps lesions.
"""

import io
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from skin_jax.base.errors import UserError
from skin_jax.base.files import read_bytes, write_atomically

FILE_NAME = "reference.npz"

FLAGGED_ABOVE = 95.0
"""Percentile of the validation images' distances above which a picture is flagged."""

_FLOOR = 1e-4  # of variances along principal axes, as a share of their mean


class Reference(NamedTuple):
    """Of the training images, with the distances of the validation images from them.

    mean [D] and whitening [D, D] are float32: distances are lengths of (traits - mean) @ whitening.
    percentiles float32 [101] are those of the validation images' distances, from 0 to 100.
    """

    mean: np.ndarray
    whitening: np.ndarray
    percentiles: np.ndarray

    def distances(self, traits: np.ndarray) -> np.ndarray:
        """Distances float64 [N] of pictures with traits float [N, D]."""
        away = traits.astype(np.float64) - self.mean
        return np.square(away @ self.whitening.astype(np.float64)).sum(axis=1)

    def percentile(self, traits: np.ndarray) -> np.ndarray:
        """Share of the validation images that are nearer, in percent: float64 [N] in [0, 100]."""
        return np.interp(self.distances(traits), self.percentiles, np.linspace(0.0, 100.0, 101))


def fit(train: np.ndarray, val: np.ndarray) -> Reference:
    """The reference of training images with traits float [N, D] and validation images [M, D]."""
    mean = train.mean(axis=0, dtype=np.float64)
    covariance = np.cov(train.astype(np.float64), rowvar=False, bias=True)
    variances, axes = np.linalg.eigh(np.atleast_2d(covariance))
    kept = np.maximum(variances, max(_FLOOR * variances.mean(), 1e-12))
    bare = Reference(
        mean.astype(np.float32), (axes / np.sqrt(kept)).astype(np.float32), np.empty(0, np.float32)
    )
    percentiles = np.percentile(bare.distances(val), np.linspace(0.0, 100.0, 101))
    return bare._replace(percentiles=percentiles.astype(np.float32))


def write(workdir: Path, reference: Reference) -> None:
    """Writes `reference.npz` of a run."""
    buffer = io.BytesIO()
    np.savez(buffer, **reference._asdict())
    write_atomically(workdir / FILE_NAME, buffer.getvalue())


def read(workdir: Path) -> Reference | None:
    """Reads the reference of a run; None where there is none.

    Raises:
      UserError: it is damaged.
    """
    path = workdir / FILE_NAME
    if not path.is_file():
        return None
    try:
        with np.load(io.BytesIO(read_bytes(path))) as arrays:
            return Reference(**{name: arrays[name] for name in Reference._fields})
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path} is damaged ({error}); run skin_jax.eval.calibrate --workdir={workdir} again"
        ) from None
