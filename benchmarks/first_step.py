"""Trains as `skin_jax.main` does, up to the first step, and prints when it got where.

python -m benchmarks.first_step --config=sgan:smoke --workdir=W [--config.key=value ...]

The last line is JSON: seconds since the epoch when the modules were imported, the data were ready,
and the first step was done.
"""

import json
import os
import time
from collections.abc import Callable
from typing import Any, NoReturn

from ml_collections import ConfigDict

from skin_jax import main
from skin_jax.base import command
from skin_jax.config import load


def until_first_step(argv: list[str], config: ConfigDict | None) -> None:
    """`skin_jax.main`'s work; ends the process after the first step."""
    import jax  # after `command` has named the folder of the compilation cache, as in skin_jax.main

    from skin_jax.training import loop

    moments = {"imported": time.time()}
    start, make_dispatch = loop.start, loop.make_dispatch

    def noted_start(*arguments: Any) -> Any:
        experiment = start(*arguments)
        moments["data"] = time.time()
        return experiment

    def dispatch_once(experiment: Any) -> Callable[..., NoReturn]:
        dispatch = make_dispatch(experiment)

        def first(*arguments: Any) -> NoReturn:
            jax.block_until_ready(dispatch(*arguments))
            moments["first_step"] = time.time()
            print(json.dumps(moments), flush=True)
            os._exit(0)

        return first

    loop.start, loop.make_dispatch = noted_start, dispatch_once
    main.main(argv, config)


if __name__ == "__main__":
    command.run(until_first_step, load)
