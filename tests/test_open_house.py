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


def trained(task: str, workdir: Path, data: dict[str, object], **changes: object) -> str:
    settings = SMALL | data | {"data.cache_dir": workdir.parent / "cache"} | changes
    flags = [f"--config.{key}={value}" for key, value in settings.items()]
    return call("main", f"--config=configs/{task}.py:smoke", f"--workdir={workdir}", *flags)


def texts(workdir: Path) -> str:
    """All that a person reads of a run."""
    files = [p for suffix in ("md", "html") for p in workdir.rglob(f"*.{suffix}")]
    return "\n".join(path.read_text() for path in files)


@pytest.mark.parametrize("data", ["three", "eight"])
def test_a_classifier_of_any_classes(data, request, tmp_path):
    names = THREE if data == "three" else EIGHT
    source = request.getfixturevalue(data)
    workdir = tmp_path / "run"
    printed = trained("classifier", workdir, source, **{"optimizer.warmup_steps": 1})
    assert classes_lib.read(workdir).names == names
    content = json.loads((workdir / "eval" / "test" / "metrics.json").read_text())
    assert content["classes"] == list(names)
    read = texts(workdir)
    assert all(name in read for name in names)
    assert not [word for word in PAPER_A if word in read + printed]

    out = tmp_path / "predictions.csv"
    call("predict", f"--workdir={workdir}", f"--images={source['data.dir']}", f"--out={out}",
         f"--explain={tmp_path / 'seen'}", status=3 if data == "three" else 0)  # fmt: skip
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert set(rows[0]) == {"image", *names}
    assert len(rows) == (60 if data == "three" else 128)
    for row in rows[:5]:
        assert sum(float(row[name]) for name in names) == pytest.approx(1.0, abs=1e-5)
    call("eval", f"--workdir={workdir}", "--split=val")
    assert "32x32 pixels" in call("eval.baselines", f"--workdir={workdir}")

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
def test_gans_of_any_classes(task, data, request, tmp_path):
    names = THREE if data == "three" else EIGHT
    source = request.getfixturevalue(data)
    workdir, out = tmp_path / "run", tmp_path / "generated"
    changes = {"batch_size": 4, "score.images": 6} if task == "dcgan" else {}
    printed = trained(task, workdir, source, **changes)
    judged = ["--min_confidence=0", "--max_tries=64"] if task == "sgan" else []
    call("generate", f"--workdir={workdir}", f"--out={out}", "--per_class=2", *judged,
         status=3 if task == "sgan" else 0)  # fmt: skip
    rows = generated.read(out, classes_lib.read(workdir))
    assert {row.label for row in rows} <= set(names)
    if task == "dcgan":
        assert len(rows) == 2 * len(names)
    printed += call("eval", f"--quality={out}", f"--workdir={workdir}")
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
