"""Predicts the classes of images and writes them as the challenge's CSV.

python -m skin_jax.predict --workdir=W[,W2...] --images=FOLDER|FILE[,FILE...] --out=P.csv

A folder is searched with its subfolders; several runs are averaged. Unreadable images are listed in
P.skipped.csv and left out. --details=D.csv also says how far each prediction can be trusted and
flags pictures that are unlike the training images, with runs that skin_jax.eval.calibrate prepared.
All devices of the machine predict; for several machines, start the command on each with another
--shard, 0/4 to 3/4, and at last without it. The exit status is 0, 1 (failure), 2 (usage or bad
input) or 3 (images were left out, or files share a name).
"""

from pathlib import Path

from absl import flags

from skin_jax.base import command
from skin_jax.base.errors import UserError

_WORKDIR = command.define_paths("workdir", "Folder of a trained run; several are averaged.")
_IMAGES = command.define_path("images", None, "A folder of images, or files, comma-separated.")
_OUT = command.define_path("out", None, "The CSV to write.")
_TTA = flags.DEFINE_bool("tta", False, "Average over the 8 flips and quarter turns of each image.")
_SCALES = flags.DEFINE_list(
    "scales", ["1"], "Sides of the images' middles to average over, such as 1,0.8."
)
_DETAILS = command.define_path(
    "details", None, "A CSV: second class, calibrated probability, how unlike training images."
)
_EXPLAIN = command.define_path(
    "explain", None, "Folder for heat maps of what the predicted class is based on (Grad-CAM)."
)
_SHARD = flags.DEFINE_string(
    "shard",
    None,
    "Predict a share of the images, i/n with i from 0; the same command without it, when all are "
    "done, writes the CSV.",
)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "Images per batch.", lower_bound=1)


def main(argv: list[str]) -> int:
    """The command line's work; see the module's docstring."""
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}; several files are separated by commas")
    if not (_WORKDIR.value and _IMAGES.value and _OUT.value):
        raise UserError("give all of --workdir=DIR, --images=FOLDER and --out=FILE.csv; see --help")
    share = None if _SHARD.value is None else command.shard_in(_SHARD.value)
    from skin_jax.eval import prediction  # JAX takes its time to import: not for --help
    from skin_jax.eval.parts import Share
    from skin_jax.report import heatmap

    return prediction.predict_files(
        [Path(path) for given in _WORKDIR.value for path in command.paths_in(given)],
        command.paths_in(_IMAGES.value),
        Path(_OUT.value),
        tta=_TTA.value,
        scales=command.shares_in(_SCALES.value, "scales"),
        details=Path(_DETAILS.value) if _DETAILS.value else None,
        explain_dir=Path(_EXPLAIN.value) if _EXPLAIN.value else None,
        overlay=heatmap.overlay,
        batch_size=_BATCH_SIZE.value,
        share=Share(*share) if share else None,
    )


def run() -> None:
    """Runs the command."""
    command.run(main)


if __name__ == "__main__":
    run()
