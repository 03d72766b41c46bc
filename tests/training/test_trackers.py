"""Trackers, each with its own package where that is installed, and without any network."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from skin_jax import api
from skin_jax.base.errors import UserError
from skin_jax.data import demo
from skin_jax.tasks.declared import sgan
from skin_jax.training import run as run_lib
from skin_jax.training import trackers

SIZE = 48, 32  # of the picture
VALUES = np.array([0.25, math.nan, 0.75, 0.75])


@pytest.fixture
def picture(tmp_path) -> Path:
    path = tmp_path / "grid.png"
    Image.new("RGB", SIZE, "brown").save(path)
    return path


def opened(name: str) -> dict[str, object]:
    """Arguments of `trackers.start` for one tracker alone."""
    alone = name == trackers.TENSORBOARD
    return {"tensorboard": alone, "tracker": "none" if alone else name}


def reported(workdir: Path, name: str, picture: Path, *steps: int) -> dict[str, str]:
    """One start of a run for each step, from its settings to its figures; the ids that it kept."""
    workdir.mkdir(exist_ok=True)
    for step in steps:
        tracker = trackers.start(workdir, **opened(name))
        tracker.settings({"task": "sgan", "num_steps": step})
        tracker.scalars(step, {"loss": 0.5, "bad": math.nan})
        tracker.picture("samples", step, picture)
        tracker.histograms(step, {"realness_real": VALUES, "none": np.array([math.nan])})
        tracker.results(step, {"final/test_accuracy": 0.75})
        tracker.close(completed=True)
    path = workdir / trackers.FILE_NAME
    return json.loads(path.read_text()) if path.exists() else {}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of TensorBoard's reader
def test_tensorboard_shows_all_of_it(tmp_path, picture):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert reported(tmp_path, "tensorboard", picture, 7) == {}
    found = EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    tags = found.Tags()
    assert tags["scalars"] == ["loss", "bad", "final/test_accuracy"]
    assert [(e.step, e.value) for e in found.Scalars("loss")] == [(7, 0.5)]
    (image,) = found.Images("samples")
    assert (image.width, image.height) == SIZE
    assert image.encoded_image_string == picture.read_bytes()
    (histogram,) = found.Histograms("realness_real")
    value = histogram.histogram_value
    assert (value.min, value.max, value.num, value.sum) == (0.25, 0.75, 3, 1.75)
    assert sum(value.bucket) == 3
    (text,) = found.Tensors("settings")
    assert b"| task | sgan |" in text.tensor_proto.string_val[0]


@pytest.fixture
def wandb(monkeypatch):
    """A function that sets the mode of the package, which reads the environment once."""
    package = pytest.importorskip("wandb")

    def use(mode: str) -> None:
        package.teardown()
        monkeypatch.setenv("WANDB_MODE", mode)

    yield use
    package.teardown()


def test_wandb_continues_its_run_without_a_network(tmp_path, picture, wandb):
    wandb("offline")
    kept = reported(tmp_path / "mine", "wandb", picture, 4, 8)
    wandb("offline")  # the process that writes the files has ended
    folders = [*(tmp_path / "mine" / "wandb").glob("offline-run-*")]
    assert len(folders) == 2  # which `wandb sync` puts into one run
    # offline-run-TIME-ID, with a number after it where two began within a second
    assert {folder.name.split("-")[3] for folder in folders} == {kept["wandb"]}
    for folder in folders:
        (file,) = folder.glob("*.wandb")
        content = file.read_bytes()
        for part in (b"loss", b"realness_real", b"final/test_accuracy", b"num_steps"):
            assert part in content
        (shown,) = (folder / "files" / "media" / "images").rglob("*.png")
        with Image.open(shown) as image:
            assert image.size == SIZE


def test_wandb_without_an_account_is_refused_before_training(tmp_path, monkeypatch, wandb):
    wandb("online")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    with pytest.raises(UserError, match=r"wandb cannot be opened \(No API key.*has not begun"):
        trackers.start(tmp_path, **opened("wandb"))


TRACKIO = """
import json, sys
from pathlib import Path
import trackio
from tests.training.test_trackers import reported

