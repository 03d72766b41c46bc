"""Compiles training steps for TPUs that are not there, and prints what XLA says of them.

python -m benchmarks.compile_for --topology v5e:2x2 [--only NAME,...] [--json FILE]

It needs libtpu (pip install 'skin_jax[tpu]'), but no TPU. Each step is that of a configuration, in
bfloat16, sharded over the topology's chips as the training loop shards it; all figures are those
of one chip. Bytes are XLA's own count of what its operations read and write; those of a step
without augmentation stand next to them. The batch that fits is the largest power of two whose
arguments and temporaries, taken to grow with the batch, fit into a chip's memory.
"""

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# libtpu asks the machine's metadata server what it runs on, for minutes where there is none.
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh
from ml_collections import ConfigDict

from benchmarks import steps
from benchmarks.tables import table
from skin_jax import config as config_lib
from skin_jax import tasks
from skin_jax.base import devices
from skin_jax.base.files import write_atomically
from skin_jax.data.classes import HAM10000
from skin_jax.training.checkpoints import template_of

MEMORY_GB = {"v4": 32, "v5e": 16, "v5p": 95, "v6e": 32}
"""HBM of a chip (cloud.google.com/tpu/docs/system-architecture-tpu-vm)."""

ROWS = {
    "sgan_224_b256": ("sgan", 224, 256),
    "dcgan_64_b64_seven": ("dcgan", 64, 64),
    "projected_64_b256": ("projected", 64, 256),
    "projected_256_b64": ("projected", 256, 64),
    "resnet50_224_b256": ("resnet50", 224, 256),
    "densenet121_224_b256": ("densenet121", 224, 256),
    "efficientnet_lite0_224_b256": ("efficientnet_lite0", 224, 256),
    "recipe_224_b256": ("recipe", 224, 256),
    "classifier_64_b256": ("classifier", 64, 256),
}
"""Name -> a configuration, the side of its images, and its global batch (of each class: dcgan)."""


def config_of(name: str, *, augmented: bool) -> ConfigDict:
    """The configuration of a row, in bfloat16."""
    base, size, batch_size = ROWS[name]
    config = config_lib.load(base)
    config.precision = "bf16"
    config.data.image_size, config.batch_size = size, batch_size
    if not augmented:
        steps.leave_images_alone(config)
    return config


def compiled(config: ConfigDict, mesh: Mesh) -> Any:
    """The step of a configuration, compiled for the devices of a mesh."""
    counts = np.full(len(HAM10000), 10**6)
    task = tasks.build(config, HAM10000.names, counts, 10_000, 1.0)
    placement, over_batch = task.placement(mesh), devices.over_batch(mesh)
    rows, size = task.fed_rows(config.batch_size, mesh), config.data.image_size
    batch = {
        "image": jax.ShapeDtypeStruct((rows, size, size, 3), jnp.uint8, sharding=over_batch),
        "label": jax.ShapeDtypeStruct((rows,), jnp.int32, sharding=over_batch),
        "position": jax.ShapeDtypeStruct((rows,), jnp.uint32, sharding=over_batch),
    }
    rng = jax.eval_shape(jax.random.key, 0)
    state = jax.eval_shape(lambda rng: task.spread(task.init(rng), mesh), rng)
    state = template_of(state, placement)
    # The largest images of a run that grows.
    train_step = jax.jit(
        task.step_on(mesh, task.train_size(10**9)),
        donate_argnums=0,
        out_shardings=(placement, devices.replicated(mesh)),
    )
    rng = jax.ShapeDtypeStruct(rng.shape, rng.dtype, sharding=devices.replicated(mesh))
    return train_step.trace(state, batch, rng).lower(lowering_platforms=("tpu",)).compile()


def row(name: str, topology: str, mesh: Mesh) -> dict[str, Any]:
    """What XLA says of a step; see the module."""
    began = time.monotonic()
    step = compiled(config_of(name, augmented=True), mesh)
    seconds = time.monotonic() - began
    memory, cost = step.memory_analysis(), step.cost_analysis()
    plain = compiled(config_of(name, augmented=False), mesh).cost_analysis()
    arguments, temporaries = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    batch_size = ROWS[name][2]
    room = MEMORY_GB[topology.split(":")[0]] * 1e9 - arguments
    fits = 2 ** math.floor(math.log2(batch_size * room / max(temporaries, 1)))
    return {
        "name": name,
        "topology": topology,
        "batch": batch_size,
        "arguments_mb": arguments / 1e6,
        "temporaries_mb": temporaries / 1e6,
        "gflop": cost["flops"] / 1e9,
        "gbytes": cost["bytes accessed"] / 1e9,
        "gbytes_without_augmentation": plain["bytes accessed"] / 1e9,
        "compile_s": seconds,
        "batch_that_fits": fits,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table and writes the file, row by row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--topology", default="v5e:2x2", help="such as v5e:2x2, v5e:4x4, v4:2x2x1")
    parser.add_argument("--only", metavar="NAME,...", help=f"some of {', '.join(ROWS)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to, written row by row")
    options = parser.parse_args(arguments)
    only = options.only.split(",") if options.only else list(ROWS)
    if unknown := sorted(set(only) - set(ROWS)):
        parser.error(f"no row {', '.join(unknown)} in {', '.join(ROWS)}")
    if options.topology.split(":")[0] not in MEMORY_GB:
        parser.error(f"the topology begins with one of {', '.join(MEMORY_GB)}")
    chips = topologies.get_topology_desc(options.topology, platform="tpu").devices
    mesh = Mesh(np.array(chips), ("data",))
    rows = []
    for name in only:
        rows.append(row(name, options.topology, mesh))
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
        if options.json:
            write_atomically(options.json, json.dumps({"rows": rows}, indent=1) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
