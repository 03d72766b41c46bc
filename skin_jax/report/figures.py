"""Pictures of data and results: each function takes numbers or images and writes one PNG.

Colours are those of the classes, which stay apart for colour-blind readers; curves differ in their
dashes too, so that up to 56 are distinct. Pictures are narrow enough for a phone, and wider only
where many classes need it. Matplotlib's object interface needs no display.
"""

import io
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from skin_jax.base.files import write_atomically
from skin_jax.data.classes import Classes
from skin_jax.eval.metrics import BINS, Metrics, Reliability, RiskCoverage, quotient
from skin_jax.report.kit import with_span

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from skin_jax.eval.comparison import Arm, Difference

_BLUE, _SKY = "#0072B2", "#56B4E9"
_LINES = (_BLUE, "#D55E00", "#009E73", "#CC79A7", "#E69F00", _SKY, "#000000")
_DASHES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (6, 1.5)), (0, (3, 1, 1, 1)), (0, (1, 1)))
_MARKERS = ("o", "s", "^", "D")
_WIDTH = 4.8  # inches: text of 8 points is still legible on a phone
_DPI = 200
_GAP = 2
_SEPARATOR = 8
_POINTS = "points of balanced accuracy"
_NAME_COLUMNS = 24
_LEGEND_COLUMNS = 64  # letters of 8 points that fit into the width
_MANY = 12  # classes: more leave no room for what is not there


