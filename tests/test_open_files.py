"""Whatever commands read, a pipe in its place is refused by name and not waited for."""

import os
import shutil

import pytest

from skin_jax import config as config_lib
from skin_jax.base.errors import UserError
from skin_jax.data import layouts, splits
from skin_jax.data.classes import HAM10000
from skin_jax.eval import reader_items, tables
from skin_jax.training.history import History
from skin_jax.training.run import trained
from skin_jax.training.trackers import Tracker


def read_metadata(path):
    (path.parent / "HAM10000_images_part_1").mkdir()
    layouts.read(path.parent)


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("p.csv", lambda path: tables.join(path, path, HAM10000)),
        ("p.csv", lambda path: tables.classes_of(path, path)),
        ("splits.csv", lambda path: splits.members(path, "train")),
        ("study.key.json", reader_items.read_key),
        ("HAM10000_metadata.csv", read_metadata),
        ("config.json", lambda path: config_lib.read(path.parent)),
        ("metrics.jsonl", lambda path: History(path.parent, Tracker())),
    ],
)
def test_a_pipe_is_refused_by_name(tmp_path, name, read):
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match=f"{name}.*(not a regular file|a device or a pipe)"):
        read(tmp_path / name)


@pytest.mark.xdist_group("small_gan")
@pytest.mark.parametrize("name", ["classes.json", "splits.csv", "examples.digest"])
def test_a_pipe_in_a_work_folder_is_refused_by_name(small_gan, tmp_path, name):
    run = shutil.copytree(small_gan, tmp_path / "run")
    (run / name).unlink()
    os.mkfifo(run / name)
    with pytest.raises(UserError, match=f"{name} .*not a regular file"):
        trained(run)
