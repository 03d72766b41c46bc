"""Baselines that a classifier must beat: logistic regressions on simple features, same split.

python -m skin_jax.eval.baselines --workdir DIR

On colour, on pixels and, for a run that began with pretrained weights, on the features that these
weights gave before the first step. Class-balanced, standardised, C chosen on the validation split
by balanced accuracy; printed with the run's own figures, and written to
DIR/eval/test/baselines.json.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from skin_jax import config as config_lib
from skin_jax.base import command
from skin_jax.base.errors import UserError, warn
from skin_jax.base.files import check_writable, read_text, write_json
from skin_jax.data.classes import UNLABELLED
from skin_jax.data.examples import Images
from skin_jax.eval import linear

if TYPE_CHECKING:
    from skin_jax.tasks import Task

_WORKDIR = command.define_path("workdir", None, "Folder of a run that was evaluated on test.")

_CHUNK = 512  # images described at once: they need not all be in memory
_PIXELS = 32
_WIDTH = 56


def mean_colour(images: np.ndarray) -> np.ndarray:
    """Mean red, green and blue of uint8 images [N, H, W, 3], float64 [N, 3]."""
    return images.mean(axis=(1, 2))


def pixels(images: np.ndarray) -> np.ndarray:
    """Images uint8 [N, H, W, 3] at 32x32, flattened, float32 [N, 3072]."""
    size, bilinear = (_PIXELS, _PIXELS), Image.Resampling.BILINEAR
    small = [np.asarray(Image.fromarray(i).resize(size, bilinear), np.float32) for i in images]
    return np.stack(small).reshape(len(images), -1)


FEATURES = {"mean colour": mean_colour, "32x32 pixels": pixels}


def described(features: Callable[[np.ndarray], np.ndarray], images: Images) -> np.ndarray:
    """Features [N, F] of uint8 images [N, H, W, 3], which may lie on disk."""
    chunks = np.split(np.arange(len(images)), range(_CHUNK, len(images), _CHUNK))
    return np.concatenate([features(images[chunk]) for chunk in chunks])


def frozen_features(task: "Task", images: Images, seed: int) -> np.ndarray | None:
    """Features float32 [N, D] by the pretrained weights that a run of the task begins with.

    Of images uint8 [N, S, S, 3] of the run's size; None for a task that begins with random weights.

    Raises:
      UserError: the weights cannot be read any more.
    """
    import jax

    from skin_jax import tasks
    from skin_jax.base import devices
    from skin_jax.eval.features import Extractor

    if not tasks.can(task, "features"):
        return None
    rng = jax.random.key(seed)
    shapes = jax.eval_shape(task.init, rng)
    if task.pretrained(shapes) is shapes:
        return None
    mesh, size = devices.make_mesh(None), images.shape[1]
    state = jax.device_put(task.pretrained(jax.jit(task.init)(rng)), devices.replicated(mesh))
    features = tasks.require(task, "features", "this run")
    extractor = Extractor(features, state, image_size=size, mesh=mesh, network="pretrained")
    return described(extractor, images)


def main(argv: list[str]) -> None:
    """The command line's work; see the module's docstring."""
    if not _WORKDIR.value:
        raise UserError("give --workdir=DIR, the folder of a run")
    # It takes its time to import: not for --help, nor before `command` has named JAX's cache.
    from skin_jax.training.run import load_examples, read_split, trained

    workdir = Path(_WORKDIR.value)
    config = config_lib.read(workdir)
    folder = workdir / "eval" / "test"
    if not (folder / "metrics.json").exists():
        raise UserError(f"{folder} has no metrics.json; finish the run first")
    check_writable(folder / "baselines.json")
    own = json.loads(read_text(folder / "metrics.json"))["balanced_accuracy"]
    examples = load_examples(config)
    examples, assignment = read_split(examples, workdir)
    on_test = examples.labels[assignment == "test"]
    present = len(np.unique(on_test[on_test != UNLABELLED]))
    task = trained(workdir).task
    found = {name: described(features, examples.images) for name, features in FEATURES.items()}
    try:
        frozen = frozen_features(task, examples.images, config.seed)
        found |= {} if frozen is None else {"pretrained features": frozen}
    except UserError as error:
        warn(f"{error}; the other baselines need no weights")
    print(f"balanced accuracy on the same test split (chance: {1 / present:.3f})")
    if not (assignment == "val").any():
        print(
            f"  (there is no validation split to choose C by: it is {linear.STRENGTH_UNCHOSEN:g})"
        )
    print(f"  {'this run':<{_WIDTH}}{own:.3f}")
    results = {}
    for name, features in found.items():
        print(f"  fitting on {name}; this may take minutes ...", end="\r", flush=True)
        score, strength = linear.logistic_regression(features, examples.labels, assignment)
        results[name] = {"balanced_accuracy": score, "C": strength}
        text = f"logistic regression on {name} (C={strength:g})"
        print(f"  {text:<{_WIDTH}}{score:.3f}", flush=True)
    write_json(folder / "baselines.json", results)


def run() -> None:
    """Runs the command."""
    command.run(main)


if __name__ == "__main__":
    run()
