"""Files of a work folder that are deleted, cut or edited: a right result, or one sentence."""

import os
import shutil

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from skin_jax import api
from skin_jax.base import devices
from skin_jax.base.errors import UserError
from skin_jax.data import demo
from skin_jax.tasks import state as state_lib
from skin_jax.tasks.declared import sgan
from skin_jax.training import checkpoints as checkpoint_lib
from skin_jax.training import run as run_lib
from skin_jax.training.history import HISTORY, read_history

pytestmark = pytest.mark.xdist_group("damage")  # one worker trains it, once

MUTATIONS = 67  # for each command: 201
STEPS = 3


def tiny():
    config = sgan.defaults()
    config.update_from_flattened_dict(
        {
            "num_steps": STEPS,
            "batch_size": 8,
            "eval_every_steps": 1,
            "data.demo_images": demo.MIN_IMAGES,
            "data.image_size": 32,
            "data.pipeline": "device",
            "model.width": 4,
            "sharding.num_devices": 1,
            "log.tensorboard": False,
        }
    )
    return config


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A work folder with three checkpoints, without evaluation and report."""
    workdir = tmp_path_factory.mktemp("runs") / "sound"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api.runs, "evaluate_split", lambda *_: None)
        patch.setattr(api, "_write_page", lambda *_: workdir)
        api.train(tiny(), workdir)
    return workdir


@pytest.fixture(scope="module")
def images():
    """The images are read once: each mutation would take longer for them than for all the rest."""
    return run_lib.load_examples(tiny())


def evaluated(workdir):
    """What the figures of `skin_jax.eval` follow from."""
    experiment = run_lib.reopen(workdir)
    folder = workdir / run_lib.CHECKPOINTS
    with checkpoint_lib.Checkpoints(folder, experiment.task.score, read_only=True) as kept:
        state, step = run_lib.best_state(experiment.task, kept, experiment.mesh)
    sides = experiment.assignment.tolist(), experiment.examples.digest
    return experiment.classes, experiment.task.score, sides, step, state_lib.digest(state)


def predicted(workdir):
    """What the scores of `skin_jax.predict` follow from."""
    opened = run_lib.trained(workdir)
    state, step = opened.best_state(devices.make_mesh(None))
    return opened.classes, opened.config.data.image_size, step, state_lib.digest(state)


def resumed(workdir):
    """What the weights that `skin_jax.main` ends with follow from."""
    experiment = run_lib.start(tiny(), workdir)
    template = run_lib._template(experiment.task, experiment.mesh)
    with checkpoint_lib.Checkpoints(workdir / run_lib.CHECKPOINTS, experiment.task.score) as kept:
        state, step = kept.restore_latest(template)
    read_history(workdir / HISTORY)
    return experiment.assignment.tolist(), step, state_lib.digest(state)


def mutated(content, kind, place, value):
    """Content with one fault; a place is a share of its length."""
    if kind == "truncate":
        return content[: int(place * len(content))]
    if kind == "swap":
        lines = content.split(b"\n")
        first = int(place * (len(lines) - 1))
        lines[first : first + 2] = reversed(lines[first : first + 2])
        return b"\n".join(lines)
    at = int(place * len(content))
    digits = [k for k in range(len(content)) if content[k : k + 1].isdigit()]
    if kind == "digit" and digits:
        at = digits[int(place * len(digits))]
        value = b"0123456789"[(content[at] - 48 + 1 + value % 9) % 10]
    return content[:at] + bytes([value]) + content[at + 1 :]


# Orbax leaves coroutines of a restore that failed behind.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("command", [evaluated, predicted, resumed])
def test_no_fault_of_a_file_changes_a_result_silently(run, images, command, monkeypatch, tmp_path):
    monkeypatch.setattr(run_lib, "load_examples", lambda config: images)
    workdir, outcomes = tmp_path / "run", {"right": 0, "refused": 0}
    files = sorted(path.relative_to(run) for path in run.rglob("*") if path.is_file())
    files = [path for path in files if path.name != ".lock"]

    def restored():
        shutil.rmtree(workdir, ignore_errors=True)
        shutil.copytree(run, workdir)

    restored()
    right = [command(workdir)]
    if command is resumed:  # an older checkpoint gives the same in the end, and is said
        last = max((workdir / run_lib.CHECKPOINTS).glob("[0-9]*"))
        shutil.rmtree(last)
        right.append(command(workdir))

    @settings(
        max_examples=MUTATIONS,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],  # to shrink what fails would take minutes
        suppress_health_check=list(HealthCheck),
    )
    @given(
        st.sampled_from(files),
        st.sampled_from(["delete", "truncate", "swap", "digit", "byte"]),
        st.floats(0, 1, exclude_max=True),
        st.integers(0, 255),
    )
    def check(file, kind, place, value):
        restored()
        content = (workdir / file).read_bytes()
        if kind == "delete":
            os.unlink(workdir / file)
        else:
            (workdir / file).write_bytes(mutated(content, kind, place, value))
        try:
            found = command(workdir)
        except UserError:
            outcomes["refused"] += 1
        else:
            assert found in right
            outcomes["right"] += 1

    check()
    assert min(outcomes.values()) > 0, outcomes
