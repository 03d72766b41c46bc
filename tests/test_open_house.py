"""Data with other classes than the papers', from the folder to the report."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import skin_jax
from skin_jax import config as config_lib
from skin_jax.base import errors, settings
from skin_jax.data import classes as classes_lib
from skin_jax.data import generated, splits

ROOT = Path(__file__).parents[1]
THREE = ("benign-nevus", "malignant", "other")
EIGHT = tuple(f"type {letter}" for letter in "abcdefgh")
PAPER_A = ("Rashid", "Table I ", "paper A", "akiec", "melanoma")

SMALL = {
    "num_steps": 4,
    "eval_every_steps": 2,
    "batch_size": 16,
    "log.every_steps": 2,
    "log.tensorboard": False,
    "data.split_fractions": "(0.6,0.2,0.2)",
}


def picture(path: Path, seed: int, label: int) -> None:
    """A disc whose place and colour depend on its class, on noise."""
    rng = np.random.default_rng(seed)
    pixels = rng.normal(150, 20, (40, 48, 3))
    y, x = np.mgrid[:40, :48]
    disc = (y - 10 - 2 * label) ** 2 + (x - 20 - rng.integers(8)) ** 2 < 60
    pixels[disc] = [40 + 25 * label, 200 - 20 * label, 90]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)


@pytest.fixture(scope="module")
def three(tmp_path_factory) -> dict[str, object]:
    """Class folders with the same file names in each."""
    root = tmp_path_factory.mktemp("three") / "images"
    for label, name in enumerate(THREE):
        for i in range(20):
            picture(root / name / f"img_{i:03}.png", 100 * label + i, label)
    return {"data.dir": root}


@pytest.fixture(scope="module")
def eight(tmp_path_factory) -> dict[str, object]:
    """A folder of images, and a table of them with eight classes and a column of patients."""
    root = tmp_path_factory.mktemp("eight")
    with (root / "labels.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["filename", "diagnosis", "patient"])
        for i in range(128):
            picture(root / "images" / f"photo {i}.png", i, i % 8)
            # Each patient has two images, of different classes.
            rows.writerow([f"photo {i}.png", EIGHT[i % 8], f"P{i // 2}"])
    return {
        "data.dir": root / "images",
        "data.table": root / "labels.csv",
        "data.image_column": "filename",
        "data.label_column": "diagnosis",
        "data.group_column": "patient",
    }


def call(module: str, *args: object, status: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", f"skin_jax.{module}", *map(str, args)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "1"},
    )
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def train(task: str, workdir: Path, data: dict[str, object], **changes: object) -> None:
    config = config_lib.load(f"{task}:smoke")
    places = {"data.cache_dir": workdir.parent / "cache", "sharding.num_devices": 1}
    for key, value in (SMALL | data | places | changes).items():
        settings.override(config, key, str(value))
    skin_jax.train(config, workdir)


def texts(workdir: Path) -> str:
    """All that a person reads of a run."""
    files = [p for suffix in ("md", "html") for p in workdir.rglob(f"*.{suffix}")]
    return "\n".join(path.read_text() for path in files)


@pytest.mark.parametrize("data", ["three", "eight"])
def test_a_classifier_of_any_classes(data, request, called, tmp_path, capfd):
    names = THREE if data == "three" else EIGHT
    source = request.getfixturevalue(data)
    workdir = tmp_path / "run"
    train("classifier", workdir, source, **{"optimizer.warmup_steps": 1})
    assert classes_lib.read(workdir).names == names
    content = json.loads((workdir / "eval" / "test" / "metrics.json").read_text())
    assert content["classes"] == list(names)
    read = texts(workdir)
    assert all(name in read for name in names)

    out = tmp_path / "predictions.csv"
    files = {"images": source["data.dir"], "out": out, "explain": tmp_path / "seen"}
    status = called("predict", workdir=workdir, **files)
    assert status == (errors.PARTIAL if data == "three" else 0)
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert set(rows[0]) == {"image", *names}
    assert len(rows) == (60 if data == "three" else 128)
    for row in rows[:5]:
        assert sum(float(row[name]) for name in names) == pytest.approx(1.0, abs=1e-5)
    called("eval.__main__", workdir=workdir, split="val")
    called("eval.baselines", workdir=workdir)
    printed = "".join(capfd.readouterr())
    assert "32x32 pixels" in printed
    assert not [word for word in PAPER_A if word in read + printed]

    path = workdir / "splits.csv"
    groups = splits.lesion_ids(path)
    sides: dict[str, set[str]] = {}
    for side in splits.SPLITS:
        for image, _ in splits.members(path, side):
            sides.setdefault(groups[image], set()).add(side)
    assert all(len(found) == 1 for found in sides.values())
    assert len(sides) == (60 if data == "three" else 64)


@pytest.mark.parametrize(
    ("task", "data"),
    [("sgan", "three"), ("sgan", "eight"), ("dcgan", "three"), ("dcgan", "eight")],
)
def test_gans_of_any_classes(task, data, request, called, tmp_path, capfd):
    names = THREE if data == "three" else EIGHT
    source = request.getfixturevalue(data)
    workdir, out = tmp_path / "run", tmp_path / "generated"
    # Eight programs for the CPU would compile for a long time.
    changes = {"batch_size": 4, "score.images": 6, "stack": "vmap"} if task == "dcgan" else {}
    train(task, workdir, source, **changes)
    if task == "dcgan":
        assert called("generate", workdir=workdir, out=out, per_class=2) == 0
    else:  # so little trained, it draws few of the classes
        with pytest.raises(errors.UserError) as raised:
            called("generate", workdir=workdir, out=out, per_class=2, min_confidence=0,
                   max_tries=64)  # fmt: skip
        assert raised.value.exit_code == errors.PARTIAL
    rows = generated.read(out, classes_lib.read(workdir))
    assert {row.label for row in rows} <= set(names)
    if task == "dcgan":
        assert len(rows) == 2 * len(names)
    called("eval.__main__", workdir=workdir, quality=out)
    printed = "".join(capfd.readouterr())
    assert not [word for word in PAPER_A if word in texts(workdir) + printed]


OWN = """
import flax.linen as nn
import jax.numpy as jnp
from skin_jax.models.layers import ClassifierHead
from skin_jax.tasks.declared import classifier

