"""The error that a user can act on: one clear sentence, and the exit code that goes with it."""

import sys
from collections.abc import Sequence

FAILURE = 1
BAD_INPUT = 2
PARTIAL = 3
STANDS_STILL = 75
INTERRUPTED = 130
PEER_DIED = 134
PREEMPTED = 143


class UserError(Exception):
    """Something that the user can put right; entry points print it without a traceback.

    The message says what is wrong, where, and what to do.
    """

    def __init__(self, message: str, exit_code: int = BAD_INPUT):
        super().__init__(message)
        self.exit_code = exit_code


class Ended(BaseException):
    """The process was asked to end by a signal: INTERRUPTED or PREEMPTED.

    It may come in the middle of anything, so no handler of errors (`except Exception`) may take it
    for a failure of what it interrupts. The message says what is saved, and what to do.

    A command then ends without the farewells of libraries, which crash where they were interrupted,
    unless there are `others`: processes that wait for these.
    """

    def __init__(self, message: str, exit_code: int, *, others: bool = False):
        super().__init__(message)
        self.exit_code = exit_code
        self.others = others


def listed(summary: str, problems: Sequence[str], shown: int = 10) -> UserError:
    """A UserError over a collected list: the count, then the first `shown` problems, one a line."""
    lines = [f"{summary} ({len(problems)} problem{'s' if len(problems) != 1 else ''}):"]
    lines += [f"  - {problem}" for problem in problems[:shown]]
    if len(problems) > shown:
        lines.append(f"  ... and {len(problems) - shown} more")
    return UserError("\n".join(lines))


def first_line(error: BaseException) -> str:
    """The message of an error, as one line: those of libraries may be pages long."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def warn(message: str) -> None:
    """Says on stderr what the user should know of, where the work continues."""
    print(f"warning: {message}", file=sys.stderr, flush=True)
