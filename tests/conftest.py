import functools
import gc
import importlib
import os
import sys
from importlib.metadata import version

# Four CPU devices for the sharding tests; the count is read when the back end starts.
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "4")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Most tests of the loop compile the same tiny step; workers and subprocesses share it.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.abspath(".pytest_cache/xla"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

# Compiling is most of what tests do: quickly, then, not well. `make test` runs those marked
# `as_compiled` once more with XLA_FLAGS=, as users have it. An unknown flag ends a process.
if version("jaxlib") == "0.10.2":
    os.environ.setdefault(
        "XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
    )

from pathlib import Path

import jax
import pytest
from absl import flags

jax.config.update("jax_numpy_rank_promotion", "raise")


# Collecting garbage is an eighth of what tests compute: JAX makes many objects that stay. Between
# tests is often enough.
gc.disable()
_GARBAGE = 1_000_000  # objects


def pytest_runtest_teardown():
    if gc.get_count()[0] > _GARBAGE:
        gc.collect()


def pytest_runtest_setup(item):
    mark = item.get_closest_marker("as_compiled")
    if mark and mark.kwargs.get("only") and os.environ.get("XLA_FLAGS"):
        pytest.skip("two programs have equal bits with the options of users, not with cheap ones")


@pytest.fixture
def strict_dtypes():
    """For code of ours: a dtype must be asked for. Optax relies on implicit promotion."""
    with jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture(scope="session")
def program():
    """Imports an entry point with a registry of its own for flags: others have the same ones."""

    @functools.cache  # a module defines its flags once
    def imported(name):
        own = flags.FlagValues()
        with pytest.MonkeyPatch.context() as patch:
            patch.delitem(sys.modules, name, raising=False)  # a test may have imported it already
            patch.setattr(flags, "FLAGS", own)
            for kind in ("string", "enum", "list", "bool", "integer", "float"):
                define = getattr(flags, f"DEFINE_{kind}")
                patch.setattr(
                    flags,
                    f"DEFINE_{kind}",
                    lambda *args, define=define, **kwargs: define(*args, flag_values=own, **kwargs),
                )
            module = importlib.import_module(name)
        return module, own

    return imported


@pytest.fixture(scope="session")
def called(program):
    """Runs main() of a command in this process, with words and flags, and gives its status."""

    def main(name: str, *words: str, **chosen: object) -> int:
        module, own = program(f"skin_jax.{name}")
        own.unparse_flags()
        for flag in own:
            own[flag].unparse()
        given = [f"--{flag}={value}" for flag, value in chosen.items() if value is not None]
        own([name, *(f"--{word}" for word in words), *given])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(flags, "FLAGS", own)
            return module.main([name]) or 0

    return main


@pytest.fixture(scope="session")
def generate(program):
    """The entry point of skin_jax.generate."""
    return program("skin_jax.generate")[0]


@pytest.fixture(scope="session")
def generate_with(called):
    return functools.partial(called, "generate")


@pytest.fixture(scope="session")
def small_gan(tmp_path_factory) -> Path:
    """The work folder of a small semi-supervised GAN, trained and evaluated; only to be read."""
    from skin_jax import api
    from skin_jax.data import demo
    from skin_jax.tasks.declared import sgan

    config = sgan.defaults()
    config.update_from_flattened_dict(
        {
            "num_steps": 2,
            "batch_size": 8,
            "eval_batch_size": 16,
            "data.demo_images": demo.MIN_IMAGES,
            "data.image_size": 32,
            "data.pipeline": "device",
            "model.width": 4,
            "sharding.num_devices": 1,
            "log.tensorboard": False,
        }
    )
    folder = tmp_path_factory.mktemp("runs") / "small"
    api.train(config, folder)
    return folder


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of the official layout, where the machine has one."""
    folder = os.environ.get("SKIN_JAX_TEST_DATA")
    if not folder:
        pytest.skip("SKIN_JAX_TEST_DATA is not set")
    return Path(folder) / "ISIC2018_Task3"
