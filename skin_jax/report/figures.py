"""Pictures of data and results: each function takes arrays and writes one PNG.

Colours are those of Okabe and Ito ("Color Universal Design", 2008), which stay apart for
colour-blind readers; curves differ in their dashes too. Matplotlib's object interface keeps no
global state and needs no display.
"""

import os
import pathlib
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from skin_jax.data.classes import CLASSES, NUM_CLASSES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PathLike = str | os.PathLike[str]

COLOURS: dict[str, str] = {
    "akiec": "#E69F00",
    "bcc": "#56B4E9",
    "bkl": "#009E73",
    "df": "#000000",
    "mel": "#D55E00",
    "nv": "#0072B2",
    "vasc": "#CC79A7",
}
"""One colour a class; black stands in for Okabe and Ito's yellow, too pale for a line on white."""

_LINES = tuple(COLOURS[c] for c in ("nv", "mel", "bkl", "vasc", "akiec", "bcc", "df"))
_DASHES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (6, 1.5)), (0, (3, 1, 1, 1)), (0, (1, 1)))
_WIDTH = 4.8  # inches: narrow, so that text of 8 points is still legible on a phone
_DPI = 200
_GAP = 2
_SEPARATOR = 8
_BINS = 15
_NAME_COLUMNS = 24
_MARKERS = ("o", "s", "^", "D")


def image_grid(path: PathLike, images: np.ndarray, columns: int) -> None:
    """Write images side by side, `columns` to a row, in their own size.

    Args:
      images: uint8 [N, H, W, 3], N > 0.
    """
    _write_image(path, _tiled(images, columns))


def real_and_generated(
    path: PathLike, real: np.ndarray, generated: np.ndarray, columns: int
) -> None:
    """Write real images above generated ones, a dark bar between them (Fig. 4 of paper A).

    Args:
      real, generated: uint8 [N, H, W, 3] and [M, H, W, 3], N and M > 0.
    """
    above, below = _tiled(real, columns), _tiled(generated, columns)
    bar = np.full((_SEPARATOR, above.shape[1], 3), 64, np.uint8)
    _write_image(path, np.concatenate([above, bar, below]))


def real_and_generated_by_class(
    path: PathLike, shown: Mapping[str, tuple[np.ndarray, np.ndarray]]
) -> None:
    """Write a row for each class: some of its real images, a dark bar, generated ones.

    Args:
      shown: class name -> real and generated images, uint8 [N, S, S, 3] and [M, S, S, 3], the same
        M in every row; the longest row of real images sets the place of the bar.
    """
    columns = max(len(real) for real, _ in shown.values())
    rows = []
    for real, generated in shown.values():
        blank = np.full((columns - len(real), *generated.shape[1:]), 255, np.uint8)
        left = _tiled(np.concatenate([real, blank]), columns)
        right = _tiled(generated, len(generated))
        bar = np.full((len(left), _SEPARATOR, 3), 64, np.uint8)
        rows.append(np.concatenate([left, bar, right], axis=1))
    grid = np.concatenate(
        [np.pad(row, ((0, _GAP), (0, 0), (0, 0)), constant_values=255) for row in rows]
    )
    _class_rows(path, grid, list(shown))


def _class_rows(path: PathLike, grid: np.ndarray, names: Sequence[str]) -> None:
    """Write a picture of as many rows as there are classes, each labelled with its name."""
    figure, axes = _figure((_WIDTH - 0.5) * grid.shape[0] / grid.shape[1] + 0.1)
    axes.imshow(grid, interpolation="none")
    centres = (np.arange(len(names)) + 0.5) * grid.shape[0] / len(names)
    axes.set_yticks(centres, [name.upper() for name in names])
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    _save(figure, path)


def class_histogram(path: PathLike, counts: Mapping[str, np.ndarray]) -> None:
    """Write a bar chart of the images of each class (Fig. 1 of paper A).

    Args:
      counts: name of a set (such as "train") -> int [7].
    """
    figure, axes = _figure(3.2)
    width = 0.8 / len(counts)
    for i, ((name, values), colour) in enumerate(zip(counts.items(), _LINES, strict=False)):
        places = np.arange(NUM_CLASSES) + (i - (len(counts) - 1) / 2) * width
        bars = axes.bar(places, values, width, color=colour, label=name)
        rotation = 0 if len(counts) == 1 else 90
        axes.bar_label(bars, fontsize=7, padding=2, rotation=rotation)
    axes.set_xticks(range(NUM_CLASSES), [c.upper() for c in CLASSES])
    axes.set_ylabel("images")
    axes.margins(y=0.12 if len(counts) == 1 else 0.2)
    axes.spines[["top", "right"]].set_visible(False)
    if len(counts) > 1:
        axes.legend(frameon=False)
    _save(figure, path)


