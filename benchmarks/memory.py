"""Private memory of training with images that stay on disk, by how many there are.

python -m benchmarks.memory [--images 40000] [--image_size 96] [--pipeline tf]

Creates folders of 2,000 and of so many small JPEGs and prepares both; trains 20 steps of
`configs/classifier.py:smoke` on each, evaluates, and prints the largest RssAnon of each run: what
the process has for itself, without the pages of files that the system keeps for all. A first run,
which compiles, is not counted.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks import timing

_ROOT = Path(__file__).parents[1]
_CLASSES = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
_FEW = 2000
_EVERY_SECONDS = 0.02


def write_folder(folder: Path, count: int, size: int) -> None:
    """Writes class folders of distinct JPEG images, `size` pixels wide, quick to make."""
    for name in _CLASSES:
        (folder / name).mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for number in range(count):
        image = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).resize((size, size))
        image.save(folder / _CLASSES[number % len(_CLASSES)] / f"image_{number:06}.jpg")


def largest_rss_anon(arguments: Sequence[str], **environment: str) -> int:
    """Runs Python with arguments and variables; the largest RssAnon that was seen, in bytes.

    Raises:
      RuntimeError: the process failed; with the end of what it printed.
    """
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=_ROOT,
            env={**os.environ, "PYTHONPATH": str(_ROOT), **environment},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        largest = 0
        while process.poll() is None:
            largest = max(largest, _rss_anon(process.pid))
            time.sleep(_EVERY_SECONDS)
        if process.returncode:
            output.seek(0)
            raise RuntimeError(f"{arguments} failed:\n{output.read()[-2000:]}")
    return largest


def _rss_anon(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:  # it has just ended
        return 0
    lines = [line for line in status.splitlines() if line.startswith("RssAnon:")]
    return 1024 * int(lines[0].split()[1]) if lines else 0


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the memory of both runs, and the difference."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=40_000, help="as many (%(default)s)")
    parser.add_argument("--image_size", type=int, default=96, help="in pixels (%(default)s)")
    parser.add_argument("--pipeline", choices=("tf", "device"), default="tf")
    options = parser.parse_args(arguments)
    print(f"{timing.machine()['machine']}", flush=True)
    found = []
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        for number, count in enumerate((_FEW, _FEW, options.images)):
            folder = root / str(count)
            if not folder.exists():
                write_folder(folder, count, options.image_size)
            preparing = largest_rss_anon(
                [
                    "-m",
                    "skin_jax.prepare",
                    f"--data_dir={folder}",
                    f"--image_size={options.image_size}",
                    f"--cache_dir={root / 'cache'}",
                ]
            )
            training = largest_rss_anon(
                [
                    "-m",
                    "skin_jax.main",
                    "--config=configs/classifier.py:smoke",
                    f"--workdir={root / f'run_{number}'}",
                    f"--config.data.dir={folder}",
                    f"--config.data.cache_dir={root / 'cache'}",
                    f"--config.data.image_size={options.image_size}",
                    f"--config.data.pipeline={options.pipeline}",
                    "--config.num_steps=20",
                    "--config.eval_every_steps=20",
                ],
                JAX_COMPILATION_CACHE_DIR=str(root / "compiled"),
            )
            found.append(training)
            print(
                f"{count:,} images: RssAnon of prepare at most {preparing / 1e6:,.0f} MB, of "
                f"training {training / 1e6:,.0f} MB{' (with compiling)' * (number == 0)}",
                flush=True,
            )
    print(f"difference in training: {(found[2] - found[1]) / 1e6:,.0f} MB")


if __name__ == "__main__":
    main()
