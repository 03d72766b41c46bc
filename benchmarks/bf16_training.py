"""Whether training in bf16 ends where training in float32 does, within what the seed changes.

python -m benchmarks.bf16_training [--data FOLDER] [--task sgan] [--steps 200] [--seeds 5]
    [--size 32] [--width 32] [--batch 32]

Trains one network in float32 with several seeds and in bf16 with the first of them, all on one
split, and compares the cross-entropy on its validation part: of the procedural lesions where no
folder is given. `--width` is the GAN's; a classifier is the plain network (`cnn`) as it is.
"""

import argparse
import tempfile
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from skin_jax.eval.inference import make_predictor
from skin_jax.tasks.declared import classifier, sgan
from skin_jax.training import loop
from skin_jax.training.run import start

_DEMO_IMAGES = 700
_SMALLEST = 1e-7
"""A probability below it counts as this one, or one image could be the whole mean."""


def configuration(options: argparse.Namespace, precision: str, seed: int) -> ConfigDict:
    """The configuration of one run."""
    if options.task == "sgan":
        config = sgan.defaults()
        config.model.width = options.width
    else:
        config = classifier.defaults()
        config.model.name = "cnn"
        config.optimizer.warmup_steps = min(20, options.steps - 1)
    config.data.dir = options.data
    config.data.demo_images = _DEMO_IMAGES
    config.data.image_size = options.size
    config.data.pipeline = "device"
    config.batch_size, config.num_steps = options.batch, options.steps
    config.precision, config.seed = precision, seed
    return config


def cross_entropy(config: ConfigDict) -> float:
    """Trains, and gives the mean of -log p(true class) over the validation split."""
    with tempfile.TemporaryDirectory() as folder:
        experiment = start(config, Path(folder))
    rng = jax.random.key(config.seed)
    state = jax.jit(experiment.task.init, out_shardings=experiment.placement)(rng)
    dispatch = loop.make_dispatch(experiment)
    for feed in loop.feeds(experiment, 0):
        state, _ = jax.block_until_ready(dispatch(state, experiment.pipeline.resident, feed, rng))
    indices = experiment.indices("val")
    predict = make_predictor(experiment.task.predict, experiment.pipeline)
    probabilities = predict(state, indices, config.eval_batch_size)
    of_truth = probabilities[np.arange(len(indices)), experiment.examples.labels[indices]]
    return float(-np.mean(np.log(np.maximum(of_truth, _SMALLEST))))


def main() -> None:
    """Prints the figures of every run and the comparison."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default=None)
    parser.add_argument("--task", choices=("sgan", "classifier"), default="sgan")
    for name, value in (("steps", 200), ("seeds", 5), ("size", 32), ("width", 32), ("batch", 32)):
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    if options.seeds < 2:
        parser.error(f"--seeds is {options.seeds}; a standard deviation takes 2 or more")

    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}, {options}")
    full = []
    for seed in range(options.seeds):
        full.append(cross_entropy(configuration(options, "float32", seed)))
        print(f"float32, seed {seed}: {full[-1]:.4f}", flush=True)
    low = cross_entropy(configuration(options, "bf16", 0))
    mean, deviation = np.mean(full), np.std(full, ddof=1)
    distance = abs(low - mean) / deviation
    print(f"bf16, seed 0: {low:.4f}")
    print(f"float32: mean {mean:.4f}, SD {deviation:.4f} of {options.seeds} seeds")
    verdict = "within" if distance <= 2 else "NOT within"
    print(f"bf16 is {distance:.2f} SD from the mean: {verdict} 2 SD")


if __name__ == "__main__":
    main()
