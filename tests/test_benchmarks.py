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


# What the process that measures is to do; `json` is what its lines are.
SECTIONS = """
import os, sys, time
sys.path.insert(0, os.getcwd())
from benchmarks import first_light as light

def good(settings):
    yield {"name": "a", "value": 1.5}
    yield {"name": "b", "value": None}

def failing(settings):
    yield {"name": "before", "value": 1}
    raise ValueError("no such thing\\nand more")

def dying(settings):
    yield {"name": "before", "value": 2}
    os._exit(7)

def hanging(settings):
    yield {"name": "before", "value": 3}
    time.sleep(60)

def wrong(settings):
    yield {"name": "right", "ok": True}
    yield {"name": "not right", "ok": False}

def late(settings):
    for name in light._in_time(["first", "second"], settings._replace(deadline=time.time() + 0.2)):
        yield {"name": name}
        time.sleep(0.3)

for function in (good, failing, dying, hanging, wrong, late):
    weight = 1 if function is not hanging else 0.02
    light.SECTIONS[function.__name__] = light.Section(function, weight)
sys.exit(light.main())
"""


def test_first_light_writes_down_what_fails_and_goes_on(tmp_path, monkeypatch, capsys):
    from benchmarks import first_light

    order = ("failing", "dying", "hanging", "wrong", "late", "good")
    for name in order:
        monkeypatch.setitem(first_light.SECTIONS, name, first_light.Section(None, 1))
    monkeypatch.setattr(first_light, "_PROGRAM", ("-c", SECTIONS))
    monkeypatch.setattr(first_light, "_GRACE_SECONDS", 0.5)
    # Of four minutes, the section that hangs has a share of a second or two.
    out = tmp_path / "light"
    asked = ["--tiny=no", "--seconds=240", f"--only={','.join(order)}", f"--out={out}"]
    assert first_light.main(asked) == 1
    found = json.loads((out / "results.json").read_text())["sections"]
    assert tuple(found) == order
    assert {name: section["status"] for name, section in found.items()} == {
        **dict.fromkeys(order, "failed"),
        "good": "ok",
    }
    failures = {name: section["failure"] for name, section in found.items()}
    assert failures["failing"] == "ValueError: no such thing"
    assert failures["dying"] == "the process ended with status 7; see log.txt"
    assert failures["hanging"].startswith("cut off: it took longer than its share")
    assert failures["wrong"] == "not as it should be: not right"
    assert failures["late"] == "TimeoutError: no time was left for second"
    values = [found[name]["rows"] for name in ("failing", "dying", "hanging")]
    assert values == [[{"name": "before", "value": number}] for number in (1, 2, 3)]
    assert "no such thing" in (out / "log.txt").read_text()
    page = (out / "results.md").read_text()
    assert "| a | 1.5 |" in page
    assert "failed (" in page
    assert "good: ok" in capsys.readouterr().out


def test_first_light_keeps_out_of_folders_of_others(tmp_path, capsys):
    from benchmarks import first_light

    (tmp_path / "runs").mkdir()
    with pytest.raises(SystemExit):
        first_light.main([f"--out={tmp_path}"])
    assert "holds other files, such as runs, and no results.json" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["dcgan_64_b64_seven", "efficientnet_lite0_224_b16"])
def test_the_rehearsal_has_the_same_steps_at_tiny_sizes(name):
    from benchmarks import first_light, steps

    config = first_light._shrunk(steps.CONFIGS[name])
    ours = steps.OurStep(config)
    assert ours.batch["image"].shape[1:] == (32, 32, 3)
    assert ours.num_parameters < 100_000
    losses = first_light._losses(ours)
    assert {len(values) for values in losses.values()} == {10}
    other = {key: [*values[:-1], 1.5 * values[-1]] for key, values in losses.items()}
    assert first_light._difference(losses, losses) == 0
    assert 0.1 < first_light._difference(other, losses) <= 0.5
    other = {key: [*values[:-1], float("nan")] for key, values in losses.items()}
    assert not first_light._difference(other, losses) <= 1e-3
    assert ours.memory_mb()["arguments_mb"] > 0


def test_what_is_compiled_for_tpus_are_the_steps_of_configurations():
    from benchmarks import compile_for

    for name in compile_for.ROWS:
        augmented, plain = (compile_for.config_of(name, augmented=a) for a in (True, False))
        assert augmented.precision == "bf16"
        assert f"_{augmented.data.image_size}_b{augmented.batch_size}" in name
        turned_off = set(plain.augment.items()) - set(augmented.augment.items())
        assert turned_off, name


@pytest.mark.xdist_group("small_gan")
def test_other_sizes_are_evaluated_on_validation_images(small_gan, capsys):
    from benchmarks import evaluation_sizes

    evaluation_sizes.main([f"--workdir={small_gan}", "--sizes=32"])
    *_, single, averaged = capsys.readouterr().out.strip().splitlines()
    assert [row.split(" | ")[1:3] for row in (single, averaged)] == [["32", "1"], ["32", "4"]]
