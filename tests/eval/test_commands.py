"""skin_jax.eval on pairs of CSVs and on other folders, of any classes."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from skin_jax.base.errors import UserError
from skin_jax.data.classes import Classes
from skin_jax.eval import runs, tables

THREE = Classes.of(("benign-nevus", "malignant", "other"))


def pair(folder, classes, columns=None):
    """Predictions and truth of 30 images, as CSVs."""
    rng, n = np.random.default_rng(0), len(classes)
    labels, ids = np.arange(30) % n, [f"image {i}" for i in range(30)]
    tables.write_predictions(folder / "p.csv", ids, rng.dirichlet(np.ones(n), 30), classes)
    tables.write_predictions(folder / "t.csv", ids, np.eye(n)[labels], classes)
    return {"predictions": folder / "p.csv", "truth": folder / "t.csv", "out": folder / "out"}


@pytest.mark.parametrize("classes", [THREE, Classes.of("abcdefgh")], ids=len)
def test_a_pair_of_csvs_brings_its_classes(eval_with, tmp_path, classes, capsys):
    eval_with(**pair(tmp_path, classes))
    content = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert content["classes"] == list(classes.names)
    assert content["num_examples"] == 30
    printed = capsys.readouterr().out
    assert f"with {len(classes)} classes present" in printed
    assert "paper A" not in printed


@pytest.mark.xdist_group("small_gan")
def test_the_classes_of_a_run_come_before_those_of_the_headers(eval_with, small_gan, tmp_path):
    with pytest.raises(UserError, match="column MEL: missing"):
        eval_with(**pair(tmp_path, THREE), workdir=small_gan)
    with pytest.raises(UserError, match="not the work folder of a run"):
        eval_with(**pair(tmp_path, THREE), workdir=tmp_path)


@pytest.mark.xdist_group("small_gan")
def test_another_folder_has_the_classes_of_the_run(eval_with, small_gan, tmp_path, monkeypatch):
    """Some of the run's classes are enough; one that it does not know is refused by name."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    other = tmp_path / "other"
    for label, name in enumerate(("nv", "bcc", "mel")):
        (other / name).mkdir(parents=True)
        for i in range(3):
            pixels = np.random.default_rng([label, i]).integers(0, 256, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(other / name / f"{i}.png")
    workdir = shutil.copytree(small_gan, tmp_path / "run")
    config = json.loads((workdir / "config.json").read_text())
    config["data"]["cache_dir"] = str(tmp_path / "cache")
    (workdir / "config.json").write_text(json.dumps(config))
    eval_with(workdir=workdir, data_dir=other, out=tmp_path / "out")
    content = json.loads((tmp_path / "out" / "metrics.json").read_text())
    support = {name: row["support"] for name, row in content["per_class"].items()}
    assert support == dict.fromkeys(content["classes"], 0) | {"nv": 3, "bcc": 3, "mel": 3}
    shutil.copytree(other / "nv", other / "unheard of")
    with pytest.raises(UserError, match="unheard of"):
        eval_with(workdir=workdir, data_dir=other, out=tmp_path / "again")


@pytest.mark.parametrize("what", ["split", "elsewhere"])
@pytest.mark.xdist_group("small_gan")
def test_results_that_could_not_be_written_are_refused_before_the_work(
    eval_with, small_gan, tmp_path, monkeypatch, what
):
    for name in ("evaluate_own", "labelled"):
        monkeypatch.setattr(runs, name, lambda *_: pytest.fail("work was begun"))
    (tmp_path / "file").touch()
    more = {"data_dir": tmp_path} if what == "elsewhere" else {}
    with pytest.raises(UserError, match=r"file/out/metrics\.json: cannot be written"):
        eval_with(workdir=small_gan, out=tmp_path / "file" / "out", **more)


def test_results_replace_neither_an_input_nor_the_files_of_others(eval_with, tmp_path):
    files = pair(tmp_path, THREE)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(UserError, match="holds other files, such as"):
        eval_with(**files | {"out": tmp_path})
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    (tmp_path / "metrics.json").write_text("{}")
    with pytest.raises(UserError, match="is in --out="):
        eval_with(**files | {"out": tmp_path})
