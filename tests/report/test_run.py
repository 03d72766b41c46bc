import base64
import csv
import html.parser
import json
import re

import numpy as np
import pytest

from skin_jax.base.files import plain
from skin_jax.data.classes import BENIGN, HAM10000, MALIGNANT, Classes
from skin_jax.eval import metrics, tables
from skin_jax.eval.evaluation import Calibrated, Evaluation
from skin_jax.report import figures, kit
from skin_jax.report import run as run_report

CLASSES, NUM_CLASSES = HAM10000.names, len(HAM10000)


def results(n=210, absent=None):
    rng = np.random.default_rng(0)
    labels = np.arange(n) % NUM_CLASSES
    if absent is not None:
        labels = np.where(labels == absent, 5, labels)
    probabilities = rng.dirichlet(np.ones(NUM_CLASSES), n)
    probabilities[np.arange(n), labels] += 0.3
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    if absent is not None:
        probabilities[:, absent] = 0
    lesions = [f"l{i // 14}-{c}" for i, c in enumerate(labels)]
    return probabilities, labels, lesions


def evaluation(found=None, **extra):
    probabilities, labels, lesions = results()
    return Evaluation(
        classes=HAM10000,
        metrics=found or metrics.evaluate(probabilities, labels, lesions, resamples=50),
        image_ids=[f"ISIC_{i}" for i in range(len(labels))],
        labels=labels,
        probabilities=probabilities,
        split="test",
        step=40,
        **extra,
    )


def row_of(text, name):
    row = re.search(rf"^\| {re.escape(name)} .*$", text, re.M)[0]
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_table_one_shows_both_results_within_80_columns():
    e = evaluation()
    text = run_report.table_one(e)
    assert max(map(len, text.splitlines())) <= 80
    widths = [len(line) for line in text.split("\n\n")[0].splitlines()]
    assert len(widths) == 2 + NUM_CLASSES
    assert len(set(widths)) == 1
    m, mel = e.metrics, CLASSES.index("mel")
    expected = [f"{v[mel]:.3f}" for v in (m.precision, m.recall, m.f1)]
    assert row_of(text, "mel") == ["mel", *expected, "30", "15", "0.81", "0.79", "0.800"]
    low, high = m.ci95["balanced_accuracy"]
    assert row_of(text, "balanced accuracy")[1:] == [
        f"{m.balanced_accuracy:.3f}",
        f"{low:.3f} to {high:.3f}",
        "0.829 or 0.861",
    ]
    assert row_of(text, "mean F1")[3] == "0.834"
    assert "contradicts" in text
    assert "Chance: balanced accuracy 0.143 with 7 classes" in text
    assert "share a lesion" not in " ".join(text.split())


def test_the_papers_figures_agree_with_one_another():
    rows = run_report.PAPER_A["table_one"]
    assert tuple(rows) == CLASSES
    for precision, recall, f1 in rows.values():
        assert f1 == pytest.approx(2 * precision * recall / (precision + recall), abs=0.006)
    assert np.mean([f1 for _, _, f1 in rows.values()]) == pytest.approx(0.834, abs=0.001)


def test_notes_tell_of_shared_lesions_unknown_lesions_and_ties():
    probabilities, labels, _ = results()
    probabilities[3] = 0.25
    m = metrics.evaluate(probabilities, labels, resamples=0)
    e = evaluation(m, shared_with_train=42)
    text = " ".join(run_report.table_one(e).split())
    assert "42 of the 210 images evaluated (20.0%) share a lesion with the training set" in text
    assert "lesions are not known" in text
    assert "tied largest score: 1." in text
    assert row_of(run_report.table_one(e), "nv")[5] == "n/a"


def test_what_images_share_is_named_as_the_data_know_it():
    text = " ".join(run_report.table_one(evaluation(unit="patient", shared_with_train=0)).split())
    assert "| images | patients |" in text
    assert "0 of the 210 images evaluated (0.0%) share a patient with the training set" in text
    assert "Intervals resample patients within each class" in text


