"""Trains and evaluates a configuration.

python -m skin_jax.main --config configs/demo.py --workdir runs/demo [--config.key=value ...]

A second call with the same folder resumes an interrupted run. The exit status is 0, 1 (failure),
2 (usage or bad input), 75 (the run stood still), or 130 (Ctrl-C) and 143 (SIGTERM): asked to end,
everything is saved.
"""

from pathlib import Path

from absl import flags
from ml_collections import config_flags

from skin_jax.base import command
from skin_jax.base.errors import UserError

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "A file of configs/, with ':smoke' for a short try.", lock_config=True
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run: made, or resumed.")


def main(argv: list[str]) -> None:
    """The command line's work; see the module's docstring."""
    if len(argv) > 1:
        raise UserError(
            f"unexpected argument {argv[1]!r}; settings are given as --config.key=value"
        )
    if _CONFIG.value is None or not _WORKDIR.value:
        raise UserError("give both --config=configs/X.py and --workdir=DIR; see --help")
    if "arms" in _CONFIG.value:
        raise UserError("this configuration is a study: run it with skin_jax.study")
    from skin_jax import api  # JAX takes its time to import: not for --help
    from skin_jax.base import devices

    devices.start_distributed(**_CONFIG.value.distributed.to_dict())
    api.train(_CONFIG.value, Path(_WORKDIR.value))


if __name__ == "__main__":
    command.run(main)
