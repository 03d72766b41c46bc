"""How commands start and end; the scripts stand in for commands that would take their time."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from absl import flags
from ml_collections import ConfigDict

from skin_jax.base import command, errors
from skin_jax.base.errors import UserError

ROOT = Path(__file__).parents[2]
BEGIN = '''"""Does something.

Then more.
"""
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
from ml_collections import ConfigDict
from skin_jax.base import command

WORKDIR = command.define_path("workdir", None, "Folder of the work.")
PATHS = command.define_paths("paths", "Some paths.")

def load(file):
    return ConfigDict({"file": file, "seed": 0, "data": {"on": False}})
'''
RUN = "\ncommand.run(main)\n"


def script(folder: Path, body: str, *arguments: object, status: int = 0, **options):
    """What a command prints on stdout and stderr."""
    path = folder / "script.py"
    path.write_text(BEGIN + body)
    done = subprocess.run(
        [sys.executable, path, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(folder / "cache")},
        text=True,
        timeout=60,
        check=False,
        **{"capture_output": True, **options},
    )
    assert done.returncode == status, done.stderr
    return done.stdout, done.stderr


def loaded(file: str) -> ConfigDict:
    if file == "none":
        raise UserError("there is no such file")
    return ConfigDict({"file": file, "seed": 0, "rate": 0.5, "data": {"on": False, "dir": ""}})


@pytest.mark.parametrize(
    "words",
    [
        "--config.seed=3 --workdir=w --config=a:smoke --config.data.on --config.data.dir=x",
        "--config=a:smoke --config.data.dir x --config.seed 3 --config.data.on=true --workdir=w",
        "--workdir=w --config a:smoke --config.data.on -config.seed=3 --config.data.dir=x",
        "--config=b --config.data.dir=x --noconfig.data.on --config.data.on --config.seed=1 "
        "--config.seed=3 --workdir=w --config=a:smoke",
    ],
)
def test_a_configuration_and_its_settings_may_stand_anywhere(words):
    config, rest = command._configured(["main", *words.split()], loaded)
    assert rest == ["main", "--workdir=w"]
    assert (config.file, config.seed, config.data.on, config.data.dir) == ("a:smoke", 3, True, "x")
    with pytest.raises(AttributeError):
        config.sed = 3


def test_what_follows_two_dashes_is_no_setting():
    words = ["main", "--config=a", "--", "--config.seed=1"]
    config, rest = command._configured(words, loaded)
    assert (config.seed, rest) == (0, ["main", "--", "--config.seed=1"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--config=none", "there is no such file"),
        ("--config.seed=1", "--config.seed needs --config=NAME"),
        ("--config --config.seed=1", "--config.seed needs --config=NAME"),
        ("--config=a --config.sed=1", "did you mean --config.seed"),
        ("--config=a --config.seed", "config.seed is 'True'; it takes a whole number"),
        ("--config=a --noconfig.rate", "config.rate is 'False'; it takes a number"),
        ("--config=a --config.data=1", "--config.data is a section"),
    ],
)
def test_a_command_line_that_does_not_fit_is_one_sentence(words, message):
    with pytest.raises(UserError) as error:
        command._configured(["main", *words.split()], loaded)
    assert message in str(error.value)


def test_no_configuration_is_none():
    assert command._configured(["main", "--workdir=w"], loaded) == (None, ["main", "--workdir=w"])


def test_the_home_is_expanded_in_paths_and_a_name_may_hold_commas(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setattr(flags, "FLAGS", flags.FlagValues())
    one = command.define_path("one", None, "One.")
    more = command.define_paths("more", "More.")
    flags.FLAGS(["main", "--one=~/x", "--more=~/a,~/b", "--more", "c"])
    assert one.value == "/home/me/x"
    assert [path for given in more.value for path in command.paths_in(given)] == [
        "/home/me/a",
        "/home/me/b",
        "c",
    ]
    (tmp_path / "a,b").touch()
    assert command.paths_in(f"{tmp_path}/a,b") == [f"{tmp_path}/a,b"]


def test_the_version_is_that_of_the_project(monkeypatch):
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]

    def not_installed(name: str) -> str:
        raise command.metadata.PackageNotFoundError

    monkeypatch.setattr(command.metadata, "version", not_installed)
    assert command.version() == declared


def test_help_has_the_docstring_the_flags_and_the_settings(tmp_path):
    body = "def main(argv, config): pass\ncommand.run(main, load)\n"
    out, err = script(tmp_path, body, "--help", "--config=x")
    assert err == ""
    assert out.startswith("Does something.\n\nThen more.\n")
    for words in (
        "  --workdir\n      Folder of the work.",
        "  --paths\n      Some paths.",
        "--debug",
    ):
        assert words in out
    assert "settings of this configuration:" in out
    assert script(tmp_path, body, "--version")[0].startswith("skin_jax ")


def test_the_status_is_what_the_work_returns_and_messages_go_to_stderr(tmp_path):
    body = """
from skin_jax.base.errors import Ended, UserError
def main(argv):
    if argv[1:] == ["user"]: raise UserError("put it right", 7)
    if argv[1:] == ["ended"]: raise Ended("all is saved", 143)
    print("done")
    return 3
"""
    assert script(tmp_path, body + RUN, status=3) == ("done\n", "")
    assert script(tmp_path, body + RUN, "user", status=7) == ("", "error: put it right\n")
    assert script(tmp_path, body + RUN, "ended", status=143) == ("", "all is saved\n")
    _, err = script(tmp_path, body + RUN, "--workdirs=x", status=errors.BAD_INPUT)
    assert err.startswith("error: Unknown command line flag 'workdirs'")


@pytest.mark.parametrize("others", [False, True])
def test_libraries_that_were_interrupted_take_no_part_in_the_end(tmp_path, others):
    body = f"""