def test_undefined_is_not_applicable_and_explained():
    probabilities, labels, lesions = results(absent=3)
    m = metrics.evaluate(probabilities, labels, lesions, resamples=0)
    text = run_report.table_one(evaluation(m))
    assert row_of(text, "df")[1:5] == ["n/a", "n/a", "n/a", "0"]
    assert row_of(text, "accuracy")[2] == "n/a"
    assert "Means are over the classes where the value is defined" in " ".join(text.split())
    assert "nan" not in text
    assert "n/a:" not in run_report.table_one(evaluation())


def test_an_evaluation_is_written_as_agreed(tmp_path):
    points = {"melanoma": [metrics.OperatingPoint(0.9, 0.25, 0.6, 0.91, (0.4, 0.8))]}
    calibrated = Calibrated(1.5, (0.2, 0.1), (0.9, float("nan")))
    e = evaluation(operating_points=points, calibrated=calibrated)
    run_report.write_evaluation(tmp_path, e)
    found = json.loads((tmp_path / "metrics.json").read_text())
    assert found.pop("calibrated") == {
        "temperature": 1.5,
        "ece": [0.2, 0.1],
        "log_loss": [0.9, None],
    }
    (point,) = found.pop("operating_points")["melanoma"]
    assert (point["wished_specificity"], point["sensitivity"]) == (0.9, 0.6)
    assert found == plain(e.metrics.to_json(HAM10000, split="test", step=40))
    read = tables.read_predictions(tmp_path / "predictions.csv", HAM10000)
    assert read.image_ids == e.image_ids
    assert (read.probabilities == e.probabilities).all()
    text = (tmp_path / "report.md").read_text()
    assert text.startswith("# Evaluation on test\n")
    assert run_report.table_one(e) in text
    assert "## Table I on test" in text
    links = re.findall(r"!\[.*\]\((.*)\)", text)
    assert len(links) == 5
    assert all((tmp_path / link).is_file() for link in links)
    assert not (tmp_path / "subgroups.csv").exists()


def test_calibration_is_told_before_and_after_and_risk_by_coverage(tmp_path):
    calibrated = Calibrated(1.5, (0.12, 0.034), (0.9, 0.8))
    run_report.write_evaluation(tmp_path, evaluation(calibrated=calibrated))
    text = (tmp_path / "report.md").read_text()
    assert "temperature of 1.500 was fitted on the validation images" in " ".join(text.split())
    assert row_of(text, "expected calibration error (15 bins)")[1:] == ["0.120", "0.034"]
    assert row_of(text, "mean of -log p(true class)")[1:] == ["0.900", "0.800"]
    m = evaluation().metrics
    assert row_of(text, "100%")[1] == f"{1 - m.accuracy:.3f}"
    assert float(row_of(text, "50%")[1]) == pytest.approx(m.risk_coverage.at(0.5), abs=1e-3)


