"""Lists the commands of skin_jax; `python -m skin_jax.COMMAND --help` says more of each."""

import ast
from pathlib import Path

from skin_jax.base import command
from skin_jax.base.errors import UserError

COMMANDS = (
    "prepare",
    "main",
    "predict",
    "generate",
    "export",
    "eval",
    "eval.baselines",
    "eval.calibrate",
    "reader_study",
    "serve",
    "study",
)


def main(argv: list[str]) -> None:
    """The command line's work; see the module's docstring."""
    if argv[1:]:
        name = {"train": "main"}.get(argv[1], argv[1])
        hint = f"run python -m skin_jax.{name}" if name in COMMANDS else "it takes none"
        raise UserError(f"unexpected argument {argv[1]!r}; {hint}")
    print(f"skin_jax {command.version()}\n")
    for name in COMMANDS:
        path = Path(__file__).parent.joinpath(*name.split("."))
        source = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
        line = (ast.get_docstring(ast.parse(source.read_text())) or "").splitlines()[0]
        print(f"  python -m skin_jax.{name:16}{line}")
    print("\npython -m skin_jax.COMMAND --help says more.")


if __name__ == "__main__":
    command.run(main)
