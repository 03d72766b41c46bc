"""The one training loop: dispatch, log, evaluate, save, stop, resume. It knows no task."""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from clu import parameter_overview
from flax import serialization

from skin_jax.base import devices, errors
from skin_jax.data.order import Order, Stream, repeated, side_by_side
from skin_jax.tasks.state import MAX_NONFINITE_IN_A_ROW
from skin_jax.training import checkpoints as checkpoint_lib
from skin_jax.training.history import History, Progress, told
from skin_jax.training.profile import Profile
from skin_jax.training.run import Experiment
from skin_jax.training.trackers import Tracker
from skin_jax.training.watchdog import Watchdog

PyTree = Any
Scalars = dict[str, float]

_COUNTS = ("nonfinite", "nonfinite_in_a_row")  # what every task reports of its undone steps

_IN_FLIGHT = 4
"""Dispatches that may wait for the devices: enough to keep them busy, and no more, so that the
loop knows how far they are."""


Evaluator = Callable[[PyTree, int], tuple[PyTree, Scalars]]
"""Looks at the state, whole on every device, between dispatches: (state, step) -> the state, in
which it may keep what scored best, and scalars to log."""


def train(
    experiment: Experiment,
    checkpoints: checkpoint_lib.Checkpoints,
    workdir: Path,
    preemption: checkpoint_lib.Preemption,
    evaluators: Sequence[Evaluator] = (),
    tracker: Tracker | None = None,
) -> PyTree:
    """Runs the steps that are left and returns the last state, whole on every device.

    Logging, evaluation, saving and stopping happen between dispatches only. The tracker, which
    stays open, is that of the process that reports.

    Raises:
      UserError: MAX_NONFINITE_IN_A_ROW steps in a row were not finite (status 1).
      Ended: the process was asked to end. The checkpoints are whole in both cases.
    """
    config, task = experiment.config, experiment.task
    # On all devices from the start, or each dispatch would send it from the first to the others.
    rng = jax.jit(
        lambda: jax.random.key(config.seed), out_shardings=devices.replicated(experiment.mesh)
    )()
    whole, step, evaluated = _initial_state(experiment, checkpoints, rng)
    if said := task.shares(experiment.mesh):
        print(said, flush=True)
    history = History(workdir, tracker or Tracker(), enabled=devices.is_first())
    history.start(
        step,
        processes=jax.process_count(),
        devices=experiment.mesh.size,
        hardware=devices.hardware(experiment.mesh),
        jax=jax.__version__,
        real_examples=len(experiment.indices("train")),
        unlabelled_examples=len(experiment.unlabelled_indices),
        synthetic_examples=0 if experiment.synthetic is None else len(experiment.synthetic.records),
    )
    progress = Progress(
        step, experiment.num_steps, experiment.steps_per_epoch, experiment.rows, task.headline
    )
    classes = experiment.classes
    names = [classes.names[label] for label in task.classes_drawn(len(classes))]
    dispatch, (spread, gathered) = make_dispatch(experiment), make_layout(experiment)
    watchdog = Watchdog(config.watchdog_seconds)
    profile = Profile(
        workdir / "profile",
        watchdog,
        enabled=config.profile and devices.is_first(),
        per_dispatch=config.steps_per_dispatch,
        steps_left=experiment.num_steps - step,
    )
    pending: list[PyTree] = []
    frozen: set[str] = set()
    size = None

    def evaluate(state: PyTree, step: int, *, keep: bool) -> PyTree:
        """Evaluates and saves a whole state, or saves it for the next start to do both."""
        before, scores = state, Scalars()
        try:
            with preemption.at_once(), told(f"evaluating step {step}"):
                for evaluator in evaluators:
                    state, found = evaluator(state, step)
                    scores |= found
        except errors.Ended:
            checkpoints.save(step, before, None, evaluated=False)
            checkpoints.wait()
            raise
        if scores:
            history.scalars(step, scores)
        if keep:
            _keep_generators(task.generators(state), step, workdir)
        checkpoints.save(step, state, scores.get(task.score.name))
        return state

    with (
        preemption.deferred(),
        contextlib.closing(history),
        contextlib.closing(watchdog),
        contextlib.closing(profile),
    ):
        if not evaluated:
            due = _due(experiment, step - config.steps_per_dispatch, step)
            whole = evaluate(whole, step, keep=due.keep)
        state = spread(whole)
        for dispatches, feed in enumerate(feeds(experiment, step), start=1):
            profile.before(dispatches, state)
            compiles = dispatches == 1
            if (wanted := task.train_size(step)) != size:
                if size is not None:  # or Ctrl-C, which saves, would wait for the compilation
                    with watchdog.paused():
                        checkpoints.save(step, gathered(state), None)
                        checkpoints.wait()
                    preemption.saved()
                size, compiles = wanted, True
                print(f"step {step}: compiling the program for images of {size}x{size}", flush=True)
            # Nothing crosses here unasked: what a dispatch needs was sent by the pipeline.
            long = told("compiling the training step") if compiles else contextlib.nullcontext()
            with jax.transfer_guard("disallow"), long:
                state, values = dispatch(state, experiment.pipeline.resident, feed, rng, size)
            preemption.unsaved()
            pending.append(values)
            profile.after(dispatches, state)
            jax.block_until_ready(pending[-_IN_FLIGHT:][0])
            before, step = step, step + config.steps_per_dispatch
            watchdog.beat(f"step {step}")
            due = _due(experiment, before, step)
            stop = preemption.requested(dispatches)  # asked once: it may change at any moment
            if due.log or due.evaluate or due.save or stop:
                averages = _averages(pending, names)
                _check_finite(averages, step, workdir, frozen)
                history.scalars(
                    step, averages | {"images_per_second": progress.report(step, averages)}
                )
                pending = []
            if due.evaluate or due.save or stop:
                with watchdog.paused():
                    whole = gathered(state)
                    if stop:  # an evaluation is left to the next start
                        checkpoints.save(step, whole, None, evaluated=not due.evaluate)
                        checkpoints.wait()
                        raise preemption.ended(f"saved at step {step} of {experiment.num_steps}")
                    if due.evaluate:
                        state = spread(evaluate(whole, step, keep=due.keep))
                    else:
                        checkpoints.save(step, whole, None)
                    devices.wait_for_all(f"step {step} is evaluated and saved")
                progress.resume_clock()
        checkpoints.wait()
    return gathered(state)


