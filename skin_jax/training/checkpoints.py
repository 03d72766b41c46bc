"""Saving, verified restoring with fallback, and preemption. The only user of Orbax."""

import contextlib
import json
import logging
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers

from skin_jax import config as config_lib
from skin_jax.base import devices, errors, files, interrupts
from skin_jax.tasks import state as state_lib
from skin_jax.tasks.task import Score, Task

PyTree = Any
_T = TypeVar("_T")

_UNKNOWN = -1e30  # of a checkpoint without a score: worse than any

GENERATORS = "generators"
"""The folder, next to `checkpoints`, of the generators that are kept for a choice by hand."""


class SaveError(errors.UserError):
    """A checkpoint could not be saved; of several processes perhaps in this one only."""


class _Manager(ocp.CheckpointManager):
    """Orbax's, but for preemption: it would report steps to the counter of JAX's that ours uses."""

    def reached_preemption(self, step: int) -> bool:
        return False


class Checkpoints(contextlib.AbstractContextManager["Checkpoints"]):
    """The checkpoints of one run: the last two, and the best by the task's score; or all.

    Each holds the whole state, its digest, and the identity of the run whose folder they lie in
    (`config.run_in`): one of another run is never restored. Saving is asynchronous; an error of a
    save is raised by the next call. A kill in the middle of a save leaves the earlier checkpoints
    as they were.
    """

    def __init__(
        self,
        directory: Path,
        score: Score = Task.score,
        *,
        read_only: bool = False,
        keep_all: bool = False,
    ):
        """Opens, or makes, the folder of checkpoints; `score` chooses the best one.

        UserError: the score of one is damaged.
        """
        policies = checkpoint_managers.preservation_policy
        self._score = score
        last_two_and_best = policies.AnyPreservationPolicy(
            [
                policies.LatestN(2),
                policies.BestN(
                    get_metric_fn=self._goodness, n=1, keep_checkpoints_without_metrics=False
                ),
            ]
        )
        files.without_owners()
        self._directory = directory.absolute()
        self._run = config_lib.run_in(self._directory.parent)
        self._closing = contextlib.ExitStack()
        if not read_only:
            self._directory.mkdir(parents=True, exist_ok=True)
        self._check_scores()
        self._place = self._closing.enter_context(_without_patterns(self._directory))
        with _as_wanted():
            self._manager = _Manager(
                self._place,
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=policies.PreserveAll() if keep_all else last_two_and_best,
                    best_fn=self._goodness,
                    cleanup_tmp_directories=not read_only,
                    read_only=read_only,
                    enable_background_delete=False,
                    # Among several processes a failed asynchronous save of one is heard of only
                    # when Orbax's threads have waited for each other for ten minutes.
                    enable_async_checkpointing=jax.process_count() == 1,
                ),
                item_names=("state", "digest"),
            )

    def _check_scores(self) -> None:
        """Refuses damaged scores by name: the manager reads all of them, and would only fail."""
        for path in sorted(self._directory.glob("[0-9]*/metrics/metrics")):
            try:
                float(self._goodness(json.loads(files.read_text(path))))
            except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
                raise errors.UserError(
                    f"the score in {path} cannot be read ({_reason(error)}); restore the folder "
                    f"{path.parents[1]} from a copy, or delete it to use the other checkpoints"
                ) from None

    def save(
        self, step: int, state: PyTree, score: float | None, *, evaluated: bool = True
    ) -> None:
        """Starts to save a state after `step` steps; does nothing if that step is saved already.

        Where the task's score at this step is None or NaN, it never counts as the best. A state
        that is not `evaluated`, though it should be, is replaced when it is.

        Raises:
          SaveError: this save could not start, or the one before it failed.
        """
        if again := step in self.steps():
            self.wait()  # it may be half-saved
        if again and (self.is_evaluated(step) or not evaluated):
            return
        goodness = self._as_goodness(score)
        record = {"run": self._run, "step": step, "score": goodness, "evaluated": evaluated}
        with self._saving():
            if again:
                self._manager.delete(step)
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),
                    digest=ocp.args.JsonSave({"blake2b": state_lib.digest(state), **record}),
                ),
                metrics={self._score.name: goodness},
            )

    def is_evaluated(self, step: int) -> bool:
        """Whether nothing is left to do for a step that can be restored."""
        return bool(self._record(step).get("evaluated", True))

    def _as_goodness(self, score: float | None) -> float:
        """The score, its sign such that more is better."""
        if score is None or math.isnan(score):
            return _UNKNOWN
        return score if self._score.higher_is_better else -score

    def _goodness(self, metrics: PyTree) -> float:
        """The result of `_as_goodness`; NaN, which has no place in an order, is the worst."""
        value = float(metrics.get(self._score.name, _UNKNOWN))
        return -math.inf if math.isnan(value) else value

    def wait(self) -> None:
        """Returns when everything is on disk; a SaveError says that it cannot be."""
        with self._saving():
            self._manager.wait_until_finished()

    @contextlib.contextmanager
    def _saving(self) -> Iterator[None]:
        """Orbax raises the errors of an asynchronous save at the next call, of many types."""
        try:
            yield
        except Exception as error:
            raise SaveError(
                f"saving a checkpoint in {self._directory} failed ({_reason(error)}); the earlier "
                "ones are intact: free some space and run the same command again",
                errors.FAILURE,
            ) from error

    def steps(self) -> list[int]:
        """Steps with a checkpoint, in order, as the first of several processes sees them."""
        return devices.first_lists(sorted(self._manager.all_steps()))

    def restore_latest(self, template: PyTree) -> tuple[PyTree, int] | None:
        """The newest undamaged state and its step, or None where there is no checkpoint.

        The template is a pytree of `jax.ShapeDtypeStruct` with shardings.

        Raises:
          UserError: there are checkpoints, and every one is damaged.
        """
        return self._restore_first(list(reversed(self.steps())), template)

    def restore_best(self, template: PyTree) -> tuple[PyTree, int] | None:
        """The state with the best score and its step, the later of equals; see `restore_latest`.

        Raises:
          UserError: it is damaged, or a score is, so that nobody knows which one it is. The next
            best one would silently give other figures.
        """
        if not (steps := self.steps()):
            return None
        scores = {step: self._in_all(step, self._stored_score) for step in steps}
        (best,) = devices.first_lists([max(steps, key=lambda step: (scores[step], step))])
        return self._in_all(best, lambda step: self._restore(step, template)), best

    def _in_all(self, step: int, read: Callable[[int], _T]) -> _T:
        """What all processes read of a checkpoint; a UserError in all where one of them cannot."""
        reason = "another process cannot read it"
        try:
            found, sound = read(step), True
        except Exception as error:
            reason, sound = _reason(error), False
            _be_quiet_about_the_rest()
        if not devices.everywhere(sound):
            raise errors.UserError(
                f"{self._directory / str(step)} cannot be read ({reason}), and without it the best "
                "checkpoint is not known; restore that folder from a copy, or delete it to take "
                "the best of the others"
            )
        return found

    def restore(self, step: int, template: PyTree) -> PyTree:
        """The state of one of `steps()`, in this process alone; refuses a damaged one."""
        try:
            return self._restore(step, template)
        except Exception as error:
            raise errors.UserError(
                f"{self._directory / str(step)} cannot be read ({_reason(error)}); restore the "
                "folder from a copy, or take another step"
            ) from error

    def _stored_score(self, step: int) -> float:
        """The score of a checkpoint, from its two places, which have to agree."""
        metrics, record = self._manager.metrics(step), self._record(step)
        if not metrics:
            raise ValueError("its score is missing")
        score = self._goodness(metrics)
        if record.get("score", score) != score:
            raise ValueError(f"its score is {score} and not {record['score']} as when it was saved")
        return score

    def _record(self, step: int) -> dict[str, Any]:
        """What was written beside the state; a ValueError where it is of another run or step."""
        record = json.loads(files.read_text(self._directory / str(step) / "digest" / "metadata"))
        if record.get("run") != self._run:
            raise ValueError("it belongs to another run than the files beside it")
        if record.get("step", step) != step:
            raise ValueError(f"it was saved at step {record['step']}")
        return dict(record)

    def _restore_first(self, steps: list[int], template: PyTree) -> tuple[PyTree, int] | None:
        damaged: list[str] = []
        for step in steps:
            reason = ""
            try:
                state = self._restore(step, template)
            except Exception as error:
                reason = _reason(error)
                _be_quiet_about_the_rest()
            if devices.everywhere(not reason):
                if damaged:
                    errors.warn(f"resuming from step {step}")
                return state, step
            reason = reason or "another process cannot read it"
            damaged.append(f"{self._directory / str(step)}: {reason}")
            errors.warn(f"checkpoint {damaged[-1]}; trying another")
        if damaged:
            raise errors.listed(
                f"no checkpoint in {self._directory} can be read; restore the folder from a copy, "
                "or delete it to start again",
                damaged,
            )
        return None

    def _restore(self, step: int, template: PyTree) -> PyTree:
        """Reads a state and checks it, in this process alone.

        The manager would wait for the other processes, also for those that could not read.
        """
        stored = self._record(step)["blake2b"]
        handler = ocp.StandardCheckpointHandler()
        try:
            state = handler.restore(
                self._place / str(step) / "state", args=ocp.args.StandardRestore(template)
            )
        finally:
            handler.close()
        found = state_lib.digest(state)
        if stored != found:
            raise ValueError(f"its contents have digest {found}, not {stored} as when it was saved")
        return state

    def set_aside_after(self, step: int) -> None:
        """Moves checkpoints later than `step`, the damaged ones, to the folder `damaged` beside."""
        later = [s for s in self.steps() if s > step]
        for number in later if devices.is_first() else ():
            target = self._directory.parent / "damaged" / f"{number}_{time.time_ns()}"
            target.parent.mkdir(exist_ok=True)
            (self._directory / str(number)).rename(target)
            errors.warn(f"checkpoint {number} is set aside in {target}")
        if later:
            devices.wait_for_all("damaged checkpoints are set aside")
            self._manager.reload()

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Waits for the last save and ends Orbax's threads."""
        with self._closing:
            try:
                self.wait()
            finally:
                self._manager.close()


