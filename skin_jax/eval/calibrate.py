"""Fits, on training and validation images, what says how far a run's predictions can be trusted.

python -m skin_jax.eval.calibrate --workdir DIR

A temperature that makes its probabilities right as often as they say, into DIR/calibration.json,
and a reference that says how unlike the training images a picture is, into DIR/reference.npz, of
the best checkpoint. It prints how many of the validation images and of 200 pictures that are no
lesions are flagged. Test images are not looked at. `skin_jax.predict --details` uses both files.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from skin_jax.base import command
from skin_jax.base.errors import UserError
from skin_jax.base.files import check_writable

if TYPE_CHECKING:
    from skin_jax.eval.calibration import Calibration
    from skin_jax.eval.familiarity import Reference
    from skin_jax.training.run import Experiment

_WORKDIR = command.define_path("workdir", None, "Folder of a trained classifier.")

_NON_LESIONS = 200
_SKIN_FROM = 50  # validation images that pieces of skin are cut from


def main(argv: list[str]) -> None:
    """The command line's work; see the module's docstring."""
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}; see --help")
    if not _WORKDIR.value:
        raise UserError("give --workdir=DIR, the folder of a run")
    # JAX takes its time to import: not for --help.
    from skin_jax.eval import calibration, familiarity
    from skin_jax.training.run import reopen

    workdir = Path(_WORKDIR.value)
    experiment = reopen(workdir)
    check_writable(workdir / calibration.FILE_NAME, workdir / familiarity.FILE_NAME)
    found, reference, flagged = fitted(experiment, workdir)
    calibration.write(workdir, found, reference)
    print(
        f"temperature {found.temperature:.3f} of single images, {found.temperature_tta:.3f} with "
        f"--tta, fitted on {found.images} {found.split} images at step {found.step}: "
        f"{workdir / calibration.FILE_NAME}\n\n"
        "How unlike the training images a picture is: the Mahalanobis distance of means and "
        "deviations\nof the channels half-way through the network. Flagged is what is farther than "
        f"{familiarity.FLAGGED_ABOVE:.0f}% of the\nvalidation images: {workdir}/"
        f"{familiarity.FILE_NAME}\n\nflagged:"
    )
    for kind, share in flagged.items():
        print(f"  {kind:<24}{share:6.1%}")


def fitted(
    experiment: "Experiment", workdir: Path
) -> tuple["Calibration", "Reference", dict[str, float]]:
    """The calibration and the reference of a run's best checkpoint, and shares that are flagged.

    Raises:
      UserError: no validation images, no usable checkpoint, or a task that lacks an ability.
    """
    from skin_jax import tasks
    from skin_jax.data import non_lesions
    from skin_jax.data import pipeline as pipelines
    from skin_jax.eval import calibration, familiarity
    from skin_jax.eval.inference import averaged, make_predictor, views
    from skin_jax.training.checkpoints import Checkpoints
    from skin_jax.training.run import CHECKPOINTS, best_state

    task, batch_size = experiment.task, experiment.config.eval_batch_size
    predict, describe = (tasks.require(task, name, workdir) for name in ("predict", "traits"))
    train, val = experiment.indices("train"), experiment.indices("val")
    if not len(val):
        raise UserError(
            f"{workdir} has no validation images, on which alone this can be fitted; see "
            "config.data.split_fractions"
        )
    with Checkpoints(workdir / CHECKPOINTS, task.score, read_only=True) as checkpoints:
        state, step = best_state(task, checkpoints, experiment.mesh)

    examples, pipeline = experiment.examples, experiment.pipeline
    labels = examples.labels[val]
    single, tta = (
        calibration.fit(averaged(predict, pipeline, seen)(state, val, batch_size), labels)
        for seen in (views(tta=False), views(tta=True))
    )
    traits = make_predictor(describe, pipeline)
    of_val = traits(state, val, batch_size)
    reference = familiarity.fit(traits(state, train, batch_size), of_val)

    skin = examples.images[val[:_SKIN_FROM]]
    drawn = non_lesions.draw(_NON_LESIONS, experiment.config.data.image_size, skin)
    together = np.concatenate([*drawn.values()])
    elsewhere = pipelines.make(
        "device", together, np.zeros(len(together), np.int32), experiment.mesh
    )
    of_drawn = make_predictor(describe, elsewhere)(state, np.arange(len(together)), batch_size)

    def flagged(these: np.ndarray) -> float:
        return float((reference.percentile(these) > familiarity.FLAGGED_ABOVE).mean())

    shares = {
        "validation images": flagged(of_val),
        f"{len(together)} non-lesions": flagged(of_drawn),
    }
    kinds = zip(drawn, np.split(of_drawn, len(drawn)), strict=True)
    shares |= {f"  {kind}": flagged(these) for kind, these in kinds}
    return calibration.Calibration(single, tta, "val", len(val), step), reference, shares


def run() -> None:
    """Runs the command."""
    command.run(main)


if __name__ == "__main__":
    run()
