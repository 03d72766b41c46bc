import pytest
from absl import flags


@pytest.fixture(scope="session")
def eval_program(program):
    return program("skin_jax.eval.__main__")


@pytest.fixture(scope="session")
def calibrate(program):
    return program("skin_jax.eval.calibrate")[0]


@pytest.fixture
def eval_with(eval_program, monkeypatch):
    """skin_jax.eval's main() with flags; those that are None are left out."""
    module, own = eval_program
    monkeypatch.setattr(flags, "FLAGS", own)

    def main(**chosen: object) -> None:
        own.unparse_flags()
        for name in own:
            own[name].unparse()
        own(["eval", *(f"--{name}={value}" for name, value in chosen.items() if value)])
        module.main(["eval"])

    return main
