"""How fast the pipelines bring images, and how long a step waits for them: the suite `input`.

On images of 224x224, in batches of 16 of the SGAN of `benchmarks.steps`, through the training
loop's own feeds and dispatch. `tf` and `device` have procedural images, in memory; `tf_disk` is the
pipeline `tf` with prepared images of a folder, which stay on disk (and in the system's cache of
files, as far as that is large enough).
"""

import importlib.util
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import memory, steps, timing
from skin_jax.data.pipeline import PIPELINES
from skin_jax.training import loop
from skin_jax.training import run as run_lib

Row = dict[str, Any]

_DISK = "tf_disk"
NAMES = (*PIPELINES, _DISK)

_IMAGES = 500
_IMAGES_ON_DISK = 4000
_ENDLESS = 10**6
_STEPS = 2 * loop._IN_FLIGHT
"""Of a call: as many under way as in training for at least half of them."""


def rows(rounds: int, only: Sequence[str], precision: str) -> Iterator[Row]:
    """A row for each of the named pipelines that is installed."""
    runs = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in only:
            if name != "device" and importlib.util.find_spec("tensorflow") is None:
                yield {"name": name, "failure": "TensorFlow is not installed"}
                continue
            runs[name] = _Run(name, precision, Path(folder) / name)
        feeding = timing.interleaved({name: run.feed for name, run in runs.items()}, rounds)
        training = timing.interleaved({name: run.train for name, run in runs.items()}, rounds)
    for name, run in runs.items():
        yield {
            "name": name,
            "images_per_second": timing.rate(run.batch_size, feeding[name]),
            "best_images_per_second": run.batch_size / float(feeding[name].min()),
            "step_ms": timing.milliseconds(training[name]) / _STEPS,
            "share_waiting": float(np.median(run.waiting[-rounds:])),
        }


class _Run:
    """A run of the SGAN that trains without logging, evaluating or saving.

    Attributes:
      batch_size: images of a feed.
      waiting: share of the time of each call of `train` in which the loop stood for the next feed,
        once `train._IN_FLIGHT` steps were dispatched, as many as may be under way in training.
    """

    def __init__(self, pipeline: str, precision: str, workdir: Path):
        config = steps.config_of("sgan_224_b16", precision)
        config.data.demo_images, config.data.pipeline = _IMAGES, pipeline
        if pipeline == _DISK:
            memory.write_folder(workdir / "images", _IMAGES_ON_DISK, config.data.image_size)
            config.data.dir, config.data.pipeline = str(workdir / "images"), "tf"
            config.data.cache_dir = str(workdir / "cache")
        config.num_steps, config.sharding.num_devices = _ENDLESS, 1
        self._experiment = run_lib.start(config, workdir / "run")
        self.batch_size = self._experiment.rows
        self._rng = jax.random.key(0)
        self._state = jax.jit(self._experiment.task.init, out_shardings=self._experiment.placement)(
            self._rng
        )
        self._dispatch = loop.make_dispatch(self._experiment)
        self._to_train = loop.feeds(self._experiment, 0)
        self._to_count = loop.feeds(self._experiment, 0)
        self._gather = jax.jit(self._experiment.pipeline.gather)
        self.waiting: list[float] = []

    def feed(self, batches: int) -> None:
        """Brings batches to the device, and does nothing with them."""
        for _ in range(batches):
            found = self._gather(self._experiment.pipeline.resident, next(self._to_count))
            jax.block_until_ready(found)

    def train(self, times: int) -> None:
        """Makes `_STEPS` training steps, `times` times."""
        waited, start = 0.0, time.perf_counter()
        pending: deque[Any] = deque(maxlen=loop._IN_FLIGHT)
        for number in range(times * _STEPS):
            if number == loop._IN_FLIGHT:
                waited, start = 0.0, time.perf_counter()
            asked = time.perf_counter()
            feed = next(self._to_train)
            waited += time.perf_counter() - asked
            self._state, metrics = self._dispatch(
                self._state, self._experiment.pipeline.resident, feed, self._rng
            )
            pending.append(metrics)
            jax.block_until_ready(pending[0] if len(pending) == pending.maxlen else ())
        jax.block_until_ready(self._state)
        self.waiting.append(waited / (time.perf_counter() - start))
