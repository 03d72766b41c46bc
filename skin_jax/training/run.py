"""A run: what its configuration stands for, and the work folder that it has alone."""

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from operator import getitem
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict

from skin_jax import config as config_lib
from skin_jax import tasks
from skin_jax.base import devices, errors, folder
from skin_jax.base.errors import UserError, warn
from skin_jax.base.files import read_bytes, read_text, write_atomically
from skin_jax.data import classes as classes_lib
from skin_jax.data import demo, layouts, reading, splits
from skin_jax.data import generated as generated_lib
from skin_jax.data import pipeline as pipelines
from skin_jax.data.classes import Classes
from skin_jax.data.examples import Examples, Joined, hide_labels, write_skipped
from skin_jax.data.generated import Generated
from skin_jax.training import checkpoints as checkpoint_lib
from skin_jax.training import shipped, trackers

PyTree = Any

SPLITS_FILE = "splits.csv"
DIGEST_FILE = "examples.digest"
CHECKPOINTS = "checkpoints"
_SYNTHETIC_DIGEST_FILE = "synthetic.digest"
_SHIPPED = (classes_lib.FILE_NAME, SPLITS_FILE, _SYNTHETIC_DIGEST_FILE)
_RESULTS = ("metrics.jsonl", "report.html", "eval", "figures", "samples")
_MANY_IMAGES = 10**6  # of each class, while nobody knows how many there are

