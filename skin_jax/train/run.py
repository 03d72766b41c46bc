"""What a configuration stands for: its examples, their split, the devices, and the task."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict

from skin_jax import config as config_lib
from skin_jax import tasks
from skin_jax.base import devices
from skin_jax.base.errors import UserError, warn
from skin_jax.base.files import write_atomically
from skin_jax.data import demo, splits
from skin_jax.data import generated as generated_lib
from skin_jax.data import pipeline as pipelines
from skin_jax.data.classes import CLASSES, NUM_CLASSES
from skin_jax.data.examples import Examples, write_skipped
from skin_jax.eval import features
from skin_jax.train import checkpoints as checkpoint_lib

SPLITS_FILE = "splits.csv"
DIGEST_FILE = "examples.digest"
_SYNTHETIC_DIGEST_FILE = "synthetic.digest"
_MANY_IMAGES = 10**6  # of each class, while nobody knows how many there are


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A configuration with everything that it names in hand.

    Attributes:
      config: as given.
      examples: all real ones, with their images; splits and evaluation know no others.
      assignment: "train" | "val" | "test" [N].
      mesh: the devices.
      synthetic: generated images that are trained with, None where the run has none; a reopened
        run goes without.
      training_indices: what the training stream goes through, int64 [n]: places among the examples
        and, from `len(examples.records)` on, among the generated images. An example may repeat.
      training_labels: their classes, int32 [n].
      pipeline: batches of the examples and, after them, of the generated images.
      task: what is trained.
      num_steps: length of the run, a multiple of the steps per dispatch.
      steps_per_epoch: batches in one pass over the training split: as many with generated images
        and repeated examples as without.
    """

    config: ConfigDict
    examples: Examples
    assignment: np.ndarray
    synthetic: Examples | None
    training_indices: np.ndarray
    training_labels: np.ndarray
    mesh: Mesh
    pipeline: pipelines.Pipeline
    task: tasks.Task
    num_steps: int
    steps_per_epoch: float

    @property
    def placement(self) -> NamedSharding:
        """Where the state lives: whole on every device, or each class of a stack on one."""
        if isinstance(self.task, tasks.GeneratesByClass):
            return devices.over_batch(self.mesh)
        return devices.replicated(self.mesh)

    @property
    def rows(self) -> int:
        """Examples in a training batch."""
        if isinstance(self.task, tasks.GeneratesByClass):
            return len(self.task.labels) * self.task.per_class
        return int(self.config.batch_size)

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
    if config_lib.is_procedural(data):
        return demo.generate(data.demo_images, data.image_size, data.split_seed)
    from skin_jax.data import store  # tensorflow-datasets takes a second to import

    return store.prepare(
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
    with devices.together():
        # Process 0 alone looks: a network file system remembers for a while what was not there.
        found = devices.is_first() and (workdir / config_lib.FILE_NAME).exists()
    resumed = devices.first_decides(found)
    with devices.together():
        mesh = _check(config, workdir, resumed)
        rows = None  # of generated images, read before hours of decoding
        if config.data.synthetic is not None:
            rows = generated_lib.read(Path(config.data.synthetic))
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
        generated = None
        if rows is not None:
            generated = _load_synthetic(config, rows, examples, assignment)
            if resumed:
                _check_digest(
                    workdir / _SYNTHETIC_DIGEST_FILE,
                    generated.digest,
                    "generated images",
                    "data.synthetic",
                )
    digests = [found.digest for found in (examples, generated) if found is not None]
    if not devices.same_everywhere(" ".join(digests)):
        raise UserError(
            "the processes of this run do not see the same images; give all of them the same "
            "contents at --config.data.dir and --config.data.synthetic"
        )
    experiment = _assemble(config, examples, assignment, mesh, generated)
    if config.data.split == "official":
        given = {record.official_split for record in examples.records}
        if "test" not in given:
            warn("the folder has no official test set: there will be no test figures")
        if "val" not in given:
            warn("the folder has no official validation set: it is drawn from the training set")
    with devices.together():
        if devices.is_first():
            _write(experiment, workdir, resumed)
    with devices.together():
        if not (workdir / config_lib.FILE_NAME).exists():
            raise UserError(
                f"process {jax.process_index()} does not see the {workdir} of process 0; the work "
                "folder must lie on a file system that all processes share"
            )
    return experiment


def _check(config: ConfigDict, workdir: Path, resumed: bool) -> Mesh:
    """Refuses what cannot run, before hours of decoding; makes the paths absolute."""
    config_lib.validate(config)
    config_lib.normalize(config)
    many = np.full(NUM_CLASSES, _MANY_IMAGES)
    task, _, _ = _build_task(config, many, many)
    if resumed:
        before = config_lib.read(workdir)
        config_lib.check_resumable(before, config, workdir)
        _check_same_synthetic(before.data.get("synthetic"), config.data.synthetic, workdir)
    elif any((workdir / name).exists() for name in ("checkpoints", checkpoint_lib.GENERATORS)):
        raise UserError(
            f"{workdir} holds checkpoints or generators but no {config_lib.FILE_NAME}: what they "
            "were trained on is not known; restore the file, or take a new --workdir"
        )
    elif isinstance(task, tasks.Pretrained):
        task.pretrained(jax.eval_shape(task.init, jax.random.key(0)))  # the weights fit
    if not isinstance(task, tasks.GeneratesByClass):
        mesh = devices.make_mesh(config.sharding.num_devices)
        devices.check_batch_size(config.batch_size, mesh, "batch_size")
        return mesh
    mesh = _class_mesh(config.sharding.num_devices, len(task.labels))
    if not resumed and config.score.weights != config_lib.NO_WEIGHTS:
        features.efficientnet_lite0(config.score.weights, mesh, "--config.score.weights")
    return mesh


def _class_mesh(num_devices: int | None, classes: int) -> Mesh:
    """Devices among which a stack of classes can be shared out evenly, as many as there are."""
    if jax.process_count() > 1:
        raise UserError(
            "a run of several classes' GANs has one process: start one for each share of the "
            "classes instead, with --config.classes and a --workdir of its own (a class trains the "
            "same in any of them)"
        )
    if num_devices is None:
        num_devices = max(n for n in range(1, len(jax.devices()) + 1) if classes % n == 0)
    mesh = devices.make_mesh(num_devices)
    if classes % mesh.size:
        raise UserError(
            f"config.sharding.num_devices is {num_devices}, among which {classes} classes cannot "
            "be shared out evenly; leave it out, or give a divisor"
        )
    return mesh


def _write(experiment: Experiment, workdir: Path, resumed: bool) -> None:
    examples = experiment.examples
    if examples.skipped:
        write_skipped(workdir / "skipped.csv", examples.skipped)
        warn(f"{len(examples.skipped)} unreadable images are left out: {workdir}/skipped.csv")
    if not resumed:
        splits.write(workdir / SPLITS_FILE, examples.records, experiment.assignment)
        write_atomically(workdir / DIGEST_FILE, examples.digest + "\n")
        if experiment.synthetic is not None:
            digest = experiment.synthetic.digest
            write_atomically(workdir / _SYNTHETIC_DIGEST_FILE, digest + "\n")
    config_lib.write(experiment.config, workdir)  # last: it is what makes the folder a run


def _load_synthetic(
    config: ConfigDict,
    rows: Sequence[generated_lib.Generated],
    examples: Examples,
    assignment: np.ndarray,
) -> Examples:
    """The generated images that the run is trained with.

    Raises:
      UserError: they cannot be decoded, or their generator may have seen what this run is
        evaluated on.
    """
    folder = Path(config.data.synthetic)
    own = generated_lib.train_split_digest(splits.members_of(examples.records, assignment, "train"))
    if foreign := sum(row.train_split != own for row in rows):
        found = (
            f"{foreign} of the {len(rows)} images in {folder} are of a generator that was fitted "
            "on another training split than this run's and may have seen lesions of its "
            "validation and test splits"
        )
        if not config.data.synthetic_allow_foreign:
            raise UserError(
                f"{found}, whose scores would then be too high; train the generator on the same "
                "images with the same --config.data.split, split_fractions, split_seed and fold, "
                "or take them all the same with --config.data.synthetic_allow_foreign=True"
            )
        warn(f"{found}: scores of this run may be too high")
    real_counts = np.bincount(examples.labels[assignment == "train"], minlength=NUM_CLASSES)
    taken = generated_lib.at_most(rows, real_counts, config.data.synthetic_ratio)
    return generated_lib.load(folder, taken, config.data.image_size)


def fitted_on(workdir: Path) -> str:
    """What the networks of a run were fitted on, for the manifest of the images that they generate.

    Returns:
      `synthetic.train_split_digest` of its training split. Where foreign generated images were
      among them, their digest counts too: nobody knows what their generator had seen, so that no
      run may take the result for a generator of its own training split.
    """
    members = splits.members(workdir / SPLITS_FILE, "train")
    data = config_lib.read(workdir).data
    if data.get("synthetic") is not None and data.get("synthetic_allow_foreign"):
        members = [*members, ((workdir / _SYNTHETIC_DIGEST_FILE).read_text().strip(), "foreign")]
    return generated_lib.train_split_digest(members)


def _check_same_synthetic(before: str | None, now: str | None, workdir: Path) -> None:
    """Refuses to go on without the generated images of a run, or with some where it had none."""
    if before is not None and now is None:
        raise UserError(
            f"{workdir} holds a run that is trained with generated images; give their folder with "
            f"--config.data.synthetic (it was {before}), or take a new --workdir"
        )
    if before is None and now is not None:
        raise UserError(
            f"{workdir} holds a run that is trained without generated images; leave out "
            "--config.data.synthetic, or take a new --workdir"
        )


def reopen(workdir: Path) -> Experiment:
    """Opens the experiment of a work folder to look at it, on whatever devices are here.

    Generated images that it was trained with are not needed, and left out.

    Raises:
      UserError: the folder is not one of a run, or its images are gone or others.
    """
    config = config_lib.read(workdir)
    config.data.pipeline = "auto"
    examples = load_examples(config)
    return _assemble(config, examples, read_split(examples, workdir), devices.make_mesh(None))


def read_split(examples: Examples, workdir: Path) -> np.ndarray:
    """The split of a run, "train" | "val" | "test" [N]; it is never drawn twice.

    Raises:
      UserError: its files are gone, or the examples are not those that it was drawn from.
    """
    _check_digest(workdir / DIGEST_FILE, examples.digest, "images", "data.dir")
    return splits.read(workdir / SPLITS_FILE, examples.records)


def _check_digest(path: Path, found: str, what: str, key: str) -> None:
    """Compares a digest with that in a file of a work folder."""
    try:
        digest = path.read_text().strip()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); restore it") from None
    if digest != found:
        raise UserError(
            f"the {what} are not those that {path.parent} was trained on (their digest differs); "
            f"give the folder that it had with --config.{key}, or take a new --workdir"
        )


