import numpy as np
import pytest
from scipy.special import ndtri

from skin_jax.eval import metrics, readers

MEASURES = ["accuracy", "sensitivity", "specificity", "d_prime", "criterion"]


def simulated(rng, *, d, images, between=0.0, items=0.0, count=1, criterion=0.0):
    """Answers of readers whose d' varies around d, about images that vary in their difficulty."""
    generated = np.arange(2 * images) < images
    own = d + between * rng.standard_normal(count)
    seen = np.where(generated[:, None], own / 2, -own / 2)
    seen = seen + items * rng.standard_normal((2 * images, 1))
    return seen + rng.standard_normal((2 * images, count)) > criterion, generated


def covered(truth, **how):
    """In how many of 100 simulations the interval of d' holds the truth."""
    found = [
        readers.detection(
            *simulated(np.random.default_rng([seed, 19]), **how), resamples=200
        ).overall["d_prime"]
        for seed in range(100)
    ]
    return sum(low <= truth <= high for _, (low, high) in found)


@pytest.mark.parametrize("criterion", [0.0, 0.4])
def test_a_reader_with_d_prime_1_is_estimated_within_the_interval(criterion):
    assert 90 <= covered(1.0, d=1.0, images=50, criterion=criterion) <= 99


@pytest.mark.parametrize(("count", "between", "items"), [(3, 0.6, 0.0), (4, 0.3, 0.7), (8, 0, 1)])
def test_several_readers_are_estimated_within_the_interval(count, between, items):
    truth = 1 / np.sqrt(1 + items**2)  # noise of images and of readers add up
    how = {"images": 50, "between": between, "items": items, "count": count}
    assert 90 <= covered(truth, d=1.0, **how) <= 99


def test_one_reader_has_the_values_of_the_formulas():
    generated = np.repeat([True, False], [20, 30])
    called = np.concatenate([np.arange(20) < 15, np.arange(30) < 9])[:, None]
    found = readers.detection(called, generated)
    assert found.overall is found.readers[0]
    assert (found.generated, found.real) == (20, 30)
    value = {name: estimate.value for name, estimate in found.overall.items()}
    h, f = 15.5 / 21, 9.5 / 31
    assert list(value) == MEASURES
    assert value["accuracy"] == pytest.approx((15 + 21) / 50)
    assert value["sensitivity"] == pytest.approx(0.75)
    assert value["specificity"] == pytest.approx(0.7)
    assert value["d_prime"] == pytest.approx(ndtri(h) - ndtri(f))
    assert value["criterion"] == pytest.approx(-(ndtri(h) + ndtri(f)) / 2)

    def density(share):
        return np.exp(-(ndtri(share) ** 2) / 2) / np.sqrt(2 * np.pi)

    variance = h * (1 - h) / (20 * density(h) ** 2) + f * (1 - f) / (30 * density(f) ** 2)
    low, high = found.overall["d_prime"].ci95
    assert high - low == pytest.approx(2 * 1.959964 * np.sqrt(variance))
    low, high = found.overall["criterion"].ci95
    assert high - low == pytest.approx(1.959964 * np.sqrt(variance))


def test_wilson_has_the_published_values():
    """Newcombe, Statistics in Medicine 17, 1998, Table I: methods for 81/263, 15/148, 0/20."""
    for count, size, low, high in [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605)]:
        assert readers.wilson(count, size) == pytest.approx((low, high), abs=5e-5)
    assert readers.wilson(0, 20) == pytest.approx((0, 0.1611), abs=5e-5)


def test_the_difference_of_diagnoses_has_the_published_interval():
    """Newcombe, Statistics in Medicine 17, 1998, pages 873-890, Table II: 56/70 - 48/80."""
    generated = np.repeat([False, True], [70, 80])
    right = np.concatenate([np.arange(70) < 56, np.arange(80) < 48])[:, None]
    found = readers.diagnosis(right, generated).overall
    assert found["real"].value == pytest.approx(0.8)
    assert found["generated"].value == pytest.approx(0.6)
    assert found["difference"].value == pytest.approx(0.2)
    assert found["difference"].ci95 == pytest.approx((0.0524, 0.3339), abs=5e-5)


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("images", [1, 7, 50])
@pytest.mark.parametrize("right", [True, False])
def test_readers_who_are_always_right_or_wrong_have_finite_scores(count, images, right):
    generated = np.arange(2 * images) < images
    called = np.repeat(generated[:, None] == right, count, axis=1)
    found = readers.detection(called, generated)
    for measured in (*found.readers, found.overall):
        values = np.array([[e.value, *e.ci95] for e in measured.values()])
        assert np.isfinite(values).all()
        assert (values[:, 1] < values[:, 2]).all()  # nothing is known for certain
        assert (values[:, 1] <= values[:, 0]).all()
        assert (values[:, 0] <= values[:, 2]).all()
    value, (low, high) = found.overall["d_prime"]
    assert (value > 0) == right
    if images == 50:
        assert low > 1 if right else high < -1


