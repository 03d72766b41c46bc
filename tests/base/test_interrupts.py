"""Ctrl-C where the main thread does not get to it; tests/base/test_command.py has commands."""

import os
import signal

from skin_jax.base import interrupts

INTERRUPT, OTHER = bytes([signal.SIGINT]), bytes([signal.SIGTERM])


class EndedError(Exception):
    """In the place of the end of the process."""


def watched(received, monkeypatch):
    """How many of the signals were read when the process was ended; None where it was not."""
    reading, writing = os.pipe()
    os.write(writing, received)
    os.close(writing)

    def end():
        raise EndedError

    monkeypatch.setattr(interrupts, "_GRACE_SECONDS", 0.0)
    monkeypatch.setattr(interrupts, "end", end)
    try:
        interrupts._watch(reading)
    except EndedError:
        return len(received) - len(os.read(reading, 10))
    finally:
        os.close(reading)
    return None


def test_ctrl_c_ends_at_once_but_for_what_is_unsaved(monkeypatch):
    assert watched(OTHER + INTERRUPT + INTERRUPT, monkeypatch) == 2
    assert watched(OTHER, monkeypatch) is None
    monkeypatch.setattr(interrupts.UNSAVED, "is_set", lambda: True)
    assert watched(INTERRUPT + OTHER, monkeypatch) is None
    assert watched(INTERRUPT + OTHER + INTERRUPT, monkeypatch) == 3
