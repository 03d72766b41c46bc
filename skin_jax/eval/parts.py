"""Work in batches that several processes share, each its own batches, and one puts together.

FOLDER/call.json    what was asked for; the same in all processes
FOLDER/<key>.npz    what was found for a batch, named by whoever works

Whoever puts the batches together does the same work without a share, and takes from here what is
here. So the result is that of one process, whatever the others did or left undone.
"""

import contextlib
import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from skin_jax.base import folder
from skin_jax.base.errors import UserError
from skin_jax.base.files import write_atomically
from skin_jax.base.settings import flatten

_CALL = "call.json"


class Share(NamedTuple):
    """Of batches numbered from 0, every `of`-th from `number` on."""

    number: int
    of: int

    def __contains__(self, batch: object) -> bool:
        """Whether it has the batch of a number."""
        return isinstance(batch, int) and batch % self.of == self.number


class Parts:
    """The batches that are done, in a folder; none where there is no folder."""

    def __init__(
        self,
        place: Path,
        call: Callable[[], Mapping[str, Any]],
        what: str,
        *,
        make: bool,
    ):
        """Opens the folder.

        Args:
          place: of the folder.
          call: gives everything that decides what is found for a batch.
          what: the work, for the message, such as "predictions".
          make: whether the folder is created where there is none.

        Raises:
          UserError: it has batches of another call.
        """
        self._place = place
        if not make and not place.exists():
            return
        now = json.loads(json.dumps(call()))
        with contextlib.suppress(FileNotFoundError):
            before = folder.read_record(place / _CALL, lambda content: content, f"delete {place}")
            if differing := folder.differences(flatten(before), flatten(now)):
                raise UserError(
                    f"{place} holds parts of {what} with other settings; give them as they were, "
                    "or delete it: " + "; ".join(differing)
                )
            return
        if make:
            write_atomically(place / _CALL, json.dumps(now) + "\n")

    def load(self, key: str) -> dict[str, np.ndarray] | None:
        """The arrays of a batch; None where it is not here, or cannot be read."""
        try:
            with np.load(self._place / f"{key}.npz") as arrays:
                return dict(arrays)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile):
            return None

    def save(self, key: str, arrays: Mapping[str, Any]) -> None:
        """Keeps the arrays of a batch, whole or not at all."""
        content = io.BytesIO()
        np.savez_compressed(content, **arrays)
        write_atomically(self._place / f"{key}.npz", content.getvalue())

    def remove(self) -> None:
        """Deletes the folder with its batches."""
        for path in (*self._place.glob("*.npz"), self._place / _CALL):
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # there is none, or it holds files of somebody else
            self._place.rmdir()


def digest(texts: list[str]) -> str:
    """Identifies a list of texts, for a call."""
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]