def test_subgroups_are_written_with_intervals_and_a_warning(tmp_path):
    probabilities, labels, lesions = results()
    sex = np.where(np.arange(len(labels)) < 14, "male", "female")
    groups = metrics.subgroups(probabilities, labels, lesions, {"sex": sex}, resamples=50)
    points = [metrics.OperatingPoint(0.9, 0.3, 0.75, 0.875, (0.6, 0.9))]
    e = evaluation(subgroups=groups, operating_points={"melanoma": points})
    run_report.write_evaluation(tmp_path, e)
    text = (tmp_path / "report.md").read_text()
    assert row_of(text, "sex: male")[1:3] == ["14", "7 (few)"]
    assert "which say little: sex male." in " ".join(text.split())
    assert row_of(text, "90%")[1:] == ["0.300", "0.750", "0.600 to 0.900", "0.875"]
    assert "Melanoma against the rest, the threshold chosen on validation images:" in text
    with (tmp_path / "subgroups.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [r["few_lesions"] for r in rows] == ["0", "1"]
    assert float(rows[0]["recall_mel"]) == groups[0].metrics.recall[4]
    assert float(rows[0]["balanced_accuracy_low"]) == groups[0].metrics.ci95["balanced_accuracy"][0]


def test_thresholds_that_print_alike_have_more_digits(tmp_path):
    points = [
        metrics.OperatingPoint(wished, threshold, 0.75, 0.875, (0.6, 0.9))
        for wished, threshold in ((0.9, 0.99991), (0.95, 0.99994))
    ]
    run_report.write_evaluation(tmp_path, evaluation(operating_points={"melanoma": points}))
    text = (tmp_path / "report.md").read_text()
    assert [row_of(text, row)[1] for row in ("90%", "95%")] == ["0.99991", "0.99994"]


class Page(html.parser.HTMLParser):
    """Checks that tags close in order; keeps sources and text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.sources, self.tags, self.text = [], [], [], ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [v for k, v in attrs if k in ("src", "href") and v[:1] != "#"]
        if tag not in ("img", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_the_run_report_is_one_file_with_every_part(tmp_path):
    probabilities, labels, _ = results()
    chosen = metrics.confident_mistakes(probabilities, labels, 8).tolist()
    pictures = np.zeros((len(chosen), 8, 8, 3), np.uint8)
    for step, color in ((9, 9), (10, 10)):
        figures.image_grid(tmp_path / "samples" / f"step_{step}.png", pictures + color, 4)
    sections = run_report.write_evaluation(
        tmp_path / "eval" / "test", evaluation(mistakes=chosen, mistake_images=pictures)
    )
    path = run_report.write_page(
        tmp_path,
        classes=HAM10000,
        title="A run <1>",
        facts={"config": "configs/demo.py", "seed": 0},
        sections=sections,
        class_counts={"train": np.arange(NUM_CLASSES)},
        history=[{"step": 1, "d_loss": 2.0}],
        samples=(pictures[:7], np.arange(7)),
        lead=[run_report.headline(evaluation()), "Made <today>."],
    )
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    # Confusion, ROC, precision-recall, reliability, risk, mistakes, histogram, samples, curves,
    # grid.
    assert page.tags.count("img") == 10
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    for source in page.sources:
        assert base64.b64decode(source.split(",")[1]).startswith(b"\x89PNG")
    last = base64.b64encode((tmp_path / "samples" / "step_10.png").read_bytes()).decode()
    assert f"data:image/png;base64,{last}" in page.sources
    assert "http" not in text
    assert 'name="viewport"' in text
    assert "A run <1>" in page.text
    first = page.text.index("95% intervals: balanced accuracy 0.")
    assert first < page.text.index("Made <today>.") < page.text.index("prec.")
    places = re.findall(r'<a href="#(s\d+)">', text)
    assert places == re.findall(r'<section id="(s\d+)">', text)
    assert len(places) == len(sections) + 4
    assert text.count("<details>") == 1  # the settings
    assert "configs/demo.py" in page.text
    assert "0.829 or 0.861" in page.text
    assert not re.search(r"\bnan\b", page.text)


def test_a_run_without_a_test_set_or_pictures_still_has_a_report(tmp_path):
    counts = {"train": np.arange(NUM_CLASSES)}
    path = run_report.write_page(
        tmp_path, classes=HAM10000, title="Run", facts={}, sections=[], class_counts=counts
    )
    assert Page(path.read_text()).tags.count("img") == 1


def test_a_picture_of_many_classes_has_the_width_of_the_page(tmp_path):
    for name, width in (("usual", 960), ("wide", 1500)):
        figures.image_grid(tmp_path / f"{name}.png", np.zeros((1, 8, width, 3), np.uint8), 1)
    pictures = [kit.Picture(tmp_path / f"{name}.png", name) for name in ("usual", "wide")]
    page = kit.html("t", [kit.Section("s", pictures)])
    assert re.findall(r'<figure( class=wide)?><img alt="(\w+)"', page) == [
        ("", "usual"),
        (" class=wide", "wide"),
    ]


def test_text_is_escaped_in_both_forms(tmp_path):
    sections = [
        kit.Section(
            "a & b",
            [kit.Text("x < y"), kit.Table(("k|", "v"), [("<i>", "1|2")])],
        )
    ]
    page = kit.html("t", sections)
    assert "<i>" not in page
    assert "x &lt; y" in page
    assert "| <i> | 1\\|2 |" in kit.markdown("t", sections, tmp_path)


OTHERS = {
    3: Classes(
        ("benign-nevus", "malignant", "other"),
        titles=("benign nevus", "anything malignant", "other"),
        groups=(BENIGN, MALIGNANT, BENIGN),
        focus="malignant",
        columns=("benign-nevus", "malignant", "other"),
    ),
    8: Classes.of(("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC")),
}


@pytest.mark.parametrize("classes", OTHERS.values(), ids=OTHERS)
def test_other_classes_are_reported_under_their_own_names_without_paper_a(tmp_path, classes):
    n, rng = len(classes), np.random.default_rng(0)
    labels = np.arange(20 * n) % n
    probabilities = rng.dirichlet(np.ones(n), len(labels))
    ids = [f"{classes.names[label]}/{i}" for i, label in enumerate(labels)]
    chosen = metrics.confident_mistakes(probabilities, labels, 5).tolist()
    e = Evaluation(
        classes=classes,
        metrics=metrics.evaluate(probabilities, labels, resamples=50),
        image_ids=ids,
        labels=labels,
        probabilities=probabilities,
        split="test",
        subgroups=metrics.subgroups(probabilities, labels, None, {"sex": ["f"] * len(labels)}),
        mistakes=chosen,
        mistake_images=np.zeros((len(chosen), 8, 8, 3), np.uint8),
    )
    sections = run_report.write_evaluation(tmp_path / "eval", e)
    history = [{"step": s} | {f"d_loss/{name}": 1.0 for name in classes.names} for s in range(3)]
    page = run_report.write_page(
        tmp_path,
        classes=classes,
        title="Run",
        facts={},
        sections=sections,
        class_counts={"train": np.arange(n), "test": np.arange(n)},
        history=[row | {"d_loss": 1.0} for row in history],
        samples=(np.zeros((2, 8, 8, 3), np.uint8), np.array([0, n - 1])),
    )
    text = (tmp_path / "eval" / "report.md").read_text()
    for trace in ("Table I", "paper A", "Rashid", "A prec", "against the rest, the threshold"):
        assert trace not in text + page.read_text()
    assert f"Chance: balanced accuracy {1 / n:.3f} with {n} classes present" in text
    assert row_of(text, "class")[1:] == ["prec.", "recall", "F1", "images", "lesions"]
    for label, name in enumerate(classes.names):
        assert row_of(text, name)[4] == "20"
        assert f"| {classes.titled(label)} " in text
    header = (tmp_path / "eval" / "predictions.csv").read_text().splitlines()[0]
    assert header == ",".join(["image", *classes.columns])
    header = (tmp_path / "eval" / "subgroups.csv").read_text().splitlines()[0]
    assert header.endswith(f"recall_{classes.names[-1]}_high")
    found = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    assert found["classes"] == list(found["per_class"]) == list(classes.names)
    assert (tmp_path / "figures" / "class_history.png").exists()


def test_the_page_of_a_run_goes_by_the_classes_titles(tmp_path):
    counts = {"train": np.array([5, 6, 7])}
    path = run_report.write_page(
        tmp_path, classes=OTHERS[3], title="Run", facts={}, sections=[], class_counts=counts
    )
    assert "malignant (anything malignant)" in path.read_text()
