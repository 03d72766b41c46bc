import dataclasses
import importlib.util
import pathlib

import numpy as np
import pytest
from scipy import stats

from skin_jax.eval import comparison, metrics


def load_benchmark(name):
    path = pathlib.Path(__file__).parents[2] / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


error_rates = load_benchmark("study_error_rates")

FOLDS = 3
NUM_CLASSES = 7
COUNTS = (8, 8, 10, 6, 10, 20, 6)


def study(arms, folds=FOLDS, seeds=2, counts=COUNTS, absent=()):
    """Outcomes of arms by their share of right images; `absent`: (fold, class) without images."""
    rng = np.random.default_rng(0)
    found = []
    for fold in range(folds):
        labels = np.repeat(np.arange(NUM_CLASSES), counts)
        labels = labels[[(fold, c) not in absent for c in labels]]
        lesions = [f"l{fold}-{c}-{i // 2}" for i, c in enumerate(labels)]
        for arm, share in arms.items():
            for seed in range(seeds):
                right = rng.random(len(labels)) < share
                predicted = np.where(right, labels, (labels + 1) % NUM_CLASSES)
                scores = rng.dirichlet(np.ones(NUM_CLASSES), len(labels)) / 2
                scores[np.arange(len(labels)), predicted] += 0.5
                ids = [f"i{fold}-{i}" for i in range(len(labels))]
                found.append(comparison.Outcome(arm, fold, seed, ids, lesions, labels, scores))
    return found


def compare(outcomes, **options):
    return comparison.compare(outcomes, **{"control": "plain", "resamples": 199} | options)


def pooled_recall(outcomes, arm):
    """From the definition: hits of a class over all folds, a mean over seeds, by its images."""
    hits, images = np.zeros(NUM_CLASSES), np.zeros(NUM_CLASSES)
    own = [o for o in outcomes if o.arm == arm]
    for o in own:
        runs = sum(other.fold == o.fold for other in own)
        right = o.probabilities.argmax(axis=1) == o.labels
        hits += np.bincount(o.labels, right / runs, NUM_CLASSES)
        images += np.bincount(o.labels, minlength=NUM_CLASSES) / runs
    return hits / images


def test_the_primary_estimates_are_pooled_over_folds_with_seeds_averaged():
    outcomes = study({"plain": 0.6, "gan": 0.7})
    del outcomes[-1]  # an unequal number of seeds
    found = compare(outcomes)
    plain, gan = found.arms
    for arm in found.arms:
        recall = pooled_recall(outcomes, arm.name)
        assert arm.recall == pytest.approx(recall)
        assert arm.balanced_accuracy == pytest.approx(recall.mean())
        assert arm.images.tolist() == [FOLDS * n for n in COUNTS]
        assert arm.lesions.sum() < arm.images.sum()
    paired = [o for o in outcomes if (o.fold, o.seed) != (2, 1)]
    (difference,) = found.differences
    expected = pooled_recall(paired, "gan") - pooled_recall(paired, "plain")
    assert difference.estimate.value == pytest.approx(expected.mean())
    assert difference.paired.recall == pytest.approx(expected)
    assert (len(plain.cells), len(gan.cells), len(difference.cells)) == (6, 5, 5)
    assert plain.by_seed.keys() == {0, 1}
    assert gan.by_seed.keys() == {0}
    assert np.mean(list(plain.by_seed.values())) == pytest.approx(plain.balanced_accuracy)


def test_runs_own_values_are_those_of_metrics():
    outcomes = study({"plain": 0.6, "gan": 0.7})
    found = compare(outcomes)
    for arm in found.arms:
        own = {(o.fold, o.seed): o for o in outcomes if o.arm == arm.name}
        for i, cell in enumerate(arm.cells):
            m = metrics.evaluate(own[cell].probabilities, own[cell].labels, resamples=0)
            values = (m.balanced_accuracy, m.accuracy, m.macro["f1"], m.macro["auc"])
            assert [arm.runs[name][i] for name in comparison.METRICS] == pytest.approx(values)
        assert arm.over_runs("accuracy").sd == pytest.approx(np.std(arm.runs["accuracy"], ddof=1))
    (d,) = found.differences
    plain, gan = (a.runs["balanced_accuracy"] for a in found.arms)
    assert d.cell_differences == pytest.approx(gan - plain)
    expected = (gan - plain).mean(), (gan - plain).std(ddof=1)
    assert d.over_cells == pytest.approx(expected)


