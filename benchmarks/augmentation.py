"""Images a second of every augmentation and of the whole: the suite `augment`.

Under jit as in training, with the settings of `configs/sgan.py`, 16 images of 224x224; and the
share that the whole has in the SGAN's step of `benchmarks.steps`, measured in the same rounds.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from benchmarks import steps, timing
from skin_jax.base import devices
from skin_jax.tasks import augment, settings
from skin_jax.tasks.declared import sgan

Row = dict[str, Any]

_STEP = "sgan_224_b16"
_WHOLE = "whole"

# Each operation by the settings that it needs.
_OPERATIONS: dict[str, tuple[str, ...]] = {
    "crop": ("crop",),
    "flip": ("flip",),
    "rotate90": ("rotate90",),
    "rotation": ("rotation",),
    "blur": ("blur_sigma", "blur_probability"),
    "salt_and_pepper": ("salt_and_pepper", "salt_and_pepper_probability"),
}

NAMES = (*_OPERATIONS, _WHOLE)


def rows(rounds: int, only: Sequence[str], precision: str) -> Iterator[Row]:
    """A row for each of the named operations."""
    ours = steps.OurStep(steps.config_of(_STEP, precision))
    batch = ours.batch["image"].shape[0]
    whole = settings.augmentation(sgan.defaults().augment)
    variants: dict[str, Callable[[int], Any]] = {}
    for name in only:
        options = whole
        if name != _WHOLE:
            options = augment.Augmentation(
                **{key: getattr(whole, key) for key in _OPERATIONS[name]}
            )
        variants[name] = _repeated(options, ours)
    if _WHOLE in only:
        variants[_STEP] = ours.run
    seconds = timing.interleaved(variants, rounds)
    for name in only:
        row = {
            "name": name,
            "images_per_second": timing.rate(batch, seconds[name]),
            "ms_per_image": timing.milliseconds(seconds[name]) / batch,
        }
        if name == _WHOLE:
            shares = seconds[name] / seconds[_STEP]
            row |= {
                "step_ms": timing.milliseconds(seconds[_STEP]),
                "share_of_step": float(np.median(shares)),
                "settings": dataclasses.asdict(whole),
            }
        yield row


def _repeated(options: augment.Augmentation, ours: steps.OurStep) -> Callable[[int], None]:
    images = jax.device_put(ours.batch["image"])
    positions = jax.device_put(ours.batch["position"])
    jitted = jax.jit(
        lambda images, rng, positions: augment.augment(
            images, augment.keys_of(rng, positions), options
        ),
        compiler_options=devices.compiler_options(jax.default_backend()),
    )

    def run(times: int) -> None:
        for _ in range(times):
            found = jitted(images, ours.rng, positions)
        found.block_until_ready()

    return run