def make_layout(
    experiment: Experiment,
) -> tuple[Callable[[PyTree], PyTree], Callable[[PyTree], PyTree]]:
    """The task's `spread` and `gathered`, jitted; what they are given stays as it is.

    Where training, too, has the state whole on every device, they do nothing.
    """
    task, mesh, placement = experiment.task, experiment.mesh, experiment.placement
    if placement.is_fully_replicated:
        return (lambda state: state), (lambda state: state)
    return (
        jax.jit(lambda state: task.spread(state, mesh), out_shardings=placement),
        jax.jit(task.gathered, out_shardings=devices.replicated(mesh)),
    )


def make_dispatch(
    experiment: Experiment,
) -> Callable[..., tuple[PyTree, PyTree]]:
    """The jitted function (state, resident, feed, rng, size=None) -> (state, metrics) of K steps.

    The state is donated; metrics are means over the K steps, but for counts, which are the last.
    `size` is the task's `train_size`, and static.
    """
    pipeline, task = experiment.pipeline, experiment.task
    per_dispatch = experiment.config.steps_per_dispatch

    def run(
        state: PyTree,
        resident: PyTree,
        feed: dict[str, jax.Array],
        rng: jax.Array,
        size: int | None = None,
    ) -> tuple[PyTree, PyTree]:
        train_step = task.step_on(experiment.mesh, size)

        def one(state: PyTree, feed: dict[str, jax.Array]) -> tuple[PyTree, PyTree]:
            return train_step(state, pipeline.gather(resident, feed), rng)

        if per_dispatch == 1:
            return one(state, feed)
        state, stacked = jax.lax.scan(one, state, feed)
        return state, {
            key: values[-1] if key in _COUNTS else values.mean(axis=0)
            for key, values in stacked.items()
        }

    return jax.jit(
        run,
        donate_argnums=0,
        static_argnames="size",
        out_shardings=(experiment.placement, devices.replicated(experiment.mesh)),
        compiler_options=devices.compiler_options(devices.platform(experiment.mesh)),
    )


def _initial_state(
    experiment: Experiment, checkpoints: checkpoint_lib.Checkpoints, rng: jax.Array
) -> tuple[PyTree, int, bool]:
    """The newest good checkpoint, whole everywhere, its step and whether its evaluation is done.

    Or a new state.
    """
    task, placement = experiment.task, devices.replicated(experiment.mesh)
    shapes = jax.eval_shape(task.init, rng)
    restored = checkpoints.restore_latest(checkpoint_lib.template_of(shapes, placement))
    if restored is not None:
        checkpoints.set_aside_after(restored[1])
        done = "  (nothing left to train)" if restored[1] >= experiment.num_steps else ""
        print(f"resuming at step {restored[1]} of {experiment.num_steps}{done}", flush=True)
        return *restored, checkpoints.is_evaluated(restored[1])
    state = jax.jit(task.init, out_shardings=placement)(rng)
    if (loaded := task.pretrained(state)) is not state:
        state = devices.to_global(loaded, placement)
    values = int(parameter_overview.count_parameters(serialization.to_state_dict(state)))
    print(f"starting a run of {experiment.num_steps} steps; the state has {values:,} values")
    return state, 0, True


