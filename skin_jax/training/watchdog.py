"""Ends a run that stands still: better a restart than a hang that nobody sees."""

import contextlib
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Iterator

from skin_jax.base.errors import STANDS_STILL


class Watchdog:
    """Ends the process with status 75 where `beat` is not heard for some seconds; 0 turns it off.

    A hang is out of Python's hands: a read from a file system that is gone, a collective whose
    other side is dead. So a thread watches, prints where every other thread stands, and ends the
    process without asking it. The first `beat` arms it.
    """

    def __init__(self, seconds: float):
        self._seconds = seconds
        self._last: float | None = None  # time of the last beat; None while not armed or paused
        self._where = ""
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._watch, daemon=True, name="watchdog")
        if seconds:
            self._thread.start()

    def beat(self, where: str) -> None:
        """Says that the run makes progress, and how far it is."""
        with self._changed:
            self._last, self._where = time.monotonic(), where
            self._changed.notify()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Within it, silence is fine: evaluation and saving take as long as they take."""
        with self._changed:
            armed, self._last = self._last is not None, None
        try:
            yield
        finally:
            if armed:
                self.beat(self._where)

    def close(self) -> None:
        """Ends the watch."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        with self._changed:
            while not self._closed:
                if self._last is None:
                    self._changed.wait()
                    continue
                left = self._last + self._seconds - time.monotonic()
                if left <= 0:
                    self._end()
                self._changed.wait(left)

    def _end(self) -> None:
        print(
            f"error: the run has made no progress for {self._seconds:g} s after {self._where}: a "
            "file system or another process does not respond, or a step takes longer than "
            "config.watchdog_seconds; everything saved so far is intact: run the same command "
            "again. Stack of each thread:",
            file=sys.stderr,
            flush=True,
        )
        faulthandler.dump_traceback(all_threads=True)
        sys.stderr.flush()
        os._exit(STANDS_STILL)
