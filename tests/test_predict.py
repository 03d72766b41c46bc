import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from skin_jax import config as config_lib
from skin_jax import tasks
from skin_jax.data.classes import HAM10000
from skin_jax.eval import tables
from skin_jax.tasks.declared import sgan
from skin_jax.training import checkpoints as checkpoint_lib

pytestmark = pytest.mark.xdist_group("prediction")  # one worker makes the fixtures, once


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Of a run whose weights are as initialised."""
    folder = tmp_path_factory.mktemp("run")
    config = sgan.defaults()
    config.update_from_flattened_dict(
        {"data.image_size": 32, "model.width": 4, "data.pipeline": "device"}
    )
    task = tasks.build(config, HAM10000.names, np.ones(7, int), 1, 1.0)
    state = jax.jit(task.init)(jax.random.key(config.seed))
    config_lib.write(config, folder)
    checkpoints = checkpoint_lib.Checkpoints(folder / "checkpoints")
    checkpoints.save(1, state, 0.5)
    checkpoints.close()
    rows = [f"{name},{name},{name},train" for name in HAM10000.names]
    (folder / "splits.csv").write_text("\n".join(["image,lesion_id,label,split", *rows]))
    return folder


def call(tmp_path, *arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "skin_jax.predict", *map(str, arguments)]
    return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)


@pytest.fixture
def pictures(tmp_path):
    for name in ("a.png", "b, c.png"):
        pixels = np.random.default_rng(len(name)).integers(0, 256, (20, 30, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)
    return tmp_path


def test_a_folder_is_predicted_with_every_option(pictures, workdir):
    (pictures / "zero.jpg").write_bytes(b"")
    arguments = ["--workdir", f"{workdir},{workdir}", "--images=.", "--out=out/p.csv", "--tta"]
    result = call(pictures, *arguments, "--explain=seen", "--batch_size=3")
    assert result.returncode == 3, result.stderr
    assert "Traceback" not in result.stderr
    assert "3/3" in result.stderr  # the progress bar
    assert "images/s" in result.stderr
    assert "zero.jpg: not an image" in result.stderr
    assert result.stdout == "predicted 2 images: out/p.csv\n"
    assert tables.read_predictions(pictures / "out/p.csv", HAM10000).image_ids == ["a", "b, c"]
    assert sorted(path.name for path in (pictures / "seen").glob("*.png")) == ["a.png", "b, c.png"]


def test_a_name_may_hold_a_comma(pictures, workdir):
    result = call(pictures, "--workdir", workdir, "--images", "b, c.png", "--out=p.csv")
    assert result.returncode == 0, result.stderr
    assert tables.read_predictions(pictures / "p.csv", HAM10000).image_ids == ["b, c"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--workdir=DIR, --images=FOLDER and --out=FILE.csv"),
        (["--workdir=.", "--images=.", "--out=p.csv", "more"], "unexpected argument 'more'"),
        (["--workdir=.", "--images=.", "--out=p.csv", "--batch_size=0"], "positive integer"),
        (["--workdir=.", "--images=a.png,gone.png", "--out=p.csv"], "gone.png does not exist"),
    ],
)
def test_bad_input_is_one_message_and_status_2(pictures, arguments, words):
    result = call(pictures, *arguments)
    assert result.returncode == 2
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_help_imports_nothing_heavy(tmp_path):
    code = (
        "import sys, skin_jax.predict\n"
        "heavy = {'jax', 'numpy', 'PIL', 'matplotlib', 'tensorflow'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    result = call(tmp_path, "--help")
    assert result.returncode == 0
    assert "--explain" in result.stdout
