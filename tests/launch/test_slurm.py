"""The bodies of the Slurm scripts: with stand-ins for srun and scontrol, and real processes."""

import json
import os
import random
import re
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TRAINING = ROOT / "launch/slurm.sbatch"
STUDY = ROOT / "launch/slurm_study_array.sbatch"
TINY = [
    "--config=configs/demo.py:smoke",
    "--config.num_steps=12",
    "--config.batch_size=8",
    "--config.eval_every_steps=12",
    "--config.checkpoint.every_steps=4",
    "--config.log.every_steps=1",
    "--config.log.tensorboard=False",
    "--config.data.demo_images=80",
    "--config.data.pipeline=device",
    "--config.model.width=4",
    "--config.distributed.heartbeat_timeout_seconds=30",
]
ARRAY_TASK = {
    "SLURM_JOB_ID": "44",
    "SLURM_ARRAY_JOB_ID": "40",
    "SLURM_ARRAY_TASK_ID": "3",
    "SLURM_ARRAY_TASK_COUNT": "4",
}


def program(path: Path, text: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def cluster(tmp_path):
    """Runs a script as sbatch does, with stand-ins in PATH; scontrol writes down its calls."""
    program(tmp_path / "bin/scontrol", f'echo "$@" >> {shlex.quote(str(tmp_path / "scontrol"))}')
    stand_in = Path(__file__).with_name("stand_in_srun.py")
    program(tmp_path / "bin/srun", f'exec {shlex.join([sys.executable, str(stand_in)])} "$@"')
    started = []

    class Cluster:
        pids = tmp_path / "pids"

        def srun(self, text: str) -> None:
            """Puts another program in the place of the stand-in."""
            program(tmp_path / "bin/srun", text)

        def requeued(self) -> list[str]:
            calls = tmp_path / "scontrol"
            return calls.read_text().splitlines() if calls.exists() else []

        def sbatch(self, script: Path, *args: str, **environment: str) -> subprocess.Popen:
            process = subprocess.Popen(
                ["bash", script, *args],
                cwd=ROOT,
                env=os.environ
                | {
                    "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
                    "PYTHON": sys.executable,
                    "JAX_NUM_CPU_DEVICES": "1",
                    "SRUN_PIDS": str(self.pids),
                    "SLURM_NTASKS": "2",
                    "SLURM_CPUS_PER_TASK": "1",
                    **environment,
                },
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
            started.append(process)
            return process

    yield Cluster()
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def job_with_a_free_port() -> int:
    """A job number whose coordinator's port, by JAX's rule, nobody listens on."""
    while True:
        job = random.randrange(10_000, 1_000_000)
        with socket.socket() as probe:
            if probe.connect_ex(("localhost", job % 2**12 + 65535 - 2**12 + 1)):
                return job


def test_a_job_whose_time_is_up_saves_and_is_requeued_and_can_go_on_anywhere(cluster, tmp_path):
    # Enough steps for the word to go round: JAX takes a second or two to spread the signal.
    long = ["--config.num_steps=80", "--config.eval_every_steps=40", "--config.log.every_steps=20"]
    command = [*TINY, *long, f"--workdir={tmp_path / 'run'}"]
    job = cluster.sbatch(TRAINING, *command, SLURM_JOB_ID=str(job_with_a_free_port()))
    for line in job.stdout:
        if line.startswith("0: starting a run"):
            # Slurm's --signal goes to every task, and not to the script.
            for pid in cluster.pids.read_text().split():
                os.kill(int(pid), signal.SIGTERM)
            break
    _, err = job.communicate(timeout=300)
    assert job.returncode == 143, err
    ends = re.findall(r"^(\d): asked to end: saved at step (\d+)", err, re.MULTILINE)
    assert {task for task, _ in ends} == {"0", "1"}, err
    (step,) = {step for _, step in ends}
    (call,) = cluster.requeued()
    assert call.startswith("requeue ")
    assert "restart 1 of at most 20" in err

    again = subprocess.run(
        [ROOT / "launch/local_multiprocess.sh", "2", *command],
        cwd=ROOT,
        env=os.environ | {"PYTHON": sys.executable, "JAX_NUM_CPU_DEVICES": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert again.returncode == 0, again.stderr
    assert f"\nresuming at step {step} of 80\n" in f"\n{again.stdout}"
    assert "[1] " not in again.stdout
    events = map(json.loads, (tmp_path / "run/metrics.jsonl").read_text().splitlines())
    starts = [(e["step"], e["processes"], e["devices"]) for e in events if e.get("event")]
    assert starts == [(0, 2, 2), (int(step), 2, 2)]
    assert (tmp_path / "run/eval/test/metrics.json").exists()


@pytest.mark.parametrize(
    ("status", "restarts", "requeued"),
    [
        (0, 0, False),
        (1, 0, False),
        (2, 0, False),
        (130, 0, False),
        (75, 0, True),
        (134, 0, True),
        (137, 1, True),
        (143, 19, True),
        (143, 20, False),
    ],
)
@pytest.mark.parametrize("script", [TRAINING, STUDY], ids=["training", "study"])
def test_what_can_go_on_is_requeued(cluster, script, status, restarts, requeued):
    cluster.srun(f"exit {status}")
    job = cluster.sbatch(script, **ARRAY_TASK, SLURM_RESTART_COUNT=str(restarts))
    job.communicate(timeout=60)
    assert job.returncode == status
    name = ARRAY_TASK["SLURM_JOB_ID"] if script == TRAINING else "40_3"
    assert cluster.requeued() == ([f"requeue {name}"] if requeued else [])


@pytest.mark.parametrize("script", [TRAINING, STUDY], ids=["training", "study"])
def test_a_cancelled_job_is_not_requeued(cluster, script):
    cluster.srun(
        f"""exec {shlex.quote(sys.executable)} -c '
import signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
print("started", flush=True)
signal.sigwait([signal.SIGTERM])
sys.exit(143)
'"""
    )
    job = cluster.sbatch(script, **ARRAY_TASK)
    assert job.stdout.readline() == "started\n"
    os.killpg(job.pid, signal.SIGTERM)  # Slurm ends a job with a signal to all that is in it
    job.communicate(timeout=60)
    assert job.returncode == 143
    assert cluster.requeued() == []


@pytest.mark.parametrize("script", [TRAINING, STUDY], ids=["training", "study"])
def test_outside_slurm_a_sentence_says_what_to_do(cluster, script):
    job = cluster.sbatch(script, SLURM_JOB_ID="")
    out, err = job.communicate(timeout=60)
    assert (job.returncode, out) == (2, "")
    assert err.startswith(f"error: this script is for Slurm: submit it with sbatch {script}")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"SLURM_NTASKS_PER_NODE": "4", "SLURM_GPUS_ON_NODE": "4"}, None),
        ({"SLURM_TASKS_PER_NODE": "2(x3)", "SLURM_GPUS_PER_NODE": "a100:2"}, None),
        ({"SLURM_TASKS_PER_NODE": "3"}, None),  # on CPUs
        (
            {
                "SLURM_NTASKS_PER_NODE": "1",
                "SLURM_GPUS_ON_NODE": "4",
                "JAX_LOCAL_DEVICE_IDS": "0,1,2,3",
            },
            None,
        ),
        (
            {"SLURM_NTASKS_PER_NODE": "8", "SLURM_GPUS_ON_NODE": "4"},
            "8 tasks on each node, but 4 GPUs, and JAX gives a task one GPU; ask for "
            "--ntasks-per-node=4, or for one task with all GPUs: JAX_LOCAL_DEVICE_IDS=0,1,2,3 "
            "sbatch --ntasks-per-node=1 ...",
        ),
        ({"SLURM_TASKS_PER_NODE": "1", "SLURM_GPUS_PER_NODE": "4"}, "1 tasks on each node"),
        (
            {"SLURM_NTASKS_PER_NODE": "4", "JAX_LOCAL_DEVICE_IDS": "0,1"},
            "JAX_LOCAL_DEVICE_IDS=0,1 gives the 4 tasks of a node the same GPUs",
        ),
        ({"SLURM_GPUS_PER_TASK": "1"}, "--gpus-per-task hides"),
    ],
)
def test_tasks_that_do_not_fit_the_gpus_are_refused(cluster, environment, words):
    cluster.srun("echo started")
    job = cluster.sbatch(TRAINING, SLURM_JOB_ID="44", **environment)
    out, err = job.communicate(timeout=60)
    if words is None:
        assert (job.returncode, out) == (0, "started\n"), err
    else:
        assert (job.returncode, out) == (2, "")
        assert err.startswith(f"error: {words}")