def feeds(experiment: Experiment, first_step: int) -> Iterator[dict[str, jax.Array]]:
    """Yields what travels to the device in each dispatch from `first_step` on, to the run's end."""
    config, task = experiment.config, experiment.task
    order: Stream = Order(
        experiment.training_indices,
        experiment.training_labels,
        seed=config.seed,
        **task.order(config.data.sampling, config.data.sampling_exponent),
    )
    if task.labelled_rows is not None:
        others = experiment.unlabelled_indices
        without = Order(others, np.zeros(len(others)), seed=config.seed, sampling="natural")
        order = side_by_side(order, task.labelled_rows, without, experiment.rows)
    rows = experiment.fed_rows
    if rows > experiment.rows:
        order = repeated(order, experiment.rows, rows)
    return experiment.pipeline.train_feeds(
        order, rows, first_step, experiment.num_steps, config.steps_per_dispatch
    )


class _Due(NamedTuple):
    log: bool
    evaluate: bool
    keep: bool  # the generators, for a choice by hand
    save: bool


def _due(experiment: Experiment, before: int, step: int) -> _Due:
    """Everything due at the dispatch boundary after steps before .. step - 1."""
    config, last = experiment.config, step >= experiment.num_steps

    def crossed(every: float, times: int = 1) -> bool:
        return math.floor(before / every) // times != math.floor(step / every) // times

    epoch = config.eval_every_steps or experiment.steps_per_epoch
    kept = config.get("keep_generators_every")
    return _Due(
        log=last or crossed(config.log.every_steps),
        evaluate=last or crossed(epoch),
        # Whole numbers of epochs, so that none is kept that is not evaluated.
        keep=bool(kept) and crossed(epoch, kept),
        save=crossed(config.checkpoint.every_steps),
    )


def _keep_generators(generators: PyTree, step: int, workdir: Path) -> None:
    """Saves the generators next to the checkpoints, where none is ever deleted."""
    folder = workdir / checkpoint_lib.GENERATORS
    with checkpoint_lib.Checkpoints(folder, keep_all=True) as kept:
        kept.save(step, generators, None)


def _averages(pending: list[PyTree], names: Sequence[str]) -> Scalars:
    """Means over the dispatches since the last report, in one transfer; counts are the last.

    A metric of each class, [K], is averaged over these as well, where it is finite; their undone
    steps add up, and only those of all of them count as steps in a row.
    """
    rows = jax.device_get(pending)
    averages = {key: np.mean([row[key] for row in rows], axis=0) for key in rows[0]}
    averages |= {key: rows[-1][key] for key in _COUNTS}
    over_classes: dict[str, Callable[[np.ndarray], Any]]
    over_classes = {"nonfinite": np.sum, "nonfinite_in_a_row": np.min}
    found: Scalars = {}
    for key, value in averages.items():
        combine = over_classes.get(key, _finite_mean) if value.ndim else float
        found[key] = float(combine(value))
    for key, value in averages.items():
        if value.ndim:
            found |= {f"{key}/{name}": float(v) for name, v in zip(names, value, strict=True)}
    return found


def _finite_mean(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else math.nan


def _check_finite(values: Mapping[str, float], step: int, workdir: Path, frozen: set[str]) -> None:
    """Ends a run that has diverged; a class that has is named once, and the others continue."""
    if values["nonfinite_in_a_row"] >= MAX_NONFINITE_IN_A_ROW:
        raise errors.UserError(
            f"training diverged: {MAX_NONFINITE_IN_A_ROW} steps in a row before step {step} "
            f"gave losses or gradients that are not finite; {workdir / 'checkpoints'} holds the "
            "last good ones; start again in a new --workdir with a lower "
            "config.optimizer.learning_rate",
            errors.FAILURE,
        )
    for key, value in values.items():
        count, _, name = key.partition("/")
        if count == "nonfinite_in_a_row" and name and value >= MAX_NONFINITE_IN_A_ROW:
            if name not in frozen:
                errors.warn(
                    f"step {step}: {MAX_NONFINITE_IN_A_ROW} steps in a row of the GAN of {name} "
                    "were not finite; it is frozen as it was before them, and the others continue"
                )
            frozen.add(name)
