"""Files among several processes: written whole or not at all, and locks."""

import contextlib
import errno
import fcntl
import json
import math
import os
import stat
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from skin_jax.base.errors import UserError, warn

CACHE_ROOT = os.path.join(
    os.environ.get("XDG_CACHE_HOME") or os.path.join("~", ".cache"), "skin_jax"
)
"""Where what can be made again is kept between runs; `~` is the user's home."""

_unfinished: set[str] = set()  # temporary files that are being written


def expanded(path: str | os.PathLike[str]) -> Path:
    """A path with `~` replaced by the user's home; a UserError where there is none."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UserError(
            f"{path}: there is no home folder to take for ~; set the variable HOME, or give a path "
            "without ~"
        ) from None


def without_owners() -> None:
    """Makes libraries that keep files through `etils` ask for no names of their owners.

    A user of a container may have none, which ends them with a KeyError.
    """
    from etils.epath import backend, stat_utils

    def stat_of(_: backend.Backend, path: str | os.PathLike[str]) -> stat_utils.StatResult:
        found = os.stat(path)
        return stat_utils.StatResult(
            is_directory=stat.S_ISDIR(found.st_mode),
            length=found.st_size,
            mtime=int(found.st_mtime),
            owner=None,
            group=None,
            mode=found.st_mode,
        )

    backend._OsPathBackend.stat = stat_of


def opened(path: str | os.PathLike[str]) -> BinaryIO:
    """Opens a regular file to be read; an OSError for others: a pipe would be waited for."""
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # of a folder, the system says it
        raise OSError(errno.EINVAL, "not a regular file", os.fspath(path))
    return open(path, "rb")


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """The content of a regular file; an OSError where it cannot be read; see `opened`."""
    with opened(path) as file:
        return file.read()


def read_text(path: str | os.PathLike[str]) -> str:
    """The same as text in UTF-8; a ValueError where it is none."""
    return read_bytes(path).decode()


def write_atomically(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Writes a whole file or nothing: no reader meets half of it. UserError if it cannot."""
    path = Path(path)
    check_replaceable(path)
    data = content.encode() if isinstance(content, str) else content
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        _unfinished.add(temporary)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
            # mkstemp makes files that only their owner reads; a result is as readable as any file.
            umask = os.umask(0)
            os.umask(umask)
            os.chmod(temporary, 0o666 & ~umask)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
        finally:
            _unfinished.discard(temporary)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error


def remove_unfinished() -> None:
    """Removes what calls of `write_atomically` have begun, before the process ends at once."""
    for temporary in [*_unfinished]:
        with contextlib.suppress(OSError):
            os.unlink(temporary)


def check_replaceable(path: Path) -> None:
    """Refuses a link, a folder, a device or a pipe in the place of a file that is to be written."""
    try:
        mode = path.lstat().st_mode
    except OSError:  # there is none; where it is not allowed, `check_writable` or writing says so
        return
    if not stat.S_ISREG(mode):
        names = {stat.S_IFLNK: "a link", stat.S_IFDIR: "a folder"}
        what = names.get(stat.S_IFMT(mode), "a device or a pipe")
        raise UserError(f"{path} is {what}, which is never replaced; give the name of a file")


def check_writable(*paths: Path) -> None:
    """Refuses files that could not be written, before the work that they are to hold."""
    for path in paths:
        check_replaceable(path)
        try:
            folder = next(parent for parent in path.absolute().parents if parent.exists())
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise UserError(
                f"{path}: cannot be written ({error.strerror}); give another place for it"
            ) from None


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Writes `plain(content)` as JSON, as `write_atomically` does."""
    write_atomically(path, json.dumps(plain(content), indent=2, allow_nan=False) + "\n")


def plain(value: Any) -> Any:
    """Turns mappings, named tuples, sequences, arrays and their numbers into what JSON can hold.

    Numbers that are not finite become None: JSON has no word for them.
    """
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextlib.contextmanager
def locked(path: Path, *, waiting_for: str | None = None) -> Iterator[int | None]:
    """Lets one process at a time in; the lock goes with its process, also with a killed one.

    Another process is waited for, and `waiting_for` is said before; where that is None, it is a
    BlockingIOError.

    Yields:
      The lock's file descriptor; a child process that inherits it keeps others out as long as it
      lives, whatever becomes of this process. None where the file system cannot lock.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:  # "w" would empty what a link leads to
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if waiting_for is None:
                raise
            warn(waiting_for)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            warn(f"{path} cannot be locked ({error.strerror})")
            yield None
            return
        yield file.fileno()
