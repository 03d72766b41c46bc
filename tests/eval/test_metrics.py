import importlib.util
import io
import json
import pathlib
import warnings

import numpy as np
import pandas
import pytest
from isic_challenge_scoring import load_csv
from isic_challenge_scoring import metrics as scorer
from sklearn import metrics as reference

from skin_jax.base.files import plain
from skin_jax.data.classes import HAM10000, Classes
from skin_jax.eval import metrics, tables


def load_benchmark(name):
    path = pathlib.Path(__file__).parents[2] / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


interval_coverage = load_benchmark("interval_coverage")
CLASSES, NUM_CLASSES = HAM10000.names, len(HAM10000)


TOP_LEVEL = {
    "split",
    "num_examples",
    "step",
    "classes",
    "balanced_accuracy",
    "accuracy",
    "macro",
    "per_class",
    "confusion_matrix",
    "ece",
    "ci95",
}


def scores_of(predicted):
    return np.eye(NUM_CLASSES)[np.asarray(predicted)]


def draw(kind, seed=0, n=300):
    """Probabilities and labels of one awkward kind."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, NUM_CLASSES, n)
    if kind == "class missing":
        labels[labels == 3] = 5
    probabilities = rng.dirichlet(np.ones(NUM_CLASSES), n)
    probabilities[np.arange(n), labels] += 0.3
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    if kind == "tied between images":
        # Whole tenths make many equal scores in a column; the small ramp leaves no row a tie.
        probabilities = np.round(probabilities, 1)
        probabilities = probabilities * 0.99 + np.arange(NUM_CLASSES) * 1e-4
    if kind == "tied maximum":
        probabilities = np.round(probabilities, 1)
    return probabilities, labels


class Official:
    """What the challenge's scorer says of a pair of CSVs.

    Its parts are called one by one: as a whole it cannot score a truth that lacks a class.
    """

    def __init__(self, folder):
        self._truth, weights = load_csv.parse_truth_csv(io.StringIO((folder / "t.csv").read_text()))
        text = io.StringIO((folder / "p.csv").read_text())
        self._predictions = load_csv.parse_csv(text, self._truth.columns)
        load_csv.validate_rows(self._truth, self._predictions)
        load_csv.sort_rows(self._truth)
        load_csv.sort_rows(self._predictions)
        self._weights = weights.score_weight

    @property
    def balanced_accuracy(self):
        return scorer.balanced_multiclass_accuracy(self._truth, self._predictions, self._weights)

    def of(self, function, name):
        column = name.upper()
        return function(self._truth[column], self._predictions[column], self._weights)


@pytest.fixture
def official(tmp_path, monkeypatch):
    """The scorer on CSVs of the given arrays, the truth's rows in the given order."""
    # 5.6 uses a method that pandas 3 knows by its new name only.
    if not hasattr(pandas.DataFrame, "applymap"):
        monkeypatch.setattr(pandas.DataFrame, "applymap", pandas.DataFrame.map, raising=False)

    def score(probabilities, labels, order):
        ids = [f"ISIC_{i:07d}" for i in range(len(labels))]
        truth = scores_of(labels)[order]
        tables.write_predictions(tmp_path / "p.csv", ids, probabilities, HAM10000)
        tables.write_predictions(tmp_path / "t.csv", [ids[i] for i in order], truth, HAM10000)
        return Official(tmp_path)

    return score


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of pandas, about the scorer
@pytest.mark.parametrize("kind", ["random", "class missing", "tied between images", "tied maximum"])
@pytest.mark.parametrize("seed", range(3))
def test_equals_the_official_scorer_and_scikit_learn_on_the_same_csvs(
    tmp_path, official, kind, seed
):
    probabilities, labels = draw(kind, seed)
    order = np.random.default_rng(seed).permutation(len(labels))
    theirs = official(probabilities, labels, order)
    found, truth = tables.join(tmp_path / "p.csv", tmp_path / "t.csv", HAM10000)
    ours = metrics.evaluate(found.probabilities, truth.labels, resamples=0)
    if kind == "tied maximum":
        assert ours.tied > 0
    else:
        assert ours.tied == 0
        assert ours.balanced_accuracy == pytest.approx(theirs.balanced_accuracy, abs=1e-9)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "y_pred contains classes not in y_true")
            expected = reference.balanced_accuracy_score(labels, probabilities.argmax(axis=1))
        assert ours.balanced_accuracy == pytest.approx(expected, abs=1e-9)
    for i, name in enumerate(CLASSES):
        if not (labels == i).any():
            assert np.isnan([ours.auc[i], ours.average_precision[i], ours.recall[i]]).all()
            continue
        assert ours.auc[i] == pytest.approx(theirs.of(scorer.auc, name), abs=1e-9)
        precision = theirs.of(scorer.average_precision, name)
        assert ours.average_precision[i] == pytest.approx(precision, abs=1e-9)
        area = reference.roc_auc_score(labels == i, probabilities[:, i])
        assert ours.auc[i] == pytest.approx(area, abs=1e-9)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of pandas, about the scorer
