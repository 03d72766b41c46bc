"""Trained runs in files that other programs open."""

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from skin_jax.base.errors import UserError
from skin_jax.base.files import check_writable, write_atomically
from skin_jax.exports import folder, functions, onnx, stablehlo, tflite, timm
from skin_jax.training.run import Trained

__all__ = ["METADATA", "SUFFIXES", "write"]

METADATA = "metadata.json"
"""In the ZIP archive at the end of .stablehlo and .tflite files, which their readers pass over."""

_FUNCTIONS = (".onnx", ".stablehlo", ".tflite")
SUFFIXES = (*_FUNCTIONS, ".safetensors")


def write(
    run: Trained,
    out: Path,
    *,
    part: str | None = None,
    precision: str = "float32",
    images: np.ndarray | None = None,
) -> dict[str, Any]:
    """Exports the best checkpoint of a run; the suffix of `out` says how.

    None: a folder that commands take for a work folder. `.safetensors`: the classifier's weights,
    by timm's names. `.onnx`, `.stablehlo`, `.tflite`: a function of uint8 images or of noise.

    Args:
      run: with a checkpoint.
      out: a folder of an earlier export, or what is not there yet; a file is replaced.
      part: "predict" or "generate", of a function; None: the first that the run can.
      precision: "float32", or of a .tflite also "float16" or "int8".
      images: uint8 [N, S, S, 3], for "int8"; see `tflite.serialized`.

    Returns:
      What travels in a file's metadata.

    Raises:
      UserError: an unknown suffix, a run that cannot do it, a package that is not installed.
    """
    suffix = out.suffix.lower()
    if suffix not in ("", *SUFFIXES):
        raise UserError(
            f"{out}: the suffix says how to export, and {suffix} is none of {', '.join(SUFFIXES)}; "
            "without one, a folder is written"
        )
    if part is not None and suffix not in _FUNCTIONS:
        raise UserError(f"only functions ({', '.join(_FUNCTIONS)}) are exported in parts")
    if precision != "float32" and suffix != ".tflite":
        raise UserError(f"{out}: only a .tflite can have another precision than float32")
    check_writable(out if suffix else out / "README.md")
    if not suffix:
        folder.write(run, out)
        return {}
    if suffix == ".safetensors":
        content, metadata = timm.serialized(run)
    else:
        function = functions.of(run, part)
        metadata = function.metadata
        if suffix == ".onnx":
            content = onnx.serialized(function)
        elif suffix == ".stablehlo":
            content = _labelled(stablehlo.serialized(function), metadata)
        else:
            content = _labelled(tflite.serialized(function, precision, images), metadata)
    write_atomically(out, content)
    return metadata


def _labelled(content: bytes, metadata: dict[str, Any]) -> bytes:
    buffer = io.BytesIO(content)
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr(METADATA, json.dumps(metadata, indent=2))
    return buffer.getvalue()
