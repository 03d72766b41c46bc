"""What the container gives a user of any id, without the container: no name, one home for all."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from skin_jax.data import demo
from skin_jax.data.classes import HAM10000

ROOT = Path(__file__).parents[2]
NOBODY = ["unshare", "--user", "--map-user=54321", "--map-group=54321"]
TINY = {
    "num_steps": 1,
    "batch_size": 8,
    "data.image_size": 32,
    "model.width": 4,
    "sharding.num_devices": 1,
}


def can_become_nobody() -> bool:
    """Whether this system lets a process take a user id that it has no name for."""
    if shutil.which(NOBODY[0]) is None:
        return False
    found = subprocess.run([*NOBODY, "id", "-u"], capture_output=True, text=True, check=False)
    return found.stdout == "54321\n"


pytestmark = pytest.mark.skipif(not can_become_nobody(), reason="user namespaces are not allowed")


def nobody(home: Path | None, *words: object) -> subprocess.CompletedProcess[str]:
    """Runs a module of the package as a user without a name."""
    unknown = {"HOME", "XDG_CACHE_HOME", "USER", "LOGNAME", "MPLCONFIGDIR"}
    environment = {key: value for key, value in os.environ.items() if key not in unknown}
    environment |= {"PYTHONPATH": str(ROOT)} | ({"HOME": str(home)} if home else {})
    command = [*NOBODY, sys.executable, "-m", *map(str, words)]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def test_a_user_without_a_name_trains(tmp_path):
    """HOME unset, because the demo needs no cache."""
    settings = [f"--config.{key}={value}" for key, value in TINY.items()]
    settings += ["--config=sgan:smoke", f"--config.data.demo_images={demo.MIN_IMAGES}"]
    done = nobody(None, "skin_jax.main", f"--workdir={tmp_path / 'run'}", *settings)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "report.html").exists()


def test_the_home_of_all_holds_what_is_prepared_and_without_one_a_sentence_says_so(tmp_path):
    for name in HAM10000.names:
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(3):
            pixels = np.random.default_rng([len(name), i]).integers(0, 256, (9, 9, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / name / f"{i}.png")
    (tmp_path / "home").mkdir(mode=0o1777)
    words = "skin_jax.prepare", f"--data_dir={tmp_path / 'data'}", "--image_size=32"
    done = nobody(tmp_path / "home", *words)
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "home" / ".cache" / "skin_jax" / "prepared").iterdir())
    done = nobody(None, *words)
    assert done.returncode == 2
    assert "there is no home folder to take for ~; set the variable HOME" in done.stderr
    assert "Traceback" not in done.stderr
