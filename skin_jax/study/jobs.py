"""Runs the jobs of a study, each in a process of its own, and knows how they stand.

W/jobs/<job>/log.txt         what the job printed
W/jobs/<job>/attempts.jsonl  when it was started and how it ended: what costs are estimated from
W/jobs/<job>/lock            held by whoever runs it, and by the job itself
"""

import contextlib
import dataclasses
import itertools
import json
import os
import shlex
import signal
import subprocess
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from skin_jax.base import errors, interrupts
from skin_jax.base.errors import UserError
from skin_jax.base.files import locked
from skin_jax.study.plan import Job, Plan
from skin_jax.training.history import HISTORY, duration, json_lines, read_history

_LOG_TAIL = 8192
_LOOK_SECONDS = 0.5  # between looks at a child, or at what another process makes
_SAY_SECONDS = 30.0
_TIMED_STEPS = 20


@dataclasses.dataclass
class Result:
    """Jobs that were not done, by name, and why."""

    failed: dict[str, str] = dataclasses.field(default_factory=dict)
    skipped: dict[str, str] = dataclasses.field(default_factory=dict)


class Attempt(NamedTuple):
    """A part of a job that was made in one go."""

    seconds: float  # to its end, or to the last line of its metrics.jsonl
    units: int  # steps, or folders of images, that were made
    code: str  # `Plan.code` of the study that started it


def folder_of(workdir: Path, name: str) -> Path:
    """Where the study keeps what it knows of a job."""
    return workdir / "jobs" / name


def steps_done(job: Job) -> int:
    """Optimiser steps of a job so far, as its metrics.jsonl has them."""
    return _last_step(job.folder / HISTORY) if job.steps else 0


def _last_step(history: Path) -> int:
    return max((row["step"] for row in read_history(history)[-1:]), default=0)


