"""Preparing a classifier for trustworthy predictions, and what `predict` then says of images."""

import csv
import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from skin_jax import api
from skin_jax.base.errors import UserError
from skin_jax.data import demo
from skin_jax.data import pipeline as pipelines
from skin_jax.eval import calibration, familiarity, inference, prediction
from skin_jax.tasks.declared import classifier
from skin_jax.training.run import reopen

pytestmark = pytest.mark.xdist_group("calibrate")  # one worker trains it, once


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The work folder of a tiny classifier of procedural lesions; only to be read."""
    config = classifier.defaults()
    config.update_from_flattened_dict(
        {
            "num_steps": 4,
            "batch_size": 16,
            "eval_batch_size": 32,
            "data.demo_images": demo.MIN_IMAGES,
            "data.image_size": 32,
            "data.pipeline": "device",
            "model.name": "cnn",
            "model.width_multiplier": 0.125,
            "optimizer.warmup_steps": 0,
            "sharding.num_devices": 1,
            "log.tensorboard": False,
        }
    )
    folder = tmp_path_factory.mktemp("runs") / "cnn"
    api.train(config, folder)
    return folder


@pytest.fixture(scope="module")
def prepared(calibrate, trained, tmp_path_factory):
    """The same with its calibration and its reference."""
    folder = shutil.copytree(trained, tmp_path_factory.mktemp("prepared") / "cnn")
    found, reference, _ = calibrate.fitted(reopen(folder), folder)
    calibration.write(folder, found, reference)
    return folder


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(5):
        pixels = np.random.default_rng(i).integers(0, 256, (40, 50, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


def detailed(workdirs, pictures, out, **options):
    details = out.with_name("details.csv")
    status = prediction.predict_files(
        workdirs, [str(pictures)], out, details=details, progress=False, **options
    )
    assert status == 0
    with details.open(newline="") as file, out.open(newline="") as probabilities:
        return list(csv.DictReader(file)), list(csv.DictReader(probabilities))


def test_no_test_image_and_no_test_label_matters(calibrate, trained, prepared):
    experiment = reopen(trained)
    test = experiment.assignment == "test"
    examples = experiment.examples
    images = np.array(examples.images[np.arange(len(test))])
    images[test] = 255 - images[test]
    records = tuple(
        dataclasses.replace(record, label=0) if in_test else record
        for record, in_test in zip(examples.records, test, strict=True)
    )
    others = dataclasses.replace(examples, records=records, images=images)
    changed = dataclasses.replace(
        experiment,
        examples=others,
        pipeline=pipelines.make("device", images, others.labels, experiment.mesh),
    )
    found, reference, _ = calibrate.fitted(changed, trained)
    assert found == calibration.read(prepared, found.step)
    for name, array in familiarity.read(prepared)._asdict().items():
        np.testing.assert_array_equal(getattr(reference, name), array)


def test_of_validation_images_one_in_twenty_is_flagged(calibrate, trained):
    found, _, flagged = calibrate.fitted(reopen(trained), trained)
    assert flagged["validation images"] == pytest.approx(0.05, abs=1.01 / found.images)
    assert "200 non-lesions" in flagged


def test_details_are_the_run_s_own_figures(prepared, pictures, tmp_path):
    rows, probabilities = detailed([prepared], pictures, tmp_path / "p.csv")
    temperature = json.loads((prepared / calibration.FILE_NAME).read_text())["temperature"]
    for row, columns in zip(rows, probabilities, strict=True):
        assert row["image"] == columns.pop("image")
        scores = {name.lower(): float(value) for name, value in columns.items()}
        first, second = sorted(scores, key=scores.__getitem__, reverse=True)[:2]
        assert (row["predicted"], row["second"]) == (first, second)
        assert float(row["confidence"]) == pytest.approx(scores[first])
        after = calibration.applied(np.array([list(scores.values())]), temperature)
        assert float(row["calibrated_probability"]) == pytest.approx(after.max(), abs=1e-6)
        percentile = float(row["distance_percentile"])
        assert 0 <= percentile <= 100
        assert row["flagged"] == str(int(percentile > familiarity.FLAGGED_ABOVE))
    assert sum(row["flagged"] == "1" for row in rows) >= 3  # noise is no lesion


def test_pictures_unlike_the_training_images_are_named_without_details_too(
    prepared, pictures, tmp_path, capsys
):
    prediction.predict_files([prepared], [str(pictures)], tmp_path / "p.csv", progress=False)
    said = capsys.readouterr().err
    assert "less like the training images than 95% of the validation images" in said
    assert said.rstrip().endswith(": 0, 1, 2, 3, 4")


def test_what_another_checkpoint_was_prepared_for_is_not_used(prepared, pictures, tmp_path, capsys):
    stale = shutil.copytree(prepared, tmp_path / "stale")
    found = calibration.read(stale, json.loads((stale / calibration.FILE_NAME).read_text())["step"])
    calibration.write(stale, found._replace(step=10**6), familiarity.read(stale))
    rows, _ = detailed([stale], pictures, tmp_path / "p.csv")
    assert {row["calibrated_probability"] + row["flagged"] for row in rows} == {""}
    assert "is not used: it is of the checkpoint of step 1000000" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["p.csv", "./p.csv", "p.skipped.csv"])
def test_details_have_a_file_of_their_own(trained, pictures, tmp_path, name):
    with pytest.raises(UserError, match=r"--details is .*csv, which --out .* choose another name"):
        prediction.predict_files(
            [trained], [str(pictures)], tmp_path / "p.csv", details=tmp_path / name
        )
    assert not (tmp_path / "p.csv").exists()


def test_two_runs_that_are_one_say_the_same(prepared, pictures, tmp_path):
    once, _ = detailed([prepared], pictures, tmp_path / "p.csv")
    twice, _ = detailed([prepared, prepared], pictures, tmp_path / "q.csv")
    assert twice == once


def test_a_run_that_was_not_prepared_leaves_columns_empty_and_says_how(
    trained, pictures, tmp_path, capsys
):
    rows, _ = detailed([trained], pictures, tmp_path / "p.csv")
    assert {row["distance_percentile"] + row["flagged"] for row in rows} == {""}
    assert all(row["predicted"] and not row["calibrated_probability"] for row in rows)
    assert f"skin_jax.eval.calibrate --workdir={trained}" in capsys.readouterr().err


def test_a_run_without_validation_images_or_of_a_gan_is_refused(calibrate, trained, small_gan):
    experiment = reopen(trained)
    all_train = dataclasses.replace(
        experiment, assignment=np.full(len(experiment.assignment), "train")
    )
    with pytest.raises(UserError, match="no validation images"):
        calibrate.fitted(all_train, trained)
    with pytest.raises(UserError, match="cannot say how unlike"):
        calibrate.fitted(reopen(small_gan), small_gan)


def looked_at(images, view):
    return np.asarray(inference.viewed(lambda _, x: x)((None, view), images))


def test_views_are_the_eight_orientations():
    image = np.random.default_rng(0).integers(0, 256, (1, 5, 5, 3), np.uint8)
    seen = {looked_at(image, view).tobytes() for view in inference.views(True)}
    assert seen == {np.ascontiguousarray(o).tobytes() for o in inference.orientations(image)}
    assert inference.views(False) == [inference.View()]
    assert len(inference.views(True, (1.0, 0.8))) == 16


def test_a_scale_enlarges_the_middle():
    ramp = np.broadcast_to(
        np.arange(0, 256, 4, dtype=np.uint8)[None, :, None, None], (1, 64, 64, 3)
    )
    middle = looked_at(jax.numpy.asarray(ramp), inference.View(scale=0.5)).astype(float)
    expected = 4 * (31.5 + (np.arange(64) - 31.5) / 2)
    np.testing.assert_allclose(middle[0, :, 0, 0], expected, atol=0.51)


def test_means_over_orientations_have_a_temperature_of_their_own(prepared):
    experiment, run = reopen(prepared), api.load(prepared)
    val = experiment.indices("val")
    images, labels = experiment.examples.images[val], experiment.examples.labels[val]
    known = json.loads((prepared / calibration.FILE_NAME).read_text())
    for tta, name in ((False, "temperature"), (True, "temperature_tta")):
        plain = run.predict(images, tta=tta)
        assert known[name] == pytest.approx(calibration.fit(plain, labels), rel=1e-3)
        after = run.predict(images, tta=tta, calibrated=True)
        np.testing.assert_allclose(after, calibration.applied(plain, known[name]), atol=1e-9)
