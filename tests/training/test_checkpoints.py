import json
import os
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import multihost_utils

from skin_jax import config as config_lib
from skin_jax.base import devices, interrupts
from skin_jax.base.errors import INTERRUPTED, PREEMPTED, Ended, UserError
from skin_jax.tasks import state as state_lib
from skin_jax.training import checkpoints as checkpoint_lib


def make_state(value: float) -> dict:
    noise = np.random.default_rng(0).normal(value, 1, (64, 64))  # does not compress
    return {"w": jnp.asarray(noise, jnp.float32), "step": jnp.array(int(value), jnp.int32)}


def template(num_devices: int = 1) -> dict:
    placement = devices.replicated(devices.make_mesh(num_devices))
    return checkpoint_lib.template_of(jax.eval_shape(lambda: make_state(0.0)), placement)


def saved(folder, scores) -> checkpoint_lib.Checkpoints:
    checkpoints = checkpoint_lib.Checkpoints(folder)
    for step, score in scores.items():
        checkpoints.save(step, make_state(step), score)
        checkpoints.wait()
    return checkpoints


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "checkpoints"


def test_keeps_the_last_two_and_the_best(folder):
    checkpoints = saved(folder, {1: 0.5, 2: 0.9, 3: 0.6, 4: None, 5: 0.7, 6: float("nan")})
    assert checkpoints.steps() == [2, 5, 6]
    state, step = checkpoints.restore_best(template())
    assert (step, int(state["step"])) == (2, 2)
    checkpoints.close()


def test_the_later_of_equal_scores_is_the_best(folder):
    checkpoints = saved(folder, {1: 0.9, 2: 0.9, 3: 0.1, 4: 0.1})
    assert checkpoints.steps() == [2, 3, 4]
    assert checkpoints.restore_best(template())[1] == 2
    checkpoints.close()


def test_without_any_score_the_last_is_the_best(folder):
    checkpoints = saved(folder, {1: None, 2: None})
    assert checkpoints.restore_best(template())[1] == 2
    checkpoints.close()


def test_restores_bit_for_bit_onto_other_devices(folder):
    checkpoints = saved(folder, {3: 0.5})
    checkpoints.close()
    reopened = checkpoint_lib.Checkpoints(folder)
    state, step = reopened.restore_latest(template(num_devices=4))
    assert step == 3
    assert state_lib.digest(state) == state_lib.digest(make_state(3))
    assert len(state["w"].sharding.device_set) == 4
    reopened.close()


def test_a_folder_without_checkpoints_restores_nothing(folder):
    checkpoints = checkpoint_lib.Checkpoints(folder)
    assert checkpoints.restore_latest(template()) is None
    assert checkpoints.restore_best(template()) is None
    checkpoints.close()


def test_saving_does_not_see_later_donation(folder):
    checkpoints = checkpoint_lib.Checkpoints(folder)
    state = make_state(1.0)
    donate = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    checkpoints.save(1, state, None)
    for _ in range(20):
        state = donate(state)
    checkpoints.wait()
    restored, _ = checkpoints.restore_latest(template())
    assert state_lib.digest(restored) == state_lib.digest(make_state(1.0))
    checkpoints.close()


