"""The one training loop: dispatch, log, evaluate, save, stop, resume. It knows no task."""

import contextlib
import dataclasses
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from clu import parameter_overview
from flax import serialization
from jax.sharding import PartitionSpec
from ml_collections import ConfigDict

from skin_jax import tasks
from skin_jax.base import devices, errors
from skin_jax.base.files import locked
from skin_jax.data.pipeline import ClassOrder, Order
from skin_jax.eval import metrics, runs
from skin_jax.eval.evaluators import ClassGansWatch, by_name, table_of_best
from skin_jax.eval.inference import make_predictor
from skin_jax.report import figures, kit
from skin_jax.report import run as run_report
from skin_jax.tasks.augment import to_uint8
from skin_jax.tasks.state import MAX_NONFINITE_IN_A_ROW
from skin_jax.train import checkpoints as checkpoint_lib
from skin_jax.train.history import MetricWriter, Progress
from skin_jax.train.run import Experiment, start
from skin_jax.train.watchdog import Watchdog

PyTree = Any
Scalars = dict[str, float]

_COUNTS = ("nonfinite", "nonfinite_in_a_row")  # what every task reports of its undone steps
_GRID_COLUMNS = 8
_GRID_ROWS = 3  # of real images, and as many of generated ones

_IN_FLIGHT = 4
"""Dispatches that may wait for the devices: enough to keep them busy, and no more, so that the
loop knows how far they are."""

_PROFILED_STEPS = 10
_PROFILED_FROM = 3  # dispatches later: the first compiles, and the next ones find caches cold


def train_and_evaluate(config: ConfigDict, workdir: Path) -> None:
    """Trains a run to its end, or goes on with it, then evaluates its best checkpoint on test.

    The processes of a distributed run (`sharding.start_distributed`) all call it.

    Args:
      config: from a file in `configs/`.
      workdir: the run's folder; one that holds an interrupted run is resumed.

    Raises:
      UserError: bad input, a run that cannot be resumed, a diverged run.
      Ended: by SIGTERM (status 143) or Ctrl-C (130); everything is saved.
    """
    with contextlib.ExitStack() as stack:
        if not devices.is_first():
            nowhere = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
        with devices.together():
            _claim(workdir, stack)
        preemption = stack.enter_context(checkpoint_lib.Preemption())
        try:
            _train_and_evaluate(config, workdir, preemption)
        except OSError as error:
            raise errors.UserError(
                f"{workdir}: {error}; what is saved is whole: mend that and run the same command "
                "again",
                errors.FAILURE,
            ) from error
        except jax.errors.JaxRuntimeError as error:
            if jax.process_count() == 1 or "RESOURCE_EXHAUSTED" in str(error):
                raise
            raise errors.UserError(
                f"another process of this run does not answer ({errors.first_line(error)}); what "
                "is saved is whole: run the same command again in all of them",
                errors.PEER_DIED,
            ) from error


