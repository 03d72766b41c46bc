"""The device mesh, how arrays lie on it, global batches, and how XLA compiles for it."""

from typing import Any

import jax
import jaxlib
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from skin_jax.errors import UserError

PyTree = Any

_EIGEN_IS_FASTER_IN = ("0.10.2",)


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


def platform(mesh: Mesh) -> str:
    """What the devices are: "cpu", "gpu" or "tpu"."""
    return mesh.devices.flat[0].platform


def compiler_options(platform: str) -> dict[str, str | bool] | None:
    """On a CPU faster single convolutions (Eigen's, not YNNPACK's), on a GPU always the same bits.

    An option that a version of jaxlib does not know is an error: only versions that were tried.
    """
    if platform == "gpu":
        return {"xla_gpu_deterministic_ops": True}
    if platform == "cpu" and jaxlib.__version__ in _EIGEN_IS_FASTER_IN:
        kept = "LIBRARY_FUSION_TYPE_REDUCE,LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"
        return {"xla_cpu_experimental_ynn_fusion_type": kept}
    return None


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
