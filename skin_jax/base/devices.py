"""Processes and devices: start-up, the mesh, how arrays lie on it, global batches, compilation."""

import contextlib
import hashlib
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

import jax
import jaxlib
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from skin_jax.base.errors import FAILURE, UserError, first_line

PyTree = Any

_CPU_OPTIONS_TRIED_WITH = ("0.10.2",)


def start_distributed(
    coordinator_address: str | None,
    num_processes: int | None,
    process_id: int | None,
    heartbeat_timeout_seconds: int,
) -> None:
    """Joins the other processes of this run, before anything else of JAX is used.

    With nothing named, the processes of a cluster that JAX detects (Slurm, Open MPI, Kubernetes
    JobSet, Cloud TPU) are joined, and elsewhere this process stays alone; `num_processes` of 1
    keeps it alone anywhere.

    Args:
      coordinator_address: "host:port", where process 0 listens; the same in all processes.
      num_processes: how many there are.
      process_id: which one this is, from 0.
      heartbeat_timeout_seconds: silence after which a process counts as dead, and the others end.

    Raises:
      UserError: some are named and others not, they don't fit, or the others cannot be reached.
    """
    if jax.distributed.is_initialized():
        return
    if num_processes == 1 and coordinator_address is None and process_id in (None, 0):
        return
    detect = coordinator_address is None and num_processes is None and process_id is None
    if not detect:
        if coordinator_address is None or num_processes is None or process_id is None:
            raise UserError(
                "config.distributed names only a part of coordinator_address, num_processes and "
                "process_id: give all three, or none where the cluster is to be detected"
            )
        if not 0 <= process_id < num_processes:
            raise UserError(
                f"config.distributed.process_id is {process_id}; of {num_processes} processes it "
                f"can be 0 to {num_processes - 1}"
            )
        host, _, port = coordinator_address.rpartition(":")
        if not host or not port.isdigit():
            raise UserError(
                f"config.distributed.coordinator_address is {coordinator_address!r}; it is "
                "host:port"
            )
    try:
        jax.distributed.initialize(
            coordinator_address,
            num_processes,
            process_id,
            heartbeat_timeout_seconds=heartbeat_timeout_seconds,
            # A process that fails alone waits no longer for the others than they do for it.
            shutdown_timeout_seconds=heartbeat_timeout_seconds,
            cluster_detection_method=None if detect else "deactivate",
        )
    except Exception as error:  # what a cluster's own libraries raise is of any type
        # A cluster that JAX overlooks (a pod without the package kubernetes) or cannot read: here
        # each process would train alone, in one folder.
        pod = "KUBERNETES_SERVICE_HOST" in os.environ and "JOB_COMPLETION_INDEX" in os.environ
        task = "SLURM_STEP_NODELIST" in os.environ or "OMPI_COMM_WORLD_RANK" in os.environ
        if detect and isinstance(error, ValueError) and not pod and not task:
            return  # no cluster here: this process is the whole run
        raise UserError(
            f"the processes of this run could not be joined at "
            f"{coordinator_address or 'the address that the cluster gives'} "
            f"({first_line(error)})"
            + ("; a pod of an indexed job needs the package kubernetes" if pod else "")
            + "; --config.distributed.num_processes=1 trains with this process alone",
            FAILURE,
        ) from error


def is_first() -> bool:
    """Whether this is process 0, which alone writes files and reports."""
    return jax.process_index() == 0


def several() -> bool:
    """Whether other processes belong to this run."""
    return jax.process_count() > 1


def first_decides(value: bool) -> bool:
    """Returns in all processes what process 0 found."""
    return bool(multihost_utils.broadcast_one_to_all(np.int32(value)))


def first_lists(values: Sequence[int]) -> list[int]:
    """The numbers (int32) that process 0 found, in its order, in all processes."""
    count = int(multihost_utils.broadcast_one_to_all(np.int32(len(values))))
    mine = np.array(values if is_first() else [0] * count, np.int32)
    return multihost_utils.broadcast_one_to_all(mine).tolist()


def as_first(values: np.ndarray) -> np.ndarray:
    """The numbers that process 0 found, in all processes, which have as many."""
    return np.asarray(multihost_utils.broadcast_one_to_all(values)) if several() else values


def everywhere(value: bool) -> bool:
    """Whether it holds in all processes."""
    if not several():
        return value
    return bool(multihost_utils.process_allgather(np.int32(value)).all())


