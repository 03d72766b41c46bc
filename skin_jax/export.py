"""Exports a run: for this program in a folder of its own, or in a file for others.

python -m skin_jax.export --workdir=W --out=FOLDER
python -m skin_jax.export --workdir=W --out=FILE.onnx|.stablehlo|.safetensors|.tflite

FOLDER holds the best weights and a model card; skin_jax.predict, skin_jax.generate and
skin_jax.eval --data_dir take it as their --workdir. A .safetensors holds a classifier's weights by
timm's names, the others a function of uint8 images, or of noise. The names of the classes travel in
the metadata.
"""

from pathlib import Path

from absl import flags

from skin_jax.base import command
from skin_jax.base.errors import UserError

_WORKDIR = command.define_path("workdir", None, "Folder of a trained run.")
_OUT = command.define_path("out", None, "The new folder, or the file, whose suffix says its kind.")
_PART = flags.DEFINE_enum(
    "part", None, ["predict", "generate"], "Which function; by default predict, where it can."
)
_PRECISION = flags.DEFINE_enum(
    "precision", "float32", ["float32", "float16", "int8"], "Of a .tflite."
)
_IMAGES = command.define_path(
    "images", None, "Images for int8, some hundred: a folder, or files, comma-separated."
)


def main(argv: list[str]) -> None:
    """The command line's work; see the module's docstring."""
    if argv[1:]:
        raise UserError(f"unexpected argument {argv[1]!r}; see --help")
    if not _WORKDIR.value or not _OUT.value:
        raise UserError("give both --workdir=DIR and --out=FOLDER or FILE; see --help")
    from skin_jax import api  # JAX takes its time to import: not for --help
    from skin_jax.eval import prediction

    images = None
    if _IMAGES.value:
        images, *_ = prediction.find_images(command.paths_in(_IMAGES.value))
    metadata = api.load(_WORKDIR.value).export(
        Path(_OUT.value), part=_PART.value, precision=_PRECISION.value, images=images
    )
    print(f"exported: {_OUT.value}", flush=True)
    if "int8" in metadata:
        print(metadata["int8"], flush=True)


def run() -> None:
    """Runs the command."""
    command.run(main)


if __name__ == "__main__":
    run()