@contextlib.contextmanager
def _as_wanted() -> Iterator[None]:
    """Keeps from the log Orbax's three warnings that what is opened read-only is read-only."""
    log = logging.getLogger("absl")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def _be_quiet_about_the_rest() -> None:
    """Keeps tracebacks from stderr of threads that go on reading for a restore that has failed."""
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    shown = sys.unraisablehook

    def hook(found: "sys.UnraisableHookArgs") -> None:
        if str(found.exc_value) != "Event loop is closed":
            shown(found)

    sys.unraisablehook = hook


@contextlib.contextmanager
def _without_patterns(directory: Path) -> Iterator[Path]:
    """A path of a folder that is no pattern: Orbax looks for files by patterns that begin with it.

    In a folder such as `[a]` it would find none of those that it wrote, and say nothing.
    """
    if not (set("*?[]\\") & {*str(directory)} and directory.is_dir()):
        yield directory
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        place = Path(f"/proc/self/fd/{descriptor}")
        if not place.is_dir():
            raise errors.UserError(
                f"on this system, checkpoints cannot be kept in {directory}: its path has one of "
                "* ? [ ] \\; rename the folder that has it"
            )
        yield place
    finally:
        os.close(descriptor)


def template_of(state: PyTree, placement: jax.sharding.Sharding) -> PyTree:
    """Shapes and dtypes of a state (or of its `jax.eval_shape`), to be restored to `placement`."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placement), state
    )


def _reason(error: Exception) -> str:
    """One line; Orbax's messages begin with what matters and may be pages long."""
    line = errors.first_line(error)
    return line if len(line) < 400 else f"{line[:150]} ... {line[-200:]}"


