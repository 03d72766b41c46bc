"""The benchmarks: they run, and what they compare is the same."""

import json
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)


def test_an_unknown_row_is_refused(capsys):
    from benchmarks import run

    with pytest.raises(SystemExit):
        run.main(["--suite", "steps", "--only", "vgg"])
    assert "no row vgg" in capsys.readouterr().err


def test_a_suite_prints_its_table_and_writes_its_rows(tmp_path, capsys, monkeypatch):
    from benchmarks import run, steps

    small = steps.CONFIGS["sgan_224_b16"]()
    small.model.width, small.batch_size, small.data.image_size = 4, 2, 32
    monkeypatch.setitem(steps.CONFIGS, "sgan_224_b16", lambda: small)
    monkeypatch.setattr("benchmarks.timing._ROUND_SECONDS", 0.01)
    file = tmp_path / "rows.json"
    run.main(["--suite", "augment", "--only", "flip,whole", "--rounds", "2", f"--json={file}"])
    found = json.loads(file.read_text())
    assert {"suite", "machine", "versions", "date", "threads", "rows"} <= found.keys()
    assert [row["name"] for row in found["rows"]] == ["flip", "whole"]
    assert all(row["images_per_second"] > 0 for row in found["rows"])
    assert found["rows"][1]["share_of_step"] > 0
    assert "| flip |" in capsys.readouterr().out


def test_operations_are_those_of_the_plain_forms():
    import jax
    import jax.numpy as jnp

    from benchmarks import counting
    from skin_jax.models import ops

    x, kernel = jnp.zeros((2, 16, 16, 8)), jnp.zeros((4, 4, 8, 3))
    forward = counting.count(ops.strided_conv_transpose, x, kernel)
    # Of the 16 taps of an output a quarter meets pixels, the others zeros between them.
    assert forward.flops == 2 * (2 * 32 * 32 * 3) * 4 * 8
    assert forward.bytes == 2 * 4 * (x.size + kernel.size + 2 * 32 * 32 * 3)
    depthwise = counting.count(
        lambda x, k: ops.depthwise_conv(x, k, 1, ((1, 1), (1, 1))), x, jnp.zeros((3, 3, 1, 8))
    )
    assert depthwise.flops == 2 * x.size * 9
    looped = counting.count(
        lambda a: jax.lax.scan(lambda c, _: (c @ c, None), a, length=5)[0], jnp.zeros((4, 4))
    )
    assert looped.flops == 5 * 2 * 4**3


@pytest.mark.parametrize("name", ["sgan_224_b16", "dcgan_64_b64_seven"])
def test_the_first_step_has_the_losses_of_pytorchs(name):
    pytest.importorskip("torch")
    from benchmarks import steps

    config = steps.config_of(name, "float32")
    config.model.width, config.batch_size, config.data.image_size = 4, 3, 32
    if config.task == "dcgan":
        config.classes = ("mel", "df")
    ours = steps.OurStep(config)
    variants = dict(steps.torch_steps(config, ours, "float32", ["eager", "channels_last"]))
    losses = ours.once()
    for variant, step in variants.items():
        steps.check_equal(ours, losses, step, variant, 1e-3)
    other = {key: np.asarray(value) * 1.5 for key, value in losses.items()}
    with pytest.raises(steps.MismatchError, match="in the first step"):
        steps.check_equal(ours, other, variants["eager"], "eager", 1e-3)
