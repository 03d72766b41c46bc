"""Results of a run for people: each class's figures, next to paper A's Table I where they compare.

`write_evaluation` writes what was measured on one set of examples, `write_page` the page of a run.
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from skin_jax.base import csvs
from skin_jax.base.files import plain, write_atomically, write_json
from skin_jax.data.classes import Classes
from skin_jax.eval.evaluation import Evaluation
from skin_jax.eval.metrics import FEW_LESIONS, Subgroup
from skin_jax.eval.tables import write_predictions
from skin_jax.report import figures, kit
from skin_jax.report.kit import Picture, Section, Table, Text, number, span

PAPER_A: dict[str, Any] = {
    "source": 'Rashid, Tanveer and Khan, "Skin Lesion Classification Using GAN based Data '
    'Augmentation", IEEE EMBC 2019, Tables I and II',
    # class: precision, recall, F1
    "table_one": {
        "akiec": (0.73, 0.69, 0.710),
        "bcc": (0.85, 0.90, 0.870),
        "bkl": (0.80, 0.81, 0.804),
        "df": (0.89, 0.74, 0.808),
        "mel": (0.81, 0.79, 0.800),
        "nv": (0.94, 0.95, 0.945),
        "vasc": (0.89, 0.92, 0.904),
    },
    "mean_f1": 0.834,
    "balanced_accuracy": {"semi-supervised GAN": 0.861, "DenseNet": 0.815, "ResNet-50": 0.792},
}

DEMO_NOTE = "These are procedural lesions: paper A's figures are no measure for them."
SAMPLES_PER_CLASS = 6
_COVERAGES = (0.5, 0.7, 0.8, 0.9, 1.0)

_CAPTIONS = {
    "confusion_matrix": "Images by true class (row) and predicted class (column), and their share "
    "of the row.",
    "roc": "ROC curve of each class against the rest.",
    "precision_recall": "Precision-recall curve of each class against the rest.",
    "reliability": "How often the predicted class is right, against how sure the model was.",
    "risk_coverage": "Share of wrong predictions among the images that the model is surest of, "
    "against how many of them it judges.",
    "class_histogram": "Images of each class.",
    "samples_per_class": "Images of each class, as the network sees them.",
    "history": "Losses and validation scores during training.",
    "class_history": "Each class's GAN: both losses, the discriminator's mean output on real and "
    "on generated images, the generator's score against the class's real images, and how far "
    "apart its images are (1: as far as real ones).",
}

_PAPER_MEAN_RECALL = f"{np.mean([recall for _, recall, _ in PAPER_A['table_one'].values()]):.3f}"
_PAPER_TABLE_TWO = f"{PAPER_A['balanced_accuracy']['semi-supervised GAN']:.3f}"


def table_one(evaluation: Evaluation) -> str:
    """Lays out each class's figures for a terminal or Markdown, 80 columns wide for short names.

    Paper A's Table I stands in the same table where the classes are those of paper A.
    """
    return "\n\n".join(kit.block_text(block) for block in _table_one_blocks(evaluation))


def headline(evaluation: Evaluation) -> str:
    """The figures that sum an evaluation up, in one paragraph."""
    metrics, where = evaluation.metrics, f" on {evaluation.split}" if evaluation.split else ""
    said = [
        f"{name} {number(value)} ({span(metrics.ci95[key])})"
        for name, key, value in (
            ("balanced accuracy", "balanced_accuracy", metrics.balanced_accuracy),
            ("accuracy", "accuracy", metrics.accuracy),
            ("mean F1", "macro_f1", metrics.macro["f1"]),
        )
    ]
    return (
        f"Of {metrics.num_examples} images{where}, with 95% intervals: {', '.join(said)}; "
        f"the checkpoint of step {evaluation.step}."
    )


def write_evaluation(folder: Path, evaluation: Evaluation) -> list[Section]:
    """Write metrics.json, predictions.csv, report.md and its figures, and subgroups.csv if any.

    Returns the sections of report.md, for `write_page`.

    Raises:
      UserError: the folder cannot be written.
      ValueError: arrays that do not fit one another.
    """
    classes, ids = evaluation.classes, evaluation.image_ids
    content = evaluation.metrics.to_json(classes, split=evaluation.split, step=evaluation.step)
    content["calibrated"] = evaluation.calibrated
    content["operating_points"] = evaluation.operating_points
    write_json(folder / "metrics.json", content)
    write_predictions(folder / "predictions.csv", ids, evaluation.probabilities, classes)
    if evaluation.subgroups:
        rows = _subgroup_rows(evaluation.subgroups, classes)
        write_atomically(folder / "subgroups.csv", csvs.text(rows))
    else:
        (folder / "subgroups.csv").unlink(missing_ok=True)  # of an earlier evaluation
    sections = _evaluation_sections(folder, evaluation)
    title = f"Evaluation on {evaluation.split}" if evaluation.split else "Evaluation"
    write_atomically(folder / "report.md", kit.markdown(title, sections, folder))
    return sections


def write_page(
    workdir: Path,
    *,
    classes: Classes,
    title: str,
    facts: Mapping[str, Any],
    sections: Sequence[Section],
    class_counts: Mapping[str, np.ndarray],
    history: Sequence[Mapping[str, Any]] = (),
    samples: tuple[np.ndarray, np.ndarray] | None = None,
    lead: Sequence[str] = (),
) -> Path:
    """Write `report.html`, one self-contained file; its figures of the run go into `figures/`.

    Args:
      workdir: of the run; the last picture in its `samples/` is shown, if any.
      classes, title, facts: of the run; facts are settings and numbers of steps, say.
      sections: such as those of `write_evaluation`; they come first.
      class_counts: name of a split -> int [C] images.
      history: rows of `history.read_history`.
      samples: images uint8 [N, H, W, 3] and labels int [N], a few of each class.
      lead: paragraphs that come first, such as `headline`.

    Raises:
      UserError: the folder cannot be written.
    """
    drawn = functools.partial(_drawn, workdir / "figures")
    data: list[kit.Block] = [
        kit.by_columns("class", map(classes.titled, range(len(classes))), *class_counts.items()),
        drawn("class_histogram", figures.class_histogram, class_counts, classes),
    ]
    if samples is not None:
        data.append(drawn("samples_per_class", figures.samples_per_class, *samples, classes))
    page = [*sections, Section("Data", data)]
    if history:
        training = [drawn("history", figures.history, history)]
        if any("/" in key for row in history for key in row):
            training.append(drawn("class_history", figures.class_history, history, classes))
        page.append(Section("Training", training))
    grids = sorted((workdir / "samples").glob("step_*.png"), key=lambda path: int(path.stem[5:]))
    for path in grids[-1:]:
        picture = Picture(path, "Real images before the bar, generated ones after it.")
        page.append(Section("Real and generated images", [picture]))
    page.append(Section("What was run", [kit.facts(facts)], folded=True))
    write_atomically(workdir / "report.html", kit.html(title, page, lead))
    return workdir / "report.html"


def _drawn(folder: Path, name: str, draw: Callable[..., None], *args: Any) -> Picture:
    path = folder / f"{name}.png"
    draw(path, *args)
    return Picture(path, _CAPTIONS[name])


def _table_one_blocks(evaluation: Evaluation) -> list[kit.Block]:
    metrics, classes = evaluation.metrics, evaluation.classes
    lesions = metrics.lesions if metrics.lesions_known else [kit.UNDEFINED] * len(classes)
    per_class: list[tuple[str, Iterable[object]]] = [
        ("prec.", map(number, metrics.precision)),
        ("recall", map(number, metrics.recall)),
        ("F1", map(number, metrics.f1)),
        ("images", metrics.support),
        (f"{evaluation.unit}s", lesions),
    ]
    values = (metrics.macro["f1"], metrics.balanced_accuracy, metrics.accuracy)
    intervals = (metrics.ci95[name] for name in ("macro_f1", "balanced_accuracy", "accuracy"))
    overall: list[tuple[str, Iterable[object]]] = [
        ("this run", map(number, values)),
        ("95% interval", map(span, intervals)),
    ]
    if classes.is_ham10000:
        theirs = [PAPER_A["table_one"][name] for name in classes.names]
        for i, (header, digits) in enumerate((("A prec", 2), ("A rec.", 2), ("A F1", 3))):
            per_class.append((header, [number(values[i], digits) for values in theirs]))
        recall = f"{_PAPER_MEAN_RECALL} or {_PAPER_TABLE_TWO}"
        overall.append(("paper A", (number(PAPER_A["mean_f1"]), recall, "not given")))
    names = ("mean F1", "balanced accuracy", "accuracy")
    return [
        kit.by_columns("class", classes.names, *per_class),
        kit.by_columns("overall", names, *overall),
        *map(Text, _notes(evaluation)),
    ]


def _notes(evaluation: Evaluation) -> list[str]:
    """Notes that are needed to read the table, one paragraph each."""
    metrics, classes = evaluation.metrics, evaluation.classes
    present = int((metrics.support > 0).sum())
    commonest = int(metrics.support.argmax())
    share = metrics.support[commonest] / metrics.num_examples
    notes = [
        f"Chance: balanced accuracy {1 / present:.3f} with {present} classes present; always "
        f"saying {classes.names[commonest]} has accuracy {share:.3f}."
    ]
    if classes.is_ham10000:
        notes.append(
            f"A: {PAPER_A['source']}. Its Table II gives a balanced accuracy of "
            f"{_PAPER_TABLE_TWO}, which contradicts its Table I: balanced accuracy is the mean "
            f"recall, and that is {_PAPER_MEAN_RECALL}. Its split is by image, so images of one "
            "lesion can be on both sides."
        )
    if (count := evaluation.shared_with_train) is not None:
        notes.append(
            f"{count} of the {metrics.num_examples} images evaluated "
            f"({count / metrics.num_examples:.1%}) share a {evaluation.unit} with the training set."
        )
    notes.append(
        f"Intervals resample {evaluation.unit}s within each class: they take the number of "
        f"{evaluation.unit}s of each class as given."
    )
    if not metrics.lesions_known:
        notes.append("The lesions are not known: intervals take each image as its own lesion.")
    if metrics.tied:
        notes.append(
            f"Images with a tied largest score: {metrics.tied}. The first class of the tie counts "
            "as predicted (the challenge's scorer counts such images as wrong)."
        )
    if any(np.isnan(getattr(metrics, name)).any() for name in ("precision", "recall", "f1")):
        notes.append(
            f"{kit.UNDEFINED}: not defined on these examples (the precision of a class never "
            "predicted, the recall of a class without examples). Means are over the classes "
            "where the value is defined."
        )
    return notes


def _evaluation_sections(folder: Path, evaluation: Evaluation) -> list[Section]:
    """Draw the figures of an evaluation into its folder and say what they show."""
    metrics, classes = evaluation.metrics, evaluation.classes
    where = f" on {evaluation.split}" if evaluation.split else ""
    heading = f"{'Table I' if classes.is_ham10000 else 'Results'}{where}"
    drawn = functools.partial(_drawn, folder)
    contents: dict[str, list[kit.Block]] = {
        heading: _table_one_blocks(evaluation),
        "Confusion matrix": [
            drawn("confusion_matrix", figures.confusion_matrix, metrics.confusion, classes)
        ],
        "Scores of each class": [
            *_score_blocks(evaluation),
            drawn("roc", figures.roc_curves, metrics, classes),
            drawn("precision_recall", figures.precision_recall_curves, metrics, classes),
        ],
        "Calibration": [
            *_calibration_blocks(evaluation),
            drawn("reliability", figures.reliability, metrics.reliability),
        ],
        "Risk and coverage": [
            _risk_table(evaluation),
            drawn("risk_coverage", figures.risk_coverage, metrics.risk_coverage),
        ],
    }
    if evaluation.subgroups:
        contents["Subgroups"] = _subgroup_blocks(evaluation)
    if evaluation.mistake_images is not None and len(evaluation.mistake_images):
        picture = _mistakes_picture(folder, evaluation, evaluation.mistake_images)
        contents["Most confident mistakes"] = [picture]
    return [Section(heading, blocks) for heading, blocks in contents.items()]


def _score_blocks(evaluation: Evaluation) -> list[kit.Block]:
    """Scores of each class, and sensitivities at wished specificities."""
    metrics, classes = evaluation.metrics, evaluation.classes
    areas = [*metrics.average_precision, metrics.macro["average_precision"]]
    table = kit.by_columns(
        "class",
        [*map(classes.titled, range(len(classes))), "mean"],
        ("specificity", [*map(number, metrics.specificity), ""]),
        ("AUC", map(number, [*metrics.auc, metrics.macro["auc"]])),
        ("average precision", map(number, areas)),
        ("recall, 95% interval", [*map(span, metrics.recall_ci95), ""]),
    )
    blocks: list[kit.Block] = [table]
    for what, points in evaluation.operating_points.items():
        intro = "against the rest, the threshold chosen on validation images:"
        header = (
            *("wished specificity", "threshold", "sensitivity here", "95% interval"),
            "specificity here",
        )
        thresholds = {p.threshold for p in points if np.isfinite(p.threshold)}
        digits = 3
        while digits < 17 and len({number(t, digits) for t in thresholds}) < len(thresholds):
            digits += 1
        rows = [
            (
                f"{point.wished_specificity:.0%}",
                number(point.threshold, digits),
                number(point.sensitivity),
                span(point.sensitivity_ci95),
                number(point.specificity),
            )
            for point in points
        ]
        blocks += [Text(f"{what[:1].upper()}{what[1:]} {intro}"), Table(header, rows)]
    return blocks


def _calibration_blocks(evaluation: Evaluation) -> list[kit.Block]:
    found = evaluation.calibrated
    if found is None:
        return [Text(f"Expected calibration error (15 bins): {number(evaluation.metrics.ece)}.")]
    note = (
        f"Before and after temperature scaling; the temperature of {number(found.temperature)} was "
        f"fitted on {'these' if evaluation.split == 'val' else 'the validation'} images. The "
        "predicted classes stay."
    )
    rows = [
        (name, *map(number, values))
        for name, values in (
            ("expected calibration error (15 bins)", found.ece),
            ("mean of -log p(true class)", found.log_loss),
        )
    ]
    return [Text(note), Table(("", "before", "after"), rows)]


def _risk_table(evaluation: Evaluation) -> Table:
    found = evaluation.metrics.risk_coverage
    rows = [(f"{share:.0%}", number(found.at(share))) for share in _COVERAGES]
    return Table(
        ("images judged, the surest first", "share that is wrong"),
        [*rows, ("mean over all coverages", number(found.area))],
    )


def _subgroup_blocks(evaluation: Evaluation) -> list[kit.Block]:
    groups, units = evaluation.subgroups, f"{evaluation.unit}s"
    rows = []
    for group in groups:
        m = group.metrics
        stars = ("*" * bool(0 < count < FEW_LESIONS) for count in m.lesions)
        recalls = map("{}{}".format, map(kit.estimate, m.recall, m.recall_ci95), stars)
        mean = kit.estimate(m.balanced_accuracy, m.ci95["balanced_accuracy"])
        lesions = f"{group.num_lesions}{' (few)' * group.few}"
        name = f"{group.attribute}: {group.value}"
        rows.append([name, str(m.num_examples), lesions, mean, *recalls])
    header = ("subgroup", "images", units, "balanced accuracy", *evaluation.classes.names)
    note = (
        "Balanced accuracy (over the classes present in the subgroup) and recall of each class, "
        "with 95% intervals. Subgroups hold different classes: compare recalls rather than "
        f"balanced accuracies. A star: fewer than {FEW_LESIONS} {units} of that class."
    )
    few = ", ".join(f"{group.attribute} {group.value}" for group in groups if group.few)
    warning = [Text(f"Fewer than {FEW_LESIONS} {units}, which say little: {few}.")] if few else []
    return [Text(note), *warning, Table(header, rows)]


def _subgroup_rows(groups: Sequence[Subgroup], classes: Classes) -> list[list[object]]:
    """The header and a row for each subgroup, undefined values empty."""
    values = ["balanced_accuracy", *(f"recall_{name}" for name in classes.names)]
    rows: list[list[object]] = [["attribute", "value", "images", "lesions", "few_lesions"]]
    rows[0] += [name + end for name in values for end in ("", "_low", "_high")]
    for group in groups:
        m = group.metrics
        rows.append(
            [group.attribute, group.value, m.num_examples, group.num_lesions, int(group.few)]
        )
        intervals = (m.ci95["balanced_accuracy"], *m.recall_ci95)
        for value, bounds in zip((m.balanced_accuracy, *m.recall), intervals, strict=True):
            rows[-1] += ["" if v is None else repr(v) for v in plain([value, *bounds])]
    return rows


def _mistakes_picture(folder: Path, evaluation: Evaluation, images: np.ndarray) -> Picture:
    path, names, titles = folder / "mistakes.png", evaluation.classes.names, []
    for i in evaluation.mistakes:
        scores, truth = evaluation.probabilities[i], names[evaluation.labels[i]]
        titles.append(f"is {truth}\nsaid {names[scores.argmax()]} {scores.max():.2f}")
    figures.titled_images(path, list(images), titles, columns=4)
    listed = ", ".join(evaluation.image_ids[i] for i in evaluation.mistakes)
    return Picture(path, f"The most confident mistakes, row by row: {listed}.")
