import dataclasses
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from skin_jax.base.errors import UserError
from skin_jax.data import store
from skin_jax.data.classes import BENIGN, HAM10000, MALIGNANT, Classes
from skin_jax.eval import calibration, inference, runs, tables
from skin_jax.report import run as run_report
from skin_jax.training import checkpoints as checkpoint_lib
from skin_jax.training.run import best_state, reopen, trained

pytestmark = pytest.mark.xdist_group("small_gan")  # one worker trains it, once


@pytest.fixture(scope="module")
def workdir(small_gan, tmp_path_factory):
    return shutil.copytree(small_gan, tmp_path_factory.mktemp("copy") / "tiny")


@pytest.fixture
def experiment(workdir):
    return reopen(workdir)


@pytest.fixture
def checkpoints(workdir):
    opened = checkpoint_lib.Checkpoints(workdir / "checkpoints", read_only=True)
    yield opened
    opened.close()


def test_predictions_are_those_of_the_best_checkpoint(workdir, experiment, checkpoints):
    state, _ = best_state(experiment.task, checkpoints, experiment.mesh)
    indices = experiment.indices("test")
    expected = experiment.task.predict(state, experiment.examples.images[indices])
    written = tables.read_predictions(workdir / "eval/test/predictions.csv", HAM10000)
    assert list(written.image_ids) == [experiment.examples.records[i].image_id for i in indices]
    np.testing.assert_allclose(written.probabilities, expected, atol=1e-6)


def test_evaluating_again_gives_what_training_wrote(workdir, experiment, checkpoints, tmp_path):
    evaluation = runs.evaluate_split(experiment, checkpoints, "test")
    sections = run_report.write_evaluation(tmp_path, evaluation)
    for name in ("metrics.json", "predictions.csv", "subgroups.csv"):
        assert (tmp_path / name).read_text() == (workdir / "eval/test" / name).read_text()
    assert [section.heading for section in sections][:2] == ["Table I on test", "Confusion matrix"]
    assert list(evaluation.operating_points) == [
        "melanoma",
        "malignant classes (akiec, bcc, mel)",
    ]
    points = evaluation.operating_points["melanoma"]
    assert [point.wished_specificity for point in points] == [0.9, 0.95]


def test_a_split_may_be_seen_from_eight_sides(experiment, checkpoints):
    evaluation = runs.evaluate_split(experiment, checkpoints, "test", inference.views(True))
    state, _ = best_state(experiment.task, checkpoints, experiment.mesh)
    images = experiment.examples.images[experiment.indices("test")]
    sides = [experiment.task.predict(state, side) for side in inference.orientations(images)]
    assert np.ptp(sides, axis=0).max() > 1e-5
    np.testing.assert_allclose(evaluation.probabilities, np.mean(sides, axis=0), atol=1e-6)


def test_the_temperature_is_that_of_validation_images(experiment, checkpoints):
    def calibrated(labels: np.ndarray):
        records = tuple(
            dataclasses.replace(record, label=int(label))
            for record, label in zip(experiment.examples.records, labels, strict=True)
        )
        examples = dataclasses.replace(experiment.examples, records=records)
        changed = dataclasses.replace(experiment, examples=examples)
        return runs.evaluate_split(changed, checkpoints, "test").calibrated

    labels, split = experiment.examples.labels, experiment.assignment
    found = calibrated(labels)
    test = calibrated(np.where(split == "test", (labels + 1) % len(HAM10000), labels))
    val = calibrated(np.where(split == "val", (labels + 1) % len(HAM10000), labels))
    assert test.temperature == found.temperature
    assert test.log_loss != found.log_loss
    assert val.temperature != found.temperature
    assert val.log_loss[0] == found.log_loss[0]


def test_an_empty_split_is_said(experiment, checkpoints, capsys):
    nothing = np.full(len(experiment.assignment), "train")
    without_test = type(experiment)(**{**vars(experiment), "assignment": nothing})
    assert runs.evaluate_split(without_test, checkpoints, "test") is None
    assert "the test split has no images" in capsys.readouterr().out


def test_a_run_without_checkpoints_says_so(experiment, tmp_path):
    empty = checkpoint_lib.Checkpoints(tmp_path / "checkpoints")
    with pytest.raises(UserError, match="no checkpoint yet"):
        best_state(experiment.task, empty, experiment.mesh)
    empty.close()


def test_another_labelled_folder_is_evaluated_whole(workdir, experiment, checkpoints, tmp_path):
    for label, name in enumerate(HAM10000.names):
        folder = tmp_path / "other" / name
        folder.mkdir(parents=True)
        for i in range(2):
            pixels = np.random.default_rng([label, i]).integers(0, 256, (40, 50, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{name}_{i}.png")
    examples = store.prepare(
        tmp_path / "other", image_size=32, cache_dir=tmp_path / "cache", progress=False
    )
    state, step = best_state(experiment.task, checkpoints, experiment.mesh)
    run = trained(shutil.copytree(workdir, tmp_path / "run"))
    calibration.write(run.workdir, calibration.Calibration(2.0, 3.0, "val", 5, step), None)
    evaluation = runs.evaluate_examples(run, examples)
    assert evaluation.metrics.num_examples == 14
    assert evaluation.calibrated.temperature == 2.0
    assert not evaluation.metrics.lesions_known
    np.testing.assert_array_equal(evaluation.metrics.support, np.full(7, 2))
    expected = experiment.task.predict(state, jax.numpy.asarray(examples.images))
    np.testing.assert_allclose(evaluation.probabilities, expected, atol=1e-6)


THREE = Classes(
    ("benign-nevus", "malignant", "other"),
    titles=("benign nevus", "malignant", "other"),
    groups=(BENIGN, MALIGNANT, BENIGN),
    focus="malignant",
    columns=("benign-nevus", "malignant", "other"),
)


@pytest.mark.parametrize(
    ("classes", "asked"),
    [
        (THREE, ["malignant"]),
        (dataclasses.replace(THREE, focus=None), ["malignant classes (malignant)"]),
        (dataclasses.replace(THREE, focus="other"), ["other", "malignant classes (malignant)"]),
        (dataclasses.replace(THREE, groups=("", MALIGNANT, BENIGN), focus=None), []),
        (Classes.of("abc"), []),
    ],
)
def test_operating_points_are_about_the_focus_and_what_is_malignant(classes, asked):
    rng = np.random.default_rng(0)
    sets = [(rng.dirichlet(np.ones(3), 60), rng.integers(0, 3, 60)) for _ in range(2)]
    found = runs._operating_points(classes, *sets)
    assert list(found) == asked
    for points in found.values():
        assert [point.wished_specificity for point in points] == [0.9, 0.95]
        assert points[0].threshold <= points[1].threshold


def test_scores_of_several_malignant_classes_add_up():
    classes = dataclasses.replace(THREE, groups=(MALIGNANT, MALIGNANT, BENIGN), focus=None)
    scores = np.array([[0.4, 0.5, 0.1], [0.1, 0.1, 0.8], [0.3, 0.1, 0.6], [0.2, 0.2, 0.6]])
    ((what, points),) = runs._operating_points(
        classes, (scores, np.array([0, 2, 2, 2])), (scores, np.array([1, 2, 2, 0]))
    ).items()
    assert what == "malignant classes (benign-nevus, malignant)"
    assert points[0].threshold == pytest.approx(0.4)
    assert points[0].sensitivity == 0.5
