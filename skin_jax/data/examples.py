"""What every later step works on: records of images, and the images themselves in memory."""

import csv
import hashlib
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from skin_jax.base.files import write_atomically
from skin_jax.data.classes import HAM10000, Classes


@dataclass(frozen=True)
class Record:
    """One labelled image: where it is, and what is known of its lesion and patient."""

    image_id: str
    label: int
    """Index into `lesions.CLASSES`."""
    lesion_id: str
    """Images with the same value show the same lesion; the image id where nothing is known."""
    age: float
    """Years; nan where unknown."""
    sex: str
    """"female", "male", or "" where unknown."""
    localization: str
    """Body site, "" where unknown."""
    confirmation: str
    """"histo", "follow_up", "consensus", "confocal", or "" where unknown."""
    official_split: str
    """"train", "val" or "test": the challenge's folder; "train" where the layout has no splits."""
    path: Path | None = None
    """The image file; None for images that were generated."""


@dataclass(frozen=True)
class Examples:
    """Records and their decoded images, in the same order."""

    records: tuple[Record, ...]
    """Sorted by image id."""
    images: np.ndarray
    """uint8 [N, S, S, 3], RGB."""
    digest: str
    """`digest_of(records, images)`: a resumed run must find the same."""
    skipped: tuple[tuple[str, str], ...] = ()
    """(file, reason) of each unreadable image that was left out."""
    classes: Classes = HAM10000
    """What the labels mean."""

    @cached_property
    def labels(self) -> np.ndarray:
        """int32 [N], indices into `lesions.CLASSES`."""
        return np.array([record.label for record in self.records], np.int32)


def write_skipped(path: Path, skipped: Iterable[tuple[str, str]]) -> None:
    """Writes (file, reason) of what was left out as a CSV, whole or not at all.

    Bytes of file names that are no UTF-8 are escaped.

    Raises:
      UserError: the folder cannot be written.
    """
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("file", "reason"), *skipped])
    write_atomically(path, text.getvalue().encode(errors="backslashreplace"))


class Digest:
    """SHA-256 over the images, then over what identifies them; images are added one by one."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, image: np.ndarray) -> None:
        """Adds one image, uint8 [S, S, 3], in the order of the records."""
        self._hash.update(np.ascontiguousarray(image).data)

    def close(self, records: Sequence[Record]) -> str:
        """The hexadecimal digest; the Digest takes no more images afterwards."""
        rows = [[r.image_id, r.label, r.lesion_id, r.official_split] for r in records]
        self._hash.update(json.dumps(rows).encode())
        return self._hash.hexdigest()


def digest_of(records: Sequence[Record], images: Iterable[np.ndarray]) -> str:
    """SHA-256 over ids, labels, lesion ids, official splits and pixels, as 64 hex digits."""
    digest = Digest()
    for image in images:
        digest.add(image)
    return digest.close(records)
