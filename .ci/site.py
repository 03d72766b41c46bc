"""What the documentation site has beyond docs/: a page of commands, from their --help."""

import subprocess
import sys

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from skin_jax.__main__ import COMMANDS


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds commands.md."""
    parts = ["# Commands\n\nWhat `python -m skin_jax.COMMAND --help` prints.\n"]
    for name in COMMANDS:
        command = [sys.executable, "-m", f"skin_jax.{name}", "--help"]
        said = subprocess.run(command, capture_output=True, text=True).stdout
        parts.append(f"## {name}\n\n```text\n{said.strip()}\n```\n")
    files.append(File.generated(config, "commands.md", content="\n".join(parts)))
    return files
