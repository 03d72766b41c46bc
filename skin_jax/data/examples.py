"""Records of images and the images themselves, which every later step works on."""

import hashlib
import itertools
import json
import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from skin_jax.base import csvs
from skin_jax.base.errors import UserError
from skin_jax.base.files import check_writable, write_atomically
from skin_jax.data.classes import HAM10000, UNLABELLED, Classes

_Node = TypeVar("_Node", bound=Hashable)


@dataclass(frozen=True)
class Record:
    """One image: where it is, its class, and what is known of its lesion and patient."""

    image_id: str
    label: int
    """Index into the `Classes` of its examples, or UNLABELLED."""
    lesion_id: str
    """What no split divides: images with the same value show the same lesion or patient, as far as
    the data say, or are copies; the image id where nothing is known."""
    age: float = math.nan
    """Years; nan where unknown."""
    sex: str = ""
    """"female", "male", or "" where unknown."""
    localization: str = ""
    """Body site, "" where unknown."""
    confirmation: str = ""
    """"histo", "follow_up", "consensus", "confocal", or "" where unknown."""
    official_split: str = "train"
    """"train", "val" or "test": the challenge's folder; "train" where the layout has no splits."""
    path: Path | None = None
    """The image file, or `FILE.npz/ARRAY/ROW`; None for images that were generated."""


class Images(Protocol):
    """Decoded images uint8 [N, S, S, 3], RGB, on disk or in memory; an array is one such.

    They may be larger than the memory: index a bounded number at a time, by integers 0 .. N - 1.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, S, S, 3)."""

    @property
    def nbytes(self) -> int:
        """Bytes of all images together."""

    def __len__(self) -> int:
        """N."""

    def __getitem__(self, indices: np.ndarray, /) -> np.ndarray:
        """The images at indices int [...]: uint8 [..., S, S, 3]."""


class Joined:
    """Images of one size, and after them others, without a copy."""

    def __init__(self, first: Images, second: Images):
        self._first, self._second = first, second
        self.shape = (len(first) + len(second), *first.shape[1:])
        self.nbytes = first.nbytes + second.nbytes

    def __len__(self) -> int:
        """Number of all images."""
        return self.shape[0]

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        """The images at indices int [...]: uint8 [..., S, S, 3]."""
        images = np.empty((*indices.shape, *self.shape[1:]), np.uint8)
        later = indices >= len(self._first)
        images[~later] = self._first[indices[~later]]
        images[later] = self._second[indices[later] - len(self._first)]
        return images


@dataclass(frozen=True)
class Examples:
    """Records and their decoded images, in the same order."""

    records: tuple[Record, ...]
    """Sorted by image id."""
    images: Images
    """uint8 [N, S, S, 3], RGB."""
    digest: str
    """`digest_of(records, images)`: a resumed run must find the same."""
    skipped: tuple[tuple[str, str], ...] = ()
    """(file, reason) of each unreadable image that was left out."""
    classes: Classes = HAM10000
    """The classes that the labels stand for."""
    unit: str = "lesion"
    """The content of `Record.lesion_id`: "lesion", "patient", "group" or "image"."""

    @cached_property
    def labels(self) -> np.ndarray:
        """int32 [N], indices into `classes`, or UNLABELLED."""
        return np.array([record.label for record in self.records], np.int32)


def hide_labels(examples: Examples, hidden: np.ndarray) -> Examples:
    """The same examples, those of a mask bool [N] without their labels."""
    records = tuple(
        replace(record, label=UNLABELLED) if own else record
        for record, own in zip(examples.records, hidden, strict=True)
    )
    return replace(examples, records=records)


def write_skipped(path: Path, skipped: Iterable[tuple[str, str]]) -> None:
    """Writes a CSV of what was left out; what no table can hold of file names is escaped."""
    check_skipped(path)
    rows = ([csvs.held(cell) for cell in row] for row in skipped)
    write_atomically(path, csvs.text([("file", "reason"), *rows]))


