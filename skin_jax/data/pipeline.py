"""Batches from an index order: a tf.data stream, or images resident on the device.

Both give pixel-identical examples in the same order. A pipeline yields *feeds*, what travels from
the host for each dispatch, and `gather` turns a feed into a batch inside the jitted step:

    batch = {"image": uint8 [B, H, W, 3], "label": int32 [B], "mask": float32 [B],
             "position": uint32 [B]}

`label` is UNLABELLED (-1) where there is none. `position` is the example's place p = step * B + i
in the training stream (in evaluation, its place in the list), `mask` is 0 for the padding of the
last evaluation batch and 1 elsewhere.
"""

import collections
import contextlib
import importlib.util
import itertools
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from skin_jax.base import devices
from skin_jax.base.errors import UserError
from skin_jax.data.examples import Images
from skin_jax.data.order import Stream

PyTree = Any
Feed = dict[str, jax.Array]
_Block = dict[str, np.ndarray]
_LOOKAHEAD = 2
"""Feeds that are on their way to the device while the step runs."""
_READ_AHEAD = 8
"""Dispatches that tf.data reads side by side, before they are used: a number of its own choice
would let the memory grow."""


class Pipeline:
    """Examples in the order that is asked for. `resident` is what stays on the devices."""

    resident: PyTree = None

    def __init__(self, images: Images, labels: np.ndarray, mesh: Mesh):
        """Takes images uint8 [N, H, W, 3] and labels int32 [N]."""
        self._images = images
        self._labels = labels
        self.mesh = mesh

    @staticmethod
    def gather(resident: PyTree, feed: Feed) -> Feed:
        """The batch of a feed, here the feed itself; traced inside the jitted step."""
        return feed

    def train_feeds(
        self, order: Stream, batch_size: int, first_step: int, num_steps: int, per_dispatch: int
    ) -> Iterator[Feed]:
        """Feeds of steps first_step .. num_steps - 1; leaves [K, B] where per_dispatch K > 1."""
        blocks = _train_blocks(order, batch_size, first_step, num_steps, per_dispatch)
        return self._feeds(blocks, batch_axis=int(per_dispatch > 1))

    def eval_feeds(self, indices: np.ndarray, batch_size: int) -> Iterator[Feed]:
        """Feeds over the given examples in their order, the last one padded and masked.

        A batch size that does not divide over the devices is rounded up.
        """
        devices = self.mesh.size
        whole = -(-batch_size // devices) * devices
        return self._feeds(_eval_blocks(indices, whole), batch_axis=0)

    def _feeds(self, blocks: Iterable[_Block], batch_axis: int) -> Iterator[Feed]:
        placement = devices.over_batch(self.mesh, batch_axis)
        local = self._load(_local(block, self._labels, self.mesh, batch_axis) for block in blocks)
        return _ahead(devices.to_global(block, placement) for block in local)

    def _load(self, blocks: Iterator[_Block]) -> Iterator[_Block]:
        """The part of each block that travels to the device."""
        return blocks


class DevicePipeline(Pipeline):
    """Images resident in device memory, gathered by index inside the jitted step."""

    def __init__(self, images: Images, labels: np.ndarray, mesh: Mesh):
        """Puts all images on every device of the mesh."""
        super().__init__(images, labels, mesh)
        everything = images[np.arange(len(images))]
        self.resident = devices.to_global(everything, devices.replicated(mesh))

    @staticmethod
    def gather(resident: PyTree, feed: Feed) -> Feed:
        """Looks the images up by their index."""
        batch = dict(feed)
        index = batch.pop("index")
        return {"image": resident[index], **batch}


class TfPipeline(Pipeline):
    """Images stay where they are; tf.data reads those of the next dispatches, side by side."""

    def _load(self, blocks: Iterator[_Block]) -> Iterator[_Block]:
        import tensorflow as tf

        for kind in ("GPU", "TPU"):  # the accelerator is JAX's
            tf.config.set_visible_devices([], kind)
        first = next(blocks, None)
        if first is None:
            return
        shape = (*first["index"].shape, *self._images.shape[1:])
        signature = {key: tf.TensorSpec(value.shape, value.dtype) for key, value in first.items()}

        failures: list[UserError] = []

        def read(index: np.ndarray) -> np.ndarray:
            try:
                return self._images[index]
            except UserError as error:  # TensorFlow would print a traceback
                failures.append(error)
                return np.zeros(shape, np.uint8)

        def with_images(block: dict[str, Any]) -> dict[str, Any]:
            image = tf.numpy_function(read, [block.pop("index")], tf.uint8, stateful=False)
            return {"image": tf.ensure_shape(image, shape), **block}

        stream = tf.data.Dataset.from_generator(
            lambda: itertools.chain([first], blocks), output_signature=signature
        )
        stream = stream.map(with_images, num_parallel_calls=_READ_AHEAD, deterministic=True)
        for block in stream.prefetch(1).as_numpy_iterator():
            if failures:
                raise failures[0]
            yield block


PIPELINES: dict[str, type[Pipeline]] = {"tf": TfPipeline, "device": DevicePipeline}


def make(name: str, images: Images, labels: np.ndarray, mesh: Mesh) -> Pipeline:
    """The pipeline of `config.data.pipeline`: "tf", "device", or "auto".

    auto takes `device` when the images (uint8 [N, H, W, 3]), once for each local device that shares
    the memory, need less than a quarter of it; also where TensorFlow is not installed.
    """
    if name == "auto":
        has_tf = importlib.util.find_spec("tensorflow") is not None
        fits = devices.first_decides(_fits(images.nbytes))
        name = "tf" if has_tf and not fits else "device"
    return PIPELINES[name](images, labels, mesh)


def _fits(num_bytes: int) -> bool:
    device = jax.local_devices()[0]
    if device.platform != "cpu":
        return num_bytes < (device.memory_stats() or {}).get("bytes_limit", 0) / 4
    # The devices of a CPU share its memory, and a replicated array costs its size on each.
    return num_bytes * jax.local_device_count() < _available_memory() / 4


def _available_memory() -> int:
    """Bytes of RAM that can be had; all of it where the system does not say."""
    with contextlib.suppress(OSError):
        found = re.search(
            r"^MemAvailable:\s*(\d+)", Path("/proc/meminfo").read_text(), re.MULTILINE
        )
        if found:
            return int(found[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _train_blocks(
    order: Stream, batch_size: int, first_step: int, num_steps: int, per_dispatch: int
) -> Iterator[_Block]:
    for step in range(first_step, num_steps, per_dispatch):
        shape = (per_dispatch, batch_size) if per_dispatch > 1 else (batch_size,)
        positions = (step * batch_size + np.arange(per_dispatch * batch_size)).reshape(shape)
        yield {
            "index": order(positions),
            "position": positions.astype(np.uint32),
            "mask": np.ones(positions.shape, np.float32),
        }


def _eval_blocks(indices: np.ndarray, batch_size: int) -> Iterator[_Block]:
    for start in range(0, len(indices), batch_size):
        positions = np.arange(start, start + batch_size)
        valid = positions < len(indices)
        yield {
            # Padding repeats the first example, so that it is an image like any other.
            "index": indices[np.where(valid, positions, 0)],
            "position": positions.astype(np.uint32),
            "mask": valid.astype(np.float32),
        }


def _local(block: _Block, labels: np.ndarray, mesh: Mesh, batch_axis: int) -> _Block:
    """This process's rows of a block, with labels; indices in the int32 that devices use."""
    rows = devices.local_rows(mesh, block["index"].shape[batch_axis])
    local = {k: v.take(rows, axis=batch_axis) for k, v in block.items()}
    index, label = local["index"], labels[local["index"]]
    return {**local, "index": index.astype(np.int32), "label": label.astype(np.int32)}


def _ahead(feeds: Iterator[Feed]) -> Iterator[Feed]:
    """Starts the transfer of the next feeds while the current one is used."""
    queue: collections.deque[Feed] = collections.deque()
    for feed in feeds:
        queue.append(feed)
        if len(queue) > _LOOKAHEAD:
            yield queue.popleft()
    yield from queue
