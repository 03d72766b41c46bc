"""Trains and evaluates a configuration.

python -m skin_jax.main --config=demo --workdir=runs/demo [--config.key=value ...]

--config names a configuration of the package, such as demo, or a file; `:smoke` after it shrinks
it to a try of about a minute.

A second call with the same folder resumes an interrupted run. The exit status is 0, 1 (failure),
2 (usage or bad input), 75 (the run stood still), or 130 (Ctrl-C) and 143 (SIGTERM): asked to end,
everything is saved.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from skin_jax.base import command
from skin_jax.base.errors import UserError
from skin_jax.config import load

if TYPE_CHECKING:
    from ml_collections import ConfigDict

_WORKDIR = command.define_path("workdir", None, "Folder of the run: created, or resumed.")


def main(argv: list[str], config: "ConfigDict | None") -> None:
    """The command line's work; see the module's docstring."""
    if len(argv) > 1:
        raise UserError(
            f"unexpected argument {argv[1]!r}; settings are given as --config.key=value"
        )
    if config is None or not _WORKDIR.value:
        raise UserError("give both --config=NAME and --workdir=DIR; see --help")
    if "arms" in config:
        raise UserError("this configuration is a study: run it with skin_jax.study")
    from skin_jax import api  # JAX takes its time to import: not for --help
    from skin_jax.base import devices

    devices.start_distributed(**config.distributed.to_dict())
    api.train(config, Path(_WORKDIR.value))


def run() -> None:
    """Runs the command."""
    command.run(main, load)


if __name__ == "__main__":
    run()
