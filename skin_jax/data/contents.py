"""Hashes of the bytes of image files; a file that did not change is not read again."""

import contextlib
import hashlib
import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from skin_jax.base.errors import UserError
from skin_jax.base.files import read_bytes, write_atomically
from skin_jax.data import images

_SETTLED_AFTER = 3 * 10**9
"""Nanoseconds after which a change gives a file another time, on any file system: a file that is
younger may still change and keep its time, so it is read again by the next start."""

_CHUNK = 512


def digest(content: bytes) -> str:
    """SHA-256 of a file's bytes, 64 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def digests(
    paths: Sequence[Path], known: Path, *, progress: bool = True
) -> list[str | images.PassingTrouble]:
    """Identifies what image files hold.

    Hashes are remembered under what no program can give to other contents: device, inode, size, and
    the times of the last change of contents and of the inode. They are kept in the JSON file
    `known` from one start to the next, where it can be written.

    Returns:
      For each file its `digest`; the reason where it holds no image of a size that is read, such as
      a named pipe; or, as a value, the trouble because of which it cannot be read now.
    """
    before = _read(known)
    after: dict[str, str] = {}

    def identify(path: Path) -> str | images.PassingTrouble:
        now = time.time_ns()
        try:
            file = images.file_of(path)
            status = file.stat()
            facts = [status.st_dev, status.st_ino, status.st_size]
            facts += [status.st_mtime_ns, status.st_ctime_ns]
            row = [] if file is path else [path.parent.name, path.name]
            identity = " ".join(map(str, [*facts, *row]))
            found = before.get(identity) or digest(images.read(path))
        except OSError as error:
            return images.PassingTrouble(error.strerror)
        except images.UnreadableImage as reason:
            return reason if isinstance(reason, images.PassingTrouble) else str(reason)
        if now - status.st_ctime_ns > _SETTLED_AFTER:
            after[identity] = found
        return found

    bar = tqdm(
        total=len(paths), desc="Identifying images", unit=" images", delay=1, disable=not progress
    )
    with bar, ThreadPoolExecutor(images.THREADS) as pool:
        found: list[str | images.PassingTrouble] = []
        for start in range(0, len(paths), _CHUNK):  # each file of a chunk takes memory
            found += pool.map(identify, paths[start : start + _CHUNK])
            bar.update(len(found) - start)
    if after != before:
        with contextlib.suppress(UserError):
            write_atomically(known, json.dumps(after))
    return found


def _read(known: Path) -> dict[str, str]:
    try:
        found = json.loads(read_bytes(known))
    except (OSError, ValueError):  # not there yet, or damaged: everything is read again
        return {}
    return found if isinstance(found, dict) else {}
