import numpy as np
import pytest

from skin_jax.base.errors import UserError
from skin_jax.data import order
from skin_jax.data.order import Order

LABELS = np.array([0] * 12 + [2] * 7 + [5] * 3 + [6], np.int32)
INDICES = np.arange(23)


def natural(seed: int = 0) -> Order:
    return Order(INDICES, LABELS, seed=seed, sampling="natural")


def balanced(seed: int = 0) -> Order:
    return Order(INDICES, LABELS, seed=seed, sampling="balanced")


def power(seed: int = 0) -> Order:
    return Order(INDICES, LABELS, seed=seed, sampling="power", exponent=0.5)


def by_class(*classes: int, seed: int = 0) -> Order:
    return Order(INDICES, LABELS, seed=seed, sampling="by_class", classes=classes, per_class=2)


# Runs that were begun earlier resume in the order that they began with.
FROZEN = {
    "natural": "49 25 19 16 40 46 1 4 28 58 55 7 37 10 43 25 67 46 40 19",
    "balanced": "37 64 28 67 46 34 67 61 67 31 58 43 67 52 7 61 22 64 40 67",
    "by_class": "67 67 31 7 22 40 37 46 67 67 67 13 4 10 55 43 52 67 67 67",
}


@pytest.mark.parametrize("name", FROZEN)
def test_the_order_is_that_of_earlier_versions(name):
    more = {"classes": np.array([2, 6, 0]), "per_class": 3} if name == "by_class" else {}
    order = Order(3 * INDICES + 1, LABELS, seed=7, sampling=name, **more)
    expected = list(map(int, FROZEN[name].split()))
    assert order(np.arange(40, 60)).tolist() == expected
    assert order(np.arange(40, 60).reshape(4, 5)).tolist() == np.reshape(expected, (4, 5)).tolist()


def test_balanced_with_one_class_is_natural():
    one = LABELS == 2
    first, second = (
        Order(INDICES[one], LABELS[one], seed=3, sampling=sampling)(np.arange(30))
        for sampling in ("balanced", "natural")
    )
    np.testing.assert_array_equal(first, second)


def test_power_draws_classes_in_proportion_to_a_power_of_their_size():
    # Of 23 places, in proportion to sqrt(12), sqrt(7), sqrt(3) and 1: 9, 7, 5 and 3, rounded.
    stream = power()(np.arange(24 * 84))
    for turn in stream.reshape(84, 24):
        assert np.bincount(LABELS[turn], minlength=7)[[0, 2, 5, 6]].tolist() == [9, 7, 5, 3]
    times = np.bincount(stream, minlength=23)
    assert times[LABELS == 0].tolist() == [63] * 12
    assert times[LABELS == 5].tolist() == [140] * 3


@pytest.mark.parametrize(("exponent", "same_as"), [(1.0, {12, 7, 3, 1}), (0.0, {6})])
def test_power_reaches_from_natural_to_balanced(exponent, same_as):
    order = Order(INDICES, LABELS, seed=0, sampling="power", exponent=exponent)
    size = 24 if exponent == 0 else 23
    counts = np.bincount(LABELS[order(np.arange(size))], minlength=7)
    assert set(counts[counts > 0].tolist()) == same_as


def test_natural_order_is_permutations_end_to_end():
    stream = natural()(np.arange(3 * 23))
    for epoch in range(3):
        np.testing.assert_array_equal(np.sort(stream[epoch * 23 : (epoch + 1) * 23]), INDICES)
    assert not np.array_equal(stream[:23], stream[23:46])


@pytest.mark.parametrize(
    "make", [natural, balanced, power, lambda seed=0: by_class(0, 2, 6, seed=seed)]
)
def test_order_is_a_pure_function_of_seed_and_position(make):
    whole = make()(np.arange(300))
    np.testing.assert_array_equal(make()(np.arange(260, 300)), whole[260:])
    order = make()
    for start in range(290, -1, -10):  # backwards, over more epochs than are kept
        found = order(np.arange(start, start + 10))
        np.testing.assert_array_equal(found, whole[start : start + 10])
    assert not np.array_equal(make(seed=1)(np.arange(300)), whole)


def test_balanced_order_holds_each_class_once_every_round_and_uses_every_image():
    stream = balanced()(np.arange(4 * 12 * 2))
    rounds = np.sort(LABELS[stream].reshape(-1, 4), axis=1)
    np.testing.assert_array_equal(rounds, np.tile([0, 2, 5, 6], (24, 1)))
    counts = np.bincount(stream, minlength=23)
    np.testing.assert_array_equal(counts[LABELS == 0], 2)
    np.testing.assert_array_equal(counts[LABELS == 5], 8)
    assert len({tuple(LABELS[stream[i : i + 4]]) for i in range(0, 96, 4)}) > 1


def test_a_batch_of_several_classes_holds_as_many_of_each_side_by_side():
    stream = by_class(0, 2, 6)(np.arange(6 * 6)).reshape(6, 6)
    np.testing.assert_array_equal(LABELS[stream], np.tile([0, 0, 2, 2, 6, 6], (6, 1)))
    np.testing.assert_array_equal(np.sort(stream[:, :2].reshape(-1)), np.arange(12))  # one pass
    assert len(set(stream[:3, 2:4].reshape(-1))) == 6


def test_a_class_goes_through_its_examples_the_same_alone():
    together = by_class(0, 2, 5)(np.arange(60)).reshape(10, 3, 2)
    for place, label in enumerate((0, 2, 5)):
        alone = by_class(label)(np.arange(20)).reshape(10, 2)
        np.testing.assert_array_equal(together[:, place], alone)


def test_an_order_of_nothing_is_refused():
    nothing = np.array([], int)
    for sampling in ("natural", "balanced"):
        with pytest.raises(UserError, match="training split is empty"):
            Order(nothing, nothing, seed=0, sampling=sampling)


def test_a_repeated_batch_is_the_same_over_and_over():
    stream = order.repeated(lambda positions: positions, rows=3, batch_size=7)
    np.testing.assert_array_equal(
        stream(np.arange(14).reshape(2, 7)), [[0, 1, 2, 0, 1, 2, 0], [3, 4, 5, 3, 4, 5, 3]]
    )