Check = Callable[[ConfigDict, tasks.Task, Mesh], None]
"""Refuses what evaluators of a new run could not work with."""


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A configuration with everything that it names in hand."""

    config: ConfigDict
    examples: Examples
    """All real ones; splits and evaluation know no others. Hidden labels are not in it."""
    assignment: np.ndarray  # "train" | "val" | "test" [N]
    synthetic: Examples | None  # generated ones that are trained with; a reopened run has none
    training_indices: np.ndarray
    """The training stream's labelled content, int64 [n]: places among the examples and, from
    `len(examples.records)` on, among the generated images. An example may repeat."""
    training_labels: np.ndarray  # their classes, int32 [n]
    mesh: Mesh
    pipeline: pipelines.Pipeline  # of the examples and, after them, of the generated images
    task: tasks.Task
    num_steps: int  # length of the run, a multiple of the steps per dispatch
    steps_per_epoch: float
    """Batches in one pass over the training split, with or without labels, but without generated
    and repeated images."""

    @property
    def classes(self) -> Classes:
        """The classes of the examples."""
        return self.examples.classes

    @property
    def placement(self) -> NamedSharding:
        """Where the state lives in training."""
        return self.task.placement(self.mesh)

    @property
    def rows(self) -> int:
        """Examples in a training batch."""
        return self.task.rows(self.config.batch_size)

    @property
    def fed_rows(self) -> int:
        """Rows of a training batch as the devices get it; those after the first `rows` repeat."""
        return self.task.fed_rows(self.config.batch_size, self.mesh)

    def indices(self, split: str) -> np.ndarray:
        """Indices of the labelled examples of a split, int64 [n]."""
        return _indices(self.examples, self.assignment, split)

    @functools.cached_property
    def unlabelled_indices(self) -> np.ndarray:
        """Indices of the training examples without a label, int64 [n]."""
        return _indices(self.examples, self.assignment, "train", labelled=False)

    def class_counts(self, split: str) -> np.ndarray:
        """Images of each class in a split, int64 [n]; those without a label are in none."""
        labels = self.examples.labels[self.indices(split)]
        return np.bincount(labels, minlength=len(self.classes))


def _indices(
    examples: Examples, assignment: np.ndarray, split: str, *, labelled: bool = True
) -> np.ndarray:
    return np.flatnonzero(
        (assignment == split) & ((examples.labels != classes_lib.UNLABELLED) == labelled)
    )


@contextlib.contextmanager
def session(workdir: Path) -> Iterator[checkpoint_lib.Preemption]:
    """A work folder for as long as a run trains in it; all processes of the run enter it.

    Only the first process prints. Yields what SIGTERM and Ctrl-C do meanwhile.

    Raises:
      UserError: another run is training in the folder, it cannot be written, or another process of
        the run has died.
      Ended: by SIGTERM (status 143) or Ctrl-C (130); everything is saved.
    """
    first, whole = devices.is_first(), "everything saved so far is intact"
    with contextlib.ExitStack() as stack:
        if not first:
            nowhere = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
        with devices.together():
            busy = f"another run is training in {workdir}"
            stack.enter_context(folder.claimed(workdir, busy, lock=first))
        preemption = stack.enter_context(checkpoint_lib.Preemption())
        try:
            yield preemption
        except OSError as error:
            said = f"{workdir}: {error}; {whole}: solve this and run the same command again"
            raise UserError(said, errors.FAILURE) from error
        except jax.errors.JaxRuntimeError as error:
            if not devices.several() or "RESOURCE_EXHAUSTED" in str(error):
                raise
            raise UserError(
                f"another process of this run does not answer ({errors.first_line(error)}); "
                f"{whole}: run the same command again in all of them",
                errors.PEER_DIED,
            ) from error


def load_examples(config: ConfigDict) -> Examples:
    """The examples that `config.data` names, at its `image_size`; refuses wrong contents."""
    data = config.data
    told = reading.Reading.of(data)
    if config_lib.is_procedural(data):
        if told != reading.Reading():
            raise UserError(
                "config.data.table, classes and rename are about a folder of images; give it with "
                "--config.data.dir"
            )
        return demo.generate(data.demo_images, data.image_size, data.split_seed)
    from skin_jax.data import store  # tensorflow-datasets takes a second to import

    return store.prepare(
        data.dir,
        image_size=data.image_size,
        cache_dir=data.cache_dir,
        on_bad_image=data.on_bad_image,
        download=data.download,
        reading=told,
    )


def _classes_of(config: ConfigDict) -> Classes:
    """The classes of the data, before any image is decoded."""
    if config.data.dir is None:  # of the demo, or of the download
        return classes_lib.HAM10000
    return layouts.read(Path(config.data.dir), reading.Reading.of(config.data)).classes


def start(config: ConfigDict, workdir: Path, check: Check | None = None) -> Experiment:
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
        mesh = _check(config, workdir, resumed, check)
        rows = None  # of generated images, read before hours of decoding
        if config.data.synthetic is not None:
            rows = generated_lib.read(Path(config.data.synthetic), _classes_of(config))
        examples = load_examples(config)
        if resumed:
            examples, assignment = read_split(examples, workdir)
        else:
            assignment = splits.draw(
                examples.records,
                split=config.data.split,
                fractions=tuple(config.data.split_fractions),
                split_seed=config.data.split_seed,
                fold=config.data.fold,
                counts=config.data.split_counts,
            )
            hidden = splits.hidden_labels(
                examples.records, assignment, config.data.label_fraction, config.data.label_seed
            )
            examples = hide_labels(examples, hidden)
        generated = None
        if rows is not None:
            generated = _load_synthetic(config, rows, examples, assignment)
            if resumed:
                path = workdir / _SYNTHETIC_DIGEST_FILE
                _check_digest(path, generated.digest, "generated images", "data.synthetic")
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
    if without := len(experiment.unlabelled_indices):
        used = "join" if experiment.task.labelled_rows else "have no place in"
        print(
            f"{len(experiment.indices('train'))} training images have labels; {without} others "
            f"{used} the batches of this run"
        )
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


def _check(config: ConfigDict, workdir: Path, resumed: bool, check: Check | None) -> Mesh:
    """Refuses what cannot run, before hours of decoding; makes the paths absolute."""
    config_lib.validate(config)
    trackers.check(config.log.tracker)
    config_lib.normalize(config)
    names = _classes_of(config).names
    tasks.kind(config).settle(config, names)
    many = np.full(len(names), _MANY_IMAGES)
    task, _, _ = _build_task(config, names, many, many)
    mesh = task.mesh(config.sharding.num_devices, config.batch_size)
    if (workdir / shipped.WEIGHTS).exists():
        raise UserError(
            f"{workdir} is an exported run, which cannot be trained any further; take a new "
            "--workdir"
        )
    if resumed:
        before = config_lib.read(workdir)
        tasks.kind(before).settle(before, names)
        config_lib.check_resumable(before, config, workdir)
        there = before.data.synthetic
        if (there is None) != (config.data.synthetic is None):
            how, mend = "without", "leave out --config.data.synthetic"
            if there is not None:
                how = "with"
                mend = f"give their folder with --config.data.synthetic (it was {there})"
            raise UserError(
                f"{workdir} holds a run that is trained {how} generated images; {mend}, or take a "
                "new --workdir"
            )
        return mesh
    left = CHECKPOINTS, checkpoint_lib.GENERATORS, *_RESULTS
    if other := [name for name in left if (workdir / name).exists()]:
        raise UserError(
            f"{workdir} holds {other[0]} but no {config_lib.FILE_NAME}: which run it is of is not "
            "known; restore the file, or take a new --workdir"
        )
    config_lib.to_json(config)  # later commands will find code of the user's own
    task.pretrained(jax.eval_shape(task.init, jax.random.key(0)))  # the weights fit
    if check is not None:
        check(config, task, mesh)
    return mesh


def _write(experiment: Experiment, workdir: Path, resumed: bool) -> None:
    examples, synthetic = experiment.examples, experiment.synthetic
    if examples.skipped:
        write_skipped(workdir / "skipped.csv", examples.skipped)
        warn(f"{len(examples.skipped)} unreadable images are left out: {workdir}/skipped.csv")
    files = None
    if not resumed:
        files = [classes_lib.FILE_NAME, SPLITS_FILE, DIGEST_FILE]
        classes_lib.write(examples.classes, workdir)
        members = examples.records, experiment.assignment, examples.classes
        splits.write(workdir / SPLITS_FILE, *members)
        write_atomically(workdir / DIGEST_FILE, examples.digest + "\n")
        if synthetic is not None:
            files.append(_SYNTHETIC_DIGEST_FILE)
            write_atomically(workdir / _SYNTHETIC_DIGEST_FILE, synthetic.digest + "\n")
    config_lib.write(experiment.config, workdir, files)  # last: it is what makes the folder a run


def _load_synthetic(
    config: ConfigDict, rows: Sequence[Generated], examples: Examples, assignment: np.ndarray
) -> Examples:
    """The generated images to train with; refuses those of a generator that saw other lesions."""
    source, classes = Path(config.data.synthetic), examples.classes
    members = splits.members_of(examples.records, assignment, "train", classes)
    own = generated_lib.train_split_digest(members)
    if foreign := sum(row.train_split != own for row in rows):
        found = (
            f"{foreign} of the {len(rows)} images in {source} are of a generator that was trained "
            "on another training split than this run's and may have seen lesions of its "
            "validation and test splits"
        )
        if not config.data.synthetic_allow_foreign:
            raise UserError(
                f"{found}, whose scores would then be too high; train the generator on the same "
                "images with the same --config.data.split, split_fractions, split_seed and fold, "
                "or use them anyway with --config.data.synthetic_allow_foreign=True"
            )
        warn(f"{found}: scores of this run may be too high")
    labels = examples.labels[_indices(examples, assignment, "train")]
    counts = np.bincount(labels, minlength=len(classes))
    taken = generated_lib.at_most(rows, counts, config.data.synthetic_ratio, classes)
    return generated_lib.load(source, taken, config.data.image_size, classes)


def fitted_on(workdir: Path) -> str:
    """`generated.train_split_digest` of a run, for the manifest of the images that it generates.

    Where foreign generated images were among its training images, their digest counts too: nobody
    knows what their generator had seen, so that no run may take the result for a generator of its
    own training split.
    """
    members = splits.members(workdir / SPLITS_FILE, "train")
    data = config_lib.read(workdir).data
    if data.synthetic is not None and data.synthetic_allow_foreign:
        members = [*members, (read_text(workdir / _SYNTHETIC_DIGEST_FILE).strip(), "foreign")]
    return generated_lib.train_split_digest(members)


def read_split(examples: Examples, workdir: Path) -> tuple[Examples, np.ndarray]:
    """The examples with the labels that a run knows, and its split; neither is drawn twice.

    Examples that are not those that it was drawn from are refused.

    Returns:
      The examples, and "train" | "val" | "test" [N].
    """
    _check_digest(workdir / DIGEST_FILE, examples.digest, "images", "data.dir")
    path = workdir / SPLITS_FILE
    assignment, hidden = splits.read(path, examples.records, examples.classes)
    return hide_labels(examples, hidden), assignment


def _check_digest(path: Path, found: str, what: str, key: str) -> None:
    try:
        digest = read_text(path).strip()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); restore it") from None
    if digest != found:
        raise UserError(
            f"the {what} are not those that {path.parent} was trained on (their digest differs); "
            f"give the folder that it had with --config.{key}, or take a new --workdir"
        )


def _assemble(
    config: ConfigDict,
    examples: Examples,
    assignment: np.ndarray,
    mesh: Mesh,
    generated: Examples | None = None,
) -> Experiment:
    indices = train = _indices(examples, assignment, "train")
    without = len(_indices(examples, assignment, "train", labelled=False))
    if (count := config.data.get("oversample_to")) is not None:
        indices = _repeated(train, examples.labels[train], count)
    images, labels = examples.images, examples.labels
    if generated is not None:
        indices = np.concatenate([indices, len(images) + np.arange(len(generated.images))])
        images = Joined(images, generated.images)
        labels = np.concatenate([labels, generated.labels])
    task, num_steps, steps_per_epoch = _build_task(
        config,
        examples.classes.names,
        np.bincount(labels[train], minlength=len(examples.classes)),
        np.bincount(labels[indices], minlength=len(examples.classes)),
        without,
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
    """The examples class by class, those of smaller classes repeated up to `count`."""
    groups = [indices[labels == c] for c in np.unique(labels)]
    if all(len(group) >= count for group in groups):
        raise UserError(
            f"config.data.oversample_to is {count}, but every class has as many training images: "
            "none would be repeated; give more, or leave it out"
        )
    return np.concatenate([np.resize(group, max(count, len(group))) for group in groups])


def _build_task(
    config: ConfigDict,
    names: Sequence[str],
    real_counts: np.ndarray,
    class_counts: np.ndarray,
    unlabelled: int = 0,
) -> tuple[tasks.Task, int, float]:
    """The task, the length of the run in steps, and the batches in an epoch.

    Of each of the n classes are given its name, the number of its real training images, which make
    an epoch, and that of its images in the training stream: int [n]. There are `unlabelled` other
    training images; hiding labels does not change the length of a run.
    """
    epoch = tasks.kind(config).epoch(config, names, real_counts)
    as_labelled = 1.0 + unlabelled / max(1, real_counts.sum())
    steps_per_epoch = epoch * as_labelled / config.batch_size
    per_dispatch = config.steps_per_dispatch
    steps = config.num_steps or max(1, round(config.num_epochs * steps_per_epoch))
    num_steps = -(-steps // per_dispatch) * per_dispatch
    task = tasks.build(config, names, class_counts, num_steps, steps_per_epoch)
    if unlabelled:
        task = task.with_unlabelled(config.batch_size)
    return task, num_steps, steps_per_epoch


# Runs that were trained before: only read


@dataclasses.dataclass(frozen=True)
class Trained:
    """A run and what its work folder says of it, without the images."""

    workdir: Path
    config: ConfigDict
    classes: Classes
    train_counts: np.ndarray  # training images of each class, int [n]
    task: tasks.Task

    @property
    def name(self) -> str:
        """Name of the work folder."""
        return self.workdir.resolve().name

    def ability(self, name: str) -> Callable[..., Any]:
        """One of the task's abilities; see `tasks.require`."""
        return tasks.require(self.task, name, self.workdir)

    def best_state(self, mesh: Mesh) -> tuple[PyTree, int]:
        """The best checkpoint's state, on every device of a mesh, and its step."""
        with self._checkpoints() as checkpoints:
            return best_state(self.task, checkpoints, mesh)

    def state_at(self, mesh: Mesh, step: int) -> PyTree:
        """The state of the checkpoint of a step; refuses one that is missing or damaged."""
        return self._restored(step, "checkpoint", {CHECKPOINTS: _template(self.task, mesh)})[1]

    def drawn_from(self, mesh: Mesh, step: int | None) -> tasks.Drawn:
        """The best generators of the run, or those of a step: kept alone, or in a checkpoint."""
        num_classes = len(self.classes)
        if step is None:
            return self.task.drawn_from(*self.best_state(mesh), num_classes)
        state = _template(self.task, mesh)
        # Not of the state's shapes themselves: a task may compute with them.
        shapes = jax.eval_shape(self.task.generators, state)
        alone = checkpoint_lib.template_of(shapes, devices.replicated(mesh))
        templates = {checkpoint_lib.GENERATORS: alone, CHECKPOINTS: state}
        name, generators = self._restored(step, "generators", templates)
        if name == CHECKPOINTS:
            generators = self.task.generators(generators)
        return tasks.Drawn(generators, np.full(num_classes, step), np.ones(num_classes, bool))

    def _restored(
        self, step: int, what: str, templates: Mapping[str, PyTree]
    ) -> tuple[str, PyTree]:
        """Name of the first of some folders of checkpoints that has a step, and what it has."""
        there: set[int] = set()
        for name, template in templates.items():
            with self._checkpoints(name) as checkpoints:
                if step in (steps := checkpoints.steps()):
                    return name, checkpoints.restore(step, template)
            there |= {*steps}
        known = f"those of {', '.join(map(str, sorted(there)))}" if there else "none"
        raise UserError(f"{self.workdir} has no {what} of step {step}; there are {known}")

    def _checkpoints(self, name: str = CHECKPOINTS) -> checkpoint_lib.Checkpoints:
        return checkpoint_lib.Checkpoints(self.workdir / name, self.task.score, read_only=True)


