"""Real processes, one or several, and what goes wrong with them: see docs/reliability.md."""

import contextlib
import csv
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from skin_jax.base import errors

pair = pytest.mark.xdist_group("pair")  # one worker trains the undisturbed pair, once

ROOT = Path(__file__).parents[1]
STEPS = 12
HEARTBEAT = 10  # seconds
TINY = [
    "--config=configs/demo.py:smoke",
    f"--config.num_steps={STEPS}",
    "--config.batch_size=8",
    "--config.eval_every_steps=4",
    "--config.checkpoint.every_steps=1",
    "--config.log.every_steps=1",
    "--config.log.tensorboard=False",
    "--config.data.demo_images=80",
    "--config.model.width=4",
    "--config.data.pipeline=device",
]


RUN = """
from skin_jax import main
main.run()
"""
ONLY_TRAINS = """
from skin_jax import api
from skin_jax.eval import runs
runs.evaluate_split = api._write_page = lambda *args: None
"""
# Evaluation and report take half the time of so short a run, and most tests look at weights alone.

SLOW_STEPS = """
import threading
from skin_jax.training import loop
original = loop.feeds
def slow(*args):
    for feed in original(*args):
        threading.Event().wait(0.3)
        yield feed
loop.feeds = slow
"""
# JAX needs a second or two to tell all processes of a signal; steps of real size take as long.


