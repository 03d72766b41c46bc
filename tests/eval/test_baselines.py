import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skin_jax.base.errors import UserError
from skin_jax.eval import baselines, linear

RNG = np.random.default_rng(0)
LABELS = np.repeat(np.arange(7), [20, 20, 20, 20, 20, 80, 20])
ASSIGNMENT = np.resize(["train", "train", "val", "train", "test"], len(LABELS))


def test_separable_features_are_learned_and_noise_is_chance():
    separable = np.eye(7)[LABELS] * 5 + RNG.normal(size=(len(LABELS), 7))
    score, strength = linear.logistic_regression(separable, LABELS, ASSIGNMENT)
    assert score > 0.9
    assert strength in linear.STRENGTHS
    noise = RNG.normal(size=(len(LABELS), 3))
    assert linear.logistic_regression(noise, LABELS, ASSIGNMENT)[0] < 0.4


def test_the_test_split_takes_no_part_in_the_fit():
    features = np.eye(7)[LABELS] + RNG.normal(size=(len(LABELS), 7))
    score, strength = linear.logistic_regression(features, LABELS, ASSIGNMENT)
    shuffled = LABELS.copy()
    test = ASSIGNMENT == "test"
    shuffled[test] = RNG.permutation(LABELS[test])
    other, same = linear.logistic_regression(features, shuffled, ASSIGNMENT)
    assert same == strength
    assert other < score


def test_features_by_hand():
    images = np.zeros((2, 64, 64, 3), np.uint8)
    images[1, :, :, 0] = 200
    np.testing.assert_array_equal(baselines.mean_colour(images), [[0, 0, 0], [200, 0, 0]])
    flat = baselines.pixels(images)
    assert flat.shape == (2, 3072)
    np.testing.assert_array_equal(flat[1].reshape(32, 32, 3)[..., 0], 200)


def test_without_a_validation_split_c_is_the_one_that_is_said():
    features = np.eye(7)[LABELS] * 5 + RNG.normal(size=(len(LABELS), 7))
    split = np.where(ASSIGNMENT == "val", "train", ASSIGNMENT)
    score, strength = linear.logistic_regression(features, LABELS, split)
    assert strength == linear.STRENGTH_UNCHOSEN
    assert score > 0.9


@pytest.mark.parametrize("empty", ["test", "train"])
def test_a_split_that_is_needed_must_not_be_empty(empty):
    features = RNG.normal(size=(len(LABELS), 3))
    split = np.where(empty == ASSIGNMENT, "val", ASSIGNMENT)
    with pytest.raises(UserError, match="the baselines need test images, and training images"):
        linear.logistic_regression(features, LABELS, split)


class Colours:
    """Begins with a weight of 2 in the place of 1; its features are the mean colours times it."""

    def __init__(self, pretrains: bool):
        self._pretrains = pretrains

    def init(self, rng: jax.Array) -> jax.Array:
        return jnp.ones(())

    def pretrained(self, state):
        return np.float32(2) if self._pretrains else state

    def features(self, state, images: jax.Array) -> jax.Array:
        return state * jnp.mean(images.astype(jnp.float32), axis=(1, 2))


def test_frozen_features_are_those_of_the_weights_before_the_first_step():
    images = RNG.integers(0, 256, (70, 8, 8, 3), dtype=np.uint8)  # more than one batch
    found = baselines.frozen_features(Colours(True), images, 0)
    np.testing.assert_allclose(found, 2 * baselines.mean_colour(images), rtol=1e-5)
    assert baselines.frozen_features(Colours(False), images, 0) is None
    assert baselines.frozen_features(object(), images, 0) is None
