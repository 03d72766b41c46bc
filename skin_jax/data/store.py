"""Records to prepared images: decoded and resized once, stored without loss, read back whole.

The store is a TFDS data set of raw pixels in array_record files: reading it needs no TensorFlow,
and raw pixels are read and written faster than PNG.
"""

import contextlib
import functools
import io
import itertools
import math
import os
import shutil
import tempfile
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from tqdm import tqdm

from skin_jax.base.errors import UserError, listed, warn
from skin_jax.base.files import locked
from skin_jax.data import images, layouts
from skin_jax.data.classes import Classes
from skin_jax.data.examples import Copies, Digest, Examples, Record, join_copies
from skin_jax.data.listing import Listing
from skin_jax.data.reading import Reading

ARCHIVES_URL = "https://isic-challenge-data.s3.amazonaws.com/2018/"
ARCHIVES = (
    "ISIC2018_Task3_Training_LesionGroupings.csv",
    "ISIC2018_Task3_Training_GroundTruth.zip",
    "ISIC2018_Task3_Training_Input.zip",
    "ISIC2018_Task3_Validation_Input.zip",
    "ISIC2018_Task3_Validation_GroundTruth.zip",
    "ISIC2018_Task3_Test_Input.zip",
    "ISIC2018_Task3_Test_GroundTruth.zip",
)

_SPLIT = "images"  # TFDS keeps the name "all" for itself
_SHARD_BYTES = 64 * 2**20
_READ_BYTES = 16 * 2**20

Skipped = tuple[tuple[str, str], ...]
"""(file, reason) of each unreadable image; files are relative to the data folder."""


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
    """Reads a data folder, or what an earlier call made of it.

    Prepared images are kept under `cache_dir`, in a folder named by a hash of the data folder's
    file names, sizes, times and tables, and the image size. Killed halfway, the next call starts
    clean; of several processes one prepares, and the others wait and read its result.

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
      All examples of the folder, sorted by image id, the images uint8 [N, image_size, image_size,
      3] in memory.

    Raises:
      UserError: no data folder; anything wrong in it (all problems together); a cache folder that
        cannot be written.
    """
    if on_bad_image not in ("error", "skip"):
        raise UserError(f"config.data.on_bad_image is 'error' or 'skip', not {on_bad_image!r}")
    if image_size < 1:
        raise UserError(f"config.data.image_size is a number of pixels, not {image_size}")
    cache = Path(cache_dir).expanduser()
    listing = layouts.read(_data_folder(data_dir, cache, download, progress), reading, classes)
    for note in listing.notes:
        warn(f"{listing.root}: {note}")
    if listing.problems:
        unreadable = _unreadable(listing, image_size, progress)
        raise listed(f"{listing.root} cannot be used", [*listing.problems, *_lines(unreadable)])
    entry = cache / "prepared" / f"{listing.cache_key[:32]}_{image_size}"
    try:
        return _prepared(listing, entry, image_size, on_bad_image, progress)
    except OSError as error:
        raise UserError(
            f"cannot keep prepared images in {cache}: {error.strerror or error}; "
            "choose another folder with --config.data.cache_dir (skin_jax.prepare: --cache_dir)"
        ) from error


def _prepared(
    listing: Listing, entry: Path, size: int, on_bad_image: str, progress: bool
) -> Examples:
    examples = _load(listing, entry, size, on_bad_image)
    if examples:
        return examples
    lock = entry.with_name(f"{entry.name}.lock")
    waiting = "waiting for another process that prepares the same images"
    with locked(lock, waiting_for=waiting) as lock_held:
        examples = _load(listing, entry, size, on_bad_image)  # made while this process waited
        if examples:
            return examples
        if lock_held is not None:
            shutil.rmtree(entry, ignore_errors=True)
        _build(listing, entry, size, on_bad_image, progress)
    examples = _load(listing, entry, size, on_bad_image)
    if examples is None:
        raise UserError(f"{entry} was prepared but cannot be read back; delete that folder")
    return examples


def _lines(skipped: Skipped) -> list[str]:
    return [f"{file}: unreadable image: {reason}" for file, reason in skipped]


def _refuse(listing: Listing, skipped: Skipped) -> UserError:
    error = listed(f"{listing.root} holds unreadable images", _lines(skipped))
    return UserError(
        f"{error}\nMend or remove them, or leave them out with --config.data.on_bad_image=skip"
    )


# Decoding


def _decoded(
    listing: Listing, size: int, progress: bool
) -> Iterator[tuple[Record, np.ndarray | images.UnreadableImage]]:
    """Decodes in a few threads, in order, never more than a few images ahead."""
    workers = max(1, min(8, os.cpu_count() or 1))
    waiting: deque[tuple[Record, Future[np.ndarray | images.UnreadableImage]]] = deque()
    bar = tqdm(
        total=len(listing.records),
        desc=f"Preparing images at {size}x{size}",
        unit=" images",
        mininterval=0.5,
        disable=not progress,
    )
    with bar, ThreadPoolExecutor(workers) as pool:
        remaining = iter(listing.records)
        while True:
            for record in itertools.islice(remaining, 4 * workers - len(waiting)):
                waiting.append((record, pool.submit(_decode, record, size)))
            if not waiting:
                return
            record, future = waiting.popleft()
            yield record, future.result()
            bar.update()


