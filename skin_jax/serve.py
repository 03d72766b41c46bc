"""Serves a page in the browser: a photo to probabilities, generators to images.

python -m skin_jax.serve --workdir=W [--workdir=W2 ...] [--host=127.0.0.1] [--port=7860]

W is the work folder of a run, or a folder of skin_jax.export. Calibrated probabilities, and whether
a photo is unlike the training images, are shown for runs that skin_jax.eval.calibrate prepared. The
page is for this machine alone, unless --host says otherwise; it needs no network, and keeps
nothing: a photo is deleted as soon as it is read. It needs the extra skin_jax[serve].
"""

import contextlib
import importlib.util
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

from absl import flags

from skin_jax.base import command
from skin_jax.base.errors import UserError, warn

_STREAM = socket.SOCK_STREAM

_WORKDIR = command.define_paths("workdir", "Folder of a trained run; may be repeated.")
_HOST = flags.DEFINE_string("host", "127.0.0.1", "Address to listen at; 0.0.0.0: at all.")
_PORT = flags.DEFINE_integer("port", 7860, "Port to listen at.", 1, 65535)
_MAX_MEGABYTES = flags.DEFINE_integer("max_megabytes", 20, "Largest photo.", lower_bound=1)


def main(argv: list[str]) -> None:
    """The command line's work; see the module's docstring."""
    if argv[1:]:
        raise UserError(f"unexpected argument {argv[1]!r}; see --help")
    workdirs = [path for given in _WORKDIR.value for path in command.paths_in(given)]
    if not workdirs:
        raise UserError("give --workdir=DIR, the folder of a run; it may be repeated")
    if importlib.util.find_spec("gradio") is None:
        raise UserError("the page needs Gradio; install the extra: pip install 'skin_jax[serve]'")
    _check_free(_HOST.value, _PORT.value)
    if _HOST.value not in ("127.0.0.1", "localhost", "::1"):
        warn(f"the page can be used by everybody who reaches {_HOST.value}; it has no password")
    with _temporary_folder():
        from skin_jax import api, page  # JAX and Gradio take their time to import: not for --help

        runs = {name: api.load(folder) for name, folder in _named(workdirs).items()}
        page.serve(runs, _HOST.value, _PORT.value, _MAX_MEGABYTES.value)


def _check_free(host: str, port: int) -> None:
    """Refuses an address that cannot be listened at, before the runs are loaded."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=_STREAM)[0]
        with socket.socket(family, kind, protocol) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind(address)
    except OSError as error:
        raise UserError(
            f"{host}:{port} cannot be listened at ({error.strerror}); give another --port or --host"
        ) from None


@contextlib.contextmanager
def _temporary_folder() -> Iterator[None]:
    """All temporary files of this process, uploads among them, in one folder that is removed.

    To be entered before Gradio is imported, which makes a folder then, and reads what it may do:
    not report its use, nor ask for newer versions. It asks itself whether it is there, which must
    not lead through a proxy.
    """
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "NO_PROXY": "*"}
    before = tempfile.tempdir
    with tempfile.TemporaryDirectory(prefix="skin_jax-") as folder:
        tempfile.tempdir = os.environ["GRADIO_TEMP_DIR"] = folder
        try:
            yield
        finally:
            tempfile.tempdir = before


def _named(workdirs: list[str]) -> dict[str, Path]:
    """The folders by their names; by their paths where two have the same."""
    folders = [*dict.fromkeys(Path(path) for path in workdirs)]
    names = [folder.absolute().name for folder in folders]
    return {
        name if names.count(name) == 1 else str(folder): folder
        for name, folder in zip(names, folders, strict=True)
    }


def run() -> None:
    """Runs the command."""
    command.run(main)


if __name__ == "__main__":
    run()
