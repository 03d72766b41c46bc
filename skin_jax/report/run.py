"""Results for people: Table I beside the paper's, Markdown, and one self-contained HTML page.

A report is a list of sections of plain blocks (text, table, picture); `markdown` and `html` render
the same list.
"""

import csv
import dataclasses
import io
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from skin_jax.base.files import write_atomically
from skin_jax.data.classes import CLASSES, FULL_NAMES
from skin_jax.eval.metrics import (
    FEW_LESIONS,
    Metrics,
    OperatingPoint,
    Subgroup,
    confident_mistakes,
)
from skin_jax.eval.tables import write_predictions
from skin_jax.report import figures
from skin_jax.report.kit import (
    UNDEFINED,
    PathLike,
    Picture,
    Section,
    Table,
    Text,
    block_text,
    estimate,
    html,
    markdown,
    number,
    span,
)

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

_PAPER_MEAN_RECALL = f"{np.mean([recall for _, recall, _ in PAPER_A['table_one'].values()]):.3f}"
_PAPER_TABLE_TWO = f"{PAPER_A['balanced_accuracy']['semi-supervised GAN']:.3f}"

MISTAKES_SHOWN = 12


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What is known about one evaluated set of examples.

    Attributes:
      metrics: of these very predictions.
      image_ids: N ids.
      labels: int [N].
      probabilities: float [N, 7].
      split: such as "test", or None for a set from outside.
      step: of the checkpoint, or None.
      shared_with_train: images here whose lesion is in train too; None where that is unknown.
      operating_points: melanoma against the rest, thresholds from val.
      subgroups: none, or as `metrics.subgroups` gives them.
      mistake_images: uint8 [M, H, W, 3], the images of `mistaken(probabilities, labels)`, or None.
    """

    metrics: Metrics
    image_ids: Sequence[str]
    labels: np.ndarray
    probabilities: np.ndarray
    split: str | None = None
    step: int | None = None
    shared_with_train: int | None = None
    operating_points: Sequence[OperatingPoint] = ()
    subgroups: Sequence[Subgroup] = ()
    mistake_images: np.ndarray | None = None


def table_one(metrics: Metrics, shared_with_train: int | None = None) -> str:
    """Paper A's Table I beside this one, 80 columns wide at most, for a terminal or Markdown.

    Args:
      shared_with_train: how many images share a lesion with train, where that is known.
    """
    return "\n\n".join(block_text(block) for block in _table_one_blocks(metrics, shared_with_train))


def write_evaluation(folder: PathLike, evaluation: Evaluation) -> list[Section]:
    """Write metrics.json, predictions.csv, report.md and its figures, and subgroups.csv if any.

    Returns:
      The sections of report.md, for `write_run_report`.

    Raises:
      UserError: the folder cannot be written.
      ValueError: arrays that do not fit one another.
    """
    folder = pathlib.Path(folder)
    metrics = evaluation.metrics
    content = metrics.to_json(split=evaluation.split, step=evaluation.step)
    write_atomically(folder / "metrics.json", json.dumps(content, indent=2, allow_nan=False) + "\n")
    write_predictions(folder / "predictions.csv", evaluation.image_ids, evaluation.probabilities)
    if evaluation.subgroups:
        write_atomically(folder / "subgroups.csv", _subgroups_csv(evaluation.subgroups))
    else:
        (folder / "subgroups.csv").unlink(missing_ok=True)  # of an earlier evaluation
    sections = _evaluation_sections(folder, evaluation)
    title = f"Evaluation on {evaluation.split}" if evaluation.split else "Evaluation"
    write_atomically(folder / "report.md", markdown(title, sections, folder))
    return sections


def write_run_report(
    workdir: PathLike,
    *,
    title: str,
    facts: Mapping[str, Any],
    evaluation: Sequence[Section],
    class_counts: Mapping[str, np.ndarray],
    history: Sequence[Mapping[str, Any]] = (),
    samples: tuple[np.ndarray, np.ndarray] | None = None,
    real_and_generated: PathLike | None = None,
) -> pathlib.Path:
    """Write `report.html`, one self-contained file; its figures of the run go into `figures/`.

    Args:
      workdir: of the run.
      title: the page's heading.
      facts: what was run, such as settings and numbers of steps.
      evaluation: sections that `write_evaluation` returned; none where there was no test set.
      class_counts: name of a split -> int [7] images.
      history: rows of `metric_writer.read_history`.
      samples: images uint8 [N, H, W, 3] and labels int [N], a few of each class.
      real_and_generated: an existing PNG, the last sample grid.

    Returns:
      The path of the page.

    Raises:
      UserError: the folder cannot be written.
    """
    workdir = pathlib.Path(workdir)
    folder = workdir / "figures"
    facts_table = Table(
        ("setting", "value"), [(key, str(value)) for key, value in facts.items()], prose=True
    )
    sections = [
        *evaluation,
        _data_section(folder, class_counts, samples),
        *_training_sections(folder, history, real_and_generated),
        Section("What was run", [facts_table]),
    ]
    path = workdir / "report.html"
    write_atomically(path, html(title, sections))
    return path


def mistaken(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Indices of the mistakes that a report shows as pictures, the most confident first."""
    return confident_mistakes(probabilities, labels, MISTAKES_SHOWN)


