"""Trained runs in files that other programs open."""

from pathlib import Path

from skin_jax.exports import folder
from skin_jax.train.run import Trained

__all__ = ["write"]


def write(run: Trained, out: Path) -> None:
    """Exports a run; the suffix of `out` says how."""
    folder.write(run, out)
