import jax
import numpy as np
import pytest

from skin_jax import sharding
from skin_jax.errors import UserError


def test_mesh_takes_all_devices_or_the_first():
    assert sharding.make_mesh(None).size == jax.device_count()
    assert list(sharding.make_mesh(2).devices) == jax.devices()[:2]


@pytest.mark.parametrize("count", [0, 5])
def test_a_number_of_devices_that_is_not_there_is_refused(count):
    with pytest.raises(UserError, match=r"num_devices is \d, but JAX sees 4"):
        sharding.make_mesh(count)


@pytest.mark.parametrize(("size", "near"), [(6, "4, 8"), (3, "4"), (0, "4"), (-1, "4")])
def test_batch_sizes_that_do_not_divide_name_the_nearest(size, near):
    with pytest.raises(UserError, match=rf"batch_size is {size}, .* nearest that do: {near}$"):
        sharding.check_batch_size(size, sharding.make_mesh(4), "batch_size")
    sharding.check_batch_size(8, sharding.make_mesh(4), "batch_size")


def test_global_batches_lie_in_order_over_the_devices():
    mesh = sharding.make_mesh(4)
    assert sharding.local_slice(mesh, 8) == slice(0, 8)
    rows = np.arange(16).reshape(2, 8)
    placed = sharding.to_global({"x": rows}, sharding.over_batch(mesh, axis=1))["x"]
    np.testing.assert_array_equal(placed, rows)
    first = next(s for s in placed.addressable_shards if s.device == mesh.devices[0])
    np.testing.assert_array_equal(first.data, rows[:, :2])
