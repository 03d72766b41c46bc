"""What things cost: a table, and the same as JSON.

python -m benchmarks.run --suite S [--rounds 9] [--only NAME,...] [--precision float32|bf16]
    [--json FILE]

Suites: steps (training steps beside PyTorch's: pip install 'skin_jax[parity]'), augment, input,
inference and startup; the module of each says what is measured, and `benchmarks.counting` what
counts as an operation. A first try, of a minute: --suite=augment --only=flip --rounds=1.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import augmentation, feeding, inference, startup, steps, tables, timing
from skin_jax.base.files import write_atomically

Row = dict[str, Any]

SUITES = {
    "steps": steps,
    "augment": augmentation,
    "input": feeding,
    "inference": inference,
    "startup": startup,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a suite, prints its table and writes the file."""
    rows_of = "; ".join(f"{name}: {', '.join(suite.NAMES)}" for name, suite in SUITES.items())
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--suite", choices=SUITES, required=True, help="what is measured")
    parser.add_argument(
        "--rounds", type=int, default=9, help="medians are over so many (%(default)s)"
    )
    parser.add_argument("--only", metavar="NAME,...", help=f"some of the suite's rows; {rows_of}")
    parser.add_argument("--precision", choices=("float32", "bf16"), default="float32")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to, written row by row")
    options = parser.parse_args(arguments)
    suite = SUITES[options.suite]
    only = options.only.split(",") if options.only else suite.NAMES
    if unknown := sorted(set(only) - set(suite.NAMES)):
        parser.error(f"no row {', '.join(unknown)} in {', '.join(suite.NAMES)}")
    if options.rounds < 1:
        parser.error("--rounds is 1 or more")
    facts = {"suite": options.suite, **timing.machine(), "precision": options.precision}
    rows: list[Row] = []
    for row in suite.rows(options.rounds, only, options.precision):
        rows.append(row)
        print(json.dumps(row), file=sys.stderr, flush=True)
        if options.json:  # after every row: what comes later may fail
            write_atomically(options.json, json.dumps({**facts, "rows": rows}, indent=1) + "\n")
    print(tables.table(rows))


if __name__ == "__main__":
    main()
