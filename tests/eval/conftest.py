import importlib

import pytest
from absl import flags


def program(name):
    """An entry point and a registry of its own for flags: other entry points have the same ones."""
    own = flags.FlagValues()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flags, "FLAGS", own)
        for kind in ("string", "enum", "list", "bool"):
            define = getattr(flags, f"DEFINE_{kind}")
            patch.setattr(
                flags,
                f"DEFINE_{kind}",
                lambda *args, define=define, **kwargs: define(*args, flag_values=own, **kwargs),
            )
        module = importlib.import_module(name)
    return module, own


@pytest.fixture(scope="session")
def eval_program():
    return program("skin_jax.eval.__main__")


@pytest.fixture(scope="session")
def calibrate():
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
