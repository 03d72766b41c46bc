"""Stands in for Slurm's srun: starts the tasks of a step on this machine, in the same environment.

It knows the options that launch/ uses and refuses others. As srun does, it sets what tells a task
its place, labels what the tasks print, passes SIGTERM on, gives up --wait seconds after the first
task has ended, and returns the highest status. SRUN_PIDS names a file for the tasks' process ids.
"""

import argparse
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

parser = argparse.ArgumentParser()
parser.add_argument("--kill-on-bad-exit", type=int, choices=[0], required=True)
parser.add_argument("--wait", type=int, required=True)
parser.add_argument("--label", action="store_true", required=True)
parser.add_argument("command", nargs=argparse.REMAINDER)
options = parser.parse_args()


def start(task: int) -> subprocess.Popen:
    place = {
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_STEP_NUM_NODES": "1",
        "SLURM_STEP_NUM_TASKS": os.environ["SLURM_NTASKS"],
        "SLURM_PROCID": str(task),
        "SLURM_LOCALID": str(task),
        "SLURM_NODEID": "0",
    }
    return subprocess.Popen(
        options.command,
        env=os.environ | place,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def label(task: int, source, target) -> None:
    for line in source:
        print(f"{task}: {line}", end="", file=target, flush=True)


tasks: list[subprocess.Popen] = []
signal.signal(signal.SIGTERM, lambda *_: [task.terminate() for task in tasks])
tasks.extend(start(task) for task in range(int(os.environ["SLURM_NTASKS"])))
pathlib.Path(os.environ["SRUN_PIDS"]).write_text(" ".join(str(task.pid) for task in tasks))
threads = [
    threading.Thread(target=label, args=(number, *pair))
    for number, task in enumerate(tasks)
    for pair in ((task.stdout, sys.stdout), (task.stderr, sys.stderr))
]
for thread in threads:
    thread.start()
deadline = None
while any(task.poll() is None for task in tasks):
    if any(task.poll() is not None for task in tasks):
        deadline = deadline or time.monotonic() + options.wait
        if time.monotonic() > deadline:
            for task in tasks:
                task.kill()
    time.sleep(0.05)
for thread in threads:
    thread.join()
sys.exit(max(code if code >= 0 else 128 - code for code in (task.returncode for task in tasks)))
