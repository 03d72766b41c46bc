import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from skin_jax.data.classes import CLASSES, NUM_CLASSES
from skin_jax.report import figures

WHITE = [255, 255, 255]


def pixels(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def plain(n, size=8, start=0):
    """Images of one colour each, all different."""
    return np.arange(start, start + n, dtype=np.uint8)[:, None, None, None] * np.ones(
        (1, size, size, 3), np.uint8
    )


def some_results(n=200):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, NUM_CLASSES, n)
    return rng.dirichlet(np.ones(NUM_CLASSES), n), labels


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


def test_every_curve_and_chart_is_drawn(tmp_path):
    probabilities, labels = some_results()
    confusion = np.zeros((NUM_CLASSES, NUM_CLASSES), int)
    np.add.at(confusion, (labels, probabilities.argmax(axis=1)), 1)
    counts = np.bincount(labels, minlength=NUM_CLASSES)
    rows = [{"step": s, "d_loss": 1.0, "val_macro_auc": 0.5 if s else None} for s in range(3)]
    images = plain(12, 16)
    figures.confusion_matrix(tmp_path / "confusion.png", confusion)
    figures.roc_curves(tmp_path / "roc.png", probabilities, labels)
    figures.precision_recall_curves(tmp_path / "pr.png", probabilities, labels)
    figures.reliability(tmp_path / "reliability.png", probabilities, labels)
    figures.class_histogram(tmp_path / "one.png", {"all": counts})
    figures.class_histogram(
        tmp_path / "three.png", {"train": counts, "val": counts, "test": counts}
    )
    figures.samples_per_class(tmp_path / "samples.png", images, np.arange(12) % NUM_CLASSES)
    figures.history(tmp_path / "history.png", rows)
    figures.mistakes(tmp_path / "mistakes.png", images[:5], labels[:5], probabilities[:5])
    written = sorted(tmp_path.iterdir())
    assert len(written) == 9
    for path in written:
        assert pixels(path).std() > 5, path


def test_classes_without_examples_and_empty_rows_are_left_out_not_an_error(tmp_path):
    probabilities, labels = some_results()
    labels[:] = np.where(labels < 3, labels, 3)
    confusion = np.diag([4, 0, 3, 0, 0, 0, 0])
    figures.confusion_matrix(tmp_path / "c.png", confusion)
    figures.roc_curves(tmp_path / "r.png", probabilities, labels)
    figures.precision_recall_curves(tmp_path / "p.png", probabilities, np.zeros_like(labels))
    figures.samples_per_class(tmp_path / "s.png", plain(2), np.array([1, 1]), columns=3)
    assert len(list(tmp_path.iterdir())) == 4


def test_confidence_of_exactly_0_and_1_falls_into_a_bin(tmp_path):
    probabilities = np.stack([np.zeros(NUM_CLASSES), np.eye(NUM_CLASSES)[0]])
    figures.reliability(tmp_path / "r.png", probabilities, np.array([0, 0]))
    assert pixels(tmp_path / "r.png").size


def test_a_history_without_anything_to_draw_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no row"):
        figures.history(tmp_path / "h.png", [{"step": 1, "images_per_second": 3.0}])


def test_the_same_data_give_the_same_bytes(tmp_path):
    counts = {"train": np.arange(NUM_CLASSES)}
    figures.class_histogram(tmp_path / "a.png", counts)
    figures.class_histogram(tmp_path / "b.png", counts)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_each_class_has_a_colour_of_its_own():
    assert tuple(figures.COLOURS) == CLASSES
    assert len(set(figures.COLOURS.values())) == NUM_CLASSES


def test_importing_figures_imports_neither_matplotlib_nor_a_display():
    code = "import sys, skin_jax.eval.figures; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
