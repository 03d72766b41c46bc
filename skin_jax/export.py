"""Exports a run into a folder of its own: its best weights, and a model card.

python -m skin_jax.export --workdir=W --out=FOLDER

skin_jax.predict, skin_jax.generate and skin_jax.eval --data_dir take FOLDER as their --workdir.
"""

from pathlib import Path

from skin_jax.base import command
from skin_jax.base.errors import UserError

_WORKDIR = command.define_path("workdir", None, "Folder of a trained run.")
_OUT = command.define_path("out", None, "The new folder.")


def main(argv: list[str]) -> None:
    """The command line's work; see the module's docstring."""
    if argv[1:]:
        raise UserError(f"unexpected argument {argv[1]!r}; see --help")
    if not _WORKDIR.value or not _OUT.value:
        raise UserError("give both --workdir=DIR and --out=DIR; see --help")
    out = Path(_OUT.value)
    if out.suffix:
        raise UserError(f"--out={out} has the suffix of a file; give a folder, without a suffix")
    from skin_jax import api  # JAX takes its time to import: not for --help

    api.load(_WORKDIR.value).export(out)
    print(f"exported: {out}", flush=True)


def run() -> None:
    """Runs the command."""
    command.run(main)


if __name__ == "__main__":
    run()