def tiled(images: np.ndarray, columns: int) -> np.ndarray:
    """Lays uint8 [N, H, W, 3] out as one image with thin white gaps, empty places white."""
    n, height, width, channels = images.shape
    rows = -(-n // columns)
    cells = np.full((rows * columns, height + _GAP, width + _GAP, channels), 255, np.uint8)
    cells[:n, :height, :width] = images
    cells = cells.reshape(rows, columns, height + _GAP, width + _GAP, channels)
    grid = cells.swapaxes(1, 2).reshape(rows * (height + _GAP), -1, channels)
    return grid[:-_GAP, :-_GAP]


def image_grid(path: Path, images: np.ndarray, columns: int) -> None:
    """Write images uint8 [N, H, W, 3], N > 0, side by side in their own size."""
    _write_image(path, tiled(images, columns))


def real_and_generated(path: Path, real: np.ndarray, generated: np.ndarray, columns: int) -> None:
    """Write real images above generated ones, a dark bar between them (Fig. 4 of paper A).

    Both are uint8 [N, H, W, 3] with an N > 0 of their own.
    """
    above, below = tiled(real, columns), tiled(generated, columns)
    bar = np.full((_SEPARATOR, above.shape[1], 3), 64, np.uint8)
    _write_image(path, np.concatenate([above, bar, below]))


def real_and_generated_by_class(
    path: Path, shown: Mapping[str, tuple[np.ndarray, np.ndarray]]
) -> None:
    """Write a row for each class: some of its real images, a dark bar, generated ones.

    Both are uint8 [N, S, S, 3], N > 0; where a class has fewer than another, places stay empty.
    """
    columns, others = (max(map(len, sets)) for sets in zip(*shown.values(), strict=True))
    rows = []
    for real, generated in shown.values():
        left = tiled(real, columns)
        bar = np.full((len(left), _SEPARATOR, 3), 64, np.uint8)
        row = np.concatenate([left, bar, tiled(generated, others)], axis=1)
        rows.append(np.pad(row, ((0, _GAP), (0, 0), (0, 0)), constant_values=255))
    _class_rows(path, np.concatenate(rows), list(shown))


def samples_per_class(
    path: Path, images: np.ndarray, labels: np.ndarray, classes: Classes, columns: int = 6
) -> None:
    """Write a row of images for each class, the first ones of each (Fig. 2 of paper A).

    Of images uint8 [N, H, W, 3] and labels int [N]; a class without images has no row.
    """
    present, blank = np.unique(labels), np.full((columns, *images.shape[1:]), 255, np.uint8)
    rows = [np.concatenate([images[labels == c], blank])[:columns] for c in present]
    _class_rows(path, tiled(np.concatenate(rows), columns), [classes.names[c] for c in present])


def titled_images(
    path: Path, images: Sequence[np.ndarray], titles: Sequence[str], columns: int
) -> None:
    """Write N > 0 images uint8 [H, W, 3] in rows, each under its title of one or two lines."""
    height, width, _ = images[0].shape
    rows = -(-len(images) // columns)
    figure = _figure(rows * (_WIDTH / columns * height / width + 0.42))
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid:
        axes.axis("off")
    longest = max(len(line) for title in titles for line in title.splitlines())
    for axes, image, title in zip(grid, images, titles, strict=False):
        axes.imshow(image)
        axes.set_title(title, fontsize=min(9, 560 / columns / longest))
    _save(figure, path)


def class_histogram(path: Path, counts: Mapping[str, np.ndarray], classes: Classes) -> None:
    """Write a bar chart of the images of each class, int [C] for each set (Fig. 1 of paper A)."""
    alone = len(counts) == 1
    figure, (axes,) = _panels(3.2, width=0.8 + 0.12 * len(counts) * len(classes))
    width = 0.8 / len(counts)
    for i, ((name, values), colour) in enumerate(zip(counts.items(), _LINES, strict=False)):
        places = np.arange(len(classes)) + (i - (len(counts) - 1) / 2) * width
        bars = axes.bar(places, values, width, color=colour, label=name)
        axes.bar_label(bars, fontsize=7, padding=2, rotation=0 if alone else 90)
    _class_ticks(figure, axes, classes)
    axes.set_ylabel("images")
    axes.margins(x=0.02, y=0.12 if alone else 0.2)
    if not alone:
        _legend(figure, axes)
    _save(figure, path)


def confusion_matrix(path: Path, confusion: np.ndarray, classes: Classes) -> None:
    """Write a confusion matrix int [C, C]: counts and shares of their row, which is a true class.

    Of many classes empty cells show no 0.
    """
    n, longest = len(classes), max(map(len, classes.names))
    shares = quotient(confusion, confusion.sum(axis=1, keepdims=True))
    side = max(_WIDTH, 0.6 + 0.08 * min(longest, _NAME_COLUMNS) + 0.42 * n)
    figure, (axes,) = _panels(side - 0.2, width=side)
    axes.imshow(np.nan_to_num(shares), cmap="Blues", vmin=0, vmax=1)
    place: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 8}
    for (row, column), count in np.ndenumerate(confusion):
        if count or n <= _MANY:
            share = shares[row, column]
            text = f"{count}\n{'n/a' if np.isnan(share) else format(share, '.0%')}"
            axes.text(column, row, text, color="white" if share > 0.6 else "black", **place)
    _class_ticks(figure, axes, classes)
    axes.set_yticks(range(n), map(_short, classes.names))
    axes.set(xlabel="predicted class", ylabel="true class")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    _save(figure, path)


def roc_curves(path: Path, metrics: Metrics, classes: Classes) -> None:
    """Write the ROC curve of each class against the rest, where it is defined."""
    lines = [(curve.false_positive_rate, curve.recall) for curve in metrics.curves]
    labels = ("1 - specificity", "sensitivity", "AUC")
    _curves(path, classes, lines, metrics.auc, labels, chance=True)


def precision_recall_curves(path: Path, metrics: Metrics, classes: Classes) -> None:
    """Write the precision-recall curve of each class against the rest, where both are there.

    Steps, not straight lines, join the points: that is what average precision measures.
    """
    lines = [(curve.recall, curve.precision) for curve in metrics.curves]
    areas = np.where(np.isnan(metrics.auc), np.nan, metrics.average_precision)
    labels = ("recall", "precision", "average precision")
    _curves(path, classes, lines, areas, labels, drawstyle="steps-pre")


def reliability(path: Path, found: Reliability) -> None:
    """Write the hit rate against the confidence, above the number of images in each bin."""
    figure, (upper, lower) = _panels(4.6, 2, height_ratios=(3, 1))
    filled = found.counts > 0
    upper.plot([0, 1], [0, 1], color="0.6", linewidth=1, label="perfect calibration")
    style: dict[str, Any] = {"color": _BLUE, "label": "this model"}
    upper.plot(found.confidence[filled], found.hit_rate[filled], "o-", **style)
    upper.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="share that is right")
    upper.legend(frameon=False, loc="lower right")
    lower.bar((np.arange(BINS) + 0.5) / BINS, found.counts, 0.9 / BINS, color=_SKY)
    lower.set(xlabel="confidence (largest probability)", ylabel="images")
    _save(figure, path)


def risk_coverage(path: Path, found: RiskCoverage) -> None:
    """Write the share of wrong predictions against the share of images that are judged."""
    figure, (axes,) = _panels(2.8, 1)
    axes.plot(found.coverage, found.risk, color=_BLUE)
    axes.set(xlim=(0, 1), ylim=(0, None), xlabel="share of images judged", ylabel="share wrong")
    _save(figure, path)


