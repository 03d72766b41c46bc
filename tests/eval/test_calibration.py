import json
import shutil

import numpy as np
import pytest

from skin_jax import config as config_lib
from skin_jax.base.errors import UserError
from skin_jax.eval import calibration, familiarity, metrics
from skin_jax.eval.calibration import Calibration
from skin_jax.tasks.declared import classifier
from skin_jax.training import shipped


def calibrated_sample(count: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities, and labels that are drawn from them."""
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.full(4, 0.5), count)
    labels = (rng.random(count)[:, None] > np.cumsum(probabilities, axis=1)).sum(axis=1)
    return probabilities, np.minimum(labels, 3)


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_the_temperature_that_spoiled_probabilities_is_found_again(temperature):
    probabilities, labels = calibrated_sample()
    spoiled = calibration.applied(probabilities, 1.0 / temperature)
    found = calibration.fit(spoiled, labels)
    assert found == pytest.approx(temperature, rel=0.05)
    mended = calibration.applied(spoiled, found)
    np.testing.assert_array_equal(mended.argmax(axis=1), spoiled.argmax(axis=1))
    assert metrics.calibration_error(mended, labels) < 0.03


def test_the_temperature_has_the_lowest_loss():
    probabilities, labels = calibrated_sample(200)

    def loss(temperature):
        return calibration.loss(calibration.applied(probabilities, temperature), labels)

    best = calibration.fit(probabilities, labels)
    assert loss(best) <= min(loss(best * factor) for factor in (0.98, 1.02))


def test_perfect_and_hopeless_probabilities_have_a_finite_temperature():
    sure = np.eye(3)[[0, 1, 2, 0]]
    assert calibration.fit(sure, np.array([0, 1, 2, 0])) == pytest.approx(0.05, rel=1e-3)
    assert calibration.fit(sure, np.array([1, 2, 0, 1])) == pytest.approx(20.0, rel=1e-3)
    assert np.isfinite(calibration.applied(sure, 0.05)).all()


def test_a_calibration_is_read_back_and_is_of_one_checkpoint(tmp_path, capsys):
    kept = Calibration(1.25, 0.75, "val", 597, 600)
    assert calibration.read(tmp_path, 600) is None
    calibration.write(tmp_path, kept, None)
    assert calibration.read(tmp_path, 600) == kept
    assert capsys.readouterr().err == ""
    assert calibration.read(tmp_path, 700) is None
    assert "step 600, and the best one is now that of step 700" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content", ["{", "{}", json.dumps(Calibration(1.0, 1000.0, "val", 5, 1)._asdict()), "[1]"]
)
def test_a_damaged_calibration_says_what_to_do(tmp_path, content):
    (tmp_path / calibration.FILE_NAME).write_text(content)
    with pytest.raises(UserError, match=r"is damaged .*run skin_jax.eval.calibrate"):
        calibration.read(tmp_path, 1)


STEP = 600
RNG = np.random.default_rng(0)


@pytest.fixture
def runs(tmp_path):
    """Two work folders of runs that differ in their seed, each with what `calibrate` writes."""
    folders = [tmp_path / "one", tmp_path / "other"]
    for seed, folder in enumerate(folders):
        folder.mkdir()
        config = classifier.defaults()
        config.seed = seed
        config_lib.write(config, folder)
        reference = familiarity.fit(RNG.normal(size=(40, 3)), RNG.normal(size=(20, 3)))
        kept = Calibration(1.25 + seed, 0.75, "val", 597, STEP)
        calibration.write(folder, kept, reference)
    return folders


def test_a_calibration_of_another_run_is_refused_by_name(runs):
    run, other = runs
    assert calibration.read(run, STEP).temperature == 1.25
    for name in (calibration.FILE_NAME, familiarity.FILE_NAME):
        shutil.copy(other / name, run / name)
    with pytest.raises(UserError, match=r"calibration.json is of another run .*eval.calibrate"):
        calibration.read(run, STEP)


def test_a_reference_that_was_not_written_with_the_calibration_is_refused_by_name(runs):
    run, other = runs
    shutil.copy(other / familiarity.FILE_NAME, run)
    with pytest.raises(UserError, match=r"reference.npz is missing or is not .*eval.calibrate"):
        calibration.read(run, STEP)
    (run / familiarity.FILE_NAME).unlink()
    with pytest.raises(UserError, match=r"reference.npz is missing or is not"):
        calibration.read(run, STEP)


@pytest.mark.parametrize("field", [*Calibration._fields, "run", "reference", "digest"])
def test_an_edited_or_unfinished_calibration_is_refused_by_name(runs, field):
    path = runs[0] / calibration.FILE_NAME
    content = json.loads(path.read_text())
    value = content.pop(field)
    for edited in (content, content | {field: value[:-1] if isinstance(value, str) else value + 1}):
        path.write_text(json.dumps(edited))
        with pytest.raises(UserError, match=r"calibration.json is damaged .*eval.calibrate"):
            calibration.read(runs[0], STEP)


def test_an_exported_run_has_its_calibration_and_never_a_stale_one(runs, tmp_path, capsys):
    run, out = runs[0], tmp_path / "exported"
    out.mkdir()
    (out / shipped.WEIGHTS).write_bytes(b"")
    settings = classifier.defaults()
    settings.seed = 7  # an exported run has an identity of its own
    config_lib.write(settings, out)
    calibration.copy(run, out, STEP)
    assert calibration.read(out, STEP) == calibration.read(run, STEP)
    shutil.copy(run / calibration.FILE_NAME, out)
    with pytest.raises(UserError, match=r"is of another run .* or export the run again"):
        calibration.read(out, STEP)
    calibration.copy(run, out, STEP + 1)
    assert "is not used" in capsys.readouterr().err
    assert calibration.read(out, STEP) is None
    assert not (out / familiarity.FILE_NAME).exists()
