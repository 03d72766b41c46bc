"""Folders that belong to one piece of work: claimed, locked, and only resumed with its settings."""

import contextlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from skin_jax.base.errors import UserError
from skin_jax.base.files import locked, read_text


@contextlib.contextmanager
def claimed(folder: Path, busy: str, *, lock: bool = True) -> Iterator[None]:
    """Creates a folder where it is missing and keeps other processes out of it.

    `busy` is said where another is in. Without `lock` the folder is only created: of several
    processes that share it one has the lock. UserError also where it cannot be written.
    """
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if lock:
                stack.enter_context(locked(folder / ".lock"))
        except BlockingIOError:
            raise UserError(busy) from None
        except OSError as error:
            raise UserError(f"{folder} cannot be written: {error.strerror or error}") from None
        yield


def check_own(folder: Path, record: str, flag: str, written: Collection[str] | None = None) -> None:
    """Refuses the folder of a flag that holds files of somebody else, but no `record` of ours.

    Those are all, or those with the names of files that are to be `written`.
    """
    if (folder / record).exists() or not folder.is_dir():
        return
    names = sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))
    if other := [name for name in names if written is None or name in written]:
        raise UserError(
            f"{folder} holds other files, such as {other[0]}, and no {record}; give a new folder "
            f"as {flag}"
        )


def read_record(path: Path, parse: Callable[[dict[str, Any]], Any], mend: str) -> Any:
    """Reads a JSON object that this program wrote, and parses it.

    FileNotFoundError where it is missing; a UserError that ends with `mend` where it is damaged:
    `parse` may raise a KeyError, TypeError, ValueError or AttributeError.
    """
    try:
        content = json.loads(read_text(path))
        if not isinstance(content, dict):
            raise TypeError("it is not an object")
        return parse(content)
    except FileNotFoundError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({error!r}); {mend}") from None


def check_same(
    folder: Path, what: str, before: Mapping[str, Any], after: Mapping[str, Any], flag: str
) -> None:
    """Refuses to resume `what` is in a folder, such as "a run", under settings that differ."""
    if differing := differences(before, after):
        raise UserError(
            f"{folder} holds {what} with other settings; give them as they were, or a new folder "
            f"as {flag}: " + "; ".join(differing)
        )


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Lists the differences of flat settings, by the name to show, one phrase a key."""
    return [
        f"{key}: {before.get(key)!r} there, {after.get(key)!r} now"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]