def history(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write losses, mean probabilities of "fake" and validation scores against the step.

    Of rows as `history.read_history` gives them: names that contain "loss", or begin with "p_fake"
    or "val_", but for those of one class (`class_history`). None (not finite) leaves a gap.
    """
    keys = sorted({key for row in rows for key in row if "/" not in key})
    panels = {
        "loss": [k for k in keys if "loss" in k and not k.startswith("val_")],
        "mean p(fake)": [k for k in keys if k.startswith("p_fake")],
        "validation": [k for k in keys if k.startswith("val_") and "loss" not in k],
        "validation loss": [k for k in keys if k.startswith("val_") and "loss" in k],
    }
    styles = [{"color": c, "linestyle": dash} for c, dash in zip(_LINES, _DASHES, strict=True)]
    figure, stacked = _series(rows, panels, styles, margin=0.6, height=2.2)
    for axes in stacked:
        axes.legend(frameon=False, fontsize=8, handlelength=3)
    _save(figure, path)


def class_history(path: Path, rows: Sequence[Mapping[str, Any]], classes: Classes) -> None:
    """Write what GANs of one class each report, against the step: a panel each, a line a class.

    Of rows as in `history`, with values named `<name>/<class>`. Where a row has `images_seen`, the
    real ones that the discriminators had learned from, these stand at the top.
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
    panels = {t: [f"{name}/{own}" for own in classes.names] for name, t in titles.items()}
    styles = [_style(classes, c) | {"linewidth": 1.1} for c in range(len(classes))]
    figure, stacked = _series(rows, panels, styles, margin=0.5, height=1.6)
    if seen := [row["images_seen"] / row["step"] for row in rows if "images_seen" in row]:
        per_step = seen[-1]
        top = stacked[0].secondary_xaxis("top", (lambda x: x * per_step, lambda x: x / per_step))
        top.set_xlabel("images seen")
    _legend(figure, stacked[0])
    _save(figure, path)


def forest(path: Path, differences: "Sequence[Difference]", marks: Mapping[str, float]) -> None:
    """Write differences one below the other with their intervals, the one to be confirmed filled.

    A dashed line stands at each of the marks: label -> points of balanced accuracy.
    """
    names = [textwrap.fill(str(d), _NAME_COLUMNS) for d in differences]
    ticks = [f"{n}\n{with_span(d.estimate)}" for n, d in zip(names, differences, strict=True)]
    height = 0.7 + sum(0.12 + 0.15 * (1 + tick.count("\n")) for tick in ticks)
    figure, (axes,) = _panels(height)
    axes.axvline(0, color="0.4", linewidth=1)
    for (mark, value), colour, dash in zip(marks.items(), _LINES[1:], _DASHES[1:], strict=False):
        axes.axvline(value, color=colour, linestyle=dash, linewidth=1.2, label=mark)
    for i, (value, *interval) in enumerate(_in_points(differences)):
        strong = differences[i].confirmatory
        colour, marker = (_BLUE, "D") if strong else ("0.25", "o")
        axes.plot(interval, [i, i], color=colour, linewidth=2.2 if strong else 1.4)
        fill = colour if strong else "white"
        axes.plot(value, i, marker, color=colour, markerfacecolor=fill, markersize=6)
    axes.set_yticks(range(len(ticks)), ticks, fontsize=8)
    axes.set(ylim=(len(ticks) - 0.4, -0.6), xlabel=_POINTS)
    _rows_style(axes)
    _legend(figure, axes)
    _save(figure, path)


def recalls(path: Path, arms: "Sequence[Arm]", classes: Classes) -> None:
    """Write the recall of each class by each arm, a panel a class, a line at the first arm's."""
    n = len(classes)
    figure, panels = _panels(0.4 + n * (0.2 + 0.12 * len(arms)), n)
    lowest = np.floor(10 * np.nanmin([arm.recall_ci95 for arm in arms])) / 10 - 0.01
    for c, axes in enumerate(panels):
        for i, arm in enumerate(arms):
            colour, marker = _LINES[i % len(_LINES)], _MARKERS[i // len(_LINES) % len(_MARKERS)]
            axes.plot(arm.recall_ci95[c], [i, i], color=colour, linewidth=1.4)
            label = textwrap.fill(arm.name, 2 * _NAME_COLUMNS)
            axes.plot(arm.recall[c], i, marker, color=colour, markersize=4.5, label=label)
        title = textwrap.fill(_short(classes.names[c]), _NAME_COLUMNS // 2)
        axes.set_ylabel(title, rotation=0, ha="right", va="center", fontsize=9)
        axes.axvline(arms[0].recall[c], color="0.6", linewidth=1, zorder=0)
        axes.set(xlim=(lowest, 1.01), ylim=(len(arms) - 0.3, -0.7), yticks=[])
        _rows_style(axes)
    panels[-1].set_xlabel("recall")
    _legend(figure, panels[0])
    _save(figure, path)


def ratio_curve(path: Path, differences: "Sequence[Difference]", ratios: np.ndarray) -> None:
    """Write differences against generated images per real one, float [A], on a log axis.

    Where differences share a ratio, a line joins those of one arm only.
    """
    figure, (axes,) = _panels(3.4)
    axes.axhline(0, color="0.4", linewidth=1)
    points, shown = _in_points(differences), np.unique(ratios)
    names = [d.arm if len(shown) < len(ratios) else "all" for d in differences]
    curves = {}
    for family in dict.fromkeys(names):
        chosen = [k for k in np.argsort(ratios, kind="stable") if names[k] == family]
        curves[family] = np.column_stack([ratios[chosen], points[chosen]])
    _on_log_axis(axes, curves)
    axes.set(xlabel="generated images per real one", ylabel=_POINTS)
    _legend(figure, axes)
    _save(figure, path)


def level_curves(
    path: Path, curves: "Mapping[str, Sequence[tuple[float, Arm]]]", axis: str
) -> None:
    """Write each arm's balanced accuracy with its interval against a level's value, a log axis.

    Args:
      path: where to.
      curves: name of an arm -> value of a level, > 0, and the arm there; in increasing order.
      axis: what the values are.
    """
    figure, (axes,) = _panels(3.6)
    rows = {
        name: [(at, arm.balanced_accuracy, *arm.balanced_accuracy_ci95) for at, arm in points]
        for name, points in curves.items()
    }
    _on_log_axis(axes, {name: np.array(own) for name, own in rows.items()})
    axes.set(xlabel=axis, ylabel="balanced accuracy")
    _legend(figure, axes)
    _save(figure, path)


def _on_log_axis(axes: "Axes", curves: Mapping[str, np.ndarray]) -> None:
    """Draw curves: name -> place, value and both ends of its interval, float [points, 4]."""
    for i, (name, rows) in enumerate(curves.items()):
        # Side by side, so that intervals at one place do not hide one another.
        places = rows[:, 0] * 1.06 ** (i - (len(curves) - 1) / 2)
        style = {"color": _LINES[i % len(_LINES)], "linestyle": _DASHES[i % len(_DASHES)]}
        if len(curves) > 1:
            style["label"] = textwrap.fill(name, 2 * _NAME_COLUMNS)
        axes.plot(places, rows[:, 1], marker="o", markersize=5, linewidth=1.2, **style)
        axes.vlines(places, *rows[:, 2:].T, color=style["color"], linewidth=1.6)
    shown = np.unique(np.concatenate([rows[:, 0] for rows in curves.values()]))
    axes.set_xscale("log")
    axes.set_xticks(shown, [f"{place:g}" for place in shown], fontsize=9)
    axes.set_xticks([], minor=True)
    axes.margins(x=0.1)


def _in_points(differences: "Sequence[Difference]") -> np.ndarray:
    """Each difference with both ends of its interval, float [A, 3]."""
    estimates = [d.estimate for d in differences]
    return 100 * np.array([(estimate.value, *estimate.interval) for estimate in estimates])


def _figure(height: float, width: float = _WIDTH) -> "Figure":
    # Matplotlib takes half a second to import, which training without any report does without.
    from matplotlib.figure import Figure

    return Figure(figsize=(max(width, _WIDTH), height), dpi=_DPI, layout="constrained")


def _panels(
    height: float, count: int = 1, width: float = _WIDTH, **options: Any
) -> "tuple[Figure, list[Axes]]":
    """A figure of panels below one another, which share the horizontal axis."""
    figure = _figure(height, width)
    panels = figure.subplots(count, sharex=True, squeeze=False, **options)[:, 0]
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
    return figure, list(panels)


def _curves(
    path: Path,
    classes: Classes,
    lines: Sequence[tuple[np.ndarray, np.ndarray]],
    areas: np.ndarray,
    labels: tuple[str, str, str],
    *,
    chance: bool = False,
    **style: Any,
) -> None:
    """The line of each class whose area is defined; labels are of the axes and of the areas."""
    figure, (axes,) = _panels(_WIDTH)
    x, y, legend = labels
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), xlabel=x, ylabel=y, aspect="equal")
    for c, (line, area) in enumerate(zip(lines, areas, strict=True)):
        if not np.isnan(area):
            label = f"{_short(classes.names[c])}  {area:.3f}"
            axes.plot(*line, label=label, **style, **_style(classes, c))
    if not axes.lines:
        axes.text(0.5, 0.5, "not defined: one class only", ha="center")
    elif chance:
        axes.plot([0, 1], [0, 1], color="0.8", linewidth=1, label="chance")
    # Good and bad classifiers fill different corners: no place inside is always free.
    _legend(figure, axes, legend)
    _save(figure, path)


def _legend(figure: "Figure", axes: "Axes", title: str | None = None) -> None:
    """Adds a legend of one panel below all of them, in as many columns as fit."""
    handles, labels = axes.get_legend_handles_labels()
    if not labels:
        return
    lines = [line for label in labels for line in label.splitlines()]
    columns = max(1, min(4, _LEGEND_COLUMNS // (max(map(len, lines)) + 8)))
    figure.set_figheight(figure.get_figheight() + 0.1 + 0.16 * -(-len(lines) // columns))
    place: dict[str, Any] = {"loc": "outside lower center", "ncols": columns, "title": title}
    figure.legend(handles, labels, fontsize=8, handlelength=3, frameon=False, **place)


def _class_ticks(figure: "Figure", axes: "Axes", classes: Classes) -> None:
    names = [_short(name) for name in classes.names]
    longest = max(map(len, names))
    upright = longest > 8 * figure.get_figwidth() / len(names)  # letters for each
    axes.set_xticks(range(len(names)), names, rotation=90 * upright)
    figure.set_figheight(figure.get_figheight() + 0.07 * longest * upright)


def _class_rows(path: Path, grid: np.ndarray, names: Sequence[str]) -> None:
    """Write a picture of as many rows as there are classes, each labelled with its name."""
    figure, (axes,) = _panels((_WIDTH - 0.5) * grid.shape[0] / grid.shape[1] + 0.1)
    axes.imshow(grid, interpolation="none")
    centres = (np.arange(len(names)) + 0.5) * grid.shape[0] / len(names)
    axes.set_yticks(centres, [textwrap.fill(_short(name), _NAME_COLUMNS // 2) for name in names])
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    _save(figure, path)


def _rows_style(axes: "Axes") -> None:
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines["left"].set_visible(False)


def _style(classes: Classes, label: int) -> dict[str, Any]:
    """The line of a class. Where colours repeat, the dashes go on by another step."""
    repeated = label // len(set(classes.colours))
    dash = _DASHES[(label + repeated) % len(_DASHES)]
    return {"color": classes.colours[label], "linestyle": dash, "linewidth": 1.6}


def _series(
    rows: Sequence[Mapping[str, Any]],
    panels: Mapping[str, Sequence[str]],
    styles: Sequence[dict[str, Any]],
    *,
    margin: float,
    height: float,
) -> "tuple[Figure, list[Axes]]":
    """Draw a panel for each title, with a line for each of its keys that rows have."""
    known = {key for row in rows for key in row}
    drawn = {title: keys for title, keys in panels.items() if not known.isdisjoint(keys)}
    if not drawn:
        raise ValueError("no row holds a loss or a score")
    figure, stacked = _panels(margin + height * len(drawn), len(drawn))
    for axes, (title, keys) in zip(stacked, drawn.items(), strict=True):
        for key, style in zip(keys, styles, strict=False):
            if points := [(r["step"], r[key]) for r in rows if key in r]:
                # A lone point between gaps would leave no line at all.
                marker = "o" if len(points) < 40 else ""
                place = np.array(points, float).T  # None becomes NaN, a gap
                named = style | {"label": _short(key.split("/")[-1])}
                axes.plot(*place, marker=marker, markersize=2.5, **named)
        axes.set_ylabel(title)
    stacked[-1].set_xlabel("step")
    return figure, stacked


def _short(name: str) -> str:
    return name if len(name) <= _NAME_COLUMNS else f"{name[: _NAME_COLUMNS - 1]}…"


def _save(figure: "Figure", path: Path) -> None:
    drawn = io.BytesIO()
    # Without the version in it, the same data give the same bytes.
    figure.savefig(drawn, format="png", metadata={"Software": None})
    write_atomically(path, drawn.getvalue())


def _write_image(path: Path, pixels: np.ndarray) -> None:
    drawn = io.BytesIO()
    Image.fromarray(pixels).save(drawn, format="PNG")
    write_atomically(path, drawn.getvalue())
