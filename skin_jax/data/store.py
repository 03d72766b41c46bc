"""A data folder to examples: its images are decoded and resized once, and stay on disk."""

import functools
import hashlib
import itertools
import json
import os
import shutil
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from skin_jax.base.errors import UserError, first_line, listed, warn
from skin_jax.base.files import expanded, locked, without_owners
from skin_jax.data import contents, images, layouts, prepared
from skin_jax.data import download as download_lib
from skin_jax.data.classes import Classes
from skin_jax.data.examples import Digest, Examples, Record, join_copies
from skin_jax.data.listing import Listing
from skin_jax.data.reading import Reading


def prepare(
    data_dir: str | os.PathLike[str] | None,
    *,
    image_size: int,
    cache_dir: str | os.PathLike[str],
    on_bad_image: str = "error",
    download: bool = False,
    progress: bool = True,
    reading: Reading | None = None,
    classes: Classes | None = None,
) -> Examples:
    """Reads a data folder, or what an earlier call prepared of it.

    Prepared images are kept under `cache_dir`, in a folder named by a hash of the contents of the
    image files, of their records, and the image size. Killed halfway, the next call starts clean;
    of several processes one prepares, and the others wait and read its result.

    Args:
      data_dir: a folder in one of `layouts.LAYOUTS`; None where it is to be downloaded.
      image_size: side of the prepared images in pixels.
      cache_dir: where prepared images and downloads are kept; created where missing.
      on_bad_image: "error" refuses a folder with unreadable images, "skip" leaves them out.
      download: without a `data_dir`, takes the challenge's own archives (about 3 GB).
      progress: shows progress bars on stderr.
      reading: what the user says about the folder.
      classes: that labels are to index, of a run that is evaluated here; None: those of the data.

    Returns:
      All examples of the folder, sorted by image id; the images stay on disk.

    Raises:
      UserError: no data folder; anything wrong in it (all problems together); files that cannot be
        read at the moment; a cache folder that cannot be written.
    """
    without_owners()
    cache = expanded(cache_dir)
    listing = layouts.read(_data_folder(data_dir, cache, download, progress), reading, classes)
    for note in listing.notes:
        warn(f"{listing.root}: {note}")
    wanted = _Wanted(listing, image_size, cache, on_bad_image, progress)
    if listing.problems:
        skipped = [pair for pair in _decoded(wanted) if isinstance(pair[1], Exception)]
        problems = [*listing.problems, *wanted.unreadable(skipped)]
        raise listed(f"{listing.root} cannot be used", problems)
    found = contents.digests(list(map(_path, listing.records)), wanted.known, progress=progress)
    wanted.check_troubles(zip(listing.records, found, strict=True))
    try:
        return _prepared(replace(wanted, contents=tuple(map(str, found))))
    except OSError as error:
        raise UserError(
            f"cannot keep prepared images in {cache}: {error.strerror or error}; "
            "choose another folder with --config.data.cache_dir (skin_jax.prepare: --cache_dir)"
        ) from error


def _data_folder(
    data_dir: str | os.PathLike[str] | None, cache: Path, fetch: bool, progress: bool
) -> Path:
    if data_dir is not None:
        return expanded(data_dir)
    if fetch:
        return download_lib.fetch(cache / "downloads", progress=progress)
    raise UserError(
        "no data folder: pass --config.data.dir=FOLDER with your images, or "
        "--config.data.download=True to download those of the ISIC 2018 challenge "
        "(skin_jax.prepare: --data_dir=FOLDER or --download)"
    )


@dataclass(frozen=True)
class _Wanted:
    """One data folder at one size, and how to prepare it."""

    listing: Listing
    size: int
    cache: Path
    on_bad_image: str
    progress: bool
    contents: Sequence[str] = ()
    """Digest of the file of each record; empty for whoever keeps no result."""

    @functools.cached_property
    def entry(self) -> Path:
        """The folder of its prepared images."""
        key = hashlib.sha256()
        for record, content in zip(self.listing.records, self.contents, strict=True):
            key.update(json.dumps([content, *prepared.described(record).values()]).encode())
        return self.cache / "prepared" / f"{key.hexdigest()[:32]}_{self.size}"

    @property
    def known(self) -> Path:
        """Where `contents.digests` keeps what it found."""
        root = hashlib.sha256(os.fsencode(os.path.realpath(self.listing.root))).hexdigest()
        return self.cache / "contents" / f"{root[:32]}.json"

    def named(self, said: Iterable[tuple[Record, object]]) -> list[tuple[str, str]]:
        """(file below the data folder, words) of what is said of records."""
        root = self.listing.root
        return [(_path(record).relative_to(root).as_posix(), f"{words}") for record, words in said]

    def unreadable(self, said: Iterable[tuple[Record, object]]) -> list[str]:
        return [f"{file}: unreadable image: {reason}" for file, reason in self.named(said)]

    def refused(self, skipped: Iterable[tuple[Record, object]]) -> UserError:
        summary = f"{self.listing.root} holds unreadable images"
        return UserError(
            f"{listed(summary, self.unreadable(skipped))}\nRepair or remove them, or leave them "
            "out with --config.data.on_bad_image=skip"
        )

    def check_troubles(self, found: Iterable[tuple[Record, object]]) -> None:
        """Raises a UserError where files cannot be read at the moment."""
        troubles = [pair for pair in found if isinstance(pair[1], images.PassingTrouble)]
        if not troubles:
            return
        summary = f"{self.listing.root} holds images that cannot be read at the moment"
        lines = [f"{file}: {trouble}" for file, trouble in self.named(troubles)]
        raise UserError(
            f"{listed(summary, lines)}\nThat says nothing about the images, so none is left out: "
            "put it right and run the same command again"
        )