def test_a_tied_maximum_is_the_whole_difference_from_the_official_scorer(official):
    probabilities, labels = draw("tied maximum")
    theirs = official(probabilities, labels, np.arange(len(labels)))
    ours = metrics.evaluate(probabilities, labels, resamples=0)
    tied = (probabilities == probabilities.max(axis=1, keepdims=True)).sum(axis=1) > 1
    wrong_label = (labels + 1) % NUM_CLASSES
    predicted = np.where(tied, wrong_label, probabilities.argmax(axis=1))
    counted_wrong = metrics.evaluate(scores_of(predicted), labels, resamples=0)
    assert ours.tied == tied.sum()
    assert counted_wrong.balanced_accuracy == pytest.approx(theirs.balanced_accuracy, abs=1e-9)
    assert ours.balanced_accuracy > theirs.balanced_accuracy


def test_values_by_hand():
    # True mel: said mel, mel, nv. True nv: said nv, nv, mel, nv. True df: said nv.
    labels = np.array([4, 4, 4, 5, 5, 5, 5, 3])
    m = metrics.evaluate(scores_of([4, 4, 5, 5, 5, 5, 4, 5]), labels, resamples=0)
    mel, nv, df, vasc = 4, 5, 3, 6
    assert m.accuracy == 5 / 8
    assert m.balanced_accuracy == pytest.approx((2 / 3 + 3 / 4 + 0) / 3)
    assert (m.precision[mel], m.recall[mel]) == pytest.approx((2 / 3, 2 / 3))
    assert (m.precision[nv], m.recall[nv], m.f1[nv]) == pytest.approx((3 / 5, 3 / 4, 2 / 3))
    assert (m.specificity[mel], m.specificity[nv]) == pytest.approx((4 / 5, 2 / 4))
    assert m.specificity[vasc] == 1.0
    assert m.support.tolist() == [0, 0, 0, 1, 3, 4, 0]
    # df is never predicted: no precision; its F1 = 2TP / (2TP + FP + FN) is 0, not undefined.
    assert np.isnan(m.precision[df])
    assert (m.recall[df], m.f1[df]) == (0.0, 0.0)
    assert np.isnan([m.recall[vasc], m.f1[vasc], m.precision[vasc], m.auc[vasc]]).all()
    assert m.macro["precision"] == pytest.approx((2 / 3 + 3 / 5) / 2)
    assert m.macro["f1"] == pytest.approx((2 / 3 + 2 / 3 + 0) / 3)


def test_auc_and_average_precision_by_hand():
    scores = np.zeros((4, NUM_CLASSES))
    scores[:, 4] = [0.9, 0.5, 0.5, 0.1]
    labels = np.array([4, 4, 5, 5])
    m = metrics.evaluate(scores, labels, resamples=0)
    assert m.auc[4] == (1 + 1 + 0.5 + 1) / 4
    assert m.average_precision[4] == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert m.auc[5] == 0.5  # every image has the same score
    assert metrics.macro_auc(scores, labels) == pytest.approx((m.auc[4] + m.auc[5]) / 2)


def test_calibration_error_by_hand():
    scores = np.zeros((4, NUM_CLASSES))
    scores[:, 0] = [0.95, 0.96, 0.97, 0.62]
    scores[:, 1] = [0.05, 0.04, 0.03, 0.38]
    m = metrics.evaluate(scores, np.array([0, 0, 1, 0]), resamples=0)
    assert m.ece == pytest.approx((abs(2 - (0.95 + 0.96 + 0.97)) + abs(1 - 0.62)) / 4)
    assert metrics.evaluate(scores_of([2, 3]), np.array([2, 3]), resamples=0).ece == 0