def test_the_study_takes_its_shard(cluster, tmp_path):
    study = ["--config=configs/study_augmentation.py", f"--workdir={tmp_path / 'study'}"]
    job = cluster.sbatch(STUDY, *study, "--dry_run", **ARRAY_TASK, SLURM_NTASKS="1")
    out, err = job.communicate(timeout=120)
    assert job.returncode == 0, err
    assert re.search(r"\| runs +\| 15 of 60 +\|", out)


@pytest.mark.parametrize(
    ("environment", "shard"),
    [
        ({"SLURM_ARRAY_TASK_ID": "0", "SLURM_ARRAY_TASK_COUNT": "8"}, "0/8"),
        ({"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "8"}, "7/8"),
        ({"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_COUNT": "2", "SHARDS": "8"}, "5/8"),
        ({"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_COUNT": "2"}, None),
    ],
)
def test_every_array_task_has_its_shard(cluster, tmp_path, environment, shard):
    python = program(tmp_path / "bin/python", 'echo "$@"; env')
    job = cluster.sbatch(
        STUDY, "--workdir=W", **ARRAY_TASK | environment, PYTHON=str(python), SLURM_NTASKS="1"
    )
    out, err = job.communicate(timeout=60)
    if shard:
        assert out.startswith(f"0: -m skin_jax.study --workdir=W --shard {shard}\n")
        assert "SLURM_STEP_NODELIST" in out
        assert "SLURM_PROCID" not in out  # or JAX would take the task for a cluster
    else:
        assert job.returncode == 2
        assert "array task 5 of 2 shards" in err
