"""Names the command that trains: this package is its loop."""

import sys

if __name__ == "__main__":
    print(
        "error: skin_jax.train is no command; train with "
        "python -m skin_jax.main --config=NAME --workdir=DIR",
        file=sys.stderr,
    )
    sys.exit(2)