def test_identities():
    probabilities, labels = draw("random", 5)
    m = metrics.evaluate(probabilities, labels, resamples=0)
    assert m.balanced_accuracy == pytest.approx(np.mean(m.recall), abs=1e-12)
    assert m.confusion.sum() == m.num_examples == len(labels)
    assert (m.confusion.sum(axis=1) == np.bincount(labels)).all()
    assert m.accuracy == pytest.approx((m.recall * m.support).sum() / m.num_examples)
    assert m.f1 == pytest.approx(2 * m.precision * m.recall / (m.precision + m.recall))
    assert m.macro["auc"] == pytest.approx(metrics.macro_auc(probabilities, labels))
    assert m.balanced_accuracy == metrics.balanced_accuracy(probabilities, labels)
    names = ("precision", "recall", "f1")
    expected = reference.precision_recall_fscore_support(labels, probabilities.argmax(axis=1))
    for name, values in zip(names, expected, strict=False):
        assert getattr(m, name) == pytest.approx(values, abs=1e-12)


def test_renaming_the_classes_permutes_the_per_class_values_and_leaves_the_rest():
    probabilities, labels = draw("random", 6)
    new_name = np.array([3, 0, 6, 1, 5, 2, 4])
    renamed = np.empty_like(probabilities)
    renamed[:, new_name] = probabilities
    before = metrics.evaluate(probabilities, labels, resamples=0)
    after = metrics.evaluate(renamed, new_name[labels], resamples=0)
    for name in ("precision", "recall", "f1", "specificity", "auc", "average_precision"):
        assert getattr(after, name)[new_name] == pytest.approx(getattr(before, name), abs=1e-12)
    assert (after.confusion[np.ix_(new_name, new_name)] == before.confusion).all()
    for name in ("balanced_accuracy", "accuracy", "ece"):
        assert getattr(after, name) == pytest.approx(getattr(before, name), abs=1e-12)


def test_the_order_of_the_examples_does_not_matter():
    probabilities, labels = draw("random", 7)
    lesions = [f"l{i // 2}-{c}" for i, c in enumerate(labels)]
    order = np.random.default_rng(1).permutation(len(labels))
    before = metrics.evaluate(probabilities, labels, lesions)
    after = metrics.evaluate(probabilities[order], labels[order], [lesions[i] for i in order])
    assert after.ci95 == before.ci95
    assert after.balanced_accuracy == before.balanced_accuracy


def test_json_has_the_agreed_keys_and_null_for_undefined():
    labels = np.array([4, 4, 5, 5])
    m = metrics.evaluate(scores_of([4, 5, 5, 5]), labels)
    found = plain(m.to_json(HAM10000, split="test", step=7))
    assert set(found) == TOP_LEVEL
    assert (found["split"], found["step"], found["num_examples"]) == ("test", 7, 4)
    assert found["classes"] == list(CLASSES)
    assert set(found["macro"]) == {"precision", "recall", "f1", "auc", "average_precision"}
    assert set(found["ci95"]) == {"balanced_accuracy", "accuracy", "macro_f1"}
    assert found["per_class"]["df"] == {
        "precision": None,
        "recall": None,
        "f1": None,
        "specificity": 1.0,
        "auc": None,
        "average_precision": None,
        "support": 0,
    }
    assert found["confusion_matrix"][4][4:6] == [1, 1]
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    without = metrics.evaluate(scores_of([4]), np.array([4]), resamples=0).to_json(HAM10000)
    assert plain(without["ci95"]["accuracy"]) == [None, None]


