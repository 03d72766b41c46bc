"""Static checks: the shell scripts, and the Dockerfile against what it copies and installs."""

import fnmatch
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHELL = sorted(
    path
    for folder in ("launch", ".ci")
    for path in (ROOT / folder).iterdir()
    if path.suffix in (".sh", ".sbatch") or path.read_text().startswith("#!")
)


@pytest.mark.parametrize("path", SHELL, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(path):
    result = subprocess.run(
        [Path(sys.executable).with_name("shellcheck"), "--external-sources", path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_what_a_user_calls_can_be_executed():
    for name in ("local_multiprocess.sh", "tpu_vm.sh"):
        assert (ROOT / "launch" / name).stat().st_mode & 0o111


def instructions() -> list[tuple[str, str]]:
    text = (ROOT / "launch/Dockerfile").read_text()
    lines = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    return [
        (line.split(maxsplit=1)[0], line.split(maxsplit=1)[1])
        for line in lines.replace("\\\n", " ").splitlines()
        if line.strip()
    ]


def test_the_image_copies_what_the_context_holds():
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    assert ignore[0] == "*"
    kept = {line[1:] for line in ignore if line.startswith("!")}
    copied = [
        source for name, rest in instructions() if name == "COPY" for source in rest.split()[:-1]
    ]
    assert set(copied) == kept
    assert all((ROOT / source).exists() for source in copied)
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["readme"]
    assert any(fnmatch.fnmatch(needed, source) for source in copied)


def test_the_image_installs_extras_that_exist():
    (install,) = (rest for name, rest in instructions() if name == "RUN" and "case" in rest)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (choices,) = re.findall(r"(\w+(?:\|\w+)*)\) extras=\"([^\"]*)\$EXTRA\"", install)
    assert set(choices[0].split("|")) <= project["optional-dependencies"].keys()
    named = set(choices[1].strip(",").split(","))
    named |= {
        name
        for extras in re.findall(r'cpu\) extras="([^"]*)"', install)
        for name in extras.split(",")
    }
    assert named <= project["optional-dependencies"].keys()
    assert "kubernetes" in install  # or JAX finds no JobSet


def test_the_image_runs_the_trainer_as_an_ordinary_user():
    names = [name for name, _ in instructions()]
    rest = dict(instructions())
    assert names[-2:] == ["USER", "ENTRYPOINT"]
    assert int(rest["USER"]) > 0
    assert rest["ENTRYPOINT"] == '["python", "-m", "skin_jax.main"]'


def test_the_image_has_a_home_for_users_of_any_id():
    """tests/launch/test_container.py runs commands as such a user."""
    (home,) = (rest for name, rest in instructions() if name == "ENV")
    folder = home.removeprefix("HOME=")
    assert folder == "/home/skin_jax"  # that of `useradd --create-home`
    (made,) = (rest for name, rest in instructions() if name == "RUN" and "useradd" in rest)
    for step in ("useradd --create-home", f"chmod 1777 {folder}", "chmod -R a+rX /app"):
        assert step in made