def test_students_interval_is_that_of_scipy_on_fold_means():
    outcomes = study({"plain": 0.6, "gan": 0.7})
    (d,) = compare(outcomes).differences
    folds = d.cell_differences.reshape(FOLDS, 2).mean(axis=1)
    assert d.paired.fold_differences == pytest.approx(folds)
    # Every fold has the same counts here, so that the pooled difference is the mean of the folds'.
    reference = stats.ttest_1samp(folds, 0)
    assert d.estimate.student == pytest.approx(tuple(reference.confidence_interval()))
    assert d.estimate.student_p == pytest.approx(reference.pvalue)


def simple(gained, control=0.5, labels=None, folds=1, resamples=1999):
    n = len(gained)
    labels = np.arange(n) % NUM_CLASSES if labels is None else labels
    base = np.full(n, control)
    fold = np.arange(n) // NUM_CLASSES % folds
    arms = base + gained, base
    return comparison.paired_difference(
        labels, fold, np.ones(n), *arms, np.arange(n), num_classes=7, resamples=resamples
    )


def test_the_bootstraps_standard_error_is_that_of_paired_differences():
    gained = np.random.default_rng(0).normal(0, 0.1, 7 * 400)
    paired = simple(gained)
    # Two imagined lesions of half weight add 1 / (n + 1) to the mean square.
    squares = [(np.var(gained[c::7]) + 1 / 401) / 400 for c in range(7)]
    half = 1.96 * np.sqrt(np.sum(squares)) / 7
    assert np.ptp(paired.balanced_accuracy.bootstrap) / 2 == pytest.approx(half, rel=0.06)
    assert np.ptp(paired.accuracy.bootstrap) / 2 == pytest.approx(half, rel=0.06)


def test_arms_that_agree_on_every_lesion_are_not_known_to_be_equal_exactly():
    paired = simple(np.zeros(7 * 10), folds=5)
    estimate = paired.balanced_accuracy
    assert estimate.value == 0
    assert estimate.student == (0, 0)
    assert estimate.interval == estimate.bootstrap
    assert estimate.interval[0] < -0.01
    assert estimate.p == 1


@pytest.mark.parametrize("folds", [1, 5])
@pytest.mark.parametrize("seed", range(20))
def test_p_is_at_most_5_percent_exactly_where_the_interval_leaves_0_out(folds, seed):
    rng = np.random.default_rng(seed)
    gained = rng.normal(0.04, 0.2, 7 * 15)
    estimate = simple(gained, folds=folds, resamples=199).balanced_accuracy
    low, high = estimate.interval
    assert (low > 0 or high < 0) == (estimate.p <= 0.05)
    assert estimate.interval in (estimate.student, estimate.bootstrap)
    widths = [np.ptp(i) for i in (estimate.student, estimate.bootstrap) if not np.isnan(i[0])]
    assert high - low == pytest.approx(max(widths))
    assert (low + high) / 2 == pytest.approx(estimate.value)


def test_the_same_lesions_are_drawn_for_both_arms():
    outcomes = study({"plain": 0.6}, counts=(90,) * NUM_CLASSES)
    same = [dataclasses.replace(o, arm="gan") for o in outcomes]
    (d,) = compare(outcomes + same).differences
    arm = compare(outcomes).arms[0]
    assert d.estimate.value == 0
    assert np.ptp(d.estimate.interval) < np.ptp(arm.balanced_accuracy_ci95) / 2