def same_everywhere(text: str) -> bool:
    """Whether all processes have the same text."""
    digest = np.frombuffer(hashlib.blake2b(text.encode(), digest_size=16).digest(), np.uint8)
    first = multihost_utils.broadcast_one_to_all(digest)
    return everywhere(bool((first == digest).all()))


def wait_for_all(what: str) -> None:
    """Returns when all processes are here; `what` names the place."""
    multihost_utils.sync_global_devices(what)


def leave(message: str, status: int) -> NoReturn:
    """Ends this process without a farewell to the others, who may wait: the heartbeat ends them."""
    print(message, file=sys.stderr, flush=True)
    os._exit(status)


@contextlib.contextmanager
def together() -> Iterator[None]:
    """A block that fails in all processes if it fails in one; nothing in it may wait for others.

    Where it fails is this process's own exception; elsewhere a UserError.
    """
    try:
        yield
    except Exception:
        everywhere(False)
        raise
    if not everywhere(True):
        raise UserError("another process of this run has failed; its own message says why")


def make_mesh(num_devices: int | None) -> Mesh:
    """One `data` axis over the first `num_devices` devices (all where None).

    UserError: more than there are, or fewer, where some of several processes would have none.
    """
    devices = jax.devices()
    if num_devices not in (None, len(devices)) and jax.process_count() > 1:
        raise UserError(
            f"config.sharding.num_devices is {num_devices}, but the {jax.process_count()} "
            f"processes have {len(devices)} devices; leave it out, or start fewer processes"
        )
    if num_devices is not None and not 1 <= num_devices <= len(devices):
        raise UserError(
            f"config.sharding.num_devices is {num_devices}, but JAX sees {len(devices)} "
            f"{devices[0].platform} device(s); give a number from 1 to {len(devices)}"
        )
    count = num_devices or len(devices)
    # Flax linen does not run under the Explicit axes that make_mesh gives by default.
    return jax.make_mesh((count,), ("data",), axis_types=(AxisType.Auto,), devices=devices[:count])


def platform(mesh: Mesh) -> str:
    """The kind of the devices: "cpu", "gpu" or "tpu"."""
    return mesh.devices.flat[0].platform


def hardware(mesh: Mesh) -> str:
    """The hardware that sets a run's time: "1 x NVIDIA H100 80GB HBM3" or "1 x cpu, 2 cores"."""
    kind = f"{mesh.size} x {mesh.devices.flat[0].device_kind}"
    return f"{kind}, {os.cpu_count()} cores" if platform(mesh) == "cpu" else kind


def compiler_options(platform: str) -> dict[str, str | bool] | None:
    """On a CPU what makes steps faster, on a GPU always the same bits.

    A CPU's single convolutions are Eigen's, not YNNPACK's, and its optimisation barriers last until
    operations are fused. Only for versions of jaxlib that were tried: unknown options are errors.
    """
    if platform == "gpu":
        return {"xla_gpu_deterministic_ops": True}
    if platform == "cpu" and jaxlib.__version__ in _CPU_OPTIONS_TRIED_WITH:
        kept = "LIBRARY_FUSION_TYPE_REDUCE,LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"
        return {
            "xla_cpu_experimental_ynn_fusion_type": kept,
            "xla_disable_hlo_passes": "cse_barrier_expander",
        }
    return None


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def over_batch(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """The batch axis is split over the devices; earlier axes are whole."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, "data"))


def check_batch_size(batch_size: int, mesh: Mesh, key: str) -> None:
    """Refuses a batch size that does not divide over the devices; names the nearest that do."""
    devices = mesh.size
    if batch_size < 1 or batch_size % devices:
        below = batch_size // devices * devices
        near = sorted({max(below, devices), max(below + devices, devices)})
        raise UserError(
            f"config.{key} is {batch_size}, which does not divide over {devices} devices; "
            f"the nearest that do: {', '.join(map(str, near))}"
        )


def local_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """The rows of a global batch that this process's devices hold, int64, in order."""
    share = batch_size // mesh.size
    mine = [i for i, d in enumerate(mesh.devices) if d.process_index == jax.process_index()]
    return (np.array(mine)[:, None] * share + np.arange(share)).reshape(-1)


def to_global(batch: PyTree, sharding: NamedSharding) -> PyTree:
    """Global arrays from this process's rows of each leaf; all rows where it is replicated."""
    return jax.tree.map(
        lambda rows: jax.make_array_from_process_local_data(sharding, np.asarray(rows)), batch
    )
