"""The device mesh, how arrays lie on it, and global batches."""

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from skin_jax.errors import UserError

PyTree = Any


def make_mesh(num_devices: int | None) -> Mesh:
    """One `data` axis over the first `num_devices` devices (all where None).

    Raises:
      UserError: more devices are asked for than there are.
    """
    devices = jax.devices()
    if num_devices is not None and not 1 <= num_devices <= len(devices):
        raise UserError(
            f"config.sharding.num_devices is {num_devices}, but JAX sees {len(devices)} "
            f"{devices[0].platform} device(s); give a number from 1 to {len(devices)}"
        )
    count = num_devices or len(devices)
    # Flax linen does not run under the Explicit axes that make_mesh gives by default.
    return jax.make_mesh((count,), ("data",), axis_types=(AxisType.Auto,), devices=devices[:count])


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def over_batch(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """The batch axis is split over the devices; earlier axes are whole."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, "data"))


def check_batch_size(batch_size: int, mesh: Mesh, key: str) -> None:
    """Refuses a batch size that does not divide over the devices.

    Raises:
      UserError: names the nearest sizes that do.
    """
    devices = mesh.size
    if batch_size < 1 or batch_size % devices:
        below = batch_size // devices * devices
        near = sorted({max(below, devices), max(below + devices, devices)})
        raise UserError(
            f"config.{key} is {batch_size}, which does not divide over {devices} devices; "
            f"the nearest that do: {', '.join(map(str, near))}"
        )


def local_slice(mesh: Mesh, batch_size: int) -> slice:
    """The rows of a global batch that this process's devices hold."""
    share = batch_size // mesh.size
    rows = [
        i for i, device in enumerate(mesh.devices) if device.process_index == jax.process_index()
    ]
    return slice(rows[0] * share, (rows[-1] + 1) * share)


def to_global(batch: PyTree, sharding: NamedSharding) -> PyTree:
    """Global arrays from this process's rows of each leaf."""
    return jax.tree.map(
        lambda rows: jax.make_array_from_process_local_data(sharding, np.asarray(rows)), batch
    )
