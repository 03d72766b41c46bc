import numpy as np
import pytest

from skin_jax.eval import linear


def test_two_halves_of_one_set_are_told_apart_by_chance_alone():
    rng = np.random.default_rng(0)
    held = 0
    for draw in range(100):
        features = rng.standard_normal((120, 30)) * np.linspace(0.1, 3, 30)
        found = linear.c2st(features[:60], features[60:], draw)
        held += found.low <= 0.5 <= found.high
    assert held >= 93  # 95% of 100, within one standard error


def test_sets_that_differ_are_told_apart():
    rng = np.random.default_rng(0)
    real, other = rng.standard_normal((2, 200, 10))
    found = linear.c2st(real, other[:70] + 1.0, 0)
    assert found.low > 0.8
    assert found.low < found.value < found.high <= 1.0
    assert found == linear.c2st(real, other[:70] + 1.0, 0)


@pytest.mark.parametrize("sizes", [(19, 100), (100, 19), (0, 0)])
def test_too_few_images_are_nan(sizes):
    assert np.isnan(linear.c2st(*(np.zeros((n, 2)) for n in sizes), seed=0)).all()


def test_the_score_of_real_images_is_that_of_training_on_them():
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((3, 10))
    labels = np.arange(300) % 3
    features = centres[labels] + 1.5 * rng.standard_normal((300, 10))
    (train, test), (of_train, of_test) = np.split(features, [200]), np.split(labels, [200])
    score = linear.accuracy_score(train, of_train, test, of_test)
    assignment = np.repeat(["train", "test"], [200, 100])
    assert score == linear.logistic_regression(features, labels, assignment)[0]
    assert score > 0.6
    assert linear.accuracy_score(train, rng.permutation(of_train), test, of_test) < 0.5
    assert np.isnan(linear.accuracy_score(train[:1], of_train[:1], test, of_test))
    assert np.isnan(linear.accuracy_score(train, of_train, test[:0], of_test[:0]))