@pytest.mark.parametrize(
    ("probabilities", "labels", "message"),
    [
        (np.ones(2), np.array([0, 1]), "do not fit"),
        (np.ones((2, 1)), np.array([0, 0]), "at least two"),
        (np.ones((2, 7)), np.array([0]), "do not fit"),
        (np.ones((0, 7)), np.array([], int), "no examples"),
        (np.full((1, 7), np.nan), np.array([0]), "not all finite"),
        (np.ones((1, 7)), np.array([7]), "must be in"),
        (np.ones((1, 7)), np.array([-1]), "must be in"),
        (np.ones((1, 7)), np.array([0.0]), "integers"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(probabilities, labels, message):
    with pytest.raises(ValueError, match=message):
        metrics.evaluate(probabilities, labels)
    with pytest.raises(ValueError, match=message):
        metrics.macro_auc(probabilities, labels)


def test_lesion_ids_must_fit():
    with pytest.raises(ValueError, match="3 lesion ids for 2 labels"):
        metrics.evaluate(scores_of([0, 1]), np.array([0, 1]), ["a", "b", "c"])


def test_intervals_are_seeded_and_hold_the_estimate():
    probabilities, labels = draw("random", 8)
    m = metrics.evaluate(probabilities, labels, seed=3)
    assert m.ci95 == metrics.evaluate(probabilities, labels, seed=3).ci95
    assert m.ci95 != metrics.evaluate(probabilities, labels, seed=4).ci95
    estimates = {
        "balanced_accuracy": m.balanced_accuracy,
        "accuracy": m.accuracy,
        "macro_f1": m.macro["f1"],
    }
    for name, value in estimates.items():
        low, high = m.ci95[name]
        assert 0 <= low < value < high <= 1
    for value, (low, high) in zip(m.recall, m.recall_ci95, strict=True):
        assert 0 <= low <= value <= high <= 1


def test_images_of_one_lesion_do_not_count_as_independent():
    rng = np.random.default_rng(0)
    lesion_labels = np.repeat(np.arange(NUM_CLASSES), 30)
    right = rng.random(len(lesion_labels)) < 0.7
    predicted = np.where(right, lesion_labels, (lesion_labels + 1) % NUM_CLASSES)
    ids = [f"l{i}" for i in range(len(lesion_labels))]
    once = metrics.evaluate(scores_of(predicted), lesion_labels, ids)
    four = metrics.evaluate(
        scores_of(np.repeat(predicted, 4)), np.repeat(lesion_labels, 4), np.repeat(ids, 4).tolist()
    )
    alone = metrics.evaluate(scores_of(np.repeat(predicted, 4)), np.repeat(lesion_labels, 4))
    for name, interval in once.ci95.items():
        assert four.ci95[name] == pytest.approx(interval)
    assert np.ptp(alone.ci95["balanced_accuracy"]) == pytest.approx(
        np.ptp(once.ci95["balanced_accuracy"]) / 2, rel=0.15
    )
    assert (four.lesions == once.lesions).all()
    assert (four.lesions_known, alone.lesions_known) == (True, False)


def test_a_class_that_is_all_right_is_not_known_exactly():
    labels = np.repeat(np.arange(NUM_CLASSES), 12)
    m = metrics.evaluate(scores_of(labels), labels)
    assert m.balanced_accuracy == 1
    low, high = m.ci95["balanced_accuracy"]
    assert 0.9 < low < 0.99
    assert high == 1
    assert all(0.6 < low < 0.95 for low, _ in m.recall_ci95)


def test_one_lesion_says_nothing_about_a_recall():
    m = metrics.evaluate(scores_of([4]), np.array([4]))
    assert m.recall_ci95[4][0] < 0.05
    assert m.recall_ci95[4][1] == 1
    assert np.isnan(m.recall_ci95[0]).all()


def test_the_interval_of_balanced_accuracy_covers():
    held, plain, _ = interval_coverage.coverage(
        interval_coverage.LESIONS["a very small set"],
        interval_coverage.RECALLS["middle"],
        correlation=0.5,
        repetitions=100,
    )
    assert 0.90 <= held.mean() <= 0.99
    assert plain.mean() <= held.mean()


def test_simulated_recall_is_the_one_asked_for():
    rng = np.random.default_rng(0)
    recalls = interval_coverage.RECALLS["middle"]
    probabilities, labels, ids = interval_coverage.simulate(rng, (4000,) * 7, recalls, 0.5)
    m = metrics.evaluate(probabilities, labels, resamples=0)
    assert m.recall == pytest.approx(recalls, abs=0.03)
    assert set(np.bincount(ids)) == {1, 2, 3, 4, 5, 6}


def test_sensitivity_takes_its_threshold_from_val():
    val_scores = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.99])
    val_labels = np.array([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1])
    test_scores = np.array([0.87, 0.86, 0.85, 0.2, 0.95, 0.1])
    test_labels = np.array([1, 1, 1, 1, 0, 0])
    val, test = (val_scores, val_labels), (test_scores, test_labels)
    point = metrics.sensitivity_at_specificity(val, test, 0.9)
    assert point.threshold == 0.85
    assert (point.sensitivity, point.specificity) == (0.5, 0.5)
    on_val = metrics.sensitivity_at_specificity(val, val, 0.9)
    assert (on_val.sensitivity, on_val.specificity) == (1.0, 0.9)


def test_the_wished_specificity_is_reached_with_no_stricter_threshold_than_needed():
    for negatives in range(1, 121):
        scores = np.arange(negatives + 1) / 1000
        labels = np.arange(negatives + 1) == negatives
        point = metrics.sensitivity_at_specificity((scores, labels), (scores, labels), 0.95)
        assert 0.95 - 1e-9 <= point.specificity < 0.95 + 1 / negatives - 1e-9


def test_sensitivity_without_negatives_or_positives_is_undefined():
    none, some = np.array([False, False]), np.array([True, True])
    scores = np.array([0.2, 0.4])
    empty, full = (scores, none), (scores, some)
    assert np.isnan(metrics.sensitivity_at_specificity(full, empty, 0.9).threshold)
    point = metrics.sensitivity_at_specificity(empty, empty, 0.9)
    assert np.isnan(point.sensitivity)
    assert point.specificity == 1
    with pytest.raises(ValueError, match="specificity"):
        metrics.sensitivity_at_specificity(full, empty, 1.1)


def test_subgroups_hold_each_example_once_and_flag_few_lesions():
    probabilities, labels = draw("random", 9)
    lesions = [f"l{i // 2}-{c}" for i, c in enumerate(labels)]
    sex = np.where(np.arange(len(labels)) < 15, "male", "female")
    groups = metrics.subgroups(
        probabilities, labels, lesions, {"sex": sex, "site": ["back"] * len(labels)}, resamples=50
    )
    assert [(g.attribute, g.value, g.few) for g in groups] == [
        ("sex", "female", False),
        ("sex", "male", True),
        ("site", "back", False),
    ]
    assert groups[0].metrics.num_examples + groups[1].metrics.num_examples == len(labels)
    alone = metrics.evaluate(probabilities[:15], labels[:15], lesions[:15], resamples=50)
    assert groups[1].metrics.ci95 == alone.ci95
    assert groups[1].num_lesions == len(set(lesions[:15]))
    with pytest.raises(ValueError, match="1 values of sex"):
        metrics.subgroups(probabilities, labels, lesions, {"sex": ["male"]})


@pytest.mark.parametrize(
    ("age", "band"),
    [
        (0, "0-29"),
        (29.9, "0-29"),
        (30, "30-44"),
        (74, "60-74"),
        (75, "75+"),
        (None, "unknown"),
        (float("nan"), "unknown"),
    ],
)
def test_age_bands(age, band):
    assert metrics.age_band(age) == band


def test_confident_mistakes_are_the_wrong_ones_by_falling_score():
    scores = scores_of([0, 1, 2, 3]) * np.array([[0.9], [0.8], [0.95], [0.7]])
    found = metrics.confident_mistakes(scores, np.array([0, 0, 0, 0]), 2)
    assert found.tolist() == [2, 1]
    assert metrics.confident_mistakes(scores, np.array([0, 1, 2, 3]), 2).tolist() == []


def test_the_interval_of_macro_f1_is_over_the_same_classes_in_every_resample():
    labels = np.repeat([0, 1, 2], 60)
    predicted = labels.copy()
    predicted[::10] = (labels[::10] + 1) % 3
    predicted[5] = 6  # one call of a class without examples: its F1 is 0 in the mean
    found = metrics.evaluate(np.eye(7)[predicted] * 0.9 + 0.1 / 7, labels)
    low, high = found.ci95["macro_f1"]
    assert low < found.macro["f1"] < high
    assert high - low < 0.12


@pytest.mark.parametrize("num_classes", [2, 3, 8, 25])
def test_any_number_of_classes(num_classes):
    """The same values as seven, of which the others are never there and never said."""
    rng = np.random.default_rng(num_classes)
    labels = rng.permutation(np.arange(60 * num_classes) % num_classes)
    probabilities = rng.dirichlet(np.ones(num_classes), len(labels))
    probabilities[np.arange(len(labels)), labels] += 0.2
    classes = Classes.of([f"c{i}" for i in range(num_classes)])
    m = metrics.evaluate(probabilities, labels, resamples=200)
    predicted = probabilities.argmax(axis=1)
    expected = reference.balanced_accuracy_score(labels, predicted)
    assert m.balanced_accuracy == pytest.approx(expected)
    assert (m.confusion == reference.confusion_matrix(labels, predicted)).all()
    for low, high in (*m.ci95.values(), *m.recall_ci95):
        assert 0 < high - low < 0.5
    assert len(m.recall_ci95) == len(m.curves) == num_classes
    found = plain(m.to_json(classes))
    assert list(found["per_class"]) == found["classes"] == list(classes.names)
    absent = np.pad(probabilities, ((0, 0), (0, 2)))
    wider = metrics.evaluate(absent, labels, resamples=0)
    assert wider.balanced_accuracy == m.balanced_accuracy
    assert wider.macro == pytest.approx(m.macro, nan_ok=True)


@pytest.mark.parametrize("kind", ["random", "class missing", "tied between images"])
def test_curves_are_those_of_scikit_learn(kind):
    probabilities, labels = draw(kind)
    m = metrics.evaluate(probabilities, labels, resamples=0)
    for c, curve in enumerate(m.curves):
        if not (labels == c).any():
            assert np.isnan(curve.recall).all()
            continue
        fall_out, hits, _ = reference.roc_curve(
            labels == c, probabilities[:, c], drop_intermediate=False
        )
        np.testing.assert_allclose(curve.false_positive_rate, fall_out)
        np.testing.assert_allclose(curve.recall, hits)
        precision, recall, _ = reference.precision_recall_curve(labels == c, probabilities[:, c])
        np.testing.assert_allclose(curve.precision, precision[::-1])
        np.testing.assert_allclose(curve.recall, recall[::-1])
        area = reference.average_precision_score(labels == c, probabilities[:, c])
        assert m.average_precision[c] == area  # metrics.json of before, to the last bit


def test_bins_of_confidence_hold_every_image_once_0_and_1_too():
    probabilities = np.stack([np.zeros(NUM_CLASSES), *np.eye(NUM_CLASSES)[[0, 0, 1]]])
    found = metrics.evaluate(probabilities, np.array([0, 0, 1, 1]), resamples=0).reliability
    assert found.counts.tolist() == [1, *[0] * 13, 3]
    assert (found.confidence[[0, -1]].tolist(), found.hit_rate[0]) == ([0, 1], 1)
    assert found.hit_rate[-1] == pytest.approx(2 / 3)
    assert np.isnan(found.hit_rate[1:-1]).all()


def test_log_loss_is_a_mean_over_classes():
    probabilities = np.array([[0.5, 0.5, 0.0], [0.25, 0.75, 0.0], [0.9, 0.1, 0.0]])
    found = metrics.log_loss(probabilities, np.array([0, 0, 1]))
    assert found == pytest.approx((np.mean([-np.log(0.5), -np.log(0.25)]) - np.log(0.1)) / 2)
    assert np.isfinite(metrics.log_loss(probabilities, np.array([2, 2, 2])))


def test_risk_falls_with_coverage_where_the_score_knows_its_errors():
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3], [0.4, 0.6]])
    found = metrics.evaluate(probabilities, np.array([0, 1, 1, 1]), resamples=0).risk_coverage
    # From the surest: right, right, wrong, right.
    np.testing.assert_allclose(found.coverage, [0.25, 0.5, 0.75, 1.0])
    np.testing.assert_allclose(found.risk, [0, 0, 1 / 3, 1 / 4])
    assert found.area == pytest.approx((1 / 3 + 1 / 4) / 4)
    assert [found.at(share) for share in (0.01, 0.5, 0.51, 1.0)] == [0, 0, 1 / 3, 1 / 4]


def test_the_interval_of_a_sensitivity_is_that_of_a_recall():
    rng = np.random.default_rng(0)
    positive = rng.random(300) < 0.3
    scores = rng.normal(size=300) + 1.5 * positive
    lesions = [f"{i // 2}" for i in range(300)]
    found = metrics.sensitivity_at_specificity((scores, positive), (scores, positive), 0.9, lesions)
    called = scores > found.threshold
    two = np.stack([~called, called], axis=1).astype(float)
    recall = metrics.evaluate(two, positive.astype(int), lesions)
    assert found.sensitivity == recall.recall[1]
    np.testing.assert_allclose(found.sensitivity_ci95, recall.recall_ci95[1], atol=0.02)
    nobody = metrics.sensitivity_at_specificity(
        (scores, positive), (scores[~positive], positive[~positive]), 0.9
    )
    assert np.isnan(nobody.sensitivity_ci95).all()