class Trainers:
    """The processes of one run; all of them are gone when the block ends."""

    def __init__(self, workdir, *args, processes=1, devices=1, code="", evaluates=False):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        program = (ONLY_TRAINS if not evaluates else "") + code + RUN
        command = [sys.executable, "-u", "-c", program, *TINY, f"--workdir={workdir}", *args]
        self.all = []
        for number in range(processes):
            where = [
                f"--config.distributed.coordinator_address=localhost:{port}",
                f"--config.distributed.num_processes={processes}",
                f"--config.distributed.process_id={number}",
                f"--config.distributed.heartbeat_timeout_seconds={HEARTBEAT}",
            ]
            self.all.append(
                subprocess.Popen(
                    command + where * (processes > 1),
                    cwd=ROOT,
                    env=os.environ | {"JAX_NUM_CPU_DEVICES": str(devices)},
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        self.first = self.all[0]

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        for process in self.all:
            if process.poll() is None:
                process.kill()
            process.communicate()

    def until(self, start: str) -> str:
        """Reads what the first process prints, up to a line that starts so."""
        for line in self.first.stdout:
            if line.startswith(start):
                return line
        raise AssertionError(f"no line {start!r}: {self.first.communicate()[1]}")

    def end(self) -> list[tuple[int, str, str]]:
        """Status, standard output and standard error of each process, once all have ended."""
        outputs = [process.communicate(timeout=200) for process in self.all]
        return [(p.returncode, *o) for p, o in zip(self.all, outputs, strict=True)]


def train(workdir, *args, **kwargs) -> list[tuple[int, str, str]]:
    with Trainers(workdir, *args, **kwargs) as trainers:
        return trainers.end()


def finished(workdir, *args, **kwargs) -> str:
    """Trains to the end; what the first process printed."""
    results = train(workdir, *args, **kwargs)
    assert [status for status, _, _ in results] == [0] * len(results), results
    return results[0][1]


def digest(workdir) -> str:
    content = (workdir / f"checkpoints/{STEPS}/digest/metadata").read_text()
    return json.loads(content)["blake2b"]


def saved(workdir) -> list[int]:
    folder = workdir / "checkpoints"
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit())


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    """A run of one process that nothing happened to."""
    workdir = tmp_path_factory.mktemp("one") / "run"
    finished(workdir, evaluates=True)
    return workdir


@pytest.fixture(scope="session")
def undisturbed_pair(tmp_path_factory):
    """A run of two processes with two devices each that nothing happened to."""
    workdir = tmp_path_factory.mktemp("pair") / "run"
    finished(workdir, processes=2, devices=2)
    return workdir


@pytest.mark.parametrize(
    "moment", ["saving", *(pytest.param(i, marks=pytest.mark.soak) for i in range(22))]
)
def test_kill_9_at_a_random_moment_changes_no_bit(tmp_path, undisturbed, moment):
    workdir = tmp_path / "run"
    folder = workdir / "checkpoints"

    def unfinished() -> list[str]:
        return [path.name for path in folder.iterdir() if not path.name.isdigit()]

    chance = random.Random(str(moment))
    with Trainers(workdir) as trainers:
        trainers.until(f"step {chance.randrange(1, STEPS)}/")
        if moment == "saving":
            while not unfinished():
                assert trainers.first.poll() is None
        else:
            with contextlib.suppress(subprocess.TimeoutExpired):
                trainers.first.wait(timeout=chance.uniform(0, 0.3))
        trainers.first.kill()
        assert trainers.first.wait() == -signal.SIGKILL
    saving, before = unfinished(), saved(workdir)
    assert saving or moment != "saving"
    out = finished(workdir)
    assert (f"resuming at step {before[-1]} " if before else "starting a run") in out
    assert digest(workdir) == digest(undisturbed)
    assert unfinished() == []
    print(f"kill -9, whole {before}, half saved {saving}: equal digest")


@pair
def test_sigterm_to_one_of_two_saves_in_both_at_one_step(tmp_path, undisturbed_pair):
    workdir = tmp_path / "run"
    with Trainers(workdir, processes=2, devices=2, code=SLOW_STEPS) as trainers:
        trainers.until("step 1/")
        trainers.all[1].terminate()
        results = trainers.end()
    assert [status for status, _, _ in results] == [errors.PREEMPTED] * 2
    words = [err[err.index("asked to end") :] for _, _, err in results]
    assert words[0] == words[1]
    last = saved(workdir)[-1]
    assert last < STEPS
    assert f"saved at step {last} of {STEPS}" in words[0]
    assert f"resuming at step {last} of" in finished(workdir, processes=2, devices=2)
    assert digest(workdir) == digest(undisturbed_pair)


@pair
@pytest.mark.parametrize(
    "moment",
    [0, *(pytest.param(i, marks=pytest.mark.soak, id=f"soak-{i}") for i in range(6))],
)
def test_kill_9_of_one_of_two_ends_the_other_and_the_restart_is_exact(
    tmp_path, undisturbed_pair, moment
):
    workdir = tmp_path / "run"
    victim, survivor = (1, 0) if moment % 2 == 0 else (0, 1)
    step = random.Random(moment).randrange(2, STEPS)
    with Trainers(workdir, processes=2, devices=2) as trainers:
        trainers.until(f"step {step}/")
        trainers.all[victim].kill()
        begin = time.monotonic()
        trainers.all[survivor].communicate(timeout=2 * HEARTBEAT)
        seconds = time.monotonic() - begin
        status = trainers.all[survivor].returncode
        assert status in (-signal.SIGABRT, errors.PEER_DIED)
    print(
        f"kill -9 of process {victim} at step {step}: the other ended after {seconds:.1f} s with "
        f"status {status}, whole {saved(workdir)}: equal digest"
    )
    finished(workdir, processes=2, devices=2)
    assert digest(workdir) == digest(undisturbed_pair)


@pair
def test_a_checkpoint_that_one_of_two_cannot_read_is_passed_over_by_both(
    tmp_path, undisturbed_pair
):
    workdir = tmp_path / "run"
    shutil.copytree(undisturbed_pair, workdir)
    older, newest = saved(workdir)[-2:]
    with Trainers(workdir, processes=2, devices=2, code=CANNOT_READ % newest) as trainers:
        results = trainers.end()
    assert [status for status, _, _ in results] == [0, 0], results
    assert f"{newest}: another process cannot read it" in results[0][2]
    assert f"{newest}: [Errno 5]" in results[1][2]
    assert f"resuming at step {older} of" in results[0][1]
    assert digest(workdir) == digest(undisturbed_pair)


CANNOT_READ = """
import sys
from skin_jax.training import checkpoints as checkpoint
original = checkpoint.Checkpoints._restore
def broken(self, step, template):
    if step == %d and not broken.met:
        broken.met = True
        raise OSError(5, "Input/output error")
    return original(self, step, template)
broken.met = False
if "--config.distributed.process_id=1" in sys.argv:
    checkpoint.Checkpoints._restore = broken
"""


@pytest.mark.soak
@pair
def test_a_full_disk_of_one_of_two_ends_both(tmp_path, undisturbed_pair):
    workdir = tmp_path / "run"
    first = ["--config.checkpoint.every_steps=4", "--config.num_steps=4"]
    finished(workdir, *first, processes=2, devices=2)
    with Trainers(workdir, processes=2, devices=2, code=FULL_DISK) as trainers:
        statuses = [status for status, _, _ in trainers.end()]
    assert 0 not in statuses
    assert saved(workdir) == [4]
    assert "resuming at step 4 of" in finished(workdir, processes=2, devices=2)
    assert digest(workdir) == digest(undisturbed_pair)


FULL_DISK = """
import resource, sys
if "--config.distributed.process_id=0" in sys.argv:
    resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
"""


def scores(workdir) -> list[list[float]]:
    rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    names = ("d_loss", "g_loss", "d_grad_norm", "g_grad_norm")
    return [[row[name] for name in names] for row in rows if "d_loss" in row]


def probabilities(workdir) -> np.ndarray:
    with (workdir / "eval/test/predictions.csv").open() as file:
        return np.array([[float(v) for v in row[1:]] for row in list(csv.reader(file))[1:]])


@pair
def test_processes_and_devices_change_nothing_but_rounding(tmp_path, undisturbed, undisturbed_pair):
    one = undisturbed
    finished(tmp_path / "1x4", devices=4)
    for other in (tmp_path / "1x4", undisturbed_pair):
        np.testing.assert_allclose(scores(other)[:10], scores(one)[:10], rtol=1e-5)
    start = json.loads((undisturbed_pair / "metrics.jsonl").read_text().splitlines()[0])
    assert (start["processes"], start["devices"]) == (2, 4)

    # The same checkpoint, evaluated by others than those that trained it.
    expected = probabilities(one)
    for processes, devices in ((1, 4), (2, 2)):
        again = tmp_path / f"again{processes}"
        shutil.copytree(one, again)
        shutil.rmtree(again / "eval")
        finished(again, processes=processes, devices=devices, evaluates=True)
        found = probabilities(again)
        np.testing.assert_allclose(found, expected, atol=1e-5)
        differing = found.argmax(1) != expected.argmax(1)
        margins = -np.diff(np.sort(expected, axis=1)[:, -2:], axis=1)[:, 0]
        assert np.all(abs(margins[differing]) < 1e-5)
        metrics = [json.loads((w / "eval/test/metrics.json").read_text()) for w in (one, again)]
        if not differing.any():
            assert metrics[0]["confusion_matrix"] == metrics[1]["confusion_matrix"]
        assert metrics[0]["num_examples"] == metrics[1]["num_examples"] == len(expected)


BATCHES = """
import hashlib, sys
from pathlib import Path
import jax
from jax.experimental import multihost_utils
from skin_jax import main
from skin_jax.base import devices
from skin_jax.training import loop
from skin_jax.training.run import start
from skin_jax.tasks.augment import augment, keys_of

def batches(argv, config):
    devices.start_distributed(**config.distributed.to_dict())
    experiment = start(config, Path(main._WORKDIR.value))
    task, whole = experiment.task, devices.replicated(experiment.mesh)
    def pixels(resident, feed):
        batch = experiment.pipeline.gather(resident, feed)
        keys = keys_of(jax.random.key(0), batch["position"])
        return batch["image"], batch["label"], augment(batch["image"], keys, task.augmentation)
    pixels = jax.jit(pixels, out_shardings=whole)
    for feed in loop.feeds(experiment, 0):
        found = [jax.device_get(x) for x in pixels(experiment.pipeline.resident, feed)]
        if devices.is_first():
            print(*(hashlib.sha256(x.tobytes()).hexdigest() for x in found))

main.main = batches
"""


@pytest.mark.parametrize("pipeline", ["device", pytest.param("tf", marks=pytest.mark.soak)])
def test_processes_and_devices_see_the_same_pixels(tmp_path, pipeline):
    if pipeline == "tf":
        pytest.importorskip("tensorflow")
    setting = f"--config.data.pipeline={pipeline}"
    printed = [
        finished(tmp_path / f"{n}x{d}", setting, processes=n, devices=d, code=BATCHES)
        for n, d in ((1, 1), (1, 4), (2, 2))
    ]
    lines = [out.splitlines()[-STEPS:] for out in printed]
    assert len(set(lines[0])) == STEPS
    assert lines[0] == lines[1] == lines[2]


def test_a_fault_of_one_process_ends_both_with_a_sentence(tmp_path):
    with Trainers(tmp_path / "run", processes=2, devices=1, code=OTHER_FOLDER) as trainers:
        results = trainers.end()
    assert [status for status, _, _ in results] == [errors.BAD_INPUT] * 2
    assert "/no/such/folder" in results[1][2]
    assert "another process of this run has failed" in results[0][2]


OTHER_FOLDER = """
import sys
if "--config.distributed.process_id=1" in sys.argv:
    sys.argv.append("--config.data.dir=/no/such/folder")
"""


def test_two_processes_go_on_with_the_run_of_one_and_the_reverse(tmp_path, undisturbed):
    expected = undisturbed
    workdir = tmp_path / "run"
    shutil.copytree(expected, workdir)
    for step in saved(workdir)[1:]:
        shutil.rmtree(workdir / "checkpoints" / str(step))
    first = saved(workdir)[0]
    out = finished(workdir, processes=2, devices=2)
    assert f"resuming at step {first} of" in out
    np.testing.assert_allclose(
        scores(workdir)[-(STEPS - first) :], scores(expected)[first:], rtol=1e-5
    )
    shutil.rmtree(workdir / "checkpoints" / str(STEPS))
    assert f"resuming at step {saved(workdir)[-1]} of" in finished(workdir)


SMALL_FILES = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
"""


def test_a_full_disk_ends_the_run_and_keeps_what_is_saved(tmp_path, undisturbed):
    expected = undisturbed
    workdir = tmp_path / "run"
    first = ["--config.checkpoint.every_steps=4", "--config.num_steps=4"]
    finished(workdir, *first)
    ((status, _, err),) = train(workdir, code=SMALL_FILES)
    assert status == errors.FAILURE
    # Among what tensorstore's threads print, perhaps after the beginning of one of their lines.
    assert f"error: saving a checkpoint in {workdir / 'checkpoints'} failed" in err
    assert "File too large" in err or "os_error_code='27'" in err
    assert "the earlier ones are intact: free some space and run the same command again" in err
    assert saved(workdir) == [4]
    assert "resuming at step 4 of" in finished(workdir)
    assert digest(workdir) == digest(expected)


def test_folders_that_vanish_while_it_trains_change_nothing(tmp_path, class_folders):
    """Images are in memory once training runs; a restart without them is refused in a sentence."""
    settings = [f"--config.data.dir={tmp_path / 'data'}", f"--config.data.cache_dir={tmp_path}/c"]
    shutil.copytree(class_folders, tmp_path / "data")
    finished(tmp_path / "whole", *settings)
    with Trainers(tmp_path / "run", *settings, evaluates=True) as trainers:
        trainers.until("step 2/")
        shutil.rmtree(tmp_path / "data")
        shutil.rmtree(tmp_path / "c")
        assert trainers.end()[0][0] == 0
    assert digest(tmp_path / "run") == digest(tmp_path / "whole")
    ((status, _, err),) = train(tmp_path / "run", *settings)
    assert status == errors.BAD_INPUT
    assert str(tmp_path / "data") in err
    assert "Traceback" not in err


@pytest.fixture(scope="session")
def class_folders(tmp_path_factory):
    from PIL import Image

    from skin_jax.data import demo
    from skin_jax.data.classes import HAM10000

    folder = tmp_path_factory.mktemp("folders")
    examples = demo.generate(80, 32, 0)
    for number, (image, label) in enumerate(zip(examples.images, examples.labels, strict=True)):
        path = folder / HAM10000.names[label] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(path)
    return folder


STANDS_STILL = """
import threading
from skin_jax.training import loop
original = loop.feeds
def stuck(experiment, first_step):
    for number, feed in enumerate(original(experiment, first_step)):
        if number == 6:
            threading.Event().wait()  # a file system that never answers
        yield feed
loop.feeds = stuck
"""


def test_a_run_that_stands_still_ends_with_status_75(tmp_path, undisturbed):
    workdir = tmp_path / "run"
    setting = "--config.watchdog_seconds=10"
    ((status, _, err),) = train(workdir, setting, code=STANDS_STILL)
    assert status == errors.STANDS_STILL
    assert "has made no progress for 10 s after step 6" in err
    assert "in stuck" in err  # where it stood
    finished(workdir)
    assert digest(workdir) == digest(undisturbed)


def test_sigterm_to_a_lone_process_of_a_cluster_is_noticed(tmp_path, undisturbed):
    """JAX's own handler is in the place of ours as soon as a cluster is joined."""
    workdir = tmp_path / "run"
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    alone = [
        f"--config.distributed.coordinator_address=localhost:{port}",
        "--config.distributed.num_processes=1",
        "--config.distributed.process_id=0",
    ]
    with Trainers(workdir, *alone, code=SLOW_STEPS) as trainers:
        trainers.until("step 1/")
        trainers.first.send_signal(signal.SIGINT)
        ((status, _, err),) = trainers.end()
    assert status == errors.INTERRUPTED
    assert "asked to end: saved at step" in err
    finished(workdir)
    assert digest(workdir) == digest(undisturbed)
