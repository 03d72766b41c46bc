"""What the cache of prepared images costs each start, and that it notices changed contents.

python -m benchmarks.starting_again [--images 10000] [--size 224]

Creates class folders of so many JPEGs and prepares them at 64 pixels: the first time; again; after
all files were given new times, so that they are read and hashed again; and after one of them was
given other contents, but its size and time. Seconds are CPU time of all threads, the best of three
where nothing has to be prepared.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

from benchmarks import timing
from benchmarks.memory import write_folder
from skin_jax.data import store

_SETTLED_SECONDS = 4.0  # younger files are read again: see `skin_jax.data.contents`


def main() -> None:
    """Prints what each start cost, then the same as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--size", type=int, default=224)
    options = parser.parse_args()
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        data, cache = Path(folder, "data"), Path(folder, "cache")

        def start(what: str) -> str:
            """Measures a start; the digest of the images that it found."""
            before = time.process_time()
            examples = store.prepare(data, image_size=64, cache_dir=cache, progress=False)
            seconds = time.process_time() - before
            found[what] = min(seconds, found.get(what, seconds))
            return examples.digest

        write_folder(data, options.images, options.size)
        files = sorted(data.rglob("*.jpg"))
        size = sum(file.stat().st_size for file in files) / 1e6
        time.sleep(_SETTLED_SECONDS)
        first = start("first start")
        for _ in range(3):
            assert start("again") == first
        for file in files:
            os.utime(file)
        time.sleep(_SETTLED_SECONDS)
        assert start("with all files hashed again") == first
        changed, status = files[len(files) // 2], files[len(files) // 2].stat()
        content = bytearray(changed.read_bytes())
        content[-len(content) // 4] ^= 1
        changed.write_bytes(content)
        os.utime(changed, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert start("with one image changed") != first
    for what, seconds in found.items():
        print(f"{what}: {seconds:.2f} s for {len(files):,} files ({size:.0f} MB)")
    print(
        json.dumps({"cpu_seconds": found, "megabytes": size, **timing.machine(), **vars(options)})
    )


if __name__ == "__main__":
    main()
