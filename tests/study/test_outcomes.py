"""A study's finished runs, read from their folders."""

import json

import numpy as np
import pytest

from skin_jax.base.errors import UserError
from skin_jax.data import classes as classes_lib
from skin_jax.data.classes import HAM10000, Classes
from skin_jax.eval import tables
from skin_jax.study import outcomes
from skin_jax.study.plan import PREDICTIONS, run_name, run_proofs

THREE = Classes.of(("kind b", "kind a", "kind c"))
RECORD = {
    "arms": {"plain": {"title": "", "settings": {"size": 8, "needs": None}}},
    "part": "fold",
    "folds": [0, 1],
    "seeds": [0],
    "select": "test",
}


def finished_run(workdir, fold, classes=THREE, digest="d"):
    """The files of a run on six test images, two of a lesion."""
    folder = workdir / run_name("plain", f"fold{fold}", 0)
    ids = [f"fold {fold}/{i}" for i in range(6)]
    names = [classes.names[i % len(classes)] for i in range(6)]
    scores = np.random.default_rng(fold).dirichlet(np.ones(len(classes)), 6)
    tables.write_predictions(folder / PREDICTIONS.format("test"), ids, scores, classes)
    for proof in run_proofs("test"):
        (folder / proof).touch()
    classes_lib.write(classes, folder)
    (folder / "config.json").write_text(json.dumps({"size": 8, "data": {"fold": fold}, "seed": 0}))
    (folder / "examples.digest").write_text(digest)
    rows = [
        f"{own},{fold}-{i // 2},{name},test"
        for i, (own, name) in enumerate(zip(ids, names, strict=True))
    ]
    rows.append(f"other,x,{classes.names[0]},train")
    (folder / "splits.csv").write_text("\n".join(["image,lesion_id,label,split", *rows]) + "\n")
    return folder, scores


@pytest.mark.parametrize("classes", [THREE, HAM10000], ids=["three", "seven"])
def test_labels_and_probabilities_are_in_the_order_of_the_runs_classes(tmp_path, classes):
    expected = [finished_run(tmp_path, fold, classes)[1] for fold in (0, 1)]
    found, runs = outcomes.read(tmp_path, RECORD)
    assert found == classes
    assert [(run.arm, run.fold, run.seed) for run in runs] == [("plain", 0, 0), ("plain", 1, 0)]
    for run, scores in zip(runs, expected, strict=True):
        assert run.labels.tolist() == [i % len(classes) for i in range(6)]
        np.testing.assert_array_equal(run.probabilities, scores)
        assert run.lesion_ids == [f"{run.fold}-{i // 2}" for i in range(6)]


def test_a_study_without_finished_runs_has_no_outcomes(tmp_path):
    assert outcomes.read(tmp_path, RECORD)[1] == []


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"classes": Classes.of(("kind a", "kind b", "kind c"))}, "made of different classes"),
        ({"classes": HAM10000}, "made of different classes"),
        ({"digest": "e"}, "made of different images"),
    ],
)
def test_runs_of_other_images_or_classes_are_refused(tmp_path, other, words):
    finished_run(tmp_path, 0)
    finished_run(tmp_path, 1, **other)
    with pytest.raises(UserError, match=words) as caught:
        outcomes.read(tmp_path, RECORD)
    for fold in (0, 1):
        assert str(tmp_path / run_name("plain", f"fold{fold}", 0)) in str(caught.value)


def test_a_run_with_other_settings_or_other_predictions_is_refused(tmp_path):
    folder, _ = finished_run(tmp_path, 0)
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace("8", "9"))
    with pytest.raises(UserError, match=r"not the run that the study planned.*size"):
        outcomes.read(tmp_path, RECORD)
    (folder / "config.json").write_text(config)
    tables.write_predictions(
        folder / PREDICTIONS.format("test"), ["strange"], np.ones((1, 3)) / 3, THREE
    )
    with pytest.raises(UserError, match="is not about the test images"):
        outcomes.read(tmp_path, RECORD)


def test_pictures_of_generated_images_are_captioned_by_title(tmp_path):
    record = RECORD | {"arms": {"gan": {"settings": {"needs": "many"}}}}
    grids = tmp_path / "steps" / "many" / "fold0" / "grids"
    grids.mkdir(parents=True)
    (grids / "mel.png").touch()
    captions = outcomes.samples(tmp_path, record, HAM10000)
    assert captions == [("melanoma: many, fold 0", grids / "mel.png")]
