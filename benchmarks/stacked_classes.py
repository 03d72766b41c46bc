"""What a step of several classes' DCGANs costs, stacked and one class after another.

python -m benchmarks.stacked_classes [--width 32] [--batch 32] [--size 64] [--classes 7]
    [--rounds 9] [--forms unroll,vmap]

Every round times, in turn, one class alone and the stack in each of its forms, each for one step
from its own state; the table has medians over the rounds and, for each form, the median of its
ratio to as many single steps as there are classes. Data are random; the first round (compilation)
is not counted.
"""

import argparse
import json
import platform
import statistics
import time

import jax
import jaxlib
import numpy as np

from skin_jax import config as config_lib
from skin_jax import sharding, tasks
from skin_jax.data.lesions import CLASSES


def stepper(options: argparse.Namespace, stack: str, names: tuple[str, ...]):
    """A function that makes one training step, waits for it, and returns the seconds."""
    config = config_lib.dcgan()
    config.stack, config.classes = stack, names
    config.model.width, config.batch_size = options.width, options.batch
    config.data.image_size = options.size
    task = tasks.build(config, np.full(7, 10**6), 10_000, 1.0)
    compiler_options = sharding.compiler_options(jax.devices()[0].platform)
    rng = jax.random.key(0)
    state = jax.jit(task.init)(rng)
    rows = len(names) * options.batch
    shape = (rows, options.size, options.size, 3)
    batch = {
        "image": np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8),
        "label": np.repeat(task.labels, options.batch).astype(np.int32),
    }
    batch = jax.device_put(batch)
    step = jax.jit(task.train_step, donate_argnums=0, compiler_options=compiler_options)

    def run() -> float:
        nonlocal state
        start = time.perf_counter()
        state, _ = step(state, batch, rng)
        jax.block_until_ready(state)
        return time.perf_counter() - start

    return run


def main() -> None:
    """Prints the table, then the same as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (
        ("width", 32),
        ("batch", 32),
        ("size", 64),
        ("classes", 7),
        ("rounds", 9),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--forms", default="unroll,vmap")
    options = parser.parse_args()
    names = CLASSES[: options.classes]
    forms = {"one class": stepper(options, "unroll", names[:1])}
    forms |= {form: stepper(options, form, names) for form in options.forms.split(",")}
    seconds: dict[str, list[float]] = {form: [] for form in forms}
    for number in range(options.rounds + 1):
        for form, run in forms.items():
            taken = run()
            if number:
                seconds[form].append(taken)
    single = seconds.pop("one class")
    print(f"one class: {1e3 * statistics.median(single):.0f} ms a step")
    found = {"one class": statistics.median(single)}
    for form, times in seconds.items():
        ratios = [t / (len(names) * alone) for t, alone in zip(times, single, strict=True)]
        found[form] = statistics.median(times)
        print(
            f"{len(names)} classes, {form}: {1e3 * found[form]:.0f} ms a step, "
            f"{statistics.median(ratios):.3f} x {len(names)} single ones "
            f"({min(ratios):.3f} to {max(ratios):.3f})"
        )
    device = jax.devices()[0]
    facts = {
        "device": f"{device.platform}: {device.device_kind}",
        "machine": platform.processor() or platform.machine(),
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        **vars(options),
    }
    print(json.dumps({"seconds": found, **facts}))


if __name__ == "__main__":
    main()