def last_words(log: Path) -> str:
    """The last line that the last attempt of a job printed; "" for none."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _LOG_TAIL))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    for line in reversed(text.splitlines()):  # bars of progress end with a carriage return
        if line.startswith("$ "):
            break
        if line.strip():
            return line.strip()
    return ""


class Timing(NamedTuple):
    """What a job was found to cost before it was begun, in seconds."""

    start: float  # with compilation, one evaluation and the report
    step: float


def estimate(plan: Plan, jobs: Sequence[Job]) -> dict[str, Timing]:
    """Times a few steps of the first job of each group that trains and was not measured yet.

    They are made in a folder that is deleted; generated images, where a job takes some, are left
    out. Evaluations beyond the first are not in the figures.

    Raises:
      UserError: such a job failed.
    """
    found: dict[str, Timing] = {}
    measured = Costs(plan)
    for job in jobs:
        if job.group in found or not job.steps or measured.knows(job.group):
            continue
        print(f"timing {_TIMED_STEPS} steps of {job.group}", flush=True)
        with tempfile.TemporaryDirectory() as place:
            workdir = Path(place) / "run"
            dropped = ("--workdir=", "--config.data.synthetic")
            command = [word for word in job.command if not word.startswith(dropped)]
            command.append(f"--workdir={workdir}")
            if job.warms_up:
                command.append("--config.optimizer.warmup_steps=0")
            for key in ("num_steps", "eval_every_steps"):
                command.append(f"--config.{key}={_TIMED_STEPS}")
            # The first half has the compilation in it.
            command.append(f"--config.log.every_steps={_TIMED_STEPS // 2}")
            begun = time.monotonic()
            ended = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, text=True
            )
            seconds = time.monotonic() - begun
            if ended.returncode:
                raise UserError(
                    f"{_TIMED_STEPS} steps of {job.group} failed: {ended.stderr.strip()[-500:]}"
                )
            rates = [row.get("images_per_second") for row in read_history(workdir / HISTORY)]
        step = job.images / job.steps / [rate for rate in rates if rate][-1]
        found[job.group] = Timing(max(seconds - _TIMED_STEPS * step, 0.0), step)
    return found


class Costs:
    """Costs of jobs, measured on those done so far in the study's folder, by whichever process.

    The time of an attempt holds its start, evaluations and saving. What was not measured may be
    estimated.
    """

    def __init__(self, plan: Plan, estimates: Mapping[str, Timing] | None = None):
        self._estimates = estimates or {}
        measured: dict[str, list[Attempt]] = defaultdict(list)
        for job in plan.jobs.values():
            measured[job.group] += attempts(plan.workdir, job.name)
        self._per_unit = {
            group: sum(attempt.seconds for attempt in own) / sum(attempt.units for attempt in own)
            for group, own in measured.items()
            if own
        }

    def knows(self, group: str) -> bool:
        """Whether any of the group was measured, or estimated."""
        return group in self._per_unit or group in self._estimates

    def measured(self, group: str, unit: str) -> str:
        """Such as "0.1 s/step", or what is known of it."""
        if (per_unit := self.per_unit(group)) is not None:
            return f"{per_unit:.3g} {unit}"
        timing = self._estimates.get(group)
        return "not yet" if timing is None else f"about {timing.step:.3g} {unit}"

    def per_unit(self, group: str) -> float | None:
        """Seconds a step, or a folder of images; None before any of the group was measured."""
        return self._per_unit.get(group)

    def left(self, jobs: Sequence[Job], *, names: bool = True) -> str:
        """Such as "2h05m", or what is known of it, with or without names of what is not."""
        missing = [job for job in jobs if job.missing()]
        total, unknown = 0.0, dict[str, None]()
        for job in missing:
            units = max(job.units - steps_done(job), 0)
            if job.group in self._per_unit:
                total += self._per_unit[job.group] * units
            elif (timing := self._estimates.get(job.group)) is not None:
                total += timing.start + timing.step * units
            else:
                unknown[job.group] = None
        if not unknown:
            return duration(total)
        known = f"{duration(total)} and " if total else ""
        if not names:
            return f"{known}an unknown time of other jobs"
        return f"{known}an unknown time of {', '.join(unknown)} (not measured yet)"


def attempts(workdir: Path, name: str) -> list[Attempt]:
    """Those at a job of a study's folder that got anywhere, in order."""
    rows, history = _rows(workdir, name), workdir / name / HISTORY
    if rows and rows[-1]["event"] == "start" and history.exists():
        # It runs, or was killed together with the study.
        end = {"event": "end", "time": history.stat().st_mtime, "units": _last_step(history)}
        rows.append(end)
    return [
        Attempt(end["time"] - start["time"], end["units"] - start["units"], start["code"])
        for start, end in itertools.pairwise(rows)
        if (start["event"], end["event"]) == ("start", "end")
        and isinstance(start.get("code"), str)
        and end["units"] > start["units"]
        and end["time"] > start["time"]
    ]


def _rows(workdir: Path, name: str) -> list[dict[str, Any]]:
    needed = {"event": str, "time": int | float, "units": int}
    return list(json_lines(folder_of(workdir, name) / "attempts.jsonl", needed))


