"""The GANs of seven classes on devices and processes of any number: the same losses everywhere."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from skin_jax.base.devices import make_mesh
from skin_jax.data import demo
from skin_jax.training import run
from skin_jax.training.history import read_history

pytestmark = pytest.mark.xdist_group("shared_classes")  # one worker trains the reference, once

ROOT = Path(__file__).parents[2]
STEPS = 10
TINY = {
    "batch_size": 2,
    "eval_every_steps": STEPS // 2,
    "keep_generators_every": 1,
    "data.demo_images": demo.MIN_IMAGES,
    "data.pipeline": "device",
    "model.width": 2,
    "model.noise_size": 8,
    "score.images": 4,
    "stack": "vmap",
    "log.every_steps": 1,
    "log.tensorboard": False,
}
# The runs that a process trains, one after another: folder, steps, devices and whether it evaluates
# and reports, which takes longer than so short a training.
TRAIN = """
import json, sys
from pathlib import Path
from skin_jax import api, config
from skin_jax.eval import evaluators
make, write_page = evaluators.make, api._write_page
for folder, steps, devices, whole in json.loads(sys.argv[1]):
    evaluators.make = make if whole else lambda *_: []
    api._write_page = write_page if whole else lambda *_: None
    chosen = config.load("dcgan:smoke")
    chosen.update_from_flattened_dict(json.loads(sys.argv[2]))
    chosen.num_steps, chosen.sharding.num_devices = steps, devices
    api.train(chosen, Path(folder))
"""
JOIN = """
import sys
from skin_jax.base.devices import start_distributed
start_distributed(sys.argv[3], 2, int(sys.argv[4]), 30)
"""


def train(runs: list, *more: str, devices: int, code: str = TRAIN) -> subprocess.Popen:
    arguments = [json.dumps([(str(folder), *rest) for folder, *rest in runs]), json.dumps(TINY)]
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments, *more],
        cwd=ROOT,
        env=os.environ | {"JAX_NUM_CPU_DEVICES": str(devices)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(*processes: subprocess.Popen) -> list[str]:
    """What they printed."""
    found = [process.communicate(timeout=280) for process in processes]
    assert not any(process.returncode for process in processes), found
    return [out for out, _ in found]


def losses(folder: Path) -> np.ndarray:
    """Losses and norms of each class, by step."""
    rows = [row for row in read_history(folder / "metrics.jsonl") if "d_loss" in row]
    keys = sorted(key for key in rows[0] if key.split("/")[0] in ("d_loss", "g_loss"))
    assert len(keys) == 2 * (1 + 7)
    found = np.array([[row[key] for key in keys] for row in rows])
    assert found.shape[0] == STEPS
    return found


def last_state(folder: Path):
    """That of the last checkpoint: its digest, of shapes too, is compared with what was saved."""
    state = run.trained(folder).state_at(make_mesh(1), STEPS)
    assert {leaf.shape[0] for leaf in jax.tree.leaves(state)} == {7}
    return state


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """A run on one device."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    ended(train([(folder, STEPS, 1, False)], devices=1))
    return folder


@pytest.mark.parametrize("counts", [(4, 8), pytest.param((2, 3, 4, 7), marks=pytest.mark.soak)])
def test_any_number_of_devices_gives_the_same_losses_and_checkpoints(alone, tmp_path, counts):
    runs = [(tmp_path / str(count), STEPS, count, False) for count in counts]
    moved = tmp_path / "moved"
    (out,) = ended(train([*runs, (moved, 6, 3, True), (moved, STEPS, 8, True)], devices=8))
    assert "7 GANs on 4 of 8 cpu devices, at most 2 each\n" in out
    assert "resuming at step 6 of 10" in out
    for folder in [*(folder for folder, *_ in runs), moved]:
        np.testing.assert_allclose(losses(folder), losses(alone), rtol=1e-5, err_msg=str(folder))
        last_state(folder)
    # The best of each class is its own, and not that of a copy.
    assert set(np.asarray(last_state(moved).best_step).tolist()) <= {5, 6, 10}


def test_two_processes_give_the_same_losses_and_one_goes_on(alone, tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        where = f"localhost:{free.getsockname()[1]}"
    folder = tmp_path / "run"
    pair = [
        train([(folder, 6, None, True)], where, str(number), devices=1, code=JOIN + TRAIN)
        for number in (0, 1)
    ]
    out, other = ended(*pair)
    assert "7 GANs on 2 cpu devices, at most 4 each" in out
    assert "step" not in other
    (out,) = ended(train([(folder, STEPS, 1, False)], devices=1))
    assert "resuming at step 6 of 10" in out
    np.testing.assert_allclose(losses(folder), losses(alone), rtol=1e-5)
    last_state(folder)
    starts = [
        json.loads(line)
        for line in (folder / "metrics.jsonl").read_text().splitlines()
        if "event" in line
    ]
    assert [(start["processes"], start["devices"]) for start in starts] == [(2, 2), (1, 1)]
    assert (folder / "samples/step_5.png").exists()
