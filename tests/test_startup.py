"""How entry points start: what they import, and where compiled programs are kept."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from skin_jax.base import command, files

ROOT = Path(__file__).parents[1]
SLOW = ("jax", "tensorflow", "sklearn", "matplotlib", "orbax", "flax")  # to import

COMPILES = """
from skin_jax.base import command

def main(argv):
    import jax
    events = []
    jax.monitoring.register_event_listener(lambda event, **_: events.append(event))
    jax.jit(lambda x: x + 1)(1.0).block_until_ready()
    print(sum(event.endswith("cache_hits") for event in events), "hits")

command.run(main)
"""


def python(*arguments, **environment):
    kept = {key: value for key, value in os.environ.items() if not key.startswith("JAX_")}
    done = subprocess.run(
        [sys.executable, *arguments],
        env=kept | {"JAX_PLATFORMS": "cpu"} | environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout, done.stderr


@pytest.mark.parametrize(
    "command_line",
    [
        "main",
        "main --config=classifier:smoke",
        "prepare",
        "generate",
        "predict",
        "export",
        "serve",
        "study",
        "study --config=study_augmentation",
        "eval",
        "eval.baselines",
        "eval.calibrate",
    ],
)
def test_help_imports_nothing_slow(command_line):
    module, *more = command_line.split()
    out, imported = python("-X", "importtime", "-m", f"skin_jax.{module}", "--help", *more)
    assert "flags:" in out
    names = {line.rpartition("|")[2].strip().partition(".")[0] for line in imported.splitlines()}
    assert "absl" in names
    assert not names.intersection(SLOW)


def test_the_second_start_finds_what_the_first_compiled(tmp_path):
    script = tmp_path / "compiles.py"
    script.write_text(COMPILES)
    kept = tmp_path / "cache" / "skin_jax" / "xla"
    kept.mkdir(parents=True)
    printed = [python(script, XDG_CACHE_HOME=str(tmp_path / "cache"))[0] for _ in range(2)]
    assert printed[0] == "0 hits\n"
    assert printed[1] != "0 hits\n"
    assert list(kept.glob("jit__lambda*"))
    assert kept.stat().st_mode & 0o077 == 0

    chosen = tmp_path / "chosen"
    cache_home = {"XDG_CACHE_HOME": str(tmp_path / "unused")}
    python(script, JAX_COMPILATION_CACHE_DIR=str(chosen), **cache_home)
    assert list(chosen.iterdir())
    python(script, JAX_COMPILATION_CACHE_DIR="", **cache_home)
    assert not (tmp_path / "unused").exists()
    python(script, JAX_ENABLE_COMPILATION_CACHE="false", **cache_home)
    assert not list((tmp_path / "unused" / "skin_jax" / "xla").iterdir())


def test_a_cache_that_cannot_be_written_gives_one_warning(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(files, "CACHE_ROOT", str(tmp_path / "file"))
    (tmp_path / "file").write_text("")
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    command._keep_compiled()
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: compiled programs cannot be kept for the next start")
    assert "set JAX_COMPILATION_CACHE_DIR to a folder" in line
