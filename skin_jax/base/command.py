"""How every command starts and ends: flags in, one exit status out."""

import atexit
import contextlib
import os
import re
import select
import signal
import sys
import tempfile
import tomllib
import traceback
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from skin_jax.base import errors, interrupts


def _uncaught(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """Ends a command that Ctrl-C reaches before `run`, while modules are imported."""
    if issubclass(kind, KeyboardInterrupt):
        interrupts.end()
    sys.__excepthook__(kind, error, trace)


sys.excepthook = _uncaught  # from here on: the imports below take most of a start's time

from absl import app, flags, logging  # noqa: E402
from ml_collections import ConfigDict  # noqa: E402

from skin_jax.base import files, settings  # noqa: E402

flags.disclaim_key_flags()  # a flag defined through this module belongs to the command that asks

_T = TypeVar("_T")

_CACHE = "JAX_COMPILATION_CACHE_DIR"
_HELP = {"--help", "-help", "-h", "--helpshort", "--helpfull"}
_VERSION = {"--version", "-version"}


class _Path(flags.ArgumentParser[str]):
    """Expands `~` to the user's home."""

    syntactic_help = "a path"

    def parse(self, argument: str) -> str:
        return os.path.expanduser(argument)


def define_path(name: str, default: str | None, help: str) -> flags.FlagHolder[str | None]:
    """Defines a flag for a path."""
    serializer = flags.ArgumentSerializer[str]()
    return flags.DEFINE(_Path(), name, default, help, flags.FLAGS, serializer)


def define_paths(name: str, help: str) -> flags.FlagHolder[list[str]]:
    """Defines a flag for paths that may be repeated; `paths_in` reads each of its values."""
    serializer = flags.ArgumentSerializer[str]()
    return flags.DEFINE_multi(_Path(), serializer, name, [], f"{help}\n", flags.FLAGS)


def paths_in(text: str) -> list[str]:
    """Splits paths at commas, but for a text that is the path of something itself."""
    parts = [text] if os.path.lexists(text) else text.split(",")
    return [os.path.expanduser(part) for part in parts if part]


def shares_in(texts: Sequence[str], flag: str) -> list[float]:
    """Reads shares in (0, 1], of which there is at least one; UserError for others."""
    try:
        found = [float(text) for text in texts]
        if not found or not all(0.0 < share <= 1.0 for share in found):
            raise ValueError
    except ValueError:
        raise errors.UserError(
            f"--{flag} is {','.join(texts)!r}; it takes numbers above 0 and at most 1, such as "
            "1,0.8"
        ) from None
    return found


def shard_in(text: str) -> tuple[int, int]:
    """Reads i/n, a share and how many there are; UserError for anything else."""
    found = re.fullmatch(r"([0-9]+)/([0-9]+)", text)
    if found is None or not int(found[1]) < int(found[2]):
        raise errors.UserError(
            f"--shard is {text!r}; it takes i/n, the number of a share from 0 and how many there "
            "are, such as 0/4 to 3/4"
        )
    return int(found[1]), int(found[2])


def version() -> str:
    """The version of the package."""
    try:
        return metadata.version("skin_jax")
    except metadata.PackageNotFoundError:  # a checkout that is not installed
        project = Path(__file__).parents[2] / "pyproject.toml"
        return str(tomllib.loads(project.read_text())["project"]["version"])


def run(main: Callable[..., int | None], load: Callable[[str], ConfigDict] | None = None) -> None:
    """Parses the command line, calls `main(argv)` and exits with its status.

    A UserError is printed on stderr as it is, without a traceback, and gives the exit status; the
    traceback of any other error goes to a file, which is named. Unknown flags and settings end with
    status 2 and the nearest known names.

    Programs that JAX compiles are kept for the next start, in the folder `xla` of
    `files.CACHE_ROOT`; JAX's own variables in the environment have precedence.

    Args:
      main: the work; the docstring of its module is the help.
      load: gives the configuration that `--config` names, for a command that takes one; its work is
        `main(argv, config)`, with the settings of the command line (None without --config).
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass  # a file that is opened later must not take the place of a stdout that is closed
    os.close(descriptor)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed; libraries write to it without asking
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # nohup has it ignored
        signal.signal(signal.SIGINT, interrupts.end)
        interrupts.watch()
    # TensorFlow's start-up notes, XLA's alarm about slow compilation: what raises is said anyhow.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    # What the libraries log is not the user's to act on: what they raise is, and it is said.
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    logging.set_verbosity(logging.FATAL)
    atexit.register(_let_go)
    flags.DEFINE_bool("debug", False, "Show the traceback of an unforeseen error.")

    def parse(argv: list[str]) -> list[Any]:
        if _VERSION & {*argv}:
            _say(f"skin_jax {version()}")
        config, rest = _configured(argv, load) if load else (None, argv)
        if _HELP & {*rest}:
            _say(_help(main, config, load is not None))
        try:
            return [flags.FLAGS(rest), config] if load else [flags.FLAGS(rest)]
        except flags.Error as error:
            raise errors.UserError(f"{error} (see --help)") from None

    def work(arguments: list[Any]) -> int | None:
        _keep_compiled()
        return main(*arguments)

    app.run(
        lambda arguments: _guarded(work, arguments), flags_parser=lambda argv: _guarded(parse, argv)
    )


def _configured(
    argv: list[str], load: Callable[[str], ConfigDict]
) -> tuple[ConfigDict | None, list[str]]:
    """The configuration of a command line, locked, and what else there is, in any order."""
    words, chosen, rest, file = list(argv), list[tuple[str, str]](), list[str](), ""
    while words:
        word = words.pop(0)
        name, equals, value = word.lstrip("-").partition("=")
        negated = name.startswith("noconfig.")
        key = name.removeprefix("no") if negated else name
        if word == "--":
            rest += [word, *words]
            break
        if not word.startswith("-") or not f"{key}.".startswith("config."):
            rest.append(word)
            continue
        if not equals:
            follows = words and not words[0].startswith("-") and not negated
            value = words.pop(0) if follows else str(not negated)
            value = "" if (key, value) == ("config", "True") else value
        if key == "config":
            file = value
        else:
            chosen.append((key.removeprefix("config."), value))
    if not file:
        if chosen:
            key = chosen[0][0]
            raise errors.UserError(f"--config.{key} needs --config=NAME, such as --config=demo")
        return None, rest
    config = load(file)
    for key, value in chosen:
        settings.override(config, key, value)
    return config.lock(), rest


def _help(main: Callable[..., Any], config: ConfigDict | None, takes_config: bool) -> str:
    module = main.__module__
    own = flags.FLAGS.get_key_flags_for_module(sys.argv[0] if module == "__main__" else module)
    lines = [sys.modules[module].__doc__ or "", "flags:"]
    if takes_config:
        lines += [
            "  --config",
            "      Name of a configuration, or file; with ':smoke' a short try.",
        ]
    for flag in sorted(own, key=lambda flag: flag.name):
        default = f" ({flag.default})" if flag.default else ""
        lines += [f"  --{flag.name}", f"      {flag.help.splitlines()[0]}{default}"]
    if takes_config:
        which = "this configuration" if config else "all configurations (--config=NAME --help: all)"
        shown = config or settings.defaults(settings.DECLARED[None])
        lines += ["", f"settings of {which}:", settings.described(shown)]
    return "\n".join(lines)


def _keep_compiled() -> None:
    """Names the folder for compiled programs to JAX, which reads the environment at its import."""
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    if _CACHE in os.environ:
        return
    try:
        folder = Path(files.CACHE_ROOT).expanduser() / "xla"
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)  # its programs are run as they are: nobody else may put one there
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home
        errors.warn(
            f"compiled programs cannot be kept for the next start ({error}); set {_CACHE} to a "
            "folder that can be written, or to nothing for none"
        )
    else:
        os.environ[_CACHE] = str(folder)


def _say(text: str) -> NoReturn:
    print(text, flush=True)
    sys.exit(0)


def _guarded(action: Callable[[list[Any]], _T], given: list[Any]) -> _T:
    """Turns whatever ends an action into a line on stderr and an exit status."""
    try:
        return action(given)
    except (errors.UserError, errors.Ended) as end:
        prefix = "error: " if isinstance(end, errors.UserError) else ""
        print(f"{prefix}{end}", file=sys.stderr)
        if isinstance(end, errors.Ended) and not end.others:
            interrupts.leave(end.exit_code)
        sys.exit(end.exit_code)
    except KeyboardInterrupt:  # the second one, where the first was asked to wait
        interrupts.end()
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            sys.exit(errors.FAILURE)  # `| head`
        if "--debug" in sys.argv:
            raise
        print(
            f"error: unforeseen {type(error).__name__}: {errors.first_line(error)}; the traceback "
            f"is in {_kept(traceback.format_exc())}, and --debug shows it",
            file=sys.stderr,
        )
        sys.exit(errors.FAILURE)


def _let_go() -> None:
    """Keeps Python from complaining, at its end, of output that nobody reads."""
    if _nobody_reads():
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _nobody_reads() -> bool:
    """Whether stdout is a pipe whose reader has ended."""
    poll = select.poll()
    poll.register(1, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _kept(text: str) -> str:
    """Writes a log into the work folder where there is one, else into a temporary folder."""
    given = flags.FLAGS["workdir"].value if "workdir" in flags.FLAGS else None
    folder = (paths_in(given) if isinstance(given, str) else given or [""])[0]
    in_use = os.path.isdir(folder) and any(name[0] != "." for name in os.listdir(folder))
    for place in (folder, None) if in_use else (None,):
        with contextlib.suppress(OSError):
            descriptor, path = tempfile.mkstemp(".log", "error-", place)
            with os.fdopen(descriptor, "w") as file:
                file.write(text)
            return path
    return f"no file that could be written:\n{text}"
