"""Predicts the classes of images and writes them as the challenge's CSV.

python -m skin_jax.predict --workdir W[,W2...] --images FOLDER|FILE[,FILE...] --out P.csv

A folder is searched with its subfolders; several runs are averaged. Unreadable images are listed in
P.skipped.csv and left out. The exit status is 0, 1 (failure), 2 (usage or bad input) or 3 (images
were left out, or files share a name).
"""

import os
from pathlib import Path

from absl import flags

from skin_jax.base import command
from skin_jax.base.errors import UserError

_WORKDIR = flags.DEFINE_list("workdir", [], "Folders of trained runs; several are averaged.")
_IMAGES = flags.DEFINE_string("images", None, "A folder of images, or files, comma-separated.")
_OUT = flags.DEFINE_string("out", None, "The CSV to write.")
_TTA = flags.DEFINE_bool("tta", False, "Average over the 8 flips and quarter turns of each image.")
_EXPLAIN = flags.DEFINE_string(
    "explain", None, "A folder for pictures of what speaks for the predicted class (Grad-CAM)."
)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "Images at a time.", lower_bound=1)


def main(argv: list[str]) -> int:
    """The command line's work; see the module's docstring."""
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}; several files are separated by commas")
    if not (_WORKDIR.value and _IMAGES.value and _OUT.value):
        raise UserError("give all of --workdir=DIR, --images=FOLDER and --out=FILE.csv; see --help")
    # A name may hold a comma itself.
    whole = os.path.lexists(_IMAGES.value)
    inputs = [_IMAGES.value] if whole else [part for part in _IMAGES.value.split(",") if part]
    from skin_jax.eval import prediction  # JAX takes its time to import: not for --help
    from skin_jax.report import heatmap

    return prediction.predict_files(
        [Path(workdir) for workdir in _WORKDIR.value],
        inputs,
        Path(_OUT.value),
        tta=_TTA.value,
        explain_dir=Path(_EXPLAIN.value) if _EXPLAIN.value else None,
        overlay=heatmap.overlay,
        batch_size=_BATCH_SIZE.value,
    )


if __name__ == "__main__":
    command.run(main)
