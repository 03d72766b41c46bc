"""Evaluating a run: its best checkpoint on one of its splits, or on another labelled folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from skin_jax import tasks
from skin_jax.base import devices
from skin_jax.config import flatten, without_folders
from skin_jax.data import pipeline as pipelines
from skin_jax.data import splits
from skin_jax.data.classes import CLASSES, NUM_CLASSES
from skin_jax.data.examples import Examples
from skin_jax.eval import metrics
from skin_jax.eval.inference import make_predictor
from skin_jax.report import kit
from skin_jax.report import run as run_report
from skin_jax.train import checkpoints as checkpoint_lib
from skin_jax.train.history import HISTORY, read_history
from skin_jax.train.run import Experiment, best_state

PyTree = Any

DEMO_NOTE = "These are procedural lesions: paper A's figures are no measure for them."

_SAMPLES_PER_CLASS = 6
_MELANOMA = CLASSES.index("mel")
_SPECIFICITIES = (0.90, 0.95)


def evaluate_split(
    experiment: Experiment, checkpoints: checkpoint_lib.Checkpoints, split: str, out: Path
) -> tuple[run_report.Evaluation, Sequence[kit.Section]] | None:
    """Evaluates the best checkpoint on a split and writes the results into the folder `out`.

    Melanoma's operating points have their thresholds from the validation split. Of several
    processes, which all take part, the first one writes.

    Returns:
      The evaluation and the sections of its report (none in other processes than the first);
      None, after saying so, for an empty split.

    Raises:
      UserError: no usable checkpoint, or a task that does not classify.
    """
    indices = experiment.indices(split)
    if len(indices) == 0:
        print(f"the split leaves no {split} images: nothing to evaluate there", flush=True)
        return None
    state, step = best_state(experiment.task, checkpoints, experiment.mesh)
    predict = make_predictor(
        tasks.require(experiment.task, "predict", "this run"), experiment.pipeline
    )
    batch_size = experiment.config.eval_batch_size
    probabilities = predict(state, indices, batch_size)
    val = experiment.indices("val")
    examples = experiment.examples
    operating_points = []
    if len(val):
        val_scores = predict(state, val, batch_size)[:, _MELANOMA]
        operating_points = [
            metrics.sensitivity_at_specificity(
                val_scores,
                examples.labels[val] == _MELANOMA,
                probabilities[:, _MELANOMA],
                examples.labels[indices] == _MELANOMA,
                specificity,
            )
            for specificity in _SPECIFICITIES
        ]
    shared = splits.shared_lesions(examples.records, experiment.assignment)
    evaluation = _evaluation(
        examples,
        indices,
        probabilities,
        split=split,
        step=step,
        shared_with_train=shared if split == "test" else None,
        operating_points=operating_points,
    )
    return evaluation, run_report.write_evaluation(out, evaluation) if devices.is_first() else ()


def evaluate_examples(
    task: tasks.Task,
    checkpoints: checkpoint_lib.Checkpoints,
    examples: Examples,
    batch_size: int,
    out: Path,
) -> run_report.Evaluation:
    """Evaluates the best checkpoint on examples from elsewhere (external validation) into `out`."""
    mesh = devices.make_mesh(None)
    state, step = best_state(task, checkpoints, mesh)
    pipeline = pipelines.make("auto", examples.images, examples.labels, mesh)
    predict = make_predictor(tasks.require(task, "predict", "this run"), pipeline)
    indices = np.arange(len(examples.records))
    probabilities = predict(state, indices, batch_size)
    evaluation = _evaluation(examples, indices, probabilities, step=step)
    run_report.write_evaluation(out, evaluation)
    return evaluation


def write_page(experiment: Experiment, evaluation: Sequence[kit.Section], workdir: Path) -> Path:
    """Writes `report.html` of a run; the sections are those of its test set, or none."""
    examples = experiment.examples
    grids = sorted((workdir / "samples").glob("step_*.png"), key=lambda path: int(path.stem[5:]))
    train = experiment.indices("train")
    shown = np.concatenate(
        [train[examples.labels[train] == c][:_SAMPLES_PER_CLASS] for c in range(NUM_CLASSES)]
    )
    counts = {split: experiment.class_counts(split) for split in splits.SPLITS}
    if experiment.synthetic is not None:
        labels = experiment.synthetic.labels
        counts["generated, for training"] = np.bincount(labels, minlength=NUM_CLASSES)
    note = [kit.Section("The demo", [kit.Text(DEMO_NOTE)])] if experiment.is_demo else []
    return run_report.write_run_report(
        workdir,
        title=f"skin_jax: {experiment.config.task}" + ", procedural lesions" * experiment.is_demo,
        facts={"steps": experiment.num_steps, **without_folders(flatten(experiment.config))},
        evaluation=[*note, *evaluation],
        class_counts=counts,
        history=read_history(workdir / HISTORY),
        samples=(examples.images[shown], examples.labels[shown]),
        real_and_generated=grids[-1] if grids else None,
    )


def _evaluation(
    examples: Examples, indices: np.ndarray, probabilities: np.ndarray, **facts: Any
) -> run_report.Evaluation:
    labels = examples.labels[indices]
    records = [examples.records[i] for i in indices]
    known = any(record.lesion_id != record.image_id for record in records)
    lesion_ids = [record.lesion_id for record in records] if known else None
    if not known:
        facts["shared_with_train"] = None  # nobody knows
    return run_report.Evaluation(
        metrics=metrics.evaluate(probabilities, labels, lesion_ids),
        image_ids=[record.image_id for record in records],
        labels=labels,
        probabilities=probabilities,
        mistake_images=examples.images[indices[run_report.mistaken(probabilities, labels)]],
        subgroups=metrics.subgroups(
            probabilities,
            labels,
            lesion_ids,
            {
                "age": [metrics.age_band(record.age) for record in records],
                "sex": [record.sex or "unknown" for record in records],
                "localization": [record.localization or "unknown" for record in records],
                "confirmation": [record.confirmation or "unknown" for record in records],
            },
        ),
        **facts,
    )
