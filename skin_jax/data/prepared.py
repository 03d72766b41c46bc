"""Prepared images on disk: a TFDS data set of raw pixels in array_record files.

It needs no TensorFlow, and any of its images is read without reading others.
"""

import contextlib
import functools
import io
import itertools
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from array_record.python import array_record_module
from tensorflow_datasets.core import writer as tfds_writer
from tensorflow_datasets.proto import tf_example_pb2

from skin_jax.base.errors import UserError, first_line
from skin_jax.data.examples import Record

_SPLIT = "images"  # TFDS keeps the name "all" for itself
_SHARD_BYTES = 64 * 2**20
_MOST_SHARDS = 256  # all are open while they are used
_READ_BYTES = 16 * 2**20  # in one piece, by as many threads as array_record likes
_Shard = Callable[[], Iterator[tuple[int, dict[str, Any]]]]


class _Info(tfds.core.DatasetInfo):
    def initialize_from_bucket(self) -> None:
        """Does nothing: the original looks for public data sets and leaves a temporary folder."""


class _Writer(tfds_writer.ExampleWriter):
    def write(self, path: os.PathLike[str], examples: Iterable[tuple[int, bytes]]) -> None:
        """Without compression, unlike TFDS's own: images are read and written four times faster."""
        writer = array_record_module.ArrayRecordWriter(os.fspath(path), "group_size:1,uncompressed")
        for _, example in examples:
            writer.write(example)
        writer.close()