def _decode(record: Record, size: int) -> np.ndarray | images.UnreadableImage:
    assert record.path is not None
    try:
        return images.decode(record.path, size)
    except images.UnreadableImage as error:
        if not os.path.lexists(record.path):  # nothing to leave out: the folder itself is going
            raise UserError(
                f"{record.path} was there a moment ago and is gone now: the data folder is being "
                "changed, or its disk is away; run the same command again when it is back"
            ) from None
        return error


def _relative(listing: Listing, record: Record) -> str:
    assert record.path is not None
    return record.path.relative_to(listing.root).as_posix()


def _unreadable(listing: Listing, size: int, progress: bool) -> Skipped:
    return tuple(
        (_relative(listing, record), str(image))
        for record, image in _decoded(listing, size, progress)
        if isinstance(image, images.UnreadableImage)
    )


# The store


@dataclass
class _Source:
    """What the builder stores: a stream of readable examples, and what is known at its end."""

    examples: Iterator[tuple[int, dict[str, Any]]]
    num_shards: int
    shard_size: int
    summary: Callable[[], dict[str, Any]]


class _Info(tfds.core.DatasetInfo):
    def initialize_from_bucket(self) -> None:
        """Does nothing: the original looks for public data sets and leaves a temporary folder."""


class LesionImages(tfds.core.ShardBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Dermoscopic images at one size, with what is known of them, sorted by image id.

    Shard by shard, because TFDS's GeneratorBasedBuilder holds all examples in memory and, from
    1 GB on, goes through TensorFlow's file system.
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, size: int, data_dir: Path, source: _Source | None = None):
        self._size = size
        self._source = source
        super().__init__(data_dir=data_dir)

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text
        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Tensor(
                    shape=(self._size, self._size, 3), dtype=np.uint8, encoding="bytes"
                ),
                "label": np.int32,
                "image_id": text(),
                "lesion_id": text(),
                "age": np.float32,
                "sex": text(),
                "localization": text(),
                "confirmation": text(),
                "official_split": text(),
            }
        )
        return _Info(
            builder=self,
            features=features,
            metadata=tfds.core.MetadataDict(),
            disable_shuffling=True,
        )

    def _shard_iterators_per_split(self, dl_manager: Any) -> dict[str, list[Callable]]:
        del dl_manager
        source = self._source
        assert source is not None
        shard = functools.partial(itertools.islice, source.examples, source.shard_size)
        last = functools.partial(self._last_shard, source)
        return {_SPLIT: [shard] * (source.num_shards - 1) + [last]}

    def _last_shard(self, source: _Source) -> Iterator[tuple[int, dict[str, Any]]]:
        yield from source.examples
        self.info.metadata.update(source.summary())