def _claim(workdir: Path, stack: contextlib.ExitStack) -> None:
    """Makes the work folder and keeps other runs out of it, as long as `stack` is open."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if devices.is_first():
            stack.enter_context(locked(workdir / ".lock"))
    except BlockingIOError:
        raise errors.UserError(f"another run is training in {workdir}") from None
    except OSError as error:
        raise errors.UserError(f"{workdir} cannot be a work folder: {error}") from error


def _train_and_evaluate(
    config: ConfigDict, workdir: Path, preemption: checkpoint_lib.Preemption
) -> None:
    experiment = start(config, workdir)
    checkpoints = checkpoint_lib.Checkpoints(workdir / "checkpoints")
    try:
        state = train(experiment, checkpoints, workdir, preemption)
        checkpoints.wait()
        found = None
        sections: Sequence[kit.Section] = ()
        if isinstance(experiment.task, tasks.Classifies):
            found = runs.evaluate_split(experiment, checkpoints, "test", workdir / "eval" / "test")
        elif isinstance(experiment.task, tasks.GeneratesByClass):
            table = table_of_best(experiment, state)
            sections = (kit.Section("The best generators", [table]),)
            print(f"\nthe best generator of each class:\n\n{kit.pipes(table)}")
            print(f"\ndraw from them with skin_jax.generate --workdir={workdir} --out=FOLDER")
        if found is not None:
            sections = found[1]
            print(f"\nbest checkpoint by validation macro AUC: step {found[0].step}; on test:\n")
            print(run_report.table_one(found[0].metrics, found[0].shared_with_train))
            if experiment.is_demo:
                print(f"\n{runs.DEMO_NOTE}")
        if devices.is_first():
            page = runs.write_page(experiment, sections, workdir)
            print(f"\nfull report: {page}", flush=True)
        devices.wait_for_all("the report is written")
    except (OSError, checkpoint_lib.SaveError) as error:
        if jax.process_count() > 1:  # the others do not know of it
            devices.leave(f"error: {workdir}: {error}", errors.FAILURE)
        raise
    finally:
        checkpoints.close()


def train(
    experiment: Experiment,
    checkpoints: checkpoint_lib.Checkpoints,
    workdir: Path,
    preemption: checkpoint_lib.Preemption,
) -> PyTree:
    """Runs the steps that are left and returns the last state.

    Logging, evaluation, saving and stopping happen between dispatches only.

    Raises:
      UserError: MAX_NONFINITE_IN_A_ROW steps in a row were not finite (status 1).
      Ended: the process was asked to end. The checkpoints are whole in both cases.
    """
    config = experiment.config
    # On all devices from the start, or each dispatch would send it from the first to the others.
    rng = jax.jit(
        lambda: jax.random.key(config.seed), out_shardings=devices.replicated(experiment.mesh)
    )()
    state, step = _initial_state(experiment, checkpoints, rng)
    writer = MetricWriter(workdir, config.log.tensorboard, enabled=devices.is_first())
    writer.start(
        step,
        processes=jax.process_count(),
        devices=experiment.mesh.size,
        hardware=devices.hardware(experiment.mesh),
        jax=jax.__version__,
        real_examples=len(experiment.indices("train")),
        synthetic_examples=0 if experiment.synthetic is None else len(experiment.synthetic.records),
    )
    watch = _Watch(experiment, workdir)
    progress = Progress(
        step,
        experiment.num_steps,
        experiment.steps_per_epoch,
        experiment.rows,
        experiment.task.headline,
    )
    dispatch = make_dispatch(experiment)
    watchdog = Watchdog(config.watchdog_seconds)
    profile = _Profile(experiment, step, workdir, watchdog)
    pending: list[PyTree] = []
    scores: Scalars = {}
    with (
        preemption.deferred(),
        contextlib.closing(writer),
        contextlib.closing(watchdog),
        contextlib.closing(profile),
    ):
        for dispatches, feed in enumerate(feeds(experiment, step), start=1):
            profile.before(dispatches, state)
            # Nothing crosses here unasked: what a dispatch needs was sent by the pipeline.
            with jax.transfer_guard("disallow"):
                state, values = dispatch(state, experiment.pipeline.resident, feed, rng)
            pending.append(values)
            profile.after(dispatches, state)
            jax.block_until_ready(pending[-_IN_FLIGHT:][0])
            before, step = step, step + config.steps_per_dispatch
            watchdog.beat(f"step {step}")
            due = _due(experiment, before, step)
            stop = preemption.requested(dispatches)  # asked once: it may change at any moment
            if due.log or due.evaluate or due.save or stop:
                averages = _averages(pending, experiment.task)
                watch.check_finite(averages, step)
                writer.scalars(
                    step, averages | {"images_per_second": progress.report(step, averages)}
                )
                pending = []
            if due.evaluate or due.save or stop:
                with watchdog.paused():
                    if due.evaluate:
                        state, scores = watch.evaluate(state, step)
                        writer.scalars(step, scores)
                    if due.keep and isinstance(experiment.task, tasks.GeneratesByClass):
                        _keep_generators(experiment.task, state, step, workdir)
                    score = scores.get(checkpoint_lib.SCORE) if due.evaluate else None
                    checkpoints.save(step, state, score)
                    if stop:
                        checkpoints.wait()
                        raise preemption.ended(f"saved at step {step} of {experiment.num_steps}")
                    devices.wait_for_all(f"step {step} is evaluated and saved")
                progress.resume_clock()
    return state


def make_dispatch(
    experiment: Experiment,
) -> Callable[[PyTree, PyTree, dict[str, jax.Array], jax.Array], tuple[PyTree, PyTree]]:
    """The jitted function (state, resident, feed, rng) -> (state, metrics) of K steps.

    The state is donated; metrics are means over the K steps, but for the count of non-finite steps
    in a row, which is that of the last one.
    """
    task, pipeline = experiment.task, experiment.pipeline
    per_dispatch = experiment.config.steps_per_dispatch

    def run(
        state: PyTree, resident: PyTree, feed: dict[str, jax.Array], rng: jax.Array
    ) -> tuple[PyTree, PyTree]:
        def one(state: PyTree, feed: dict[str, jax.Array]) -> tuple[PyTree, PyTree]:
            return train_step(state, pipeline.gather(resident, feed), rng)

        if per_dispatch == 1:
            return one(state, feed)
        state, stacked = jax.lax.scan(one, state, feed)
        return state, {
            key: values[-1] if key in _COUNTS else values.mean(axis=0)
            for key, values in stacked.items()
        }

    train_step = task.train_step
    if isinstance(task, tasks.GeneratesByClass):
        # Each device trains its own classes, as if there were no others.
        train_step = jax.shard_map(
            train_step,
            mesh=experiment.mesh,
            in_specs=(PartitionSpec("data"), PartitionSpec("data"), PartitionSpec()),
            out_specs=PartitionSpec("data"),
            check_vma=False,
        )
    return jax.jit(
        run,
        donate_argnums=0,
        out_shardings=(experiment.placement, devices.replicated(experiment.mesh)),
        compiler_options=devices.compiler_options(devices.platform(experiment.mesh)),
    )


def _initial_state(
    experiment: Experiment, checkpoints: checkpoint_lib.Checkpoints, rng: jax.Array
) -> tuple[PyTree, int]:
    """The newest good checkpoint and its step, or the state before step 0."""
    placement = experiment.placement
    shapes = jax.eval_shape(experiment.task.init, rng)
    restored = checkpoints.restore_latest(checkpoint_lib.template_of(shapes, placement))
    if restored is not None:
        checkpoints.set_aside_after(restored[1])
        done = "  (nothing left to train)" if restored[1] >= experiment.num_steps else ""
        print(f"resuming at step {restored[1]} of {experiment.num_steps}{done}", flush=True)
        return restored
    state = jax.jit(experiment.task.init, out_shardings=placement)(rng)
    if isinstance(experiment.task, tasks.Pretrained):
        state = devices.to_global(experiment.task.pretrained(state), placement)
    values = int(parameter_overview.count_parameters(serialization.to_state_dict(state)))
    print(f"starting a run of {experiment.num_steps} steps; the state has {values:,} values")
    return state, 0


def feeds(experiment: Experiment, first_step: int) -> Iterator[dict[str, jax.Array]]:
    """What travels to the device for each dispatch from `first_step` on, to the end of the run."""
    config = experiment.config
    indices, labels = experiment.training_indices, experiment.training_labels
    order: Order | ClassOrder
    if isinstance(experiment.task, tasks.GeneratesByClass):
        order = ClassOrder(
            indices, labels, experiment.task.labels, experiment.task.per_class, config.seed
        )
    else:
        order = Order(indices, labels, config.data.sampling, config.seed)
    return experiment.pipeline.train_feeds(
        order, experiment.rows, first_step, experiment.num_steps, config.steps_per_dispatch
    )


@dataclasses.dataclass(frozen=True)
class _Due:
    log: bool
    evaluate: bool
    keep: bool  # the generators, for a choice by hand
    save: bool


def _due(experiment: Experiment, before: int, step: int) -> _Due:
    """What is due at the dispatch boundary after steps before .. step - 1."""
    config = experiment.config

    def crossed(every: float) -> bool:
        return math.floor(before / every) != math.floor(step / every)

    last = step >= experiment.num_steps
    epoch = config.eval_every_steps or experiment.steps_per_epoch
    every = config.get("keep_generators_every")
    return _Due(
        log=last or crossed(config.log.every_steps),
        evaluate=last or crossed(epoch),
        # Whole numbers of epochs, so that none is kept that is not evaluated.
        keep=bool(every)
        and math.floor(before / epoch) // every != math.floor(step / epoch) // every,
        save=crossed(config.checkpoint.every_steps),
    )


def _keep_generators(task: tasks.GeneratesByClass, state: PyTree, step: int, workdir: Path) -> None:
    """Saves the generators beside the checkpoints, from which none is ever deleted."""
    kept = checkpoint_lib.Checkpoints(workdir / checkpoint_lib.GENERATORS, keep_all=True)
    with contextlib.closing(kept):
        kept.save(step, task.current(state), None)


def _averages(pending: list[PyTree], task: tasks.Task) -> Scalars:
    """Means over the dispatches since the last report, in one transfer; counts are the last.

    What a task has for each of its classes is averaged over these as well, where it is finite;
    their undone steps add up, and only those of all of them count as steps in a row.
    """
    rows = jax.device_get(pending)
    averages = {key: np.mean([row[key] for row in rows], axis=0) for key in rows[0]}
    averages |= {key: rows[-1][key] for key in _COUNTS}
    if not isinstance(task, tasks.GeneratesByClass):
        return {key: float(value) for key, value in averages.items()}
    over_classes: dict[str, Callable[[np.ndarray], Any]]
    over_classes = {"nonfinite": np.sum, "nonfinite_in_a_row": np.min}
    return {
        key: float(over_classes.get(key, _finite_mean)(value)) for key, value in averages.items()
    } | by_name(averages, task.labels)


def _finite_mean(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else math.nan


class _Profile:
    """A trace of ten steps by JAX's profiler, where `config.profile` asks for it.

    The steps come after the first few dispatches; of a shorter run all but the first dispatch,
    which compiles.
    """

    def __init__(self, experiment: Experiment, first_step: int, workdir: Path, watchdog: Watchdog):
        per_dispatch = experiment.config.steps_per_dispatch
        left = (experiment.num_steps - first_step) // per_dispatch
        count = min(-(-_PROFILED_STEPS // per_dispatch), max(left - 1, 1))
        skipped = min(_PROFILED_FROM, left - count)
        enabled = experiment.config.profile and devices.is_first()
        self._first = skipped + 1 if enabled else None  # dispatches are counted from 1
        self._last = skipped + count
        self._steps = count * per_dispatch
        self._folder = workdir / "profile"
        self._watchdog = watchdog
        self._running = False

    def before(self, dispatches: int, state: PyTree) -> None:
        """Begins the trace where it is due, when the steps before it are done."""
        if dispatches == self._first:
            jax.block_until_ready(state)
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # an evaluation's calls would leave no room for steps
            jax.profiler.start_trace(self._folder, profiler_options=options)
            self._running = True

    def after(self, dispatches: int, state: PyTree) -> None:
        """Ends the trace where it is due, when its steps are done, and says where it lies."""
        if self._running and dispatches == self._last:
            jax.block_until_ready(state)
            with self._watchdog.paused():
                self.close()
            print(
                f"a trace of {self._steps} step(s) lies in {self._folder}: open its "
                "*.trace.json.gz at https://ui.perfetto.dev, or the folder with "
                f"tensorboard --logdir={self._folder} and the package xprof",
                flush=True,
            )

    def close(self) -> None:
        """Ends a trace that is under way."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()