def samples_per_class(
    path: PathLike, images: np.ndarray, labels: np.ndarray, columns: int = 6
) -> None:
    """Write a row of images for each class, the first ones of each (Fig. 2 of paper A).

    Args:
      images: uint8 [N, H, W, 3].
      labels: int [N] in 0..6; a class without images has no row.
    """
    present = [c for c in range(NUM_CLASSES) if (labels == c).any()]
    blank = np.full((columns, *images.shape[1:]), 255, np.uint8)
    rows = [np.concatenate([images[labels == c], blank])[:columns] for c in present]
    grid = _tiled(np.concatenate(rows), columns)
    _class_rows(path, grid, [CLASSES[c] for c in present])


def confusion_matrix(path: PathLike, confusion: np.ndarray) -> None:
    """Write the confusion matrix: each cell its count and its share of the row, shaded by share.

    Args:
      confusion: int [7, 7], one row a true class.
    """
    totals = confusion.sum(axis=1, keepdims=True)
    shares = np.divide(confusion, totals, out=np.zeros(confusion.shape), where=totals > 0)
    figure, axes = _figure(4.6)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(confusion):
        share = f"{shares[row, column]:.0%}" if totals[row] else "n/a"
        colour = "white" if shares[row, column] > 0.6 else "black"
        axes.text(
            column, row, f"{count}\n{share}", ha="center", va="center", color=colour, fontsize=8
        )
    names = [c.upper() for c in CLASSES]
    axes.set_xticks(range(NUM_CLASSES), names)
    axes.set_yticks(range(NUM_CLASSES), names)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    _save(figure, path)


def roc_curves(path: PathLike, probabilities: np.ndarray, labels: np.ndarray) -> None:
    """Write the ROC curve of each class against the rest.

    Args:
      probabilities: float [N, 7].
      labels: int [N] in 0..6; classes without examples, or without others, have no curve.
    """
    from sklearn.metrics import roc_auc_score, roc_curve

    figure, axes = _figure(5.4)
    for c in _separable(labels):
        false_positives, true_positives, _ = roc_curve(labels == c, probabilities[:, c])
        area = roc_auc_score(labels == c, probabilities[:, c])
        _curve(axes, c, false_positives, true_positives, area)
    if axes.lines:
        axes.plot([0, 1], [0, 1], color="0.6", linewidth=1, label="chance")
    _save_square(figure, path, "1 - specificity", "sensitivity", "AUC")


def precision_recall_curves(path: PathLike, probabilities: np.ndarray, labels: np.ndarray) -> None:
    """Write the precision-recall curve of each class against the rest; arguments as `roc_curves`.

    Steps, not straight lines, join the points: that is what average precision measures.
    """
    from sklearn.metrics import average_precision_score, precision_recall_curve

    figure, axes = _figure(5.4)
    for c in _separable(labels):
        precision, recall, _ = precision_recall_curve(labels == c, probabilities[:, c])
        area = average_precision_score(labels == c, probabilities[:, c])
        _curve(axes, c, recall, precision, area, drawstyle="steps-post")
    _save_square(figure, path, "recall", "precision", "average precision")