def _table_one_blocks(metrics: Metrics, shared_with_train: int | None) -> list[Text | Table]:
    per_class = Table(
        ("class", "prec.", "recall", "F1", "images", "lesions", "A prec", "A rec.", "A F1"),
        [
            (
                name,
                number(metrics.precision[i]),
                number(metrics.recall[i]),
                number(metrics.f1[i]),
                str(metrics.support[i]),
                str(metrics.lesions[i]) if metrics.lesions_known else UNDEFINED,
                *("{:.2f} {:.2f} {:.3f}".format(*PAPER_A["table_one"][name]).split()),
            )
            for i, name in enumerate(CLASSES)
        ],
    )
    overall = Table(
        ("overall", "this run", "95 % interval", "paper A"),
        [
            (
                "mean F1",
                number(metrics.macro["f1"]),
                span(metrics.ci95["macro_f1"]),
                f"{PAPER_A['mean_f1']:.3f}",
            ),
            (
                "balanced accuracy",
                number(metrics.balanced_accuracy),
                span(metrics.ci95["balanced_accuracy"]),
                f"{_PAPER_MEAN_RECALL} or {_PAPER_TABLE_TWO}",
            ),
            (
                "accuracy",
                number(metrics.accuracy),
                span(metrics.ci95["accuracy"]),
                "not given",
            ),
        ],
    )
    return [per_class, overall, *map(Text, _notes(metrics, shared_with_train))]


def _notes(metrics: Metrics, shared_with_train: int | None) -> list[str]:
    """What has to be known to read Table I, one paragraph each."""
    present = int((metrics.support > 0).sum())
    commonest = int(metrics.support.argmax())
    share = metrics.support[commonest] / metrics.num_examples
    notes = [
        f"Chance: balanced accuracy {1 / present:.3f} with {present} classes present; always "
        f"saying {CLASSES[commonest]} has accuracy {share:.3f}.",
        f"A: {PAPER_A['source']}. Its Table II gives a balanced accuracy of {_PAPER_TABLE_TWO}, "
        "which contradicts its Table I: balanced accuracy is the mean recall, and that is "
        f"{_PAPER_MEAN_RECALL}. Its split is by image, so images of one lesion can be on both "
        "sides.",
    ]
    if shared_with_train is not None:
        shared = shared_with_train / metrics.num_examples
        notes.append(
            f"{shared_with_train} of the {metrics.num_examples} images evaluated ({shared:.1%}) "
            "share a lesion with the training set."
        )
    notes.append(
        "Intervals resample lesions within each class: they take the number of lesions of each "
        "class as given."
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
            f"{UNDEFINED}: not defined on these examples (the precision of a class never "
            "predicted, the recall of a class without examples). Means are over the classes "
            "where the value is defined."
        )
    return notes


def _evaluation_sections(folder: pathlib.Path, evaluation: Evaluation) -> list[Section]:
    """Draw the figures of an evaluation into its folder and say what they show."""
    metrics, labels = evaluation.metrics, evaluation.labels
    probabilities = evaluation.probabilities
    figures.confusion_matrix(folder / "confusion_matrix.png", metrics.confusion)
    figures.roc_curves(folder / "roc.png", probabilities, labels)
    figures.precision_recall_curves(folder / "precision_recall.png", probabilities, labels)
    figures.reliability(folder / "reliability.png", probabilities, labels)
    where = f" on {evaluation.split}" if evaluation.split else ""
    sections = [
        Section(f"Table I{where}", _table_one_blocks(metrics, evaluation.shared_with_train)),
        Section(
            "Confusion matrix",
            [
                Picture(
                    folder / "confusion_matrix.png",
                    "Images by true class (row) and predicted class (column), and their share of "
                    "the row.",
                )
            ],
        ),
        Section(
            "Scores of each class",
            [
                _scores_table(metrics),
                *_melanoma_blocks(evaluation.operating_points),
                Picture(folder / "roc.png", "ROC curve of each class against the rest."),
                Picture(
                    folder / "precision_recall.png",
                    "Precision-recall curve of each class against the rest.",
                ),
            ],
        ),
        Section(
            "Calibration",
            [
                Text(f"Expected calibration error (15 bins): {number(metrics.ece)}."),
                Picture(
                    folder / "reliability.png",
                    "How often the predicted class is right, against how sure the model was.",
                ),
            ],
        ),
    ]
    if evaluation.subgroups:
        sections.append(Section("Subgroups", _subgroup_blocks(evaluation.subgroups)))
    if evaluation.mistake_images is not None and len(evaluation.mistake_images):
        sections.append(_mistakes_section(folder, evaluation, evaluation.mistake_images))
    return sections


def _scores_table(metrics: Metrics) -> Table:
    rows = [
        (
            f"{name} ({FULL_NAMES[name]})",
            number(metrics.specificity[i]),
            number(metrics.auc[i]),
            number(metrics.average_precision[i]),
            span(metrics.recall_ci95[i]),
        )
        for i, name in enumerate(CLASSES)
    ]
    macro = metrics.macro
    rows.append(("mean", "", number(macro["auc"]), number(macro["average_precision"]), ""))
    return Table(
        ("class", "specificity", "AUC", "average precision", "recall, 95 % interval"), rows
    )


