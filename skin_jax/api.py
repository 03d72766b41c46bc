"""What commands and users of Python do with runs, over all rooms."""

from pathlib import Path

from ml_collections import ConfigDict

from skin_jax import tasks
from skin_jax.base import devices, errors
from skin_jax.eval import evaluators, runs
from skin_jax.report import figures, kit
from skin_jax.report import run as run_report
from skin_jax.train import checkpoints as checkpoint_lib
from skin_jax.train import loop
from skin_jax.train import run as run_lib


def train(config: ConfigDict, workdir: Path) -> None:
    """Trains a run to its end, or resumes it, then evaluates its best checkpoint on test.

    The processes of a distributed run (`base.devices.start_distributed`) all call it.

    Args:
      config: from a file in `configs/`.
      workdir: the run's folder; one that holds an interrupted run is resumed.

    Raises:
      UserError: bad input, a run that cannot be resumed, a diverged run.
      Ended: by SIGTERM (status 143) or Ctrl-C (130); everything is saved.
    """
    with run_lib.session(workdir) as preemption:
        experiment = run_lib.start(config, workdir, evaluators.check)
        checkpoints = checkpoint_lib.Checkpoints(
            workdir / run_lib.CHECKPOINTS, experiment.task.score
        )
        try:
            _train(experiment, checkpoints, workdir, preemption)
        except (OSError, checkpoint_lib.SaveError) as error:
            if devices.several():  # the others do not know of it
                devices.leave(f"error: {workdir}: {error}", errors.FAILURE)
            raise
        finally:
            checkpoints.close()


def _train(
    experiment: run_lib.Experiment,
    checkpoints: checkpoint_lib.Checkpoints,
    workdir: Path,
    preemption: checkpoint_lib.Preemption,
) -> None:
    watching = evaluators.make(experiment, _pictures(workdir))
    state = loop.train(experiment, checkpoints, workdir, preemption, watching)
    checkpoints.wait()
    sections: list[kit.Section] = []
    for evaluator in watching:
        if (summary := evaluator.summary(state)) is not None:
            table = kit.Table(*summary)
            sections.append(kit.Section("The best generators", [table]))
            print(f"\nthe best generator of each class:\n\n{kit.pipes(table)}")
            print(f"\ndraw from them with skin_jax.generate --workdir={workdir} --out=FOLDER")
    if tasks.can(experiment.task, "predict"):
        found = runs.evaluate_split(experiment, checkpoints, "test", workdir / "eval" / "test")
        if found is not None:
            evaluation, written = found
            sections += written
            score = experiment.task.score.name
            print(f"\nbest checkpoint by {score}: step {evaluation.step}; on test:\n")
            print(run_report.table_one(evaluation.metrics, evaluation.shared_with_train))
            if experiment.is_demo:
                print(f"\n{runs.DEMO_NOTE}")
    if devices.is_first():
        page = runs.write_page(experiment, sections, workdir)
        print(f"\nfull report: {page}", flush=True)
    devices.wait_for_all("the report is written")


def _pictures(workdir: Path) -> evaluators.Pictures:
    def grid(step: int) -> Path:
        return workdir / "samples" / f"step_{step}.png"

    return evaluators.Pictures(
        samples=lambda step, real, generated: figures.real_and_generated(
            grid(step), real, generated, columns=8
        ),
        by_class=lambda step, shown: figures.real_and_generated_by_class(grid(step), shown),
    )
