"""Results on one evaluated set of examples, which `report.run` writes."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from skin_jax.data.classes import Classes
from skin_jax.eval.metrics import Metrics, OperatingPoint, Subgroup


class Calibrated(NamedTuple):
    """Figures before and after temperature scaling, whose temperature is fitted on validation.

    ece: expected calibration error; log_loss: mean of -log p(label), in nats.
    """

    temperature: float
    ece: tuple[float, float]
    log_loss: tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Predictions of N examples of C classes, with everything that was measured on them."""

    classes: Classes
    metrics: Metrics
    image_ids: Sequence[str]
    labels: np.ndarray  # int [N]
    probabilities: np.ndarray  # float [N, C]
    split: str | None = None  # None for a set from outside
    step: int | None = None  # of the checkpoint
    unit: str = "lesion"  # what the data know images to share, or "patient", "group"
    shared_with_train: int | None = None  # images whose unit is in train too; None if unknown
    operating_points: Mapping[str, Sequence[OperatingPoint]] = dataclasses.field(
        default_factory=dict
    )  # what counts as positive -> points, their thresholds from val
    calibrated: Calibrated | None = None
    subgroups: Sequence[Subgroup] = ()
    mistakes: Sequence[int] = ()  # indices of the most confident ones, the surest first
    mistake_images: np.ndarray | None = None  # uint8 [M, H, W, 3], of `mistakes`