import atexit
from skin_jax.base.errors import Ended
def main(argv):
    atexit.register(print, "farewell")
    print("some words")
    raise Ended("all is saved", 143, others={others})
"""
    out, err = script(tmp_path, body + RUN, status=errors.PREEMPTED)
    assert out == "some words\n" + "farewell\n" * others
    assert err == "all is saved\n"


def test_the_traceback_of_an_unforeseen_error_is_kept_where_the_message_says(tmp_path):
    body = "def main(argv): return {}['what']" + RUN
    workdir = tmp_path / "run"
    workdir.mkdir()
    (workdir / "config.json").touch()
    for flag, folder in ((f"--workdir={workdir}", workdir), ("--workdir=nowhere", None)):
        out, err = script(tmp_path, body, flag, status=errors.FAILURE)
        assert out == ""
        assert err.startswith("error: unforeseen KeyError: 'what'; the traceback is in ")
        assert err.count("\n") == 1
        log = Path(err.partition(" is in ")[2].partition(", and --debug shows it")[0])
        assert folder is None or log.parent == folder
        assert "KeyError: 'what'" in log.read_text()
        log.unlink()
    assert "Traceback" in script(tmp_path, body, "--debug", status=errors.FAILURE)[1]


def test_a_log_does_not_make_an_empty_folder_one_of_somebody_elses_files(tmp_path):
    workdir = tmp_path / "run"
    workdir.mkdir()
    (workdir / ".lock").touch()
    body = "def main(argv): 1 / 0" + RUN
    _, err = script(tmp_path, body, f"--workdir={workdir}", status=errors.FAILURE)
    assert [path.name for path in workdir.iterdir()] == [".lock"]
    Path(err.partition(" is in ")[2].partition(", and")[0]).unlink()


@pytest.mark.parametrize(
    "body",
    [
        "os.kill(os.getpid(), signal.SIGINT)",
        "def load(file): os.kill(os.getpid(), signal.SIGINT)\n"
        "def main(argv, config): pass\ncommand.run(main, load)",
        "def main(argv, config): os.kill(os.getpid(), signal.SIGINT)\ncommand.run(main, load)",
    ],
    ids=["imports", "parsing", "work"],
)
def test_ctrl_c_is_one_word_and_status_130(tmp_path, body):
    _, err = script(tmp_path, body, "--config=x", status=errors.INTERRUPTED)
    assert err == "interrupted\n"


def test_ctrl_c_ends_a_command_whose_main_thread_never_gets_to_it(tmp_path):
    body = """
import threading
from skin_jax.base import interrupts
interrupts._GRACE_SECONDS = 0.0

def main(argv):
    forever = threading.Lock()
    forever.acquire()
    signal.signal(signal.SIGINT, lambda *_: forever.acquire())  # as a library that compiles
    os.kill(os.getpid(), signal.SIGINT)
"""
    _, err = script(tmp_path, body + RUN, status=errors.INTERRUPTED)
    assert err == "interrupted\n"


def test_ctrl_c_leaves_nothing_half_written(tmp_path):
    body = f"""
from skin_jax.base import files
folder = {str(tmp_path / "results")!r}

def main(argv):
    os.replace = lambda *_: print(len(os.listdir(folder))) or os.kill(os.getpid(), signal.SIGINT)
    files.write_atomically(folder + "/results.csv", "half")
"""
    out, _ = script(tmp_path, body + RUN, status=errors.INTERRUPTED)
    assert out == "1\n"
    assert not list((tmp_path / "results").iterdir())


@pytest.mark.parametrize(
    ("flush", "unbuffered", "status"),
    [(True, "", errors.FAILURE), (True, "1", errors.FAILURE), (False, "", 0)],
    ids=["flushed", "unbuffered", "at the end"],
)
def test_a_reader_that_goes_away_ends_the_command_quietly(
    tmp_path, monkeypatch, flush, unbuffered, status
):
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    body = f"""
def main(argv):
    os.read(0, 1)
    print("x" * 9, flush={flush})
"""
    gone, alive = os.pipe(), os.pipe()
    os.close(gone[0])
    os.write(alive[1], b"!")
    _, err = script(
        tmp_path,
        body + RUN,
        status=status,
        capture_output=False,
        stdin=alive[0],
        stdout=gone[1],
        stderr=subprocess.PIPE,
    )
    assert err == ""
    for descriptor in (gone[1], *alive):
        os.close(descriptor)


def test_a_closed_stdout_is_no_place_for_files(tmp_path):
    body = f"""
def main(argv):
    print("nowhere", flush=True)
    sys.stderr.write("nor there")
    assert open({str(tmp_path / "file")!r}, "w").fileno() > 2
"""
    (tmp_path / "script.py").write_text(BEGIN + body + RUN)
    shell = f'exec "$0" "{tmp_path}/script.py" >&- 2>&-'
    done = subprocess.run(
        ["sh", "-c", shell, sys.executable],
        env=os.environ | {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path)},
        timeout=60,
        check=False,
    )
    assert done.returncode == 0
    assert (tmp_path / "file").read_text() == ""


def test_shares_are_above_0_and_at_most_1():
    assert command.shares_in(["1", "0.8"], "scales") == [1.0, 0.8]
    for wrong in ([], ["0"], ["1.1"], ["nan"], ["1", "half"]):
        with pytest.raises(UserError, match=r"--scales is '.*'; it takes numbers above 0"):
            command.shares_in(wrong, "scales")
