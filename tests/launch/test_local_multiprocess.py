"""launch/local_multiprocess.sh: with a stand-in for the trainer, and with the trainer."""

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "launch/local_multiprocess.sh"

# A job in the background ignores SIGINT, and bash cannot trap what it came to ignore. (A function
# for the child to call would fork the whole interpreter, which JAX warns of.)
HEARS_CTRL_C = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.fixture
def launch(tmp_path):
    """Starts the script with stand-ins that behave as told; it leads a group, as in a shell."""
    python = tmp_path / "python"
    trainer = Path(__file__).with_name("stand_in_trainer.py")
    python.write_text(
        '#!/bin/sh\nif [ "$1" = -m ]; then shift 2; set -- '
        f'{shlex.quote(str(trainer))} "$@"; fi\nexec {shlex.quote(sys.executable)} "$@"\n'
    )
    python.chmod(0o755)
    started = []

    def start(behaviours, *args, count=None, **environment):
        process = subprocess.Popen(
            [sys.executable, "-c", HEARS_CTRL_C, SCRIPT, str(count or len(behaviours)), *args],
            env={key: value for key, value in os.environ.items() if key != "CUDA_VISIBLE_DEVICES"}
            | {"PYTHON": str(python), "BEHAVIOURS": json.dumps(behaviours), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def about(line: str) -> dict:
    return json.loads(line[line.index("{") :])


@pytest.mark.parametrize(
    ("behaviours", "status"),
    [
        (["exit 0", "exit 0"], 0),
        (["exit 2", "exit 134"], 2),
        (["exit 134", "exit 2"], 2),
        (["kill 6", "kill 9", "exit 1"], 128 + 9),
        (["exit 75", "kill 6", "exit 1"], 75),
        (["exit 1", "kill 6"], 1),
        (["exit 143", "kill 6"], 143),
        (["exit 143", "exit 1"], 1),
        (["exit 0", "kill 6"], 134),
    ],
    ids=str,
)
def test_the_status_is_that_of_the_cause(launch, behaviours, status):
    process = launch(behaviours)
    process.communicate(timeout=60)
    assert process.returncode == status


def test_process_0_is_heard_as_it_is_and_the_others_by_their_number(launch):
    out, err = launch(["exit 0", "exit 0", "exit 0"], "--workdir=a b").communicate(timeout=60)
    (line,) = out.splitlines()
    assert line.startswith("started {")
    first = about(line)
    assert first["args"] == ["--workdir=a b"]
    assert (first["num_processes"], first["process_id"]) == ("3", "0")
    lines = err.splitlines()
    assert "a complaint" in lines
    for number in "12":
        assert f"[{number}] a complaint" in lines
        (line,) = (line for line in lines if line.startswith(f"[{number}] started"))
        assert about(line)["process_id"] == number
        assert about(line)["coordinator_address"] == first["coordinator_address"]


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_every_process_once(launch, signum):
    process = launch(["wait", "wait", "wait"])
    assert process.stdout.readline().startswith("started")
    for _ in (1, 2):
        while " started" not in process.stderr.readline():
            pass
    os.killpg(process.pid, signum)  # as a terminal does: to the whole group
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signum
    assert (out + err).count(f"signal {signum}") == 3


def test_what_does_not_end_is_killed_with_its_group(launch):
    process = launch(["exit 1", "hang"], GRACE_SECONDS="0")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "1 of 2 processes did not end within 0 s" in err
    assert "status 1 killed" in err


def test_every_process_gets_its_own_gpu(launch):
    behaviours = ["exit 0", "exit 0"]
    out, err = launch(behaviours, CUDA_VISIBLE_DEVICES="3,5,7", JAX_PLATFORMS="").communicate(
        timeout=60
    )
    lines = [line for line in (out + err).splitlines() if "started" in line]
    assert {about(line)["process_id"]: about(line)["gpus"] for line in lines} == {
        "0": "3",
        "1": "5",
    }


def test_more_processes_than_gpus_are_refused(launch):
    process = launch([], count=3, CUDA_VISIBLE_DEVICES="0,1", JAX_PLATFORMS="")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "3 processes, but there are 2 GPUs" in err
    assert not out


@pytest.mark.parametrize("count", ["0", "two", "--config=configs/demo.py"])
def test_the_number_of_processes_is_asked_for(launch, count):
    process = launch([], count=count)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "the number of processes comes first" in err