def _path(record: Record) -> Path:
    assert record.path is not None
    return record.path


def _prepared(wanted: _Wanted) -> Examples:
    if examples := _load(wanted):
        return examples
    lock = wanted.entry.with_name(f"{wanted.entry.name}.lock")
    waiting = "waiting for another process that prepares the same images"
    with locked(lock, waiting_for=waiting) as lock_held:
        if examples := _load(wanted):  # prepared while this process waited
            return examples
        if lock_held is not None:
            shutil.rmtree(wanted.entry, ignore_errors=True)
        _build(wanted)
    if examples := _load(wanted):
        return examples
    raise UserError(f"{wanted.entry} was prepared but cannot be read back; delete that folder")


def _decoded(wanted: _Wanted) -> Iterator[tuple[Record, np.ndarray | images.UnreadableImage]]:
    """Decodes in a few threads, in order, never more than a few images ahead."""
    records = wanted.listing.records
    bar = tqdm(
        records,
        desc=f"Preparing images at {wanted.size}x{wanted.size}",
        unit=" images",
        mininterval=0.5,
        disable=not wanted.progress,
    )
    with ThreadPoolExecutor(images.THREADS) as pool:
        futures = (
            pool.submit(_decode, _path(record), wanted.size, digest)
            for record, digest in itertools.zip_longest(records, wanted.contents)
        )
        waiting = deque(itertools.islice(futures, 4 * images.THREADS))
        for record in bar:
            yield record, waiting.popleft().result()
            waiting.extend(itertools.islice(futures, 1))


def _decode(path: Path, size: int, digest: str | None) -> np.ndarray | images.UnreadableImage:
    try:
        content = images.read(path)
        if digest is not None and contents.digest(content) != digest:
            return images.PassingTrouble("it changes while it is read")
        return images.decode(content, size)
    except images.UnreadableImage as error:
        return error


def _build(wanted: _Wanted) -> None:
    digest = Digest()
    good: list[Record] = []
    skipped: list[tuple[Record, str]] = []
    facts: dict[str, Any] = {}

    def readable() -> Iterator[tuple[Record, np.ndarray]]:
        for record, image in _decoded(wanted):
            if isinstance(image, images.PassingTrouble):
                # What is remembered of the file may be wrong: the next start reads it.
                wanted.known.unlink(missing_ok=True)
                wanted.check_troubles([(record, image)])
            elif isinstance(image, images.UnreadableImage):
                skipped.append((record, str(image)))
            elif wanted.on_bad_image == "skip" or not skipped:
                digest.add(image)
                good.append(record)
                yield record, image
        if skipped and (wanted.on_bad_image == "error" or not good):
            raise wanted.refused(skipped)
        copies = digest.copies()
        records, _ = join_copies(good, copies, wanted.listing.classes)
        reasons = {record.image_id: reason for record, reason in skipped}
        facts.update(digest=digest.close(records), copies=copies, skipped=reasons)

    prepared.write(wanted.entry, wanted.size, readable(), len(wanted.listing.records), facts)


def _load(wanted: _Wanted) -> Examples | None:
    """The prepared examples; None where there are none yet, or damaged ones."""
    folder, listing = prepared.folder(wanted.entry), wanted.listing
    if not folder.exists():
        return None
    try:
        store = prepared.opened(wanted.entry, wanted.size)
        digest, copies, reasons = (
            store.info.metadata[key] for key in ("digest", "copies", "skipped")
        )
        good = [record for record in listing.records if record.image_id not in reasons]
        left_out = [(r, reasons[r.image_id]) for r in listing.records if r.image_id in reasons]
        pixels = prepared.PreparedImages(store, [record.image_id for record in good])
        records, notes = join_copies(good, copies, listing.classes)
    except MemoryError:
        raise
    # Damage shows itself as anything from a JSON error to one of array_record's own.
    except Exception as error:
        if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
            raise  # it may pass, and another run is not to lose its images
        reason = first_line(error)[:200]
        warn(f"the prepared images in {folder} are damaged ({reason}): preparing them again")
        shutil.rmtree(folder, ignore_errors=True)
        return None
    if left_out and wanted.on_bad_image == "error":
        raise wanted.refused(left_out)
    for note in notes:
        warn(f"{listing.root}: {note}")
    skipped = tuple(wanted.named(left_out))
    return Examples(records, pixels, digest, skipped, listing.classes, listing.unit)
