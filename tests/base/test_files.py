import json
import os
import pwd
import stat
from typing import NamedTuple

import numpy as np
import pytest
from etils import epath

from skin_jax.base import files
from skin_jax.base.errors import UserError
from skin_jax.base.files import write_atomically


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "p.csv"
    path.write_text("old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(UserError, match="No space left"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_written_files_have_the_permissions_of_any_new_file(tmp_path):
    write_atomically(tmp_path / "a", b"x")
    (tmp_path / "b").write_bytes(b"x")
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == stat.S_IMODE(
        (tmp_path / "b").stat().st_mode
    )


def test_a_folder_that_cannot_be_made_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_atomically(tmp_path / "file" / "p.csv", "x")


def test_a_place_where_nothing_can_be_written_is_refused_before_the_work(tmp_path, monkeypatch):
    files.check_writable(tmp_path / "not" / "there" / "yet.csv", tmp_path / "here.csv")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/p\.csv: cannot be written \(Not a directory\)"):
        files.check_writable(tmp_path / "p.csv", tmp_path / "file" / "p.csv")
    with pytest.raises(UserError, match="is a folder"):
        files.check_writable(tmp_path)

    def refused(*args, dir, **kwargs):
        assert dir == tmp_path
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(files.tempfile, "TemporaryFile", refused)
    with pytest.raises(UserError, match=r"cannot be written \(Permission denied\); give another"):
        files.check_writable(tmp_path / "not" / "there" / "p.csv")


def test_only_regular_files_are_opened(tmp_path):
    (tmp_path / "file").write_text("é")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    assert files.read_text(tmp_path / "link") == "é"
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/null"):
        with pytest.raises(OSError, match="not a regular file"):
            files.read_bytes(path)
    with pytest.raises(IsADirectoryError):
        files.read_bytes(tmp_path)


def test_a_lock_keeps_others_out_until_it_is_released(tmp_path):
    with files.locked(tmp_path / "lock") as alone:
        assert alone
        with pytest.raises(BlockingIOError), files.locked(tmp_path / "lock"):
            pass
    with files.locked(tmp_path / "lock") as alone:
        assert alone


def test_without_locks_the_work_goes_on_with_a_warning(tmp_path, monkeypatch, capsys):
    def flock(file, operation):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(files.fcntl, "flock", flock)
    with files.locked(tmp_path / "lock") as alone:
        assert not alone
    assert "cannot be locked" in capsys.readouterr().err


class Pair(NamedTuple):
    mean: float
    sd: float


def test_json_has_plain_values_and_null_for_what_is_not_finite(tmp_path):
    content = {
        1: (np.int64(2), np.float32(0.5), np.bool_(True)),
        "rows": np.array([[1.0, np.nan], [np.inf, 4.0]]),
        "spread": Pair(0.25, float("nan")),
        "none": None,
        "text": "é",
    }
    files.write_json(tmp_path / "c.json", content)
    assert json.loads((tmp_path / "c.json").read_text()) == {
        "1": [2, 0.5, True],
        "rows": [[1.0, None], [None, 4.0]],
        "spread": {"mean": 0.25, "sd": None},
        "none": None,
        "text": "é",
    }


@pytest.mark.parametrize("kind", ["link", "folder", "pipe"])
def test_only_files_are_replaced(tmp_path, kind):
    path, other = tmp_path / "p.csv", tmp_path / "other.csv"
    other.write_text("old")
    {"link": lambda: path.symlink_to(other), "folder": path.mkdir, "pipe": lambda: os.mkfifo(path)}[
        kind
    ]()
    before = path.lstat()
    with pytest.raises(UserError, match=r"p\.csv is a .*(link|folder|pipe), which is never repl"):
        write_atomically(path, "new")
    assert (path.lstat(), other.read_text()) == (before, "old")


def test_a_lock_never_empties_a_file(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    (tmp_path / ".lock").symlink_to(tmp_path / "mine.txt")
    with files.locked(tmp_path / ".lock"):
        assert (tmp_path / "mine.txt").read_text() == "mine"


def test_a_home_that_nobody_knows_is_said(monkeypatch):
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as for a user without a name
    with pytest.raises(UserError, match="there is no home folder"):
        files.expanded("~/x")


def test_libraries_take_files_of_owners_without_a_name(tmp_path, monkeypatch):
    def unknown(number):
        raise KeyError(f"getpwuid(): uid not found: {number}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    files.without_owners()
    (tmp_path / "a").write_text("12")
    assert epath.Path(tmp_path / "a").stat().length == 2