class Tiny(nn.Module):
    num_classes: int
    dropout: float
    width_multiplier: float
    dtype: object = jnp.float32

    @nn.compact
    def __call__(self, images, *, train):
        x = nn.relu(nn.Conv(4, (3, 3), strides=4, dtype=self.dtype)(images))
        self.variable("batch_stats", "seen", lambda: jnp.zeros(()))
        return ClassifierHead(self.num_classes, self.dropout, name="head")(x, train=train)

def get_config(variant=""):
    config = classifier.defaults()
    config.model.network = {network}
    config.data.image_size = 32
    config.optimizer.warmup_steps = 1
    return config
"""


def test_a_network_of_ones_own_is_trained_predicts_and_is_refused_once_it_changed(three, tmp_path):
    own = tmp_path / "own.py"
    own.write_text(OWN.replace("{network}", "Tiny"))
    workdir = tmp_path / "run"
    flags = [f"--config.{k}={v}" for k, v in (SMALL | three).items()]
    flags.append(f"--config.data.cache_dir={tmp_path / 'cache'}")
    call("main", f"--config={own}", f"--workdir={workdir}", *flags)
    some = [f"--workdir={workdir}", f"--images={three['data.dir'] / 'other'}"]
    call("predict", *some, f"--out={tmp_path / 'p.csv'}")
    call("main", f"--config={own}", f"--workdir={workdir}", *flags)  # resumed, finished
    own.write_text(own.read_text() + "\n# changed\n")
    said = call("predict", *some, f"--out={tmp_path / 'q.csv'}", status=2)
    assert "Tiny of " in said
    assert "has changed since" in said


@pytest.mark.parametrize(
    ("network", "words"),
    [
        ("nn.Dense", "config.model.network, Dense, must take num_classes, dropout"),
        ("(lambda **arguments: Tiny(**arguments))", "could not load again"),
    ],
)
def test_a_network_that_cannot_serve_is_refused_before_training(three, tmp_path, network, words):
    own = tmp_path / "own.py"
    own.write_text(OWN.replace("{network}", network))
    flags = [f"--config.{k}={v}" for k, v in (SMALL | three).items()]
    said = call("main", f"--config={own}", f"--workdir={tmp_path / 'run'}", *flags, status=2)
    assert words in said
    assert not (tmp_path / "run" / "config.json").exists()
