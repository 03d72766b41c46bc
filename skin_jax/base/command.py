"""How every entry point starts and ends: flags in, one exit status out."""

import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from absl import app, flags, logging

from skin_jax import config as config_lib
from skin_jax.base import errors

_T = TypeVar("_T")
_CACHE = "JAX_COMPILATION_CACHE_DIR"
_HELP = ("--help", "-help", "-h", "--helpshort")


def run(main: Callable[[list[str]], int | None]) -> None:
    """Parses the command line, calls `main(argv)` and exits with its status.

    A UserError is printed on stderr as it is, without a traceback, and gives the exit status.
    Unknown flags and unknown `--config.` keys end with status 2 and the nearest known names.

    Programs that JAX compiles are kept for the next start, in the folder `xla` of
    `config.CACHE_ROOT`; JAX's own variables in the environment have precedence.
    """
    # TensorFlow, where it is used, only moves images: its start-up notes are about arithmetic.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    # What the libraries log is not the user's to act on: what they raise is, and it is said.
    logging.set_verbosity(logging.FATAL)

    def with_cache(argv: list[str]) -> int | None:
        _keep_compiled()
        return main(argv)

    app.run(lambda argv: _guarded(lambda: with_cache(argv)), flags_parser=_parse)


def _keep_compiled() -> None:
    """Names the folder for compiled programs to JAX, which reads the environment at its import."""
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    if _CACHE in os.environ:
        return
    try:
        folder = Path(config_lib.CACHE_ROOT).expanduser() / "xla"
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)  # its programs are run as they are: nobody else may put one there
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home
        errors.warn(
            f"compiled programs cannot be kept for the next start ({error}); set {_CACHE} to a "
            "folder that can be written, or to nothing for none"
        )
        return
    os.environ[_CACHE] = str(folder)


def _guarded(action: Callable[[], _T]) -> _T:
    try:
        return action()
    except errors.UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except errors.Ended as end:
        print(end, file=sys.stderr)
        sys.exit(end.exit_code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(errors.INTERRUPTED)


def _parse(argv: list[str]) -> list[str]:
    if any(arg in _HELP for arg in argv[1:]):
        app.usage(shorthelp=True, writeto_stdout=True, exitcode=0)
    return _guarded(lambda: _parse_or_explain(argv))


def _parse_or_explain(argv: list[str]) -> list[str]:
    path = config_lib.path_in(argv).partition(":")[0]
    if path and not Path(path).is_file():
        raise errors.UserError(
            f"there is no file {path} in {Path.cwd()}; configs/ lies in the repository: run from "
            "there, or give the file's full path"
        )
    try:
        return flags.FLAGS(argv)
    except errors.UserError:
        raise
    except (AttributeError, KeyError):
        # ml_collections raises these, bare, for an override of a key that the file does not define.
        raise config_lib.unknown_key_error(argv, flags.FLAGS["config"].parser.parse) from None
    except (flags.Error, OSError) as error:
        if any(arg.startswith("--config.") for arg in argv) and not config_lib.path_in(argv):
            raise errors.UserError("--config.key=value needs --config=configs/X.py") from None
        raise errors.UserError(f"{error} (see --help)") from None
    except Exception as error:  # of the configuration file: it is a program
        where = traceback.extract_tb(error.__traceback__)[-1]
        raise errors.UserError(
            f"the configuration {config_lib.path_in(argv)} failed: {type(error).__name__}: {error} "
            f"({where.filename}, line {where.lineno})"
        ) from None
