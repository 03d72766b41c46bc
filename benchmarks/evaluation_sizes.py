"""How a classifier does on its validation images at other sizes than its own.

python -m benchmarks.evaluation_sizes --workdir=RUN --sizes=160,192,224 [--step=N]

Images are resized from the run's own size. Two rows a size: single views, and means over four
orientations (the mirrors). The log-loss is that after a temperature fitted on the same images.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.tables import table
from skin_jax.base import devices
from skin_jax.data import pipeline as pipelines
from skin_jax.eval import calibration, inference, metrics
from skin_jax.training.run import reopen, trained

_BATCH = 64


def rows(workdir: Path, sizes: Sequence[int], step: int | None) -> Iterator[dict[str, Any]]:
    """A row for each size and number of views."""
    experiment, run, mesh = reopen(workdir), trained(workdir), devices.make_mesh(1)
    if step is None:
        state, step = run.best_state(mesh)
    else:
        state = run.state_at(mesh, step)
    val = experiment.indices("val")
    images, labels = experiment.examples.images[val], experiment.examples.labels[val]
    for size in sizes:
        resized = np.stack(
            [Image.fromarray(i).resize((size, size), Image.Resampling.BICUBIC) for i in images]
        )
        pipeline = pipelines.make("device", resized, labels, mesh)
        for views in (inference.views(False), inference.views(True)[:4]):
            predict = inference.averaged(run.ability("predict"), pipeline, views)
            found = predict(state, np.arange(len(labels)), _BATCH)
            measured = metrics.evaluate(found, labels, resamples=0)
            tempered = calibration.applied(found, calibration.fit(found, labels))
            yield {
                "step": step,
                "size": size,
                "views": len(views),
                "balanced_accuracy": measured.balanced_accuracy,
                "accuracy": measured.accuracy,
                "macro_auc": measured.macro["auc"],
                "log_loss": calibration.loss(tempered, labels),
            }


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, required=True, help="of a trained classifier")
    parser.add_argument("--sizes", required=True, metavar="S,...", help="sides in pixels")
    parser.add_argument("--step", type=int, help="of a checkpoint; the best one by default")
    options = parser.parse_args(arguments)
    sizes = [int(size) for size in options.sizes.split(",")]
    print(table(list(rows(options.workdir, sizes, options.step))))


if __name__ == "__main__":
    main()