class Preemption:
    """Ends the process on SIGTERM or Ctrl-C, with status 143 or 130, after saving.

    Within `deferred` the signal is only remembered, for the loop to look at between dispatches;
    elsewhere it raises at once, because everything is saved. So does a second Ctrl-C everywhere.

    Where the main thread does not get to it, Ctrl-C ends a command even so (`base.interrupts`), but
    for work that is `unsaved`.

    Among several processes SIGTERM is JAX's own: a signal to any of them ends all of them at the
    same dispatch, and outside the loop it is kept until there is one.
    """

    def __init__(self) -> None:
        self._received: int | None = None
        self._deferred = False
        self._previous: dict[int, Any] = {}
        self._distributed = jax.distributed.is_initialized()

    def __enter__(self) -> "Preemption":
        # A handler of SIGTERM here would take the place of JAX's.
        for signum in (signal.SIGINT,) if self._distributed else (signal.SIGINT, signal.SIGTERM):
            self._previous[signum] = signal.signal(signum, self._receive)
        if self._distributed:
            self.unsaved()  # none ends without the others
        return self

    def __exit__(self, *exc_info: object) -> None:
        interrupts.UNSAVED.clear()
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)

    def requested(self, dispatch: int) -> bool:
        """Whether to save and end now; several processes have to ask at every dispatch."""
        if self._distributed:
            return multihost_utils.reached_preemption_sync_point(dispatch)
        return self._received is not None

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Within it, a signal is only remembered; at its end, everything is saved."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
            self.saved()
        if self._received is not None and not self._distributed:
            raise self.ended("everything so far is saved")

    def unsaved(self) -> None:
        """Says that there is something to save before the process may end."""
        interrupts.UNSAVED.set()

    def saved(self) -> None:
        """Says that there is nothing to save any more."""
        if not self._distributed:
            interrupts.UNSAVED.clear()

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Within it, a signal raises at once again, in spite of `deferred`.

        Among several processes it does not: the others would wait for what this one was to do.
        """
        before, self._deferred = self._deferred, False
        try:
            if self._received is not None and not self._distributed:
                raise self.ended("everything so far is saved")
            yield
        finally:
            self._deferred = before

    def ended(self, what: str) -> errors.Ended:
        """The exception that ends the process."""
        status = errors.INTERRUPTED if self._received == signal.SIGINT else errors.PREEMPTED
        words = f"asked to end: {what}; run the same command again to resume"
        return errors.Ended(words, status, others=self._distributed)

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        if signum == signal.SIGINT and self._received is not None:
            raise KeyboardInterrupt
        self._received = signum
        if self._distributed:
            os.kill(os.getpid(), signal.SIGTERM)  # JAX tells the others
        elif not self._deferred:
            raise self.ended("everything so far is saved")