def reopen_task(workdir: Path) -> tuple[tasks.Task, ConfigDict]:
    """The task of a work folder and its configuration, without its images."""
    config = config_lib.read(workdir)
    counts = splits.class_counts(workdir / SPLITS_FILE, "train")
    return _build_task(config, counts, counts)[0], config


def _assemble(
    config: ConfigDict,
    examples: Examples,
    assignment: np.ndarray,
    mesh: Mesh,
    generated: Examples | None = None,
) -> Experiment:
    indices = train = np.flatnonzero(assignment == "train")
    if (count := config.data.get("oversample_to")) is not None:
        indices = _repeated(train, examples.labels[train], count)
    images, labels = examples.images, examples.labels
    if generated is not None:
        num_real = len(images)
        indices = np.concatenate([indices, num_real + np.arange(len(generated.images))])
        images = np.concatenate([images, generated.images])
        labels = np.concatenate([labels, generated.labels])
        # One array holds all, or the real images would be in memory twice.
        examples = dataclasses.replace(examples, images=images[:num_real])
        generated = dataclasses.replace(generated, images=images[num_real:])
    task, num_steps, steps_per_epoch = _build_task(
        config,
        np.bincount(labels[train], minlength=NUM_CLASSES),
        np.bincount(labels[indices], minlength=NUM_CLASSES),
    )
    return Experiment(
        config=config,
        examples=examples,
        assignment=assignment,
        synthetic=generated,
        training_indices=indices,
        training_labels=labels[indices],
        mesh=mesh,
        pipeline=pipelines.make(config.data.pipeline, images, labels, mesh),
        task=task,
        num_steps=num_steps,
        steps_per_epoch=steps_per_epoch,
    )


