import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from skin_jax.data.classes import HAM10000, Classes
from skin_jax.eval import metrics
from skin_jax.report import figures

WHITE = [255, 255, 255]
NUM_CLASSES = len(HAM10000)


def pixels(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def plain(n, size=8, start=0):
    """Images of one colour each, all different."""
    return np.arange(start, start + n, dtype=np.uint8)[:, None, None, None] * np.ones(
        (1, size, size, 3), np.uint8
    )


def some_results(num_classes=NUM_CLASSES):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, num_classes, 30 * num_classes)
    return rng.dirichlet(np.ones(num_classes), len(labels)), labels


def test_a_grid_keeps_every_image_row_by_row_with_white_where_there_is_none(tmp_path):
    figures.image_grid(tmp_path / "new" / "g.png", plain(5), 3)
    grid = pixels(tmp_path / "new" / "g.png")
    assert grid.shape == (18, 28, 3)
    for i in range(5):
        row, column = divmod(i, 3)
        cell = grid[row * 10 : row * 10 + 8, column * 10 : column * 10 + 8]
        assert (cell == i).all()
    assert (grid[10:, 20:] == WHITE).all()


def test_real_images_stand_above_generated_ones_with_a_bar_between(tmp_path):
    figures.real_and_generated(tmp_path / "g.png", plain(3), plain(6, start=100), columns=3)
    grid = pixels(tmp_path / "g.png")
    assert (grid[:8, 0:8] == 0).all()
    assert (grid[8:16] == 64).all()
    assert (grid[16:24, 0:8] == 100).all()
    assert (grid[26:34, 20:28] == 105).all()


def test_images_of_another_width_still_fit_the_bar(tmp_path):
    real, generated = np.zeros((2, 6, 9, 3), np.uint8), np.ones((2, 6, 9, 3), np.uint8)
    figures.real_and_generated(tmp_path / "g.png", real, generated, columns=4)
    assert pixels(tmp_path / "g.png").shape == (6 + 8 + 6, 4 * 11 - 2, 3)


@pytest.mark.parametrize("num_classes", [2, 7, 24])
def test_every_curve_and_chart_is_drawn(tmp_path, num_classes):
    names = [f"a class with the number {i}"[i % 24 :] + str(i) for i in range(num_classes)]
    classes = HAM10000 if num_classes == 7 else Classes.of(names)
    probabilities, labels = some_results(num_classes)
    m = metrics.evaluate(probabilities, labels, resamples=0)
    rows = [
        {"step": s, "d_loss": 1.0, "val_macro_auc": 0.5 if s else None}
        | {f"kid/{name}": s / 2 for name in classes.names}
        | ({"images_seen": 32.0 * s} if s else {})
        for s in range(3)
    ]
    images = plain(12, 16)
    figures.confusion_matrix(tmp_path / "confusion.png", m.confusion, classes)
    figures.roc_curves(tmp_path / "roc.png", m, classes)
    figures.precision_recall_curves(tmp_path / "pr.png", m, classes)
    figures.reliability(tmp_path / "reliability.png", m.reliability)
    figures.risk_coverage(tmp_path / "risk_coverage.png", m.risk_coverage)
    figures.class_histogram(tmp_path / "one.png", {"all": m.support}, classes)
    figures.class_histogram(
        tmp_path / "three.png", {"train": m.support, "val": m.support, "test": m.support}, classes
    )
    figures.samples_per_class(
        tmp_path / "samples.png", images, np.arange(12) % num_classes, classes
    )
    figures.history(tmp_path / "history.png", rows)
    figures.class_history(tmp_path / "class_history.png", rows, classes)
    figures.titled_images(tmp_path / "mistakes.png", list(images[:5]), ["is a\nsaid b"] * 5, 4)
    figures.real_and_generated_by_class(
        tmp_path / "by_class.png", dict.fromkeys(classes.names, (images[:2], images[:3]))
    )
    recall = np.full(num_classes, 0.5)
    intervals = np.stack([recall - 0.1, recall + 0.1], axis=-1)
    arms = [
        SimpleNamespace(name=name, recall=recall, recall_ci95=intervals)
        for name in ("arm", "other")
    ]
    figures.recalls(tmp_path / "recalls.png", arms, classes)
    written = sorted(tmp_path.iterdir())
    assert len(written) == 13
    for path in written:
        found = pixels(path)
        assert found.std() > 5, path
        if num_classes == 7:
            assert found.shape[1] == 960, path  # narrow enough for a phone


def test_every_image_stands_under_its_title(tmp_path):
    images = [np.full((4, 8, 3), value, np.uint8) for value in (10, 60, 110)]
    figures.titled_images(tmp_path / "t.png", images, ["one", "two", "three\nlines"], 2)
    found = {tuple(pixel) for pixel in pixels(tmp_path / "t.png").reshape(-1, 3).tolist()}
    assert {(v, v, v) for v in (10, 60, 110)} <= found


def test_classes_without_examples_and_empty_rows_are_left_out_not_an_error(tmp_path):
    probabilities, labels = some_results()
    labels[:] = np.where(labels < 3, labels, 3)
    some = metrics.evaluate(probabilities, labels, resamples=0)
    one = metrics.evaluate(probabilities, np.zeros_like(labels), resamples=0)
    figures.confusion_matrix(tmp_path / "c.png", np.diag([4, 0, 3, 0, 0, 0, 0]), HAM10000)
    figures.roc_curves(tmp_path / "r.png", some, HAM10000)
    figures.precision_recall_curves(tmp_path / "p.png", one, HAM10000)
    figures.samples_per_class(tmp_path / "s.png", plain(2), np.array([1, 1]), HAM10000, columns=3)
    assert len(list(tmp_path.iterdir())) == 4


def test_a_history_without_anything_to_draw_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no row"):
        figures.history(tmp_path / "h.png", [{"step": 1, "images_per_second": 3.0}])


def test_the_same_data_give_the_same_bytes(tmp_path):
    counts = {"train": np.arange(NUM_CLASSES)}
    figures.class_histogram(tmp_path / "a.png", counts, HAM10000)
    figures.class_histogram(tmp_path / "b.png", counts, HAM10000)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_each_of_40_classes_has_a_line_of_its_own():
    classes = Classes.of([str(i) for i in range(40)])
    styles = [figures._style(classes, label) for label in range(40)]
    assert len({(style["color"], style["linestyle"]) for style in styles}) == 40
    assert len({style["color"] for style in styles[:8]}) == 8


def test_importing_figures_imports_neither_matplotlib_nor_a_display():
    code = "import sys, skin_jax.report.figures; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