@dataclasses.dataclass(frozen=True)
class Shipped(Trained):
    """A run that `ship` wrote: its best weights and nothing else."""

    def best_state(self, mesh: Mesh) -> tuple[PyTree, int]:
        """The best checkpoint's state, None in the place of what only training needs; its step."""
        content = shipped.read(self.workdir, self.task, len(self.classes))
        return jax.device_put(content.state, devices.replicated(mesh)), content.step

    def state_at(self, mesh: Mesh, step: int) -> PyTree:
        """Refuses every step."""
        raise UserError(
            f"{self.workdir} is an exported run, which has its best weights only: step {step} "
            "cannot be chosen; leave it out"
        )

    def drawn_from(self, mesh: Mesh, step: int | None) -> tasks.Drawn:
        """The best generators; refuses a step."""
        if step is not None:
            return self.state_at(mesh, step)
        content = shipped.read(self.workdir, self.task, len(self.classes))
        placement = devices.replicated(mesh)
        if content.drawn is None:
            state = jax.device_put(content.state, placement)
            return self.task.drawn_from(state, content.step, len(self.classes))
        generators = jax.device_put(content.drawn.generators, placement)
        return content.drawn._replace(generators=generators)


def trained(workdir: Path) -> Trained:
    """Opens a work folder, or a folder of `ship`, without its images.

    Raises:
      UserError: it is none of a run, or damaged.
    """
    config, classes = config_lib.read(workdir), classes_lib.read(workdir)
    counts = splits.class_counts(workdir / SPLITS_FILE, "train", classes)
    without = len(splits.members(workdir / SPLITS_FILE, "train")) - counts.sum()
    task, _, _ = _build_task(config, classes.names, counts, counts, without)
    kind = Shipped if (workdir / shipped.WEIGHTS).exists() else Trained
    return kind(workdir, config, classes, counts, task)