def _repeated(indices: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    """The examples class by class, those of a class that has fewer than `count` repeated to it."""
    groups = [indices[labels == c] for c in np.unique(labels)]
    if all(len(group) >= count for group in groups):
        raise UserError(
            f"config.data.oversample_to is {count}, but every class has as many training images: "
            "none would be repeated; give more, or leave it out"
        )
    return np.concatenate([np.resize(group, max(count, len(group))) for group in groups])


def _build_task(
    config: ConfigDict, real_counts: np.ndarray, class_counts: np.ndarray
) -> tuple[tasks.Task, int, float]:
    """The task, the length of the run in steps, and the batches in an epoch.

    Args:
      config: as in `start`.
      real_counts: int [7], real training images of each class, which make an epoch.
      class_counts: int [7], images of each class in the training stream.
    """
    epoch = real_counts.sum()
    labels = config_lib.class_labels(config)
    if labels is not None:
        if len(empty := labels[class_counts[labels] == 0]):
            raise UserError(
                "config.classes: the training split has no images of "
                f"{', '.join(CLASSES[label] for label in empty)}; name the others"
            )
        epoch = real_counts[labels].max()
    steps_per_epoch = float(epoch / config.batch_size)
    per_dispatch = config.steps_per_dispatch
    steps = config.num_steps or max(1, round(config.num_epochs * steps_per_epoch))
    num_steps = -(-steps // per_dispatch) * per_dispatch
    task = tasks.build(config, class_counts, num_steps, steps_per_epoch)
    return task, num_steps, steps_per_epoch
