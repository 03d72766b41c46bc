"""What a configuration stands for: its examples, their split, the devices, and the task."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from skin_jax import sharding, tasks
from skin_jax.config import FILE_NAME
from skin_jax.data import demo, splits
from skin_jax.data import pipeline as pipelines
from skin_jax.data.examples import Examples, write_skipped
from skin_jax.data.lesions import NUM_CLASSES
from skin_jax.errors import UserError, warn

SPLITS_FILE = "splits.csv"
_DIGEST_FILE = "examples.digest"


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A configuration with everything that it names in hand.

    Attributes:
      config: as given.
      examples: all of them, with their images.
      assignment: "train" | "val" | "test" [N].
      mesh: the devices.
      pipeline: batches of the examples.
      task: what is trained.
      num_steps: length of the run, a multiple of the steps per dispatch.
      steps_per_epoch: batches in one pass over the training split.
    """

    config: ConfigDict
    examples: Examples
    assignment: np.ndarray
    mesh: Mesh
    pipeline: pipelines.Pipeline
    task: tasks.Task
    num_steps: int
    steps_per_epoch: float

    def indices(self, split: str) -> np.ndarray:
        """Indices of the examples of a split, int64 [n]."""
        return np.flatnonzero(self.assignment == split)

    def lesion_ids(self, indices: np.ndarray) -> list[str]:
        """Lesions of the given examples."""
        return [self.examples.records[i].lesion_id for i in indices]

    def image_ids(self, indices: np.ndarray) -> list[str]:
        """Ids of the given examples."""
        return [self.examples.records[i].image_id for i in indices]


def load_examples(config: ConfigDict) -> Examples:
    """The examples that `config.data` names, at `config.data.image_size`.

    Raises:
      UserError: no folder is given where one is needed, or its contents are wrong.
    """
    data = config.data
    if data.dir is None and data.demo_images and not data.download:
        return demo.generate(data.demo_images, data.image_size, data.split_seed)
    from skin_jax.data import builder  # tensorflow-datasets takes a second to import

    return builder.prepare(
        data.dir,
        image_size=data.image_size,
        cache_dir=Path(data.cache_dir).expanduser(),
        on_bad_image=data.on_bad_image,
        download=data.download,
    )


def open_experiment(config: ConfigDict, workdir: Path) -> Experiment:
    """Loads the data and builds the task; the split is read from the work folder where it is there.

    Raises:
      UserError: a setting that does not fit, or data that are not those of the work folder.
    """
    mesh = sharding.make_mesh(config.sharding.num_devices)
    sharding.check_batch_size(config.batch_size, mesh, "batch_size")
    sharding.check_batch_size(config.eval_batch_size, mesh, "eval_batch_size")
    examples = load_examples(config)
    if examples.skipped and jax.process_index() == 0:
        write_skipped(workdir / "skipped.csv", examples)
        warn(f"{len(examples.skipped)} unreadable images are left out: {workdir}/skipped.csv")
    assignment = load_split(config, examples, workdir)
    train = np.flatnonzero(assignment == "train")
    steps_per_epoch = len(train) / config.batch_size
    per_dispatch = config.steps_per_dispatch
    steps = config.num_steps or max(1, round(config.num_epochs * steps_per_epoch))
    num_steps = -(-steps // per_dispatch) * per_dispatch
    class_counts = np.bincount(examples.labels[train], minlength=NUM_CLASSES)
    return Experiment(
        config=config,
        examples=examples,
        assignment=assignment,
        mesh=mesh,
        pipeline=pipelines.make(config.data.pipeline, examples.images, examples.labels, mesh),
        task=tasks.build(config, class_counts, num_steps, steps_per_epoch),
        num_steps=num_steps,
        steps_per_epoch=steps_per_epoch,
    )


def load_split(config: ConfigDict, examples: Examples, workdir: Path) -> np.ndarray:
    """Draws the split and writes `splits.csv`, or reads it back; never draws it twice.

    Returns:
      "train" | "val" | "test" [N].

    Raises:
      UserError: the examples are not those that the work folder was made with.
    """
    path, digest_path = workdir / SPLITS_FILE, workdir / _DIGEST_FILE
    # Without its configuration a split is left from a start that came to nothing.
    if path.exists() and (workdir / FILE_NAME).exists():
        if digest_path.read_text().strip() != examples.digest:
            raise UserError(
                f"the images are not those that {workdir} was trained on (their digest differs); "
                "give the folder that it had with --config.data.dir, or take a new --workdir"
            )
        return splits.read(path, examples.records)
    assignment = splits.draw(
        examples.records,
        split=config.data.split,
        fractions=tuple(config.data.split_fractions),
        split_seed=config.data.split_seed,
        fold=config.data.fold,
    )
    if jax.process_index() == 0:
        digest_path.write_text(examples.digest + "\n")
        splits.write(path, examples.records, assignment)
    return assignment
