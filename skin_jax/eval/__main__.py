"""Evaluates a run, on one of its splits or on another labelled folder, or any pair of CSVs.

python -m skin_jax.eval --workdir DIR --split val|test
python -m skin_jax.eval --workdir DIR --data_dir OTHER --out DIR2
python -m skin_jax.eval --predictions P.csv --truth T.csv --out DIR2

Or compares generated images with a run's training images and looks for copies of them:

python -m skin_jax.eval --quality GENERATED_DIR --workdir DIR [--out DIR2]
    [--weights FILE.safetensors | --features_from DIR3]

GENERATED_DIR is a folder of skin_jax.generate. Features are those of EfficientNet-Lite0 with the
given weights, or of the run in DIR3; without either there is the sliced Wasserstein distance alone.
The results go to DIR/eval/quality/<name of GENERATED_DIR>.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from skin_jax.base import command
from skin_jax.base.errors import UserError
from skin_jax.data import reading

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from skin_jax.eval.features import Extractor

_WORKDIR = command.define_path("workdir", None, "Folder of a trained run.")
_SPLIT = flags.DEFINE_enum("split", "test", ["train", "val", "test"], "Split of the run.")
_DATA_DIR = command.define_path("data_dir", None, "Another labelled folder, all of its images.")
_PREDICTIONS = command.define_path("predictions", None, "CSV with the challenge's columns.")
_TRUTH = command.define_path("truth", None, "CSV with the challenge's columns, one-hot.")
_QUALITY = command.define_path("quality", None, "Folder of generated images.")
_WEIGHTS = command.define_path(
    "weights", None, "EfficientNet-Lite0's, for --quality: a .safetensors or hf:OWNER/NAME."
)
_FEATURES_FROM = command.define_path(
    "features_from", None, "Folder of the run whose features --quality takes."
)
_OUT = command.define_path("out", None, "Where the results go.")
reading.define_flags()  # of --data_dir


def main(argv: list[str]) -> None:
    """The command line's work; see the module's docstring."""
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}; see --help")
    out = Path(_OUT.value) if _OUT.value else None
    if (_WEIGHTS.value or _FEATURES_FROM.value) and not _QUALITY.value:
        raise UserError("--weights and --features_from go with --quality=GENERATED_DIR")
    if _QUALITY.value:
        _measure_quality(Path(_QUALITY.value), out)
    elif _PREDICTIONS.value or _TRUTH.value:
        if not (_PREDICTIONS.value and _TRUTH.value and out):
            raise UserError("comparing CSVs needs all of --predictions, --truth and --out")
        _compare(Path(_PREDICTIONS.value), Path(_TRUTH.value), out)
    elif not _WORKDIR.value:
        raise UserError("give --workdir=DIR, or --predictions and --truth; see --help")
    elif _DATA_DIR.value:
        if not out:
            raise UserError("give --out=DIR, where the results on --data_dir shall go")
        _evaluate_elsewhere(Path(_WORKDIR.value), Path(_DATA_DIR.value), out)
    else:
        workdir = Path(_WORKDIR.value)
        _evaluate_split(workdir, _SPLIT.value, out or workdir / "eval" / _SPLIT.value)


def _compare(predictions: Path, truth: Path, out: Path) -> None:
    from skin_jax.eval import metrics, tables
    from skin_jax.report import run as run_report

    scores, known = tables.join(predictions, truth)
    evaluation = run_report.Evaluation(
        metrics=metrics.evaluate(scores.probabilities, known.labels),
        image_ids=scores.image_ids,
        labels=known.labels,
        probabilities=scores.probabilities,
    )
    run_report.write_evaluation(out, evaluation)
    print(run_report.table_one(evaluation.metrics))
    print(f"\nresults: {out}")


def _evaluate_split(workdir: Path, split: str, out: Path) -> None:
    from skin_jax.eval import runs
    from skin_jax.report import run as run_report
    from skin_jax.train import checkpoints as checkpoint_lib
    from skin_jax.train.run import reopen

    experiment = reopen(workdir)
    checkpoints = checkpoint_lib.Checkpoints(workdir / "checkpoints", read_only=True)
    found = runs.evaluate_split(experiment, checkpoints, split, out)
    if found is not None:
        print(run_report.table_one(found[0].metrics, found[0].shared_with_train))
        print(f"\nresults: {out}", flush=True)


def _evaluate_elsewhere(workdir: Path, data_dir: Path, out: Path) -> None:
    from skin_jax.base.errors import warn
    from skin_jax.data import splits, store
    from skin_jax.data.examples import write_skipped
    from skin_jax.eval import runs
    from skin_jax.report import run as run_report
    from skin_jax.train import checkpoints as checkpoint_lib
    from skin_jax.train.run import SPLITS_FILE, trained

    run = trained(workdir)
    task, config = run.task, run.config
    examples = store.prepare(
        data_dir,
        image_size=config.data.image_size,
        cache_dir=config.data.cache_dir,
        on_bad_image=config.data.on_bad_image,
        reading=reading.from_flags(),
        classes=run.classes,
    )
    if examples.skipped:
        write_skipped(out / "skipped.csv", examples.skipped)
        warn(f"{len(examples.skipped)} unreadable images are left out: {out}/skipped.csv")
    seen = {image_id for image_id, _ in splits.members(workdir / SPLITS_FILE, "train")}
    if known := sum(record.image_id in seen for record in examples.records):
        warn(f"{known} of the {len(examples.records)} images have the id of a training image")
    checkpoints = checkpoint_lib.Checkpoints(workdir / "checkpoints", read_only=True)
    evaluation = runs.evaluate_examples(task, checkpoints, examples, config.eval_batch_size, out)
    print(run_report.table_one(evaluation.metrics))
    print(f"\nresults: {out}", flush=True)


def _measure_quality(folder: Path, out: Path | None) -> None:
    if not _WORKDIR.value:
        raise UserError("give --workdir=DIR, the run whose training images --quality compares with")
    if _WEIGHTS.value and _FEATURES_FROM.value:
        raise UserError("--weights and --features_from exclude each other; give one of them")
    if _PREDICTIONS.value or _TRUTH.value or _DATA_DIR.value:
        raise UserError("--quality goes with none of --predictions, --truth and --data_dir")
    workdir = Path(_WORKDIR.value)
    out = out or workdir / "eval" / "quality" / folder.resolve().name
    if out.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{out} lies in {folder}, whose manifest names all of its images")

    from skin_jax import config
    from skin_jax.base import devices
    from skin_jax.base.errors import warn
    from skin_jax.data import classes
    from skin_jax.eval import audit, features
    from skin_jax.report import quality as quality_report
    from skin_jax.train.run import reopen

    size = config.read(workdir).data.image_size
    generated = audit.generated_images(folder, size, classes.read(workdir))
    mesh = devices.make_mesh(None)
    extractor = None
    if _WEIGHTS.value:
        extractor = features.efficientnet_lite0(_WEIGHTS.value, mesh)
    elif _FEATURES_FROM.value:
        extractor = _features_of(Path(_FEATURES_FROM.value), mesh)
        _warn_of_known_images(workdir, Path(_FEATURES_FROM.value))
    else:
        warn(
            "neither --weights nor --features_from is given: the sliced Wasserstein distance is "
            "measured alone, and copies of training images are not looked for"
        )
    real = audit.real_images(reopen(workdir))
    if generated.train_splits != {real.train_split}:
        warn(
            f"the images in {folder} are of a generator that was fitted on other images than the "
            f"training split of {workdir}: copies of those others are not looked for"
        )
    try:
        out.mkdir(parents=True, exist_ok=True)  # before the work
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror})") from None
    names = {"generated": folder.resolve().name, "run": workdir.resolve().name}
    print(
        quality_report.write(out, audit.audit(real, generated, extractor), real, generated, names)
    )
    print(f"results: {out}", flush=True)


def _warn_of_known_images(workdir: Path, other: Path) -> None:
    """Distances of validation images mean little to a network that was trained on them."""
    from skin_jax.base.errors import warn
    from skin_jax.data import splits
    from skin_jax.train.run import SPLITS_FILE

    trained = {image_id for image_id, _ in splits.members(other / SPLITS_FILE, "train")}
    val = [image_id for image_id, _ in splits.members(workdir / SPLITS_FILE, "val")]
    if known := sum(image_id in trained for image_id in val):
        warn(
            f"{other} was trained on {known} of the {len(val)} validation images of {workdir}: "
            "copies are measured against their distances, which it makes too small"
        )


def _features_of(workdir: Path, mesh: "Mesh") -> "Extractor":
    from skin_jax.eval.features import Extractor
    from skin_jax.train.run import trained

    run = trained(workdir)
    describe = run.ability("features")
    state, step = run.best_state(mesh)
    return Extractor(
        describe,
        state,
        image_size=run.config.data.image_size,
        mesh=mesh,
        network=f"the run {run.name} ({run.config.task}) at step {step}",
    )


def run() -> None:
    """Runs the command."""
    command.run(main)


if __name__ == "__main__":
    run()