def test_readers_who_agree_in_everything_are_not_taken_for_more_images():
    answers, generated = simulated(np.random.default_rng(0), d=1.0, images=50)
    same = readers.detection(np.repeat(answers, 4, axis=1), generated, resamples=metrics.RESAMPLES)
    alone = same.readers[0]["d_prime"].ci95
    both = same.overall["d_prime"].ci95
    assert both[1] - both[0] == pytest.approx(alone[1] - alone[0], rel=0.1)


def test_readers_who_tie_without_agreeing_keep_an_interval():
    generated = np.arange(80) < 40
    called = np.array([(np.arange(80) + shift) % 4 < 2 for shift in range(4)]).T
    found = readers.detection(called, generated)
    assert {each["accuracy"].value for each in found.readers} == {0.5}
    value, (low, high) = found.overall["d_prime"]
    assert value == pytest.approx(0)
    assert low < -0.2
    assert high > 0.2


def test_more_readers_and_more_images_narrow_the_interval():
    def width(**how):
        answers = simulated(np.random.default_rng(1), d=1.0, between=0.3, items=0.5, **how)
        low, high = readers.detection(*answers).overall["d_prime"].ci95
        return high - low

    assert width(images=200, count=12) < width(images=50, count=12) < width(images=50, count=3)


def test_a_preference_moves_the_criterion_and_not_d_prime():
    shy, generated = simulated(np.random.default_rng(2), d=1.5, images=2000, criterion=0.5)
    bold, _ = simulated(np.random.default_rng(2), d=1.5, images=2000, criterion=-0.5)
    both = readers.detection(np.concatenate([shy, bold], axis=1), generated).readers
    assert both[0]["criterion"].value == pytest.approx(0.5, abs=0.1)  # prefers "real"
    assert both[1]["criterion"].value == pytest.approx(-0.5, abs=0.1)
    assert both[0]["d_prime"].value == pytest.approx(both[1]["d_prime"].value, abs=0.2)


def test_what_holds_for_these_readers_is_known_better_than_what_holds_for_others():
    """And it is what holds for them: images drawn anew leave their mean d' in the interval."""
    inside = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        own = np.array([0.0, 2.0])  # two readers who differ
        generated = np.arange(100) < 50
        seen = np.where(generated[:, None], own / 2, -own / 2) + rng.standard_normal((100, 2))
        found = readers.detection(seen > 0, generated, resamples=200, seed=seed)
        value, (low, high) = found.these["d_prime"]
        assert value == found.overall["d_prime"].value
        assert found.overall["d_prime"].ci95[0] < low < high < found.overall["d_prime"].ci95[1]
        inside += low <= own.mean() <= high
    assert 90 <= inside <= 99


def test_the_same_seed_gives_the_same_intervals():
    answers = simulated(np.random.default_rng(3), d=1.0, images=20, count=3)
    once, again, other = (readers.detection(*answers, seed=seed) for seed in (1, 1, 2))
    assert once == again
    assert once.overall["d_prime"].ci95 != other.overall["d_prime"].ci95


@pytest.mark.parametrize(
    ("called", "generated"),
    [
        (np.zeros((4, 1)), np.zeros(3)),
        (np.zeros((4, 0)), np.array([1, 1, 0, 0])),
        (np.zeros((4, 1)), np.zeros(4)),
        (np.zeros(4), np.array([1, 1, 0, 0])),
    ],
)
def test_what_does_not_fit_is_refused(called, generated):
    with pytest.raises(ValueError, match="images"):
        readers.detection(called, generated)


def test_apportioning_keeps_the_total_and_the_proportions():
    assert readers.apportioned(np.array([100, 100, 100]), 50).tolist() == [17, 17, 16]
    assert readers.apportioned(np.array([1, 0, 3]), 4).tolist() == [1, 0, 3]
    rng = np.random.default_rng(0)
    for _ in range(50):
        counts = rng.integers(1, 20, 5)
        total = int(rng.integers(1, counts.sum() + 1))
        found = readers.apportioned(counts, total)
        assert found.sum() == total
        assert (found <= counts).all()
        assert (np.abs(found - total * counts / counts.sum()) < 1).all()


def test_unbiased_accuracy_is_that_of_signal_detection():
    assert readers.unbiased_accuracy(0.0) == 0.5
    assert readers.unbiased_accuracy(1.0) == pytest.approx(0.6915, abs=1e-4)
