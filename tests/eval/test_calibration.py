import json

import numpy as np
import pytest

from skin_jax.base.errors import UserError
from skin_jax.eval import calibration, metrics
from skin_jax.eval.calibration import Calibration


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
    calibration.write(tmp_path, kept)
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
