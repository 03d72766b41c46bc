"""Images a second of evaluation, prediction and generation: the suite `inference`.

The SGAN of `benchmarks.steps` at 224x224, with random weights, through the functions that the
commands use. `predict` reads JPEG files of 600x450, as the challenge's are; its figure is of the
images beyond the first batch, and `start_s` the whole call for that batch: opening the run,
compiling, writing the file.
"""

import itertools
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from benchmarks import steps, timing
from skin_jax.eval import candidates, inference, prediction
from skin_jax.tasks.sgan import Sgan
from skin_jax.training import checkpoints as checkpoint_lib
from skin_jax.training import run as run_lib

Row = dict[str, Any]

NAMES = ("evaluate", "predict", "generate")

_IMAGES = 256
_BATCH = 64


def rows(rounds: int, only: Sequence[str], precision: str) -> Iterator[Row]:
    """A row for each of the named uses of a run."""
    with tempfile.TemporaryDirectory() as folder:
        config = steps.config_of("sgan_224_b16", precision)
        config.data.demo_images, config.sharding.num_devices = _IMAGES, 1
        experiment = run_lib.start(config, Path(folder) / "run")
        state = jax.jit(experiment.task.init, out_shardings=experiment.placement)(jax.random.key(0))
        assert isinstance(experiment.task, Sgan)
        predictor = inference.make_predictor(experiment.task.predict, experiment.pipeline)
        task, names = experiment.task, experiment.classes.names
        sampler = candidates.Sampler(task, task.generators(state), names, 0, "the benchmark")
        predict = candidates.predictor(task, state, "the benchmark")
        stream = candidates.judged(sampler, predict, names, step=0, min_confidence=0.0)
        drawn = stream(0, lambda _: False)

        def evaluate(times: int) -> None:
            for _ in range(times):
                predictor(state, np.arange(_IMAGES), config.eval_batch_size)

        def generate(times: int) -> None:
            for _ in itertools.islice(drawn, times * candidates.BATCH):
                pass

        calls: dict[str, tuple[int, Callable[[int], None]]] = {
            "evaluate": (_IMAGES, evaluate),
            "generate": (candidates.BATCH, generate),
        }
        seconds = timing.interleaved({k: f for k, (_, f) in calls.items() if k in only}, rounds)
        for name, times in seconds.items():
            yield {"name": name, "images_per_second": timing.rate(calls[name][0], times)}
        if "predict" in only:
            saved = checkpoint_lib.Checkpoints(Path(folder) / "run" / "checkpoints")
            saved.save(1, state, 0.5)
            saved.close()
            yield {"name": "predict", **_predict(Path(folder), rounds)}


def _predict(folder: Path, rounds: int) -> Row:
    draw = np.random.default_rng(0)
    files = []
    for i in range(_IMAGES + _BATCH):
        # Smooth, because noise would make files ten times as large as photographs are.
        coarse = Image.fromarray(draw.integers(0, 256, (15, 20, 3), np.uint8))
        files.append(str(folder / f"{i}.jpg"))
        coarse.resize((600, 450), Image.Resampling.BICUBIC).save(files[-1], quality=90)

    def seconds(count: int) -> float:
        start = time.perf_counter()
        prediction.predict_files(
            [folder / "run"], files[:count], folder / "p.csv", batch_size=_BATCH
        )
        return time.perf_counter() - start

    pairs = np.array([[seconds(_BATCH), seconds(len(files))] for _ in range(rounds)])
    return {
        "images_per_second": float(np.median(_IMAGES / (pairs[:, 1] - pairs[:, 0]))),
        "start_s": float(np.median(pairs[:, 0])),
    }
