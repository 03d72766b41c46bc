"""Evaluates a run, on one of its splits or on another labelled folder, or any pair of CSVs.

python -m skin_jax.eval --workdir DIR --split val|test [--tta] [--scales 1,0.8]
python -m skin_jax.eval --workdir DIR --data_dir OTHER --out DIR2
python -m skin_jax.eval --predictions P.csv --truth T.csv --out DIR2 [--workdir DIR]

Or compares generated images with a run's training images and looks for copies of them:

python -m skin_jax.eval --quality GENERATED_DIR --workdir DIR [--out DIR2]
    [--weights FILE.safetensors ...] [--features_from DIR3 ...]

GENERATED_DIR is a folder of skin_jax.generate. Each judge looks at the features of an
EfficientNet-Lite with the given weights, or of the run in DIR3; without any there is the sliced
Wasserstein distance alone. A judge against which, or by which, the generators of DIR were trained
or chosen is marked. The results go to DIR/eval/quality/<name of GENERATED_DIR>.

The classes of OTHER are those of the run. Those of a pair of CSVs are the run's in DIR, else the
challenge's where the truth has its columns, else the columns of the truth.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from skin_jax import config
from skin_jax.base import command
from skin_jax.base.errors import UserError, warn
from skin_jax.base.files import check_writable
from skin_jax.base.folder import check_own
from skin_jax.data import classes as classes_lib
from skin_jax.data import reading, splits
from skin_jax.data.examples import write_skipped
from skin_jax.eval import metrics, tables
from skin_jax.eval.evaluation import Evaluation
from skin_jax.report import run as run_report

if TYPE_CHECKING:
    from skin_jax.eval.inference import View
    from skin_jax.training.run import Trained

_WORKDIR = command.define_path("workdir", None, "Folder of a trained run.")
_SPLIT = flags.DEFINE_enum("split", "test", ["train", "val", "test"], "Split of the run.")
_DATA_DIR = command.define_path(
    "data_dir", None, "Another labelled folder; all of its images are evaluated."
)
_TTA = flags.DEFINE_bool("tta", False, "Average over the 8 flips and quarter turns of each image.")
_SCALES = flags.DEFINE_list(
    "scales", ["1"], "Sides of the images' middles to average over, such as 1,0.8."
)
_PREDICTIONS = command.define_path("predictions", None, "CSV with a column for each class.")
_TRUTH = command.define_path("truth", None, "CSV with a column for each class, one-hot.")
_QUALITY = command.define_path("quality", None, "Folder of generated images.")
_WEIGHTS = command.define_paths(
    "weights", "An EfficientNet-Lite's, for --quality: a .safetensors or hf:OWNER/NAME."
)
_FEATURES_FROM = command.define_paths(
    "features_from", "Folder of a run whose features --quality takes."
)
_OUT = command.define_path("out", None, "Where the results go.")
reading.define_flags()  # of --data_dir


def main(argv: list[str]) -> None:
    """The command line's work; see the module's docstring."""
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}; see --help")
    out = Path(_OUT.value) if _OUT.value else None
    if out:
        check_own(out, "quality.json" if _QUALITY.value else "metrics.json", "--out")
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
            raise UserError("give --out=DIR, the folder for the results on --data_dir")
        _evaluate_elsewhere(Path(_WORKDIR.value), Path(_DATA_DIR.value), out)
    else:
        workdir = Path(_WORKDIR.value)
        _evaluate_split(workdir, _SPLIT.value, out or workdir / "eval" / _SPLIT.value)


# JAX takes its time to import: below, inside functions, not for --help.


def _write(out: Path, evaluation: Evaluation) -> None:
    run_report.write_evaluation(out, evaluation)
    print(f"{run_report.table_one(evaluation)}\n\nresults: {out}", flush=True)


def _compare(predictions: Path, truth: Path, out: Path) -> None:
    if _WORKDIR.value:
        config.read(Path(_WORKDIR.value))  # it is the folder of a run
        classes = classes_lib.read(Path(_WORKDIR.value))
    else:
        classes = tables.classes_of(predictions, truth)
    for path in (predictions, truth):
        if path.resolve().parent == out.resolve():
            raise UserError(f"{path} is in --out={out}, where results are written; give a new one")
    scores, known = tables.join(predictions, truth, classes)
    found = metrics.evaluate(scores.probabilities, known.labels)
    _write(out, Evaluation(classes, found, scores.image_ids, known.labels, scores.probabilities))


def _evaluate_split(workdir: Path, split: str, out: Path) -> None:
    from skin_jax.eval import runs

    check_writable(out / "metrics.json")

    evaluation = runs.evaluate_own(workdir, split, _views())
    if evaluation is not None:
        _write(out, evaluation)


def _evaluate_elsewhere(workdir: Path, data_dir: Path, out: Path) -> None:
    from skin_jax.eval import runs
    from skin_jax.training.run import trained

    run = trained(workdir)
    check_writable(out / "metrics.json")
    examples = runs.labelled(run, data_dir, reading.from_flags())
    if examples.skipped:
        write_skipped(out / "skipped.csv", examples.skipped)
        warn(f"{len(examples.skipped)} unreadable images are left out: {out}/skipped.csv")
    ids = [record.image_id for record in examples.records]
    if known := _trained_on(workdir, ids):
        warn(f"{known} of the {len(ids)} images have the id of a training image")
    _write(out, runs.evaluate_examples(run, examples, _views()))


def _views() -> "Sequence[View]":
    from skin_jax.eval import inference

    return inference.views(_TTA.value, command.shares_in(_SCALES.value, "scales"))


def _trained_on(workdir: Path, image_ids: Iterable[str]) -> int:
    """How many of the images a run was trained on, by their ids."""
    from skin_jax.training.run import SPLITS_FILE

    trained = dict(splits.members(workdir / SPLITS_FILE, "train"))
    return sum(image_id in trained for image_id in image_ids)


def _measure_quality(folder: Path, out: Path | None) -> None:
    if not _WORKDIR.value:
        raise UserError("give --workdir=DIR, the run whose training images --quality compares with")
    if _PREDICTIONS.value or _TRUTH.value or _DATA_DIR.value:
        raise UserError("--quality goes with none of --predictions, --truth and --data_dir")
    workdir, named = Path(_WORKDIR.value), folder.resolve()
    out = out or workdir / "eval" / "quality" / named.name
    if out.resolve().is_relative_to(named):
        raise UserError(
            f"--out={out} is inside {folder}, whose manifest lists all images in it; give a folder "
            "elsewhere"
        )

    from skin_jax.base import devices
    from skin_jax.eval import audit, features
    from skin_jax.report import quality as quality_report
    from skin_jax.training.run import SPLITS_FILE, reopen, trained

    run = trained(workdir)
    check_writable(out / "quality.json")
    generated = audit.generated_images(folder, run.config.data.image_size, run.classes)
    mesh = devices.make_mesh(None)
    known_to = _networks_of_generators(run)
    extractors = [
        features.efficientnet_lite(weights, mesh, note=known_to.get(Path(weights).name, ""))
        for text in _WEIGHTS.value
        for weights in command.paths_in(text)
    ]
    val = [image_id for image_id, _ in splits.members(workdir / SPLITS_FILE, "val")]
    for text in _FEATURES_FROM.value:
        for other in map(Path, command.paths_in(text)):
            extractors.append(features.of_run(trained(other), mesh))
            # Distances of validation images mean little to a network that was trained on them.
            if known := _trained_on(other, val):
                warn(
                    f"{other} was trained on {known} of the {len(val)} validation images of "
                    f"{workdir}; copies are judged against the distances of these images, which "
                    "that makes too small"
                )
    if not extractors:
        warn(
            "without --weights or --features_from, only the sliced Wasserstein distance is "
            "measured, and copies of training images are not searched for"
        )
    real = audit.real_images(reopen(workdir))
    if not real.were_fitted_by(generated):
        warn(
            f"the generator of the images in {folder} was trained on other images than the "
            f"training split of {workdir}: copies of those other images are not searched for"
        )
    names = {"generated": named.name, "run": workdir.resolve().name}
    judges = [
        audit.audit(real, generated, extractor, pixels=place == 0)
        for place, extractor in enumerate(extractors or [None])
    ]
    print(quality_report.write(out, judges, names))
    print(f"results: {out}", flush=True)


def _networks_of_generators(run: "Trained") -> dict[str, str]:
    """File name of weights -> what a run that generates images did with them."""
    from skin_jax.tasks import can

    if not can(run.task, "images_of"):
        return {}
    notes = {
        "score": "The best generators were chosen by this very network.",
        "model": "The generator was trained against this very network: it flatters the images.",
    }
    sections = {name: run.config.get(name, {}) for name in notes}
    return {
        Path(section["weights"]).name: notes[name]
        for name, section in sections.items()
        if section.get("weights", config.NO_WEIGHTS) != config.NO_WEIGHTS
    }


def run() -> None:
    """Runs the command."""
    command.run(main)


if __name__ == "__main__":
    run()
