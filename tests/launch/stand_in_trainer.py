"""Stands in for `python -m skin_jax.main` where only the launcher is under test.

BEHAVIOURS is a JSON list with one entry for each process: "exit N", "kill N" (a signal to itself),
"wait" (until SIGTERM or Ctrl-C, then as skin_jax does) or "hang" (whatever comes).
"""

import json
import os
import signal
import sys
import time

named = dict(arg.removeprefix("--config.distributed.").split("=", 1) for arg in sys.argv[-3:])
process = int(named["process_id"])
verb, _, number = json.loads(os.environ["BEHAVIOURS"])[process].partition(" ")


def end(signum, frame):
    print(f"signal {signum}", flush=True)
    sys.exit(128 + signum)


for signum in (signal.SIGTERM, signal.SIGINT):
    signal.signal(signum, end if verb == "wait" else signal.SIG_IGN)
about = {"pid": os.getpid(), "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"), **named}
print("started", json.dumps({"args": sys.argv[1:-3], **about}), flush=True)
print("a complaint", file=sys.stderr, flush=True)
if verb == "kill":
    os.kill(os.getpid(), int(number))
while verb in ("wait", "hang"):
    time.sleep(60)  # until a signal comes
sys.exit(int(number))
