"""Stands in for a job of a study: writes down that it ran, waits where it is told to, and ends.

stand_in_job.py CONTROL NAME FOLDER PROOF...: CONTROL/hold makes it wait until that file is gone,
CONTROL/fail makes it fail if the file names it, CONTROL/idle makes it leave nothing. Like a run, it
ends with 143 or 130 after SIGTERM or Ctrl-C; like one that still imports, it has locked nothing.
"""

import pathlib
import signal
import sys
import time

control, name, folder, *proofs = sys.argv[1:]
CONTROL, FOLDER = pathlib.Path(control), pathlib.Path(folder)


def end(signum: int, frame: object) -> None:
    print("saved", flush=True)
    sys.exit({signal.SIGTERM: 143, signal.SIGINT: 130}[signum])


for signum in (signal.SIGTERM, signal.SIGINT):
    signal.signal(signum, end)
with (CONTROL / "ran").open("a") as ran:
    ran.write(f"{name}\n")
while (CONTROL / "hold").exists():
    time.sleep(0.02)
if (CONTROL / "fail").exists() and name in (CONTROL / "fail").read_text().split():
    print("some luck")
    print("  no luck  ")
    sys.exit(1)
for proof in [] if (CONTROL / "idle").exists() else proofs:
    (FOLDER / proof).parent.mkdir(parents=True, exist_ok=True)
    (FOLDER / proof).touch()
