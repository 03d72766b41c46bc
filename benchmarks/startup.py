"""Seconds until something happens: the suite `startup`.

Each start is a process of its own. `help` is `python -m skin_jax.main --help`, `import` is Python
with everything that training imports. The others reach the first step of a run on procedural images
with an empty compilation cache (cold), then with what that start has left there (warm): of
`configs/sgan.py:smoke`, and of the SGAN of 224x224 in batches of 16. `compute_s` is what passes
after the imports, but for the preparation of data: initialising, compiling, the step itself.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Row = dict[str, Any]

_ROOT = Path(__file__).parents[1]
_PYTHON = {
    "help": ("-m", "skin_jax.main", "--help"),
    "import": ("-c", "import skin_jax.training.loop"),
}
_CONFIGS = {
    "smoke": ("configs/sgan.py:smoke", "--config.data.demo_images=500"),
    "sgan_224_b16": (
        "configs/sgan.py",
        "--config.data.demo_images=100",
        "--config.batch_size=16",
        "--config.num_steps=2",
    ),
}

NAMES = (*_PYTHON, *(f"{name}_{kind}" for name in _CONFIGS for kind in ("cold", "warm")))


def rows(rounds: int, only: Sequence[str], precision: str) -> Iterator[Row]:
    """A row for each of the named starts."""
    for name, arguments in _PYTHON.items():
        if name in only:
            _seconds(arguments)  # the files are in the system's cache
            yield {"name": name, "seconds": _median([_seconds(arguments) for _ in range(rounds)])}
    for name, (config, *settings) in _CONFIGS.items():
        wanted = [kind for kind in ("cold", "warm") if f"{name}_{kind}" in only]
        if not wanted:
            continue
        options = [f"--config={config}", *settings, f"--config.precision={precision}"]
        found: dict[str, list[Row]] = {"cold": [], "warm": []}
        for _ in range(rounds):
            with tempfile.TemporaryDirectory() as folder:
                for kind, parts in found.items():
                    parts.append(_first_step(options, Path(folder), kind))
        for kind in wanted:
            parts = found[kind]
            medians = {key: _median([part[key] for part in parts]) for key in parts[0]}
            yield {"name": f"{name}_{kind}", **medians}


def _seconds(arguments: Sequence[str]) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], cwd=_ROOT, check=True, capture_output=True)
    return time.perf_counter() - start


def _first_step(arguments: Sequence[str], folder: Path, kind: str) -> Row:
    start = time.time()
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.first_step", *arguments, f"--workdir={folder / kind}"],
        cwd=_ROOT,
        env={**os.environ, "JAX_COMPILATION_CACHE_DIR": str(folder / "cache")},
        check=True,
        capture_output=True,
        text=True,
    )
    moments = json.loads(done.stdout.splitlines()[-1])
    return {
        "seconds": moments["first_step"] - start,
        "import_s": moments["imported"] - start,
        "data_s": moments["data"] - moments["imported"],
        "compute_s": moments["first_step"] - moments["data"],
    }


def _median(values: Sequence[float]) -> float:
    return float(np.median(values))