def test_images_and_lesions_may_come_in_any_order():
    outcomes = study({"plain": 0.6, "gan": 0.7})
    rng = np.random.default_rng(1)
    mixed = []
    for o in outcomes:
        order = rng.permutation(len(o.labels))
        ids, lesions = (np.array(v)[order].tolist() for v in (o.image_ids, o.lesion_ids))
        mixed.append(
            dataclasses.replace(
                o,
                image_ids=ids,
                lesion_ids=lesions,
                labels=o.labels[order],
                probabilities=o.probabilities[order],
            )
        )
    expected, found = compare(outcomes), compare(mixed)
    assert found.differences[0].estimate == expected.differences[0].estimate
    assert found.arms[0].recall.tolist() == expected.arms[0].recall.tolist()


def test_a_class_absent_from_a_fold_or_everywhere_is_undefined_not_zero():
    in_one = compare(study({"plain": 1.0, "gan": 1.0}, absent={(0, 3)}))
    assert in_one.arms[0].balanced_accuracy == 1
    assert in_one.arms[0].runs["balanced_accuracy"].tolist() == [1] * 6
    assert in_one.differences[0].estimate.value == 0
    everywhere = compare(study({"plain": 0.6, "gan": 0.8}, absent={(f, 3) for f in range(FOLDS)}))
    arm, difference = everywhere.arms[0], everywhere.differences[0]
    assert np.isnan(arm.recall).tolist() == [c == 3 for c in range(NUM_CLASSES)]
    assert np.isnan(arm.recall_ci95[3]).all()
    assert arm.balanced_accuracy == pytest.approx(np.nanmean(arm.recall))
    assert np.isnan(difference.paired.recall[3])
    assert np.isnan(difference.paired.recall_ci95[3]).all()
    assert np.isfinite(difference.estimate.interval).all()
    assert np.isfinite(difference.paired.accuracy.interval).all()


def test_one_fold_and_one_seed_are_told():
    one_fold = compare(study({"plain": 0.6, "gan": 0.9}, folds=1)).differences[0]
    assert np.isnan(one_fold.estimate.student).all()
    assert np.isnan(one_fold.estimate.student_p)
    assert one_fold.estimate.interval == one_fold.estimate.bootstrap
    assert one_fold.p == one_fold.estimate.bootstrap_p
    (note,) = one_fold.not_covered
    assert "One fold" in note
    one_seed = compare(study({"plain": 0.6, "gan": 0.9}, seeds=1))
    (note,) = one_seed.differences[0].not_covered
    assert "One seed" in note
    assert np.isfinite(one_seed.differences[0].estimate.student).all()
    assert one_seed.arms[0].by_seed.keys() == {0}
    assert compare(study({"plain": 0.6, "gan": 0.9})).differences[0].not_covered == ()


def test_the_confirmatory_arm_is_tested_alone_and_the_others_corrected():
    arms = {"gan": 0.7, "plain": 0.6, "x": 0.75, "y": 0.65}
    outcomes = study(arms)
    found = compare(outcomes, confirmatory="x")
    assert [a.name for a in found.arms] == ["plain", "x", "gan", "y"]
    assert [d.arm for d in found.differences] == ["x", "gan", "y"]
    assert [d.confirmatory for d in found.differences] == [True, False, False]
    x, *others = found.differences
    assert x.p == x.estimate.p
    assert [d.p for d in others] == comparison.holm([d.estimate.p for d in others])
    explored = compare(outcomes).differences
    assert [d.p for d in explored] == comparison.holm([d.estimate.p for d in explored])


def test_the_isolated_difference_is_that_of_the_two_arms_and_no_exploration():
    outcomes = study({"gan": 0.7, "plain": 0.6, "x": 0.75, "y": 0.65})
    found = compare(outcomes, confirmatory="x", isolating="y")
    isolated = found.isolated
    assert (isolated.arm, isolated.control, isolated.confirmatory) == ("x", "y", True)
    (alone, *_) = compare([o for o in outcomes if o.arm in "xy"], control="y").differences
    assert isolated.estimate == alone.estimate
    assert isolated.p == isolated.estimate.p
    without = compare(outcomes, confirmatory="x")
    assert without.isolated is None
    assert [d.p for d in found.differences] == [d.p for d in without.differences]
    assert compare(outcomes, confirmatory="x", isolating="none").isolated is None