workdir, picture = map(Path, sys.argv[1:])
name = reported(workdir, "trackio", picture, 4, 8)["trackio"]
print(json.dumps([name, trackio.SQLiteStorage.get_logs("skin_jax", name)]))
"""


def test_trackio_continues_its_run(tmp_path, picture):
    pytest.importorskip("trackio")
    done = subprocess.run(  # its folder is read at the import
        [sys.executable, "-c", TRACKIO, str(tmp_path / "mine"), str(picture)],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"TRACKIO_DIR": str(tmp_path / "trackio")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith("["))
    name, rows = json.loads(line)
    assert name.startswith("mine-")
    values = {key: value for row in rows for key, value in row.items()}
    assert {row["step"] for row in rows} == {0, 4, 8}
    assert values["loss"] == 0.5
    assert values["final/test_accuracy"] == 0.75
    assert values["samples"]["_type"] == "trackio.image"
    assert sum(values["realness_real"]["values"]) == 3
    assert "| task | sgan |" in values["settings"]["_value"]


@pytest.mark.filterwarnings("ignore")  # of SQLAlchemy, which MLflow uses as it was
def test_mlflow_continues_its_run(tmp_path, picture, monkeypatch):
    pytest.importorskip("mlflow")
    pytest.importorskip("alembic")
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)
    kept = reported(tmp_path / "mine", "mlflow", picture, 4, 8)
    client = MlflowClient()
    run = client.get_run(kept["mlflow"])
    assert run.info.status == "FINISHED"
    assert run.data.metrics == {"loss": 0.5, "final/test_accuracy": 0.75}
    assert run.data.params == {"task": "sgan", "num_steps": "4"}
    assert [m.step for m in client.get_metric_history(run.info.run_id, "loss")] == [4, 8]
    files = {path.name for path in (tmp_path / "mlruns").rglob("*") if path.is_file()}
    assert {"grid.png", "settings.json", "step_4.json", "step_8.json"} <= files


def test_a_server_that_does_not_answer_is_named_before_training(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(UserError, match=r"mlflow cannot be opened .*127\.0\.0\.1"):
        trackers.start(tmp_path, **opened("mlflow"))
    assert not (tmp_path / trackers.FILE_NAME).exists()


class Stub(trackers.Tracker):
    """Writes down what it is told; fails from some step on."""

    def __init__(self, fails_from: float = math.inf):
        self.told: list[tuple[str, object]] = []
        self._fails_from = fails_from

    def settings(self, values):
        self.told.append(("settings", values))

    def scalars(self, step, values):
        if step >= self._fails_from:
            raise ConnectionError("the server is gone\nand more")
        self.told.append(("scalars", step))

    def picture(self, name, step, path):
        with Image.open(path) as picture:
            self.told.append(("picture", (step, picture.format)))

    def histograms(self, step, values):
        self.told.append(("histograms", values))

    def results(self, step, values):
        self.told.append(("results", values))

    def close(self, *, completed):
        self.told.append(("close", completed))

    def of(self, kind: str) -> list:
        return [what for name, what in self.told if name == kind]


@pytest.fixture
def stub(monkeypatch):
    """A function that puts a stub in the place of wandb."""

    def use(**arguments) -> Stub:
        made = Stub(**arguments)
        ids = []

        def open_(opening):
            ids.append(opening.id)
            return made, opening.id or "first"

        made.ids = ids
        monkeypatch.setitem(trackers.TRACKERS, "wandb", open_)
        monkeypatch.setattr(trackers, "check", lambda name: None)
        return made

    return use


def small(**changes):
    config = sgan.defaults()
    chosen = {
        "num_steps": 4,
        "eval_every_steps": 2,
        "batch_size": 8,
        "eval_batch_size": 16,
        "data.demo_images": demo.MIN_IMAGES,
        "data.image_size": 32,
        "data.pipeline": "device",
        "sharding.num_devices": 1,
        "log.every_steps": 1,
        "log.tensorboard": False,
        "log.tracker": "wandb",
        "model.width": 4,
    }
    config.update_from_flattened_dict(chosen | changes)
    return config


def test_a_run_reports_settings_grids_histograms_and_its_figures(tmp_path, stub):
    tracker, workdir = stub(), tmp_path / "run"
    api.train(small(), workdir)
    (settings,) = tracker.of("settings")
    assert settings["data.image_size"] == 32
    assert "data.dir" not in settings  # no folders of this machine
    assert tracker.of("scalars") == [1, 2, 2, 3, 4, 4]  # losses, and scores
    assert tracker.of("picture") == [(2, "PNG"), (4, "PNG")]
    assert len(tracker.of("histograms")) == 2
    for values in tracker.of("histograms")[-1].values():
        assert len(values) == 24
        assert ((values > 0) & (values < 1)).all()
    written = json.loads((workdir / "eval" / "test" / "metrics.json").read_text())
    (results,) = tracker.of("results")
    assert results["final/test_balanced_accuracy"] == written["balanced_accuracy"]
    assert tracker.of("close") == [True]
    api.train(small(num_steps=6), workdir)
    assert tracker.ids == [None, "first"]
    assert tracker.of("scalars")[6:] == [5, 6, 6]


def test_a_tracker_that_fails_is_left_out_and_the_run_ends_well(tmp_path, stub, capsys):
    tracker, workdir = stub(fails_from=3), tmp_path / "run"
    api.train(small(), workdir)
    said = capsys.readouterr().err
    assert said.count("the tracker wandb failed (the server is gone); the run goes on") == 1
    assert tracker.of("scalars") == [1, 2, 2]
    assert tracker.of("results") == []
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["step"] == 4
    assert (workdir / "report.html").exists()


def test_a_tracker_that_cannot_be_opened_ends_the_command_before_a_step(
    tmp_path, stub, monkeypatch
):
    stub()

    def broken(_):
        raise OSError("no network")

    monkeypatch.setitem(trackers.TRACKERS, "wandb", broken)
    workdir = tmp_path / "run"
    with pytest.raises(UserError, match=r"wandb cannot be opened \(no network\); training has not"):
        api.train(small(), workdir)
    assert not (workdir / "metrics.jsonl").exists()
    api.train(small(**{"log.tracker": "none"}), workdir)


def test_a_tracker_that_is_not_installed_is_named_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    workdir = tmp_path / "run"
    with pytest.raises(UserError, match=r"'mlflow', but its package is not installed; pip install"):
        run_lib.start(small(**{"log.tracker": "mlflow"}), workdir)
    assert not workdir.exists()
