"""Evaluating a run: its best checkpoint on one of its splits, or on another labelled folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from skin_jax import tasks
from skin_jax.base import devices
from skin_jax.data import pipeline as pipelines
from skin_jax.data import splits
from skin_jax.data.classes import BENIGN, MALIGNANT, Classes
from skin_jax.data.examples import Examples
from skin_jax.data.reading import Reading
from skin_jax.eval import calibration, metrics
from skin_jax.eval.evaluation import Calibrated, Evaluation
from skin_jax.eval.inference import View, averaged
from skin_jax.training import checkpoints as checkpoint_lib
from skin_jax.training.run import CHECKPOINTS, Experiment, Trained, best_state, reopen

MISTAKES_SHOWN = 12
_SPECIFICITIES = (0.90, 0.95)
_ONE_VIEW = (View(),)


def evaluate_split(
    experiment: Experiment,
    checkpoints: checkpoint_lib.Checkpoints,
    split: str,
    views: Sequence[View] = _ONE_VIEW,
) -> Evaluation | None:
    """Evaluates the best checkpoint on a split; all processes take part and get the same.

    Probabilities are means over the views. Operating points have their thresholds, and calibration
    its temperature, from the validation split. None, after saying so, for an empty split.

    Raises:
      UserError: no usable checkpoint, or a task that does not classify.
    """
    indices, val = experiment.indices(split), experiment.indices("val")
    if len(indices) == 0:
        print(f"the {split} split has no images: there is nothing to evaluate", flush=True)
        return None
    state, step = best_state(experiment.task, checkpoints, experiment.mesh)
    function = tasks.require(experiment.task, "predict", "this run")
    predict = averaged(function, experiment.pipeline, views)
    examples, batch_size = experiment.examples, experiment.config.eval_batch_size
    found = predict(state, indices, batch_size)
    shared = splits.shared_lesions(examples.records, experiment.assignment)
    points, calibrated = {}, None
    if len(val):
        here = found, examples.labels[indices]
        on_val = here
        if split != "val":
            on_val = predict(state, val, batch_size), examples.labels[val]
        lesion_ids = [examples.records[i].lesion_id for i in indices]
        points = _operating_points(examples.classes, on_val, here, lesion_ids)
        calibrated = _calibrated(calibration.fit(*on_val), *here)
    return _evaluation(
        examples,
        indices,
        found,
        split=split,
        step=step,
        shared_with_train=shared if split == "test" else None,
        operating_points=points,
        calibrated=calibrated,
    )


def evaluate_own(workdir: Path, split: str, views: Sequence[View] = _ONE_VIEW) -> Evaluation | None:
    """`evaluate_split` of a work folder, whose images are read again."""
    experiment = reopen(workdir)
    folder, score = workdir / CHECKPOINTS, experiment.task.score
    with checkpoint_lib.Checkpoints(folder, score, read_only=True) as checkpoints:
        return evaluate_split(experiment, checkpoints, split, views)


def labelled(run: Trained, data_dir: Path, told: Reading | None = None) -> Examples:
    """The images of a labelled folder with the classes of a run, at its size.

    Args:
      run: whose classes they are.
      data_dir: as `skin_jax.prepare` takes it.
      told: how to read it; None: it is recognised.

    Raises:
      UserError: no such folder, or contents that do not fit.
    """
    from skin_jax.data import store  # tensorflow-datasets takes a second to import

    settings = {key: run.config.data[key] for key in ("image_size", "cache_dir", "on_bad_image")}
    return store.prepare(data_dir, reading=told or Reading(), classes=run.classes, **settings)


def evaluate_examples(
    run: Trained, examples: Examples, views: Sequence[View] = _ONE_VIEW
) -> Evaluation:
    """Evaluates the best checkpoint on examples from elsewhere, of the run's classes.

    Probabilities are means over the views; the temperature is the one that is kept with the run.

    Raises:
      UserError: no usable checkpoint, or a task that does not classify.
    """
    mesh = devices.make_mesh(None)
    state, step = run.best_state(mesh)
    pipeline = pipelines.make("auto", examples.images, examples.labels, mesh)
    predict = averaged(run.ability("predict"), pipeline, views)
    indices = np.arange(len(examples.records))
    probabilities = predict(state, indices, run.config.eval_batch_size)
    kept, calibrated = calibration.read(run.workdir, step), None
    if kept is not None:
        calibrated = _calibrated(kept.temperature_of(len(views)), probabilities, examples.labels)
    return _evaluation(examples, indices, probabilities, step=step, calibrated=calibrated)


def _calibrated(temperature: float, probabilities: np.ndarray, labels: np.ndarray) -> Calibrated:
    both = probabilities, calibration.applied(probabilities, temperature)
    ece, log_loss = (
        (measure(both[0], labels), measure(both[1], labels))
        for measure in (metrics.calibration_error, calibration.loss)
    )
    return Calibrated(temperature, ece, log_loss)


def _operating_points(
    classes: Classes,
    val: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    lesion_ids: Sequence[str] | None = None,
) -> dict[str, list[metrics.OperatingPoint]]:
    """Those of the class in focus, and of all malignant ones where every class has a group.

    Val and test are probabilities float [N, C] and labels int [N].
    """
    asked: dict[str, list[int]] = {}
    if classes.focus is not None:
        focus = classes.index(classes.focus)
        asked[classes.titles[focus]] = [focus]
    malignant = [label for label, group in enumerate(classes.groups) if group == MALIGNANT]
    if {*classes.groups} == {MALIGNANT, BENIGN} and malignant not in asked.values():
        names = ", ".join(classes.names[label] for label in malignant)
        asked[f"malignant classes ({names})"] = malignant

    def scored(on: tuple[np.ndarray, np.ndarray], positive: list[int]) -> metrics.Scored:
        return on[0][:, positive].sum(axis=1), np.isin(on[1], positive)

    measured = metrics.sensitivity_at_specificity
    return {
        what: [measured(scored(val, own), scored(test, own), s, lesion_ids) for s in _SPECIFICITIES]
        for what, own in asked.items()
    }


def _evaluation(
    examples: Examples, indices: np.ndarray, probabilities: np.ndarray, **facts: Any
) -> Evaluation:
    labels = examples.labels[indices]
    records = [examples.records[i] for i in indices]
    known = examples.unit != "image" and any(r.lesion_id != r.image_id for r in records)
    lesion_ids = [record.lesion_id for record in records] if known else None
    if not known:
        facts["shared_with_train"] = None  # nobody knows
    attributes = {"age": [metrics.age_band(record.age) for record in records]}
    for name in ("sex", "localization", "confirmation"):
        attributes[name] = [getattr(record, name) or "unknown" for record in records]
    mistakes = metrics.confident_mistakes(probabilities, labels, MISTAKES_SHOWN)
    return Evaluation(
        classes=examples.classes,
        metrics=metrics.evaluate(probabilities, labels, lesion_ids),
        image_ids=[record.image_id for record in records],
        labels=labels,
        probabilities=probabilities,
        unit=examples.unit if known else "lesion",
        mistakes=mistakes.tolist(),
        mistake_images=examples.images[indices[mistakes]],
        subgroups=metrics.subgroups(probabilities, labels, lesion_ids, attributes),
        **facts,
    )
