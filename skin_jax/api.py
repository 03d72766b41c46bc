"""The Python interface: what the commands do with runs, over all rooms."""

import json
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from skin_jax import tasks
from skin_jax.base import devices, errors
from skin_jax.config import flatten, is_procedural, without_folders
from skin_jax.data.splits import SPLITS
from skin_jax.eval import evaluators, runs
from skin_jax.report import card, figures, kit
from skin_jax.report import run as run_report
from skin_jax.train import checkpoints as checkpoint_lib
from skin_jax.train import loop, shipped
from skin_jax.train import run as run_lib
from skin_jax.train.history import HISTORY, read_history


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
        folder, score = workdir / run_lib.CHECKPOINTS, experiment.task.score
        with checkpoint_lib.Checkpoints(folder, score) as checkpoints:
            try:
                _train(experiment, checkpoints, workdir, preemption)
            except (OSError, checkpoint_lib.SaveError) as error:
                if devices.several():  # the others do not know of it
                    devices.leave(f"error: {workdir}: {error}", errors.FAILURE)
                raise


def _train(
    experiment: run_lib.Experiment,
    checkpoints: checkpoint_lib.Checkpoints,
    workdir: Path,
    preemption: checkpoint_lib.Preemption,
) -> None:
    samples = workdir / "samples"
    pictures = evaluators.Pictures(
        samples=lambda step, real, generated: figures.real_and_generated(
            samples / f"step_{step}.png", real, generated, columns=8
        ),
        by_class=lambda step, shown: figures.real_and_generated_by_class(
            samples / f"step_{step}.png", shown
        ),
    )
    watching = evaluators.make(experiment, pictures)
    state = loop.train(experiment, checkpoints, workdir, preemption, watching)
    checkpoints.wait()
    notes = [run_report.DEMO_NOTE] * is_procedural(experiment.config.data)
    sections = [kit.Section("The demo", [kit.Text(note)]) for note in notes]
    for evaluator in watching:
        if (summary := evaluator.summary(state)) is not None:
            table = kit.Table(*summary)
            sections.append(kit.Section("The best generators", [table]))
            print(f"\nthe best generator of each class:\n\n{kit.pipes(table)}")
            print(f"\ndraw from them with skin_jax.generate --workdir={workdir} --out=FOLDER")
    if tasks.can(experiment.task, "predict"):
        evaluation = runs.evaluate_split(experiment, checkpoints, "test")
        if evaluation is not None:
            if devices.is_first():
                sections += run_report.write_evaluation(workdir / "eval" / "test", evaluation)
            score = experiment.task.score.name
            print(f"\nbest checkpoint by {score}: step {evaluation.step}; on test:\n")
            print("\n\n".join([run_report.table_one(evaluation), *notes]))
    if devices.is_first():
        page = _write_page(experiment, sections, workdir)
        print(f"\nfull report: {page}", flush=True)
    devices.wait_for_all("the report is written")


def _write_page(experiment: run_lib.Experiment, sections: list[kit.Section], workdir: Path) -> Path:
    """Writes `report.html` of a run; the sections go before what is always there."""
    examples, train = experiment.examples, experiment.indices("train")
    classes, labels = examples.classes, examples.labels[train]
    counts = {split: experiment.class_counts(split) for split in SPLITS}
    if experiment.synthetic is not None:
        generated = np.bincount(experiment.synthetic.labels, minlength=len(classes))
        counts["generated, for training"] = generated
    shown = np.concatenate(
        [train[labels == c][: run_report.SAMPLES_PER_CLASS] for c in range(len(classes))]
    )
    config = experiment.config
    settings = without_folders(flatten(config))
    without = len(experiment.unlabelled_indices)
    unlabelled = {"training images without a label": without} if without else {}
    lesions = ", procedural lesions" * is_procedural(config.data)
    return run_report.write_page(
        workdir,
        classes=classes,
        title=f"skin_jax: {settings['task']}{lesions}",
        facts={"steps": experiment.num_steps, **unlabelled, **settings},
        sections=sections,
        class_counts=counts,
        history=read_history(workdir / HISTORY),
        samples=(examples.images[shown], examples.labels[shown]),
    )


def export(workdir: Path, out: Path) -> None:
    """Exports a run into a folder that `predict`, `generate` and `eval` take for its work folder.

    The folder holds the weights that prediction and generation need, in half precision, and a
    model card, `README.md`.

    Args:
      workdir: of a run with a checkpoint.
      out: a new folder, or one that this wrote before.

    Raises:
      UserError: no run or no checkpoint, code of the user's own, or other files in `out`.
    """
    run = run_lib.trained(workdir)
    content = run_lib.ship(run, out)
    abilities = {name: tasks.can(run.task, name) for name in ("predict", "images_of")}
    settings = flatten(run.config)
    facts: dict[str, object] = {"task": settings["task"]}
    if "model.name" in settings:
        facts["network"] = settings["model.name"]
    facts |= {
        "image size": f"{settings['data.image_size']} pixels",
        "checkpoint": f"of step {content.step}",
        "size of the weights": f"{(out / shipped.WEIGHTS).stat().st_size / 1e6:.1f} MB",
    }
    if content.drawn is not None:
        facts["draws, from step"] = ", ".join(
            f"{run.classes.names[label]} {content.drawn.steps[label]}"
            for label in run.task.classes_drawn(len(run.classes))
        )
    if is_procedural(run.config.data):
        facts["training images"] = "procedural lesions, no photographs"
    test = None
    if (path := out / run_lib.TEST_METRICS).exists():
        found = json.loads(path.read_text())
        test = found if found["step"] == content.step else None  # measured before it was trained on
    commands = []
    if abilities["predict"]:
        commands.append("skin_jax.predict --workdir=FOLDER --images=IMAGES --out=predictions.csv")
        commands.append("skin_jax.eval --workdir=FOLDER --data_dir=LABELLED --out=results")
    if abilities["images_of"]:
        commands.append("skin_jax.generate --workdir=FOLDER --out=generated --per_class=16")
    card.write(
        out,
        run.classes,
        facts=facts,
        train_counts=run.train_counts.tolist(),
        test=test,
        commands=[command.replace("FOLDER", out.name) for command in commands],
    )
