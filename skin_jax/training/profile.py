"""A trace of ten steps by JAX's profiler."""

from pathlib import Path
from typing import Any

import jax

from skin_jax.training.watchdog import Watchdog

PyTree = Any

_STEPS = 10
_FROM = 3  # dispatches later: the first compiles, and the next ones find caches cold


class Profile:
    """Traces a few steps into a folder, where `enabled`, pausing the watchdog while it is written.

    The steps come after the first few dispatches; of a shorter run all but the first dispatch,
    which compiles.
    """

    def __init__(
        self, folder: Path, watchdog: Watchdog, *, enabled: bool, per_dispatch: int, steps_left: int
    ):
        left = steps_left // per_dispatch
        count = min(-(-_STEPS // per_dispatch), max(left - 1, 1))
        skipped = min(_FROM, left - count)
        self._first = skipped + 1 if enabled else None  # dispatches are counted from 1
        self._last = skipped + count
        self._steps = count * per_dispatch
        self._folder = folder
        self._watchdog = watchdog
        self._running = False

    def before(self, dispatches: int, state: PyTree) -> None:
        """Begins the trace where it is due, when the steps before it are done."""
        if dispatches == self._first:
            jax.block_until_ready(state)
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # an evaluation's calls would leave no room for steps
            jax.profiler.start_trace(self._folder, profiler_options=options)
            self._running = True

    def after(self, dispatches: int, state: PyTree) -> None:
        """Ends the trace where it is due, when its steps are done, and says where it lies."""
        if self._running and dispatches == self._last:
            jax.block_until_ready(state)
            with self._watchdog.paused():
                self.close()
            print(
                f"a trace of {self._steps} step(s) lies in {self._folder}: open its "
                "*.trace.json.gz at https://ui.perfetto.dev, or the folder with "
                f"tensorboard --logdir={self._folder} and the package xprof",
                flush=True,
            )

    def close(self) -> None:
        """Ends a trace that is under way."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