def _build(listing: Listing, entry: Path, size: int, on_bad_image: str, progress: bool) -> None:
    digest, copies = Digest(), Copies()
    good: list[Record] = []
    skipped: list[tuple[str, str]] = []

    def examples() -> Iterator[tuple[int, dict[str, Any]]]:
        for record, image in _decoded(listing, size, progress):
            if isinstance(image, images.UnreadableImage):
                skipped.append((_relative(listing, record), str(image)))
            elif on_bad_image == "skip" or not skipped:
                digest.add(image)
                copies.add(image)
                good.append(record)
                yield len(good) - 1, _features(record, image)
        if skipped and (on_bad_image == "error" or not good):
            raise _refuse(listing, tuple(skipped))

    def summary() -> dict[str, Any]:
        groups = copies.groups()
        records, _ = join_copies(good, groups, listing.classes)
        return {"digest": digest.close(records), "skipped": skipped, "copies": groups}

    shard_size = max(1, _SHARD_BYTES // (size * size * 3))
    source = _Source(
        examples=examples(),
        num_shards=math.ceil(len(listing.records) / shard_size),
        shard_size=shard_size,
        summary=summary,
    )
    builder = LesionImages(size=size, data_dir=entry, source=source)
    try:
        with _without_chatter():
            builder.download_and_prepare(
                file_format="array_record",
                download_config=tfds.download.DownloadConfig(try_download_gcs=False),
            )
    except OSError:
        # Where files cannot be locked, another process may have put its result there first.
        if not Path(builder.data_dir).exists():
            raise
    except RuntimeError as error:  # array_record's words for a full disk
        raise OSError(str(error)) from error


@contextlib.contextmanager
def _without_chatter() -> Iterator[None]:
    """Hides what TFDS announces on stdout and logs; the progress bar and warnings stay."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(min(verbosity, logging.WARNING))
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)


def _features(record: Record, image: np.ndarray) -> dict[str, Any]:
    return {
        "image": image,
        "label": record.label,
        "image_id": record.image_id,
        "lesion_id": record.lesion_id,
        "age": record.age,
        "sex": record.sex,
        "localization": record.localization,
        "confirmation": record.confirmation,
        "official_split": record.official_split,
    }


def _load(listing: Listing, entry: Path, size: int, on_bad_image: str) -> Examples | None:
    """The prepared examples; None where there are none yet, or damaged ones."""
    builder_dir = entry / LesionImages.name / str(LesionImages.VERSION)
    if not builder_dir.exists():
        return None
    try:
        with _without_chatter():
            builder = LesionImages(size=size, data_dir=entry)
        skipped = tuple((file, reason) for file, reason in builder.info.metadata["skipped"])
        left_out = {file for file, _ in skipped}
        records = tuple(r for r in listing.records if _relative(listing, r) not in left_out)
        digest, copies = (builder.info.metadata[key] for key in ("digest", "copies"))
        pixels = None if skipped and on_bad_image == "error" else _read(builder, records, size)
    except MemoryError:
        raise
    # Damage shows itself as anything from a JSON error to one of array_record's own.
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        warn(f"{builder_dir} is damaged ({reason}); preparing the images again")
        shutil.rmtree(builder_dir, ignore_errors=True)
        return None
    if pixels is None:
        raise _refuse(listing, skipped)
    records, notes = join_copies(records, copies, listing.classes)
    for note in notes:
        warn(f"{listing.root}: {note}")
    return Examples(
        records=records,
        images=pixels,
        digest=digest,
        skipped=skipped,
        classes=listing.classes,
        unit=listing.unit,
    )


def _read(builder: LesionImages, records: Sequence[Record], size: int) -> np.ndarray:
    source = builder.as_data_source(_SPLIT)
    if len(source) != len(records):
        raise ValueError(f"{len(source)} images for {len(records)} records")
    pixels = np.empty((len(records), size, size, 3), np.uint8)
    chunk = max(1, _READ_BYTES // (size * size * 3))
    for start in range(0, len(records), chunk):
        indices = range(start, min(start + chunk, len(records)))
        for i, example in zip(indices, source.__getitems__(list(indices)), strict=True):
            if example["image_id"].decode() != records[i].image_id:
                raise ValueError(f"image {example['image_id']!r} in place of {records[i].image_id}")
            pixels[i] = example["image"]
    return pixels


# The download


def _data_folder(
    data_dir: str | os.PathLike[str] | None, cache: Path, download: bool, progress: bool
) -> Path:
    if data_dir is not None:
        return Path(data_dir).expanduser()
    if download:
        return _downloaded(cache / "downloads", progress)
    raise UserError(
        "no data folder: pass --config.data.dir=FOLDER with your images, or "
        "--config.data.download=True to fetch those of the ISIC 2018 challenge "
        "(skin_jax.prepare: --data_dir=FOLDER or --download)"
    )


def _downloaded(folder: Path, progress: bool) -> Path:
    """Fetches and unpacks the challenge's archives; returns a folder with their official names."""
    root = folder / "ISIC2018_Task3"
    missing = [name for name in ARCHIVES if not (root / name.removesuffix(".zip")).exists()]
    if not missing:
        return root
    tfds.display_progress_bar(progress)
    try:
        _check_online(ARCHIVES_URL + missing[0])
        root.mkdir(parents=True, exist_ok=True)
        manager = tfds.download.DownloadManager(download_dir=folder)
        # One after the other: threads that still retry would hold up the exit after a failure.
        for name in missing:
            _unpack(Path(manager.download(ARCHIVES_URL + name)), root / name.removesuffix(".zip"))
    # Everything from a refused connection to a broken archive ends in the same advice.
    except Exception as error:
        urls = "\n".join(f"  {ARCHIVES_URL}{name}" for name in ARCHIVES)
        raise UserError(
            f"the download failed ({' '.join(str(error).split())[:200]}). Download these files "
            f"yourself:\n{urls}\nunpack the archives into one folder, put the CSV file beside "
            "them, and pass it with --config.data.dir=FOLDER (skin_jax.prepare: "
            "--data_dir=FOLDER)"
        ) from error
    return root


def _unpack(file: Path, target: Path) -> None:
    """Puts a table, or the folder that an archive holds, in its place, whole or not at all.

    The download manager's own extraction needs TensorFlow.
    """
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".unpacking") as temporary:
        whole = Path(temporary) / "whole"
        if target.suffix:
            shutil.copyfile(file, whole)
        else:
            shutil.unpack_archive(file, whole, "zip")
        inner = whole / target.name
        (inner if inner.is_dir() else whole).replace(target)


def _check_online(url: str) -> None:
    """Raises an OSError at once where the download manager would retry for minutes."""
    request = urllib.request.Request(url, method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=30).close()
    except urllib.error.HTTPError as refusal:  # an answer all the same
        refusal.close()