def ship(run: Trained, out: Path, also: Iterable[str] = ()) -> shipped.Content:
    """Writes a folder that commands take for the run's: its best weights, classes and split.

    Its configuration names no folder of this machine.

    Args:
      run: with a checkpoint.
      out: a new folder, or one that this wrote before.
      also: more files of the run that are copied, where it has them.

    Returns:
      What the weights are of.

    Raises:
      UserError: other files are there, or the run needs code of the user's own.
    """
    folder.check_own(out, shipped.WEIGHTS, "--out")
    settings = config_lib.without_folders(config_lib.flatten(run.config))
    given = {key: functools.reduce(getitem, key.split("."), run.config) for key in settings}
    if own := [key for key, value in given.items() if callable(value)]:
        raise UserError(
            f"{run.workdir} has code of its own as config.{own[0]}, which an exported folder "
            "cannot hold; pass on the work folder together with that file"
        )
    mesh = devices.make_mesh(1)
    state, step = run.best_state(mesh)
    drawn = None
    if tasks.can(run.task, "images_of") and run.task.conditional:
        drawn = run.drawn_from(mesh, None)
    kept = shipped.needed(run.task, state, run.config.data.image_size)
    content = shipped.Content(kept, drawn, step)
    shipped.write(out, content)
    for name in (*_SHIPPED, *also):
        (out / name).unlink(missing_ok=True)  # of an earlier export
        with contextlib.suppress(FileNotFoundError):
            write_atomically(out / name, read_bytes(run.workdir / name))
    portable = config_lib.base(settings.pop("task"))
    portable.update_from_flattened_dict(settings)
    there = [name for name in (shipped.WEIGHTS, *_SHIPPED, *also) if (out / name).exists()]
    config_lib.write(portable, out, there)  # last: it is what makes the folder a run
    return content


def reopen(workdir: Path) -> Experiment:
    """Opens the experiment of a work folder to look at it, on whatever devices are here.

    Generated images that it was trained with are left out.

    Raises:
      UserError: the folder is not one of a run, or its images are gone or others.
    """
    config = config_lib.read(workdir)
    if (workdir / shipped.WEIGHTS).exists():
        raise UserError(
            f"{workdir} is an exported run, which does not know where its images are; give "
            "labelled images to skin_jax.eval with --data_dir, or take the work folder that it was "
            "exported from"
        )
    config.data.pipeline = "auto"
    examples = load_examples(config)
    return _assemble(config, *read_split(examples, workdir), devices.make_mesh(None))


def best_state(
    task: tasks.Task, checkpoints: checkpoint_lib.Checkpoints, mesh: Mesh
) -> tuple[PyTree, int]:
    """The best checkpoint's state and its step; refuses a run without any that can be read."""
    restored = checkpoints.restore_best(_template(task, mesh))
    if restored is None:
        raise UserError("this run has no checkpoint yet; train it first with skin_jax.main")
    return restored


def _template(task: tasks.Task, mesh: Mesh) -> PyTree:
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    return checkpoint_lib.template_of(shapes, devices.replicated(mesh))