class Runner:
    """Makes runs and what they need, one after another, sharing the folder with other processes.

    What another process is making is left to it, and waited for at the end; what fails is reported
    and ends nothing but what needs it. What a signal or a watchdog ended goes on once more at once.
    SIGTERM and Ctrl-C are passed on to the job.
    """

    def __init__(self, plan: Plan, runs: Sequence[str]):
        """Takes what is not finished of these runs, by name, and of what they need."""
        self._plan = plan
        self._runs = [plan.jobs[name] for name in runs]
        needed = plan.with_needs([job.name for job in self._runs if job.missing()])
        self._open = [job for job in needed if job.missing() and self._is_needed(job, needed)]
        self._total = len(self._open)
        self._began = time.time()
        self._result = Result()
        self._asked: int | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._waiting: list[str] = []
        self._said_waiting: list[str] = []

    def _is_needed(self, job: Job, among: Sequence[Job]) -> bool:
        """Whether anything unfinished needs it: generated images outlive their generator."""
        return job in self._runs or any(
            job.name in other.needs and other.missing() and self._is_needed(other, among)
            for other in among
        )

    def run(self) -> Result:
        """Runs until nothing is left that can be done.

        Raises:
          Ended: by SIGTERM (status 143) or Ctrl-C (130), after the job has ended.
        """
        unfinished = sum(bool(job.missing()) for job in self._runs)
        print(
            f"{len(self._runs) - unfinished} of {len(self._runs)} runs are finished; jobs to do: "
            f"{self._total}",
            flush=True,
        )
        with contextlib.ExitStack() as stack:
            interrupts.UNSAVED.set()  # the end of a job is waited for, and written down
            stack.callback(interrupts.UNSAVED.clear)
            for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                if signum != signal.SIGHUP or signal.getsignal(signum) != signal.SIG_IGN:  # nohup
                    stack.callback(signal.signal, signum, signal.signal(signum, self._receive))
            while self._open:
                if not self._pass():
                    self._say_waiting()
                    time.sleep(_LOOK_SECONDS)
                self._end_if_asked("no job was running")
        return self._result

    def _pass(self) -> bool:
        """Goes through the open jobs up to one that could be settled; whether there was any."""
        lost = {**self._result.failed, **self._result.skipped}
        self._waiting = []
        for job in self._open:
            if bad := [need for need in job.needs if need in lost]:
                self._result.skipped[job.name] = f"it needs {bad[0]}"
            elif gone := [need for need in job.needs if self._plan.jobs[need].missing()]:
                if any(other.name in gone for other in self._open):
                    continue
                self._result.skipped[job.name] = f"{gone[0]} was there and is gone"
            elif job.missing() and not self._try(job):
                self._waiting.append(job.name)
                continue
            self._open.remove(job)
            return True
        return False

    def _try(self, job: Job) -> bool:
        """Makes a job, unless another process does."""
        with contextlib.ExitStack() as stack:
            try:
                lock = stack.enter_context(locked(folder_of(self._plan.workdir, job.name) / "lock"))
            except BlockingIOError:
                return False
            if job.missing() and not self._failed_elsewhere(job):
                self._make(job, lock)
        return True

    def _failed_elsewhere(self, job: Job) -> bool:
        """Whether another process has failed at it since this call began: once is enough."""
        ends = [row for row in _rows(self._plan.workdir, job.name) if row["event"] == "end"]
        if ends and ends[-1]["time"] > self._began and ends[-1]["failure"]:
            self._result.failed[job.name] = ends[-1]["failure"]
        return job.name in self._result.failed

    def _make(self, job: Job, lock: int | None) -> None:
        self._say(job, f"begins; it prints to {self._log(job)}")
        began = time.monotonic()
        status, failure = self._attempt(job, lock, began)
        if failure and (status == errors.STANDS_STILL or status < 0):
            self._say(job, f"{failure}; it is resumed")
            _, failure = self._attempt(job, lock, began)
        spent = duration(time.monotonic() - began)
        if failure:
            self._result.failed[job.name] = failure
            self._say(job, f"FAILED after {spent}: {failure}")
        else:
            others = [other for other in self._open if other is not job]
            left = f"; left: {Costs(self._plan).left(others)}" if others else ""
            self._say(job, f"finished in {spent}{left}")

    def _attempt(self, job: Job, lock: int | None, began: float) -> tuple[int, str]:
        """Starts a job's process and waits for it: its status, and why it failed if it did."""
        log = self._log(job)
        _append(log.parent, "start", units=steps_done(job), code=self._plan.code)
        with log.open("ab") as output:
            output.write(f"$ {shlex.join(job.command)}\n".encode())
            output.flush()
            child = self._child = subprocess.Popen(
                job.command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # Ctrl-C of a terminal goes to its whole group; the job gets it from here, once.
                start_new_session=True,
                # A job whose study was killed goes on alone: with the lock, nobody joins it.
                pass_fds=() if lock is None else (lock,),
            )
        try:
            if self._asked is not None:  # while it was started
                child.send_signal(self._asked)
            self._watch(job, child, log, began)
        finally:
            if child.poll() is None:
                child.terminate()
                child.wait()
            self._child = None
        status, missing = child.returncode, job.missing()
        failure = "" if self._asked is not None else _failure(status, missing, log)
        units = steps_done(job) if missing else job.units
        _append(log.parent, "end", units=units, status=status, failure=failure)
        self._end_if_asked(f"{job.name} ended with status {status}")
        return status, failure

    def _log(self, job: Job) -> Path:
        return folder_of(self._plan.workdir, job.name) / "log.txt"

    def _watch(self, job: Job, child: "subprocess.Popen[bytes]", log: Path, began: float) -> None:
        said, said_at = "", time.monotonic()
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(_LOOK_SECONDS)
                return
            now = time.monotonic()
            if now - said_at > _SAY_SECONDS and (words := last_words(log)) != said:
                left = Costs(self._plan).left(self._open, names=False)
                self._say(job, f"{words}  ({duration(now - began)}; all jobs: {left} left)")
                said, said_at = words, now

    def _say(self, job: Job, what: str) -> None:
        number = self._total - len(self._open) + 1
        print(f"[{number}/{self._total}] {job.name}: {what}", flush=True)

    def _say_waiting(self) -> None:
        if self._waiting and self._waiting != self._said_waiting:
            print(
                f"waiting for {', '.join(self._waiting)}, which another process is running",
                flush=True,
            )
            self._said_waiting = self._waiting

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        self._asked = signal.SIGINT if signum == signal.SIGINT else signal.SIGTERM
        if self._child is not None:
            self._child.send_signal(self._asked)

    def _end_if_asked(self, what: str) -> None:
        if self._asked is not None:
            ended = errors.INTERRUPTED if self._asked == signal.SIGINT else errors.PREEMPTED
            raise errors.Ended(f"asked to end: {what}; run the same command again to resume", ended)


