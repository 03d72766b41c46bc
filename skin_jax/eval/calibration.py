"""Temperature scaling: probabilities that are right as often as they say, fitted on validation.

Guo, Pleiss, Sun and Weinberger, "On Calibration of Modern Neural Networks", ICML 2017, section 4.2.
The temperature is kept with a run, next to the reference of `familiarity`; both are those of its
best checkpoint, and the one file names the run, the other file and its own contents.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from skin_jax import config as config_lib
from skin_jax.base.errors import UserError, warn
from skin_jax.base.files import plain, read_bytes, read_text, write_json
from skin_jax.eval import familiarity
from skin_jax.eval.familiarity import Reference
from skin_jax.training import shipped

FILE_NAME = "calibration.json"

_RANGE = (0.05, 20.0)  # of temperatures
_TINY = 1e-12


class Calibration(NamedTuple):
    """Temperatures, and what they were fitted on.

    One for the probabilities of single images and one for means over eight orientations; above 1, a
    temperature makes probabilities less extreme. split and images say on what they were fitted;
    step is that of the checkpoint.
    """

    temperature: float
    temperature_tta: float
    split: str
    images: int
    step: int

    def temperature_of(self, views: int) -> float:
        """That for means over so many views, of which one or eight are exact."""
        return self.temperature if views == 1 else self.temperature_tta


def fit(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Temperature that minimises the mean of -log p(label), within [0.05, 20].

    Args:
      probabilities: float [N, C], N > 0.
      labels: int [N].
    """
    log_p = np.log(np.maximum(probabilities, _TINY))
    own = log_p[np.arange(len(labels)), labels].mean()

    def slope(inverse: float) -> float:
        """Of the loss by 1 / temperature, in which it is convex."""
        return float((_softmax(inverse * log_p) * log_p).sum(axis=1).mean() - own)

    low, high = 1.0 / _RANGE[1], 1.0 / _RANGE[0]
    for _ in range(60):
        middle = float(np.sqrt(low * high))
        low, high = (middle, high) if slope(middle) < 0.0 else (low, middle)
    return 1.0 / low


def applied(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Probabilities float64 [N, C] at a temperature: softmax(log p / T); the order stays."""
    return _softmax(np.log(np.maximum(probabilities, _TINY)) / temperature)


def loss(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The mean of -log p(label), in nats, of probabilities [N, C]."""
    own = probabilities[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(own, _TINY)).mean())


def write(workdir: Path, calibration: Calibration, reference: Reference | None) -> None:
    """Writes `reference.npz`, where there is one, and `calibration.json` of the run in a folder."""
    if reference is not None:
        familiarity.write(workdir, reference)
    content = {
        **calibration._asdict(),
        "run": config_lib.run_in(workdir),
        "reference": None if reference is None else _reference_digest(workdir),
    }
    # Last: it is what makes the other file the run's.
    write_json(workdir / FILE_NAME, content | {"digest": _digest(content)})


def copy(workdir: Path, out: Path, step: int) -> None:
    """Gives an exported run what its work folder has for the checkpoint of `step`; see `read`."""
    for name in (FILE_NAME, familiarity.FILE_NAME):
        (out / name).unlink(missing_ok=True)  # of an earlier export
    if (found := read(workdir, step)) is not None:
        write(out, found, familiarity.read(workdir))


def read(workdir: Path, step: int) -> Calibration | None:
    """Reads the calibration of a run; None where there is none of the checkpoint of `step`.

    Says so where it is of another one, which was the best when it was fitted.

    Raises:
      UserError: it is damaged or of another run, or so is the reference beside it.
    """
    path = workdir / FILE_NAME
    if not path.is_file():
        return None
    again = f"run skin_jax.eval.calibrate --workdir={workdir} again"
    if (workdir / shipped.WEIGHTS).exists():
        again = "restore it from a copy, or export the run again"
    try:
        content = json.loads(read_text(path))
        found = Calibration(**{key: content[key] for key in Calibration._fields})
        for temperature in (found.temperature, found.temperature_tta):
            if not _RANGE[0] / 2 <= temperature <= _RANGE[1] * 2:
                raise ValueError(f"its temperature {temperature} is out of range")
        run, reference, digest = (content.pop(key) for key in ("run", "reference", "digest"))
        if digest != _digest({**found._asdict(), "run": run, "reference": reference}):
            raise ValueError("it was edited")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}); {again}") from None
    if run != config_lib.run_in(workdir):
        raise UserError(f"{path} is of another run than the files beside it; {again}")
    if found.step != step:
        warn(
            f"{path} is not used: it is of the checkpoint of step {found.step}, and the best one "
            f"is now that of step {step}; {again}"
        )
        return None
    if reference is not None and reference != _reference_digest(workdir):
        raise UserError(
            f"{workdir / familiarity.FILE_NAME} is missing or is not the file that was written "
            f"together with {FILE_NAME}; {again}"
        )
    return found


def _digest(content: Mapping[str, Any]) -> str:
    """SHA-256 of what `calibration.json` says."""
    return hashlib.sha256(json.dumps(plain(content), sort_keys=True).encode()).hexdigest()


def _reference_digest(workdir: Path) -> str | None:
    """SHA-256 of the reference in a folder; None where it cannot be read."""
    try:
        return hashlib.sha256(read_bytes(workdir / familiarity.FILE_NAME)).hexdigest()
    except OSError:
        return None


def _softmax(values: np.ndarray) -> np.ndarray:
    shifted = np.exp(values - values.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)