def reliability(path: PathLike, probabilities: np.ndarray, labels: np.ndarray) -> None:
    """Write the hit rate against the confidence in 15 bins, above the number of images in each.

    Args:
      probabilities: float [N, 7]; the confidence is the largest score.
      labels: int [N] in 0..6.
    """
    confidence = probabilities.max(axis=1)
    hit = probabilities.argmax(axis=1) == labels
    bins = np.clip(np.ceil(confidence * _BINS).astype(int) - 1, 0, _BINS - 1)
    counts = np.bincount(bins, minlength=_BINS)
    filled = np.flatnonzero(counts)
    rates = np.bincount(bins, weights=hit, minlength=_BINS)[filled] / counts[filled]
    means = np.bincount(bins, weights=confidence, minlength=_BINS)[filled] / counts[filled]
    figure = _empty_figure(4.6)
    upper, lower = figure.subplots(2, sharex=True, height_ratios=(3, 1))
    upper.plot([0, 1], [0, 1], color="0.6", linewidth=1, label="perfect calibration")
    upper.plot(means, rates, "o-", color=COLOURS["nv"], label="this model")
    upper.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="share that is right")
    upper.legend(frameon=False, loc="lower right")
    lower.bar((np.arange(_BINS) + 0.5) / _BINS, counts, 0.9 / _BINS, color=COLOURS["bcc"])
    lower.set(xlabel="confidence (largest probability)", ylabel="images")
    for axes in (upper, lower):
        axes.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def history(path: PathLike, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write losses, mean probabilities of "fake" and validation scores against the step.

    Args:
      rows: as `metric_writer.read_history` gives them, with "step" and values: names that contain
        "loss", or begin with "p_fake" or "val_"; others are not drawn, nor those of one class
        (`class_history`). None (not finite) leaves a gap.
    """
    keys = sorted({key for row in rows for key in row if "/" not in key})
    panels = {
        "loss": [k for k in keys if "loss" in k and not k.startswith("val_")],
        "mean p(fake)": [k for k in keys if k.startswith("p_fake")],
        "validation": [k for k in keys if k.startswith("val_")],
    }
    panels = {label: names for label, names in panels.items() if names}
    if not panels:
        raise ValueError("no row holds a loss or a score")
    figure = _empty_figure(0.6 + 2.2 * len(panels))
    stacked = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
    for axes, (label, names) in zip(stacked, panels.items(), strict=True):
        for key, colour, dash in zip(names, _LINES, _DASHES, strict=False):
            _series(axes, key, rows, colour, dash)
        axes.set_ylabel(label)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8, handlelength=3)
    stacked[-1].set_xlabel("step")
    _save(figure, path)


def class_history(path: PathLike, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write what GANs of one class each report, against the step: a panel each, a line a class.

    Args:
      rows: as in `history`, with values named `<name>/<class>`: both losses, D's mean output on
        real and on generated images, the score, and the diversity.
    """
    titles = {
        "d_loss": "loss of D",
        "g_loss": "loss of G",
        "p_real_real": "D(real)",
        "p_real_generated": "D(generated)",
        "kid": "KID",
        "swd": "sliced Wasserstein",
        "diversity": "diversity",
    }
    keys = {key for row in rows for key in row}
    panels = {
        title: [(label, key) for label, c in enumerate(CLASSES) if (key := f"{name}/{c}") in keys]
        for name, title in titles.items()
    }
    panels = {title: lines for title, lines in panels.items() if lines}
    if not panels:
        raise ValueError("no row holds a value of a class")
    figure = _empty_figure(0.8 + 1.6 * len(panels))
    stacked = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
    for axes, (title, lines) in zip(stacked, panels.items(), strict=True):
        for label, key in lines:
            _series(axes, key, rows, COLOURS[CLASSES[label]], _DASHES[label])
            axes.lines[-1].set(label=CLASSES[label].upper(), linewidth=1.1)
        axes.set_ylabel(title)
        axes.spines[["top", "right"]].set_visible(False)
    stacked[-1].set_xlabel("step")
    figure.legend(
        handles=stacked[0].lines,
        loc="outside lower center",
        ncols=4,
        fontsize=8,
        handlelength=3,
        frameon=False,
    )
    _save(figure, path)


def mistakes(
    path: PathLike,
    images: np.ndarray,
    labels: np.ndarray,
    probabilities: np.ndarray,
    columns: int = 4,
) -> None:
    """Write wrongly classified images, each under its true class, its prediction and the score.

    Args:
      images: uint8 [N, H, W, 3], N > 0, in the order in which they are shown.
      labels: int [N] in 0..6.
      probabilities: float [N, 7].
    """
    rows = -(-len(images) // columns)
    figure = _empty_figure(rows * (_WIDTH / columns + 0.42))
    for i, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        axes.axis("off")
        if i < len(images):
            predicted = probabilities[i].argmax()
            axes.imshow(images[i])
            axes.set_title(
                f"is {CLASSES[labels[i]].upper()}\n"
                f"said {CLASSES[predicted].upper()} {probabilities[i, predicted]:.2f}",
                fontsize=9,
            )
    _save(figure, path)


def closest_pairs(
    path: PathLike,
    left: np.ndarray,
    right: np.ndarray,
    titles: Sequence[str],
    columns: int = 3,
) -> None:
    """Write pairs of images side by side, each pair under its title.

    Args:
      left, right: uint8 [N, H, W, 3], N > 0, in the order in which the pairs are shown.
      titles: N of them.
    """
    rows = -(-len(left) // columns)
    figure = _empty_figure(rows * (_WIDTH / columns / 2 + 0.42))
    for i, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        axes.axis("off")
        if i < len(left):
            axes.imshow(_tiled(np.stack([left[i], right[i]]), 2))
            axes.set_title(titles[i], fontsize=7)
    _save(figure, path)


def forest(
    path: PathLike,
    names: Sequence[str],
    values: np.ndarray,
    intervals: np.ndarray,
    *,
    notes: Sequence[str],
    emphasised: Sequence[bool],
    marks: Mapping[str, float],
    label: str,
) -> None:
    """Write differences from a control one below the other, each with its interval.

    Args:
      names: A of them.
      values: float [A].
      intervals: float [A, 2]; NaN for none.
      notes: A; below the names.
      emphasised: A; these have a filled diamond, the others an open circle.
      marks: label -> value at which a dotted line stands.
      label: of the values' axis.
    """
    ticks = [
        f"{textwrap.fill(name, _NAME_COLUMNS)}\n{note}"
        for name, note in zip(names, notes, strict=True)
    ]
    figure, axes = _figure(0.9 + sum(0.12 + 0.15 * (1 + tick.count("\n")) for tick in ticks))
    axes.axvline(0, color="0.4", linewidth=1)
    for (mark, value), colour, dash in zip(marks.items(), _LINES[1:], _DASHES[1:], strict=False):
        axes.axvline(value, color=colour, linestyle=dash, linewidth=1.2, label=mark)
    for i, (value, (low, high), strong) in enumerate(
        zip(values, intervals, emphasised, strict=True)
    ):
        colour = COLOURS["nv"] if strong else "0.25"
        axes.plot([low, high], [i, i], color=colour, linewidth=2.2 if strong else 1.4)
        axes.plot(
            value,
            i,
            "D" if strong else "o",
            color=colour,
            markerfacecolor=colour if strong else "white",
            markersize=6,
        )
    axes.set_yticks(range(len(ticks)), ticks, fontsize=8)
    axes.set(ylim=(len(ticks) - 0.4, -0.6), xlabel=label)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    if marks:
        figure.legend(loc="outside lower center", fontsize=8, handlelength=3, frameon=False)
    _save(figure, path)


def recalls(
    path: PathLike, names: Sequence[str], recall: np.ndarray, intervals: np.ndarray
) -> None:
    """Write the recall of each class by each arm, a panel a class.

    Args:
      names: A of them; a line stands at the recalls of the first.
      recall: float [A, 7] in [0, 1]; NaN for none.
      intervals: float [A, 7, 2].
    """
    figure = _empty_figure(0.5 + NUM_CLASSES * (0.2 + 0.12 * len(names)) + 0.19 * len(names))
    panels = figure.subplots(NUM_CLASSES, sharex=True)
    lowest = np.floor(10 * np.nanmin(intervals)) / 10 - 0.01
    for c, axes in enumerate(panels):
        for i, name in enumerate(names):
            colour, marker = _LINES[i % len(_LINES)], _MARKERS[i // len(_LINES) % len(_MARKERS)]
            axes.plot(intervals[i, c], [i, i], color=colour, linewidth=1.4)
            axes.plot(recall[i, c], i, marker, color=colour, markersize=4.5, label=name)
        axes.set_ylabel(CLASSES[c].upper(), rotation=0, ha="right", va="center", fontsize=9)
        axes.axvline(recall[0, c], color="0.6", linewidth=1, zorder=0)
        axes.set(xlim=(lowest, 1.01), ylim=(len(names) - 0.3, -0.7), yticks=[])
        axes.grid(axis="x", color="0.9", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
    panels[-1].set_xlabel("recall")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(
        handles,
        [textwrap.fill(label, 2 * _NAME_COLUMNS) for label in labels],
        loc="outside lower center",
        fontsize=8,
        frameon=False,
    )
    _save(figure, path)


def ratio_curve(
    path: PathLike,
    names: Sequence[str],
    ratios: np.ndarray,
    values: np.ndarray,
    intervals: np.ndarray,
    label: str,
) -> None:
    """Write differences from a control against generated images per real one.

    Args:
      names: A of them, one a family of arms: those of one name are joined by a line.
      ratios: float [A], > 0, on a logarithmic axis.
      values: float [A].
      intervals: float [A, 2]; NaN for none.
      label: of the values' axis.
    """
    figure, axes = _figure(3.4)
    axes.axhline(0, color="0.4", linewidth=1)
    families = list(dict.fromkeys(names))
    for i, family in enumerate(families):
        chosen = [k for k in np.argsort(ratios, kind="stable") if names[k] == family]
        # Side by side, so that intervals at one ratio do not hide one another.
        places = ratios[chosen] * 1.06 ** (i - (len(families) - 1) / 2)
        colour, dash = _LINES[i % len(_LINES)], _DASHES[i % len(_DASHES)]
        axes.plot(
            places,
            values[chosen],
            marker="o",
            markersize=5,
            color=colour,
            linestyle=dash,
            linewidth=1.2,
            label=textwrap.fill(family, 2 * _NAME_COLUMNS),
        )
        axes.vlines(places, *intervals[chosen].T, color=colour, linewidth=1.6)
    axes.set_xscale("log")
    axes.set_xticks(shown := np.unique(ratios), [f"{ratio:g}" for ratio in shown], fontsize=9)
    axes.set_xticks([], minor=True)
    axes.margins(x=0.1)
    axes.set(xlabel="generated images per real one", ylabel=label)
    axes.spines[["top", "right"]].set_visible(False)
    if len(families) > 1:
        figure.legend(loc="outside lower center", fontsize=8, handlelength=3, frameon=False)
    _save(figure, path)


def _empty_figure(height: float) -> "Figure":
    # Matplotlib takes half a second to import, which training without any report does without.
    from matplotlib.figure import Figure

    return Figure(figsize=(_WIDTH, height), dpi=_DPI, layout="constrained")


def _figure(height: float) -> "tuple[Figure, Axes]":
    figure = _empty_figure(height)
    return figure, figure.subplots()


def _save(figure: "Figure", path: PathLike) -> None:
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    # Without the version in it, the same data give the same bytes.
    figure.savefig(path, format="png", metadata={"Software": None})


def _separable(labels: np.ndarray) -> list[int]:
    return [c for c in range(NUM_CLASSES) if 0 < (labels == c).sum() < len(labels)]


def _curve(
    axes: "Axes", label: int, x: np.ndarray, y: np.ndarray, area: float, **style: Any
) -> None:
    name = CLASSES[label]
    axes.plot(
        x,
        y,
        color=COLOURS[name],
        linestyle=_DASHES[label],
        linewidth=1.6,
        label=f"{name.upper()}  {area:.3f}",
        **style,
    )


def _series(
    axes: "Axes", key: str, rows: Sequence[Mapping[str, Any]], colour: str, dash: Any
) -> None:
    points = [(r["step"], np.nan if r[key] is None else r[key]) for r in rows if key in r]
    steps, values = zip(*points, strict=True)
    # A lone point between gaps would leave no line at all.
    marker = "o" if len(points) < 40 else ""
    axes.plot(steps, values, linestyle=dash, marker=marker, markersize=2.5, color=colour, label=key)


def _save_square(figure: "Figure", path: PathLike, x: str, y: str, legend: str) -> None:
    axes = figure.axes[0]
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), xlabel=x, ylabel=y, aspect="equal")
    axes.spines[["top", "right"]].set_visible(False)
    if axes.lines:
        # Good and bad classifiers fill different corners: no place inside is always free.
        figure.legend(
            loc="outside lower center",
            ncols=3,
            fontsize=9,
            title=legend,
            handlelength=3,
            frameon=False,
        )
    else:
        axes.text(0.5, 0.5, "not defined: one class only", ha="center")
    _save(figure, path)


def _tiled(images: np.ndarray, columns: int) -> np.ndarray:
    """Lay uint8 [N, H, W, 3] out as one image with thin white gaps, empty places white."""
    n, height, width, channels = images.shape
    rows = -(-n // columns)
    cells = np.full((rows * columns, height + _GAP, width + _GAP, channels), 255, np.uint8)
    cells[:n, :height, :width] = images
    cells = cells.reshape(rows, columns, height + _GAP, width + _GAP, channels)
    tiled = cells.swapaxes(1, 2).reshape(rows * (height + _GAP), -1, channels)
    return tiled[:-_GAP, :-_GAP]


def _write_image(path: PathLike, pixels: np.ndarray) -> None:
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, format="PNG")
