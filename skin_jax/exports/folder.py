"""A folder of a run that commands take for its work folder: its best weights, and a model card."""

import json
from pathlib import Path

from skin_jax import tasks
from skin_jax.base.files import read_text
from skin_jax.config import flatten, is_procedural
from skin_jax.eval import calibration
from skin_jax.report import card
from skin_jax.training import run as run_lib
from skin_jax.training import shipped
from skin_jax.training.run import Trained

_METRICS = ("eval/test/metrics.json", "eval/val/metrics.json")


def write(run: Trained, out: Path) -> None:
    """Exports a run into a folder that `predict`, `generate` and `eval` take for its work folder.

    The folder holds the weights that prediction and generation need, large ones in half precision,
    and a model card, `README.md`.

    Args:
      run: with a checkpoint.
      out: a new folder, or one that this wrote before.

    Raises:
      UserError: no checkpoint, code of the user's own, or other files in `out`.
    """
    content = run_lib.ship(run, out, _METRICS)
    calibration.copy(run.workdir, out, content.step)
    abilities = {name: tasks.can(run.task, name) for name in ("predict", "images_of")}
    settings = flatten(run.config)
    facts: dict[str, object] = {"task": settings["task"]}
    if "model.name" in settings:
        facts["network"] = settings["model.name"]
    facts |= {
        "image size": f"{settings['data.image_size']} pixels",
        "checkpoint": f"of step {content.step}",
        "size of the weights": f"{(out / shipped.WEIGHTS).stat().st_size / 1e6:.1f} MB",
    }
    if content.drawn is not None:
        facts["draws, from step"] = ", ".join(
            f"{run.classes.names[label]} {content.drawn.steps[label]}"
            for label in run.task.classes_drawn(len(run.classes))
        )
    if is_procedural(run.config.data):
        facts["training images"] = "procedural lesions, no photographs"
    # Of another step, they were measured before it was trained on.
    there = [json.loads(read_text(out / name)) for name in _METRICS if (out / name).exists()]
    measured = next((found for found in there if found["step"] == content.step), None)
    commands = []
    if abilities["predict"]:
        commands.append("skin_jax.predict --workdir=FOLDER --images=IMAGES --out=predictions.csv")
        commands.append("skin_jax.eval --workdir=FOLDER --data_dir=LABELLED --out=results")
    if abilities["images_of"]:
        commands.append("skin_jax.generate --workdir=FOLDER --out=generated --per_class=16")
    card.write(
        out,
        run.classes,
        facts=facts,
        train_counts=run.train_counts.tolist(),
        measured=measured,
        commands=[command.replace("FOLDER", out.name) for command in commands],
    )
