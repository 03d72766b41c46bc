"""Code of a user's own, such as a network: where it stands, and how it is found again."""

import hashlib
import inspect
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

from skin_jax.base.errors import UserError
from skin_jax.base.files import read_bytes


def name_of(own: Callable[..., Any]) -> str:
    """The name by which its file defines a class or a function."""
    return own.__qualname__


def record(own: Callable[..., Any]) -> dict[str, str]:
    """Says for `load` where code is defined: file, name, SHA-256; a UserError if in no file."""
    name = name_of(own)
    try:
        file = inspect.getsourcefile(own)
        content = Path(file or "").read_bytes()
    except (OSError, TypeError):
        file = None
    if file is None or "<" in name:
        raise UserError(
            f"the configuration holds {name}, which later commands could not load again: define it "
            "at the top level of a file, such as the configuration file itself"
        )
    digest = hashlib.sha256(content).hexdigest()
    return {"file": str(Path(file).absolute()), "name": name, "sha256": digest}


def load(recorded: dict[str, Any], where: Path) -> Any:
    """Runs the file of a `record` and returns what it defines; other objects as they are.

    UserError, with `where` it was recorded: the file is gone, changed, or fails.
    """
    if recorded.keys() != {"file", "name", "sha256"}:
        return recorded
    path, name = Path(recorded["file"]), recorded["name"]
    try:
        content = read_bytes(path)
    except OSError as error:
        raise UserError(
            f"{where} names {name} of {path}, which cannot be read ({error.strerror}); restore "
            "that file"
        ) from None
    if hashlib.sha256(content).hexdigest() != recorded["sha256"]:
        raise UserError(
            f"{where} names {name} of {path}, which has changed since; restore the file as it was, "
            "or train a new run"
        )
    try:
        found: Any = runpy.run_path(str(path))
        for part in name.split("."):
            found = found[part] if isinstance(found, dict) else getattr(found, part)
        return found
    except Exception as error:  # the file is a program
        raise UserError(
            f"{where} needs {name} of {path}, which fails: {type(error).__name__}: {error}"
        ) from error
