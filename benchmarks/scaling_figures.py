"""The figures that docs/scaling.md plans with: sizes of states and checkpoints, images per second.

python -m benchmarks.scaling_figures [--images 2048]: prints two tables, in about two minutes on two
CPU cores. The states are those of the configurations. Checkpoints are of random numbers, which
compress as little as weights do; images are random too.
"""

import argparse
import os
import pathlib
import tempfile
import time
from typing import Any

import jax
import numpy as np

from configs import densenet121, efficientnet_lite0, resnet50, sgan
from skin_jax import tasks
from skin_jax.base import devices
from skin_jax.data.classes import HAM10000
from skin_jax.data.pipeline import PIPELINES, Order
from skin_jax.training.checkpoints import Checkpoints

CONFIGS = {
    "sgan": sgan,
    "resnet50": resnet50,
    "densenet121": densenet121,
    "efficientnet_lite0": efficientnet_lite0,
}
_MB = 1e6


def state_row(name: str) -> str:
    """Size a configuration's state, what its devices reduce a step, and its checkpoint."""
    config = CONFIGS[name].get_config()
    task = tasks.build(config, HAM10000.names, np.ones(len(HAM10000), int), 1000, 100.0)
    shapes: Any = jax.eval_shape(task.init, jax.random.key(0))
    rng = np.random.default_rng(0)
    state = jax.tree.map(lambda x: _random(rng, x), shapes)
    trained = [
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(shapes.variables)
        if "['params']" in jax.tree_util.keystr(path)
    ]
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Checkpoints(pathlib.Path(folder))
        begin = time.perf_counter()
        checkpoints.save(1, jax.device_put(state), None)
        started = time.perf_counter() - begin
        checkpoints.wait()
        whole = time.perf_counter() - begin
        checkpoints.close()
        on_disk = sum(p.stat().st_size for p in pathlib.Path(folder).rglob("*") if p.is_file())
    return (
        f"| {name} | {config.data.image_size} | {sum(leaf.size for leaf in trained) / _MB:.1f} "
        f"| {_size(trained) / _MB:.0f} | {_size(jax.tree.leaves(shapes)) / _MB:.0f} "
        f"| {on_disk / _MB:.0f} | {started:.1f} | {whole:.1f} |"
    )


def _random(rng: np.random.Generator, shape: jax.ShapeDtypeStruct) -> np.ndarray:
    return rng.standard_normal(shape.shape, np.float32).astype(shape.dtype)


def _size(leaves: list[Any]) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def pipeline_row(name: str, num_images: int, batch_size: int, batches: int = 40) -> str:
    """Time the batches of a pipeline, gathered on the device, with nothing else to do; best of 3.

    Args:
      name: "device" or "tf".
      num_images: of 224x224.
      batch_size: images in a batch.
      batches: that are timed each time.
    """
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (num_images, 224, 224, 3), np.uint8)
    labels = rng.integers(0, len(HAM10000), num_images, np.int32)
    pipeline = PIPELINES[name](images, labels, devices.make_mesh(None))
    order = Order(np.arange(num_images), labels, "natural", 0)
    feeds = pipeline.train_feeds(order, batch_size, 0, 3 * batches + 5, 1)
    gather = jax.jit(pipeline.gather)
    for _ in range(5):
        jax.block_until_ready(gather(pipeline.resident, next(feeds)))
    seconds = []
    for _ in range(3):
        begin = time.perf_counter()
        for _ in range(batches):
            jax.block_until_ready(gather(pipeline.resident, next(feeds)))
        seconds.append(time.perf_counter() - begin)
    return f"| {name} | {batch_size} | {batches * batch_size / min(seconds):,.0f} |"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2048)
    images = parser.parse_args().images
    device = jax.devices()[0]
    print(f"jax {jax.__version__}, {device.device_kind}, {os.cpu_count()} CPU cores\n")
    print(
        "| configuration | image size | parameters (millions) | their gradients (MB) | state (MB) "
        "| checkpoint on disk (MB) | training stands still for a save (s) | saved after (s) |\n"
        "|---|---:|---:|---:|---:|---:|---:|---:|"
    )
    for name in CONFIGS:
        print(state_row(name), flush=True)
    print("\n| pipeline | batch | images/s at 224x224 |\n|---|---:|---:|")
    for name in PIPELINES:
        for batch_size in (64, 256):
            print(pipeline_row(name, images, batch_size), flush=True)


if __name__ == "__main__":
    main()