def check_skipped(path: Path) -> None:
    """Refuses a file of somebody else where `write_skipped` is to write, or no place to write."""
    check_writable(path)
    if path.exists() and not path.read_bytes().startswith(b"file,reason\n"):
        raise UserError(
            f"{path} is not a list of images that were left out, which would replace it; give it "
            "another name"
        )


def components(links: Iterable[Sequence[_Node]]) -> dict[_Node, _Node]:
    """One representative of each set of nodes that links connect, directly or through others."""
    parent: dict[_Node, _Node] = {}

    def root(node: _Node) -> _Node:
        while parent[node] != node:
            parent[node] = node = parent[parent[node]]
        return node

    for link in links:
        for node in link:
            parent.setdefault(node, node)
            parent[root(node)] = root(link[0])
    return {node: root(node) for node in parent}


def join_copies(
    records: Sequence[Record], copies: Sequence[Sequence[int]], classes: Classes
) -> tuple[tuple[Record, ...], list[str]]:
    """Keeps copies of an image (`Digest.copies`) on one side of any split: their groups become one.

    Returns:
      The records, of which those in a joined group have the first of its ids; and what is to be
      said aloud.
    """
    if not copies:
        return tuple(records), []
    part = components([[records[place].lesion_id for place in places] for places in copies])
    first = {part[name]: name for name in sorted(part, reverse=True)}
    units = (first.get(part.get(record.lesion_id, ""), record.lesion_id) for record in records)
    joined = tuple(replace(r, lesion_id=unit) for r, unit in zip(records, units, strict=True))
    extra = sum(map(len, copies)) - len(copies)
    notes = [f"exact copies of other images: {extra}; data.split=lesion keeps them together"]
    found = [[records[place] for place in places] for places in copies]
    if parted := [own for own in found if len({record.official_split for record in own}) > 1]:
        notes.append(
            f"images with copies on several sides of the split that the data come with: "
            f"{len(parted)}, such as {_named(parted[0], [r.official_split for r in parted[0]])}"
        )
    if odd := [own for own in found if len({r.label for r in own} - {UNLABELLED}) > 1]:
        told = [
            _named(own, [classes.name_of(record.label) or "no label" for record in own])
            for own in odd[:10]
        ]
        told += [f"and {len(odd) - 10} more"] * (len(odd) > 10)
        notes.append(
            "exact copies with different classes, one of which must be wrong: "
            f"{len(odd)}: {'; '.join(told)}"
        )
    return joined, notes


def _named(records: Sequence[Record], words: Sequence[str]) -> str:
    named = [f"{r.image_id} ({word})" for r, word in zip(records, words, strict=True)]
    return " = ".join(named[:5] + ["..."] * (len(named) > 5))


class Digest:
    """SHA-256 over the pixels, then over ids, labels, lesion ids and official splits."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._places: dict[bytes, list[int]] = defaultdict(list)
        self._count = itertools.count()

    def add(self, image: np.ndarray) -> None:
        """Adds one image, uint8 [S, S, 3], in the order of the records."""
        pixels = np.ascontiguousarray(image).data
        self._hash.update(pixels)
        equal = hashlib.blake2b(pixels, digest_size=16).digest()
        self._places[equal].append(next(self._count))

    def copies(self) -> list[list[int]]:
        """The places of images that are equal, two or more in each list."""
        return [places for places in self._places.values() if len(places) > 1]

    def close(self, records: Sequence[Record]) -> str:
        """The hexadecimal digest; the Digest takes no more images afterwards."""
        rows = [[r.image_id, r.label, r.lesion_id, r.official_split] for r in records]
        self._hash.update(json.dumps(rows).encode())
        return self._hash.hexdigest()


def digest_of(records: Sequence[Record], images: Iterable[np.ndarray]) -> str:
    """The `Digest` of records and their images, as 64 hexadecimal digits."""
    digest = Digest()
    for image in images:
        digest.add(image)
    return digest.close(records)