class _Watch:
    """What is looked at: finite steps, and once an epoch scores and real and generated images."""

    def __init__(self, experiment: Experiment, workdir: Path):
        self._experiment = experiment
        self._workdir = workdir
        self._frozen: set[str] = set()
        task = experiment.task
        if isinstance(task, tasks.GeneratesByClass):
            self._class_gans = ClassGansWatch(experiment)
        if isinstance(task, tasks.Classifies):
            self._predictor = make_predictor(task.predict, experiment.pipeline)
        if isinstance(task, tasks.Generates):
            self._sample = jax.jit(
                lambda state, rng, labels: to_uint8(task.sample(state, rng, labels)),
                out_shardings=devices.replicated(experiment.mesh),
                compiler_options=devices.compiler_options(devices.platform(experiment.mesh)),
            )

    def check_finite(self, values: Scalars, step: int) -> None:
        """Ends a run that has diverged; a class that has is named once, and the others go on."""
        if values["nonfinite_in_a_row"] >= MAX_NONFINITE_IN_A_ROW:
            raise errors.UserError(
                f"training diverged: {MAX_NONFINITE_IN_A_ROW} steps in a row before step {step} "
                f"gave losses or gradients that are not finite; {self._workdir / 'checkpoints'} "
                "holds the last good ones; start again in a new --workdir with a lower "
                "config.optimizer.learning_rate",
                errors.FAILURE,
            )
        for key, value in values.items():
            count, _, name = key.partition("/")
            if count == "nonfinite_in_a_row" and name and value >= MAX_NONFINITE_IN_A_ROW:
                if name not in self._frozen:
                    errors.warn(
                        f"step {step}: {MAX_NONFINITE_IN_A_ROW} steps in a row of the GAN of "
                        f"{name} were not finite; it stays as it was before them, and the others "
                        "go on"
                    )
                self._frozen.add(name)

    def evaluate(self, state: PyTree, step: int) -> tuple[PyTree, Scalars]:
        """The scores that the task has, after printing them and writing the grid; and the state.

        Of a classifier, scores on the validation split (none where it is empty); of one GAN a
        class, those of the generators, the best of which the state keeps.
        """
        if isinstance(self._experiment.task, tasks.GeneratesByClass):
            return self._class_gans.look(state, step, self._grid(step))
        if isinstance(self._experiment.task, tasks.Generates):
            self._write_grid(state, step)
        indices = self._experiment.indices("val")
        if not isinstance(self._experiment.task, tasks.Classifies) or len(indices) == 0:
            return state, {}
        labels = self._experiment.examples.labels[indices]
        probabilities = self._predictor(state, indices, self._experiment.config.eval_batch_size)
        scores = {
            checkpoint_lib.SCORE: metrics.macro_auc(probabilities, labels),
            "val_balanced_accuracy": metrics.balanced_accuracy(probabilities, labels),
        }
        print("  ".join([f"step {step}", *(f"{key} {v:.3f}" for key, v in scores.items())]))
        return state, scores

    def _grid(self, step: int) -> Path:
        return self._workdir / "samples" / f"step_{step}.png"

    def _write_grid(self, state: PyTree, step: int) -> None:
        """The same real images and the same noise each time, so that epochs can be compared."""
        count = _GRID_COLUMNS * _GRID_ROWS
        train = self._experiment.indices("train")
        chosen = np.random.default_rng(0).permutation(train)[:count]
        labels = np.resize(self._experiment.examples.labels[chosen], count)
        generated = self._sample(state, jax.random.key(0), labels)
        if not devices.is_first():
            return
        figures.real_and_generated(
            self._grid(step),
            self._experiment.examples.images[chosen],
            np.asarray(generated),
            columns=_GRID_COLUMNS,
        )
