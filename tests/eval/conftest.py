import functools

import pytest


@pytest.fixture(scope="session")
def eval_program(program):
    return program("skin_jax.eval.__main__")


@pytest.fixture(scope="session")
def calibrate(program):
    return program("skin_jax.eval.calibrate")[0]


@pytest.fixture(scope="session")
def eval_with(called):
    return functools.partial(called, "eval.__main__")
