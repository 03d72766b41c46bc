"""Trained runs in files that other programs open."""

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

from skin_jax.base.errors import UserError
from skin_jax.base.files import write_atomically
from skin_jax.exports import folder, functions, onnx, stablehlo, timm
from skin_jax.exports.functions import PARTS, Function
from skin_jax.train.run import Trained

__all__ = ["PARTS", "SUFFIXES", "write"]

METADATA = "metadata.json"
"""Its name in the ZIP archive at the end of a StableHLO file, whose readers pass it over."""


def _stablehlo(function: Function) -> bytes:
    buffer = io.BytesIO(stablehlo.serialized(function))
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr(METADATA, json.dumps(function.metadata, indent=2))
    return buffer.getvalue()


_FUNCTIONS: dict[str, Callable[[Function], bytes]] = {
    ".onnx": onnx.serialized,
    ".stablehlo": _stablehlo,
}

SUFFIXES = (*_FUNCTIONS, ".safetensors")


def write(run: Trained, out: Path, part: str | None = None) -> None:
    """Exports the best checkpoint of a run; the suffix of `out` says how.

    None: a folder that commands take for a work folder. `.safetensors`: the classifier's weights,
    by timm's names. `.onnx` and `.stablehlo`: a function of uint8 images or of noise.

    Args:
      run: with a checkpoint.
      out: a folder of an earlier export, or what is not there yet; a file is replaced.
      part: "predict" or "generate", of a function; None: the first that the run can.

    Raises:
      UserError: an unknown suffix, a run that cannot do it, a package that is not installed.
    """
    suffix = out.suffix.lower()
    if suffix in _FUNCTIONS:
        content = _FUNCTIONS[suffix](functions.of(run, part))
    elif part is not None:
        raise UserError(f"only functions ({', '.join(_FUNCTIONS)}) are exported in parts")
    elif suffix == ".safetensors":
        content = timm.serialized(run)
    elif not suffix:
        folder.write(run, out)
        return
    else:
        raise UserError(
            f"{out}: the suffix says how to export, and {suffix} is none of {', '.join(SUFFIXES)}; "
            "without one, a folder is written"
        )
    write_atomically(out, content)