def _melanoma_blocks(points: Sequence[OperatingPoint]) -> list[Text | Table]:
    if not points:
        return []
    rows = [
        (
            f"{point.wished_specificity:.0%}",
            number(point.threshold),
            number(point.sensitivity),
            number(point.specificity),
        )
        for point in points
    ]
    return [
        Text("Melanoma against the rest, the threshold chosen on validation images:"),
        Table(("wished specificity", "threshold", "sensitivity here", "specificity here"), rows),
    ]


def _subgroup_blocks(groups: Sequence[Subgroup]) -> list[Text | Table]:
    rows = [
        (
            f"{group.attribute}: {group.value}",
            str(group.metrics.num_examples),
            f"{group.num_lesions}{' (few)' if group.few else ''}",
            estimate(group.metrics.balanced_accuracy, group.metrics.ci95["balanced_accuracy"]),
            *(
                estimate(group.metrics.recall[i], group.metrics.recall_ci95[i])
                + ("*" if 0 < group.metrics.lesions[i] < FEW_LESIONS else "")
                for i in range(len(CLASSES))
            ),
        )
        for group in groups
    ]
    header = ("subgroup", "images", "lesions", "balanced accuracy", *CLASSES)
    note = (
        "Balanced accuracy (over the classes present in the subgroup) and recall of each class, "
        "with 95 % intervals. Subgroups hold different classes: compare recalls rather than "
        f"balanced accuracies. A star: fewer than {FEW_LESIONS} lesions of that class."
    )
    few = [f"{group.attribute} {group.value}" for group in groups if group.few]
    warning = f"Fewer than {FEW_LESIONS} lesions, which say little: {', '.join(few)}."
    return [Text(note), *([Text(warning)] if few else []), Table(header, rows)]


def _subgroups_csv(groups: Sequence[Subgroup]) -> str:
    """One row a subgroup, undefined values empty."""
    values = ["balanced_accuracy", *(f"recall_{name}" for name in CLASSES)]
    header = ["attribute", "value", "images", "lesions", "few_lesions"]
    header += [name + end for name in values for end in ("", "_low", "_high")]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    for group in groups:
        m = group.metrics
        estimates = [(m.balanced_accuracy, *m.ci95["balanced_accuracy"])]
        estimates += [(m.recall[i], *m.recall_ci95[i]) for i in range(len(CLASSES))]
        writer.writerow(
            [group.attribute, group.value, m.num_examples, group.num_lesions, int(group.few)]
            + ["" if np.isnan(v) else repr(float(v)) for triple in estimates for v in triple]
        )
    return buffer.getvalue()


def _mistakes_section(folder: pathlib.Path, evaluation: Evaluation, images: np.ndarray) -> Section:
    chosen = mistaken(evaluation.probabilities, evaluation.labels)[: len(images)]
    path = folder / "mistakes.png"
    figures.mistakes(path, images, evaluation.labels[chosen], evaluation.probabilities[chosen])
    names = ", ".join(str(evaluation.image_ids[i]) for i in chosen)
    caption = f"The most confident mistakes, row by row: {names}."
    return Section("Most confident mistakes", [Picture(path, caption)])


def _data_section(
    folder: pathlib.Path,
    class_counts: Mapping[str, np.ndarray],
    samples: tuple[np.ndarray, np.ndarray] | None,
) -> Section:
    figures.class_histogram(folder / "class_histogram.png", class_counts)
    table = Table(
        ("class", *class_counts),
        [
            (f"{name} ({FULL_NAMES[name]})", *(str(counts[i]) for counts in class_counts.values()))
            for i, name in enumerate(CLASSES)
        ],
    )
    pictures = [Picture(folder / "class_histogram.png", "Images of each class.")]
    if samples is not None:
        figures.samples_per_class(folder / "samples_per_class.png", *samples)
        pictures.append(
            Picture(
                folder / "samples_per_class.png", "Images of each class, as the network sees them."
            )
        )
    return Section("Data", [table, *pictures])


def _training_sections(
    folder: pathlib.Path,
    history: Sequence[Mapping[str, Any]],
    real_and_generated: PathLike | None,
) -> list[Section]:
    sections = []
    if history:
        figures.history(folder / "history.png", history)
        picture = Picture(folder / "history.png", "Losses and validation scores during training.")
        pictures = [picture]
        if any("/" in key for row in history for key in row):
            figures.class_history(folder / "class_history.png", history)
            caption = (
                "Each class's GAN: both losses, the discriminator's mean output on real and on "
                "generated images, the generator's score against the class's training images, and "
                "how far apart its images are (1: as far as real ones)."
            )
            pictures.append(Picture(folder / "class_history.png", caption))
        sections.append(Section("Training", pictures))
    if real_and_generated is not None:
        picture = Picture(
            real_and_generated, "Real images before the bar, generated ones after it."
        )
        sections.append(Section("Real and generated images", [picture]))
    return sections
