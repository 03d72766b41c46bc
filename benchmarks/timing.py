"""Interleaved timing, and what the machine can do at most."""

import datetime
import importlib.metadata
import os
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_ROUND_SECONDS = 1.0
"""What one variant's share of a round lasts at least, unless one call is longer."""

_PEAK_REPEATS = 5
_SIDE, _SIDE_ON_CPU = 8192, 2048  # of the matrices
_COPIED = 2**26  # numbers


def num_threads() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0))


def interleaved(variants: Mapping[str, Callable[[int], Any]], rounds: int) -> dict[str, np.ndarray]:
    """Times each variant once in every round, in turns.

    Args:
      variants: name -> a function k -> makes k calls and waits until all are done.
      rounds: how many; before them each variant is warmed up.

    Returns:
      Name -> seconds of a call, float64 [rounds]; a round's times are side by side.
    """
    calls = {}
    for name, run in variants.items():
        run(1)
        start = time.perf_counter()
        run(1)
        calls[name] = max(1, round(_ROUND_SECONDS / (time.perf_counter() - start)))
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    names = list(variants)
    for number in range(rounds):
        # Another one first each time, so that none always follows the same.
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            start = time.perf_counter()
            variants[name](calls[name])
            seconds[name].append((time.perf_counter() - start) / calls[name])
    return {name: np.array(times) for name, times in seconds.items()}


def milliseconds(seconds: np.ndarray) -> float:
    """The median of seconds [rounds], in ms."""
    return 1e3 * float(np.median(seconds))


def rate(count: int, seconds: np.ndarray) -> float:
    """The median of `count` things a call, in things a second, of seconds [rounds]."""
    return count / float(np.median(seconds))


def peak_gflops(dtype: Any) -> float:
    """The best rate of a large square matrix product of the dtype, in GFLOP/s."""
    size = _SIDE_ON_CPU if jax.default_backend() == "cpu" else _SIDE
    # Of norm 1, so that its powers neither vanish nor overflow.
    x = jnp.full((size, size), 1.0 / size, dtype)
    return 2e-9 * size**3 / _fastest(jax.jit(lambda x: x @ x), x)


def peak_gbytes() -> float:
    """The best rate of reading and writing a large array in its place, in GB/s, both counted."""
    # Donated: a new array would be paid for by the page.
    function = jax.jit(lambda x: x + 1.0, donate_argnums=0)
    x = function(jnp.zeros(_COPIED))
    size = x.nbytes
    return 2e-9 * size / _fastest(function, x)


def _fastest(function: Callable[[jax.Array], jax.Array], x: jax.Array) -> float:
    """The shortest time of function(function(... x)) for each call, in seconds."""
    x = jax.block_until_ready(function(x))
    seconds = []
    for _ in range(_PEAK_REPEATS):
        start = time.perf_counter()
        x = jax.block_until_ready(function(x))
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def machine() -> dict[str, Any]:
    """What the figures were made on, for the JSON file."""
    device = jax.devices()[0]
    return {
        "machine": {
            "processor": _processor(),
            "device": f"{device.platform}: {device.device_kind}",
            "memory_gb": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9,
            "load_average": os.getloadavg()[0],
        },
        "versions": {
            "python": platform.python_version(),
            **{name: _version(name) for name in ("jax", "jaxlib", "flax", "torch", "tensorflow")},
        },
        "date": datetime.date.today().isoformat(),
        "threads": num_threads(),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
