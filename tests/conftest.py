import os

# Four CPU devices for the sharding tests; the count is read when the back end starts.
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "4")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Most tests of the loop compile the same tiny step; workers and subprocesses share it.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.abspath(".pytest_cache/xla"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

from pathlib import Path

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def strict_dtypes():
    """For code of ours: a dtype must be asked for. Optax relies on implicit promotion."""
    with jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of the official layout, where the machine has one."""
    folder = os.environ.get("SKIN_JAX_TEST_DATA")
    if not folder:
        pytest.skip("SKIN_JAX_TEST_DATA is not set")
    return Path(folder) / "ISIC2018_Task3"
