"""Where training reports to: metrics.jsonl, trackers, and one progress line at a time."""

import contextlib
import dataclasses
import json
import math
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any

from skin_jax.base.files import check_replaceable, read_bytes
from skin_jax.training.trackers import Tracker

HISTORY = "metrics.jsonl"


class History:
    """Appends scalars to `metrics.jsonl` of a work folder, and reports them to a tracker.

    Where not `enabled`, nothing is written at all: of several processes one reports.
    """

    def __init__(self, workdir: Path, tracker: Tracker, *, enabled: bool = True):
        path = workdir / HISTORY if enabled else Path(os.devnull)
        if enabled:
            check_replaceable(path)
        cut = path.is_file() and path.read_bytes()[-1:] not in (b"", b"\n")  # by a kill
        self._history = path.open("a", encoding="utf-8")
        if cut:
            self._history.write("\n")
        self._tracker = tracker

    def start(self, step: int, **facts: int | str) -> None:
        """The line that begins each start and restart."""
        self._line({"event": "start", "step": step, **facts})

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Scalars after `step` steps; values that are not finite become null in the JSON."""
        finite = {key: value if math.isfinite(value) else None for key, value in values.items()}
        self._line({"step": step, **finite})
        self._tracker.scalars(step, values)

    def close(self) -> None:
        """Closes the file."""
        self._history.close()

    def _line(self, row: dict[str, Any]) -> None:
        self._history.write(json.dumps(row) + "\n")
        self._history.flush()


def read_history(path: Path) -> list[dict[str, Any]]:
    """Reads the rows of a `metrics.jsonl` that still count, in order, without the start lines.

    A run that is killed and resumed at step N writes again what came after N: rows of later steps
    above a start line are superseded.

    Returns:
      Dicts with "step" and values, float or None (not finite); none where there is no such file.
    """
    rows: list[dict[str, Any]] = []
    for row in json_lines(path, {"step": int}):
        if "event" in row:
            rows = [kept for kept in rows if kept["step"] <= row["step"]]
        elif all(value is None or isinstance(value, int | float) for value in row.values()):
            rows.append(row)
    return rows


def read_starts(path: Path) -> list[dict[str, Any]]:
    """Reads the start lines of a `metrics.jsonl`; none where there is no such file."""
    return [row for row in json_lines(path, {"step": int}) if "event" in row]


def json_lines(path: Path, needed: Mapping[str, type | UnionType]) -> Iterator[dict[str, Any]]:
    """Reads the objects of a file with one a line; none where there is no such file.

    What else is there, such as a line that a kill has cut, is passed over: what lines report must
    not keep a run from going on. Of an object, values of some kinds are `needed`.
    """
    text = read_bytes(path).decode(errors="replace") if path.exists() else ""
    for line in text.splitlines():
        # A line that a kill has cut has no end: what was appended afterwards is glued to it.
        start = line.rfind('{"event"')
        with contextlib.suppress(ValueError, RecursionError):
            row = json.loads(line[max(start, 0) :])
            if isinstance(row, dict) and all(
                isinstance(row.get(key), kind) for key, kind in needed.items()
            ):
                yield row


@dataclasses.dataclass
class Progress:
    """One line for each report: step, epoch, rate, losses, and the time that is left.

    Time spent in evaluation and saving counts for the time left, not for the rate. Of the scalars
    those named in `headline` are shown.
    """

    step: int  # of the last report
    num_steps: int
    steps_per_epoch: float
    batch_size: int
    headline: Sequence[str]

    def __post_init__(self) -> None:
        self._first: tuple[int, float] | None = None
        self.resume_clock()

    def resume_clock(self) -> None:
        """Leaves out of the rate what passed since the last report."""
        self._mark = time.perf_counter()

    def report(self, step: int, values: Mapping[str, float]) -> float:
        """Prints the line and returns the rate since the last one, in images a second."""
        now = time.perf_counter()
        rate = (step - self.step) * self.batch_size / max(now - self._mark, 1e-9)
        left = ""
        if self._first is None:
            self._first = (step, now)  # the first report holds the compilation: no estimate yet
        elif step > self._first[0]:
            per_step = (now - self._first[1]) / (step - self._first[0])
            left = f"  {duration(per_step * (self.num_steps - step))} left"
        self.step, self._mark = step, now
        if values.get("nonfinite"):
            left += f"  ({values['nonfinite']:.0f} steps undone: not finite)"
        shown = "  ".join(f"{key} {values[key]:.3f}" for key in self.headline if key in values)
        print(
            f"step {step}/{self.num_steps}  epoch {step / self.steps_per_epoch:.1f}  "
            f"{rate:.0f} images/s  {shown}{left}",
            flush=True,
        )
        return rate


@contextlib.contextmanager
def told(what: str, after: float = 10, every: float = 60) -> Iterator[None]:
    """Prints what is being done once it takes some seconds, and again each minute until it ends."""
    begin, ended = time.monotonic(), threading.Event()

    def tell() -> None:
        wait = after
        while not ended.wait(wait):
            print(f"{what}: {duration(time.monotonic() - begin)} so far", flush=True)
            wait = every

    teller = threading.Thread(target=tell, daemon=True, name="told")
    teller.start()
    try:
        yield
    finally:
        ended.set()
        teller.join()


def duration(seconds: float) -> str:
    """Such as "2h05m" or "3m07s"; less than nothing is "0m00s"."""
    minutes, s = divmod(round(max(seconds, 0)), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}h{m:02d}m" if hours else f"{m}m{s:02d}s"
