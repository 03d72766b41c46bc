"""How many threads to start."""

import os


def workers(most: int) -> int:
    """One thread for each processor, at most `most`, at least one."""
    return max(1, min(most, os.cpu_count() or 1))