def test_holm():
    # The example of Holm's procedure with four tests; equal values stay equal, none exceeds 1.
    assert comparison.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert comparison.holm([0.6, 0.4]) == pytest.approx([0.8, 0.8])
    assert comparison.holm([0.2]) == [0.2]
    assert comparison.holm([]) == []


def test_a_study_in_progress_compares_what_there_is():
    outcomes = study({"plain": 0.6, "gan": 0.7, "x": 0.7})
    without = [o for o in outcomes if o.arm == "gan" or (o.arm == "plain" and o.fold == 0)]
    partial = [o for o in without if o.arm == "plain" or o.fold > 0]
    assert compare(partial).differences == ()
    assert [d.cells for d in compare(without).differences] == [((0, 0), (0, 1))]
    no_control = compare([o for o in outcomes if o.arm != "plain"], confirmatory="gan")
    assert [a.name for a in no_control.arms] == ["gan", "x"]
    assert no_control.differences == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda o: [], "no outcomes"),
        (lambda o: [*o, o[0]], "plain, fold 0, seed 0: given twice"),
        (lambda o: [dataclasses.replace(o[0], labels=(o[0].labels + 1) % 7), *o[1:]], "other test"),
        (lambda o: [dataclasses.replace(o[0], labels=o[0].labels[1:]), *o[1:]], "differ in length"),
        (
            lambda o: [dataclasses.replace(o[0], image_ids=["a"] * len(o[0].labels)), *o[1:]],
            "repeat",
        ),
        (
            lambda o: [dataclasses.replace(o[0], lesion_ids=["a"] * len(o[0].labels)), *o[1:]],
            "other test images",
        ),
        (lambda o: [*o, dataclasses.replace(o[0], fold=9)], "is in folds 0 and 9"),
        (
            lambda o: [
                *o[1:],
                dataclasses.replace(
                    o[0], probabilities=np.pad(o[0].probabilities, ((0, 0), (0, 1)))
                ),
            ],
            "plain, fold 0, seed 0: other classes",
        ),
    ],
)
def test_outcomes_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        compare(change(study({"plain": 0.6, "gan": 0.7})))


def test_options_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="both the control and the confirmatory"):
        compare(study({"plain": 0.6}), confirmatory="plain")
    for chosen, isolating in ((None, "x"), ("gan", "gan"), ("gan", "plain")):
        with pytest.raises(ValueError, match="can only isolate what another"):
            compare(study({"plain": 0.6}), confirmatory=chosen, isolating=isolating)
    with pytest.raises(ValueError, match="at least 19"):
        compare(study({"plain": 0.6, "gan": 0.7}), resamples=10)
    with pytest.raises(ValueError, match="no test lesions"):
        comparison.paired_difference(*np.zeros((6, 0), int), num_classes=7)


def test_simulated_arms_are_like_real_ones():
    rng = np.random.default_rng(0)
    setting = dataclasses.replace(error_rates.SETTINGS[0], seeds=1)
    recalls = []
    for _ in range(40):
        labels, folds, images, arm, control, lesions = error_rates.simulate(rng, setting, 6.0)
        recalls.append([np.bincount(labels, a) / np.bincount(labels) for a in (arm, control)])
        assert set(folds) == set(range(5))
        assert images.sum() == sum(error_rates.IMAGES)
    gained = np.mean(recalls, axis=0)
    assert gained[1] == pytest.approx(error_rates.RECALLS, abs=0.03)
    assert 100 * (gained[0] - gained[1]).mean() == pytest.approx(6, abs=0.9)
    common = labels == 5
    assert len(set(lesions)) == len(lesions)
    assert 0.25 < np.corrcoef(arm[common], control[common])[0, 1] < 0.6


def test_of_100_studies_without_an_effect_at_most_7_find_one():
    found = error_rates.studies(error_rates.SETTINGS[0], 0.0, 100)
    assert found.interval.sum() <= 7
    # What the wider interval is there for: lesions alone take the runs as given.
    assert found.bootstrap.sum() > 7


