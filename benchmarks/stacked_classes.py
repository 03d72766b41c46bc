"""What a step of several classes' DCGANs costs, stacked and one class after another.

python -m benchmarks.stacked_classes [--width 32] [--batch 32] [--size 64] [--classes 7]
    [--rounds 9] [--forms unroll,vmap]

Every round times, in turn, one class alone and the stack in each of its forms; the table has
medians over the rounds and, for each form, the median of its ratio to as many single steps as there
are classes. Data are random; compilation is not counted.
"""

import argparse
import json
from collections.abc import Sequence

import numpy as np

from benchmarks import timing
from benchmarks.steps import OurStep
from skin_jax.data.classes import HAM10000
from skin_jax.tasks.declared import dcgan


def step_of(options: argparse.Namespace, stack: str, names: Sequence[str]) -> OurStep:
    """The step of these classes' DCGANs."""
    config = dcgan.defaults()
    config.stack, config.classes = stack, tuple(names)
    config.model.width, config.batch_size = options.width, options.batch
    config.data.image_size = options.size
    return OurStep(config)


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
    names = HAM10000.names[: options.classes]
    forms = {"one class": step_of(options, "unroll", names[:1])}
    forms |= {form: step_of(options, form, names) for form in options.forms.split(",")}
    seconds = timing.interleaved({form: step.run for form, step in forms.items()}, options.rounds)
    found = {form: timing.milliseconds(times) for form, times in seconds.items()}
    single = seconds.pop("one class")
    print(f"one class: {found['one class']:.0f} ms a step")
    for form, times in seconds.items():
        ratios = times / (len(names) * single)
        print(
            f"{len(names)} classes, {form}: {found[form]:.0f} ms a step, "
            f"{np.median(ratios):.3f} x {len(names)} single ones "
            f"({min(ratios):.3f} to {max(ratios):.3f})"
        )
    print(json.dumps({"milliseconds": found, **timing.machine(), **vars(options)}))


if __name__ == "__main__":
    main()