def _failure(status: int, missing: str, log: Path) -> str:
    """Why an attempt counts as failed; "" if it does not."""
    if status == 0 and not missing:
        return ""
    ended = f"status {status}" if status else f"it ended, but left {missing}"
    if status < 0:
        ended = f"ended by {signal.Signals(-status).name}"
    words = last_words(log)
    return f"{ended}: {words}" if words else ended


def _append(folder: Path, event: str, **facts: Any) -> None:
    with (folder / "attempts.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"event": event, "time": time.time(), **facts}) + "\n")


def table(plan: Plan, jobs: Sequence[Job], costs: Costs) -> tuple[Sequence[str], list[list[str]]]:
    """How groups of jobs stand and what they cost: a header and rows, without anything started."""
    header = ("jobs", "needs", "number", "done", "begun", "steps each", "images each", "measured")
    rows = []
    groups: dict[str, list[Job]] = defaultdict(list)
    for job in jobs:
        groups[job.group].append(job)
    for group, members in groups.items():
        first = members[0]
        missing = [job for job in members if job.missing()]
        unit = "s/step" if first.steps else "s"
        rows.append(
            [
                group,
                ", ".join(plan.jobs[need].group for need in first.needs),
                str(len(members)),
                str(len(members) - len(missing)),
                str(sum(bool(_rows(plan.workdir, job.name)) for job in missing)),
                f"{first.steps:,}" if first.steps else "",
                f"{first.images:,}" if first.images else "",
                costs.measured(group, unit),
                costs.left(members) if costs.knows(group) else "unknown",
            ]
        )
    return (*header, "time left"), rows