def test_of_100_studies_with_6_points_at_least_80_find_them():
    found = error_rates.studies(error_rates.SETTINGS[0], 6.0, 100)
    assert found.interval.sum() >= 80
    assert found.held.mean() > 0.85


def subsets_study(count=4, **shares):
    """Arms on 60 lesions of two images a class, of which each subset tests another 50."""
    rng = np.random.default_rng(1)
    labels = np.tile(np.repeat(np.arange(3), 60), 2)
    lesions = np.tile([f"L{i}" for i in range(180)], 2)
    hardness = np.tile(rng.random(180), 2)
    outcomes = []
    for subset in range(count):
        tested = np.concatenate([60 * c + rng.permutation(60)[:50] for c in range(3)])
        at = np.concatenate([tested, tested + 180])
        ids = [f"i{i}" for i in at]
        for arm, share in shares.items():
            right = hardness[at] + rng.normal(0, 0.1, len(at)) < share
            scores = np.eye(3)[np.where(right, labels[at], (labels[at] + 1) % 3)]
            outcomes.append(
                comparison.Outcome(arm, subset, 0, ids, lesions[at], labels[at], scores)
            )
    return outcomes


def test_a_lesion_of_several_subsets_is_one_lesion():
    outcomes = subsets_study(plain=0.5, gan=0.6)
    with pytest.raises(ValueError, match="is in folds"):
        comparison.compare(outcomes, control="plain")
    found = comparison.compare(outcomes, control="plain", subsets=True)
    tested = len({lesion for one in outcomes for lesion in one.lesion_ids})
    assert found.arms[0].lesions.sum() == tested
    assert found.arms[0].images.sum() == 4 * 300
    (difference,) = found.differences
    own = [
        metrics.evaluate(one.probabilities, one.labels, resamples=0).balanced_accuracy
        for one in outcomes
    ]
    gained = np.subtract(own[1::2], own[::2])
    estimate = difference.estimate
    assert estimate.value == pytest.approx(gained.mean())  # as many of each class in every subset
    added = np.hypot(gained.std(ddof=1) / 2, 0)
    half = np.diff(estimate.interval)[0] / 2
    assert half > stats.t.ppf(0.975, 3) * added
    assert half > np.diff(estimate.student)[0] / 2
    assert (estimate.p <= 0.05) == (estimate.interval[0] > 0 or estimate.interval[1] < 0)


def test_more_subsets_do_not_make_the_lesions_more():
    few, many = (
        comparison.compare(subsets_study(n, plain=0.5, gan=0.6), control="plain", subsets=True)
        for n in (4, 32)
    )
    widths = [np.ptp(one.differences[0].estimate.bootstrap) for one in (few, many)]
    assert widths[1] > 0.75 * widths[0]  # of 8 times the lesions it would be a third


@pytest.mark.parametrize("effect", [0.0, 5.0])
def test_studies_of_6_subsets_err_rarely_and_find_5_points(effect):
    (setting,) = (one for one in error_rates.SETTINGS if one.name == "6 subsets")
    found = error_rates.studies(setting, effect, 100)
    assert found.interval.sum() <= 7 if effect == 0 else found.interval.sum() >= 70
    assert found.held.sum() >= 93


@pytest.mark.parametrize("num_classes", [2, 8])
def test_any_number_of_classes(num_classes):
    rng = np.random.default_rng(0)
    outcomes = []
    for fold in range(3):
        labels = np.repeat(np.arange(num_classes), 30)
        ids = [f"{fold}-{i}" for i in range(len(labels))]
        for arm, share in (("plain", 0.5), ("gan", 0.8)):
            right = rng.random(len(labels)) < share
            scores = np.eye(num_classes)[np.where(right, labels, (labels + 1) % num_classes)]
            outcomes.append(comparison.Outcome(arm, fold, 0, ids, ids, labels, scores))
    found = compare(outcomes)
    (difference,) = found.differences
    assert difference.shown
    assert len(difference.paired.recall) == len(difference.paired.recall_ci95) == num_classes
    recalls = [arm.recall for arm in found.arms]
    assert difference.estimate.value == pytest.approx(np.mean(recalls[1] - recalls[0]))
