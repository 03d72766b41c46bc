import numpy as np

from skin_jax.eval import baselines

RNG = np.random.default_rng(0)
LABELS = np.repeat(np.arange(7), [20, 20, 20, 20, 20, 80, 20])
ASSIGNMENT = np.resize(["train", "train", "val", "train", "test"], len(LABELS))


def test_separable_features_are_learned_and_noise_is_chance():
    separable = np.eye(7)[LABELS] * 5 + RNG.normal(size=(len(LABELS), 7))
    score, strength = baselines.logistic_regression(separable, LABELS, ASSIGNMENT)
    assert score > 0.9
    assert strength in baselines.STRENGTHS
    noise = RNG.normal(size=(len(LABELS), 3))
    assert baselines.logistic_regression(noise, LABELS, ASSIGNMENT)[0] < 0.4


def test_the_test_split_takes_no_part_in_the_fit():
    features = np.eye(7)[LABELS] + RNG.normal(size=(len(LABELS), 7))
    score, strength = baselines.logistic_regression(features, LABELS, ASSIGNMENT)
    shuffled = LABELS.copy()
    test = ASSIGNMENT == "test"
    shuffled[test] = RNG.permutation(LABELS[test])
    other, same = baselines.logistic_regression(features, shuffled, ASSIGNMENT)
    assert same == strength
    assert other < score


def test_features_by_hand():
    images = np.zeros((2, 64, 64, 3), np.uint8)
    images[1, :, :, 0] = 200
    np.testing.assert_array_equal(baselines.mean_colour(images), [[0, 0, 0], [200, 0, 0]])
    flat = baselines.pixels(images)
    assert flat.shape == (2, 3072)
    np.testing.assert_array_equal(flat[1].reshape(32, 32, 3)[..., 0], 200)
