"""What a configuration stands for: its examples, their split, the devices, and the task."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from skin_jax import config as config_lib
from skin_jax import sharding, tasks
from skin_jax.data import demo, splits
from skin_jax.data import pipeline as pipelines
from skin_jax.data.examples import Examples, write_skipped
from skin_jax.data.lesions import NUM_CLASSES
from skin_jax.errors import UserError, warn
from skin_jax.files import write_atomically

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

    @property
    def is_demo(self) -> bool:
        """Whether the examples are procedural lesions."""
        return self.examples.records[0].path is None

    def class_counts(self, split: str) -> np.ndarray:
        """Images of each class in a split, int64 [7]."""
        return np.bincount(self.examples.labels[self.indices(split)], minlength=NUM_CLASSES)


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


def start(config: ConfigDict, workdir: Path) -> Experiment:
    """Opens the experiment for training; a new work folder gets its configuration and its split.

    Everything is checked before anything is written, so that a wrong setting leaves no trace.

    Raises:
      UserError: a setting or data that do not fit, or a work folder of another run.
    """
    with sharding.together():
        # Process 0 alone looks: a network file system remembers for a while what was not there.
        found = sharding.is_first() and (workdir / config_lib.FILE_NAME).exists()
    resumed = sharding.first_decides(found)
    with sharding.together():
        mesh = _check(config, workdir, resumed)
        examples = load_examples(config)
        if resumed:
            assignment = read_split(examples, workdir)
        else:
            assignment = splits.draw(
                examples.records,
                split=config.data.split,
                fractions=tuple(config.data.split_fractions),
                split_seed=config.data.split_seed,
                fold=config.data.fold,
            )
    if not sharding.same_everywhere(examples.digest):
        raise UserError(
            "the processes of this run do not see the same images; give all of them the same "
            "contents at --config.data.dir"
        )
    experiment = _assemble(config, examples, assignment, mesh)
    if config.data.split == "official":
        given = {record.official_split for record in examples.records}
        if "test" not in given:
            warn("the folder has no official test set: there will be no test figures")
        if "val" not in given:
            warn("the folder has no official validation set: it is drawn from the training set")
    with sharding.together():
        if sharding.is_first():
            _write(experiment, workdir, resumed)
    with sharding.together():
        if not (workdir / config_lib.FILE_NAME).exists():
            raise UserError(
                f"process {jax.process_index()} does not see the {workdir} of process 0; the work "
                "folder must lie on a file system that all processes share"
            )
    return experiment


def _check(config: ConfigDict, workdir: Path, resumed: bool) -> Mesh:
    """Refuses what cannot run, before hours of decoding; makes the paths absolute."""
    config_lib.validate(config)
    config_lib.make_paths_absolute(config)
    task, _, _ = _build_task(config, np.ones(NUM_CLASSES, int))
    if resumed:
        config_lib.check_resumable(config_lib.read(workdir), config, workdir)
    elif (workdir / "checkpoints").exists():
        raise UserError(
            f"{workdir} holds checkpoints but no {config_lib.FILE_NAME}: what they were trained on "
            "is not known; restore the file, or take a new --workdir"
        )
    elif isinstance(task, tasks.Pretrained):
        task.pretrained(jax.eval_shape(task.init, jax.random.key(0)))  # the weights fit
    mesh = sharding.make_mesh(config.sharding.num_devices)
    sharding.check_batch_size(config.batch_size, mesh, "batch_size")
    return mesh


def _write(experiment: Experiment, workdir: Path, resumed: bool) -> None:
    examples = experiment.examples
    if examples.skipped:
        write_skipped(workdir / "skipped.csv", examples.skipped)
        warn(f"{len(examples.skipped)} unreadable images are left out: {workdir}/skipped.csv")
    if not resumed:
        splits.write(workdir / SPLITS_FILE, examples.records, experiment.assignment)
        write_atomically(workdir / _DIGEST_FILE, examples.digest + "\n")
    config_lib.write(experiment.config, workdir)  # last: it is what makes the folder a run


def reopen(workdir: Path) -> Experiment:
    """Opens the experiment of a work folder to look at it, on whatever devices are here.

    Raises:
      UserError: the folder is not one of a run, or its images are gone or others.
    """
    config = config_lib.read(workdir)
    config.data.pipeline = "auto"
    examples = load_examples(config)
    return _assemble(config, examples, read_split(examples, workdir), sharding.make_mesh(None))


def read_split(examples: Examples, workdir: Path) -> np.ndarray:
    """The split of a run, "train" | "val" | "test" [N]; it is never drawn twice.

    Raises:
      UserError: its files are gone, or the examples are not those that it was drawn from.
    """
    path = workdir / _DIGEST_FILE
    try:
        digest = path.read_text().strip()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); restore it") from None
    if digest != examples.digest:
        raise UserError(
            f"the images are not those that {workdir} was trained on (their digest differs); "
            "give the folder that it had with --config.data.dir, or take a new --workdir"
        )
    return splits.read(workdir / SPLITS_FILE, examples.records)


def reopen_task(workdir: Path) -> tuple[tasks.Task, ConfigDict]:
    """The task of a work folder and its configuration, without its images."""
    config = config_lib.read(workdir)
    return _build_task(config, splits.class_counts(workdir / SPLITS_FILE, "train"))[0], config


def _assemble(
    config: ConfigDict, examples: Examples, assignment: np.ndarray, mesh: Mesh
) -> Experiment:
    train = examples.labels[assignment == "train"]
    task, num_steps, steps_per_epoch = _build_task(
        config, np.bincount(train, minlength=NUM_CLASSES)
    )
    return Experiment(
        config=config,
        examples=examples,
        assignment=assignment,
        mesh=mesh,
        pipeline=pipelines.make(config.data.pipeline, examples.images, examples.labels, mesh),
        task=task,
        num_steps=num_steps,
        steps_per_epoch=steps_per_epoch,
    )


def _build_task(config: ConfigDict, class_counts: np.ndarray) -> tuple[tasks.Task, int, float]:
    """The task, the length of the run in steps, and the batches in an epoch."""
    steps_per_epoch = float(class_counts.sum() / config.batch_size)
    per_dispatch = config.steps_per_dispatch
    steps = config.num_steps or max(1, round(config.num_epochs * steps_per_epoch))
    num_steps = -(-steps // per_dispatch) * per_dispatch
    task = tasks.build(config, class_counts, num_steps, steps_per_epoch)
    return task, num_steps, steps_per_epoch
