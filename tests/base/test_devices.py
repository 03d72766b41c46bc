import re

import jax
import numpy as np
import pytest

from skin_jax.base import devices
from skin_jax.base.errors import FAILURE, UserError


def test_mesh_takes_all_devices_or_the_first():
    assert devices.make_mesh(None).size == jax.device_count()
    assert list(devices.make_mesh(2).devices) == jax.devices()[:2]


@pytest.mark.parametrize("count", [0, 5])
def test_a_number_of_devices_that_is_not_there_is_refused(count):
    with pytest.raises(UserError, match=r"num_devices is \d, but JAX sees 4"):
        devices.make_mesh(count)


@pytest.mark.parametrize(("size", "near"), [(6, "4, 8"), (3, "4"), (0, "4"), (-1, "4")])
def test_batch_sizes_that_do_not_divide_name_the_nearest(size, near):
    with pytest.raises(UserError, match=rf"batch_size is {size}, .* nearest that do: {near}$"):
        devices.check_batch_size(size, devices.make_mesh(4), "batch_size")
    devices.check_batch_size(8, devices.make_mesh(4), "batch_size")


def test_global_batches_lie_in_order_over_the_devices():
    mesh = devices.make_mesh(4)
    assert devices.local_rows(mesh, 8).tolist() == list(range(8))
    rows = np.arange(16).reshape(2, 8)
    placed = devices.to_global({"x": rows}, devices.over_batch(mesh, axis=1))["x"]
    np.testing.assert_array_equal(placed, rows)
    first = next(s for s in placed.addressable_shards if s.device == mesh.devices[0])
    np.testing.assert_array_equal(first.data, rows[:, :2])


@pytest.mark.parametrize(
    ("named", "words"),
    [
        (
            (None, 2, 0, 100),
            "config.distributed names only a part of coordinator_address, num_processes",
        ),
        (("host:1", None, None, 100), "give all three, or none"),
        (("host:1", 2, 2, 100), "process_id is 2; of 2 processes it can be 0 to 1"),
        (("host:1", 2, -1, 100), "process_id is -1"),
        ((":123", 2, 0, 100), "coordinator_address is ':123'; it is host:port"),
        (("host", 2, 0, 100), "coordinator_address is 'host'; it is host:port"),
    ],
)
def test_partial_or_wrong_settings_of_a_cluster_get_a_sentence(named, words):
    with pytest.raises(UserError, match=re.escape(words)):
        devices.start_distributed(*named)
    assert not jax.distributed.is_initialized()


@pytest.mark.parametrize("num_processes", [None, 1])
def test_a_machine_without_a_cluster_is_the_whole_run(num_processes, monkeypatch):
    for name in ("SLURM_STEP_NODELIST", "OMPI_COMM_WORLD_RANK", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(jax.distributed, "initialize", no_cluster)
    devices.start_distributed(None, num_processes, None, 100)
    assert jax.process_count() == 1
    assert devices.is_first()


def no_cluster(*args, **kwargs):
    raise ValueError("coordinator_address should be defined.")


def test_a_group_that_cannot_meet_is_a_failure_in_a_sentence(monkeypatch):
    def refused(*args, **kwargs):
        raise RuntimeError("DEADLINE_EXCEEDED: Barrier timed out\nand more")

    monkeypatch.setattr(jax.distributed, "initialize", refused)
    with pytest.raises(
        UserError, match=r"joined at here:1 \(DEADLINE_EXCEEDED: Barrier timed out\)"
    ) as error:
        devices.start_distributed("here:1", 2, 1, 100)
    assert error.value.exit_code == FAILURE


def test_a_task_of_slurm_never_trains_alone_by_mistake(monkeypatch):
    def malformed(*args, **kwargs):
        raise ValueError("invalid literal for int() with base 10: '2(x2)'")

    monkeypatch.setattr(jax.distributed, "initialize", malformed)
    monkeypatch.setenv("SLURM_STEP_NODELIST", "node[1-2]")
    with pytest.raises(UserError, match="could not be joined"):
        devices.start_distributed(None, None, None, 100)


def test_a_pod_never_trains_alone_by_mistake(monkeypatch):
    monkeypatch.setattr(jax.distributed, "initialize", no_cluster)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "1")
    with pytest.raises(UserError, match="needs the package kubernetes"):
        devices.start_distributed(None, None, None, 100)
    devices.start_distributed(None, 1, None, 100)