class LesionImages(tfds.core.ShardBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Dermoscopic images at one size, with what is known of them, sorted by image id.

    Shard by shard, because TFDS's GeneratorBasedBuilder holds all examples in memory and, from
    1 GB on, goes through TensorFlow's file system.
    """

    VERSION = tfds.core.Version("2.0.0")

    def __init__(self, *, size: int, data_dir: Path, shards: Sequence[_Shard] = ()):
        self._size = size
        self._shards = shards
        super().__init__(data_dir=data_dir)

    def _info(self) -> tfds.core.DatasetInfo:
        kinds = {str: tfds.features.Text(), int: np.int32, float: np.float32}
        image = tfds.features.Tensor(
            shape=(self._size, self._size, 3), dtype=np.uint8, encoding="bytes"
        )
        described = {f.name: kinds[f.type] for f in fields(Record) if f.type in kinds}
        return _Info(
            builder=self,
            features=tfds.features.FeaturesDict({"image": image, **described}),
            metadata=tfds.core.MetadataDict(),
            disable_shuffling=True,
        )

    def _example_writer(self) -> tfds_writer.ExampleWriter:
        return _Writer(self.info.file_format)

    def _shard_iterators_per_split(self, dl_manager: Any) -> dict[str, Sequence[_Shard]]:
        del dl_manager
        return {_SPLIT: self._shards}


def described(record: Record) -> dict[str, Any]:
    """Everything that is known about an image, except its place."""
    return {f.name: getattr(record, f.name) for f in fields(record) if f.name != "path"}


def folder(entry: Path) -> Path:
    """Where the files of a store are, or will be, below the folder of the store."""
    return entry / LesionImages.name / str(LesionImages.VERSION)


def write(
    entry: Path,
    size: int,
    examples: Iterator[tuple[Record, np.ndarray]],
    most: int,
    facts: Mapping[str, Any],
) -> None:
    """Writes a store, whole or not at all, holding a file's share of images in memory.

    `examples` are at most `most` records and their images uint8 [size, size, 3], sorted by image
    id; when they have ended, the facts are read, which are kept as the metadata. An OSError where
    the folder cannot be written or the disk is full.
    """

    def last() -> Iterator[tuple[int, dict[str, Any]]]:
        yield from stream
        builder.info.metadata.update(facts)

    stream = enumerate({"image": image, **described(record)} for record, image in examples)
    share = max(1, _SHARD_BYTES // (size * size * 3), math.ceil(most / _MOST_SHARDS))
    shard = functools.partial(itertools.islice, stream, share)
    shards = [shard] * (math.ceil(most / share) - 1) + [last]
    builder = LesionImages(size=size, data_dir=entry, shards=shards)
    try:
        with _without_chatter():
            builder.download_and_prepare(
                file_format="array_record",
                download_config=tfds.download.DownloadConfig(try_download_gcs=False),
            )
    except OSError:
        # Where files cannot be locked, another process may have put its result there first.
        if not folder(entry).exists():
            raise
    except RuntimeError as error:  # array_record's words for a full disk
        raise OSError(str(error)) from error


def opened(entry: Path, size: int) -> LesionImages:
    """The data set of a store that was written; `info.metadata` has its facts."""
    with _without_chatter():
        return LesionImages(size=size, data_dir=entry)


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


class PreparedImages:
    """The images of a store, uint8 [N, S, S, 3], by ids in their order, read when asked for.

    Several threads may read at once; the files stay open. An OSError where one cannot be opened; a
    ValueError where they do not hold that many images.
    """

    def __init__(self, builder: LesionImages, ids: Sequence[str]):
        self._folder = builder.data_dir
        self._ids = ids
        self.shape = (len(ids), *builder.info.features["image"].shape)
        self.nbytes = math.prod(self.shape)
        shards = builder.info.splits[_SPLIT].file_instructions
        self._readers = [_reader(shard.filename, shard.examples_in_shard) for shard in shards]
        self._ends = np.cumsum([shard.examples_in_shard for shard in shards])
        if self._ends[-1] != len(ids):
            raise ValueError(f"{self._ends[-1]} images for {len(ids)} records")

    def __len__(self) -> int:
        """Number of images."""
        return self.shape[0]

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        """The images at indices int [...]: uint8 [..., S, S, 3]; a UserError where damaged."""
        indices = np.asarray(indices)
        if indices.dtype.kind not in "iu":
            raise TypeError(f"images are indexed by integers, not by {indices.dtype}")
        flat = indices.reshape(-1)
        if np.any((flat < 0) | (flat >= len(self))):
            raise IndexError(f"indices of {len(self)} images are 0 to {len(self) - 1}")
        found = np.empty((len(flat), *self.shape[1:]), np.uint8)
        shards = np.searchsorted(self._ends, flat, side="right")
        at_once = max(1, _READ_BYTES // math.prod(self.shape[1:]))
        for shard in np.unique(shards).tolist():
            places = np.flatnonzero(shards == shard)
            for piece in np.split(places, range(at_once, len(places), at_once)):
                self._read(shard, piece, flat, found)
        return found.reshape(*indices.shape, *self.shape[1:])

    def _read(self, shard: int, places: np.ndarray, indices: np.ndarray, found: np.ndarray) -> None:
        """Reads the images of one file into their places."""
        first = self._ends[shard - 1] if shard else 0
        try:
            records = self._readers[shard].read((indices[places] - first).tolist())
            for place, record in zip(places, records, strict=True):
                features = tf_example_pb2.Example.FromString(record).features.feature
                image_id = b"".join(features["image_id"].bytes_list.value).decode()
                if image_id != (wanted := self._ids[indices[place]]):
                    raise ValueError(f"image {image_id!r} in place of {wanted!r}")
                image = b"".join(features["image"].bytes_list.value)
                found[place] = np.frombuffer(image, np.uint8).reshape(self.shape[1:])
        # As in _load: damage shows itself as anything.
        except Exception as error:
            raise UserError(
                f"the prepared images in {self._folder} are damaged or cannot be read "
                f"({first_line(error)[:200]}); run the same command again, and where it ends here "
                "again delete that folder: the images are then prepared again"
            ) from error


def _reader(path: str, count: int) -> Any:
    with open(path, "rb"):  # array_record says of a file that it cannot open that it is empty
        reader = array_record_module.ArrayRecordReader(
            path, options="readahead_buffer_size:0", file_reader_buffer_size=2**15
        )
    if reader.num_records() != count:
        raise ValueError(f"{path} holds {reader.num_records()} images in place of {count}")
    return reader
