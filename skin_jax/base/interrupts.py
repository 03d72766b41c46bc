"""Ctrl-C ends a command within seconds, also while a library keeps the main thread busy.

Python runs the handler of a signal between two of its own instructions. The compilation of a
network is one of them, and may take minutes.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from typing import Any, NoReturn

from skin_jax.base import errors, files

_GRACE_SECONDS = 1.0

UNSAVED = threading.Event()
"""Set while the main thread has something to save, and looks by itself whether it is to end."""


def end(*_: Any) -> NoReturn:
    """Ends the process at once, as the handler of Ctrl-C: what is written is whole at any moment.

    An exception could come in the middle of a library, which aborts, or loses it.
    """
    os.write(2, b"interrupted\n")
    leave(errors.INTERRUPTED)


def leave(status: int) -> NoReturn:
    """Ends the process with a status; no library gets to say farewell."""
    files.remove_unfinished()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(status)


def watch() -> None:
    """Sees to it, from now on, that Ctrl-C ends the process; called once, in the main thread.

    It is left to the handler for a second, and where something is unsaved altogether; a second
    Ctrl-C ends the process then, too.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reading,), daemon=True).start()


def _watch(reading: int) -> None:
    asked = 0
    while received := os.read(reading, 1):
        if received[0] == signal.SIGINT:
            asked += 1
            time.sleep(_GRACE_SECONDS)
            if asked > 1 or not UNSAVED.is_set():
                end()