def flip_a_byte(step_folder):
    data = max((p for p in step_folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)


def truncate(step_folder):
    data = max((p for p in step_folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    data.write_bytes(data.read_bytes()[:10])


def empty(step_folder):
    shutil.rmtree(step_folder)
    step_folder.mkdir()


def lose_the_state(step_folder):
    shutil.rmtree(step_folder / "state")


def lose_a_file(step_folder):
    max((p for p in step_folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size).unlink()


def lose_the_digest(step_folder):
    shutil.rmtree(step_folder / "digest")


DAMAGE = [flip_a_byte, truncate, empty, lose_a_file, lose_the_state, lose_the_digest]


# Orbax drops coroutines that it did not await when it meets a file that is too short.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_reported_and_the_older_one_taken(folder, damage, capfd):
    saved(folder, {1: 0.1, 2: 0.2}).close()
    damage(folder / "2")
    checkpoints = checkpoint_lib.Checkpoints(folder)
    state, step = checkpoints.restore_latest(template())
    assert (step, int(state["step"])) == (1, 1)
    error = capfd.readouterr().err
    assert f"warning: checkpoint {folder / '2'}" in error
    assert "resuming from step 1" in error
    checkpoints.set_aside_after(1)
    assert [path.name.partition("_")[0] for path in (folder.parent / "damaged").iterdir()] == ["2"]
    checkpoints.save(2, make_state(2), 0.2)
    checkpoints.wait()
    assert checkpoints.restore_latest(template())[1] == 2
    checkpoints.close()


def test_when_none_is_left_the_error_names_them_all(folder):
    saved(folder, {1: 0.1, 2: 0.2}).close()
    flip_a_byte(folder / "1")
    empty(folder / "2")
    checkpoints = checkpoint_lib.Checkpoints(folder)
    with pytest.raises(UserError, match=r"no checkpoint .* can be read(.|\n)*/2(.|\n)*/1"):
        checkpoints.restore_latest(template())
    checkpoints.close()


def test_a_damaged_best_one_is_refused_and_never_replaced_by_the_next_best(folder):
    saved(folder, {1: 0.3, 2: 0.2, 3: 0.1}).close()
    flip_a_byte(folder / "1")
    with checkpoint_lib.Checkpoints(folder) as checkpoints:
        with pytest.raises(UserError, match=r"/1 cannot be read .* delete it to take the best"):
            checkpoints.restore_best(template())
        assert checkpoints.restore_latest(template())[1] == 3


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("metrics/metrics", "0.2", "0.9"),
        ("metrics/metrics", checkpoint_lib.Task.score.name, "other"),
        ("digest/metadata", "0.2", "0.9"),
    ],
)
def test_a_score_that_was_changed_leaves_the_best_one_unknown(folder, file, old, new):
    saved(folder, {1: 0.3, 2: 0.2}).close()
    path = folder / "2" / file
    path.write_text(path.read_text().replace(old, new))
    with (
        checkpoint_lib.Checkpoints(folder) as checkpoints,
        pytest.raises(UserError, match=r"/2 cannot be read .its score"),
    ):
        checkpoints.restore_best(template())


def test_a_checkpoint_of_another_run_is_passed_over_and_said(tmp_path, capfd):
    """`config.json` says of which run a folder is: the same states, another identity."""
    for name, run in (("own", "a"), ("other", "b")):
        (tmp_path / name).mkdir()
        content = json.dumps({"identity": {"run": run}})
        (tmp_path / name / config_lib.FILE_NAME).write_text(content)
        saved(tmp_path / name / "checkpoints", {1: 0.5}).close()
    own = tmp_path / "own" / "checkpoints"
    shutil.copytree(tmp_path / "other" / "checkpoints" / "1", own / "2")
    with checkpoint_lib.Checkpoints(own) as checkpoints:
        assert checkpoints.restore_latest(template())[1] == 1
        assert f"{own / '2'}: it belongs to another run" in capfd.readouterr().err
        with pytest.raises(UserError, match=r"/2 cannot be read .it belongs to"):
            checkpoints.restore_best(template())
    (own / "2").rename(own / "3")
    (own / "1").rename(own / "2")
    with (
        checkpoint_lib.Checkpoints(own) as checkpoints,
        pytest.raises(UserError, match=r"(?s)/3: it belongs to.*/2: it was saved at step 1"),
    ):
        checkpoints.restore_latest(template())


@pytest.mark.parametrize("name", ["[lr=1e-4]", "a*b ?", "a\\b", "{a,b} #1 50%"])
def test_any_name_of_a_folder_keeps_its_checkpoints(tmp_path, name):
    folder = tmp_path / name / "checkpoints"
    saved(folder, {1: 0.5, 2: 0.4}).close()
    with checkpoint_lib.Checkpoints(folder, read_only=True) as checkpoints:
        assert checkpoints.restore_latest(template())[1] == 2
        state, step = checkpoints.restore_best(template())
        assert (step, int(state["step"])) == (1, 1)
    (tmp_path / name).rename(tmp_path / "plain")
    with checkpoint_lib.Checkpoints(tmp_path / "plain" / "checkpoints") as checkpoints:
        assert checkpoints.restore_latest(template())[1] == 2


def test_opening_to_read_warns_of_nothing(folder, caplog):
    saved(folder, {1: 0.5}).close()
    caplog.clear()
    with checkpoint_lib.Checkpoints(folder, read_only=True) as checkpoints:
        assert checkpoints.steps() == [1]
    assert not caplog.records


def test_a_save_that_was_cut_off_is_cleaned_up(folder):
    saved(folder, {1: 0.1}).close()
    left = folder / "2.orbax-checkpoint-tmp"
    shutil.copytree(folder / "1", left)
    checkpoints = checkpoint_lib.Checkpoints(folder)
    assert checkpoints.restore_latest(template())[1] == 1
    checkpoints.save(2, make_state(2), None)
    checkpoints.close()
    assert not left.exists()


def test_errors_of_a_save_are_one_sentence(folder, monkeypatch):
    checkpoints = saved(folder, {1: 0.1})

    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints._manager, "save", fail)
    with pytest.raises(UserError, match=r"No space left on device.*the earlier ones are intact"):
        checkpoints.save(2, make_state(2), None)
    assert checkpoints.restore_latest(template())[1] == 1
    checkpoints.close()


@pytest.mark.parametrize(
    ("signum", "status"), [(signal.SIGTERM, PREEMPTED), (signal.SIGINT, INTERRUPTED)]
)
def test_a_signal_is_only_remembered_where_it_is_deferred(signum, status):
    before = signal.getsignal(signum)
    with checkpoint_lib.Preemption() as preemption:
        with pytest.raises(Ended) as error, preemption.deferred():
            os.kill(os.getpid(), signum)
        assert preemption.requested
        assert error.value.exit_code == status
    with checkpoint_lib.Preemption(), pytest.raises(Ended, match="asked to end"):
        os.kill(os.getpid(), signum)
    assert signal.getsignal(signum) == before


def test_ctrl_c_waits_for_what_is_unsaved_and_for_other_processes(monkeypatch):
    unsaved = interrupts.UNSAVED.is_set
    with checkpoint_lib.Preemption() as preemption:
        with preemption.deferred():
            assert not unsaved()
            preemption.unsaved()
            assert unsaved()
            preemption.saved()
            assert not unsaved()
            preemption.unsaved()
        assert not unsaved()
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    with checkpoint_lib.Preemption() as preemption:
        preemption.saved()
        assert unsaved()
    assert not unsaved()


def test_a_second_ctrl_c_interrupts_at_once():
    def twice():
        with checkpoint_lib.Preemption() as preemption, preemption.deferred():
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        twice()


@pytest.mark.parametrize("call", ["restore_latest", "restore_best", "save"])
def test_a_signal_is_never_taken_for_damage_or_a_failed_save(folder, monkeypatch, call):
    checkpoints = saved(folder, {1: 0.1, 2: 0.2})

    def interrupted(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGTERM)

    target = checkpoints._manager if call == "save" else checkpoints
    monkeypatch.setattr(target, "save" if call == "save" else "_restore", interrupted)
    arguments = (3, make_state(3), None) if call == "save" else (template(),)
    with checkpoint_lib.Preemption(), pytest.raises(Ended) as end:
        getattr(checkpoints, call)(*arguments)
    assert end.value.exit_code == PREEMPTED
    assert checkpoints.steps() == [1, 2]
    monkeypatch.undo()
    checkpoints.close()


def test_saving_leaves_the_counter_of_preemption_alone(folder, monkeypatch):
    """Steps of Orbax's would hide the dispatches that `Preemption.requested` reports."""
    reported = []
    monkeypatch.setattr(
        multihost_utils, "reached_preemption_sync_point", lambda step: reported.append(step)
    )
    checkpoints = saved(folder, {1000: 0.1, 2000: 0.2})
    assert checkpoints.steps() == [1000, 2000]
    checkpoints.close()
    assert reported == []
