"""The commands that the documents print exist, with those flags and settings."""

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from skin_jax import config
from skin_jax.__main__ import COMMANDS

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_BLOCK = re.compile(r"^```sh\n(.*?)^```", re.DOTALL | re.MULTILINE)


def printed(path: Path) -> list[list[str]]:
    """The arguments of each `python -m` of a document's blocks."""
    found = []
    for block in _BLOCK.findall(path.read_text()):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if "-m" in words and words[words.index("-m") - 1].startswith("python"):
                found.append(words[words.index("-m") + 1 :])
    return found


COMMANDS_PRINTED = [
    pytest.param(words, id=f"{path.name}-{i}-{words[0]}")
    for path in DOCUMENTS
    for i, words in enumerate(printed(path))
    if words[0].startswith("skin_jax")
]


@pytest.fixture(scope="module")
def known_flags():
    """The flags of each command, from its help."""
    running = {
        name: subprocess.Popen(
            [sys.executable, "-m", f"skin_jax.{name}", "--help"], stdout=subprocess.PIPE, text=True
        )
        for name in COMMANDS
    }
    return {
        f"skin_jax.{name}": set(re.findall(r"--(?:\[no\])?(\w+)", process.communicate()[0]))
        for name, process in running.items()
    }


def test_documents_print_commands():
    assert len(COMMANDS_PRINTED) > 30


@pytest.mark.parametrize("words", COMMANDS_PRINTED)
def test_a_printed_command_has_known_flags_and_settings(known_flags, words):
    command, *rest = words
    if command == "skin_jax":
        return
    assert command in known_flags
    given = dict(word[2:].partition("=")[::2] for word in rest if word.startswith("--"))
    named = {name: value for name, value in given.items() if not name.startswith("config.")}
    assert {name.partition(".")[0] for name in given} <= known_flags[command]
    if "config" not in named or not named["config"].isidentifier():
        path, _, variant = named.get("config", "").partition(":")
        if not path.startswith("configs/"):
            return
        named["config"] = Path(path).stem + (f":{variant}" if variant else "")
    settings = config.flatten(config.load(named["config"]))
    names = set(settings)
    for name in given.keys() - named.keys():
        key = name.removeprefix("config.")
        assert key in names or any(known.startswith(f"{key}.") for known in names), key


def test_the_python_lines_of_the_readme_do_what_their_comments_say(tmp_path, monkeypatch):
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    (tmp_path / "zoo").symlink_to(ROOT / "zoo")
    pixels = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "PHOTO.jpg")
    monkeypatch.chdir(tmp_path)
    names, shapes = {}, []
    for statement in ast.parse(code).body:
        if isinstance(statement, ast.Expr):
            shapes.append(list(eval(ast.unparse(statement), names).shape))
        else:
            exec(ast.unparse(statement), names)
    promised = re.findall(r"# .*\[([\d, ]+)\]", code)
    assert shapes == [[int(n) for n in shape.split(",")] for shape in promised]
    assert len(shapes) == 2
