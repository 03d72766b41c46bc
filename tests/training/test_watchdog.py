"""In processes of their own: what it does is to end the process."""

import subprocess
import sys

import pytest

from skin_jax.base import errors

PROGRAM = """
import threading
from skin_jax.training.watchdog import Watchdog
never = threading.Event()
watchdog = Watchdog({seconds})
{body}
watchdog.close()
"""


def status(body: str, seconds: float = 0.3) -> tuple[int, str]:
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(seconds=seconds, body=body)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    return result.returncode, result.stderr


def test_silence_after_a_beat_ends_the_process_and_says_where_it_stood():
    code, err = status("watchdog.beat('step 7')\nnever.wait()")
    assert code == errors.STANDS_STILL
    assert "made no progress for 0.3 s after step 7" in err
    assert "line 7 in <module>" in err


@pytest.mark.parametrize(
    ("body", "seconds"),
    [
        ("never.wait(1)", 0.3),  # not armed before the first beat
        ("watchdog.beat('x')\nwith watchdog.paused():\n    never.wait(4)", 2),
        ("watchdog.beat('x')\nnever.wait(1)", 0),  # off
        ("for _ in range(60):\n    watchdog.beat('x')\n    never.wait(0.05)", 2),
    ],
    ids=["not armed", "paused", "off", "beating"],
)
def test_silence_is_fine(body, seconds):
    assert status(body, seconds) == (0, "")


def test_it_watches_again_after_a_pause():
    body = "watchdog.beat('x')\nwith watchdog.paused():\n    pass\nnever.wait()"
    assert status(body)[0] == errors.STANDS_STILL
